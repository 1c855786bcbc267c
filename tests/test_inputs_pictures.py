"""Whatever pictures people have on disk become exactly the right data, or are named with the reason."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_imagenet
from support import pictures

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {k: v for k, v in vars(prepare_imagenet).items() if k in (
    'dataset out_dir val_from_train val_fraction seed resize_short quality image_column label_column '
    'num_proc overwrite').split()} | {'num_proc': 1}


@pytest.fixture
def prepare(tmp_path, capsys):
    """Prepares a folder -> what is printed; the set is in tmp_path/out (or another name)."""
    def run(root, out='out', **keys):
        prepare_imagenet.main(DEFAULTS | {'dataset': str(root), 'out_dir': str(tmp_path / out), **keys})
        return capsys.readouterr().out
    return run


def refused(prepare, root, **keys):
    """The sentence with which it ends."""
    with pytest.raises(SystemExit) as stop:
        prepare(root, 'refused', **keys)
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    return stop.value.code


def command(*flags, **kwargs):
    return subprocess.run([sys.executable, ROOT / 'prepare_imagenet.py', '--num_proc=1', *map(str, flags)],
                          capture_output=True, cwd=ROOT, **kwargs)


def load(out, split='train'):
    """-> pictures (arrays, or the bytes of JPEGs), names of their classes, meta"""
    meta = json.loads((out / 'meta.json').read_text())
    classes = [meta['classes'][i] for i in np.load(out / f'{split}_labels.npy')]
    if meta['layout'] == 'arrays':
        return np.load(out / f'{split}_images.npy'), classes, meta
    ends, blob = np.load(out / f'{split}_offsets.npy'), (out / f'{split}_jpeg.bin').read_bytes()
    return [blob[a:b] for a, b in zip(ends, ends[1:])], classes, meta


def flat(value, size=8):
    """A picture of one colour, which tells it from all others."""
    return Image.new('RGB', (size, size), value if isinstance(value, tuple) else (value, value, value))


def save(path, value, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    flat(value).save(path, **kwargs)
    return path


def folder(root, *paths):
    """Pictures of one colour at these paths, number i of colour 10 i + 5."""
    for i, path in enumerate(paths):
        save(root / path, 10 * i + 5)
    return root


def colours(out, split='train'):
    """(number of the picture, its class) of a split made by folder()."""
    images, classes, _ = load(out, split)
    return [(int(image[0, 0, 0]) // 10, name) for image, name in zip(images, classes)]


def encoded(array, kind, **kwargs):
    f = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(f, kind, **kwargs)
    return f.getvalue()


def png16(array):
    """A PNG with 16 bits in each of several channels, which Pillow does not write."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    H, W, C = array.shape
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in array)
    head = struct.pack('>IIBBBBB', W, H, 16, {2: 4, 3: 2, 4: 6}[C], 0, 0, 0)
    chunks = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunks


def tiff12(array):
    """A TIFF with 12 bits a sample, packed."""
    bits = ''.join(f'{value:012b}' for value in array.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, 'big')
    H, W = array.shape
    tags = [(256, W), (257, H), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, H), (279, len(data))]
    return (b'II*\0' + struct.pack('<I', 8 + len(data)) + data + struct.pack('<H', len(tags))
            + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(4))


def pgm(array, white):
    return b'P5 %d %d %d\n' % (array.shape[1], array.shape[0], white) + array.astype('>u2').tobytes()


GREY = np.arange(0, 256, 4, dtype=np.uint16).reshape(8, 8)  # 0 to 252, what every kind of file below shows
RGB = np.stack([GREY] * 3, -1)
OPAQUE = np.full((8, 8, 1), 65535, np.uint16)
SHOWN = {  # file name: its bytes
    'grey.png': encoded(GREY.astype(np.uint8), 'PNG'),
    'grey alpha.png': encoded(Image.fromarray(GREY.astype(np.uint8)).convert('LA'), 'PNG'),
    '16 bits as 257.png': encoded(GREY * 257, 'PNG'),
    '16 bits as 256.tif': encoded(GREY * 256, 'TIFF'),
    '16 bits big endian.tif': encoded((GREY * 256).astype('>u2'), 'TIFF'),
    '16 bits lzw.tif': encoded(GREY * 256 + 90, 'TIFF', compression='tiff_lzw'),
    '16 bits white is 0.tif': encoded(65535 - GREY * 257, 'TIFF', tiffinfo={262: 0}),
    '8 bits white is 0.tif': encoded(GREY.astype(np.uint8), 'TIFF', tiffinfo={262: 0}),  # Pillow turns it
    '16 bits.ppm': encoded(GREY * 257, 'PPM'),
    '12 bits that say so.pgm': pgm(GREY.astype(int) * 4095 // 255, 4095),
    '12 bits that say so.tif': tiff12(GREY << 4),
    '16 bits rgb.png': png16(RGB * 257),
    '16 bits rgba.png': png16(np.concatenate([RGB * 257, OPAQUE], -1)),
    '16 bits grey alpha.png': png16(np.concatenate([GREY[..., None] * 257, OPAQUE], -1)),
}
UNCLEAR = {
    'int32.tif': encoded(GREY.astype(np.int32) * 10_000_000, 'TIFF'),
    'float.tif': encoded(GREY.astype(np.float32) / 255, 'TIFF'),
    '12 bits in 16.png': encoded(GREY * 16 + 3, 'PNG'),
    '12 bits in 16.tif': encoded(GREY * 16 + 3, 'TIFF'),
    '12 bits in 16.pgm': pgm(GREY * 16 + 3, 65535),
    '12 bits in 16 rgb.png': png16(RGB * 16 + 3),
    'no picture.png': b'no picture',
    'empty.png': b'',
}


def test_every_kind_of_pixels_is_right_or_left_out_by_name(tmp_path, prepare):
    folder(tmp_path / 'set', 'train/b/0.png', 'val/a/0.png', 'val/b/0.png')
    (tmp_path / 'set/train/a').mkdir()
    for name, raw in (SHOWN | UNCLEAR).items():
        (tmp_path / 'set/train/a' / name).write_bytes(raw)
    said = prepare(tmp_path / 'set')
    images, classes, meta = load(tmp_path / 'out')
    assert classes == ['a'] * len(SHOWN) + ['b'] and meta['layout'] == 'arrays'
    for name, image in zip(sorted(SHOWN), images):  # Pillow rounds the 12 bits of a PGM
        assert abs(image - RGB.astype(int)).max() <= ('say so.pgm' in name), name
    why = {Path(name).name: reason for name, reason in meta['skipped']}
    assert set(why) == set(UNCLEAR) and f'{len(UNCLEAR)} pictures were skipped' in said
    for name, reason in why.items():
        sentence = {'i': '32-bit', 'f': '32-bit', '1': '10, 12 or 14', 'n': 'cannot read', 'e': 'is empty'}
        assert name in said and sentence[name[0]] in reason, (name, reason)
    dark = (np.arange(64).reshape(8, 8) // 16).astype(np.uint16)  # a dark picture of 8 bits stays what it is
    for step in (256, 257):
        assert (np.asarray(pictures.as_stored(encoded(dark * step, 'PNG'), meta, 8))[..., 0] == dark).all()


def photo(w, h, seed=0):
    """Large smooth areas, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((w, h), Image.Resampling.BICUBIC)


def odd_photos(place):
    turned = Image.Exif()
    turned[0x0112] = 6
    place.mkdir(parents=True)
    photo(400, 300).save(place / 'a large.jpg')
    photo(60, 40).save(place / 'b turned.jpg', exif=turned)
    photo(400, 300).save(place / 'c large turned.jpg', exif=turned)
    grey = np.asarray(photo(300, 280).convert('L')).astype(np.uint16)
    Image.fromarray(grey * 257).save(place / 'd 16 bits.png')
    photo(90, 70).convert('RGBA').save(place / 'e alpha.png')
    photo(90, 70).convert('CMYK').save(place / 'f cmyk.jpg')
    photo(90, 70).quantize(8).save(place / 'g palette.png', transparency=b'\0\x80')
    photo(90, 70).save(place / 'h small.JFIF', 'JPEG')


@pytest.mark.parametrize('keys', [{}, {'resize_short': 64, 'quality': 50}, {'resize_short': 0}])
def test_prediction_sees_what_is_stored(tmp_path, prepare, keys):
    odd_photos(tmp_path / 'set/train/x')
    odd_photos(tmp_path / 'set/val/x')
    prepare(tmp_path / 'set', **keys)
    jpegs, _, meta = load(tmp_path / 'out', 'val')
    seen = list(pictures.pictures_in(str(tmp_path / 'set/val/x'), meta, 224))
    assert [Path(file).name[0] for file, _, _ in seen] == list('abcdefgh') and len(jpegs) == 8
    for jpeg, (file, picture, why) in zip(jpegs, seen):
        assert not why and picture.mode == 'RGB'
        assert (np.asarray(picture) == np.asarray(Image.open(io.BytesIO(jpeg)).convert('RGB'))).all(), file
    assert seen[1][1].size == (60, 40)  # EXIF is ignored in both
    grey8 = pictures.as_stored(encoded(photo(300, 280).convert('L'), 'PNG'), meta, 224)
    assert (np.asarray(seen[3][1]) == np.asarray(grey8)).all()  # 16 bits are the same picture as 8


def test_prediction_sees_what_is_stored_in_arrays(tmp_path, prepare):
    for i, name in enumerate(sorted(SHOWN)):
        for split in ('train', 'val'):
            (tmp_path / 'set' / split / 'x').mkdir(parents=True, exist_ok=True)
            (tmp_path / 'set' / split / 'x' / name).write_bytes(SHOWN[name])
    prepare(tmp_path / 'set')
    images, _, meta = load(tmp_path / 'out', 'val')
    seen = [np.asarray(picture) for _, picture, _ in pictures.pictures_in(tmp_path / 'set/val', meta, 8)]
    assert (np.stack(seen) == images).all() and len(seen) == len(SHOWN)
    wide = pictures.as_stored(photo(50, 30), meta, 8)  # of another size: its middle square
    want = photo(50, 30).resize((8, 8), Image.Resampling.BICUBIC, box=(10, 0, 40, 30))
    assert (np.asarray(wide) == np.asarray(want)).all()


def test_a_tiff_that_says_how_it_is_turned(tmp_path, prepare):
    """Pillow turns a TIFF, unlike a JPEG, when it decodes it; then its size is another one too."""
    for split in ('train', 'val'):
        (tmp_path / f'set/{split}/x').mkdir(parents=True)
        photo(12, 8).save(tmp_path / f'set/{split}/x/1.tif', tiffinfo={274: 6})
        photo(12, 8).save(tmp_path / f'set/{split}/x/0.png')
    assert 'not all of one size' in prepare(tmp_path / 'set')
    jpegs, _, meta = load(tmp_path / 'out', 'val')
    assert jpegs[1] == encoded(photo(12, 8).transpose(Image.Transpose.ROTATE_270), 'JPEG', quality=95)
    seen = pictures.as_stored(tmp_path / 'set/val/x/1.tif', meta, 8)
    assert (np.asarray(seen) == np.asarray(Image.open(io.BytesIO(jpegs[1])))).all()


def test_prediction_goes_on_after_a_broken_picture(tmp_path):
    folder(tmp_path / 'photos', 'a.jpg', 'sub/c.jfif', 'Z.PNG')
    (tmp_path / 'photos/b.jpg').write_bytes((tmp_path / 'photos/a.jpg').read_bytes()[:300])
    (tmp_path / 'photos/._a.jpg').write_bytes(b'resource fork')
    (tmp_path / 'photos/notes.txt').write_text('no picture')
    (tmp_path / 'photos/sub/up').symlink_to(tmp_path / 'photos')
    meta = {'layout': 'arrays'}
    seen = [(os.path.relpath(file, tmp_path / 'photos'), picture is not None, why)
            for file, picture, why in pictures.pictures_in(tmp_path / 'photos', meta, 8)]
    assert [row[:2] for row in seen] == [
        ('._a.jpg', False), ('Z.PNG', True), ('a.jpg', True), ('b.jpg', False), ('sub/c.jfif', True)]
    assert 'hidden' in seen[0][2] and 'truncated' in seen[3][2].lower()
    (_, picture, why), = pictures.pictures_in(tmp_path / 'absent.jpg', meta, 8)
    assert picture is None and why == 'No such file or directory'

# -----------------------------------------------------------------------------
# folders: splits, endings, links


def test_no_split_and_no_picture_is_left_out_without_its_name(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'train/b/1.png', 'val/a/2.png', 'val/b/3.png',
                  'dev/a/4.png', 'train/5.png', 'extra/a/6.png', '7.png', 'test/8.png',
                  'train/a/.ipynb_checkpoints/9.png')
    save(root / 'train/a/._0.png', 200)
    (root / 'train/b/.DS_Store').write_text('')
    (root / 'train/b/notes.txt').write_text('')
    said = prepare(root)
    assert said.splitlines()[0] == (
        'train: 2 files, val: 3 files, left out: 8 files (7.png, extra, test, train/5.png, train/a/._0.png, '
        'train/a/.ipynb_checkpoints, train/b/.DS_Store, train/b/notes.txt)')
    assert colours(tmp_path / 'out') == [(0, 'a'), (1, 'b')]
    assert sorted(colours(tmp_path / 'out', 'val')) == [(2, 'a'), (3, 'b'), (4, 'a')]


@pytest.mark.parametrize('train,val', [
    ('Train', 'VALID'), ('training', 'validation'), ('imagenet-train', 'imagenet-val'),
    ('train2017', 'val2017'), ('pictures', 'val'), ('around/train', 'around/dev')])
def test_names_of_splits(tmp_path, prepare, train, val):
    paths = f'{train}/a/0.png', f'{train}/b/1.png', f'{val}/a/2.png', f'{val}/b/3.png'
    prepare(folder(tmp_path / 'set', *paths))
    assert colours(tmp_path / 'out') == [(0, 'a'), (1, 'b')]
    assert colours(tmp_path / 'out', 'val') == [(2, 'a'), (3, 'b')]


def test_a_folder_that_is_no_split_stays_out(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'train/b/1.png', 'test/a/2.png',
                  'dev_test_notes/c/3.png')
    assert 'left out: 1 file (dev_test_notes)' in prepare(root)
    assert colours(tmp_path / 'out') == [(0, 'a'), (1, 'b')]
    assert colours(tmp_path / 'out', 'val') == [(2, 'a')]


def test_a_test_folder_without_classes_stops_nothing(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'val/a/1.png', 'test/unknown/2.png')
    said = prepare(root)
    assert 'has the folder unknown, which is not a class of train. It is skipped.' in said
    assert 'train: 1 file, val: 1 file, left out: 1 file (test)' in said
    assert colours(tmp_path / 'out') == [(0, 'a')] and colours(tmp_path / 'out', 'val') == [(1, 'a')]
    wrong = refused(prepare, folder(tmp_path / 'wrong', 'train/a/0.png', 'val/b/1.png'))
    assert 'The class b is in' in wrong


def test_classes_alone_are_split(tmp_path, prepare):
    root = folder(tmp_path / 'set', *[f'ant/{i:02}.png' for i in range(10)],
                  *[f'bee/{i}.png' for i in range(5)])
    folder(root, 'test/lone.png')  # a class of this name, with one picture
    (root / 'scripts').mkdir()
    (root / 'scripts/read.py').write_text('')
    said = prepare(root)
    assert 'left out: 1 file (scripts)' in said
    assert '2 random training pictures (0.1 of each class) are held out as val_*.' in said
    train, val = colours(tmp_path / 'out'), colours(tmp_path / 'out', 'val')
    assert sorted(name for _, name in val) == ['ant', 'bee'] and len(train) == 14 and (0, 'test') in train
    every = sorted((i, 'ant') for i in range(10)) + sorted((i, 'bee') for i in range(10, 15)) + [(0, 'test')]
    assert sorted(train + val) == sorted(every)
    prepare(root, 'again')
    assert colours(tmp_path / 'again', 'val') == val
    prepare(root, 'half', val_fraction=0.5, seed=1)
    assert sorted(name for _, name in colours(tmp_path / 'half', 'val')) == ['ant'] * 5 + ['bee'] * 2
    prepare(root, 'three', val_from_train=3)
    assert len(colours(tmp_path / 'three', 'val')) == 3

    # the same share where train/ stands alone
    folder(tmp_path / 'alone', *[f'train/{name}/{i}.png' for name in 'ab' for i in range(4)])
    assert '--val_fraction=0.1' in refused(prepare, tmp_path / 'alone')
    prepare(tmp_path / 'alone', 'alone out', val_fraction=0.25)
    assert [name for _, name in colours(tmp_path / 'alone out', 'val')] == ['a', 'b']


def test_folders_that_are_not_classes(tmp_path, prepare):
    def sentence(name, *paths, **keys):
        return refused(prepare, folder(tmp_path / name, *paths), **keys)
    assert 'holds no images with classes' in sentence('flat', 'train/0.png', 'train/1.png', 'val/2.png')
    flat_val = sentence('flat val', 'train/a/0.png', 'train/b/1.png', 'val/2.png')
    assert 'not in class folders. Move each to' in flat_val
    one = sentence('one', 'a/0.png', 'b/0.txt.d/x/y.gif.d/.0.png')
    assert 'one folder only (a). Sort them into at least two' in one
    sets = sentence('sets', 's1/train/a/0.png', 's1/val/a/1.png', 's2/train/a/2.png', 's2/test/a/3.png')
    assert 's1 looks like a data set of its own' in sets
    both = sentence('both', 'train/a/0.png', 'val/a/1.png', val_fraction=0.5)
    assert 'val_fraction=0.5 only works' in both
    assert 'No class has two pictures' in sentence('single', 'a/0.png', 'b/1.png')
    assert 'is out of range' in sentence('range', 'a/0.png', 'b/1.png', val_fraction=1)


def test_endings_of_any_case(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.jfif', 'train/a/1.JPG', 'train/a/2.PNG', 'train/a/3.Jpe',
                  'train/b/4.webp', 'val/a/5.JFIF', 'val/b/6.TIF')
    assert 'left out: 0 files' in prepare(root)
    assert [(round(i), name) for i, name in colours(tmp_path / 'out')] == [
        (0, 'a'), (1, 'a'), (2, 'a'), (3, 'a'), (4, 'b')]


def test_each_folder_is_read_once(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'train/b/1.png', 'val/a/2.png', 'val/b/3.png')
    folder(tmp_path / 'else', *['x.png'] * 5)
    for link, to in (('train/a/parent', '..'), ('train/a/sister', '../b'), ('train/b/val', '../../val'),
                     ('train/b/itself', '.'), ('train/loop', '..'), ('train/a/more', '../../../else'),
                     ('train/a/more too', '../../../else'), ('train/a/gone.png', 'nowhere'),
                     ('train/b/all', '../../..')):
        (root / link).symlink_to(to)
    said = prepare(root)
    assert ('train: 4 files, val: 2 files, left out: 7 files (train/a/more too, train/a/parent, '
            'train/a/sister, train/b/all, train/b/itself, train/b/val, train/loop)') in said
    assert colours(tmp_path / 'out') == [(0, 'a'), (4, 'a'), (1, 'b')]  # pictures in a folder elsewhere count
    assert [Path(name).name for name, _ in load(tmp_path / 'out')[2]['skipped']] == ['gone.png']


def test_an_accent_is_one_letter_or_two(tmp_path, prepare):
    prepare(folder(tmp_path / 'set', 'train/caf\u00e9/0.png', 'val/cafe\u0301/1.png'))
    assert colours(tmp_path / 'out') == [(0, 'caf\u00e9')]
    assert colours(tmp_path / 'out', 'val') == [(1, 'caf\u00e9')]


def test_class_folders_may_be_links(tmp_path, prepare):
    folder(tmp_path / 'all', 'a/0.png', 'b/1.png')
    root = tmp_path / 'set'
    for link in ('train/a', 'train/b', 'val/a', 'val/b'):
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(tmp_path / 'all' / link[-1])
    prepare(root)
    assert colours(tmp_path / 'out') == colours(tmp_path / 'out', 'val') == [(0, 'a'), (1, 'b')]


def test_a_named_pipe_is_not_waited_for(tmp_path, prepare):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'val/a/1.png')
    os.mkfifo(root / 'train/a/pipe.png')
    assert 'left out: 1 file (train/a/pipe.png)' in prepare(root)


def test_paths_with_brackets_and_stars(tmp_path, prepare):
    prepare(folder(tmp_path / 'my [set] * ?', 'train/[a]/0*.png', 'train/b?/1.png', 'val/[a]/2.png'))
    assert colours(tmp_path / 'out') == [(0, '[a]'), (1, 'b?')]
    assert colours(tmp_path / 'out', 'val') == [(2, '[a]')]
    for split, i in (('train', 3), ('val', 4)):
        table(tmp_path / f'table [x] * ?/{split}[0].PARQUET', [(i, 0), (i + 1, 1)])
    prepare(tmp_path / 'table [x] * ?', 'table')
    assert colours(tmp_path / 'table') == [(3, '0'), (4, '1')]
    assert colours(tmp_path / 'table', 'val') == [(4, '0'), (5, '1')]

# -----------------------------------------------------------------------------
# tables


def table(path, rows, label='label', names=None):
    """A parquet file of (number of the picture, label) as the Hub stores it."""
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    data = pa.table({'image': [{'bytes': encoded(flat(10 * i + 5), 'PNG'), 'path': None} for i, _ in rows]}
                    | ({label: [y for _, y in rows]} if label else {}))
    if names:
        features = {label: {'names': names, '_type': 'ClassLabel'}}
        data = data.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, path)
    return path


def test_a_test_split_without_labels_stops_nothing(tmp_path, prepare):
    for i, kind in enumerate(('no column', 'no label', 'in part', 'another', 'lists')):
        root = tmp_path / kind
        table(root / 'train.parquet', [(0, 0), (1, 1)], names=['a', 'b'])
        table(root / 'validation.parquet', [(2, 1)], names=['a', 'b'])
        labels = ([], [-1, -1], [None, 0], [0, 7], [[0], [1]])[i]
        table(root / 'test.parquet', list(enumerate(labels)), label='label' if i else '')
        said = prepare(root, kind + ' out')
        assert 'train: 1 file, val: 1 file, left out: 1 file (test.parquet)' in said
        assert 'The test split of' in said
        assert colours(tmp_path / f'{kind} out') == [(0, 'a'), (1, 'b')]
        assert not (tmp_path / f'{kind} out/test_labels.npy').exists()


@pytest.mark.parametrize('train,val,want', [
    ([1, 2, 3], [2], ['1', '2', '3']),
    ([0, 2, 7], [5], ['0', '2', '5', '7']),  # none of 5 in train: the others keep their names
    ([20_000_000, 3], [3], ['3', '20000000']),
    ([False, True], [True], ['False', 'True']),
    (['x', 'a'], ['x'], ['a', 'x']),
])
def test_the_labels_that_occur_are_the_classes(tmp_path, prepare, train, val, want):
    table(tmp_path / 'set/train.parquet', list(enumerate(train)))
    table(tmp_path / 'set/val.parquet', list(enumerate(val)))
    said = prepare(tmp_path / 'set')
    assert colours(tmp_path / 'out') == [(i, str(label)) for i, label in enumerate(train)]
    assert colours(tmp_path / 'out', 'val') == [(i, str(label)) for i, label in enumerate(val)]
    assert load(tmp_path / 'out')[2]['classes'] == want
    told = 'The name of each class is its label' in said
    assert told == (isinstance(train[0], int) and max(train) >= len(want))


def test_names_of_the_hub_are_kept_though_not_all_occur(tmp_path, prepare):
    table(tmp_path / 'set/train.parquet', [(0, 2), (1, 0)], names=['a', 'b', 'c'])
    table(tmp_path / 'set/val.parquet', [(2, 1)], names=['a', 'b', 'c'])
    prepare(tmp_path / 'set')
    assert colours(tmp_path / 'out') == [(0, 'c'), (1, 'a')]
    assert colours(tmp_path / 'out', 'val') == [(2, 'b')]


def test_labels_that_are_none(tmp_path, prepare):
    for name, train, val, sentence in (
            ('shifted', [0, 1], [1, 2], 'The val split of'), ('negative', [-1, 1], [1], 'The train split of'),
            ('float', [0.5, 1.5], [0.5], 'holds no labels'), ('lists', [[0], [1]], [[0]], 'holds no labels'),
            ('missing', [0, None], [0], 'holds no labels')):
        table(tmp_path / name / 'train.parquet', list(enumerate(train)))
        table(tmp_path / name / 'val.parquet', list(enumerate(val)))
        said = refused(prepare, tmp_path / name)
        assert sentence in said and ('holds' in said or 'not one of the classes' in said)


@pytest.mark.parametrize('train,val', [
    ('train-00000-of-00001-b42a775f407cee45', 'valid-00000-of-00001-70d52db3c749a935'),  # older, of the Hub
    ('train-1', 'val'), ('default/train/0000', 'default/validation/0000')])
def test_names_of_tables(tmp_path, prepare, train, val):
    table(tmp_path / f'set/data/{train}.parquet', [(0, 0), (1, 1)])
    table(tmp_path / f'set/data/{val}.parquet', [(2, 1)])
    (tmp_path / 'set/data/._train.parquet').write_bytes(b'resource fork')
    (tmp_path / 'set/README.md').write_text('')
    assert 'left out: 2 files (README.md, data/._train.parquet)' in prepare(tmp_path / 'set')
    assert colours(tmp_path / 'out') == [(0, '0'), (1, '1')]
    assert colours(tmp_path / 'out', 'val') == [(2, '1')]


def test_a_table_beside_two_splits_is_named(tmp_path, prepare):
    for i, name in enumerate(('train-1', 'extra', 'val')):
        table(tmp_path / f'set/{name}.parquet', [(i, 0)])
    assert 'left out: 1 file (extra.parquet)' in prepare(tmp_path / 'set')
    assert colours(tmp_path / 'out') == [(0, '0')] and colours(tmp_path / 'out', 'val') == [(2, '0')]


def test_a_table_that_is_damaged_behind_its_head(tmp_path, prepare):
    rows = [(i % 20, i % 2) for i in range(200)]
    raw = table(tmp_path / 'set/train.parquet', rows).read_bytes()
    table(tmp_path / 'set/val.parquet', rows[:2])
    (tmp_path / 'set/train.parquet').write_bytes(raw[:20] + bytes(300) + raw[320:])
    said = refused(prepare, tmp_path / 'set')
    assert 'train.parquet' in said and ('is damaged after row' in said or 'cannot be read as parquet' in said)

# -----------------------------------------------------------------------------
# meta.json


def test_constant_channels(tmp_path, prepare):
    for split in ('train', 'val'):
        save(tmp_path / 'set' / split / 'a/0.png', (10, 0, 255))
        save(tmp_path / 'set' / split / 'b/1.png', (20, 0, 255))
    prepare(tmp_path / 'set')
    meta = load(tmp_path / 'out')[2]
    assert np.allclose((meta['mean'], meta['std']), ([15 / 255, 0, 1], [5 / 255, 0, 0]), atol=1e-12)
    assert meta['mean'][1:] == [0, 1] and meta['std'][1:] == [0, 0]  # exactly


def test_content_is_what_is_stored(tmp_path, prepare):
    paths = ('train/a/0.png', 'train/b/1.png', 'val/a/2.png', 'train/b/9.png')
    for name in ('set', 'moved'):
        prepare(folder(tmp_path / name, *paths), name + ' out')
    one, two = (load(tmp_path / f'{name} out')[2] for name in ('set', 'moved'))
    assert one['content'] == two['content'] and one['source'] != two['source'] and len(one['content']) == 32
    contents = {one['content']}
    for i, change in enumerate((lambda root: save(root / paths[0], 77),
                                lambda root: save(root / paths[2], 77),
                                lambda root: (root / 'train/b/1.png').rename(root / 'train/a/1.png'))):
        root = folder(tmp_path / f'changed{i}', *paths)
        change(root)
        prepare(root, f'changed{i} out')
        contents.add(load(tmp_path / f'changed{i} out')[2]['content'])
    assert len(contents) == 4


def test_the_example_is_of_the_split_that_is_named(tmp_path, prepare):
    for split, other in (('train', 'val'), ('val', 'train')):
        root = folder(tmp_path / split, 'train/a/0.png', 'val/a/1.png', f'{other}/a/2.png')
        for name in ('train/a/0.png', 'val/a/1.png'):
            (root / name).write_bytes(b'no picture')
        said = refused(prepare, root)
        assert f'None of the {split} pictures can be used' in said
        assert f'{split}/a/{int(split == "val")}.png' in said and 'cannot read' in said

# -----------------------------------------------------------------------------
# what is printed


def test_help_states_the_rule_of_the_splits():
    said = command('--help').stdout.decode()
    from support.splits import RULE
    assert RULE in said and len(RULE.splitlines()) == 3
    assert 'RULE' not in said and '  val_fraction = 0.0' in said


def test_libraries_do_not_talk(tmp_path):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'val/a/1.png')
    photo(20, 10).quantize(8).save(root / 'train/a/p.png', transparency=b'\0\x80')  # a UserWarning of Pillow
    torn = bytearray(encoded(photo(20, 10), 'TIFF', compression='tiff_lzw'))
    torn[60:100] = b'\xff' * 40  # libtiff prints
    (root / 'train/a/t.tif').write_bytes(torn)
    exif = Image.Exif()
    exif[0x010f] = 'maker'
    photo(20, 10).save(root / 'train/a/x.jpg', exif=exif.tobytes()[:-8])  # a UserWarning about EXIF
    run = command(f'--dataset={root}', f'--out_dir={tmp_path / "out"}')
    assert run.returncode == 0, run.stderr
    said = (run.stdout + run.stderr).decode()
    assert 'arn' not in said and 'tempfile' not in said and 'TIFF' not in said, said
    assert [Path(name).name for name, _ in load(tmp_path / 'out')[2]['skipped']] == ['t.tif']


def test_names_that_cannot_be_shown(tmp_path):
    root = folder(tmp_path / 'set', 'train/caf\u00e9/0.png', 'val/caf\u00e9/1.png')
    (root / 'train/caf\u00e9/\u03b1.png').write_bytes(b'')
    (root / os.fsdecode(b'\xff.txt')).write_text('')  # not UTF-8
    for encoding in ('ascii', 'utf-8'):
        run = command(f'--dataset={root}', f'--out_dir={tmp_path / encoding}',
                      env={**os.environ, 'PYTHONIOENCODING': encoding})
        assert run.returncode == 0 and b'Traceback' not in run.stderr, run.stderr
        assert b'udcff.txt' in run.stdout and b'is finished' in run.stdout
        assert load(tmp_path / encoding)[1] == ['caf\u00e9']


def test_nobody_reads_the_output(tmp_path):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'val/a/1.png')
    for name, stderr in (('out', subprocess.DEVNULL), ('both', subprocess.STDOUT)):
        read, write = os.pipe()
        os.close(read)  # as head does, only sooner
        flags = f'--dataset={root}', f'--out_dir={tmp_path}/{name}', '--num_proc=1'
        line = [sys.executable, ROOT / 'prepare_imagenet.py', *flags]
        run = subprocess.run(line, stdout=write, stderr=stderr)
        os.close(write)
        assert run.returncode == 0 and colours(tmp_path / name) == [(0, 'a')]


def test_a_full_disk(tmp_path):
    root = folder(tmp_path / 'set', 'train/a/0.png', 'val/a/1.png')
    code = ('import os, errno, sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, '
            'os.path.dirname(sys.argv[0]))\ndef full(f): raise OSError(errno.ENOSPC, '
            'os.strerror(errno.ENOSPC))\nos.fsync = full\nrunpy.run_path(sys.argv[0], run_name="__main__")')
    line = [ROOT / 'prepare_imagenet.py', f'--dataset={root}', f'--out_dir={tmp_path}/out', '--num_proc=1']
    run = subprocess.run([sys.executable, '-c', code, *line], capture_output=True, text=True)
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert f'{os.strerror(errno.ENOSPC)} ({tmp_path}/out). Free some space, then run' in run.stderr
    assert not (tmp_path / 'out/meta.json').exists()
    assert command(*line[1:]).returncode == 0 and colours(tmp_path / 'out') == [(0, 'a')]
