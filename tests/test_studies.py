"""The experiments: searches, the law, lag, memory, smaller vocabularies, costs."""

import contextlib
import io
import json
import math
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import lag, memory, reproduce, searches
from support.optim import EMBEDDINGS
from test_model import tiny
from tests.common import ROOT, finish, gpt2_is_here, in_parallel, python, rows, table_of, train, write_images


@pytest.mark.slow
def test_costs_on_paper_are_the_ones_done_by_hand():
    (out, _), (_, err) = in_parallel([
        lambda: finish(python('-m', 'experiments.costs', '--gpu=A100', '--mfu=0.25')),
        lambda: finish(python('-m', 'experiments.costs', '--gpu=H900'), code=1)])
    assert 'gpu=H900 is unknown. Use one of' in err
    lines = [line for line in out.splitlines() if line.startswith('| `')]
    rows = {line.split('`')[1]: [cell.strip() for cell in line.split('|')] for line in lines}
    assert list(rows) == ['dnt_small', 'dnt_large', 'dnt_xl', 'vdnt_large', 'vdnt_huge']
    # L-DNT-XL: 6 (1438.0M - 1024 x 1536) + 12 x 48 x 1536 x 1024 FLOPs; 12 and 16 bytes a weight; 312 TFLOP/s
    # x 0.25
    flops = 6 * (1438.0e6 - 1024 * 1536) + 12 * 48 * 1536 * 1024
    assert rows['dnt_xl'][2:6] == ['104.9B tokens', f'{flops / 1e9:.2f}', '23.0 GB', '17.3 GB']
    days = 200_000 * 512 * 1024 * flops / (312e12 * 0.25) / 86400
    assert [cell.split(', ')[-1]
            for cell in rows['dnt_xl'][7:10]] == [f'{days / n:.2g} days' for n in (1, 8, 32)]
    paper = 200_000 * 512 * 1024 * flops / (4 * 86400 * 32) / 1e12
    assert f'{paper:.0f} TFLOP/s a GPU, an MFU of {paper / 312:.0%} where' in out


def finish_study(name, done, loss):
    """Every run of a study, at once; what each has lost is a function of it. Returns how many there were."""
    count = 0
    while todo := {searches.key(run): run for run in searches.STUDIES[name](done)
                   if searches.key(run) not in done}:
        count += len(todo)
        done.update((k, {'run': run, 'iter': 9, 'val_loss': loss(run), 'ended': 'finished'})
                    for k, run in todo.items())
    return count


def test_walk_finds_the_lowest_place_and_repeats_a_grid(monkeypatch):
    axes, done, seen = ([1, 2, 4, 8, 16], [0.1, 0.3, 0.5, 0.7], [1, 10, 100]), {}, []
    loss = lambda run: (math.log2(run['a']) - 3) ** 2 + (run['b'] - 0.3) ** 2 + 0.01 * math.log10(run['c'])
    # what a step gains in b or c is less than 0.1
    for least, best in ((0.0, (8, 0.3, 1)), (0.1, (8, 0.5, 10))):
        done.clear()
        while True:
            todo, at = searches.walk(lambda a, b, c: {'a': a, 'b': b, 'c': c}, axes, [(2, 0.5, 10)], done,
                                     least=least)
            if not todo:
                break
            done.update((searches.key(run), {'val_loss': loss(run)}) for run in todo)
        assert tuple(at.values()) == best
        seen.append(len(done))
    assert seen[1] < seen[0] < 20
    assert seen[1] == 1 + 2 + 2 + 2 + 2  # of 60; the fifth 2 are the steps on along a
    recorded, done = reproduce.read(ROOT / 'results/cifar10_grid.jsonl'), {}
    monkeypatch.chdir(ROOT)
    while todo := [k for k in map(searches.key, reproduce.cifar10_grid(done)) if k not in done]:
        done.update((k, recorded[k]) for k in todo)
    assert len(done) == len(recorded) == 16  # from nothing, to the runs that were made


def test_studies_follow_each_other_and_the_law_predicts(tmp_path, monkeypatch):
    """Losses that follow a law exactly: the searches find its optimum and the fit its exponents."""
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / 'config', 'config')
    os.mkdir('results')
    sizes = {name: size for size, name in searches.DATA.items()}

    def gap(run):
        x = [math.log2(v) for v in (run['max_iters'] / searches.ITERS, run['n_embd'] / 32,
                                    sizes[run['dataset']] / 257)]
        return 0.1 * 2 ** (-0.5 * x[0] + 0.25 * x[1] + 0.1 * x[2])

    def loss(run):
        kind = 'adamw' if run['config'] in ('dnt_tiny_adamw', 'gpt2_tiny') else 'sgdw'
        off = math.log2(run['learning_rate'] / {'adamw': 0.016, 'sgdw': 0.2}[kind]) ** 2 / 20
        off += math.log2(run['embed_lr'] / 0.008) ** 2 / 50 if run.get('embed_optimizer') == 'adamw' else 0
        lacks = {'adamw': 0.0, 'sgdw': 1.0}[kind] * (0.1 if run.get('embed_optimizer') == 'adamw' else 1)
        return 2 + off + lacks * gap(run) + 0.01 * run.get('seed', 0)

    done = {}
    for name in ('language', 'knobs_grid', 'law', 'law_fifth', 'sizes'):
        with pytest.raises(SystemExit,
                           match='begins where (language_grid|law) ends|There is no prediction'):
            list(searches.STUDIES[name](done))
    assert finish_study('language_grid', done, loss) < 80
    best = {b['variant']: (b['learning_rate'], b.get('embed_lr'))
            for _, b in searches.language_searches(done)}
    assert best['L-DNT AdamW'] == (0.016, None)
    assert best['L-DNT hybrid'] == (0.2, 0.008)
    assert best['GPT-2 mSGDW'] == (0.2, None)
    assert finish_study('language', done, loss) == 18
    finish_study('knobs_grid', done, loss)
    knobs = {b['variant']: b for _, b in searches.knob_searches(done)}
    assert len(knobs) == len(searches.KNOBS) + sum(map(len, searches.KNOBS.values()))
    half = knobs['L-DNT mSGDW, global_batch_size=4']
    assert (half['max_iters'], half['warmup_iters'], half['learning_rate']) == (1600, 480, 0.2)
    law = finish_study('law', done, loss)
    assert 27 * 2 < law < 27 * 7
    assert finish_study('law', done, loss) == 0
    assert all('seed' in row['run'] or row['run']['eval_interval'] == 0 for row in done.values())

    def command(module, *args):
        with open('results/law.jsonl', 'w') as f:
            f.writelines(json.dumps(row) + '\n' for row in done.values())
        monkeypatch.setattr(sys, 'argv', [module, *args])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            runpy.run_path(str(ROOT / f'experiments/{module}.py'), run_name='__main__')
        return said.getvalue()

    table = table_of(command('reproduce', 'language', '--table=True'))
    assert [row[0] for row in table] == list(searches.ARMS)
    assert table[2][-2:] == ['', '2.863']
    assert [table[i][-2] for i in (3, 5)] == ['+0.1000 ± 0.0000, worse', '+0.0100 ± 0.0000, matches']
    grid = {row[0]: row for row in table_of(command('reproduce', 'language_grid', '--table=True'))}
    assert grid['L-DNT AdamW'][3] == '0.016 (2.0500, 2.0500)'
    assert grid['L-DNT hybrid'][6] == '0.008 (2.0300, 2.0300)'
    assert 'edge' not in str(grid)

    assert finish_study('sizes', done, loss) == 12  # width 32 is there
    widths = table_of(command('reproduce', 'sizes', '--table=True'))
    assert [row[0] for row in widths] == ['32', '64', '96']
    assert widths[1][-1] == f'{0.01 * 2 ** (-0.5 + 0.25):+.4f} ± 0.0000, matches'
    said = command('law', '--predict=True')
    assert ('L-DNT mSGDW, power: gap 0.200 at the first point, times 0.707 for each doubling of tokens, '
            'times 1.189 for each doubling of width, times 1.072 for each doubling of vocabulary; '
            'root mean square of what is left 0.0000') in said
    assert said.count('not run') == 4
    predicted = json.loads(Path(searches.PREDICTION).read_text())
    assert predicted['point'] == ['stdlib', 32, 4 * searches.ITERS]
    assert predicted['points'] == 9
    assert predicted['gaps']['L-DNT mSGDW']['power'] == pytest.approx(0.05)
    assert predicted['gaps']['L-DNT hybrid']['power'] == pytest.approx(0.005)
    with pytest.raises(SystemExit, match='exists already'):  # once
        command('law', '--predict=True')
    assert finish_study('law_fifth', done, loss) > 6
    assert '| L-DNT mSGDW | power | +0.0500 | +0.0500 ± 0.0000 |' in command('law')
    os.remove(searches.PREDICTION)
    with pytest.raises(SystemExit, match='was run already. A prediction must come before its run'):
        command('law', '--predict=True')


@pytest.mark.slow
def test_lag_trains_as_train_gpt_does(tokens, tmp_path):
    shared = dict(iters=20, n_layer=2, learning_rate=0.4, weight_decay=0.003, seed=1, block_size=8,
                  global_batch_size=4)
    train(tokens, tmp_path / 'out', '--n_embd=32', '--n_head=1', '--embed_optimizer=adamw', '--embed_lr=0.01',
          '--min_lr=0',
          '--warmup_iters=6', '--eval_interval=0', *(f'--{k}={v}' for k, v in shared.items() if k != 'iters'))
    ours = lag.train({**shared, 'dataset': str(tokens), 'n_embd': 32, 'tied': True, 'adamw': 'embeddings',
                      'adamw_lr': 0.01, 'adamw_decay': 0.003, 'warmup': 0.3})
    assert ours == pytest.approx(rows(tmp_path / 'out')[-1]['loss'], abs=1e-5)
    model = tiny(tied=False)
    parts = {}
    for group, p, rows_of in lag.pieces(model):
        parts[group] = parts.get(group, 0) + p.data[rows_of].numel()
    C, L = 16, 3
    assert parts == {'embeddings': (64 + 12) * C, 'head': 64 * C, 'q and k': L * 2 * C * C,
                     'v and o': L * 2 * C * C, 'FFN': L * 8 * C * C, 'gains': C + L * (3 * C + 2 * 8) + C}


def test_optimizer_memory_calculated_is_measured(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(memory, 'configs', 'dnt_tiny,vit_cifar10')
    for device in ('meta', 'cpu'):
        monkeypatch.setattr(memory, 'device', device)
        for name in ('dnt_tiny', 'vit_cifar10'):
            model = memory.build(name)
            tensors = len(list(model.parameters()))
            of_embeddings = sum(n.split('.')[0] in EMBEDDINGS for n, _ in model.named_parameters())
            for kind, counters in (('AdamW', tensors), ('mSGDW', 0), ('hybrid', of_embeddings)):
                assert memory.measured(kind, model) == memory.calculated(kind, model) + 4 * counters
    monkeypatch.setattr(memory, 'device', 'meta')
    memory.printed()
    by_name = {row[0].split()[0]: row for row in table_of(capsys.readouterr().out)}
    assert by_name['all'][1] == '1,438,024,704'
    assert by_name['all'][-1] == 'no'
    assert by_name['without'][-1] == '10^9'


@gpt2_is_here
def test_smaller_vocabularies(tmp_path):
    pytest.importorskip('tiktoken')
    from tiktoken_ext.openai_public import r50k_base
    ranks = r50k_base()['mergeable_ranks']
    docs = [f'the internationalization of {i} things\n'.encode() + 'né 日本'.encode() for i in range(30)]
    folder = tmp_path / 'text'
    folder.mkdir()
    ids = {'train': docs[:25], 'val': docs[25:]}
    for split, part in ids.items():
        np.array([i for doc in part for i in [*doc, 256]], '<u2').tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps({'tokenizer': 'byte', 'vocab_size': 257, 'dtype': 'uint16',
                                                  'source': 'x'}))
    finish(python('-m', 'experiments.vocabulary', f'--dataset={folder}', '--sizes=257,700,50257'))
    # and from gpt2's ids back to the same
    finish(python('-m', 'experiments.vocabulary', f'--dataset={folder}_50257', '--sizes=700',
                  f'--out_dir={tmp_path}/again'))

    def bpe(word, size):  # merges the pair of the lowest rank until there is none
        parts = [word[i:i + 1] for i in range(len(word))]
        def rank(i):
            return ranks.get(parts[i] + parts[i + 1], size)
        while pairs := {i: rank(i) for i in range(len(parts) - 1) if rank(i) < size - 1}:
            i = min(pairs, key=pairs.get)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [ranks[part] for part in parts]

    back = {rank: token for token, rank in ranks.items()}
    for name, size in (('text_257', 257), ('text_700', 700), ('again_700', 700), ('text_50257', 50257)):
        meta = json.loads((tmp_path / name / 'meta.json').read_text())
        assert meta['vocab_size'] == size
        assert meta['val_bytes'] == sum(map(len, docs[25:]))
        for split, part in ids.items():
            got = np.fromfile(tmp_path / name / f'{split}.bin', '<u2').tolist()
            assert meta[f'{split}_tokens'] == len(got)
            assert got.count(size - 1) == meta[f'{split}_documents'] == len(part)
            assert b''.join(b'|' if i == size - 1 else back[i]
                            for i in got) == b''.join(doc + b'|' for doc in part)
            word = bpe(b' internationalization', size)
            assert got[:1 + len(bpe(b'the', size)) + len(word)][len(bpe(b'the', size)):-1] == word
    train(tmp_path / 'text_700', tmp_path / 'out', '--max_iters=2')
    assert 'a part of the gpt2 vocabulary' in finish(python('sample.py', f'--out_dir={tmp_path}/out',
                                                            '--device=cpu'), 1)[1]


STUDY = '''
import sys
import experiments.reproduce as r
r.STUDIES['stability'] = lambda done: (
    {**run, **json, 'learning_rate': lr} for run in r.stability(done) if run['learning_rate'] == 0.01
    for lr in (0.01, 1e30)
    if run['variant'] in ('NoNorm + WS + AGC', 'S5') and (lr < 1 or 'AGC' in run['variant']))
json = {'n_layer': 1}
r.run_study('stability', r.STUDIES['stability'], r.read_all())
r.print_variants('stability')
'''


@pytest.mark.slow
def test_stability_records_what_diverged_and_goes_on_where_it_stopped(tmp_path):
    data = write_images(tmp_path / 'data', train=70, val=7)
    for name in ('train_vit.py', 'experiments'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'config').mkdir()
    text = (ROOT / 'config/nft_cifar10.py').read_text()
    ours = f'dataset = {str(data)!r}\nimage_size = 8\nlog_interval = 1\n'
    (tmp_path / 'config/nft_cifar10.py').write_text(text + ours)
    path = tmp_path / 'results/stability.jsonl'

    def study():
        return finish(python('-c', STUDY, cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}))[0]

    table = table_of(study())
    recorded = map(json.loads, path.read_text().splitlines())
    ended = {(row['run']['variant'], row['run']['learning_rate']): row for row in recorded}
    lost = ended['NoNorm + WS + AGC', 1e30]
    assert lost['ended'] == 'diverged'
    assert 'top1' not in lost
    assert 'val_loss' not in lost
    assert len(ended) == 3
    assert ended['S5', 0.01]['ended'] == 'finished'
    assert 0 < ended['NoNorm + WS + AGC', 0.01]['agc_share'] <= 1
    top1 = f'**{100 * ended["S5", 0.01]["top1"]:.1f}**'
    assert sorted(row[0] for row in table) == ['*share of units that it clipped*', 'NoNorm + WS + AGC', 'S5']
    assert next(row for row in table if row[0] == 'S5') == ['S5', top1, '']
    assert next(row for row in table if row[0] == 'NoNorm + WS + AGC')[2] == 'diverged'
    before = path.read_text()
    # stopped before that
    path.write_text(''.join(line for line in before.splitlines(True) if '"S5"' not in line))
    study()
    now, then = (sorted(re.sub('"date": "[-0-9 :]+"', '', text).splitlines())
                 for text in (path.read_text(), before))
    assert now == then  # but for the minute
    assert '"diverged"' in path.read_text().splitlines()[0] + path.read_text().splitlines()[1]
