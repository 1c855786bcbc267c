"""Signals to real processes: at once, between micro batches, in evaluations, twice; one process and two."""

import os
import signal
import time

import pytest

from tests.common import ROOT, SIZE, assert_same_run, final, finish, in_parallel, python

# runs a train script that waits before its nth forward pass of a kind (train, val) until the file go exists
PAUSING = f"""
import collections, os, pathlib, runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
from model import GPT
folder, kind, number, *sys.argv = sys.argv[1:]
forward, calls = GPT.forward, collections.Counter()

def pausing(self, *args):
    now = 'train' if self.training else 'val'
    calls[now] += 1
    if (now, str(calls[now])) == (kind, number):
        rank = os.environ.get('RANK', '0')
        pathlib.Path(folder, f'pid{{rank}}.tmp').write_text(str(os.getpid()))
        os.rename(f'{{folder}}/pid{{rank}}.tmp', f'{{folder}}/pid{{rank}}')
        while not os.path.exists(f'{{folder}}/go'):
            time.sleep(0.01)
    return forward(self, *args)

GPT.forward = pausing
runpy.run_path(sys.argv[0], run_name='__main__')
"""
FLAGS = [*SIZE, '--max_iters=8', '--eval_interval=4', '--eval_tokens=64', '--micro_batch_size=1',
         '--ckpt_interval=0', '--dropout=0.1']
STOPPING = 'Stopping after this micro batch. Press Ctrl-C again to quit without saving.'


def line(tokens, out, *extra):
    return ['train_gpt.py', *FLAGS, f'--dataset={tokens}', f'--out_dir={out}', *extra]


def paused(tokens, tmp_path, kind, number, torchrun=0, hangup=signal.SIG_DFL):
    """A run that waits there, and the process ids of its ranks."""
    (tmp_path / 'pausing.py').write_text(PAUSING)
    # nohup ignores SIGHUP, and children inherit that
    process = python(tmp_path / 'pausing.py', tmp_path, kind, number, *line(tokens, tmp_path / 'out'),
                     torchrun=torchrun, preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup))
    pids = [tmp_path / f'pid{rank}' for rank in range(torchrun or 1)]
    while not all(pid.exists() for pid in pids):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, [int(pid.read_text()) for pid in pids]


def hear(process, words):
    """Read what the process says on stderr up to a line with these words."""
    heard = ''
    for text in process.stderr:
        heard += text
        if words in text:
            return heard
    pytest.fail(heard)


def stopped(tokens, tmp_path, kind, number, number_of_signal, torchrun=0):
    """Pause a run there, send a signal, let it go on: what it said on stdout."""
    process, _ = paused(tokens, tmp_path, kind, number, torchrun)
    process.send_signal(number_of_signal)
    hear(process, STOPPING)
    (tmp_path / 'go').touch()
    # torchrun has an exit code of its own
    return finish(process, 1 if torchrun else 128 + number_of_signal)[0]


def resumed_like_straight(tokens, tmp_path, torchrun=0):
    def resume():
        finish(python(*line(tokens, tmp_path / 'out', '--init_from=resume'), torchrun=torchrun))

    def straight():
        finish(python(*line(tokens, tmp_path / 'straight'), torchrun=torchrun))

    in_parallel([resume, straight])
    assert_same_run(tmp_path / 'out', tmp_path / 'straight')


# calls before the loop: 1. An update of one process has 4 micro batches, of two 2; an evaluation has 8, or 4
MOMENTS = {  # kind, number, iteration; then whether the run has two processes
    'mid-accumulation': ('train', 1 + 2 * 4 + 2, 2, 0),
    'evaluation': ('val', 8 + 2, 4, 0),
    'last evaluation': ('val', 16 + 8, 8, 0),
    'mid-accumulation of two': ('train', 1 + 2 * 2 + 1, 2, 2),
    'evaluation of two': ('val', 4 + 2, 4, 2)}


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['mid-accumulation'] + [
    pytest.param(name, marks=pytest.mark.slow) for name in list(MOMENTS)[1:]])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tokens, tmp_path, moment):
    kind, number, iteration, torchrun = MOMENTS[moment]
    said = stopped(tokens, tmp_path, kind, number, signal.SIGTERM if torchrun else signal.SIGINT, torchrun)
    assert said.splitlines()[-1] == (f'Stopped by a signal at iteration {iteration}. {tmp_path}/out/ckpt.pt '
                                     'is saved. Run the same command with --init_from=resume to continue.')
    assert final(tmp_path / 'out')['iter'] == iteration
    resumed_like_straight(tokens, tmp_path, torchrun)


@pytest.mark.slow
@pytest.mark.parametrize('kind,number,torchrun', [('train', 1 + 2, 0), ('val', 2, 0), ('train', 1 + 1, 2),
                                                  ('val', 2, 2)])
def test_before_the_first_update_nothing_is_promised(tokens, tmp_path, kind, number, torchrun):
    said = stopped(tokens, tmp_path, kind, number, signal.SIGHUP, torchrun)
    assert said.splitlines()[-1] == ('Stopped by a signal at iteration 0. No update was made, so nothing '
                                     'was saved.')
    assert not list((tmp_path / 'out').glob('*.pt'))
    resumed_like_straight(tokens, tmp_path, torchrun)


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_in_the_trial_pass_a_signal_ends_the_run_at_once(tokens, tmp_path, torchrun):
    """It may compile for minutes, and nothing is there to save."""
    process, _ = paused(tokens, tmp_path, 'train', 1, torchrun)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 1 if torchrun else 130)
    assert err.count('Stopped by a signal. Nothing was saved.') == 1
    assert out.startswith('0.01M parameters, setting S5, sgdw | ')  # the header comes before the pass
    assert 'resume' not in out + err
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_resumed_run_that_makes_no_update_leaves_its_checkpoint(tokens, tmp_path):
    stopped(tokens, tmp_path, 'train', 1 + 2 * 4 + 2, signal.SIGINT)
    before = (tmp_path / 'out/ckpt.pt').read_bytes()
    for file in ('go', 'pid0'):
        (tmp_path / file).unlink()
    FLAGS.append('--init_from=resume')
    try:
        said = stopped(tokens, tmp_path, 'train', 1 + 1, signal.SIGTERM)
    finally:
        FLAGS.pop()
    assert said.splitlines()[-1] == (
        f'Stopped by a signal at iteration 2. No update was made, and {tmp_path}/out/ckpt.pt is as it was. '
        'Run the same command with --init_from=resume to continue.')
    assert (tmp_path / 'out/ckpt.pt').read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_second_signal_quits_without_saving(tokens, tmp_path, torchrun):
    process, _ = paused(tokens, tmp_path, 'train', 1 + 2 * (2 if torchrun else 4) + 1, torchrun)
    process.send_signal(signal.SIGINT)
    assert hear(process, STOPPING).count(STOPPING) == 1  # rank 0 speaks for all
    time.sleep(3.2 if torchrun else 0)  # within three seconds it counts as one that torchrun has passed on
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 or torchrun and process.returncode  # torchrun may abort, too
    assert err.count('\nQuit without saving.') == 1
    assert not list((tmp_path / 'out').glob('*.pt'))


@pytest.mark.slow
def test_a_signal_that_torchrun_passes_on_to_ranks_which_had_it_is_one(tokens, tmp_path):
    process, ranks = paused(tokens, tmp_path, 'train', 1 + 2 * 2 + 1, torchrun=2)
    for pid in (*ranks, process.pid):  # as Slurm does
        os.kill(pid, signal.SIGTERM)
    hear(process, 'closing signal SIGTERM')  # torchrun passes it on
    (tmp_path / 'go').touch()
    out, _ = finish(process, 1)
    assert 'Stopped by a signal at iteration 2' in out
    assert final(tmp_path / 'out')['iter'] == 2


@pytest.mark.slow
def test_a_run_under_nohup_goes_on(tokens, tmp_path):
    process, _ = paused(tokens, tmp_path, 'train', 3, hangup=signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    (tmp_path / 'go').touch()
    assert STOPPING not in finish(process)[1]
    assert final(tmp_path / 'out')['iter'] == 8


@pytest.mark.slow
def test_a_signal_is_heard_where_nobody_reads(tokens, tmp_path):
    """stdout and stderr are closed pipes: the first signal saves, the second would still quit."""
    process, _ = paused(tokens, tmp_path, 'train', 1 + 2 * 4 + 2)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    (tmp_path / 'go').touch()
    assert process.wait(120) == 143
    assert final(tmp_path / 'out')['iter'] == 2
