"""Text as people have it: prepare_owt.py reads it exactly right or says in one sentence what to do."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prepare_owt
from support.splits import prepared_name, split_of, split_of_path
from support.textfiles import ENDINGS
from tests.common import prepared

DEFAULTS = {key: getattr(prepare_owt, key) for key in (
    'val', 'val_fraction', 'out_dir', 'text_column', 'max_docs', 'revision')}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))


def lines(*texts):
    return b''.join(json.dumps({'text': text}).encode() + b'\n' for text in texts)


def table(*texts, **columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns or {'text': list(texts)}), file)
    return file.getvalue()


def zstd(raw):
    return pa.Codec('zstd').compress(raw).to_pybytes()


def write(files):
    for path, content in files.items():
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def prepare(dataset, out='out', **keys):
    """-> the documents of train and of val"""
    prepare_owt.main({**DEFAULTS, 'dataset': str(dataset), 'tokenizer': 'byte', 'num_proc': 1, 'out_dir': out,
                      'overwrite': True, **keys})
    assert {path.name for path in Path(out).iterdir()} == {'train.bin', 'val.bin', 'meta.json'}
    return list(prepared(Path(out))[:2])


WORDS = 'na\u00efve \u042d\u0442\u043e \u4e2d\u6587 \U0001f600\r\nline 2\n'
ABC = lines('a', 'b', 'c')
FRAME = b'\x50\x2a\x4d\x18' + struct.pack('<I', 4) + b'skip'  # which zstd skips
# name: files; dataset; keys; train and val, or the documents of both, if it is cut from train
ACCEPTED = {
    'a text is cut behind a line': (
        {'a.txt': 'w\n' + 'x' * 90 + '\nz'}, 'a.txt', {}, [['w\n' + 'x' * 90 + '\n'], ['z']]),
    'without lines, behind a character': (
        {'a.log': '\u00e9' * 50}, 'a.log', {}, [['\u00e9' * 45], ['\u00e9' * 5]]),
    'at the share that is asked for': (
        {'a.txt': '1\n2\n3\n4\n'}, 'a.txt', dict(val_fraction=0.6), [['1\n2\n'], ['3\n4\n']]),
    'the mark of UTF-8 is dropped, lines end as they do, a zero byte is a byte': (
        {'in/a.txt': b'\xef\xbb\xbf' + WORDS.encode(), 'in/b.txt': WORDS, 'in/c.txt': 'x\0' + 'y' * 98},
        'in', {}, [WORDS, WORDS, 'x\0' + 'y' * 98]),
    'packed texts of any name': (
        {'in/a.txt': gzip.compress(WORDS.encode()), 'in/b.md.BZ2': bz2.compress(b'b'),
         'in/c.txt.xz': lzma.compress(b'c'), 'in/d.txt.zst': FRAME + zstd(b'd'),
         'in/e.txt': gzip.compress(b'e1 ') + gzip.compress(b'e2')}, 'in', {},
        [WORDS, 'b', 'c', 'd', 'e1 e2']),
    'packed json lines of any name': (
        {'in/a.JSONL': b'\xef\xbb\xbf' + ABC, 'in/b.ndjson.gz': gzip.compress(lines('d')),
         'in/c.json.bz2': bz2.compress(lines('e')), 'in/D.JSONL.XZ': lzma.compress(lines('f')),
         'in/e.jsonl.zst': zstd(lines('g'))}, 'in', {}, ['a', 'b', 'c', 'd', 'e', 'f', 'g']),
    'odd lines of json': (
        {'a.json': b'{"text": "a\\ud800b"}\r\n\n  \n{"text": null}\n{"text": "\\ud83d\\ude00", "id": '
         + b'9' * 5000 + b'}'}, 'a.json', {}, ['', 'a\ufffdb', '\U0001f600']),
    'another key of json': (
        {'a.jsonl': b'{"body": "a"}\n{"body": "b"}'}, 'a.jsonl', dict(text_column='body'), ['a', 'b']),
    'tables of other writers': (
        {'in/a.parquet': table('one', 'two'), 'in/b.parquet': table(text=['three'], extra=[1]),
         'in/c.parquet': table(text=pa.array([], pa.string())), 'in/d.PARQUET': table(text=[b'zw\xc3\xb6lf']),
         'in/e.parquet': table(text=pa.array(['e', None]).dictionary_encode()),
         'in/f.parquet': table(text=pa.array(['f'], pa.large_string()))}, 'in', {},
        ['one', 'two', 'three', 'zw\u00f6lf', 'e', '', 'f']),
    'a table of any name': ({'a.data': table('a', 'b')}, 'a.data', dict(val_fraction=0.5), ['a', 'b']),
    'brackets and stars': ({'a[1]*?/tr[ai]n{x}.parquet': table('a', 'b')}, 'a[1]*?', {}, ['a', 'b']),
    'splits by the names of files': (
        {'in/wiki-train.txt': 'a', 'in/wiki-valid.txt': 'b', 'in/wiki.test.tokens': 'c', 'in/README.md': 'd'},
        'in', {}, [['a'], ['b']]),
    'splits by the names of folders': (
        {'in/train/x/a.md': 'a', 'in/val/a.md': 'b', 'in/dev/a.md': 'c', 'in/test/a.md': 'd'}, 'in', {},
        [['a'], ['c', 'b']]),
    'splits of tables at any depth': (
        {'in/en/train-00000-of-00001-abc0.parquet': table('a'), 'in/dataset_infos.json': '{}',
         'in/en/validation-00000-of-00001.parquet': table('b')}, 'in', {}, [['a'], ['b']]),
    'validation data of another name': (
        {'in/part1.jsonl': ABC, 'in/part2.jsonl': lines('d'), 'held out/x.jsonl': lines('e')}, 'in',
        dict(val='held out'), [['a', 'b', 'c', 'd'], ['e']]),
    'validation data that lies in the dataset': (
        {'in/a.txt': 'a', 'in/b.txt': 'b', 'in/val.txt': 'c', 'in/test.txt': 'd'}, 'in',
        dict(val='in/val.txt'), [['a', 'b'], ['c']]),
    'a file of train is used whole if val is stated': (
        {'in/valset.txt': 'v', 'in/trainset.txt': 't'}, 'in/trainset.txt', dict(val='in/valset.txt'),
        [['t'], ['v']]),
    'unclear names say nothing if a share is stated': (
        {'in/a.txt': 'a', 'in/test_of_time.txt': 'b', 'in/val.txt': 'c'}, 'in', dict(val_fraction=0.3),
        ['a', 'b', 'c']),
    'source code says nothing': (
        {'in/train.py': 'a', 'in/val.py': 'b', 'in/README.md': 'c', 'in/package.json': '{}'}, 'in', {},
        ['a', 'b', 'c']),
    'the first documents of each split': (
        {'in/train.jsonl': ABC, 'in/val.jsonl': ABC}, 'in', dict(max_docs=2), [['a', 'b'], ['a', 'b']]),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_text_is_read_exactly(name):
    files, dataset, keys, wanted = ACCEPTED[name]
    write(files)
    train, val = prepare(dataset, **keys)
    if isinstance(wanted[0], list):
        assert [train, val] == wanted
    else:
        assert sorted(train + val) == sorted(wanted) and val


BOOKS = {'in/a.txt': 'fine', 'in/b.txt': 'fine'}
NEW = '-t UTF-8 FILE > NEW'
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
LONG_WINDOW = b'\x28\xb5\x2f\xfd\0' + bytes([21 << 3]) + struct.pack('<I', 5 << 3 | 1)[:3] + b'hello'
CUT = 'packed, but cannot be unpacked: it may be cut short. Fix: fetch it again'
NOTE = 'Fix: write one object per line, or set --text_column to the key of the text'
COLUMN = 'Fix: set --text_column to a column of text'
BAD = {  # a file among others, and what it is
    'utf-16': (WORDS.encode('utf-16'), f'UTF-16 text. Fix: iconv -f UTF-16 {NEW}'),
    'utf-32': (WORDS.encode('utf-32'), f'UTF-32 text. Fix: iconv -f UTF-32 {NEW}'),
    'utf-16 in gzip': (gzip.compress(WORDS.encode('utf-16')), f'UTF-16 text. Fix: iconv -f UTF-16 {NEW}'),
    'utf-16 without a mark': ('\u042d\u0442\u043e\n'.encode('utf-16-le') * 20, 'binary data, or UTF-16 '
                              f'without a byte order mark. Fix: iconv -f UTF-16LE {NEW}'),
    'a pointer': (LFS, 'a pointer of git-lfs to the real file. Fix: git lfs pull'),
    'zip': (b'PK\3\4' + bytes(99), 'a zip archive. Fix: unzip FILE'),
    'pdf': (b'%PDF-1.7\n', 'a PDF. Fix: pdftotext FILE'),
    'tar': (gzip.compress(b'x' * 257 + b'ustar\0' + b'x' * 300), 'a tar archive. Fix: tar -xf FILE'),
    'twice': (gzip.compress(gzip.compress(b'text')), 'packed twice. Fix: unpack it once'),
    'cut gzip': (gzip.compress(os.urandom(5000))[:3000], CUT),
    'cut xz': (lzma.compress(os.urandom(5000))[:3000], CUT),
    'cut zstd': (b'\x28\xb5\x2f\xfd' + bytes(99), CUT),
    'long window': (LONG_WINDOW, 'packed by zstd with a long window. Fix: zstd -d --long=31 FILE'),
    'parquet as txt': (table('a'), 'a parquet file. Fix: mv FILE FILE.parquet'),
}
ODD = {  # a line of json among others, and why it has no text
    'cut': (b'{"text": "cut', 'Invalid control character at: line 1 column 14 (char 13)'),
    'no object': (b'3', 'it has float'),
    'other keys': (b'{"body": "a", "id": 1}', 'its keys are body, id'),
    'no text': (b'{"text": ["a"]}', 'it has list there'),
    'deep': (b'{"text": "x", "a": ' + b'[' * 200_000 + b']' * 200_000 + b'}',
             'maximum recursion depth exceeded while decoding a JSON array from a unicode string'),
}
UNCLEAR = {  # files in a folder, what their names say, the command that is proposed
    'train.txt val.txt notes.txt': ('neither: notes.txt; train: train.txt; val: val.txt',
                                    '--dataset=in/train.txt --val=in/val.txt'),
    'a.txt b.txt c.txt d.txt dev.txt': ('neither: a.txt, b.txt, c.txt ...; val: dev.txt',
                                        '--dataset=in --val=in/dev.txt'),
    'trainset.txt valset.txt testset.txt': ('test: testset.txt; train: trainset.txt; val: valset.txt',
                                            '--dataset=in/trainset.txt --val=in/valset.txt'),
    'training/a.txt testing/b.txt': ('test: testing; train: training',
                                     '--dataset=in/training --val=in/testing'),
    'train_en.txt val_en.txt': ('train: train_en.txt; val: val_en.txt',
                                '--dataset=in/train_en.txt --val=in/val_en.txt'),
}
REFUSED = {  # files; dataset; keys; the sentence
    **{name: ({**BOOKS, 'in/b.txt': raw}, 'in', dict(val_fraction=0.5), f'in/b.txt is {what}')
       for name, (raw, what) in BAD.items()},
    **{f'a line: {name}': ({'a.jsonl': ABC + line + b'\n' + ABC}, 'a.jsonl', {},
                           f"a.jsonl, line 4 is no JSON object with text under 'text' ({why}). {NOTE}")
       for name, (line, why) in ODD.items()},
    **{names: (dict.fromkeys([f'in/{name}' for name in names.split()], 'text'), 'in', {},
               f'The names in in do not tell train from val ({perhaps}). State it with {command} or, if all '
               'of it is training data, with --val_fraction=0.1.')
       for names, (perhaps, command) in UNCLEAR.items()},
    'several of a kind': (
        {f'in/{i}.txt': 'caf\u00e9'.encode('latin1') for i in range(5)}, 'in', dict(val_fraction=0.5),
        'in/0.txt (byte 3), in/1.txt (byte 3), in/2.txt (byte 3) and 2 more are not UTF-8. '
        f'Fix: iconv -f ENCODING {NEW}'),
    'an array': ({'a.json': b' [\n{"text": "a"}]'}, 'a.json', {},
                 "a.json is a JSON array. Fix: jq -c '.[]' FILE > NEW.jsonl"),
    'no lines': ({'in/a.jsonl': b'', 'in/b.jsonl': b'\n'}, 'in', {},
                 'There is no text in in/a.jsonl, in/b.jsonl.'),
    'other columns': ({'a.parquet': table(body=['a'], id=[1])}, 'a.parquet', {},
                      "a.parquet is without text under 'text' (its columns are body: string, id: int64). "
                      + COLUMN),
    'a column of numbers': ({'a.parquet': table(1, 2)}, 'a.parquet', {},
                            "a.parquet is without text under 'text' (its columns are text: int64). "
                            + COLUMN),
    'no rows': ({'a.parquet': table(text=pa.array([], pa.string()))}, 'a.parquet', {},
                'a.parquet holds no text to train on: its files of parquet have no rows.'),
    'a pointer as parquet': ({'a.parquet': LFS}, 'a.parquet', {},
                             'a.parquet is a pointer of git-lfs to the real file. Fix: git lfs pull'),
    'empty': ({'a.txt.gz': gzip.compress(b'')}, 'a.txt.gz', {}, 'a.txt.gz is an empty file.'),
    'too few': ({'a.jsonl': lines('a')}, 'a.jsonl', {},
                'a.jsonl has too few documents (1) to train and validate. A file of text, a line of json or '
                'a row of a table is one document: cut the text into more.'),
    'pictures': ({'in/a.png': b'\x89PNG'}, 'in', {},
                 'in holds no text but a.png. It needs '
                 f'files that end in {" ".join(sum(ENDINGS.values(), []))}.'),
    'save_to_disk': ({'in/data-00000-of-00001.arrow': b'ARROW1', 'in/state.json': '{}'}, 'in', {},
                     'in was written by save_to_disk. Convert each of its splits to parquet: python -c '
                     "\"import datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\""),
    'a prepared folder': ({'in/train.bin': b'', 'in/meta.json': '{}'}, 'in', {},
                          'in is prepared already. Use it with train_gpt.py --dataset=in.'),
    'two kinds': ({'in/a.jsonl': ABC, 'in/b.txt': 'b', 'in/README.md': 'c'}, 'in', {},
                  'in holds text (README.md, b.txt) and json lines (a.jsonl). Move all but one kind out of '
                  'it, or give a single file.'),
    'no such file': ({}, './not/there', {}, 'There is no file or folder ./not/there. Check the path.'),
    'no such val': (BOOKS, 'in', dict(val='gone'), 'There is no file or folder gone. Check the path.'),
    'val of another kind': ({**BOOKS, 'v.jsonl': ABC}, 'in', dict(val='v.jsonl'),
                            '--val=v.jsonl is json lines, but in is text. Give the same kind.'),
    'val and val_fraction': (BOOKS, 'in', dict(val='in/a.txt', val_fraction=0.1),
                             '--val only works if --dataset is a file or folder, and without --val_fraction. '
                             'Leave it out.'),
    'named val and val_fraction': ({'in/train.txt': 'a', 'in/val.txt': 'b'}, 'in', dict(val_fraction=0.1),
                                   'in has validation data by its names. Leave --val_fraction out, or give '
                                   'the training data alone as --dataset.'),
    'no train': ({'in/val.txt': 'a', 'in/test.txt': 'b'}, 'in', {},
                 'in has no training data: by their names, all files are for validation or test. Rename one '
                 'of them, or give it as --dataset.'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_text_is_refused_in_one_sentence(name):
    files, dataset, keys, sentence = REFUSED[name]
    write(files)
    with pytest.raises(SystemExit) as stop:
        prepare(dataset, out='nowhere', **keys)
    assert stop.value.code == sentence
    assert not Path('nowhere').exists()


@pytest.mark.parametrize('names, split', [
    ('train Train train-1 train-00000-of-00002 train-00000-of-00001-b42a775f train2017 StoriesTrain '
     'TinyStoriesV2-GPT4-train c4-train.00000-of-00002 imagenet_train', 'train'),
    ('val valid validation dev wiki-valid wiki.valid val-1 corpus-dev', 'val'),
    ('test wiki_test acid-test', 'test'),
    ('trainset training train_en train_data en_train_v2', 'train?'),
    ('valset val_en evaluation eval dev_notes', 'val?'), ('testing test_tube', 'test?'),
    ('trainspotting invalid devil latest contest part1 books caf\u00e9 2017 _', '')])
def test_what_a_name_says(names, split):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_the_first_part_of_a_path_that_says_something_counts():
    said = {'train/val.txt': 'train', 'a/dev/b.md': 'val', 'en/test.jsonl.gz': 'test', 'train.py': '',
            'a/b.txt': ''}
    assert {path: split_of_path(path) for path in said} == said


def test_what_is_found_is_printed(capsys):
    write({f'in/train-0000{i}-of-00004.txt': 'a' for i in (0, 3)})
    write({'in/val.txt': 'b', 'in/x.png': b'', 'in/.git/a': ''})
    prepare('in')
    assert capsys.readouterr().out.startswith(
        'in: text, train: 2 files (train-00000-of-00004.txt, train-00003-of-00004.txt), val: 1 file '
        '(val.txt), left out: 2 files (.git, x.png)\n'
        'train-*: only 2 of 4 shards are here. Download the others if you want their rows.\n')
    write({f'many/{i}.txt': 'a' for i in range(2000)})
    prepare('many', max_docs=5)
    assert ('train: 2,000 files (0.txt, 1.txt, 10.txt ...), val: 0 files, left out: 0 files\n'
            in capsys.readouterr().out)


def test_links_add_nothing_twice(capsys):
    write({f'set/deep/{i}.txt': f'text {i}' for i in range(4)} | {'elsewhere/far/5.txt': 'text 5'})
    for link, to in (('deep/up', '..'), ('deep/self', '.'), ('again', 'deep'), ('0.txt', 'deep/0.txt'),
                     ('nowhere.txt', 'gone.txt'), ('loop', 'loop'), ('one', '../elsewhere'),
                     ('two', '../elsewhere')):
        Path('set', link).symlink_to(to)
    Path('elsewhere/back').symlink_to('../set')
    Path('elsewhere/home').symlink_to('..')
    os.mkfifo('set/pipe.txt')
    assert sorted(sum(prepare('set'), [])) == ['text 0', 'text 1', 'text 2', 'text 3', 'text 5']
    assert 'train: 5 files' in capsys.readouterr().out
    # links into a store are files, as the cache of the Hub and git-annex keep them
    for i in range(3):
        write({f'cache/blobs/{i}': f'text {i}', f'annex/.git/{i}.txt': f'text {i}'})
        Path(f'cache/{i}.txt').symlink_to(f'blobs/{i}')
        Path(f'annex/{i}.txt').symlink_to(f'.git/{i}.txt')
    for name in 'cache', 'annex':
        assert sorted(sum(prepare(name), [])) == ['text 0', 'text 1', 'text 2']


def test_the_name_of_a_prepared_folder():
    names = {'mytext.txt': 'mytext', 'in/my.text.TXT': 'my.text', 'mytext.txt.gz': 'mytext',
             'a.jsonl.zst': 'a', 'book': 'book', 'odd.ending': 'odd', 'gone.txt': 'gone',
             'gone.jsonl.gz': 'gone', 'folder.v1': 'folder.v1', 'folder.txt': 'folder.txt',
             'folder.v1/': 'folder.v1', 'stdlib': 'stdlib', 'owner/set': 'set',
             'owner/set-1.5:config': 'set-1.5-config'}
    write(dict.fromkeys(list(names)[:6], 'x'))
    for folder in 'folder.v1', 'folder.txt':
        Path(folder).mkdir()
    assert {dataset: prepared_name(dataset) for dataset in names} == names
    assert {dataset: prepared_name(os.path.abspath(dataset)) for dataset in names} == names


def test_ids_past_65536_take_four_bytes(monkeypatch):
    monkeypatch.setitem(prepare_owt.VOCAB, 'byte', 70_000)
    write({'a.jsonl': ABC})
    assert sorted(sum(prepare('a.jsonl'), [])) == ['a', 'b', 'c']
    assert np.fromfile('out/val.bin', '<u4')[-1] == 69_999
