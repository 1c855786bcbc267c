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
from tests.common import (
    assert_same_run,
    final,
    in_parallel,
    killed_in_an_epoch,
    load_images,
    python,
    rows,
    smooth_picture,
    train_vit,
    vit_line,
    write_images,
)


def network_of(out, name='ckpt.pt'):
    checkpoint = final(out, name)
    model = build(ViT, ViTConfig, checkpoint['model_args']).eval()
    model.load_state_dict(checkpoint['model'])
    return model


def pixels(pictures):
    """Normalized as the data sets of these tests say."""
    return (torch.tensor(np.array(pictures)).movedim(-1, -3).float() / 255 - 0.5) / 0.3


def test_vision_log_and_checkpoint_are_as_promised(seen, arrays):
    log = rows(seen)
    assert [(r['iter'], r['split']) for r in log] == sorted(
        [(i, 'train') for i in range(15)] + [(i, 'val') for i in range(0, 16, 3)],
        key=lambda r: (r[0], r[1] == 'train'))
    assert all(r['images'] == 4 * (r['iter'] + (r['split'] == 'train')) for r in log)
    ckpt = final(seen)
    assert ckpt['iter'] == 15
    assert ckpt['data']['classes'] == list('abcdef')
    # the last val row: the saved weights on every image of val once, against the plain labels
    images, labels, meta = load_images(arrays, 'val')
    logits = network_of(seen)(pixels(images)).detach().double().numpy()
    # how many classes are likelier
    place = [int((row > row[label]).sum()) for row, label in zip(logits, labels)]
    loss = -np.mean([math.log(np_softmax(row)[label]) for row, label in zip(logits, labels)])
    assert abs(log[-1]['loss'] - loss) < 1e-5
    assert abs(log[-1]['top1'] - np.mean([p < 1 for p in place])) < 1e-9
    assert abs(log[-1]['top5'] - np.mean([p < 5 for p in place])) < 1e-9
    tops = [(r['top1'], -r['iter']) for r in log if r['split'] == 'val' and r['iter'] > 0]
    # the first of the best
    assert (final(seen, 'best.pt')['best_top1'], -final(seen, 'best.pt')['iter']) == max(tops)


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['arrays', 'jpeg'])
def test_each_image_once_an_epoch(tmp_path, layout):
    """A rate of 0 leaves the weights alone, pictures have one colour: the loss tells which image it was."""
    data = write_images(tmp_path / 'flat', layout, flat=True, train=9, val=2)
    train_vit(data, tmp_path / 'out', '--learning_rate=0', '--min_lr=0', '--mixup=0', '--cutmix=0',
              '--label_smoothing=0', '--drop_path=0', '--global_batch_size=2', '--micro_batch_size=1',
              '--epochs=3', '--randaugment=0')
    images, labels, _ = load_images(data, 'train')
    if layout == 'jpeg':
        images = [np.array(Image.open(io.BytesIO(blob))) for blob in images]
    each = F.cross_entropy(network_of(tmp_path / 'out')(pixels(images)), torch.tensor(labels),
                           reduction='none').tolist()
    pairs = {tuple(sorted((i, j))): (each[i] + each[j]) / 2 for i in range(9) for j in range(i)}
    order = []
    for r in rows(tmp_path / 'out'):
        if r['split'] == 'train':
            pair = min(pairs, key=lambda p: abs(pairs[p] - r['loss']))
            assert abs(pairs[pair] - r['loss']) < 1e-4
            order += pair
    epochs = [order[i:i + 8] for i in range(0, 24, 8)]  # 4 batches of 2 out of 9, the ninth waits
    assert len(order) == 24
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.slow
def test_each_jpeg_is_itself(tmp_path):
    """Pictures of one colour, stored as JPEGs: the evaluation sees each with its own label."""
    data = write_images(tmp_path / 'flat', 'jpeg', 12, flat=True, train=8, val=5)
    # the positions of S1 are small
    train_vit(data, tmp_path / 'out', '--max_iters=1', '--num_workers=1', '--randaugment=0', '--setting=S1',
              '--seed=5')
    model = network_of(tmp_path / 'out')
    blobs, labels, _ = load_images(data, 'val')
    colours = [np.array(Image.open(io.BytesIO(blob)))[5, 5] for blob in blobs]
    images = pixels([np.broadcast_to(colour, (8, 8, 3)) for colour in colours])
    loss = F.cross_entropy(model(images), torch.tensor(labels)).item()
    assert abs(rows(tmp_path / 'out')[-1]['loss'] - loss) < 1e-5 * loss
    others = [F.cross_entropy(model(images[[i] * 5]), torch.tensor(labels)).item() for i in range(5)]
    assert min(abs(other - loss) for other in others) > 0.01 * loss  # five times the same picture would show


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
    assert 'is damaged' in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_vision_repeats_and_resumes_bit_for_bit_with_any_number_of_workers(seen, arrays, jpegs, tmp_path):
    """One run of arrays, and one of JPEGs with the whole recipe, is killed in an epoch and goes on."""
    adan = '--aug_repeats=3', '--interpolation=random', '--schedule=timm', '--nesterov=True'
    killed = []
    jobs = [lambda: train_vit(arrays, tmp_path / 'again'),
            lambda: killed.append(killed_in_an_epoch(arrays, tmp_path / 'killed')),
            lambda: killed.append(killed_in_an_epoch(jpegs, tmp_path / '1', '--num_workers=1', *adan))]
    jobs += [lambda n=n: train_vit(jpegs, tmp_path / n, f'--num_workers={n}', *adan) for n in '03']
    in_parallel(jobs)
    assert all(0 < at < 15 for at in killed)
    for a, b in ((seen, 'again'), (seen, 'killed'), (tmp_path / '0', '3'), (tmp_path / '0', '1')):
        assert_same_run(a, tmp_path / b)
    assert len({r['loss'] for r in rows(tmp_path / '0')}) == 21  # 15 batches, 6 evaluations


@pytest.mark.slow
def test_vision_one_process_or_two_and_evaluation_change_nothing(arrays, jpegs, tmp_path):
    """Validation has 7 images: they divide neither by the batch nor by the processes."""
    jobs = {'one': (arrays, []), 'two': (arrays, []), 'micro': (arrays, ['--micro_batch_size=2']),
            'rarely': (arrays, ['--eval_interval=0']), 'jpegs': (jpegs, []),
            'two_jpegs': (jpegs, ['--num_workers=1'])}
    in_parallel([lambda n=n, data=data, extra=extra: train_vit(
        data, tmp_path / n, '--drop_path=0', '--aug_repeats=3', *extra,
        torchrun=2 if n.startswith('two') else 0)
        for n, (data, extra) in jobs.items()])
    runs = {n: rows(tmp_path / n) for n in jobs}
    for a, b in (('one', 'two'), ('one', 'micro'), ('jpegs', 'two_jpegs')):
        for x, y in zip(runs[a], runs[b], strict=True):
            assert abs(x['loss'] - y['loss']) < 1e-5
            assert all(x.get(key) == y.get(key) for key in ('iter', 'split', 'top1', 'top5'))
    assert [r for r in runs['one'] if r['split'] == 'train'] == runs['rarely'][:-1]


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_signal_to_all_processes_of_a_run_with_workers(jpegs, tmp_path, torchrun):
    """The workers get it too: the run saves, leaves, and goes on as if nothing had been."""
    line = ['--num_workers=2', '--epochs=40', '--ckpt_interval=0', '--eval_interval=0', '--drop_path=0']
    process = python(*vit_line(jpegs, tmp_path / 'out', *line), torchrun=torchrun, start_new_session=True)
    next(text for text in process.stdout if 'iter      7' in text)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode in ((143,) if not torchrun else (143, 1, -15)), err
    assert 'Stopped by a signal' in out, err
    assert 7 < final(tmp_path / 'out')['iter'] < 200
    train_vit(jpegs, tmp_path / 'out', *line, '--init_from=resume')
    train_vit(jpegs, tmp_path / 'straight', *line)
    a, b = rows(tmp_path / 'out'), rows(tmp_path / 'straight')
    assert len(a) == len(b)
    assert all(abs(x['loss'] - y['loss']) < 1e-4 for x, y in zip(a, b))
    assert torchrun or a == b


@pytest.mark.slow
def test_predict_and_test_split(seen, arrays, tmp_path):
    (tmp_path / 'photos').mkdir()
    smooth_picture(50, 30).save(tmp_path / 'photos/a.jpg')
    smooth_picture(20, 90, seed=1).convert('L').save(tmp_path / 'photos/b.png')
    (tmp_path / 'photos/notes.txt').write_text('no picture')
    before = {p.name: p.read_bytes() for p in seen.iterdir()}
    (said, _), (tested, _), (_, refused) = in_parallel([lambda flags=flags, code=code: train_vit(
        arrays, seen, '--init_from=resume', *flags, code=code) for flags, code in (
            ([f'--predict={tmp_path}/photos', '--dataset=nowhere'],
             0), (['--eval_only=True', '--eval_split=test'], 0),
            ([f'--predict={tmp_path}/photos/notes.txt'], 1))])
    lines = [line for line in said.splitlines() if 'photos/' in line]
    assert [line.split(': ')[0].split('/')[-1] for line in lines] == ['a.jpg', 'b.png']
    for line in lines:
        top = [part.split() for part in line.split(': ')[1].split(', ')]
        shares = [float(p.rstrip('%')) for _, p in top]
        assert len({name for name, _ in top} & set('abcdef')) == 5
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 100.3
    middle = Image.open(tmp_path / 'photos/a.jpg').crop((10, 0, 40, 30))
    logits = network_of(seen)(pixels([middle.resize((8, 8), Image.Resampling.BICUBIC)]))[0]
    assert lines[0].split(': ')[1].split()[0] == 'abcdef'[int(logits.argmax())]
    assert 'test loss' in tested
    assert '5 images' in tested
    assert 'notes.txt cannot be read as a picture' in refused
    assert len(refused.strip().splitlines()) == 1
    assert {p.name: p.read_bytes() for p in seen.iterdir()} == before
