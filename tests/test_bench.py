"""experiments/bench.py."""

import json
import math
import runpy
import sys

import pytest
import torch

from model import GPT, SETTINGS, GPTConfig
from tests.common import ROOT, finish, python

BENCH = ('--size=tiny', '--micro_batch_size=2', '--block_size=32', '--repeats=2', '--loss_chunk=32',
         '--image_batch_size=2', '--device=cpu')

PEER = '''
import torch, model
def GPTConfig(bias, **size):
    return model.GPTConfig(**model.SETTINGS['S1'], norm='layer', bias=bias, **size)
class GPT(model.GPT):
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
'''  # the names that nanoGPT's model.py has


def bench(monkeypatch, *args):
    """The globals that the script leaves behind."""
    monkeypatch.setattr(sys, 'argv', ['bench.py', *args])
    precision = torch.get_float32_matmul_precision()
    try:
        return runpy.run_path(str(ROOT / 'experiments' / 'bench.py'), run_name='__main__')
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize('flag,words', [
    ('--size=125M', '125M is unknown'), ('--optimizer_size=2', '2 is unknown'), ('--repeats=0', 'repeats=0'),
    ('--only=steps', 'Use some of memory,nanogpt,optimizer'), ('--nanogpt={tmp}', 'has no model.py'),
    ('--json=no/such/file', 'no folder no/such'), ('--block_size=2048', 'the 1024 positions of size=124M'),
    ('--sizes=tiny', 'Did you mean size'), ('--peak_of=Adam,1', 'AdamW or mSGDW')])
def test_bench_refuses_what_it_cannot_do(monkeypatch, capsys, tmp_path, flag, words):
    with pytest.raises(SystemExit) as end:
        bench(monkeypatch, flag.format(tmp=tmp_path))
    assert words in str(end.value)
    assert '\n' not in str(end.value)
    assert not capsys.readouterr().out


def test_bench_knows_its_sizes_and_says_what_it_left_out(monkeypatch, capsys, tmp_path):
    made = bench(monkeypatch, '--only=loader,nanogpt', f'--images={tmp_path}', '--device=cpu')
    out = capsys.readouterr().out
    assert 'Not measured: the loader' in out
    assert 'Not measured: nanoGPT' in out
    assert torch.__version__ in out
    millions = {size: made['count'](made['make_gpt'](size, 'S5', 'rms', on='meta')) / 1e6
                for size in made['SIZES']}
    assert {size: round(n, 1) for size, n in millions.items()} == \
        {'124M': 124.4, '774M': 773.6, '1438M': 1438.0, 'tiny': 0.2}
    made['compare']({'a': [1.0, 4.0, 2.0], 'b': [2.0, 2.0, 2.0]}, 'a', 'b', 0.9)  # ratios 0.5, 2 and 1
    assert list(made['ratios'][0].values()) == ['a', 'b', 1.0, 0.5, 2.0, 0.9, 'no']


@pytest.mark.slow
def test_bench_prints_numbers_that_agree_with_each_other(tmp_path):
    (tmp_path / 'model.py').write_text(PEER)
    out, _ = finish(python('-m', 'experiments.bench', *BENCH, f'--nanogpt={tmp_path}',
                           f'--json={tmp_path / "b.json"}'))
    written = json.loads((tmp_path / 'b.json').read_text())
    assert written['machine'] in out
    assert written['config']['size'] == 'tiny'
    tables = {t['title'].split(':')[0]: t for t in written['tables']}
    n = sum(p.numel() for p in GPT(GPTConfig(**SETTINGS['S5'], n_layer=4, n_head=2, n_embd=64, block_size=128,
                                             vocab_size=320)).parameters())
    for title, t in tables.items():
        assert f'\n{t["title"]}\n' in out
        assert all(len(row) == len(t['rows'][0]) for row in t['rows'])
        for row in t['rows']:
            middle = row.get('ms', row.get('ratio', 0))
            assert 'from' not in row or 0 < row['from'] <= middle <= row['to'], (title, row)

    assert f'{n:,} parameters' in tables['Peak memory']['title']
    rows = {row['what']: list(row.values())[1:] for row in tables['Peak memory']['rows']}
    assert [rows[f'{a}, all logits at once'][:2] for a in ('AdamW', 'mSGDW')] == \
        [[16 * n / 1e9, 12 * 128 * 320 / 1e9], [12 * n / 1e9, 12 * 128 * 320 / 1e9]]
    assert rows['AdamW, loss_chunk 32'][1] == 12 * 32 * 320 / 1e9
    for state, logits, peak, rest in rows.values():
        assert peak > state
        assert abs(peak - state - logits - rest) < 1e-12

    assert f'{n:,} parameters' in tables['Optimizer step']['title']
    copy = tables['Optimizer step']['rows'][0]
    assert {row['what']: row['accesses'] for row in tables['Optimizer step']['rows']} == {
        'copy': 2, 'SGDW loop': 10, 'SGDW foreach': 10, 'SGDW compiled': 5, 'torch SGD fused': 5,
        'AdamW foreach': 20, 'AdamW fused': 7}
    for row in tables['Optimizer step']['rows']:
        assert math.isclose(row['GB'], 4 * n * row['accesses'] / 1e9)
        assert math.isclose(row['GB/s'], row['GB'] / row['ms'] * 1e3)
        assert math.isclose(row['of the copy'], row['accesses'] / 2 * copy['ms'] / row['ms'])

    steps = {row['what']: row for row in tables['Training step']['rows']}
    flops = 6 * (n - 128 * 64) + 12 * 4 * 64 * 32  # a token of L-DNT
    for d in ('float32', 'bfloat16') if 'L-DNT, bfloat16' in steps else ('float32',):
        row, limit = steps[f'L-DNT, {d}'], steps[f'a @ b, {d}']
        assert math.isclose(row['tokens/s'], 64e3 / row['ms'])
        assert limit['of a @ b'] == 1
        assert math.isclose(row['TFLOP/s'], row['tokens/s'] * flops / 1e12)
        assert math.isclose(limit['TFLOP/s'], 2 * 2048 ** 3 / limit['ms'] / 1e9)
        assert math.isclose(row['of a @ b'], row['TFLOP/s'] / limit['TFLOP/s'])

    peer = tables['GPT-2 beside nanoGPT (no git)']['rows']
    assert [row['what'] for row in peer][:2] == ['nanoGPT, float32, AdamW', 'ours, float32, AdamW']
    assert len(peer) == 3
    ratios = {(row['time of'], row['in units of']): row for row in tables['Ratios of times']['rows']}
    assert ratios['SGDW compiled', 'AdamW fused']['aim at most'] == 0.75
    for row in ratios.values():
        aim = row['aim at most']
        assert row['reached'] == ('' if aim == '' else 'yes' if row['ratio'] <= aim else 'no')

    (tmp_path / 'model.py').write_text(PEER.replace("norm='layer'", "norm='rms'"))
    err = finish(python('-m', 'experiments.bench', *BENCH, '--only=nanogpt', f'--nanogpt={tmp_path}'),
                 code=1)[1]
    assert 'They are not the same network' in err
    assert 'Traceback' not in err
