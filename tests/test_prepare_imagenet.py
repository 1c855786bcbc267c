"""prepare_imagenet.py: the files that it leaves, and how it ends."""

import errno
import hashlib
import io
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_imagenet
from support import writing
from support.splits import RULE
from tests.common import (
    IMAGE_DEFAULTS,
    finish,
    load_images,
    noise_picture,
    python,
    smooth_picture,
)


def prepare(out, dataset, **keys):
    keys = IMAGE_DEFAULTS | {'dataset': str(dataset), 'out_dir': str(out)} | keys
    writing.run(prepare_imagenet.main, keys)


def digests(out):
    files = [path for path in out.iterdir() if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def image_folder(root, train=3, val=2, size=(40, 30), draw=smooth_picture):
    for split, n in (('train', train), ('val', val)):
        for i, name in enumerate(('ant', 'bee')):
            (root / split / name).mkdir(parents=True)
            for j in range(n):
                ending = 'jpg' if draw is smooth_picture else 'png'
                draw(*size, seed=1000 * i + j).save(root / split / name / f'{j:03}.{ending}', quality=90)
    return root


def test_folder_of_jpegs(tmp_path):
    """Small RGB JPEGs keep their bytes, others become RGB JPEGs; broken ones are named and left out."""
    root = image_folder(tmp_path / 'set')
    ant, big = root / 'train/ant', smooth_picture(400, 300)
    big.convert('L').save(ant / 'a_grey.JPEG')
    big.convert('CMYK').save(ant / 'b_cmyk.jpg')
    big.convert('RGBA').save(ant / 'c_png_named.JPEG', format='PNG')
    big.save(ant / 'd_big.jpg', quality=100)
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth_picture(60, 40).save(ant / 'e_turned.jpg', exif=turned, quality=90)
    (ant / 'h_broken.jpg').write_bytes((ant / 'd_big.jpg').read_bytes()[:3000])
    prepare(tmp_path / 'out', root)
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    assert [Path(name).name for name, _ in meta['skipped']] == ['h_broken.jpg']
    assert labels.tolist() == [0] * 8 + [1] * 3
    assert meta['classes'] == ['ant', 'bee']
    assert meta['val_images'] == 4
    assert images[:3] == [(ant / f'00{i}.jpg').read_bytes() for i in range(3)]  # the bytes themselves
    opened = [Image.open(io.BytesIO(raw)) for raw in images]
    assert {(i.format, i.mode) for i in opened} == {('JPEG', 'RGB')}
    for i, picture in enumerate((big.convert('L'), big, big, big), 3):
        small = picture.convert('RGB').resize((341, 256), Image.Resampling.BICUBIC)
        assert opened[i].size == (341, 256)
        assert abs(np.asarray(opened[i]).astype(int) - small).mean() < 4, i
    assert opened[7].size == (60, 40)
    assert not opened[7].getexif()  # not turned, and nothing that says to turn it
    pixels = np.concatenate([np.asarray(i).reshape(-1, 3) for i in opened]) / 255
    assert np.allclose(meta['mean'], pixels.mean(0), atol=2e-3)
    assert np.allclose(meta['std'], pixels.std(0), atol=2e-3)

    # the bytes do not depend on the number of workers; 0 keeps all sizes
    before = digests(tmp_path / 'out')
    with pytest.raises(SystemExit, match='already holds a data set'):
        prepare(tmp_path / 'out', root)
    prepare(tmp_path / 'out', root, num_proc=3, overwrite=True)
    assert digests(tmp_path / 'out') == before
    prepare(tmp_path / 'all', root, resize_short=0)
    images = load_images(tmp_path / 'all', 'train')[0]
    assert images[6] == (ant / 'd_big.jpg').read_bytes()
    assert Image.open(io.BytesIO(images[3])).size == (400, 300)


def test_pictures_of_one_small_size_become_arrays(tmp_path):
    root = image_folder(tmp_path / 'set', train=70, val=3, size=(12, 12), draw=noise_picture)
    out = tmp_path / 'out'
    prepare(out, root, num_proc=2)
    images, labels, meta = load_images(out, 'train')
    wanted = np.stack([np.asarray(noise_picture(12, 12, 1000 * i + j)) for i in range(2) for j in range(70)])
    assert (images == wanted).all()
    assert labels.tolist() == [0] * 70 + [1] * 70
    assert np.allclose(meta['mean'], (wanted / 255).mean((0, 1, 2)))
    assert np.allclose(meta['std'], (wanted / 255).std((0, 1, 2)))
    # what was stored says what it is, wherever it came from
    root.rename(tmp_path / 'moved')
    prepare(tmp_path / 'again', tmp_path / 'moved')
    assert load_images(tmp_path / 'again', 'train')[2]['content'] == meta['content']
    # one of another size: JPEGs, and nothing stays of the arrays
    noise_picture(13, 8).save(tmp_path / 'moved/train/bee/last.png')
    prepare(out, tmp_path / 'moved', overwrite=True)
    images, _, jpeg = load_images(out, 'train')
    assert (len(images), jpeg['layout'], jpeg['content'] == meta['content']) == (141, 'jpeg', False)
    assert not (out / 'train_images.npy').exists()


def test_synthetic(tmp_path, monkeypatch):
    """Deterministic; balanced; and no linear function of the pixels tells the classes."""
    monkeypatch.setattr(prepare_imagenet, 'SYNTHETIC', {'train': 1000, 'val': 300, 'test': 100})
    prepare(tmp_path / 'out', 'synthetic')
    splits = [load_images(tmp_path / 'out', split)[0] for split in ('train', 'val', 'test')]
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    assert images.shape == (1000, 32, 32, 3)
    assert (np.bincount(labels) == 100).all()
    assert len(meta['classes']) == 10
    assert (images[17] == np.asarray(prepare_imagenet.draw('train 17')[1])).all()
    assert len({image.tobytes() for split in splits for image in split}) == 1400

    def features(images):
        return images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(images), -1) / 127.5 - 1
    x, (v, u, _) = features(images), load_images(tmp_path / 'out', 'val')
    w = np.linalg.solve(x.T @ x + 300 * np.eye(768), x.T @ np.eye(10)[labels])
    assert ((features(v) @ w).argmax(1) == u).mean() < 0.25


def test_constant_channels(tmp_path):
    for i, split in enumerate(('train/a', 'train/b', 'val/a')):
        (tmp_path / 'set' / split).mkdir(parents=True)
        Image.new('RGB', (8, 8), (10 + 10 * i, 0, 255)).save(tmp_path / 'set' / split / '0.png')
    prepare(tmp_path / 'out', tmp_path / 'set')
    meta = load_images(tmp_path / 'out', 'train')[2]
    assert np.allclose((meta['mean'][0], meta['std'][0]), (15 / 255, 5 / 255), atol=1e-12)
    assert (meta['mean'][1:], meta['std'][1:]) == ([0, 1], [0, 0])  # exactly

# -----------------------------------------------------------------------------
# how it ends


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """Nothing looks finished after kill -9, the old set stays, and the next run starts again."""
    root, out = image_folder(tmp_path / 'set', train=80, val=5, size=(100, 90)), tmp_path / 'out'
    prepare(out, root)
    wanted = digests(out)
    (out / 'unfinished').mkdir()  # of the user's
    process = python('prepare_imagenet.py', f'--dataset={root}', f'--out_dir={out}', '--overwrite=True')
    while not list(out.glob('.prepare_tmp_*/train_jpeg.bin')):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(out.glob('.prepare_tmp_*'))
    assert digests(out) == wanted
    prepare(out, root, overwrite=True)
    assert digests(out) == wanted
    assert [path.name for path in out.iterdir() if path.is_dir()] == ['unfinished']


def test_a_full_disk(tmp_path, monkeypatch):
    def full(f):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(SystemExit, match='No space left on device. Fix that and run the same command again.'):
        prepare(tmp_path / 'out', image_folder(tmp_path / 'set'))
    assert not (tmp_path / 'out').exists()


def test_help_states_the_contract():
    said = finish(python('prepare_imagenet.py', '--help'))[0]
    assert RULE in said
    assert 'CLASS/** or SPLIT/CLASS/**' in said
    lines = said.partition('keys, as')[2].splitlines()
    keys = {line.split(' = ')[0].strip() for line in lines if ' = ' in line}
    assert keys == set(IMAGE_DEFAULTS)
