"""
prepare_imagenet.py: pictures as people have them become exactly the right data, or one sentence says what to
do. And what a run does with that data.
"""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import prepare_imagenet
from support import pictures
from support.images import Images, predict_files
from support.synthetic import draw
from support.writing import in_order, run
from tests.common import IMAGE_DEFAULTS, finish, image_table, load_images, noise_picture, python
from tests.common import smooth_picture as smooth


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    def in_one_process(jobs, work, workers):
        return in_order(jobs, work, workers) if workers > 1 else ((job[:-1], work(job[-1])) for job in jobs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_imagenet, 'in_order', in_one_process)


def prepare(dataset='in', out='out', **keys):
    run(prepare_imagenet.main, IMAGE_DEFAULTS | {'dataset': dataset, 'out_dir': out, **keys})


def encoded(picture, kind='PNG', **kwargs):
    f = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(f, kind, **kwargs)
    return f.getvalue()


def flat(number):
    """The picture of that number, of one gray."""
    return Image.new('RGB', (8, 8), (10 * number + 5,) * 3)


def table(rows, names=None, **columns):
    """A parquet file of (number of the picture, label)"""
    return dict(rows=[(flat(i), y) for i, y in rows], names=names and names.split(), **columns)


def write(files):
    """Bytes and texts as they are; a number is the picture of that number, a dict is a table."""
    for path, content in files.items():
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            image_table(path, **content)
        elif isinstance(content, int):
            flat(content).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def load(split, out='out'):
    return load_images(Path(out), split)


def found(split):
    """'0a 1b' where the pictures 0 and 1 are of the classes a and b"""
    if not Path(f'out/{split}_labels.npy').exists():
        return ''
    images, labels, meta = load(split)
    assert meta['layout'] == 'arrays'
    return ' '.join(f'{int(image[0, 0, 0]) // 10}{meta["classes"][y]}' for image, y in zip(images, labels))


def numbered(paths):
    """{path: number} of the paths in a text. A picture's name ends with its number."""
    return {f'in/{path}': int(Path(path).stem[-1]) for path in paths.split()}


def tables(**shards):
    """{path: what it holds} of tables below in"""
    return {f'in/{name}.parquet': content for name, content in shards.items()}


TRAIN = numbered('train/a/0.png train/b/1.png')
BOTH = TRAIN | numbered('val/a/2.png val/b/3.png')
TEN = numbered(' '.join(f'{name}/{i}.png' for name in 'ab' for i in range(5)))
TINY = numbered('train/n1/images/n1_0.JPEG train/n2/images/n2_1.JPEG val/images/val_2.JPEG '
                'val/images/val_3.JPEG test/images/test_4.JPEG')
TINY_LIST = {'in/val/val_annotations.txt': 'val_2.JPEG\tn2\t0\t32\t44\t62\nval_3.JPEG\tn1\t52\t55\t57\t59\n'}
ILSVRC = numbered('train/n1/n1_0.JPEG train/n2/n2_1.JPEG val/I_2.JPEG val/I_3.JPEG test/I_4.JPEG') | {
    'list': 'ImageId,PredictionString\nI_3,n1 85 1 499 272 \nI_2,n2 1 2 3 4 n2 5 6 7 8 \n'}
CAT_DOG, DOG_CAT = (table([(0, 0), (1, 1)], names=names) for names in ('cat dog', 'dog cat'))

HUB_LIKE = {'in/train-1.parquet': table([(0, 0), (1, 1), (2, 0)], names='cat dog'), **tables(test=CAT_DOG),
            'in/train-2.parquet': table([(3, 1), (4, 0), (5, 1)], names='cat dog')}
NO_TEST = table([(9, -1)], names='cat dog')

# name: files, keys, the pictures and classes of train, val and test, words of what is printed
ACCEPTED = {
    'train and val': (
        BOTH | numbered('5.png train/5.png train/a/._0.png test/x/4.png') | {'in/train/b/notes.txt': 'x'}, {},
        '0a 1b; 2a 3b; ', "The test split is left out: 'x' is no class of train.\n"
        'train: 2 files (train/a/0.png, train/b/1.png), val: 2 files (val/a/2.png, val/b/3.png), left out: '
        '5 files (5.png, test/x/4.png, train/5.png ...)'),
    'other names of splits and endings': (
        numbered('my-Train/a/0.jfif my-Train/a/1.JPG my-Train/b/2.Jpe my-Train/b/3.webp VALID/a/4.TIF '
                 'dev/a/5.JPEG test/b/6.bmp'), {}, '0a 1a 2b 3b; 4a 5a; 6b', 'val: 2 files'),
    'only test': (TRAIN | numbered('test/a/2.png'), {}, '0a 1b; 2a; ', 'its test split is stored as val_*'),
    'classes alone': (TEN, {}, '0a 1a 2a 3a 0b 2b 3b 4b; 4a 1b; ', '2 random training pictures (0.1 of each'),
    'train alone': (numbered('train/a/0.png train/a/1.png train/b/2.png train/b/3.png'),
                    dict(val_fraction=0.5), '1a 3b; 0a 2b; ', '2 random training pictures (0.5'),
    'classes called test and train': (
        numbered('control/0.png control/1.png test/2.png test/3.png train/4.png'), dict(val_fraction=0.5),
        '1control 3test 4train; 0control 2test; ', ''),
    'an accent is one letter or two': (numbered('\u00e9/0.png e\u0301/1.png b/2.png'), {},
                                       '2b 1\u00e9; 0\u00e9; ', ''),
    'val elsewhere': (numbered('a/0.png b/1.png ../held/b/2.png'), dict(val='held'), '0a 1b; 2b; ', ''),
    'Tiny ImageNet': (TINY | TINY_LIST, dict(val_labels='in/val/val_annotations.txt'), '0n1 1n2; 3n1 2n2; ',
                      "The test split is left out: 'images' is no class of train."),
    'ImageNet': (ILSVRC, dict(val_labels='list'), '0n1 1n2; 3n1 2n2; ', 'The test split is left out'),
    'a list of names without endings': (
        numbered('train/n1/0.png train/n2/1.png val/v.2.png val/v.3.png') | {'list': 'v.2 n1\nv.3 n2'},
        dict(val_labels='list'), '0n1 1n2; 2n1 3n2; ', ''),
    'val and its list': (ILSVRC, dict(dataset='in/train', val='in/val', val_labels='list'),
                         '0n1 1n2; 3n1 2n2; ', ''),
    # tables
    'tables': ({'in/data/train-00000-of-00001-b42a775f407cee45.parquet': CAT_DOG, 'in/README.md': '',
                'in/data/valid-00000-of-00001.PARQUET': table([(2, 1)], names='cat dog'),
                'in/data/._train.parquet': b''},
               {}, '0cat 1dog; 2dog; ', 'left out: 2 files (README.md, data/._train.parquet)'),
    'folders of tables': ({'in/x/train/[0].parquet': CAT_DOG, 'in/x/validation/*.parquet': CAT_DOG}, {},
                          '0cat 1dog; 0cat 1dog; ', ''),
    'one table': (tables(x=table([(0, 'b'), (1, 'b'), (2, 'a'), (3, 'a')])), dict(dataset='in/x.parquet'),
                  '1b 3a; 0b 2a; ', '2 random training pictures'),
    'some of train': (HUB_LIKE, dict(val_from_train=2), '0cat 1dog 4cat 5dog; 2cat 3dog; 0cat 1dog', ''),
    'others of train': (HUB_LIKE, dict(val_from_train=2, seed=1),
                        '1dog 2cat 3dog 5dog; 0cat 4cat; 0cat 1dog', ''),
    'some of train, and test without labels': (
        tables(train=CAT_DOG, val=CAT_DOG, test=NO_TEST), dict(val_from_train=1),
        '1dog; 0cat; 0cat 1dog', ''),
    'some of train, with val and test': (
        tables(train=CAT_DOG, val=DOG_CAT, test=CAT_DOG), dict(val_from_train=1),
        '1dog; 0cat; 0cat 1dog', 'The validation split of the source is skipped'),
    'labels by name': ({'in/train-1.parquet': CAT_DOG, 'in/val.parquet': DOG_CAT,
                        'in/train-2.parquet': table([(2, 0), (3, 1)], names='dog cat', extra=[1, 2])}, {},
                       '0cat 1dog 2dog 3cat; 0dog 1cat; ', ''),
    'labels by name, the other way around': (
        {'in/train-1.parquet': DOG_CAT, 'in/train-2.parquet': CAT_DOG, 'in/val.parquet': CAT_DOG}, {},
        '0dog 1cat 0cat 1dog; 0cat 1dog; ', ''),
    'shards that are missing': (
        tables(val=CAT_DOG, **{'train-00000-of-00004': CAT_DOG, 'train-00003-of-00004': CAT_DOG}), {},
        '0cat 1dog 0cat 1dog; 0cat 1dog; ', 'only 2 of 4 shards are here.'),
    'numbers that occur': (tables(train=table([(0, 1), (1, 20_000_000), (2, 3)]), val=table([(0, 3)])), {},
                           '01 120000000 23; 03; ', ''),
    'a test split with no column of labels': (
        tables(train=CAT_DOG, validation=CAT_DOG, test=table([(2, 0)], label='other')), {},
        '0cat 1dog; 0cat 1dog; ', 'The test split is left out: None is no class of train.'),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_pictures_are_read_exactly(name, capsys):
    files, keys, wanted, words = ACCEPTED[name]
    write(files)
    prepare(**keys)
    assert '; '.join(map(found, ('train', 'val', 'test'))) == wanted
    assert words in capsys.readouterr().out


UNCLEAR = ('The names in in do not tell train from val ({}). State it with {} or, if all of it is training '
           'data, with --val_fraction=0.1.')
FLAT_VAL = ('{} validation pictures are in no class folder of train ({}). Use --val_labels=FILE (a name and '
            'a class in each line; Tiny ImageNet comes with val_annotations.txt, ImageNet with '
            'LOC_val_solution.csv), or move each to VAL/CLASS/.')
NEEDS = ('holds no training pictures. Set --dataset to a folder with CLASS/**, SPLIT/CLASS/** or parquet '
         'files.')
NOT_ONE = ('list does not state one class of train for {} validation pictures ({}). Begin one line with the '
           'name and the class of each.')
# files, keys, sentence
REFUSED = [
    ({}, dict(dataset='imagenet'), 'There is no file or folder imagenet. Check the path, or use synthetic, '
     'cifar10, cifar100, tiny-imagenet, imagenet-1k or OWNER/NAME as --dataset.'),
    ({}, dict(dataset='synthetic', val='in'), '--val and --val_labels do not work with --dataset=synthetic. '
     'Leave them out.'),
    ({'in/a.txt': ''}, {}, f'in {NEEDS}'),
    ({'in/data.arrow': b''}, {}, 'in was written by save_to_disk. Convert each of its splits to parquet: '
     "python -c \"import datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\""),
    (BOTH | tables(train=CAT_DOG), {}, 'in holds both pictures (in/train/a/0.png) and tables '
     '(in/train.parquet). Move one kind out of it.'),
    (BOTH, dict(quality=0), 'quality=0 is out of range. Set --quality to a number from 1 to 100.'),
    # classes
    (numbered('train/0.png train/1.png'), {}, 'in has fewer than two class folders of training pictures '
     '(none). It needs CLASS/** or train/CLASS/**.'),
    (numbered('seg_train/seg_train/a/0.png seg_train/seg_train/b/1.png seg_test/seg_test/a/2.png'), {},
     'in has one class, seg_train, and it holds folders only. If those are the classes, use '
     '--dataset=in/seg_train/seg_train --val=in/seg_test/seg_test.'),
    (numbered('seg_train/a/0.png seg_train/b/1.png seg_test/seg_test/a/2.png'),
     dict(dataset='in/seg_train', val='in/seg_test'), '--val=in/seg_test is not the folder around the '
     'classes. Use --val=in/seg_test/seg_test.'),
    (numbered('s1/train/a/0.png s1/val/a/1.png s2/train/a/2.png'), {},
     'in/s1 looks like a data set of its own. Use --dataset=in/s1.'),
    (numbered('a/0.png') | {'in/my val/a/1.png': 1}, {},
     UNCLEAR.format('neither: a; val: my val', "--dataset=in/a --val='in/my val'")),
    # splits
    (TRAIN | numbered('val/a/2.png val/c/3.png'), {}, FLAT_VAL.format(1, 'in/val/c/3.png')),
    (TINY | TINY_LIST, {}, FLAT_VAL.format(2, 'in/val/images/val_2.JPEG, in/val/images/val_3.JPEG')),
    (TINY | {'list': 'val_2.JPEG n2\n\nval_3.JPEG n9'}, dict(val_labels='list'),
     NOT_ONE.format(1, 'in/val/images/val_3.JPEG')),
    (numbered('train/n1/0.png train/n2/1.png val/x/2.png val/y/2.png') | {'list': 'x/2.png n1\ny/2.png n2'},
     dict(val_labels='list'), NOT_ONE.format(2, 'in/val/x/2.png, in/val/y/2.png')),
    (tables(train=CAT_DOG), dict(val_labels='list'), '--val_labels only works with folders of pictures. '
     'Leave it out.'),
    (TEN | {'list': ''}, dict(val_labels='list'), '--val_labels=list needs validation pictures. Put them '
     'into val/, or use --val=FOLDER.'),
    (BOTH, dict(dataset='in/train', val='in/train/notes'), 'There is no file or folder in/train/notes. Check '
     'the path.'),
    (BOTH | {'held/notes.txt': ''}, dict(dataset='in/train', val='held'), '--val=held holds no pictures, as '
     'in/train does. Give a folder of the same kind.'),
    (TEN, dict(val_from_train=10), 'val_from_train=10 is out of range for 10 training pictures. Use '
     '--val_from_train=N with N from 0 to 9.'),
    (TRAIN, {}, 'No class has two pictures, so none can be held out. Add pictures, or '
     'use --val=FOLDER.'),
    (TEN, dict(val_from_train=1, val_fraction=0.5), 'val_fraction=0.5 only works without val_from_train, and '
     'only if the source has no split but train. Use --val_from_train=N alone.'),
    (numbered('trainset/a/0.png trainset/b/1.png testset/a/2.png'), {},
     UNCLEAR.format('test: testset; train: trainset', '--dataset=in/trainset --val=in/testset')),
    (numbered('control/0.png test/1.png train/2.png'), {},
     UNCLEAR.format('neither: control; test: test; train: train', '--dataset=in/train --val=in/test')),
    # tables
    ({'in/train-1.parquet': CAT_DOG, **tables(extra=CAT_DOG, val=CAT_DOG)}, {},
     UNCLEAR.format('neither: extra.parquet; train: train-1.parquet; val: val.parquet',
                    '--dataset=in/train-1.parquet --val=in/val.parquet')),
    (tables(train=CAT_DOG, val=table([(0, 2)], names='cat dog')), {}, 'The val split of in has the label 2, '
     'which is not one of the classes (cat, dog). Correct it, or choose another column with --label_column.'),
    (tables(train=table([(0, 0.5)])), {}, 'The labels of in are not whole numbers or names in all files. '
     'Choose another column with --label_column.'),
    (tables(train=table([(0, -1), (1, 1), (2, 1)])), {}, 'in has fewer than two classes (1). Choose another '
     'column with --label_column.'),
    (tables(train=CAT_DOG, val=table([])), {}, 'The validation files of in have no rows. Use others, or '
     'leave them out.'),
    (tables(train=CAT_DOG), dict(image_column='label'), "in/train.parquet has no pictures under 'label' but "
     'int64. Set --image_column to one of image, label.'),
    (tables(train=CAT_DOG), dict(label_column='class'),
     'in/train.parquet has no column class. Set --label_column to one of image, label.'),
    ({'in/partial-train/0.parquet': CAT_DOG}, {}, 'in/partial-train/0.parquet is part of an export that '
     'the Hub cut short. Download the whole data set.'),
    ({'in/a/train.parquet': CAT_DOG, 'in/b/train.parquet': CAT_DOG}, {}, 'The train files of in are in '
     'several folders (in/a, in/b). Use --dataset=FOLDER with the folder of one set, around all of its '
     'splits.'),
    (tables(train=b'version https://git-lfs.github.com/spec/v1\n'), {},
     'in/train.parquet is a pointer of git-lfs to the real file. Fix: git lfs pull'),
    (tables(val=CAT_DOG), {},
     'in has no rows for training. Its files need names like train-00000-of-00001.parquet.'),
    # nothing that can be used
    (BOTH | {'in/val/a/2.png': 'no', 'in/val/b/3.png': 'no'}, {}, 'None of the val pictures can be used. Fix '
     "or replace them. The first is 'in/val/a/2.png' (Pillow cannot read this format)."),
]


@pytest.mark.parametrize('files, keys, sentence', REFUSED)
def test_pictures_are_refused_in_one_sentence(files, keys, sentence):
    write(files)
    with pytest.raises(SystemExit) as stop:
        prepare(**keys)
    assert stop.value.code == sentence
    assert not Path('out').exists()


def test_a_table_that_is_damaged():
    write({'in/val.parquet': table([(i % 20, i % 2) for i in range(200)])})
    raw = Path('in/val.parquet').read_bytes()
    write({'in/train.parquet': raw[:20] + bytes(300) + raw[320:]})
    with pytest.raises(SystemExit, match=r'in/train.parquet cannot be read as parquet \('):
        prepare()

# -----------------------------------------------------------------------------
# pixels


def png16(rgb):
    """A PNG with 16 bits in each of three channels, which Pillow does not write"""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rgb)
    head = struct.pack('>IIBBBBB', rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunks


GREY = np.arange(0, 256, 4, dtype=np.uint16).reshape(8, 8)  # 0 to 252, what every kind of file below shows
EIGHT = Image.fromarray(GREY.astype(np.uint8))
RGB = np.stack([GREY] * 3, -1)
TEXT = PngInfo()
TEXT.add_text('key', 'x' * 70_000_000, zip=True)
COMMENT = PngInfo()
COMMENT.add_itxt('comment', '\u4e2d' * 22_000)  # 66,000 bytes, with which Pillow never ends a JPEG
SHOWN = {  # file name: its bytes
    'grey alpha.png': encoded(EIGHT.convert('LA')),
    'cmyk.tif': encoded(EIGHT.convert('CMYK'), 'TIFF'),
    'palette.gif': encoded(EIGHT, 'GIF', comment=b'x' * 70_000),
    'text.png': encoded(EIGHT, pnginfo=TEXT),
    'comment.png': encoded(EIGHT, pnginfo=COMMENT),
    'profile.png': encoded(EIGHT, icc_profile=bytes(1_500_000)),
    '16 bits as 257.png': encoded(GREY * 257),
    '16 bits big endian.tif': encoded((GREY * 256).astype('>u2'), 'TIFF'),
    '16 bits lzw.tif': encoded(GREY * 256 + 90, 'TIFF', compression='tiff_lzw'),
    '16 bits.ppm': encoded(GREY * 257, 'PPM'),
    '16 bits rgb.png': png16(RGB * 257),
}
DEEP = 'of more than 8 bits a channel, only plain 16-bit grey says what black and white are; save 8 bits'
DARK = 'the highest 16-bit value is about'
LEFT_OUT = {  # file name: its bytes, and the reason
    'int32.tif': (encoded(GREY.astype(np.int32) * 10_000_000, 'TIFF'), DEEP),
    'float.tif': (encoded(GREY.astype(np.float32) / 255, 'TIFF'), DEEP),
    '16 bits white is 0.tif': (encoded(65535 - GREY * 257, 'TIFF', tiffinfo={262: 0}), DEEP),
    '12 bits in 16.png': (encoded(GREY * 16 + 3), DARK),
    '12 bits in 16 rgb.png': (png16(RGB * 16 + 3), DARK),
    'no picture.png': (b'no picture', 'Pillow cannot read this format'),
    'pointer.png': (b'version https://git-lfs.github.com/spec/v1\n', 'a pointer of git-lfs; `git lfs pull`'),
    'empty.png': (b'', 'the file is empty'),
    'torn.jpg': (encoded(noise_picture(8, 8), 'JPEG')[:-100], 'runcated'),
    'bomb.png': (encoded(Image.new('1', (20_000, 20_000))), 'Image size (400000000 pixels) exceeds limit'),
}


def test_every_kind_of_pixels_is_right_or_left_out_by_name(capfd):
    write(BOTH | {f'in/train/a/{name}': raw for name, raw in SHOWN.items()})
    write({f'in/train/a/{name}': raw for name, (raw, _) in LEFT_OUT.items()})
    prepare()
    images, _, meta = load('train')
    assert len(images) == len(SHOWN) + 2
    for name, image in zip(sorted([*SHOWN, '0.png']), images):
        assert name == '0.png' or (image == GREY[..., None]).all(), name
    why = {Path(name).name: reason for name, reason in meta['skipped']}
    assert set(why) == set(LEFT_OUT)
    for name, reason in why.items():
        assert LEFT_OUT[name][1] in reason, (name, reason)
    assert f'Skipped pictures: {len(LEFT_OUT)} (meta.json lists all of them)' in capfd.readouterr().out
    for raw in SHOWN.values():
        assert pictures.stored(raw)[0].startswith(b'\xff\xd8')  # as JPEGs, too


def test_one_picture_that_needs_too_much_memory_is_left_out(monkeypatch):
    def hungry(image):
        if image.getpixel((0, 0))[0] == 15:
            raise MemoryError
        return image
    write(BOTH)
    monkeypatch.setattr(pictures, 'to_rgb', hungry)
    prepare()
    assert (found('train'), load('train')[2]['skipped']) == ('0a', [['in/train/b/1.png', 'MemoryError']])


@pytest.mark.parametrize('size, layout', [((96, 96), 'arrays'), ((97, 97), 'jpeg'), ((64, 48), 'jpeg')])
def test_only_small_squares_become_arrays(size, layout):
    write({path: encoded(smooth(*size, seed=i)) for path, i in BOTH.items()})
    prepare()
    images, _, meta = load('train')
    assert meta['layout'] == layout
    if layout == 'jpeg':
        assert Image.open(io.BytesIO(images[0])).size == size

# -----------------------------------------------------------------------------
# the files


def contents(folder='out'):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_folder_of_jpegs():
    """Small RGB JPEGs keep their bytes, others become RGB JPEGs. The number of workers changes nothing."""
    big, turned = smooth(400, 300), Image.Exif()
    turned[0x0112] = 6
    files = [encoded(smooth(40, 30), 'JPEG', quality=90), encoded(big.convert('CMYK'), 'JPEG'),
             encoded(big.convert('RGBA')), encoded(big, 'JPEG', quality=100),
             encoded(smooth(60, 40), 'JPEG', exif=turned)]
    write(numbered('train/b/6.jpg val/a/7.jpg') | {f'in/train/a/{i}.jpg': raw for i, raw in enumerate(files)})
    prepare()
    images, labels, meta = load('train')
    assert (labels.tolist(), meta['classes']) == ([0] * 5 + [1], ['a', 'b'])
    assert images[0] == files[0]
    opened = [Image.open(io.BytesIO(raw)) for raw in images]
    assert {(i.format, i.mode) for i in opened} == {('JPEG', 'RGB')}
    wanted = big.resize((341, 256), Image.Resampling.BICUBIC)
    assert all(abs(np.asarray(picture).astype(int) - wanted).mean() < 4 for picture in opened[1:4])
    assert opened[4].size == (60, 40)
    assert not opened[4].getexif()  # not turned, and nothing that says to turn it
    pixels = np.concatenate([np.asarray(i).reshape(-1, 3) for i in opened]) / 255
    assert np.allclose((meta['mean'], meta['std']), (pixels.mean(0), pixels.std(0)), atol=2e-3)
    before = contents()
    with pytest.raises(SystemExit, match='already holds a data set'):
        prepare()
    prepare(num_proc=3, overwrite=True)
    assert contents() == before
    prepare(out='all', resize_short=0)
    assert load('train', 'all')[0][3] == files[3]


def test_pictures_of_one_small_size_become_arrays():
    wanted = np.stack([np.asarray(noise_picture(12, 12, i)) for i in range(140)])
    wanted[..., 1:] = 0, 255  # constant channels
    for split in ('train', 'val'):
        write({f'in/{split}/{i // 70}/{i:03}.png': encoded(pixels) for i, pixels in enumerate(wanted)})
    prepare(num_proc=2)
    images, labels, meta = load('train')
    assert (images == wanted).all()
    assert labels.tolist() == [0] * 70 + [1] * 70
    assert np.allclose((meta['mean'], meta['std']), ((wanted / 255).mean((0, 1, 2)),
                                                     (wanted / 255).std((0, 1, 2))))
    Path('in').rename('moved')  # what was stored says what it is, wherever it came from
    prepare('moved', 'again')
    assert load('train', 'again')[2]['content'] == meta['content']
    write({'moved/train/1/last.png': encoded(noise_picture(13, 8))})  # all become JPEGs, and no array stays
    prepare('moved', overwrite=True)
    assert (load('train')[2]['layout'], load('train')[2]['content'] == meta['content']) == ('jpeg', False)
    assert not Path('out/train_images.npy').exists()


def test_synthetic(monkeypatch):
    """Deterministic; balanced; and no linear function of the pixels tells the classes."""
    monkeypatch.setattr(prepare_imagenet, 'SYNTHETIC', {'train': 1000, 'val': 300, 'test': 100})
    prepare('synthetic')
    (x, y, _), (v, u, _), (t, _, _) = map(load, ('train', 'val', 'test'))
    assert (np.bincount(y) == 100).all()
    assert (x[17] == np.asarray(draw('train 17')[1])).all()
    assert len({image.tobytes() for image in [*x, *v, *t]}) == 1400
    x, v = (i.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(i), -1) / 127.5 - 1 for i in (x, v))
    w = np.linalg.solve(x.T @ x + 300 * np.eye(768), x.T @ np.eye(10)[y])
    assert ((v @ w).argmax(1) == u).mean() < 0.25


# -----------------------------------------------------------------------------
# what a run does with them


class OneProcess:
    """As much of support.distributed.start() as Images needs."""
    device, device_type, world_size = torch.device('cpu'), 'cpu', 1
    autocast = contextlib.nullcontext()

    def __init__(self):
        self.told = []
        self.say = self.told.append


RUN = dict(image_size=8, shift=2, eval_only=False, num_workers=3, micro_batch_size=64, global_batch_size=64)


def opened(**keys):
    """The data set 'out' as a run with these keys opens it."""
    data = Images('out', RUN | keys, OneProcess())
    data.open('train')
    return data


def test_a_run_says_when_jpegs_are_smaller_than_it_looks_at():
    write({path: encoded(smooth(20, 30), 'JPEG') for path in BOTH})
    prepare(resize_short=16)
    assert opened(image_size=14).env.told == []
    assert opened(image_size=15).env.told == [
        'The JPEGs were stored with a short side of at most 16 pixels, but image_size=15 looks at 17. For '
        'sharper pictures, prepare them again: python prepare_imagenet.py --resize_short=17 '
        '--overwrite=True.']


def predicted(path, meta, size=8):
    """The pixels that reach the model, 0 to 255 (H, W, 3), and the lines that are printed."""
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(((x[0].permute(1, 2, 0) + 1) * 127.5).round().numpy())
            return torch.zeros(1, 2)
    env = OneProcess()
    meta = meta | dict(classes=['a', 'b'], mean=[0.5] * 3, std=[0.5] * 3)
    predict_files(path, Model(), Images('none', RUN | {'image_size': size}, env, meta))
    return seen, env.told


def test_prediction_sees_what_is_stored():
    """In arrays, exactly. Others are cropped to the middle square, without the rotation of EXIF."""
    write(BOTH | {f'in/val/a/{name}': raw for name, raw in SHOWN.items()})
    prepare()
    images, _, meta = load('val')
    assert (np.stack(predicted('in/val', meta)[0]) == images).all()
    turned = Image.Exif()
    turned[0x0112] = 6
    write({'photo.jpg': encoded(smooth(500, 300), 'JPEG', exif=turned)})
    want = Image.open('photo.jpg').resize((8, 8), Image.Resampling.BICUBIC, box=(100, 0, 400, 300))
    assert (predicted('photo.jpg', meta)[0] == np.asarray(want)).all()


def test_prediction_sees_a_photo_at_its_own_size_and_goes_on_after_a_broken_one():
    """As timm crops it: the short side at image_size * 8 / 7 of the photo itself, not of 256 pixels."""
    photo = noise_picture(700, 600)
    write({'in/photo.png': encoded(photo), 'in/sub/thin.PNG': encoded(Image.new('L', (1, 20_000))),
           'in/broken.jpg': 'x', 'in/._a.jpg': 'resource fork', 'in/notes.txt': ''})
    seen, told = predicted('in', dict(layout='jpeg', resize_short=256), 384)
    box = photo.resize((438 * 700 // 600, 438), Image.Resampling.BICUBIC)
    left = round((box.width - 384) / 2)
    assert (seen[0] == np.asarray(box.crop((left, 27, left + 384, 27 + 384)))).all()
    assert 'python prepare_imagenet.py --resize_short=438' in told[0]
    assert told[1:] == ['in/broken.jpg: skipped (Pillow cannot read this format)',
                        'in/photo.png: a 50.0%, b 50.0%', 'in/sub/thin.PNG: a 50.0%, b 50.0%']
    Path('empty').mkdir()
    with pytest.raises(SystemExit, match='empty has no picture that can be read. Use another file or folder'):
        predicted('empty', dict(layout='arrays'))


def test_pillow_does_not_warn():
    """About EXIF that was cut: such a file keeps its bytes."""
    exif = Image.Exif()
    exif[0x010f] = 'maker'
    write({'cut.jpg': encoded(smooth(20, 10), 'JPEG', exif=exif.tobytes()[:-8])})
    code = 'import sys; from support.pictures import stored; print(len(stored(sys.argv[1])[0]))'
    said, errors = finish(python('-W', 'error', '-c', code, Path('cut.jpg').absolute()))
    assert int(said) == os.path.getsize('cut.jpg')
    assert not errors
