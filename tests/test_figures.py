"""experiments/figures.py; in a process of its own each picture would spend most of the time importing."""

import contextlib
import json
import math
import os
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from model import GPT, NORMS, SETTINGS, GPTConfig
from tests.common import ROOT, table_of, write_tokens


def functions():
    return runpy.run_path(str(ROOT / 'experiments/figures.py'))


def pictures(name):
    return [Path(f'figures/{name}.png').read_bytes()]


def write_run(out_dir, model=None, log=(), iters=(10, 20, 30, 40, 50), **changes):
    """A run's folder as the train scripts leave it: config.json, log.jsonl and, with a model, checkpoints."""
    config = {'setting': 'S5', 'norm': 'rms', **dict.fromkeys(NORMS, 'auto'), 'optimizer': 'sgdw', 'seed': 1,
              'learning_rate': 0.1, 'out_dir': out_dir, 'dataset': 'tokens', 'global_batch_size': 4,
              'micro_batch_size': 2, 'block_size': 8, **changes}
    os.makedirs(out_dir)
    Path(out_dir, 'config.json').write_text(json.dumps({**config, 'torch': '2', 'git': out_dir}))
    Path(out_dir, 'log.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in log))
    for i in iters if model else ():
        torch.save({'model': model.state_dict(), 'optimizer': {}, 'iter': i, 'model_args': vars(model.config),
                    'data': {'dtype': 'uint16', 'layout': changes.get('layout'), 'mean': [0.5] * 3,
                             'std': [0.2] * 3},
                    'config': config}, f'{out_dir}/ckpt_{i:06d}.pt')


def write_study(rows, name='study'):
    """results/NAME.jsonl of (run, last loss), None where it diverged."""
    os.makedirs('results', exist_ok=True)
    with open(f'results/{name}.jsonl', 'w') as f:
        for run, loss in rows:
            end = {'val_loss': 99.0, 'ended': 'diverged'} if loss is None else \
                {'val_loss': loss, 'top1': 1 - loss / 10, 'ended': 'finished'}
            f.write(json.dumps({'run': run, 'iter': 9, **end}) + '\n')


def crosses(ax):
    marks = [line for line in ax.lines if line.get_marker() == 'X' and len(line.get_xdata())]
    return sorted(tuple(np.ravel(mark.get_data()).round(6).tolist()) for mark in marks)


def test_figures_statistics_of_known_distributions():
    f = functions()
    rng, n = np.random.default_rng(0), 400_000
    normal = torch.from_numpy(rng.standard_normal(n))
    kurtosis, ratio, hill = f['heaviness'](normal)
    assert abs(kurtosis) < 5 * math.sqrt(24 / n)
    assert abs(ratio - 3.2905 / 0.6745) < 0.1
    assert 12 < hill < 15
    assert abs(f['kurtosis'](torch.from_numpy(rng.laplace(size=n))) - 3) < 0.3
    assert abs(f['kurtosis'](torch.tensor([-1.0, 1.0])) + 2) < 1e-12
    for index in (1.5, 3.0, 6.0):
        sample = torch.from_numpy((1 + rng.pareto(index, n)) * rng.choice((-1, 1), n))
        # four standard errors
        assert abs(f['heaviness'](sample)[2] - index) < 4 * index / math.sqrt(n // 1000)
        ratio = 1000 ** (1 / index) / 2 ** (1 / index)  # the quantiles of a Pareto distribution
        assert abs(f['heaviness'](sample)[1] / ratio - 1) < 4 / index / math.sqrt(n // 1000)
    for c in (1e-9, 1e9):  # free of scale
        assert np.allclose(f['heaviness'](normal * c), f['heaviness'](normal))


@pytest.mark.slow
def test_figures_gradients_against_autograd(figures):
    """A GPT, an L-DNT, and the same L-DNT with ten times as large weights before its norms."""
    T = 8
    tokens = np.fromfile(write_tokens(Path('data/tokens'), 500, 100, vocab=32) / 'train.bin', '<u2')
    sizes = dict(block_size=T, vocab_size=32, n_layer=2, n_head=2, n_embd=16)
    torch.manual_seed(0)
    gpt, dnt, large = (GPT(GPTConfig(**SETTINGS[s], **sizes, norm=norm)) for s, norm in
                       (('S1', 'layer'), ('S5', 'rms'), ('S5', 'rms')))
    large.load_state_dict(dnt.state_dict())
    with torch.no_grad():
        for block in large.blocks:
            block.attn.c_proj.weight.mul_(10)
            block.ffn.c_proj.weight.mul_(10)
    write_run('out/gpt', gpt, setting='S1', norm='layer', optimizer='adamw')
    write_run('out/dnt', dnt)
    write_run('out/large', large, iters=(7,), learning_rate=0.2)
    said = figures('gradients', '--runs=out/gpt,out/dnt,out/large', '--batches=2')
    names = ['GPT-2 AdamW', 'L-DNT mSGDW, learning_rate 0.1', 'L-DNT mSGDW, learning_rate 0.2']
    rows = map(json.loads, Path('results/gradients.jsonl').read_text().splitlines())
    rows = {(row['run'], row['iter'], row['weight']): row for row in rows}
    measured = [(name, i) for name in names[:2] for i in (10, 30, 50)] + [(names[2], 7)]
    assert {k[:2] for k in rows} == set(measured)
    assert [row[:2] for row in table_of(said)] == [[name, str(i)] for name, i in measured]
    for w in ('W_o', 'W_2'):  # ten times the weight: a tenth of the gradient, the same tail
        small, big = rows[names[1], 50, w], rows[names[2], 7, w]
        assert all(np.allclose(small[k], big[k], rtol=1e-3) for k in ('kurtosis', 'ratio', 'hill', 'above'))

    per_batch = []  # kurtosis of W_k of the GPT and its share above twice the RMS, by hand
    for i in range(2):
        starts = np.random.default_rng((1337, i)).integers(0, 500 - T, 4)
        x = torch.from_numpy(np.stack([tokens[s:s + T + 1] for s in starts]).astype(np.int64))
        gpt.zero_grad()
        gpt(x[:, :-1], x[:, 1:])[1].backward()
        g = [b.attn.c_attn.weight.grad[16:32].double() for b in gpt.blocks]
        scaled = torch.cat([w / w.square().mean().sqrt() for w in g]).flatten()
        moment = lambda p: ((scaled - scaled.mean()) ** p).mean().item()
        per_batch.append((moment(4) / moment(2) ** 2 - 3, (scaled.abs() > 10 ** 0.3).double().mean().item()))
    found = rows[names[0], 10, 'W_k']
    assert np.allclose([found['kurtosis'], found['above'][8]], np.mean(per_batch, axis=0), rtol=1e-3)
    assert all(pictures('gradients'))
    # two weights at the last checkpoint of each run, and the normal distribution
    assert [len(ax.lines) for ax in plt.gcf().axes] == [4, 4]


def test_figures_curves_make_one_band_of_the_seeds(figures):
    def log(*losses):
        return [{'iter': 10 * i, 'split': 'val', 'loss': v, 'top1': 1 / v} for i, v in enumerate(losses)] + \
            [{'iter': i, 'split': 'train', 'loss': 9 - i, 'lr': 1} for i in range(4)]
    write_run('out/a1', log=log(4.0, 2.0, 1.0), seed=1)
    write_run('out/a2', log=log(4.0, 2.2, 1.2), seed=2)
    write_run('out/a3', log=log(4.0, 2.4), seed=3)  # ended early
    write_run('out/b', log=log(4.0, 3.0, 2.0), seed=1, setting='S1', norm='layer', optimizer='adamw')
    with open('out/a1/log.jsonl', 'a') as f:
        f.write('{"iter": 99, "spl')  # a kill
    args = '--runs=out/a1,out/b,out/a2,out/a3'
    assert table_of(figures('curves', args)) == [['L-DNT mSGDW', '3', '10, 20', '1.5333 ± 0.7572'],
                                                 ['GPT-2 AdamW', '1', '20', '2.0000']]
    ax = plt.gcf().axes[0]
    line = ax.lines[1]  # the validation loss is drawn over the training loss
    assert list(line.get_xdata()) == [0, 10, 20]
    assert np.allclose(line.get_ydata(), [4, 2.2, 1.1])
    band = {tuple(np.round(p, 6)) for p in ax.collections[0].get_paths()[0].vertices}
    assert {(0, 4), (10, 2), (10, 2.4), (20, 1), (20, 1.2)} <= band
    assert ax.get_ylabel() == 'loss (nats per token)'
    assert ax.get_ylim()[1] < 3.2  # the start may leave
    assert [row[-1] for row in table_of(figures('curves', args,
                                                '--key=top1'))] == ['75.0000 ± 30.0463', '50.0000']


def test_figures_names_tell_runs_apart():
    base = {'setting': 'S5', 'norm': 'rms', 'optimizer': 'sgdw', 'seed': 1,
            'out_dir': 'x'} | dict.fromkeys(NORMS, 'auto')
    name = functions()['name_runs']
    assert name([base, {**base, 'setting': 'S3'}, {**base, 'norm': 'layer'}, {**base, 'mid_norm': False},
                 {**base, 'image_size': 8, 'optimizer': 'sgd'}, {**base, 'arch': 'nfnet'}]) == \
        ['L-DNT mSGDW', 'S3 mSGDW', 'S5 mSGDW', 'L-DNT without mid_norm mSGDW', 'V-DNT SGD', 'NFNet mSGDW']
    assert name([{**base, 'n_layer': 2}, {**base, 'n_layer': 4, 'seed': 2}]) == \
        ['L-DNT mSGDW, n_layer 2', 'L-DNT mSGDW, n_layer 4']
    assert name([base, {**base, 'out_dir': 'y'}]) == ['L-DNT mSGDW in x', 'L-DNT mSGDW in y']
    assert name([{**base, 'embed_optimizer': 'adamw'}, {**base, 'embed_optimizer': 'rownorm'},
                 {**base, 'optimizer': 'muon'}]) == ['L-DNT hybrid', 'L-DNT mSGDW + row norm', 'L-DNT Muon']


def test_figures_grid_shows_the_best_and_marks_what_diverged(figures):
    run = lambda c, lr, w, **more: {'variant': c, 'config': c, 'learning_rate': lr, 'warmup_iters': w, **more}
    write_study([(run('a', 0.1, 1), 2.0), (run('a', 0.1, 2), 1.8), (run('a', 1.0, 1), 1.5),
                 (run('a', 1.0, 2), None), (run('a', 10.0, 1), None), (run('b', 10.0, 1), None),
                 (run('b', 0.1, 1, seed=1), 3.0), (run('b', 0.1, 1, seed=2), 3.2),
                 (run('b', 0.1, 2, seed=1), 2.0), (run('b', 0.1, 2, seed=2), None)])
    said = figures('grid', '--study=study')
    assert table_of(said) == [['0.1', '1.8000', '3.1000 ± 0.1414 (1 of 4 diverged)'],
                              ['1', '1.5000 (1 of 2 diverged)', ''],
                              ['10', '(1 of 1 diverged)', '(1 of 1 diverged)']]
    ax = plt.gcf().axes[0]
    assert [ax.lines[i].get_xydata().tolist() for i, c in enumerate(ax.lines) if c.get_marker() == 'o'] == \
        [[[0.1, 1.8], [1.0, 1.5]], [[0.1, 3.1]]]
    below = plt.gcf().axes[1]  # a row for each line that has something that diverged
    assert crosses(below) == [(0.1, 1.0), (1.0, 0.0), (10.0, 0.0), (10.0, 1.0)]
    assert not crosses(ax)
    assert [t.get_text() for t in below.get_yticklabels()] == ['a', 'b']
    first = pictures('study')
    assert b'tEXt' not in first[0]
    figures('grid', '--study=study')
    assert pictures('study') == first
    assert table_of(figures('grid', '--study=study', '--metric=top1', '--out=accuracy'))[0][1] == '82.0000'
    assert crosses(plt.gcf().axes[1])[-2:] == [(10.0, 0.0), (10.0, 1.0)]
    assert all(pictures('accuracy'))


def test_figures_grid_draws_a_line_for_each_variant(figures):
    names = list(runpy.run_path(str(ROOT / 'experiments/reproduce.py'))['VARIANTS'])
    run = lambda v, lr: {'config': 'one', 'variant': v, 'learning_rate': lr}
    lost = [name for name in names if name not in ('Pre-LN', 'S5')]
    write_study([(run(v, lr), None if lr == 1 and v in lost else i + lr / 10) for i, v in enumerate(names)
                 for lr in (0.1, 1.0)])
    table = table_of(figures('grid', '--study=study', '--metric=top1'))
    assert len(names) == 9
    assert [row[0] for row in table] == ['0.1', '1']
    assert len(table[0]) == 10
    assert table[1][1:] == ['99.0000', *['(1 of 1 diverged)'] * 7, '19.0000']
    ax, below = plt.gcf().axes
    lines = [line for line in ax.lines if line.get_marker() != 'X']
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 9
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names
    assert [t.get_text() for t in below.get_yticklabels()] == lost
    assert crosses(below) == [(1.0, float(i)) for i in range(7)]


def test_figures_seeds_draw_each_setting(figures):
    os.makedirs('config')
    Path('config/a.py').write_text("setting = 'S5'\noptimizer = 'sgdw'\nnorm = 'rms'\n")
    Path('config/b.py').write_text("setting = 'S1'\noptimizer = 'adamw'\nnorm = 'rms'\n")
    rows = [({'config': 'a', 'setting': s, 'seed': seed}, loss + seed / 10) for seed in (1, 2, 3)
            for s, loss in (('S5', 1.0), ('S3', 1.2), ('S1', 2.0))]
    write_study([*rows, ({'config': 'a', 'setting': 'S2', 'seed': 1}, None), ({'config': 'b'}, 1.7)])
    assert table_of(figures('seeds', '--study=study')) == [
        ['L-DNT mSGDW', '3', '1.2000 ± 0.1000', '0.2484'], ['S1 AdamW', '1', '1.7000', ''],
        ['S1 mSGDW', '3', '2.2000 ± 0.1000', '0.2484'], ['S2 mSGDW', '0', 'diverged', ''],
        ['S3 mSGDW', '3', '1.4000 ± 0.1000', '0.2484']]
    ax = plt.gcf().axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == \
        ['L-DNT mSGDW', 'S1 AdamW', 'S1 mSGDW', 'S2 mSGDW', 'S3 mSGDW']
    assert crosses(ax) == [(0.98, 3.0)]


def test_figures_settings_are_drawn_as_they_stand(figures):
    said = figures('settings', '--out=elsewhere/drawing.svg')
    svg = Path('elsewhere/drawing.svg').read_text()
    words = re.findall(r'<!-- (.*?) -->', svg)
    assert set(SETTINGS) <= set(words)
    flags = {n: sum(row[n] for row in SETTINGS.values()) for n in NORMS}
    assert {w: words.count(w) for w in ('InputNorm', 'QKNorm', 'FinalNorm', 'PreNorm', 'MidNorm',
                                        'PostNorm')} == {
        'InputNorm': flags['input_norm'], 'QKNorm': flags['qk_norm'], 'FinalNorm': flags['final_norm'],
        'PreNorm': flags['pre_norm'] + flags['ffn_pre_norm'], 'MidNorm': 2 * flags['mid_norm'],
        'PostNorm': 2 * flags['post_norm']}
    assert {row[0]: dict(zip(NORMS, (c == 'x' for c in row[1:]))) for row in table_of(said)} == SETTINGS


MISTAKES = [
    ('', 'No picture is named. Use python -m experiments.figures [curves|seeds|frequency|grid|'
         'settings|gradients].'),
    ('pie', 'No picture is named'),
    ('frequency', 'Not all arms are scored yet. Run python -m experiments.evidence --question=why.'),
    ('curves', 'No runs are given. Use --runs=out/a,out/b.'),
    ('curves --runs=out/none', 'There is no run in out/none'),
    ('curves --runs=out/nothing', 'out/nothing has no readable config.json'),
    ('curves --runs=out/empty', 'out/empty/log.jsonl is empty. Wait until the run has begun.'),
    ('curves --runs=out/val --key=top1', 'out/val/log.jsonl has no rows with top1'),
    ('gradients --runs=out/val', 'has no checkpoints such as ckpt_000500.pt. Train with --keep_interval'),
    ('gradients --runs=out/torn', 'out/torn/ckpt_000001.pt is not a complete checkpoint'),
    ('gradients', 'Cannot read results/gradients.jsonl (No such file or directory). Measure them first'),
    ('gradients --runs=out/nodata', 'There is no data set in data/nowhere. Make it with'),
    ('gradients --runs=out/val --tail=0.9', 'tail=0.9 is out of range. Use a smaller value.'),
    ('gradients --runs=out/val --batches=0', 'batches=0 is out of range. Use a larger value.'),
    ('grid', 'No study is given. Use --study=NAME for results/NAME.jsonl.'),
    ('grid --study=none', 'Cannot read results/none.jsonl (No such file or directory). Run it first'),
    ('grid --study=void', 'results/void.jsonl is empty'),
    ('grid --study=study', 'results/study.jsonl has runs without learning_rate'),
    ('grid --study=lost', 'results/lost.jsonl has no finished run with val_loss'),
    ('seeds --study=study --metric=top5', 'has no finished run with top5'),
    ('seeds --study=study', 'config file config/a.py does not exist'),
    ('settings --out=/dev/null/x', 'Cannot write /dev/null/x.png'),
    ('grid --studdy=x', 'unknown key studdy. Did you mean study?')]


@pytest.fixture(scope='module')
def bad_runs(tmp_path_factory):
    """A folder of runs and studies, most of them named after what is wrong with them."""
    folder = tmp_path_factory.mktemp('bad_runs')
    with contextlib.chdir(folder):
        write_run('out/empty')
        write_run('out/val', log=[{'iter': 0, 'split': 'val', 'loss': 1.0}])
        for name in ('torn', 'nodata'):
            write_run(f'out/{name}')
        Path('out/torn/ckpt_000001.pt').write_bytes(b'PK\3\4 no zip')
        model = GPT(GPTConfig(block_size=8, vocab_size=32, n_layer=1, n_head=1, n_embd=8))
        nodata = {'dataset': 'nowhere', 'block_size': 8, 'out_dir': 'out/x', 'global_batch_size': 1,
                  'setting': 'S5', 'norm': 'rms', 'optimizer': 'sgdw'}
        torch.save({'model': model.state_dict(), 'model_args': vars(model.config), 'config': nodata,
                    'data': {'dtype': 'uint16'}}, 'out/nodata/ckpt_000001.pt')
        os.makedirs('out/nothing')
        write_study([({'config': 'a'}, 1.0)])
        write_study([({'config': 'a', 'learning_rate': 1.0}, None)], 'lost')
        Path('results/void.jsonl').write_text('')
    return folder


@pytest.mark.parametrize('arguments,sentence', MISTAKES)
def test_figures_mistakes_get_a_sentence(bad_runs, figures, monkeypatch, arguments, sentence):
    monkeypatch.chdir(bad_runs)
    with pytest.raises(SystemExit) as e:
        figures(*arguments.split())
    assert sentence in str(e.value.code)
    assert '\n' not in str(e.value.code)
    assert not os.path.exists('figures')
