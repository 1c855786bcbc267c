"""Runs that were killed, stopped or went wrong: what they leave, and how they go on."""

import json
import random
import time

import pytest
import torch

from tests import common
from tests.common import assert_same_run, final, finish, gpt_line, python, rows, train


def test_repeats_and_resumes_bit_for_bit(straight, tokens, tmp_path):
    def killed():
        out = tmp_path / 'killed'
        common.killed_and_resumed(gpt_line(tokens, out, '--dropout=0.1'), out, 20)
        assert_same_run(straight, out)

    def too_early():  # nothing was saved: resume starts at 0
        said = train(tokens, tmp_path / 'early', '--dropout=0.1', '--init_from=resume')[0]
        assert 'no checkpoint yet, so the run starts at iteration 0' in said
        assert_same_run(straight, tmp_path / 'early')

    common.in_parallel([killed, too_early])


@pytest.mark.slow
@pytest.mark.parametrize('flags', [['--embed_optimizer=adamw', '--embed_lr=0.01'],
                                   ['--norm=dyt', '--dtype=bfloat16', '--dropout=0.1']], ids=str)
def test_a_hybrid_and_dynamic_tanh_resume_bit_for_bit(tokens, tmp_path, flags):
    train(tokens, tmp_path / 'straight', *flags)
    common.killed_and_resumed(gpt_line(tokens, tmp_path / 'killed', *flags), tmp_path / 'killed', 20)
    assert_same_run(tmp_path / 'straight', tmp_path / 'killed')
    saved = final(tmp_path / 'killed')
    if '--norm=dyt' in flags:
        assert 'blocks.0.attn.q_norm.alpha' in saved['model']
    else:
        common.runs_like_one(tokens, tmp_path, one=flags, two=flags)
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
def test_a_full_disk_leaves_the_last_checkpoint(tokens, tmp_path):
    """No file grows past a limit that the network of the first run keeps, and that of the second does not."""
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    train(tokens, tmp_path, '--max_iters=5')
    good = (tmp_path / 'ckpt.pt').read_bytes()
    assert len(good) > 20_000
    line = gpt_line(tokens, tmp_path, '--init_from=resume')
    _, err = finish(python(*line, preexec_fn=small_files), 1)
    assert 'Cannot write' in err, err
    assert 'The last good one' in err, err
    assert len(err.strip().splitlines()) == 1, err
    assert (tmp_path / 'ckpt.pt').read_bytes() == good
    assert not list(tmp_path.glob('*.tmp'))
    train(tokens, tmp_path, '--init_from=resume')  # with room again
    assert final(tmp_path)['iter'] == 20
    assert len(rows(tmp_path)) == 25


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_rank(tokens, tmp_path):
    train(tokens, tmp_path, '--max_iters=6', '--ckpt_interval=1')
    before = final(tmp_path)
    extra = ['--init_from=resume', '--ckpt_interval=1']
    _, err = train(tokens, tmp_path, '--learning_rate=1e30', '--warmup_iters=0', '--grad_clip=0', *extra,
                   code=1, torchrun=2)
    said = [line for line in err.splitlines() if 'so no step was made' in line]
    assert len(said) == 1, err
    assert 'iteration 7: loss ' in said[0], err
    assert 'gradient norm nan at learning rate 7' in said[0], err
    assert 'The last good checkpoint is that of iteration 6' in said[0]
    assert all(torch.equal(before['model'][k], final(tmp_path)['model'][k]) for k in before['model'])
    train(tokens, tmp_path, *extra)  # and it is good: with the old rate the run goes on from it
    assert final(tmp_path)['iter'] == 20


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tokens, tmp_path):
    """kill -9 at random moments, most of them while a checkpoint is written, then resume: the same run."""
    moments, kills, out = random.Random(0), [], tmp_path / 'killed'
    extra = ['--max_iters=400', '--dropout=0.1', '--ckpt_interval=1', '--init_from=resume']
    train(tokens, tmp_path / 'straight', *extra)
    for _ in range(20):
        process = python(*gpt_line(tokens, out, *extra))
        lines, count = (line for line in process.stdout if line.startswith('iter ')), moments.randrange(1, 20)
        for _ in zip(range(count), lines):
            pass
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        kills.append(final(out)['iter'] if (out / 'ckpt.pt').exists() else 0)
    assert kills == sorted(kills)
    assert len({k for k in kills if 0 < k < 400}) > 10  # in the midst of it, and none lost
    train(tokens, out, *extra)
    assert_same_run(tmp_path / 'straight', out)


@pytest.mark.slow
def test_two_processes_run_what_is_registered_for_the_exit(tmp_path):
    (tmp_path / 'script.py').write_text(f"""
import atexit, sys
sys.path.append({str(common.ROOT)!r})
from support.distributed import leave, start
atexit.register(print, 'at exit')  # as loggers do
leave(0, start('cpu', 'float32', False, 0, False))
""")
    assert finish(python(tmp_path / 'script.py', torchrun=2))[0].count('at exit') == 2


BRINGS = {  # arguments behind --init_from={run}: what config.json or the sentence that ends the run says
    'train_gpt.py': {
        '': dict(n_layer=2, n_embd=16, block_size=8, vocab_size=320, setting='S5'),
        '--n_layer=2 --setting=S5 --block_size=8 --vocab_size=320': dict(n_layer=2, block_size=8),
        '--block_size=4': dict(block_size=4, n_layer=2),
        '{tmp}/shorter.py': dict(block_size=4, n_layer=2),  # a config file may ask for less, too
        '{tmp}/longer.py': dict(block_size=8, n_layer=2),
        '--dropout=0.2 --flash=False --loss_chunk=3 --recompute_blocks=True': dict(dropout=0.2, loss_chunk=3),
        '--optimizer=adamw --embed_lr=0.1 --learning_rate=0.1 --init=torch --mid_norm=auto': dict(n_embd=16),
        '--block_size=9': 'was trained with block_size=8. Use --block_size=8 or less.',
        '--n_layer=3': 'best.pt was made with n_layer=2, now it is 3. Leave out the keys that differ.',
        '--setting=S1': 'best.pt was trained with setting=S5, not S1. Leave --setting out.',
        '--mid_norm=False': 'was made with mid_norm=True, now it is False. Leave out the keys that differ.',
        '--vocab_size=640': 'was made with vocab_size=320, now it is 640.'},
    'train_vit.py': {
        '': dict(n_layer=2, image_size=8, patch_size=4, setting='S5', arch='vit'),
        '--image_size=16': dict(image_size=16, patch_size=4),
        '{tmp}/larger.py': dict(image_size=8, patch_size=4),
        '--drop_path=0.3 --dropout=0.1': dict(drop_path=0.3, dropout=0.1),
        '--image_size=16 --eval_only=True': None,
        '--patch_size=2': 'was made with patch_size=4, now it is 2. Leave out the keys that differ.',
        '--arch=nfnet': 'was made with arch=vit, now it is nfnet.'}}


@pytest.mark.parametrize('script', BRINGS)
def test_weights_bring_their_network_and_flags_may_change_the_rest(script, straight, seen, tokens, arrays,
                                                                   tmp_path):
    run, data = (straight, tokens) if script == 'train_gpt.py' else (seen, arrays)
    for name, text in (('shorter', 'block_size = 4'), ('longer', 'block_size = 16'),
                       ('larger', 'image_size = 16')):
        (tmp_path / f'{name}.py').write_text(text)
    line = [script, f'--dataset={data}', '--device=cpu', '--dtype=float32', '--compile=False',
            '--max_iters=1', '--learning_rate=0', '--min_lr=0', '--global_batch_size=4']
    if script == 'train_vit.py':
        line += ['--num_workers=0', '--randaugment=0']
    lines = []
    for i, flags in enumerate(BRINGS[script]):
        lines.append([*line, f'--init_from={run}', f'--out_dir={tmp_path}/{i}',
                      *flags.format(tmp=tmp_path).split()])
    best = final(run, 'best.pt')['best_val_loss' if script == 'train_gpt.py' else 'best_top1']
    ended = common.one_after_the_other(lines)
    for i, (expected, (code, said)) in enumerate(zip(BRINGS[script].values(), ended)):
        if isinstance(expected, str):
            assert expected in code
            continue
        assert code == 0, (lines[i], code)
        if expected is None:
            assert not (tmp_path / str(i)).exists() and ' loss ' in said.splitlines()[-1]
            continue
        assert f'The weights come from {run}/best.pt. The optimizer is new.' in said
        config = json.loads((tmp_path / f'{i}/config.json').read_text())
        assert {key: config[key] for key in expected} == expected
        first = rows(tmp_path / str(i))[0]  # at their own size, the weights are as good as they were
        if config.get('block_size', 8) == config.get('image_size', 8) == 8:
            assert first.get('top1', first['loss']) == pytest.approx(best, abs=1e-5)
