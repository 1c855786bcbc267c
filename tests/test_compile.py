"""torch.compile: whole runs against runs without it."""

import os

import pytest

from tests.common import assert_same_run, gpt_line, killed_and_resumed, runs_like_one, train

needs_compiler = pytest.mark.skipif(
    not any(os.access(os.path.join(d, 'g++'), os.X_OK) for d in os.environ['PATH'].split(':')),
    reason='torch.compile on a CPU needs a C++ compiler')


@pytest.mark.slow
@needs_compiler
def test_compile_is_the_same_to_rounding(tokens, tmp_path):
    compiled = ['--compile=True', '--micro_batch_size=1']
    runs_like_one(tokens, tmp_path, one=[], compiled=compiled, two_compiled=compiled)


@pytest.mark.slow
@needs_compiler
def test_options_for_speed_and_memory_keep_the_promises(tokens, tmp_path):
    options = ['--loss_chunk=5', '--recompute_blocks=True', '--n_embd=128']
    runs_like_one(tokens, tmp_path, one=['--n_embd=128'], options=options,
                  two=[*options, '--micro_batch_size=1', '--compile=True'])
    options += ['--compile=True', '--micro_batch_size=2', '--dropout=0.1']
    train(tokens, tmp_path / 'compiled', *options)
    killed_and_resumed(gpt_line(tokens, tmp_path / 'killed', *options), tmp_path / 'killed', 20)
    assert_same_run(tmp_path / 'compiled', tmp_path / 'killed')
    # and goes on without them: no option is bound to the checkpoint
    train(tokens, tmp_path / 'killed', '--n_embd=128', '--init_from=resume', '--max_iters=22')
