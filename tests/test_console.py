"""What a run says while it works, what a checkpoint brings with it, and odd terminals and environments."""

import importlib
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import support
from model import GPT, GPTConfig
from support import report
from support.checks import warn_of_warmup
from support.normfree import build
from support.run import Run
from tests.common import ROOT, final, finish, gpt_line, script


@pytest.fixture
def env():
    """One process that keeps what it says."""
    said = []
    return SimpleNamespace(master=True, rank=0, world_size=1, device='cpu', device_type='cpu', saves=False,
                           said=said, say=said.append)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test moves on."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(report, 'time', SimpleNamespace(time=lambda: clock.now))
    return clock


def test_the_time_left_includes_the_evaluations_to_come(env, clock):
    log = []
    run = SimpleNamespace(log=lambda **row: log.append(row), start_iter=0)
    r = report.Report(run, env, 95, 10, 'tokens', 64, torch.nn.Linear(1, 1))

    def later(seconds):
        clock.now += seconds
        return clock.now

    assert r.timed(lambda: later(5)) == 1005
    for iter_num in range(42):
        assert r.wait_for(iter([later(1)])) == clock.now
        if iter_num % 40 == 0:
            r.train(iter_num, 2.0, 0.1, 1.0, None)
    # after update 0: 94 updates of 1 s and 10 evaluations of 5 s (10, 20, ... 90 and 95); after 40: 54 and 6
    assert [line.split(' | ')[-1] for line in env.said] == ['2m24s left', '1m24s left']
    assert [row['tokens_per_s'] for row in log] == [64, 64]  # speeds leave evaluations out


def test_a_signal_ends_an_evaluation(env):
    for signals, read in (([], [1, 2]), ([15], [])):
        assert list(report.progress(iter([1, 2]), 'val', signals, env)) == read


def test_a_run_that_is_shorter_than_its_warmup_is_told_so(env):
    warn_of_warmup(1350, 400, env)
    assert env.said == ['The warmup (1350 updates) is not shorter than the run (400), so the learning rate '
                        'does not reach its peak. Use --warmup_iters=40.']
    warn_of_warmup(1562, 781, env, 1562)
    assert env.said[-1].endswith('Use --warmup_epochs=0.05.')
    warn_of_warmup(1562, 2 * 1562, env, 1562)
    assert len(env.said) == 2  # nothing to say


@pytest.mark.parametrize('links', [True, False])
def test_the_files_of_one_iteration_are_one(tmp_path, monkeypatch, env, links):
    def no_links(*paths):
        raise OSError(1, 'Operation not permitted')

    if not links:
        monkeypatch.setattr(os, 'link', no_links)
    config = {'out_dir': str(tmp_path), 'overwrite': False, 'init_from': 'scratch'}
    run = Run(config, env, [], 0, torch.nn.Linear(1, 1), None)
    names = ['best.pt', 'ckpt_000002.pt', 'ckpt.pt']
    (tmp_path / 'ckpt.pt.tmp').write_text('of a run that was killed')
    for name in names:
        run.save(name, iter=2, model={'w': torch.ones(3)})
        assert os.path.samefile(tmp_path / 'best.pt', tmp_path / name) == (links or name == 'best.pt')
    assert run.saved_iter == 2
    run.save('ckpt.pt', iter=3, model={'w': torch.zeros(3)})
    assert [final(tmp_path, name)['iter'] for name in names] == [2, 2, 3]
    assert not list(tmp_path.glob('*.tmp'))


def sampled(straight, *flags, code=0):
    line = ['sample.py', '--device=cpu', '--dtype=float32', f'--out_dir={straight}', *flags]
    return finish(script(*line), code)


@pytest.mark.slow
def test_samples_come_token_by_token_and_are_those_of_generate(straight, tmp_path):
    """With a prompt that is not valid UTF-8, which keeps its bytes."""
    prompt = b'\xff\xfe caf\xc3\xa9 \xc3'
    typed = sampled(straight, os.fsdecode(b'--prompt=' + prompt), '--max_new_tokens=60')
    saved = final(straight, 'best.pt')
    torch.manual_seed(1337)
    model = build(GPT, GPTConfig, saved['model_args']).eval()
    model.load_state_dict(saved['model'])
    ids = model.generate(torch.tensor([[256, *prompt]]), 60, 0.8, None, 257)[0, 1:].tolist()
    ids = ids[:ids.index(256)] if 256 in ids else ids
    assert typed == (bytes(ids).decode('utf-8', 'replace') + '\n' + '-' * 80 + '\n', '')
    # a file is read as prepare_owt.py reads it
    (tmp_path / 'prompt').write_bytes(b'\xef\xbb\xbfcaf\xc3\xa9\r\n')
    read = sampled(straight, f'--prompt=FILE:{tmp_path}/prompt', '--max_new_tokens=9')
    assert read == sampled(straight, '--prompt=caf\u00e9\r\n', '--max_new_tokens=9')
    (tmp_path / 'prompt').write_bytes('caf\u00e9'.encode('utf-16'))
    assert sampled(straight, f'--prompt=FILE:{tmp_path}/prompt', code=1)[1] == (
        f'{tmp_path}/prompt is UTF-16 text. Fix: iconv -f UTF-16 -t UTF-8 FILE > NEW\n')


@pytest.mark.slow
def test_closed_pipes_ascii_terminals_and_folders_that_are_not_valid_utf8(tokens, straight, tmp_path):
    def shell(line):
        said = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, timeout=120,
                              env=os.environ | {'PYTHONIOENCODING': 'ascii'})
        assert said.stderr == b''
        return said.stdout

    out = os.fsencode(tmp_path) + b'/caf\xc3\xa9\xff'
    run = [sys.executable, *gpt_line(tokens, os.fsdecode(out))]
    first, second = shell(b' '.join(map(os.fsencode, run)) + b' | head -2').decode('ascii').splitlines()
    assert first.endswith(r'caf\xe9\udcff')
    assert second.startswith('val       0/20')
    with open(out + b'/ckpt.pt', 'rb') as f:
        assert torch.load(f, weights_only=True)['iter'] == 20  # the run went on quietly
    said, _ = finish(script(*run[1:], '--init_from=resume', '--max_iters=21'))
    assert 'iteration 20\nNot as in the checkpoint: max_iters 20 -> 21.' in said
    sample = f'{sys.executable} sample.py --out_dir={straight} --device=cpu --max_new_tokens=99999'
    assert shell(f'{sample} --prompt=\u043f\u0440 | head -c 6') == rb'\u043f'  # and it ends at once


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch):
    """This is settled before torch is imported, which reads it once."""
    for said, settled in ((None, 'PASSIVE'), ('ACTIVE', 'ACTIVE')):
        monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
        if said:
            monkeypatch.setenv('OMP_WAIT_POLICY', said)
        importlib.reload(support)
        assert os.environ['OMP_WAIT_POLICY'] == settled
    for name in ('train_gpt.py', 'train_vit.py', 'sample.py', 'experiments/__init__.py'):
        text = (ROOT / name).read_text()
        assert re.search(r'(?m)^(?:from|import) (configurator|support|torch)\b', text)[1] != 'torch'
