"""Runs that were killed, stopped or went wrong: what they leave, and how they go on."""

import json
import resource
import signal
import time
from functools import partial

import pytest
import torch

from tests import common
from tests.common import assert_same_run, final, finish, gpt_line, python, rows, script, train


def test_repeats_and_resumes_bit_for_bit(straight, tokens, tmp_path):
    out, early = tmp_path / 'killed', tmp_path / 'early'
    common.killed_and_resumed(gpt_line(tokens, out, '--dropout=0.1'), out, 20)
    assert_same_run(straight, out)
    said = train(tokens, early, '--dropout=0.1', '--init_from=resume')[0]  # killed before it saved
    assert 'no checkpoint yet, so the run starts at iteration 0' in said
    assert_same_run(straight, early)


@pytest.mark.slow
def test_a_hybrid_and_dynamic_tanh_resume_bit_for_bit_in_two_processes_too(tokens, tmp_path):
    for name, flags, jobs in (
            ('hybrid', ['--embed_optimizer=adamw', '--embed_lr=0.01'], ('one', 'two')),
            ('tanh', ['--norm=dyt', '--dtype=bfloat16', '--dropout=0.1'], ('one',))):
        one, out = tmp_path / name / 'one', tmp_path / name / 'killed'
        common.runs_like_one(tokens, tmp_path / name, **dict.fromkeys(jobs, flags))
        common.killed_and_resumed(gpt_line(tokens, out, *flags), out, 20)
        assert_same_run(one, out)
        saved = final(out)
        if name == 'tanh':
            assert 'blocks.0.attn.q_norm.alpha' in saved['model']
        else:
            steps = [[s['step'].item() for s in opt['state'].values() if 'step' in s]
                     for opt in saved['optimizer']['optimizers']]
            assert steps == [[], [20, 20]]  # AdamW has wte and wpe


@pytest.mark.slow
def test_overwrite_replaces_a_run(tokens, tmp_path):
    for extra in ([], ['--overwrite=True', '--seed=3']):
        train(tokens, tmp_path, '--keep_interval=10', *extra)
    assert final(tmp_path)['config']['seed'] == 3
    assert len(rows(tmp_path)) == 25
    assert sorted(p.name for p in tmp_path.glob('*.pt')) == [
        'best.pt', 'ckpt.pt', 'ckpt_000010.pt', 'ckpt_000020.pt']


@pytest.mark.slow
def test_a_full_disk_and_a_loss_that_is_not_finite_leave_the_last_checkpoint(tokens, tmp_path):
    """No file grows past a limit that config.json keeps, and that a checkpoint does not."""
    train(tokens, tmp_path, '--max_iters=6', '--ckpt_interval=1')
    good = (tmp_path / 'ckpt.pt').read_bytes()
    assert len(good) > 20_000
    line = gpt_line(tokens, tmp_path, '--init_from=resume', '--ckpt_interval=1')
    full = script(*line, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000)))
    wild = [*line, '--learning_rate=1e30', '--warmup_iters=0', '--grad_clip=0']
    for process, words in (
            (full, ('Cannot write', 'The last good one')),
            (python(*wild, torchrun=2), ('iteration 7: loss ', 'gradient norm nan at learning rate 7',
                                         'The last good checkpoint is that of iteration 6'))):
        said = [line for line in finish(process, 1)[1].splitlines() if 'last good' in line]
        assert len(said) == 1 and all(word in said[0] for word in words), said
        assert (tmp_path / 'ckpt.pt').read_bytes() == good
        assert not list(tmp_path.glob('*.tmp'))
    finish(script(*line))  # with room again and the old rate
    assert final(tmp_path)['iter'] == 20
    assert len(rows(tmp_path)) == 25


BRINGS = {  # arguments behind --init_from={run}: what config.json or the sentence that ends the run says
    'train_gpt.py': {
        '': dict(n_layer=2, n_embd=16, block_size=8, vocab_size=320, setting='S5'),
        '--n_layer=2 --setting=S5 --block_size=8 --vocab_size=320 --mid_norm=auto --dropout=0.2 '
        '--flash=False --loss_chunk=3 --recompute_blocks=True --optimizer=adamw --embed_lr=0.1 '
        '--learning_rate=0.1 --init=torch': dict(n_embd=16, block_size=8, dropout=0.2, loss_chunk=3),
        '--block_size=4': dict(block_size=4, n_layer=2),
        '{tmp}/shorter.py': dict(block_size=4, n_layer=2),  # a config file may ask for less, too
        '{tmp}/longer.py': dict(block_size=8, n_layer=2),
        '--block_size=9': 'was made with block_size=8, now it is 9.',
        '--setting=S1': 'best.pt was made with input_norm=True, now it is False; ffn_pre_norm=False, now',
        '--n_layer=3 --mid_norm=False --vocab_size=640':
            'best.pt was made with n_layer=2, now it is 3; mid_norm=True, now it is False; vocab_size=320, '
            'now it is 640. Use the values of the original run.'},
    'train_vit.py': {
        '--drop_path=0.3 --dropout=0.1': dict(n_layer=2, patch_size=4, setting='S5', arch='vit', dropout=0.1),
        '--image_size=16': dict(image_size=16, patch_size=4),
        '{tmp}/larger.py': dict(image_size=8, patch_size=4),
        '--image_size=16 --eval_only=True --micro_batch_size=1': None,
        '--arch=nfnet --patch_size=2': 'was made with arch=vit, now it is nfnet.'}}


@pytest.mark.parametrize('name', BRINGS)
def test_weights_bring_their_network_and_flags_may_change_the_rest(name, straight, seen, tokens, arrays,
                                                                   tmp_path):
    run, data = (straight, tokens) if name == 'train_gpt.py' else (seen, arrays)
    for file, text in (('shorter', 'block_size = 4'), ('longer', 'block_size = 16'),
                       ('larger', 'image_size = 16')):
        (tmp_path / f'{file}.py').write_text(text)
    line = [name, f'--dataset={data}', '--device=cpu', '--dtype=float32', '--compile=False', '--max_iters=1',
            '--learning_rate=0', '--min_lr=0', '--global_batch_size=4', f'--init_from={run}']
    if name == 'train_vit.py':
        line += ['--num_workers=0', '--randaugment=0']
    best = final(run, 'best.pt')['best_val_loss' if name == 'train_gpt.py' else 'best_top1']
    lines = [[*line, f'--out_dir={tmp_path}/{i}', *flags.format(tmp=tmp_path).split()]
             for i, flags in enumerate(BRINGS[name])]
    ended = common.one_after_the_other(lines)
    for i, (expected, (code, said)) in enumerate(zip(BRINGS[name].values(), ended)):
        if isinstance(expected, str):
            assert expected in code
            continue
        assert code == 0, (i, code)
        if expected is None:
            assert not (tmp_path / str(i)).exists() and ' loss ' in said.splitlines()[-1]
            continue
        assert f'The weights come from {run}/best.pt. The optimizer is new.' in said
        config = json.loads((tmp_path / f'{i}/config.json').read_text())
        assert {key: config[key] for key in expected} == expected
        first = rows(tmp_path / str(i))[0]  # at their own size, the weights are as good as they were
        if config.get('block_size', 8) == config.get('image_size', 8) == 8:
            assert first.get('top1', first['loss']) == pytest.approx(best, abs=1e-5)


def has_bfloat16():
    torch.cpu._is_amx_tile_supported = lambda: True


def test_auto_precision_looks_at_the_width_of_the_checkpoint(straight, tokens, tmp_path):
    """That is 16, while the 768 of the config would be bfloat16."""
    line = ['train_gpt.py', f'--dataset={tokens}', f'--init_from={straight}', f'--out_dir={tmp_path}/out',
            '--device=cpu', '--max_iters=1', '--global_batch_size=4']
    assert '| cpu, float32, compile False |' in finish(script(*line, before=has_bfloat16))[0]
    line[2:4] = '--n_layer=1', '--n_embd=256', '--n_head=1', '--block_size=8', f'--out_dir={tmp_path}/wide'
    assert '| cpu, bfloat16, compile False |' in finish(script(*line, before=has_bfloat16))[0]


@pytest.mark.slow
def test_killed_while_checkpoints_are_written(tokens, tmp_path):
    """kill -9, each time behind more lines and a little later, then resume: the same run."""
    out, kills = tmp_path / 'killed', []
    extra = ['--max_iters=100', '--dropout=0.1', '--eval_interval=20', '--init_from=resume']
    train(tokens, tmp_path / 'straight', *extra)
    for i in range(6):
        process = script(*gpt_line(tokens, out, *extra, '--ckpt_interval=1'))
        while process.said('out').count('\niter ') < 3 + i and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.004 * i)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append(final(out)['iter'])
    assert len(set(kills)) == 6 and kills == sorted(kills)  # in the midst of it, and none lost
    assert kills[-1] < 100
    train(tokens, out, *extra)
    assert_same_run(tmp_path / 'straight', out)
