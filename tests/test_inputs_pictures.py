"""Pictures as people have them become exactly the right data, or one sentence says what to do."""

import contextlib
import io
import json
import os
import struct
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import prepare_imagenet
from support import augment, pictures
from support.images import Images, predict_files
from tests.common import IMAGE_DEFAULTS, load_images, noise_picture, smooth_picture

DEFAULTS = IMAGE_DEFAULTS | {'val': '', 'val_labels': ''}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prepare(dataset, out='out', **keys):
    prepare_imagenet.main(DEFAULTS | {'dataset': dataset, 'out_dir': out, **keys})


def refused(dataset, **keys):
    """The sentence that it ends with. Nothing is left behind."""
    with pytest.raises(SystemExit) as stop:
        prepare(dataset, 'nowhere', **keys)
    assert not Path('nowhere').exists()
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    return stop.value.code


def encoded(picture, kind='PNG', **kwargs):
    f = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(f, kind, **kwargs)
    return f.getvalue()


def flat(number, size=8):
    """The picture of that number, of one gray."""
    return Image.new('RGB', (size, size), (10 * number + 5,) * 3)


def table(rows, label='label', names=None, **columns):
    """A parquet file of (number of the picture, label) as the Hub stores it."""
    data = {'image': [{'bytes': encoded(flat(i)), 'path': None} for i, _ in rows], **columns}
    if label:
        data[label] = [y for _, y in rows]
    data = pa.table(data)
    if names:
        features = {label: {'names': names.split(), '_type': 'ClassLabel'}}
        data = data.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})
    f = io.BytesIO()
    pq.write_table(data, f)
    return f.getvalue()


def write(files):
    """Bytes and texts as they are; a number is the picture of that number."""
    for path, content in files.items():
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = encoded(flat(content), {'.jfif': 'JPEG', '.jpe': 'JPEG', '.jpg': 'JPEG',
                                              '.jpeg': 'JPEG',
                                              '.webp': 'WEBP', '.tif': 'TIFF'}.get(path.suffix.lower(),
                                                                                   'PNG'))
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def found(split, out='out'):
    """'0a 1b' where the pictures 0 and 1 are of the classes a and b"""
    images, labels, meta = load_images(Path(out), split)
    assert meta['layout'] == 'arrays'
    return ' '.join(f'{int(image[0, 0, 0]) // 10}{meta["classes"][y]}' for image, y in zip(images, labels))


def numbered(*paths):
    return {path: i for i, path in enumerate(paths)}


BOTH = numbered('in/train/a/0.png', 'in/train/b/1.png', 'in/val/a/2.png', 'in/val/b/3.png')
TEN = numbered(*[f'in/a/{i}.png' for i in range(5)], *[f'in/b/{i}.png' for i in range(5)])
TINY = {**numbered('in/train/n1/images/n1_0.JPEG', 'in/train/n2/images/n2_0.JPEG', 'in/val/images/val_0.JPEG',
                   'in/val/images/val_1.JPEG', 'in/test/images/test_0.JPEG'), 'in/wnids.txt': 'n1\nn2\n',
        'in/val/val_annotations.txt': 'val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t52\t55\t57\t59\n'}
CLS = 'in/ILSVRC/Data/CLS-LOC'
ILSVRC = {**numbered(f'{CLS}/train/n1/n1_0.JPEG', f'{CLS}/train/n2/n2_0.JPEG', f'{CLS}/val/ILSVRC_1.JPEG',
                     f'{CLS}/val/ILSVRC_2.JPEG', f'{CLS}/test/ILSVRC_9.JPEG'),
          'in/LOC_val_solution.csv': 'ImageId,PredictionString\nILSVRC_2,n1 85 1 499 272 \n'
                                     'ILSVRC_1,n2 1 2 3 4 n2 5 6 7 8 \n'}
TWO = table([(0, 0), (1, 1)], names='cat dog')
# name: files; dataset; keys; train and val, as '0a 1b'; words of what is printed
ACCEPTED = {
    'train and val': (BOTH, 'in', {}, '0a 1b', '2a 3b', 'train: 2 files (train/a/0.png, train/b/1.png), '
                                                        'val: 2'),
    'other names': (numbered('in/imagenet-Train/a/0.png', 'in/imagenet-Train/b/1.png', 'in/VALID/a/2.png'),
                    'in', {},
                    '0a 1b', '2a', 'left out: 0 files'),
    'all of val, valid and dev': ({**BOTH, 'in/dev/a/4.png': 4}, 'in', {}, '0a 1b', '4a 2a 3b',
                                  'val: 3 files'),
    'what is not in a class is left out': (
        {**BOTH, 'in/5.png': 5, 'in/train/5.png': 5, 'in/val/5.png': 5,
         'in/train/a/.ipynb_checkpoints/9.png': 9,
         'in/train/a/._0.png': 9, 'in/train/b/notes.txt': 'x'}, 'in', {}, '0a 1b', '2a 3b',
        'left out: 6 files (5.png, train/5.png, train/a/._0.png ...)'),
    'endings of any case': (
        numbered('in/train/a/0.jfif', 'in/train/a/1.JPG', 'in/train/a/2.PNG', 'in/train/b/3.Jpe',
                 'in/train/b/4.webp',
                 'in/val/a/5.TIF'), 'in', {}, '0a 1a 2a 3b 4b', '5a', ''),
    'test without classes of train': ({**BOTH, 'in/test/unknown/4.png': 4}, 'in', {}, '0a 1b', '2a 3b',
                                      'The test split is left out: it has unknown, which is no class of '
                                      'train.'),
    'only test': (numbered('in/train/a/0.png', 'in/train/b/1.png', 'in/test/a/2.png'), 'in', {}, '0a 1b',
                  '2a',
                  'its test split is stored as val_*'),
    'classes alone': (TEN, 'in', {}, '0a 1a 2a 3a 5b 7b 8b 9b', '4a 6b',
                      '2 random training pictures (0.1 of each'),
    'a share of train alone': (numbered('in/train/a/0.png', 'in/train/a/1.png', 'in/train/b/2.png',
                                        'in/train/b/3.png'),
                               'in', dict(val_fraction=0.5), '1a 3b', '0a 2b',
                               '2 random training pictures (0.5'),
    'a class called test, as stated': (
        numbered('in/control/0.png', 'in/control/1.png', 'in/test/2.png', 'in/test/3.png', 'in/train/4.png'),
        'in',
        dict(val_fraction=0.5), '1control 3test 4train', '0control 2test', ''),
    'a class with a word of splits': (numbered('in/test_tube/0.png', 'in/test_tube/1.png', 'in/cup/2.png'),
                                      'in', {},
                                      '2cup 0test_tube', '1test_tube', ''),
    'an accent is one letter or two': (
        numbered('in/caf\u00e9/0.png', 'in/cafe\u0301/1.png', 'in/b/2.png'), 'in', {}, '2b 1caf\u00e9',
        '0caf\u00e9', ''),
    'an accent in val': (numbered('in/train/caf\u00e9/0.png', 'in/val/cafe\u0301/1.png'), 'in', {},
                         '0caf\u00e9',
                         '1caf\u00e9', ''),
    'val in another place': (numbered('in/a/0.png', 'in/b/1.png', 'held out/b/2.png'), 'in',
                             dict(val='held out'), '0a 1b',
                             '2b', 'val: 1 file'),
    'val inside': (numbered('in/a/0.png', 'in/b/1.png', 'in/dev/b/2.png'), 'in', dict(val='in/dev'), '0a 1b',
                   '2b', ''),
    'Tiny ImageNet as downloaded': (TINY, 'in', dict(val_labels='in/val/val_annotations.txt'), '0n1 1n2',
                                    '3n1 2n2',
                                    'The test split is left out: it has images'),
    'ImageNet as downloaded': (ILSVRC, CLS, dict(val_labels='in/LOC_val_solution.csv'), '0n1 1n2', '3n1 2n2',
                               'The test split is left out: it has pictures'),
    'val and its list': (ILSVRC, f'{CLS}/train', dict(val=f'{CLS}/val', val_labels='in/LOC_val_solution.csv'),
                         '0n1 1n2',
                         '3n1 2n2', ''),
    'brackets and stars': (numbered('my [s] * ?/train/[a]/0*.png', 'my [s] * ?/train/b?/1.png',
                                    'my [s] * ?/val/[a]/2.png'),
                           'my [s] * ?', {}, '0[a] 1b?', '2[a]', ''),
    # tables
    'tables': ({'in/data/train-00000-of-00001-b42a775f407cee45.parquet': TWO, 'in/data/._train.parquet': b'',
                'in/data/valid-00000-of-00001.PARQUET': table([(2, 1)], names='cat dog'), 'in/README.md': ''},
                'in', {},
               '0cat 1dog', '2dog', 'left out: 2 files (README.md, data/._train.parquet)'),
    'folders of tables': ({'in/x/train/0.parquet': TWO, 'in/x/validation/0.parquet': TWO}, 'in', {},
                          '0cat 1dog',
                          '0cat 1dog', ''),
    'labels by name across files': (
        {'in/train-00000-of-00002.parquet': TWO,
         'in/train-00001-of-00002.parquet': table([(2, 0), (3, 1)], names='dog cat', extra=[1, 2]),
         'in/validation.parquet': table([(4, 0), (5, 1)], names='dog cat')}, 'in', {}, '0cat 1dog 2dog 3cat',
         '4dog 5cat', ''),
    'labels by name across files, the other way around': (
        {'in/train-00000-of-00002.parquet': table([(2, 0), (3, 1)], names='dog cat'),
         'in/train-00001-of-00002.parquet': TWO, 'in/validation.parquet': TWO}, 'in', {},
        '2dog 3cat 0cat 1dog', '0cat 1dog', ''),
    'shards that are missing': (
        {'in/train-00000-of-00004.parquet': TWO, 'in/train-00003-of-00004.parquet': TWO,
         'in/val.parquet': TWO},
        'in', {}, '0cat 1dog 0cat 1dog', '0cat 1dog', 'only 2 of 4 shards are here.'),
    'names that do not occur': ({'in/train.parquet': table([(0, 2), (1, 0)], names='a b c'),
                                 'in/val.parquet': table([(2, 1)], names='a b c')}, 'in', {}, '0c 1a', '2b',
                                 ''),
    'a table of another name': ({'in/x.parquet': TWO, 'y.parquet': table([(2, 'dog')])}, 'in',
                                dict(val='y.parquet'),
                                '0cat 1dog', '2dog', ''),
    **{f'labels {train} and {val}': (
        {'in/train.parquet': table(list(enumerate(train))), 'in/val.parquet': table(list(enumerate(val)))},
        'in', {},
        ' '.join(f'{i}{y}' for i, y in enumerate(train)), ' '.join(f'{i}{y}' for i, y in enumerate(val)),
        words)
       for train, val, words in (([1, 2, 3], [2], 'The name of each class is its label'), ([0, 2, 7], [5],
                                                                                           ''),
                                 ([20_000_000, 3], [3], ''), ([False, True], [True], ''), (['x', 'a'], ['x'],
                                                                                           ''))},
    **{f'a test split with {labels}': (
        {'in/train.parquet': TWO, 'in/validation.parquet': TWO,
         'in/test.parquet': table(list(enumerate(labels)), label='label' if labels else '')}, 'in', {},
         '0cat 1dog',
        '0cat 1dog', 'The test split of in is left out, because it has rows without a label of train')
       for labels in ([], [-1, -1], [None, 0], [0, 7], [[0], [1]])},
    'val from train': ({'in/train.parquet': table([(i, 0) for i in range(4)], names='a b'),
                        'in/test.parquet': TWO}, 'in',
                       dict(val_from_train=1), '0a 1a 3a', '2a', ''),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_pictures_are_read_exactly(name, capsys):
    files, dataset, keys, train, val, words = ACCEPTED[name]
    write(files)
    prepare(dataset, **keys)
    assert (found('train'), found('val')) == (train, val)
    assert words in capsys.readouterr().out


def unclear(perhaps, command, *paths):
    return numbered(*paths), 'in', {}, (
        f'The names in in do not tell train from val ({perhaps}). State it with {command} or, if all of it '
        f'is training '
        'data, with --val_fraction=0.1.')


def no_label(split, label, *tables):
    return dict(zip(('in/train.parquet', 'in/val.parquet'), tables)), 'in', {}, (
        f'The {split} split of in has the label {label}, which is not one of the classes (cat, dog). '
        f'Correct it, or choose '
        'another column with --label_column.')


NEEDS = 'Set --dataset to a folder with CLASS/**, SPLIT/CLASS/** or parquet files.'
ODD_LABELS = ('The labels of in are not whole numbers or names in all files. Choose another column with '
              '--label_column.')
REFUSED = {
    'no folder': ({}, 'imagenet', {}, 'There is no folder imagenet. Check the path, or use synthetic, '
                                      'cifar10, cifar100, '
                  'tiny-imagenet, imagenet-1k or OWNER/NAME as --dataset.'),
    'a file': (BOTH, 'in/val/a/2.png', {}, f'in/val/a/2.png is not a folder. {NEEDS}'),
    'nothing': ({'in/a.txt': ''}, 'in', {}, f'in holds no pictures. {NEEDS}'),
    'save_to_disk': ({'in/data.arrow': b''}, 'in', {}, 'in was written by save_to_disk. Convert each of its '
                                                       'splits to '
                     'parquet: python -c "import datasets; '
                     'datasets.load_from_disk(\'SPLIT\').to_parquet(\'NEW/train.parquet\')"'),
    'two kinds': ({**BOTH, 'in/train.parquet': TWO}, 'in', {}, 'in holds both pictures (in/train/a/0.png) '
                                                               'and tables '
                  '(in/train.parquet). Move one kind out of it.'),
    'flat train': (numbered('in/train/0.png', 'in/train/1.png'), 'in', {},
                   'The training pictures of in are not in class '
                   'folders. Move each to train/CLASS/.'),
    'flat': (numbered('in/0.png', 'in/1.png'), 'in', {}, 'in has no folder of training pictures. It needs '
                                                         'CLASS/** or '
             'train/CLASS/**.'),
    'flat val': (numbered('in/train/a/0.png', 'in/val/1.png'), 'in', {},
                 'The pictures of in/val are not in the class '
                 'folders of train. Use --val_labels=FILE (a name and a class in each line), or move each to '
                 'in/val/CLASS/.'),
    'Tiny ImageNet': (TINY, 'in', {}, 'The pictures of in/val are not in the class folders of train. Use '
                      '--val_labels=in/val/val_annotations.txt, or move each to in/val/CLASS/.'),
    'ImageNet': (ILSVRC, CLS, {}, f'The pictures of {CLS}/val are not in the class folders of train. Use '
                 f'--val_labels=HERE/in/LOC_val_solution.csv, or move each to {CLS}/val/CLASS/.'),
    'another list': ({**TINY, 'list': 'val_0.JPEG n2\nval_1.JPEG n9'}, 'in', dict(val_labels='list'),
                     'list states no class of train for 1 validation pictures (in/val/images/val_1.JPEG: '
                     'n9). Use the list '
                     'of this data set.'),
    'a list for nothing': ({**TEN, 'list': ''}, 'in', dict(val_labels='list'),
                           '--val_labels=list needs validation pictures. '
                           'Put them into val/, or use --val=FOLDER.'),
    'another class': (numbered('in/train/a/0.png', 'in/val/a/1.png', 'in/val/b/2.png'), 'in', {},
                      'The class b is in in/val but not in train, whose folders are the classes. Rename or '
                      'remove it.'),
    'one folder': (numbered('in/a/0.png', 'in/a/1.png'), 'in', {}, 'in has pictures in one folder only (a). '
                                                                   'Sort them into '
                   'at least two class folders.'),
    'a folder around': (
        numbered('in/x/a/0.png', 'in/x/b/1.png'), 'in', {},
        'in has one class, x, and it holds folders only. If those are the classes, use --dataset=in/x.'),
    'seg_train/seg_train': (
        numbered('in/seg_train/seg_train/a/0.png', 'in/seg_train/seg_train/b/1.png',
                 'in/seg_test/seg_test/a/2.png'), 'in', {},
        'in has one class, seg_train, and it holds folders only. If those are the classes, use '
        '--dataset=in/seg_train/seg_train --val=in/seg_test/seg_test.'),
    'sets': (numbered('in/s1/train/a/0.png', 'in/s1/val/a/1.png', 'in/s2/train/a/2.png'), 'in', {},
             'in/s1 looks like a data set of its own. Use --dataset=in/s1.'),
    'no val': (numbered('in/train/a/0.png', 'in/train/b/1.png'), 'in', {},
               'in has no validation split. State it with '
               '--val=FOLDER, or hold out --val_from_train=1 pictures, or --val_fraction=0.1 of each class.'),
    'too many': (TEN, 'in', dict(val_from_train=10), 'val_from_train=10 is out of range for 10 training '
                                                     'pictures. Use '
                 '--val_from_train=N with N from 0 to 9.'),
    'too few': (numbered('in/a/0.png', 'in/b/1.png'), 'in', {}, 'No class has two pictures, so none can be '
                                                                'held out. Add '
                'pictures, or use --val=FOLDER.'),
    'val twice': (BOTH, 'in', dict(val_fraction=0.5), 'in has validation data by its names. Leave '
                                                      '--val_fraction out, or '
                  'give the training data alone as --dataset.'),
    'a share out of range': (TEN, 'in', dict(val_fraction=1), 'val_fraction=1 is out of range. Use '
                                                              '--val_fraction with a '
                             'value from 0 to 0.99.'),
    'trainset': unclear('test: testset; train: trainset', '--dataset=in/trainset --val=in/testset',
                        'in/trainset/a/0.png', 'in/trainset/b/1.png', 'in/testset/a/2.png'),
    'a class called test': unclear('neither: control; test: test; train: train',
                                   '--dataset=in/train --val=in/test',
                                   'in/control/0.png', 'in/test/1.png', 'in/train/2.png'),
    'pictures and val': unclear('neither: pictures; val: val', '--dataset=in/pictures --val=in/val',
                                'in/pictures/a/0.png', 'in/pictures/b/1.png', 'in/val/a/2.png'),
    'train and more': unclear('neither: extra; train: train', '--dataset=in/train --val=in/VAL',
                              'in/train/a/0.png',
                              'in/train/b/1.png', 'in/extra/a/2.png'),
    # tables
    'a label of no name': no_label('val', 2, TWO, table([(0, 2)], names='cat dog')),
    'a label below': no_label('train', -1, table([(0, -1)], names='cat dog'), TWO),
    'names and numbers': no_label('val', 0, TWO, table([(0, 0)])),
    'floats': ({'in/train.parquet': table([(0, 0.5)])}, 'in', {}, ODD_LABELS),
    'lists': ({'in/train.parquet': table([(0, [0])])}, 'in', {}, ODD_LABELS),
    'none': ({'in/train.parquet': table([(0, 0), (1, None)])}, 'in', {}, ODD_LABELS),
    'another column': ({'in/train.parquet': TWO}, 'in', dict(label_column='class'),
                       'in/train.parquet has no column class. '
                       'Set --label_column to one of image, label.'),
    'a partial export': ({'in/partial-train/0.parquet': TWO}, 'in', {},
                         'in/partial-train/0.parquet is part of an export '
                         'that the Hub cut short. Download the whole data set.'),
    'two folders': ({'in/a/train.parquet': TWO, 'in/b/train.parquet': TWO}, 'in', {},
                    'The train files of in are in several '
                    'folders (in/a, in/b). Choose one of them with --dataset=FOLDER.'),
    'a pointer': ({'in/train.parquet': b'version https://git-lfs.github.com/spec/v1\n'}, 'in', {},
                  'in/train.parquet is a pointer of git-lfs to the real file. Fix: git lfs pull'),
    'no train': ({'in/val.parquet': TWO}, 'in', {}, 'in has no training files. Name them like '
                                                    'train-00000-of-00001.parquet.'),
    'a table beside two splits': (
        {'in/train-1.parquet': TWO, 'in/extra.parquet': TWO, 'in/val.parquet': TWO}, 'in', {},
        'The names in in do not tell train from val (neither: extra.parquet; train: train-1.parquet; val: '
        'val.parquet). State '
        'it with --dataset=in/train-1.parquet --val=in/val.parquet or, if all of it is training data, with '
        '--val_fraction=0.1.'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_pictures_are_refused_in_one_sentence(name):
    files, dataset, keys, sentence = REFUSED[name]
    write(files)
    assert refused(dataset, **keys) == sentence.replace('HERE', os.getcwd())


def test_a_table_that_is_damaged_behind_its_head():
    raw = table([(i % 20, i % 2) for i in range(200)])
    write({'in/train.parquet': raw[:20] + bytes(300) + raw[320:], 'in/val.parquet': raw,
           'torn/train.parquet': b'PAR1 and'})
    said = refused('in')
    assert said.startswith(('in/train.parquet is damaged after row', 'in/train.parquet cannot be read as'))
    assert refused('torn').startswith('torn/train.parquet cannot be read as parquet (')


def test_each_folder_is_read_once(capsys):
    write(BOTH | {f'else/{i}.png': 9 for i in range(5)})
    for link, to in (('train/a/parent', '..'), ('train/a/sister', '../b'), ('train/b/val', '../../val'),
                     ('train/b/itself', '.'), ('train/loop', '..'), ('train/a/more', '../../../else'),
                     ('train/b/more too', '../../../else'), ('train/a/gone.png', 'nowhere'), ('train/b/all',
                                                                                              '../../..')):
        Path('in', link).symlink_to(to)
    os.mkfifo('in/train/a/pipe.png')
    prepare('in')
    assert (found('train'), found('val')) == ('0a 9a 9a 9a 9a 9a 1b', '2a 3b')  # of a folder elsewhere, once
    assert 'left out: 9 files (train/a/gone.png, train/a/parent, ' in capsys.readouterr().out

# -----------------------------------------------------------------------------
# pixels


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


def texts(n):
    info = PngInfo()
    for i in range(n):
        info.add_text(f'key {i}', 'x' * 1_500_000, zip=True)
    return info


GREY = np.arange(0, 256, 4, dtype=np.uint16).reshape(8, 8)  # 0 to 252, what every kind of file below shows
EIGHT = Image.fromarray(GREY.astype(np.uint8))
RGB = np.stack([GREY] * 3, -1)
OPAQUE = np.full((8, 8, 1), 65535, np.uint16)
SHOWN = {  # file name: its bytes
    'grey.png': encoded(EIGHT),
    'grey alpha.png': encoded(EIGHT.convert('LA')),
    'palette.gif': encoded(EIGHT, 'GIF', comment=b'x' * 70_000),
    'text.png': encoded(EIGHT, pnginfo=texts(1)),
    'texts.png': encoded(EIGHT, pnginfo=texts(50)),
    'profile.png': encoded(EIGHT, icc_profile=bytes(1_500_000)),
    '16 bits as 257.png': encoded(GREY * 257),
    '16 bits as 256.tif': encoded(GREY * 256, 'TIFF'),
    '16 bits big endian.tif': encoded((GREY * 256).astype('>u2'), 'TIFF'),
    '16 bits lzw.tif': encoded(GREY * 256 + 90, 'TIFF', compression='tiff_lzw'),
    '16 bits white is 0.tif': encoded(65535 - GREY * 257, 'TIFF', tiffinfo={262: 0}),
    '8 bits white is 0.tif': encoded(EIGHT, 'TIFF', tiffinfo={262: 0}),  # Pillow turns it
    '16 bits.ppm': encoded(GREY * 257, 'PPM'),
    '12 bits that say so.pgm': pgm(GREY.astype(int) * 4095 // 255, 4095),
    '12 bits that say so.tif': tiff12(GREY << 4),
    '16 bits rgb.png': png16(RGB * 257),
    '16 bits rgba.png': png16(np.concatenate([RGB * 257, OPAQUE], -1)),
    '16 bits grey alpha.png': png16(np.concatenate([GREY[..., None] * 257, OPAQUE], -1)),
}
TORN = bytearray(encoded(smooth_picture(20, 10), 'TIFF', compression='tiff_lzw'))
TORN[60:100] = b'\xff' * 40  # libtiff prints
UNCLEAR = {
    'int32.tif': (encoded(GREY.astype(np.int32) * 10_000_000, 'TIFF'), '32-bit'),
    'float.tif': (encoded(GREY.astype(np.float32) / 255, 'TIFF'), '32-bit'),
    '12 bits in 16.png': (encoded(GREY * 16 + 3), '10, 12 or 14'),
    '12 bits in 16.tif': (encoded(GREY * 16 + 3, 'TIFF'), '10, 12 or 14'),
    '12 bits in 16.pgm': (pgm(GREY * 16 + 3, 65535), '10, 12 or 14'),
    '12 bits in 16 rgb.png': (png16(RGB * 16 + 3), '10, 12 or 14'),
    'no picture.png': (b'no picture', 'cannot read this format'),
    'pointer.png': (b'version https://git-lfs.github.com/spec/v1\n', '`git lfs pull` fetches the picture'),
    'empty.png': (b'', 'the file is empty'),
    'torn.tif': (bytes(TORN), ''),
    'bomb.png': (encoded(Image.new('1', (20_000, 20_000))), 'exceeds limit'),
}


def test_every_kind_of_pixels_is_right_or_left_out_by_name(capfd):
    write(BOTH | {f'in/train/a/{name}': raw for name, raw in SHOWN.items()})
    write({f'in/train/a/{name}': raw for name, (raw, _) in UNCLEAR.items()})
    prepare('in')
    images, _, meta = load_images(Path('out'), 'train')
    assert len(images) == len(SHOWN) + 2
    for name, image in zip(sorted([*SHOWN, '0.png']), images):
        if name != '0.png':  # Pillow rounds the 12 bits of a PGM
            assert abs(image - RGB.astype(int)).max() <= ('say so.pgm' in name), name
    why = {Path(name).name: reason for name, reason in meta['skipped']}
    assert set(why) == set(UNCLEAR)
    for name, reason in why.items():
        assert UNCLEAR[name][1] in reason, (name, reason)
    said, errors = capfd.readouterr()
    assert f'{len(UNCLEAR)} pictures were skipped (meta.json lists all of them):' in said
    assert 'TIFF' not in errors and 'arn' not in errors, errors
    # as JPEGs, too
    write({'in/train/b/large.jpg': encoded(smooth_picture(300, 280), 'JPEG')})
    prepare('in', 'jpegs')
    assert {Path(name).name for name, _ in load_images(Path('jpegs'), 'train')[2]['skipped']} == set(UNCLEAR)
    # a dark picture of 8 bits stays what it is
    dark = (np.arange(64).reshape(8, 8) // 16).astype(np.uint16)
    for step in (256, 257):
        assert (np.asarray(pictures.to_rgb(pictures.open_picture(encoded(dark * step))[0]))[...,
                                                                                            0] == dark).all()


def test_one_picture_that_needs_too_much_memory_is_left_out(monkeypatch):
    write(BOTH)
    real = pictures.to_rgb

    def hungry(image):
        rgb = real(image)
        if rgb.getpixel((0, 0))[0] == 15:
            raise MemoryError
        return rgb
    monkeypatch.setattr(pictures, 'to_rgb', hungry)
    prepare('in')
    assert found('train') == '0a'
    assert load_images(Path('out'), 'train')[2]['skipped'] == [['in/train/b/1.png', 'MemoryError']]


@pytest.mark.parametrize('size, layout', [((96, 96), 'arrays'), ((97, 97), 'jpeg'), ((64, 48), 'jpeg')])
def test_only_small_squares_become_arrays(size, layout):
    write({path: encoded(smooth_picture(*size, seed=i)) for path, i in BOTH.items()})
    prepare('in')
    images, _, meta = load_images(Path('out'), 'train')
    assert meta['layout'] == layout
    if layout == 'jpeg':
        assert Image.open(io.BytesIO(images[0])).size == size


def test_a_tiff_that_says_how_it_is_turned():
    """Pillow turns a TIFF, unlike a JPEG, when it decodes it."""
    write({path: encoded(smooth_picture(12, 8), 'TIFF', tiffinfo={274: 6}) for path in BOTH})
    prepare('in')
    turned = smooth_picture(12, 8).transpose(Image.Transpose.ROTATE_270)
    assert load_images(Path('out'), 'val')[0][0] == encoded(turned, 'JPEG', quality=95)


def test_prediction_sees_what_is_stored():
    """In arrays, exactly. Of JPEGs, it sees the file at its own size, without the rotation of EXIF."""
    write(BOTH | {f'in/val/a/{name}': raw for name, raw in SHOWN.items()})
    prepare('in')
    images, _, meta = load_images(Path('out'), 'val')
    seen = [np.asarray(picture) for _, picture, _ in pictures.pictures_in('in/val', meta, 8)]
    assert (np.stack(seen) == images).all()
    turned = Image.Exif()
    turned[0x0112] = 6
    write({'photo.jpg': encoded(smooth_picture(500, 300), 'JPEG', exif=turned)})
    (_, wide, _), = pictures.pictures_in('photo.jpg', meta, 8)  # its middle square
    want = Image.open('photo.jpg').resize((8, 8), Image.Resampling.BICUBIC, box=(100, 0, 400, 300))
    assert (np.asarray(wide) == np.asarray(want)).all()
    (_, photo, _), = pictures.pictures_in('photo.jpg', {'layout': 'jpeg', 'resize_short': 256}, 224)
    assert (np.asarray(photo) == np.asarray(Image.open('photo.jpg'))).all()


def test_prediction_goes_on_after_a_broken_picture():
    write(numbered('in/a.jpg', 'in/sub/c.jfif', 'in/Z.PNG') | {'in/._a.jpg': b'resource fork',
                                                               'in/notes.txt': ''})
    write({'in/b.jpg': Path('in/a.jpg').read_bytes()[:300]})
    Path('in/sub/up').symlink_to('../../in')
    seen = [(os.path.relpath(file, 'in'), picture is not None, why)
            for file, picture, why in pictures.pictures_in('in', {'layout': 'arrays'}, 8)]
    assert [row[:2] for row in seen] == [
        ('._a.jpg', False), ('Z.PNG', True), ('a.jpg', True), ('b.jpg', False), ('sub/c.jfif', True)]
    assert 'hidden' in seen[0][2] and 'truncated' in seen[3][2].lower()
    assert list(pictures.pictures_in('absent.jpg', {}, 8)) == [('absent.jpg', None,
                                                                'No such file or directory')]

# -----------------------------------------------------------------------------
# what a run does with them


class OneProcess:
    """As much of support.distributed.start() as Images needs."""
    device, device_type, world_size = torch.device('cpu'), 'cpu', 1
    autocast = contextlib.nullcontext()

    def __init__(self):
        self.told = []
        self.say = self.told.append


RUN = dict(image_size=8, shift=2, eval_only=False, seed=1, num_workers=0, micro_batch_size=64,
           crop_scale=0.08,
           global_batch_size=64, randaugment=0.0, interpolation='bicubic')


def test_a_run_says_when_jpegs_are_smaller_than_it_looks_at():
    write({path: encoded(smooth_picture(20, 30), 'JPEG') for path in BOTH})
    prepare('in', resize_short=16)
    for size, said in ((14, []), (15, [
            'The JPEGs were stored with a short side of at most 16 pixels, but image_size=15 looks at 17. '
            'For sharper '
            'pictures, prepare them again: python prepare_imagenet.py --resize_short=17 --overwrite=True.'])):
        env = OneProcess()
        Images('out', RUN | {'image_size': size}, env).open('train')
        assert env.told == said
    prepare('in', 'all', resize_short=0)
    env = OneProcess()
    Images('all', RUN | {'image_size': 384}, env).open('train')
    assert env.told == []


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5])
def test_shifts_of_tiny_pictures_are_right_or_refused(size):
    """The reflected picture of NumPy's pad, cut out, for every shift."""
    write({path: encoded(noise_picture(size, size, i)) for path, i in BOTH.items()})
    prepare('in')
    with pytest.raises(SystemExit) as stop:
        Images('out', RUN | {'image_size': size, 'shift': size}, OneProcess()).open('train')
    assert stop.value.code == (f'shift={size} is too large for pictures of {size} x {size}. Set --shift to '
                               f'less '
                               f'than {size}.')
    pad = size - 1
    data = Images('out', RUN | {'image_size': size, 'shift': pad}, OneProcess())
    data.open('train')
    picture = data.splits['train'][0][0].numpy()
    padded = np.pad(picture, [(pad, pad), (pad, pad), (0, 0)], 'reflect') if pad else picture
    shifts = [(dy, dx, flip) for dy in range(-pad, pad + 1) for dx in range(-pad, pad + 1) for flip in (0, 1)]
    images = torch.from_numpy(picture).permute(2, 0, 1).expand(len(shifts), -1, -1, -1)
    for view, (dy, dx, flip) in zip(augment.pad_crop_flip(images, torch.tensor(shifts)), shifts):
        want = padded[pad + dy:pad + dy + size, pad + dx:pad + dx + size]
        assert (view.permute(1, 2, 0).numpy() == (want[:, ::-1] if flip else want)).all()


def test_a_photo_is_seen_at_its_own_size():
    """As timm crops it: the short side at image_size * 8 / 7 of the photo itself, not of 256 pixels."""
    photo = noise_picture(700, 600)
    write({'in/photo.png': encoded(photo), 'in/thin.png': encoded(Image.new('L', (1, 20_000)))})
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(1, 2)
    meta = dict(layout='jpeg', classes=['a', 'b'], mean=[0.5] * 3, std=[0.5] * 3, resize_short=256)
    env = OneProcess()
    data = Images('none', RUN | {'image_size': 384}, env, meta)
    predict_files('in', Model(), data)
    box = Image.fromarray(np.asarray(photo)).resize((438 * 700 // 600, 438), Image.Resampling.BICUBIC)
    left = round((box.width - 384) / 2)
    want = np.asarray(box.crop((left, 27, left + 384, 27 + 384)))
    assert (((seen[0][0].permute(1, 2, 0) + 1) * 127.5).round().numpy() == want).all()
    assert env.told == [env.told[0], 'in/photo.png: a 50.0%, b 50.0%', 'in/thin.png: a 50.0%, b 50.0%']
    assert 'python prepare_imagenet.py --resize_short=438' in env.told[0]


def test_the_loader_does_not_warn():
    """About EXIF that was cut: such a file keeps its bytes."""
    exif = Image.Exif()
    exif[0x010f] = 'maker'
    cut = encoded(smooth_picture(20, 10), 'JPEG', exif=exif.tobytes()[:-8])
    write(dict.fromkeys(BOTH, cut))
    prepare('in')
    data = Images('out', RUN, OneProcess())
    data.open('train')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert len(list(data.jpegs('train', [[(None, 0), (0, 1)]]))) == 1


def test_too_little_shared_memory_gets_a_sentence(monkeypatch):
    write({path: encoded(smooth_picture(20, 30), 'JPEG') for path in BOTH})
    prepare('in')
    data = Images('out', RUN | {'num_workers': 3}, OneProcess())
    data.open('train')
    monkeypatch.setattr(os.path, 'isdir', lambda path: True)
    monkeypatch.setattr(os, 'statvfs', lambda path: types.SimpleNamespace(f_bavail=16, f_frsize=4096))
    with pytest.raises(SystemExit) as stop:
        list(data.jpegs('train', [[(None, 0)]]))
    assert stop.value.code == (
        '/dev/shm has 0.1 MB free, but 3 processes that read pictures need 0.1 MB. Use a lower '
        '--num_workers (0 needs '
        'none), or give the container more (docker run --shm-size=2g).')
