"""train_vit.py as people run it: tiny networks on tiny pictures."""

import io
import math
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model import ViT, ViTConfig
from support.normfree import build
from test_model import np_softmax
from tests import common
from tests.common import final, in_parallel, load_images, rows, train_vit, vit_line, write_images


def network_of(out, name='ckpt.pt'):
    checkpoint = final(out, name)
    model = build(ViT, ViTConfig, checkpoint['model_args']).eval()
    model.load_state_dict(checkpoint['model'])
    return model


def pixels(pictures):
    """Normalized as the data sets of these tests say."""
    return (torch.tensor(np.array(pictures)).movedim(-1, -3).float() / 255 - 0.5) / 0.3


def test_vision_log_and_checkpoint_are_as_promised(seen, arrays):
    log, ckpt, best = rows(seen), final(seen), final(seen, 'best.pt')
    assert [(r['iter'], r['split']) for r in log] == sorted(
        [(i, 'train') for i in range(15)] + [(i, 'val') for i in range(0, 16, 3)],
        key=lambda r: (r[0], r[1] == 'train'))
    assert all(r['images'] == 4 * (r['iter'] + (r['split'] == 'train')) for r in log)
    assert (ckpt['iter'], ckpt['data']['classes']) == (15, list('abcdef'))
    # the last val row: the saved weights on every image of val once, against the plain labels
    images, labels, _ = load_images(arrays, 'val')
    logits = network_of(seen)(pixels(images)).detach().double().numpy()
    # how many classes are likelier
    place = np.array([(row > row[label]).sum() for row, label in zip(logits, labels)])
    loss = -np.mean([math.log(np_softmax(row)[label]) for row, label in zip(logits, labels)])
    assert abs(log[-1]['loss'] - loss) < 1e-5
    assert [log[-1]['top1'], log[-1]['top5']] == pytest.approx([(place < k).mean() for k in (1, 5)])
    tops = [(r['top1'], -r['iter']) for r in log if r['split'] == 'val' and r['iter'] > 0]
    assert (best['best_top1'], -best['iter']) == max(tops)  # the first of the best


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['arrays', 'jpeg'])
def test_each_image_once_an_epoch(tmp_path, layout):
    """A rate of 0 leaves the weights alone, pictures have one colour: the loss tells which image it was."""
    data = write_images(tmp_path / 'flat', layout, flat=True, train=9, val=5)
    train_vit(data, tmp_path / 'out', '--learning_rate=0', '--min_lr=0', '--mixup=0', '--cutmix=0',
              '--label_smoothing=0', '--drop_path=0', '--global_batch_size=2', '--micro_batch_size=1',
              '--epochs=3', '--randaugment=0', '--setting=S1', '--seed=5')
    losses = {}
    for split in ('train', 'val'):
        images, labels, _ = load_images(data, split)
        if layout == 'jpeg':
            images = [np.array(Image.open(io.BytesIO(blob))) for blob in images]
        losses[split] = F.cross_entropy(network_of(tmp_path / 'out')(pixels(images)), torch.tensor(labels),
                                        reduction='none').tolist()
    log, each, order = rows(tmp_path / 'out'), losses['train'], []
    assert log[-1]['loss'] == pytest.approx(np.mean(losses['val']), rel=1e-5)
    pairs = {(i, j): (each[i] + each[j]) / 2 for i in range(9) for j in range(i)}
    for r in log:
        if r['split'] == 'train':
            pair = min(pairs, key=lambda p: abs(pairs[p] - r['loss']))
            assert abs(pairs[pair] - r['loss']) < 1e-4
            order += pair
    epochs = [order[i:i + 8] for i in range(0, 24, 8)]  # 4 batches of 2 out of 9, the ninth waits
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_a_jpeg_that_is_damaged_gets_a_sentence(tmp_path, workers):
    data = write_images(tmp_path / 'data', 'jpeg', 12)
    start, end = np.load(data / 'train_offsets.npy')[11:13]
    blob = bytearray((data / 'train_jpeg.bin').read_bytes())
    blob[start:end] = bytes(end - start)
    (data / 'train_jpeg.bin').write_bytes(blob)
    _, said = train_vit(data, tmp_path / 'out', f'--num_workers={workers}', '--global_batch_size=22', code=1)
    assert 'Picture 11 (counted from 0) in' in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_vision_repeats_and_resumes_bit_for_bit_with_any_number_of_workers(seen, arrays, jpegs, tmp_path):
    """One run of arrays, and one of JPEGs with the whole recipe, is killed in an epoch and goes on."""
    def killed(data, name, *flags):
        common.killed_and_resumed(vit_line(data, tmp_path / name, *flags), tmp_path / name, 15)

    adan = '--aug_repeats=3', '--interpolation=random', '--schedule=timm', '--nesterov=True'
    in_parallel([lambda: killed(arrays, 'arrays'),
                 lambda: killed(jpegs, '1', '--num_workers=1', *adan),
                 lambda: train_vit(jpegs, tmp_path / '0', '--num_workers=0', *adan),
                 lambda: train_vit(jpegs, tmp_path / '3', '--num_workers=3', *adan)])
    for a, b in ((seen, 'arrays'), (tmp_path / '0', '3'), (tmp_path / '0', '1')):
        common.assert_same_run(a, tmp_path / b)
    assert len({r['loss'] for r in rows(tmp_path / '0')}) == 21  # 15 batches, 6 evaluations


@pytest.mark.slow
def test_vision_one_process_or_two_and_evaluation_change_nothing(arrays, jpegs, tmp_path):
    """Validation has 7 images: they divide neither by the batch nor by the processes."""
    jobs = {'one': [arrays], 'two': [arrays], 'jpegs': [jpegs], 'two_jpegs': [jpegs, '--num_workers=1'],
            'micro': [arrays, '--micro_batch_size=2'], 'rarely': [arrays, '--eval_interval=0']}
    in_parallel([lambda n=n: train_vit(jobs[n][0], tmp_path / n, '--drop_path=0', '--aug_repeats=3',
                                       *jobs[n][1:], torchrun=2 if n.startswith('two') else 0) for n in jobs])
    runs = {n: rows(tmp_path / n) for n in jobs}
    for a, b in (('one', 'two'), ('one', 'micro'), ('jpegs', 'two_jpegs')):
        for x, y in zip(runs[a], runs[b], strict=True):
            assert abs(x['loss'] - y['loss']) < 1e-5
            assert all(x.get(key) == y.get(key) for key in ('iter', 'split', 'top1', 'top5'))
    assert [r for r in runs['one'] if r['split'] == 'train'] == runs['rarely'][:-1]


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_signal_to_all_processes_of_a_run_with_workers(jpegs, tmp_path, torchrun):
    """The workers get it too: the run saves and leaves."""
    line = ['--num_workers=2', '--epochs=40', '--ckpt_interval=0', '--eval_interval=0', '--drop_path=0']
    process = common.python(*vit_line(jpegs, tmp_path / 'out', *line), torchrun=torchrun,
                            start_new_session=True)
    next(text for text in process.stdout if 'iter      7' in text)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode in ((143,) if not torchrun else (143, 1, -15)), err
    assert 'Stopped by a signal' in out, err
    assert 7 < final(tmp_path / 'out')['iter'] < 200


@pytest.mark.slow
def test_predict_and_test_split(seen, arrays, tmp_path):
    common.smooth_picture(50, 30).save(tmp_path / 'a.png')
    before = {p.name: p.read_bytes() for p in seen.iterdir()}
    line = vit_line(arrays, seen, '--init_from=resume')
    (_, said), (_, tested) = common.one_after_the_other([
        [*line, f'--predict={tmp_path}/a.png', '--dataset=nowhere'],
        [*line, '--eval_only=True', '--eval_split=test']])
    middle = common.smooth_picture(50, 30).resize((8, 8), Image.Resampling.BICUBIC, box=(10, 0, 40, 30))
    top = network_of(seen)(pixels([middle]))[0].softmax(0).topk(5)
    guesses = [f'{"abcdef"[i]} {p:.1%}' for i, p in zip(top.indices, top.values.tolist())]
    assert f'{tmp_path}/a.png: {", ".join(guesses)}' in said
    assert 'test loss' in tested and '5 images' in tested
    assert {p.name: p.read_bytes() for p in seen.iterdir()} == before
