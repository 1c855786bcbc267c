"""Signals to real processes: at once, between micro batches, in evaluations, twice; one process and two."""

import collections
import importlib.util
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from model import GPT
from tests.common import assert_same_run, final, finish, gpt_line, script, train

FLAGS = ['--max_iters=8', '--eval_interval=4', '--eval_tokens=64', '--micro_batch_size=1',
         '--ckpt_interval=0', '--dropout=0.1']
STOPPING = 'Stopping after this micro batch. Press Ctrl-C again to quit without saving.'
RESUME = 'Run the same command with --init_from=resume to continue.'
STOPPED = f'Stopped by a signal at iteration {{0}}. The checkpoint of iteration {{0}} is in {{1}}. {RESUME}'
pytestmark = pytest.mark.slow


def pause(folder, kind, number, before=None):
    """The nth forward pass of a kind (train, val) waits until there is a file go in the folder."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if before:
        before()
    forward, calls = GPT.forward, collections.Counter()

    def pausing(self, *args):
        now = 'train' if self.training else 'val'
        calls[now] += 1
        if (now, calls[now]) == (kind, number):
            Path(folder, f'rank{os.environ.get("RANK", 0)}').touch()
            for _ in range(12000):
                if Path(folder, 'go').exists():
                    break
                time.sleep(0.01)
        return forward(self, *args)

    GPT.forward = pausing


class Paused:
    """A run that waits there."""

    def __init__(self, tokens, tmp_path, kind, number, torchrun=0, extra=(), before=None):
        self.go = tmp_path / 'go'
        waits = [tmp_path / f'rank{rank}' for rank in range(torchrun or 1)]
        for file in (*waits, self.go):
            file.unlink(missing_ok=True)
        self.process = script(*gpt_line(tokens, tmp_path / 'out', *FLAGS, *extra), torchrun=torchrun,
                              before=partial(pause, tmp_path, kind, number, before))
        while not all(file.exists() for file in waits):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def stopped(self, number):
        """Send a signal and let the run go on: the last line that it said."""
        self.process.send_signal(number)
        hear(self.process, 'err', STOPPING)
        self.go.touch()
        return finish(self.process, 128 + number)[0].splitlines()[-1]


def hear(process, name, words):
    """Wait until a process says these words on out or err."""
    for _ in range(6000):
        if words in process.said(name):
            return
        time.sleep(0.02)
    pytest.fail(process.said(name))


@pytest.fixture(scope='module')
def straight(tokens, tmp_path_factory):
    """The folders of the run by one process and by two."""
    folders = {torchrun: tmp_path_factory.mktemp('straight') for torchrun in (0, 2)}
    for torchrun, folder in folders.items():
        train(tokens, folder, *FLAGS, torchrun=torchrun)
    return folders


# calls before the loop: 1. An update of one process has 4 micro batches, of two 2; an evaluation has 8, or 4
@pytest.mark.parametrize('kind,number,iteration,torchrun', [
    ('train', 1 + 2 * 4 + 2, 2, 0), ('val', 8 + 2, 4, 0), ('val', 16 + 8, 8, 0),  # the last evaluation
    ('train', 1 + 8 * 4 + 2, 8, 0),  # the pass behind it, whose step is not made
    ('train', 1 + 2 * 2 + 1, 2, 2), ('val', 4 + 2, 4, 2),
    ('train', 3, 0, 0), ('val', 2, 0, 0), ('train', 2, 0, 2), ('val', 2, 0, 2)])  # before the first update
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tokens, straight, tmp_path, kind, number, iteration,
                                                        torchrun):
    run, out = Paused(tokens, tmp_path, kind, number, torchrun), tmp_path / 'out'
    said = run.stopped(signal.SIGINT if iteration else signal.SIGHUP)
    if iteration:
        assert said == STOPPED.format(iteration, out)
        assert final(out)['iter'] == iteration
    else:
        assert said == 'Stopped by a signal at iteration 0. No update was made, so nothing was saved.'
        assert not list(out.glob('*.pt'))
    train(tokens, out, *FLAGS, '--init_from=resume', torchrun=torchrun)
    assert_same_run(out, straight[torchrun])


@pytest.mark.parametrize('torchrun', [0, 2])
def test_in_the_trial_pass_a_signal_ends_the_run_at_once(tokens, tmp_path, torchrun):
    """It may compile for minutes, and nothing is there to save."""
    run = Paused(tokens, tmp_path, 'train', 1, torchrun)
    run.process.send_signal(signal.SIGINT)
    out, err = finish(run.process, 130)
    assert err.count('Stopped by a signal. Nothing was saved.') == 1
    assert out.startswith('0.01M parameters, setting S5, sgdw | ')  # the header comes before the pass
    assert 'resume' not in out + err
    assert not (tmp_path / 'out').exists()


def test_a_resumed_run_that_makes_no_update_leaves_its_checkpoint(tokens, tmp_path):
    Paused(tokens, tmp_path, 'train', 11).stopped(signal.SIGINT)
    before = (tmp_path / 'out/ckpt.pt').read_bytes()
    run = Paused(tokens, tmp_path, 'train', 2, extra=['--init_from=resume'])
    assert run.stopped(signal.SIGTERM) == STOPPED.format(2, f'{tmp_path}/out')
    assert (tmp_path / 'out/ckpt.pt').read_bytes() == before


@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_second_signal_quits_without_saving(tokens, tmp_path, torchrun):
    """Under torchrun, one within three seconds counts as the first, which torchrun has passed on."""
    run = Paused(tokens, tmp_path, 'train', 1 + 2 * (2 if torchrun else 4) + 1, torchrun)
    for _ in range(2 if torchrun else 1):
        run.process.send_signal(signal.SIGINT)
        hear(run.process, 'err', STOPPING)
    assert run.process.poll() is None
    time.sleep(3.2 if torchrun else 0)
    run.process.send_signal(signal.SIGINT)
    _, err = finish(run.process, 130)
    assert err.count(STOPPING) == err.count('\nQuit without saving.') == 1  # rank 0 speaks for all
    assert not list((tmp_path / 'out').glob('*.pt'))


def test_torchrun_itself_passes_a_signal_on(tokens, tmp_path):
    torchrun = importlib.util.find_spec('torch.distributed.run').origin
    line = gpt_line(tokens, tmp_path, '--max_iters=1000000', '--eval_interval=0')
    process = script(torchrun, '--standalone', '--nproc_per_node=2', *line)
    hear(process, 'out', '\niter ')
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, 1)  # torchrun has an exit code of its own
    assert STOPPED.format(final(tmp_path)['iter'], tmp_path) in out
    assert err.count(STOPPING) == 1
    assert final(tmp_path)['iter'] > 0


def close_pipes():
    read, write = os.pipe()
    os.close(read)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(write, number)
        setattr(sys, name, open(number, 'w', closefd=False))


def close_terminal():
    ours, theirs = os.openpty()
    os.close(ours)  # writing to theirs is an input/output error now
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(theirs, number)
        setattr(sys, name, open(number, 'w', closefd=False))


def test_a_signal_is_heard_where_nobody_reads_and_a_hangup_not_under_nohup(tokens, tmp_path):
    """stdout and stderr are closed pipes or a closed terminal."""
    ignored = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    for before, number, code, iteration in ((close_pipes, signal.SIGTERM, 143, 2),
                                            (close_terminal, signal.SIGHUP, 129, 2),
                                            (ignored, signal.SIGHUP, 0, 8)):
        run = Paused(tokens, tmp_path, 'train', 11, extra=['--overwrite=True'], before=before)
        run.process.send_signal(number)
        run.go.touch()
        assert STOPPING not in finish(run.process, code)[1]
        assert final(tmp_path / 'out')['iter'] == iteration
