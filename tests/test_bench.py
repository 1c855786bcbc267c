"""experiments/bench.py."""

import re
import runpy
import sys

import pytest
import torch

from model import GPT, SETTINGS, GPTConfig
from tests.common import ROOT, assert_refused

PEER = '''
import torch, model
def GPTConfig(bias, **size):
    return model.GPTConfig(**model.SETTINGS['S1'], norm='layer', bias=bias, **size)
class GPT(model.GPT):
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
'''  # the names that nanoGPT's model.py has


@pytest.fixture
def bench(monkeypatch):
    """bench(flags) is the globals that the script leaves behind."""
    precision, random = torch.get_float32_matmul_precision(), torch.get_rng_state()

    def command(*args):
        monkeypatch.setattr(sys, 'argv', ['bench', '--device=cpu', '--dtype=float32', '--repeats=2', *args])
        return runpy.run_path(str(ROOT / 'experiments' / 'bench.py'), run_name='__main__')
    yield command
    torch.set_float32_matmul_precision(precision)
    torch.set_rng_state(random)


@pytest.mark.parametrize('flag,words', [
    ('--only=steps', 'Use some of nanogpt,optimizer'), ('--nanogpt={tmp}', 'has no model.py'),
    ('--block_size=2048', 'the 1024 positions of size=124M')])
def test_bench_refuses_what_it_cannot_do(bench, capsys, tmp_path, flag, words):
    assert_refused(lambda: bench(flag.format(tmp=tmp_path)), words)
    assert not capsys.readouterr().out


def test_bench_knows_the_sizes_and_says_what_it_left_out(bench, capsys):
    made = bench('--only=nanogpt')
    assert 'Not measured: nanoGPT' in capsys.readouterr().out
    with torch.device('meta'):
        sizes = {size: made['count'](GPT(GPTConfig(**SETTINGS['S5'], **shape)))
                 for size, shape in made['SIZES'].items()}
    assert sizes == {'124M': 124_385_280, '774M': 773_634_048, '1438M': 1_438_024_704, 'tiny': 226_432}


def tables_of(said):
    """A list of {column: number or word} for each table that bench printed."""
    for part in re.findall(r'(?:^\|.*\n)+', said, re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in part.splitlines()]
        cells = [[float(c.replace(',', '')) if re.fullmatch(r'-?[\d.,]+(e[+-]\d+)?', c) else c for c in row]
                 for row in rows]
        yield [dict(zip(head, row)) for row in cells]


@pytest.mark.slow
def test_bench_prints_numbers_that_agree_with_each_other(bench, tmp_path, capsys):
    line = ['--size=tiny', '--micro_batch_size=2', '--block_size=32', f'--nanogpt={tmp_path}']
    (tmp_path / 'model.py').write_text(PEER)
    bench(*line)
    peer, optimizer, step, _ = tables = list(tables_of(capsys.readouterr().out))
    n = 226_432
    for row in [row for rows in tables for row in rows]:
        assert 0 < row['from'] <= row.get('ms', row.get('ratio')) <= row['to'], row
    for row in optimizer:
        assert row['GB/s'] == pytest.approx(4e-6 * n * row['accesses'] / row['ms'], rel=0.02)
    steps = {row['what']: row for row in step}
    row, limit = steps['L-DNT, float32'], steps['a @ b, float32']
    flops = 6 * (n - 128 * 64) + 12 * 4 * 64 * 32  # a token of L-DNT
    assert row['tokens/s'] == pytest.approx(64e3 / row['ms'], rel=0.02)
    assert row['TFLOP/s'] == pytest.approx(row['tokens/s'] * flops / 1e12, rel=0.02)
    assert limit['TFLOP/s'] == pytest.approx(2 * 2048**3 / limit['ms'] / 1e9, rel=0.02)
    assert row['of a @ b'] == pytest.approx(row['TFLOP/s'] / limit['TFLOP/s'], rel=0.02)
    assert [row['what'] for row in peer][:2] == ['nanoGPT, float32, AdamW', 'ours, float32, AdamW']
    (tmp_path / 'model.py').write_text(PEER.replace("norm='layer'", "norm='rms'"))
    assert_refused(lambda: bench(*line, '--only=nanogpt'), 'They are not the same network')
