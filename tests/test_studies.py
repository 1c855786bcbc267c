"""The experiments: map, help, costs, Jacobians, smaller vocabularies, studies without a search."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch

from configurator import read_file
from experiments import arms, costs, jacobians
from model import Block, GPTConfig
from support.optim import EMBEDDINGS
from tests.common import ROOT, finish, gpt2_is_here, in_parallel, python, table_of, train, write_images

STUDIES = sorted(p.stem for p in (ROOT / 'experiments').glob('*.py')
                 if p.stem not in ('__init__', 'configurator'))


@pytest.mark.parametrize('name', STUDIES)
def test_every_study_has_help(name, monkeypatch, capsys):
    if name == 'vocabulary':
        pytest.importorskip('tiktoken')
    monkeypatch.syspath_prepend(str(ROOT))
    for flag in ('--help', '-h'):
        monkeypatch.setattr(sys, 'argv', [name, flag])
        try:
            runpy.run_path(str(ROOT / f'experiments/{name}.py'), run_name='__main__')
        except SystemExit as end:
            assert end.code == 0
        assert 'python -m experiments.' in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_that_is_run_as_a_file_says_how_to_run_it():
    said = finish(python('experiments/evidence.py'), code=1)[1]
    assert said.strip() == ('Run this from the top folder of the repository, as a module: python -m '
                            'experiments.evidence')


def test_the_map_names_every_study_and_what_it_names_is_there():
    text = (ROOT / 'experiments/README.md').read_text(encoding='utf-8')
    assert [name for name in STUDIES if not re.search(rf'experiments\.{name}\b|`{name}\.py`', text)] == []
    assert set(re.findall(r'experiments\.(\w+)', text)) <= set(STUDIES)
    for name in (*arms.QUESTIONS, *arms.STUDIES):
        assert re.search(rf'[=`]{name}`', text), name


@pytest.mark.slow
def test_costs_on_paper_are_the_ones_done_by_hand():
    (out, _), (_, err) = in_parallel([
        lambda: finish(python('-m', 'experiments.costs', '--gpu=A100', '--mfu=0.25')),
        lambda: finish(python('-m', 'experiments.costs', '--gpu=H900'), code=1)])
    assert 'gpu=H900 is unknown. Use one of' in err
    row, = (row for row in table_of(out) if row[0] == '`dnt_xl` 1438.0M')
    # L-DNT-XL: 6 (1438.0M - 1024 x 1536) + 12 x 48 x 1536 x 1024 FLOPs; 12 and 16 bytes a weight; 312 TFLOP/s
    # x 0.25
    flops = 6 * (1438.0e6 - 1024 * 1536) + 12 * 48 * 1536 * 1024
    assert row[1:5] == ['104.9B tokens', f'{flops / 1e9:.2f}', '23.0 GB', '17.3 GB']
    days = 200_000 * 512 * 1024 * flops / (312e12 * 0.25) / 86400
    assert row[7] == f'{days:.2g}'
    paper = 200_000 * 512 * 1024 * flops / (4 * 86400 * 32) / 1e12
    assert f'{paper:.0f} TFLOP/s a GPU, an MFU of {paper / 312:.0%}.' in out


def test_optimizer_memory_is_what_table_2_says():
    for name in ('dnt_tiny', 'vit_cifar10'):
        model = costs.build(read_file(f'{ROOT}/config/{name}.py'))
        embeddings = [p for n, p in model.named_parameters() if n.split('.')[0] in EMBEDDINGS]
        n, tensors = costs.count(model), len(list(model.parameters()))
        n_embeddings = sum(p.numel() for p in embeddings)
        assert costs.kept('AdamW', model) == 8 * n + 4 * tensors  # a step counter for each tensor, too
        assert costs.kept('mSGDW', model) == 4 * n
        assert costs.kept('hybrid', model) == 4 * n + 4 * n_embeddings + 4 * len(embeddings)
    # the paper's 11.5 and 5.7 GB: 8 and 4 bytes for each parameter but the positions, in 10^9 bytes, not 2^30
    model = costs.build(read_file(f'{ROOT}/config/dnt_xl.py'))
    n = costs.count(model) - model.wpe.weight.numel()
    assert n == 1_436_451_840 and (f'{8e-9 * n:.1f}', f'{4e-9 * n:.1f}') == ('11.5', '5.7')
    assert f'{4e-9 * costs.count(model):.1f}' != '5.7' and f'{4 * n / 2**30:.1f}' != '5.7'


def test_spread_and_tail_where_both_are_known():
    torch.manual_seed(0)
    Q, R = (torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0] for _ in range(2))
    W = Q @ torch.diag(torch.tensor([9.0, 5, 4, 3, 2, 1, 0.5], dtype=torch.float64)) @ R
    x = torch.linalg.solve(W.T, torch.ones(7, dtype=torch.float64))[None]  # x W is 1
    assert jacobians.spread(lambda x: x @ W, x) == pytest.approx(9 / 3)
    assert jacobians.spread(lambda x: (x @ W).square(), x) == pytest.approx(9 / 3)  # the slope is 2 W there
    block = Block(GPTConfig(n_embd=64, n_head=2))
    for factor, p in enumerate(block.parameters(), 1):
        p.grad = factor * torch.randn_like(p)
    block.attn.c_attn.weight.grad[:64] *= 100  # W_q has an RMS of its own
    assert jacobians.tail(block) == pytest.approx(3.2905 / 0.6745, rel=0.03)  # the normal quantiles


@gpt2_is_here
def test_smaller_vocabularies(tmp_path):
    pytest.importorskip('tiktoken')
    from tiktoken_ext.openai_public import r50k_base
    ranks = r50k_base()['mergeable_ranks']
    docs = [f'the internationalization of {i} things\n'.encode() + 'né 日本'.encode() for i in range(30)]
    splits, folder = {'train': docs[:25], 'val': docs[25:]}, tmp_path / 'text'
    folder.mkdir()
    for split, part in splits.items():
        np.array([i for doc in part for i in [*doc, 256]], '<u2').tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps({'tokenizer': 'byte', 'vocab_size': 257, 'dtype': 'uint16',
                                                  'source': 'x'}))
    finish(python('-m', 'experiments.vocabulary', f'--dataset={folder}', '--sizes=257,700,50257'))
    assert 'Prepare the text with --tokenizer=byte' in finish(
        python('-m', 'experiments.vocabulary', f'--dataset={folder}_700'), code=1)[1]

    def bpe(word, size):  # merges the pair of the lowest rank until there is none
        parts = [word[i:i + 1] for i in range(len(word))]
        def rank(i):
            return ranks.get(parts[i] + parts[i + 1], size)
        while pairs := {i: rank(i) for i in range(len(parts) - 1) if rank(i) < size - 1}:
            i = min(pairs, key=pairs.get)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [ranks[part] for part in parts]

    back = {rank: token for token, rank in ranks.items()}
    for size in (257, 700, 50257):
        meta = json.loads((tmp_path / f'text_{size}/meta.json').read_text())
        assert (meta['vocab_size'], meta['val_bytes']) == (size, sum(map(len, docs[25:])))
        for split, part in splits.items():
            got = np.fromfile(tmp_path / f'text_{size}/{split}.bin', '<u2').tolist()
            assert meta[f'{split}_tokens'] == len(got)
            assert got.count(size - 1) == meta[f'{split}_documents'] == len(part)
            assert b''.join(b'|' if i == size - 1 else back[i]
                            for i in got) == b''.join(doc + b'|' for doc in part)
            begin = bpe(b'the', size) + bpe(b' internationalization', size)
            assert got[:len(begin)] == begin
    train(tmp_path / 'text_700', tmp_path / 'out', '--max_iters=2')
    assert 'a part of the gpt2 vocabulary' in finish(python('sample.py', f'--out_dir={tmp_path}/out',
                                                            '--device=cpu'), 1)[1]


STUDY = '''
from experiments import arms, evidence
runs = [{**run, 'n_layer': 1, 'learning_rate': lr} for run in arms.stability() for lr in (0.01, 1e30)
        if run['learning_rate'] == 0.01 and (run['variant'], lr) in (
            ('NoNorm + WS + AGC', 0.01), ('NoNorm + WS + AGC', 1e30), ('S5', 0.01))]
evidence.compile = False
evidence.run_study('stability', lambda done: runs, evidence.read('results/stability.jsonl'))
evidence.print_variants('stability')
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

    table = {row[0]: row[1:] for row in table_of(study())}
    before = path.read_text()
    recorded = map(json.loads, before.splitlines())
    ended = {(row['run']['variant'], row['run']['learning_rate']): row for row in recorded}
    lost = ended['NoNorm + WS + AGC', 1e30]
    assert lost['ended'] == 'diverged' and not {'top1', 'val_loss'} & lost.keys()
    assert len(ended) == 3 and ended['S5', 0.01]['ended'] == 'finished'
    assert 0 < ended['NoNorm + WS + AGC', 0.01]['agc_share'] <= 1
    assert table.keys() == {'*share of units that it clipped*', 'NoNorm + WS + AGC', 'S5'}
    assert table['S5'] == [f'**{100 * ended["S5", 0.01]["top1"]:.1f}**', '']
    assert table['NoNorm + WS + AGC'][1] == 'diverged'
    # stopped before that
    path.write_text(''.join(line for line in before.splitlines(True) if '"S5"' not in line))
    study()
    now, then = (sorted(re.sub('"date": "[-0-9 :]+"', '', text).splitlines())
                 for text in (path.read_text(), before))
    assert now == then  # but for the minute
