"""train_gpt.py and sample.py as people run them: tiny networks on tiny data."""

import json
import shutil

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from support.normfree import build
from tests import common
from tests.common import final, gpt_line, rows, runs_like_one, train


def network_and_ids(out, data, split):
    """The network of a run, and the ids of a split."""
    model = build(GPT, GPTConfig, final(out)['model_args']).eval()
    model.load_state_dict(final(out)['model'])
    return model, torch.from_numpy(np.fromfile(data / f'{split}.bin', np.uint16).astype(np.int64))


def test_log_and_checkpoint_are_as_promised(straight, tokens):
    log = rows(straight)
    order = [(i, split) for i in range(21) for split in ('val', 'train')
             if i % 5 == 0 and split == 'val' or i < 20 and split == 'train']
    assert [(r['iter'], r['split']) for r in log] == order
    assert all(r['tokens'] == (r['iter'] + (r['split'] == 'train')) * 32 for r in log)
    assert {'model', 'optimizer', 'iter', 'config', 'model_args'} <= set(final(straight))
    assert final(straight)['iter'] == 20
    assert json.loads((straight / 'config.json').read_text())['learning_rate'] == 0.1
    # the last val row is the loss of the saved weights over the fixed windows, each counted once
    model, val = network_and_ids(straight, tokens, 'val')
    starts = range(0, 392, 8)  # 49 windows in 400 tokens
    loss = model(torch.stack([val[i:i + 8] for i in starts]),
                 torch.stack([val[i + 1:i + 9] for i in starts]))[1]
    assert abs(loss.item() - log[-1]['loss']) < 1e-6
    assert not list(straight.glob('*.tmp'))


@pytest.mark.slow
def test_batches_are_windows_of_the_data_and_change_with_iteration_and_seed(tmp_path):
    """A rate of 0 leaves the weights alone, so the losses of a run tell which windows it saw."""
    n, losses = 60, {}
    common.write_tokens(tmp_path / 'tokens', n_train=n)
    still = '--learning_rate=0', '--min_lr=0', '--weight_decay=0', '--global_batch_size=1', '--setting=S1'
    for seed in (5, 6):
        train(tmp_path / 'tokens', tmp_path / f'{seed}', *still, f'--seed={seed}')
        losses[seed] = [r['loss'] for r in rows(tmp_path / f'{seed}') if r['split'] == 'train']
    model, ids = network_and_ids(tmp_path / '5', tmp_path / 'tokens', 'train')
    every = np.array([model(ids[None, i:i + 8], ids[None, i + 1:i + 9])[1].item() for i in range(n - 8)])
    nearest = [int(np.argmin(np.abs(every - loss))) for loss in losses[5]]
    assert np.allclose(every[nearest], losses[5], atol=1e-5)  # of one window each, targets one ahead
    assert len(set(nearest)) > 8
    assert losses[5] != losses[6]


@pytest.mark.slow
def test_processes_micro_batches_and_evaluation_change_nothing(tokens, tmp_path):
    micro = ['--micro_batch_size=1']
    runs = runs_like_one(tokens, tmp_path, one=[], two=[], two_micro=micro, micro=micro,
                         eval_often=['--eval_interval=1'], eval_never=['--eval_interval=0'])
    trained = [[r for r in runs[n] if r['split'] == 'train'] for n in ('one', 'eval_often', 'eval_never')]
    assert trained[0] == trained[1] == trained[2]
    for a, b in zip(runs['one'], runs['two'], strict=True):  # validation too
        assert (a['iter'], a['split']) == (b['iter'], b['split'])
        assert abs(a['loss'] - b['loss']) < 1e-5


@pytest.mark.slow
def test_other_optimizers_and_bfloat16_learn(straight, tokens, tmp_path):
    line = ['--learning_rate=0.01', '--setting=S1', '--norm=layer', '--bias=True', '--tied=False',
            '--log_interval=0']
    common.in_parallel([lambda: train(tokens, tmp_path / 'bfloat16', '--dtype=bfloat16', '--dropout=0.1'),
                        lambda: train(tokens, tmp_path / 'adamw', *line, '--optimizer=adamw')])
    assert abs(rows(straight)[-1]['loss'] - rows(tmp_path / 'bfloat16')[-1]['loss']) < 0.02
    log = rows(tmp_path / 'adamw')
    assert log[-1]['loss'] < log[0]['loss'] - 0.05
    assert {r['split'] for r in log} == {'val'}


@pytest.mark.slow
def test_eval_only_and_samples(straight, tokens):
    sample = ['sample.py', '--device=cpu', '--dtype=float32', '--max_new_tokens=40', '--prompt=ab',
              '--num_samples=2', '--top_k=30']
    lines = [gpt_line(tokens, straight, '--init_from=resume', '--eval_only=True', '--dropout=0.1')]
    lines += [[*sample, f'--{key}={path}'] for key in ('out_dir', 'checkpoint')
              for path in (straight, f'{straight}/best.pt')]
    (_, evaluated), *said = common.one_after_the_other([*lines, [*lines[-1], '--seed=2']])
    assert f'val loss {rows(straight)[-1]["loss"]:.4f} nats per token' in evaluated
    *same, other = [text for _, text in said]
    assert len(set(same)) == 1 and other != same[0]
    assert same[0].count('-' * 80) == 2
    assert all(text.startswith('ab') for text in (*same, other))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile on a CPU needs a C++ compiler')
def test_compile_and_options_for_speed_and_memory_keep_the_promises(tokens, tmp_path):
    """The losses of a plain run in one process and in two; and a compiled run resumes bit for bit."""
    small = ['--n_layer=1']
    options = [*small, '--loss_chunk=5', '--recompute_blocks=True', '--keep_interval=13']
    compiled = [*options, '--compile=True', '--micro_batch_size=2']
    runs_like_one(tokens, tmp_path, one=small, options=options, compiled=compiled, two_compiled=compiled)
    half = tmp_path / 'half'
    shutil.copytree(tmp_path / 'compiled', half)
    (half / 'ckpt.pt').unlink()
    train(tokens, half, *compiled, '--init_from=resume')
    common.assert_same_run(tmp_path / 'compiled', half)
    # and goes on without them: no option is bound to the checkpoint
    train(tokens, half, *small, '--init_from=resume', '--max_iters=22')
