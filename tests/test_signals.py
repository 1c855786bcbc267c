"""Signals to real processes: at once, between micro batches, in evaluations, twice; one process and two."""

import os
import signal
import time

import pytest

from tests.common import ROOT, assert_same_run, final, finish, gpt_line, in_parallel, python, train

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
FLAGS = ['--max_iters=8', '--eval_interval=4', '--eval_tokens=64', '--micro_batch_size=1',
         '--ckpt_interval=0', '--dropout=0.1']
STOPPING = 'Stopping after this micro batch. Press Ctrl-C again to quit without saving.'
RESUME = 'Run the same command with --init_from=resume to continue.'
pytestmark = pytest.mark.slow


class Paused:
    """A run that waits there. ranks: the process ids."""

    def __init__(self, tokens, tmp_path, kind, number, torchrun=0, extra=(), hangup=signal.SIG_DFL):
        self.go, self.torchrun = tmp_path / 'go', torchrun
        (tmp_path / 'pausing.py').write_text(PAUSING)
        files = [tmp_path / f'pid{rank}' for rank in range(torchrun or 1)]
        for file in (*files, self.go):
            file.unlink(missing_ok=True)
        line = gpt_line(tokens, tmp_path / 'out', *FLAGS, *extra)
        # nohup ignores SIGHUP, and children inherit that
        self.process = python(tmp_path / 'pausing.py', tmp_path, kind, number, *line, torchrun=torchrun,
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup))
        while not all(file.exists() for file in files):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        self.ranks = [int(file.read_text()) for file in files]

    def hear(self, words):
        """Read what the run says on stderr up to a line with these words."""
        heard = ''
        for text in self.process.stderr:
            heard += text
            if words in text:
                return heard
        pytest.fail(heard)

    def stopped(self, number):
        """Send a signal and let the run go on: the last line that it said."""
        self.process.send_signal(number)
        self.hear(STOPPING)
        self.go.touch()  # torchrun has an exit code of its own
        return finish(self.process, 1 if self.torchrun else 128 + number)[0].splitlines()[-1]


def resumed_like_straight(tokens, tmp_path, torchrun=0):
    flags = [*FLAGS, '--init_from=resume']
    in_parallel([lambda: train(tokens, tmp_path / 'out', *flags, torchrun=torchrun),
                 lambda: train(tokens, tmp_path / 'straight', *flags, torchrun=torchrun)])
    assert_same_run(tmp_path / 'out', tmp_path / 'straight')


# calls before the loop: 1. An update of one process has 4 micro batches, of two 2; an evaluation has 8, or 4
@pytest.mark.parametrize('kind,number,iteration,torchrun', [
    ('train', 1 + 2 * 4 + 2, 2, 0), ('val', 8 + 2, 4, 0), ('val', 16 + 8, 8, 0),  # the last evaluation
    ('train', 1 + 8 * 4 + 2, 8, 0),  # the pass behind it, whose step is not made
    ('train', 1 + 2 * 2 + 1, 2, 2), ('val', 4 + 2, 4, 2)])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tokens, tmp_path, kind, number, iteration, torchrun):
    run = Paused(tokens, tmp_path, kind, number, torchrun)
    assert run.stopped(signal.SIGTERM if torchrun else signal.SIGINT) == \
        f'Stopped by a signal at iteration {iteration}. {tmp_path}/out/ckpt.pt is saved. {RESUME}'
    assert final(tmp_path / 'out')['iter'] == iteration
    resumed_like_straight(tokens, tmp_path, torchrun)


@pytest.mark.parametrize('kind,number,torchrun', [('train', 3, 0), ('val', 2, 0), ('train', 2, 2),
                                                  ('val', 2, 2)])
def test_before_the_first_update_nothing_is_promised(tokens, tmp_path, kind, number, torchrun):
    run = Paused(tokens, tmp_path, kind, number, torchrun)
    assert run.stopped(signal.SIGHUP) == \
        'Stopped by a signal at iteration 0. No update was made, so nothing was saved.'
    assert not list((tmp_path / 'out').glob('*.pt'))
    resumed_like_straight(tokens, tmp_path, torchrun)


@pytest.mark.parametrize('torchrun', [0, 2])
def test_in_the_trial_pass_a_signal_ends_the_run_at_once(tokens, tmp_path, torchrun):
    """It may compile for minutes, and nothing is there to save."""
    run = Paused(tokens, tmp_path, 'train', 1, torchrun)
    run.process.send_signal(signal.SIGINT)
    out, err = finish(run.process, 1 if torchrun else 130)
    assert err.count('Stopped by a signal. Nothing was saved.') == 1
    assert out.startswith('0.01M parameters, setting S5, sgdw | ')  # the header comes before the pass
    assert 'resume' not in out + err
    assert not (tmp_path / 'out').exists()


def test_a_resumed_run_that_makes_no_update_leaves_its_checkpoint(tokens, tmp_path):
    Paused(tokens, tmp_path, 'train', 11).stopped(signal.SIGINT)
    before = (tmp_path / 'out/ckpt.pt').read_bytes()
    run = Paused(tokens, tmp_path, 'train', 2, extra=['--init_from=resume'])
    assert run.stopped(signal.SIGTERM) == (f'Stopped by a signal at iteration 2. No update was made, and '
                                           f'{tmp_path}/out/ckpt.pt is as it was. {RESUME}')
    assert (tmp_path / 'out/ckpt.pt').read_bytes() == before


@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_second_signal_quits_without_saving(tokens, tmp_path, torchrun):
    run = Paused(tokens, tmp_path, 'train', 1 + 2 * (2 if torchrun else 4) + 1, torchrun)
    run.process.send_signal(signal.SIGINT)
    assert run.hear(STOPPING).count(STOPPING) == 1  # rank 0 speaks for all
    time.sleep(3.2 if torchrun else 0)  # within three seconds it counts as one that torchrun has passed on
    run.process.send_signal(signal.SIGINT)
    _, err = run.process.communicate(timeout=120)
    assert run.process.returncode == 130 or torchrun and run.process.returncode  # torchrun may abort, too
    assert err.count('\nQuit without saving.') == 1
    assert not list((tmp_path / 'out').glob('*.pt'))


def test_a_signal_that_torchrun_passes_on_to_ranks_which_had_it_is_one(tokens, tmp_path):
    run = Paused(tokens, tmp_path, 'train', 1 + 2 * 2 + 1, torchrun=2)
    for pid in (*run.ranks, run.process.pid):  # as Slurm does
        os.kill(pid, signal.SIGTERM)
    run.hear('closing signal SIGTERM')  # torchrun passes it on
    run.go.touch()
    assert 'Stopped by a signal at iteration 2' in finish(run.process, 1)[0]
    assert final(tmp_path / 'out')['iter'] == 2


def test_a_run_under_nohup_goes_on(tokens, tmp_path):
    run = Paused(tokens, tmp_path, 'train', 3, hangup=signal.SIG_IGN)
    run.process.send_signal(signal.SIGHUP)
    run.go.touch()
    assert STOPPING not in finish(run.process)[1]
    assert final(tmp_path / 'out')['iter'] == 8


def test_a_signal_is_heard_where_nobody_reads(tokens, tmp_path):
    """stdout and stderr are closed pipes: the first signal saves, the second would still quit."""
    run = Paused(tokens, tmp_path, 'train', 11)
    run.process.stdout.close()
    run.process.stderr.close()
    run.process.send_signal(signal.SIGTERM)
    run.go.touch()
    assert run.process.wait(120) == 143
    assert final(tmp_path / 'out')['iter'] == 2
