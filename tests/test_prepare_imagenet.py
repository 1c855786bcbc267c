"""prepare_imagenet.py: folders and tables of pictures become one prepared set."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_imagenet
from tests.common import (
    IMAGE_DEFAULTS,
    finish,
    image_table,
    load_images,
    noise_picture,
    prepare_images,
    python,
    smooth_picture,
)


def with_defaults(keys):
    return IMAGE_DEFAULTS | {k: str(v) if isinstance(v, Path) else v for k, v in keys.items()}


def refuse_images(**keys):
    """The sentence with which it ends."""
    with pytest.raises(SystemExit) as stop:
        prepare_imagenet.main(with_defaults(keys))
    assert isinstance(stop.value.code, str)  # a string is exit code 1
    return stop.value.code


def digest_images(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()}


def image_folder(root, classes=('ant', 'bee'), train=3, val=2, size=(40, 30)):
    for split, n in (('train', train), ('val', val)):
        for i, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for j in range(n):
                smooth_picture(*size, seed=100 * i + j).save(root / split / name / f'{j}.jpg', quality=90)
    return root


def test_folder_of_odd_pictures(tmp_path):
    """Every kind becomes an RGB JPEG, small ones keep their bytes, broken ones are named and left out."""
    root = image_folder(tmp_path / 'set')
    ant, big = root / 'train/ant', smooth_picture(400, 300)
    big.convert('L').save(ant / 'a_grey.JPEG')
    big.convert('CMYK').save(ant / 'b_cmyk.jpg')
    big.quantize(16).save(ant / 'c_palette.png')
    big.convert('RGBA').save(ant / 'd_png_named.JPEG', format='PNG')
    Image.fromarray(np.asarray(big.convert('L')).astype(np.uint16) * 257).save(ant / 'e_16bit.png')
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth_picture(60, 40).save(ant / 'f_turned.jpg', exif=turned, quality=90)
    big.save(ant / 'g_big.jpg', quality=100)
    (ant / 'h_broken.jpg').write_bytes((ant / 'g_big.jpg').read_bytes()[:3000])
    (ant / 'i_text.jpg').write_text('no picture')
    (ant / 'j_notes.txt').write_text('left out')
    (ant / '.hidden.jpg').write_text('left out')
    said = prepare_images(tmp_path / 'out', root)
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    assert '2 pictures were skipped' in said
    assert 'h_broken.jpg' in said
    assert 'i_text.jpg' in said
    assert 'left out: 2 files (train/ant/.hidden.jpg, train/ant/j_notes.txt)' in said
    assert 'about' in said
    assert 'are free' in said
    assert [Path(name).name for name, _ in meta['skipped']] == ['h_broken.jpg', 'i_text.jpg']
    assert labels.tolist() == [0] * 10 + [1] * 3
    assert meta['classes'] == ['ant', 'bee']
    assert meta['val_images'] == 4
    assert images[:3] == [(ant / f'{i}.jpg').read_bytes() for i in range(3)]  # the bytes themselves
    opened = [Image.open(io.BytesIO(raw)) for raw in images]
    assert {(i.format, i.mode) for i in opened} == {('JPEG', 'RGB')}
    shrunk = np.asarray(big.resize((341, 256), Image.Resampling.BICUBIC)).astype(float)
    for i, name in ((3, 'grey'), (4, 'cmyk'), (5, 'palette'), (6, 'png'), (7, '16bit'), (9, 'big')):
        assert opened[i].size == (341, 256), name
        wanted = shrunk if name not in ('grey', '16bit') else (shrunk @ [0.299, 0.587, 0.114])[..., None]
        if name == 'palette':
            palette = big.quantize(16).convert('RGB').resize((341, 256), Image.Resampling.BICUBIC)
            wanted = np.asarray(palette).astype(float)
        assert abs(np.asarray(opened[i]) - wanted).mean() < 4, name
    assert opened[8].size == (60, 40)
    assert not opened[8].getexif()  # not turned, and nothing that says to turn it
    pixels = np.concatenate([np.asarray(i).reshape(-1, 3) for i in opened]) / 255
    assert np.allclose(meta['mean'], pixels.mean(0), atol=2e-3)
    assert np.allclose(meta['std'], pixels.std(0), atol=2e-3)
    assert not (tmp_path / 'out/unfinished').exists()

    # the bytes do not depend on the number of workers; 0 keeps all sizes
    before = digest_images(tmp_path / 'out')
    assert 'already holds a data set' in refuse_images(dataset=root, out_dir=tmp_path / 'out')
    prepare_images(tmp_path / 'out', root, num_proc=3, overwrite=True)
    assert digest_images(tmp_path / 'out') == before
    prepare_images(tmp_path / 'all', root, resize_short=0)
    images = load_images(tmp_path / 'all', 'train')[0]
    assert images[9] == (ant / 'g_big.jpg').read_bytes()
    assert Image.open(io.BytesIO(images[3])).size == (400, 300)


def test_pictures_of_one_small_size_become_arrays(tmp_path):
    root = tmp_path / 'set'
    for split, n in (('train', 70), ('validation', 3)):
        for i, name in enumerate(('x', 'y')):
            (root / split / name).mkdir(parents=True)
            for j in range(n):
                noise_picture(12, 8, seed=1000 * i + j).save(root / split / name / f'{j:03}.png')
    prepare_images(tmp_path / 'out', root, num_proc=2)
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    wanted = np.stack([np.asarray(noise_picture(12, 8, 1000 * i + j)) for i in range(2) for j in range(70)])
    assert (images == wanted).all()
    assert labels.tolist() == [0] * 70 + [1] * 70
    assert np.allclose(meta['mean'], (wanted / 255).mean((0, 1, 2)))
    assert np.allclose(meta['std'], (wanted / 255).std((0, 1, 2)))
    # one of another size: JPEGs, and nothing stays of the arrays
    noise_picture(13, 8).save(root / 'train/y/last.png')
    assert 'not all of one size' in prepare_images(tmp_path / 'out', root, overwrite=True)
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    assert meta['layout'] == 'jpeg'
    assert len(images) == 141
    assert Image.open(io.BytesIO(images[-1])).size == (13, 8)
    assert not (tmp_path / 'out/train_images.npy').exists()


@pytest.mark.slow
def test_parquet_and_the_splits(tmp_path):
    """The three ways to get val and test; each training picture is in exactly one place."""
    rows = [(noise_picture(6, 6, i), i % 3) for i in range(150)]
    names = ['zebra', 'ant', 'bee']  # the Hub's order, not the alphabet's
    root = tmp_path / 'set'
    image_table(root / 'data/train-00000-of-00002.parquet', rows[:100], 'img', 'fine_label', names)
    image_table(root / 'data/train-00001-of-00002.parquet', rows[100:130], 'img', 'fine_label', names)
    image_table(root / 'data/test-00000-of-00001.parquet', rows[130:], 'img', 'fine_label', names)
    pixels = [np.asarray(picture).tobytes() for picture, _ in rows]

    def ids(out, split):
        images, labels, meta = load_images(out, split)
        found = [pixels.index(image.tobytes()) for image in images]
        assert meta['classes'] == names
        assert labels.tolist() == [i % 3 for i in found]
        return found
    assert 'test split is stored as val_*' in prepare_images(tmp_path / 'plain', root)
    assert ids(tmp_path / 'plain', 'train') == list(range(130))
    assert ids(tmp_path / 'plain', 'val') == list(range(130, 150))
    assert not (tmp_path / 'plain/test_labels.npy').exists()
    held = {}
    for seed in (0, 1):
        out = tmp_path / f'held{seed}'
        prepare_images(out, root, val_from_train=20, seed=seed, num_proc=2)
        held[seed] = ids(out, 'val')
        assert len(held[seed]) == 20
        assert sorted(held[seed] + ids(out, 'train')) == list(range(130))
        assert ids(out, 'test') == list(range(130, 150))
    assert held[0] != held[1]

    # a validation split and a test split without labels; names of classes as text
    other = tmp_path / 'imagenet'
    image_table(other / 'train.parquet', [(p, names[y]) for p, y in rows[:100]], kind='binary')
    image_table(other / 'validation.parquet', [(p, names[y]) for p, y in rows[100:130]], kind='binary')
    prepare_images(tmp_path / 'plain2', other)
    assert load_images(tmp_path / 'plain2', 'val')[2]['classes'] == ['ant', 'bee', 'zebra']
    numbers = tmp_path / 'numbers'
    for name, part in (('train', rows[:100]), ('validation', rows[100:130]),
                       ('test', [(p, -1) for p, _ in rows[130:]])):
        image_table(numbers / f'{name}.parquet', part)
    assert 'has no labels. It is skipped.' in prepare_images(tmp_path / 'held2', numbers, val_from_train=10)
    images, labels, meta = load_images(tmp_path / 'held2', 'test')
    assert [pixels.index(image.tobytes()) for image in images] == list(range(100, 130))
    assert meta['classes'] == ['0', '1', '2']


def test_synthetic(tmp_path, monkeypatch):
    """Deterministic; balanced; and no linear function of the pixels tells the classes."""
    monkeypatch.setattr(prepare_imagenet, 'SYNTHETIC', {'train': 2000, 'val': 500, 'test': 100})
    prepare_imagenet.main({**IMAGE_DEFAULTS, 'dataset': 'synthetic', 'out_dir': str(tmp_path / 'out')})
    images, labels, meta = load_images(tmp_path / 'out', 'train')
    assert images.shape == (2000, 32, 32, 3)
    assert (np.bincount(labels) == 200).all()
    assert len(meta['classes']) == 10
    assert (images[17] == np.asarray(prepare_imagenet.draw('train 17'))).all()
    splits = [load_images(tmp_path / 'out', split)[0] for split in ('train', 'val', 'test')]
    assert len({image.tobytes() for split in splits for image in split}) == 2600

    def features(images):
        return images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(images), -1) / 127.5 - 1
    x, (v, u, _) = features(images), load_images(tmp_path / 'out', 'val')
    w = np.linalg.solve(x.T @ x + 300 * np.eye(768), x.T @ np.eye(10)[labels])
    assert ((features(v) @ w).argmax(1) == u).mean() < 0.25


KILLED_IMAGES = '''
import os, time
import prepare_imagenet as p
count, turn, replace = [0], iter(range(10**9)), os.replace
p.time = type('', (), dict(monotonic=lambda: 10 * next(turn)))  # the state is saved after every job
def killed_images(*args):
    count[0] += 1
    if count[0] == {at}:
        os.kill(os.getpid(), 9)
    replace(*args)
os.replace = killed_images
p.main(dict({config!r}))
'''


def kill_images(at, **config):
    """Starts and is killed at that rename."""
    config = with_defaults(config)
    finish(python('-c', KILLED_IMAGES.format(at=at, config=config)), -9)


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """kill -9 at the n-th rename: the saves of the state, then meta.json, then the final ones."""
    root = image_folder(tmp_path / 'set', train=150, val=5, size=(100, 90))
    (root / 'train/ant/1.jpg').write_bytes(b'')
    prepare_images(tmp_path / 'whole', root)
    wanted = digest_images(tmp_path / 'whole')
    renames = 6 + 1 + 1 + 7  # 5 jobs of train and one of val, each saved, and the end
    for at in (1, 3, 5, renames - 7, renames - 4, renames):
        out = tmp_path / f'out{at}'
        kill_images(at, dataset=root, out_dir=out)
        assert not (out / 'meta.json').exists()
        assert (out / 'unfinished').exists()  # nothing looks finished
        (tmp_path / 'state.json').write_bytes((out / 'unfinished/state.json').read_bytes() if at > 1 else b'')
        said = prepare_images(out, root)
        assert ('Continuing after' in said) == (1 < at < renames - 6), (at, said)
        assert digest_images(out) == wanted, at
    # killed between the last rename and the end: finished, and it can be replaced
    state = json.dumps({'mark': json.loads((tmp_path / 'state.json').read_text())['mark'], 'jobs': 6,
                        'size': None, 'images': {'train': 299, 'val': 10}})
    (tmp_path / 'whole/unfinished').mkdir()
    (tmp_path / 'whole/unfinished/state.json').write_text(state)
    prepare_images(tmp_path / 'whole', root, overwrite=True)
    assert digest_images(tmp_path / 'whole') == wanted
    # what another line had left is not gone on with
    kill_images(4, dataset=root, out_dir=tmp_path / 'other', quality=50)
    assert 'Continuing' not in prepare_images(tmp_path / 'other', root)
    assert digest_images(tmp_path / 'other') == wanted


def test_killed_while_replacing_keeps_the_old_set(tmp_path):
    root = image_folder(tmp_path / 'set', train=100)
    prepare_images(tmp_path / 'out', root, val_from_train=5)
    before = digest_images(tmp_path / 'out')
    kill_images(3, dataset=root, out_dir=tmp_path / 'out', overwrite=True)
    (tmp_path / 'out/unfinished').rename(tmp_path / 'unfinished')
    assert digest_images(tmp_path / 'out') == before
    (tmp_path / 'unfinished').rename(tmp_path / 'out/unfinished')
    assert 'Continuing after' in prepare_images(tmp_path / 'out', root, overwrite=True)
    assert load_images(tmp_path / 'out', 'train')[2]['val_from_train'] == 0
    assert not (tmp_path / 'out/test_labels.npy').exists()


def empty_class(root):
    for path in (root / 'train/bee').iterdir():
        path.unlink()


def other_class(root):
    (root / 'train/bee').rename(root / 'train/wasp')


def no_val(root):
    (root / 'val').rename(root / 'other')


def flat(root):
    for path in list(root.glob('*/*/*')):
        path.rename(path.parents[1] / f'{path.parent.name}{path.name}')
    for split in ('train', 'val'):
        for name in ('ant', 'bee'):
            (root / split / name).rmdir()


@pytest.fixture(scope='module')
def bad_sets(tmp_path_factory):
    """A folder of sets, named after what is wrong with them."""
    folder = tmp_path_factory.mktemp('bad_sets')
    for change in (empty_class, other_class, no_val, flat):
        change(image_folder(folder / change.__name__, train=2, val=1))
    rows = [(noise_picture(4, 4, i), i % 2) for i in range(4)]
    picture = rows[0][0]
    for file, part in {
            'range/train/0': rows, 'range/validation/0': [(picture, 2)], 'negative/train/0': [(picture, -1)],
            'negative/validation/0': rows, 'one/train/0': rows, 'cut/partial-train/0': rows,
            'cut/validation/0': rows}.items():
        image_table(folder / f'{file}.parquet', part, names=['a', 'b'])
    for file, part in {'two/a/train': rows, 'two/b/train': rows, 'float/train': [(picture, 0.5)]}.items():
        image_table(folder / f'{file}.parquet', part)
    (folder / 'torn').mkdir()
    (folder / 'torn/train.parquet').write_bytes(b'PAR1 and no more')
    (folder / 'nothing').mkdir()
    return folder


@pytest.mark.parametrize('dataset,keys,sentence', [
    ('empty_class', {}, 'empty_class/train/bee holds no pictures'),
    ('other_class', {}, 'The class bee is in'),
    ('no_val', {}, 'has no validation split. Use --val_from_train=1'),
    ('one', {}, 'has no validation split'),
    ('one', {'val_from_train': 4}, 'val_from_train=4 is out of range for 4 training pictures'),
    ('flat', {}, 'flat holds no images with classes'),
    ('nothing', {}, 'nothing holds no images with classes'),
    ('empty_class/train/ant/0.jpg', {}, 'is not a folder'),
    ('absent', {}, 'There is no folder'),
    ('range', {}, 'has the label 2, which is not one of the classes'),
    ('negative', {}, 'has the label -1, which is not one of the classes'),
    ('cut', {}, 'is part of an export that the Hub cut short'),
    ('torn', {}, 'torn/train.parquet cannot be read as parquet'),
    ('two', {}, 'are in several folders'),
    ('float', {}, 'holds no labels'),
    ('one', {'label_column': 'class'}, 'has no column class. Set --label_column to one of image, label')],
                         ids=str)
def test_mistakes_with_pictures_get_one_sentence(bad_sets, tmp_path, dataset, keys, sentence):
    said = refuse_images(dataset=bad_sets / dataset, out_dir=tmp_path / 'out', **keys)
    assert sentence in said
    assert '\n' not in said
    assert not (tmp_path / 'out').exists()


def test_imagenet_is_no_name_of_a_set(tmp_path):
    said = refuse_images(dataset='imagenet', out_dir=tmp_path / 'out')
    assert 'There is no folder imagenet. Check the path, or use synthetic, cifar10' in said


def test_mistakes_with_pictures_as_people_meet_them(tmp_path):
    text = image_folder(tmp_path / 'text', train=2, val=1)
    for path in text.glob('train/*/*'):
        path.write_text('no picture')
    said = prepare_images(tmp_path / 'out', text, code=1)
    assert 'None of the train pictures can be used' in said
    assert not (tmp_path / 'out/meta.json').exists()
    assert 'quality=0 is out of range' in prepare_images(tmp_path / 'out', text, code=1, quality=0)
