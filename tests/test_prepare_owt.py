"""Text as people have it: prepare_owt.py reads it exactly right or says in one sentence what to do."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import signal
import struct
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

import prepare_owt
from support import tokenizers
from support.splits import RULE, prepared_name, split_of_path
from support.textfiles import KINDS, find_files
from support.writing import run, workplace
from tests import common
from tests.common import NOBODY, ROOT, TEXTS, finish, nanogpt_split, parquet, prepared, python

DEFAULTS = {key: getattr(prepare_owt, key) for key in (
    'val', 'val_fraction', 'out_dir', 'text_column', 'max_docs', 'revision')}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizers.open_gpt2.cache_clear()


def lines(*texts):
    return b''.join(json.dumps({'text': text}).encode() + b'\n' for text in texts)


def write(files):
    for path, content in files.items():
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def prepare(dataset, out='out', **keys):
    """-> the documents of train and of val"""
    run(prepare_owt.main, {**DEFAULTS, 'dataset': str(dataset), 'tokenizer': 'byte', 'num_proc': 1,
                           'out_dir': out, 'overwrite': True, **keys})
    return list(prepared(Path(out))[:2])


def place(files):
    """Writes files into the folder in -> the dataset: that folder, or the file if it is the only one"""
    write({f'in/{path}': content for path, content in files.items()})
    return 'in' if len(files) > 1 else f'in/{next(iter(files))}'


def refusal(dataset, out='out', **keys):
    with pytest.raises(SystemExit) as stop:
        prepare(dataset, out, **keys)
    return stop.value.code


def digests(folder='out'):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


# ---- what is taken

WORDS = 'na\u00efve \u042d\u0442\u043e \u4e2d\u6587 \U0001f600\r\nline 2\n'
ABC = lines('a', 'b', 'c')
FRAME = b'\x50\x2a\x4d\x18' + struct.pack('<I', 4) + b'skip'  # which zstd skips
# name: files; train and val, or the documents of both, if val is cut from train; keys
ACCEPTED = {
    'a text is cut behind a line': (
        {'a.txt': 'w\n' + 'x' * 90 + '\nz'}, [['w\n' + 'x' * 90 + '\n'], ['z']]),
    'without lines, behind a character': ({'a.log': '\u00e9' * 50}, [['\u00e9' * 45], ['\u00e9' * 5]]),
    'at the share that is asked for': (
        {'a.txt': '1\n2\n3\n4\n'}, [['1\n2\n'], ['3\n4\n']], dict(val_fraction=0.6)),
    'the mark of UTF-8 is dropped, lines end as they do, a zero byte is a byte': (
        {'a.txt': b'\xef\xbb\xbf' + WORDS.encode(), 'b.txt': WORDS, 'c.txt': 'x\0' + 'y' * 98},
        [WORDS, WORDS, 'x\0' + 'y' * 98]),
    'packed texts of any name': (
        {'a.txt': gzip.compress(WORDS.encode()), 'b.md.BZ2': bz2.compress(b'b'),
         'c.txt.xz': lzma.compress(b'c'), 'd.txt.zst': FRAME + pa.compress(b'd', 'zstd', asbytes=True),
         'e.txt': gzip.compress(b'e1 ') + gzip.compress(b'e2')},
        [WORDS, 'b', 'c', 'd', 'e1 e2']),
    'packed json lines of any name': (
        {'a.JSONL': b'\xef\xbb\xbf' + ABC, 'b.ndjson.gz': gzip.compress(lines('d')),
         'c.json.bz2': bz2.compress(lines('e')), 'D.JSONL.XZ': lzma.compress(lines('f')),
         'e.jsonl.zst': pa.compress(lines('g'), 'zstd', asbytes=True), 'meta.json': '{}'},
        ['a', 'b', 'c', 'd', 'e', 'f', 'g']),
    'odd lines of json': (
        {'a.json': b'{"body": "a\\ud800b", "id": []}\r\n\n  \n{"body": null, "id": "x"}\n'
         + b'{"body": "\\ud83d\\ude00\\r\\n"}'}, ['', 'a\ufffdb', '\U0001f600\r\n'],
        dict(text_column='body')),
    'tables of other writers': (
        {'a.parquet': parquet('one', 'two'), 'b.parquet': parquet(text=['three'], extra=[1]),
         'c.parquet': parquet(text=pa.array([], pa.string())), 'd.PARQUET': parquet(text=[b'zw\xc3\xb6lf']),
         'e.parquet': parquet(text=pa.array(['e', None]).dictionary_encode()),
         'f.parquet': parquet(text=pa.array(['f'], pa.large_string()))},
        ['one', 'two', 'three', 'zw\u00f6lf', 'e', '', 'f']),
    'brackets and stars beside what the Hub adds': (
        {'a[1]*?/train-00000-of-00001-abc0.parquet': parquet('a'), 'dataset_infos.json': '{}',
         'a[1]*?/validation.parquet': parquet('b'), 'README.md': ''}, [['a'], ['b']]),
    'splits by the names of files and folders': (
        {'wiki-train.txt': 'a', 'wiki-valid.txt': 'b', 'wiki.test.tokens': 'c', 'dev/x.txt': 'd'},
        [['a'], ['d', 'b']]),
    'validation data of another name': (
        {'part1.jsonl': ABC, 'part2.jsonl': lines('d'), '../held out/x.jsonl': lines('e')},
        [['a', 'b', 'c', 'd'], ['e']], dict(val='held out')),
    'a file of train is used whole if val is stated': (
        {'valset.txt': 'v', 'trainset.txt': 't'}, [['t'], ['v']],
        dict(dataset='in/trainset.txt', val='in/valset.txt')),
    'if val is stated, the rest is train': (
        {'train_a.txt': 'a', 'b.txt': 'b', 'val.txt': 'c', 'test.txt': 'd'}, [['b', 'a'], ['c']],
        dict(val='in/val.txt')),
    'unclear names say nothing if a share is stated': (
        {'a.txt': 'a', 'test_of_time.txt': 'b', 'val.txt': 'c'}, ['a', 'b', 'c'], dict(val_fraction=0.3)),
    'source code says nothing, and a README beside it is left out': (
        {'train.py': 'a', 'val.py': 'b', 'README.md': 'c', 'package.json': '{}', 'd/README.md': 'd'},
        ['a', 'b', 'd']),
    'json beside other json lines is data': ({'a.jsonl': ABC, 'b.json': ABC}, ['a', 'b', 'c'] * 2),
    'a README in val is left out': (
        {'a.txt': 'a', '../held/b.txt': 'b', '../held/README.txt': 'c'}, [['a'], ['b']], dict(val='held')),
    'a README alone is a text': ({'README.md': 'c\n' * 10}, [['c\n' * 9], ['c\n']]),
    'the first documents of each split': (
        {'train.jsonl': ABC, 'val.jsonl': ABC}, [['a', 'b'], ['a', 'b']], dict(max_docs=2)),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_text_is_read_exactly(name):
    files, wanted, *keys = ACCEPTED[name]
    train, val = prepare(**{'dataset': place(files), **(keys or [{}])[0]})
    assert {path.name for path in Path('out').iterdir()} == {'train.bin', 'val.bin', 'meta.json'}
    if isinstance(wanted[0], list):
        assert [train, val] == wanted
    else:
        assert sorted(train + val) == sorted(wanted) and val


def test_all_kinds_of_files_give_nanogpts_bins(monkeypatch, capsys):
    write({'lines/a.jsonl': lines(*TEXTS[:90]), 'lines/b.jsonl': lines(*TEXTS[90:]),
           'table/a.parquet': parquet(*TEXTS[:90]), 'table/b.parquet': parquet(*TEXTS[90:])})
    write({f'texts/{i:03}.txt': text for i, text in enumerate(TEXTS)})
    for num_proc, name in enumerate(('lines', 'table', 'texts'), 1):
        assert tuple(prepare(name, name, num_proc=num_proc)) == nanogpt_split(TEXTS)
        assert digests(name)['train.bin'] == digests('lines')['train.bin']
    assert '1 documents are empty. Each becomes a single end-of-text' in capsys.readouterr().out
    # that is what `datasets` itself calls the split
    from datasets import Dataset
    split = Dataset.from_dict({'text': TEXTS}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert (list(split['train']['text']), list(split['test']['text'])) == nanogpt_split(TEXTS)
    # ids past 65,536 take four bytes
    monkeypatch.setitem(tokenizers.VOCAB, 'byte', 70_000)
    assert tuple(prepare('texts')) == nanogpt_split(TEXTS)
    assert np.fromfile('out/val.bin', '<u4')[-1] == 69_999


def test_stdlib():
    train, val = prepare('stdlib', tokenizer='auto')
    meta = json.loads(Path('out/meta.json').read_text())
    wanted = dict(tokenizer='byte', vocab_size=257, dtype='uint16', source='stdlib',
                  python=sys.version.split()[0])
    assert {key: meta[key] for key in wanted} == wanted
    # in sorted order, every 20th held out: put together again, the list is sorted
    rest, held_out = iter(train), iter(val)
    everything = [next(held_out) if i % 20 == 19 else next(rest) for i in range(len(train) + len(val))]
    at, left_out = ([Path(sysconfig.get_path('stdlib'), name).read_bytes().decode() for name in names.split()]
                    for names in ('abc.py ast.py json/decoder.py logging/handlers.py zipapp.py',
                                  'html/entities.py encodings/aliases.py keyword.py'))
    at = [everything.index(text) for text in at]
    assert at == sorted(at)
    assert not set(everything).intersection(left_out)


SAYS = {
    'train': 'Train.txt train-00000-of-00001-b42a775f.parquet train2017/a TinyStoriesV2-GPT4-train.txt '
             'StoriesTrain/a c4-train.00000-of-00002.json.gz train/val.txt',
    'val': 'val/a valid/a.py validation.txt a/dev/b.md wiki.valid.tokens val-1.txt',
    'test': 'test.txt wiki_test.txt en/test.jsonl.gz', 'train?': 'trainset.txt training/a train_en.txt',
    'val?': 'valset.txt evaluation/a eval/a', 'test?': 'testing/a test_tube/a',
    '': 'trainspotting.txt invalid.txt devil.txt latest.txt part1.txt caf\u00e9.txt 2017/_ train.py',
}


def test_the_first_part_of_a_path_that_says_something_counts():
    for split, paths in SAYS.items():
        for path in paths.split():
            assert split_of_path(path) == split, path


def test_what_is_found_is_printed(capsys):
    write({f'in/train-0000{i}-of-00004.txt': 'a' for i in (0, 3)})
    write({'in/val.txt': 'b', 'in/x.png': b'', 'in/.git/a': ''})
    prepare('in')
    assert capsys.readouterr().out.startswith(
        'in: text, train: 2 files (train-00000-of-00004.txt, train-00003-of-00004.txt), val: 1 file '
        '(val.txt), left out: 2 files (.git, x.png)\n'
        'in/train-*: only 2 of 4 shards are here. Download the others if you want their rows.\n')


def test_links_are_followed_once():
    write({'set/b/0.txt': '', 'set/.git/1.txt': '', 'elsewhere/far/2.txt': ''})
    for link, to in (('a', 'b'), ('b/up', '..'), ('b/out', '../..'), ('gone.txt', 'gone'), ('loop', 'loop'),
                     ('one', '../elsewhere'), ('two', '../elsewhere'), ('1.txt', '.git/1.txt'), ('c', '.git'),
                     ('latest.txt', 'b/0.txt')):  # files may be linked into their splits, so each counts
        Path('set', link).symlink_to(to)
    Path('elsewhere/back').symlink_to('../set')
    os.mkfifo('set/pipe.txt')
    files, skipped = find_files('set')
    assert files == ['set/1.txt', 'set/b/0.txt', 'set/c/1.txt', 'set/latest.txt', 'set/one/far/2.txt']
    wanted = '.git a b/out b/up gone.txt loop one/back pipe.txt two'.split()
    assert skipped == [f'set/{path}' for path in wanted]


def test_the_name_of_a_prepared_folder():
    names = {'mytext.txt': 'mytext', 'in/my.text.TXT': 'my.text', 'mytext.txt.gz': 'mytext',
             'a.jsonl.zst': 'a', 'folder.v1/': 'folder.v1', 'stdlib': 'stdlib', 'owner/set': 'set',
             'owner/set-1.5:config': 'set-1.5-config'}
    assert {dataset: prepared_name(dataset) for dataset in names} == names


# ---- what is refused

NEW = '-t UTF-8 FILE > NEW'
NOT_TEXT = f'not UTF-8 text. Fix: iconv -f ENCODING {NEW}, or unpack it if it is an archive'
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
PULL = 'a pointer of git-lfs to the real file. Fix: git lfs pull'
LONG_WINDOW = b'\x28\xb5\x2f\xfd\0' + bytes([21 << 3]) + struct.pack('<I', 5 << 3 | 1)[:3] + b'hello'
CUT = 'packed, but cannot be unpacked: it may be cut short. Fix: fetch it again'
BAD = [  # a file, and what it is
    (WORDS.encode('utf-16'), f'UTF-16 text. Fix: iconv -f UTF-16 {NEW}'),
    ('\u042d\u0442\u043e\n'.encode('utf-16-le') * 20, NOT_TEXT),
    (WORDS.encode('utf-32'), NOT_TEXT),
    (LFS, PULL),
    (b'PK\3\4' + bytes(99), 'a zip archive. Fix: unzip FILE'),
    (gzip.compress(b'x' * 257 + b'ustar\0' + b'x' * 300), 'a tar archive. Fix: tar -xf FILE'),
    (gzip.compress(np.random.default_rng(0).bytes(5000))[:3000], CUT),
    (b'\x28\xb5\x2f\xfd' + bytes(99), CUT),
    (LONG_WINDOW, 'packed by zstd with a long window. Fix: zstd -d --long=31 FILE')]
ODD = [b'{"text": "cut', b'[', b'{"body": "a"}', b'3', b'{"text": ["a"]}', b'[' * 200_000]  # lines of json
UNCLEAR = [  # files in a folder, what their names say, the command that is proposed
    ('a.txt b.txt c.txt d.txt dev.txt', 'neither: a.txt, b.txt, c.txt ...; val: dev.txt',
     '--dataset=in --val=in/dev.txt'),
    ('train_a.txt train_b.txt c/val/d.txt', 'val: c/val; train: train_a.txt, train_b.txt',
     '--dataset=in --val=in/c/val'),
    ('trainset.txt valset.txt testset.txt', 'test: testset.txt; train: trainset.txt; val: valset.txt',
     '--dataset=in/trainset.txt --val=in/valset.txt')]
EMPTY = ('There is no text for {}: none of its {} documents holds any. A file of text, a line of json or a '
         'row of a table is one document. Give more, or another --text_column.')
ONE_KIND = f'It needs files of one kind, which end in .{" .".join(KINDS)}.'
TWICE = pa.BufferOutputStream()
write_table(pa.table([['a'], ['b']], names=['text', 'text']), TWICE)
TWICE = TWICE.getvalue().to_pybytes()
REFUSED = [  # files; the sentence; keys
    *(({'a.txt': 'fine', 'b.txt': raw}, f'in/b.txt is {what}', dict(val_fraction=0.5)) for raw, what in BAD),
    *((dict.fromkeys(names.split(), 'text'),
       f'The names in in do not tell train from val ({perhaps}). State it with {command} or, if all of it is '
       'training data, with --val_fraction=0.1.') for names, perhaps, command in UNCLEAR),
    (dict.fromkeys(['train_a.txt', 'train_b.txt', 'val.txt', 'testset.txt'], 'text'),
     'The names in in do not tell train from val (test: testset.txt; train: train_a.txt, train_b.txt). Move '
     'what is no training data out of in.', dict(val='in/val.txt')),
    ({f'{i}.jsonl': ABC + line + b'\n' + ABC for i, line in enumerate(ODD)},
     'in/0.jsonl, line 4 (Invalid control character at: line 1 column 14 (char 13)), in/1.jsonl, line 4 '
     "(Expecting value: line 2 column 1 (char 2)), in/2.jsonl, line 4 ('text') ... are no JSON object with "
     "text under 'text'. Fix: write one object per line (jq -c '.[]' FILE > NEW.jsonl does it for an array), "
     'set --text_column to the key of the text, or move away what is no data'),
    ({f'{i}.txt': 'caf\u00e9'.encode('latin1') for i in range(5)},
     f'in/0.txt (byte 3), in/1.txt (byte 3), in/2.txt (byte 3) ... are {NOT_TEXT}'),
    ({'a.jsonl': ABC + b'{"text": "caf\xe9"}'}, f'in/a.jsonl, line 4 (byte 13) is {NOT_TEXT}'),
    ({'a.parquet': LFS}, f'in/a.parquet is {PULL}'),
    ({'a.parquet': parquet(body=['a'], text=[1])}, "in/a.parquet has no text under 'text'. Set --text_column "
     'to one of its columns of text (body: string, text: int64).'),
    ({'a.parquet': parquet(text=[b'caf\xe9'])}, 'in/a.parquet cannot be read as parquet (Invalid UTF8 '
     'payload). Fetch or write it again.'),
    ({'a.parquet': TWICE}, 'in/a.parquet has columns of the same name (text, text). Rename one of them.'),
    ({'train.parquet': parquet('a'), 'val.parquet': parquet(text=pa.array([], pa.string()))},
     EMPTY.format('val', 0)),
    ({'a.txt.gz': gzip.compress(b'')}, EMPTY.format('train', 1)),
    ({'a.png': b'\x89PNG', 'train.bin': b''}, f'in holds no text (in/a.png, in/train.bin). {ONE_KIND}'),
    ({'a.jsonl': ABC, 'b.txt': 'b', 'README.md': 'c'},
     f'in holds json lines and text (in/README.md, in/a.jsonl, in/b.txt). {ONE_KIND}'),
    ({'data-00000-of-00001.arrow': b'ARROW1', 'state.json': '{}'}, 'in was written by save_to_disk. Convert '
     "each of its splits to parquet: python -c \"import datasets; datasets.load_from_disk('SPLIT')"
     ".to_parquet('NEW/train.parquet')\""),
    ({'a.txt': 'a'}, 'in/a.txt has no text for train. Give other files, or rename those whose names say '
     'another split.', dict(val='in/a.txt')),
    ({'train.txt': 'a', 'val.txt': 'b'}, 'in has validation data by its names. Leave --val_fraction out, or '
     'give the training data alone as --dataset.', dict(val_fraction=0.1)),
    ({'a.txt': 'a'}, '--val only works if --dataset is a file or folder, and without --val_fraction. Leave '
     'it out.', dict(val='in', val_fraction=0.1)),
    ({'a.txt': 'a'}, 'stdlib has validation data of its own. Leave --val_fraction out.',
     dict(dataset='stdlib', val_fraction=0.1)),
    *(({'a.txt': 'a'}, '--revision only works if --dataset is a set on the Hub other than OpenWebText. Leave '
       'it out.', dict(revision='main', dataset=dataset))
      for dataset in ('in', 'stdlib', 'openwebtext:x', 'Skylion007/openwebtext')),
    ({'a.txt': 'a'}, 'There is no file or folder ./not/there. Check the path.', dict(dataset='./not/there')),
    ({'a.txt': 'a'}, "unknown tokenizer 'gpt3'. Use --tokenizer=gpt2 or --tokenizer=byte.",
     dict(tokenizer='gpt3')),
    ({'a.txt': 'a'}, 'val_fraction=1.5 is out of range. Set --val_fraction to a number from 0 to 0.99.',
     dict(val_fraction=1.5)),
    ({'a.txt': 'a'}, 'num_proc=-1 is out of range. Set --num_proc to a number of at least 0.',
     dict(num_proc=-1)),
    ({'a.txt': 'a', '../out': ''}, 'File exists (out). Fix that and run the same command again. --out_dir '
     'and HF_HOME choose another disk.'),
    ({'a.txt': 'a', '../out/meta.json': '{}'}, 'out already holds a data set (meta.json). Use '
     '--overwrite=True to replace it, or --out_dir=... to write elsewhere.', dict(overwrite=False)),
]


@pytest.mark.parametrize('files, sentence, keys', [(*case, {})[:3] for case in REFUSED])
def test_text_is_refused_in_one_sentence(files, sentence, keys):
    dataset = place(files)
    before = set(Path().rglob('*'))
    assert refusal(**{'dataset': dataset, **keys}) == sentence
    assert set(Path().rglob('*')) == before


# ---- the files


def test_the_old_set_and_other_files_stay(monkeypatch):
    write({'a.jsonl': lines(*TEXTS)})
    prepare('a.jsonl')
    before = digests()
    write({'out/unfinished/notes': 'mine', 'out/.prepare_tmp_abcd1234/ids': 'left by a run that was killed',
           'b.jsonl': lines(*TEXTS) + b'broken\n', 'c.jsonl': ABC})

    def full(file):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        assert refusal('c.jsonl').startswith('No space left on device. Fix that and run the same command')
    assert 'line 201' in refusal('b.jsonl')
    with workplace(Path('out'), prepare_owt.FILES, True):  # another run
        sentence = refusal('c.jsonl')
    assert sentence == 'Another run writes to out. Wait until it ends, or use another --out_dir.'
    Path('out/unfinished').rename('mine')
    assert Path('mine/notes').read_text() == 'mine'
    assert digests() == before
    assert sorted(sum(prepare('c.jsonl'), [])) == ['a', 'b', 'c']


@pytest.mark.parametrize('script, words, keys', [
    ('prepare_owt.py', 'gzip, bz2, xz or zstd', 'val val_fraction out_dir tokenizer text_column max_docs '
     'revision num_proc overwrite dataset'), ('prepare_imagenet.py', 'CLASS/** or SPLIT/CLASS/**',
                                              ' '.join(common.IMAGE_DEFAULTS))])
def test_help_states_the_contract(script, words, keys):
    said = finish(python(script, '--help'))[0]
    assert RULE in said and words in said
    listed = re.findall(r'(?m)^ *(\w+) = ', said.partition('keys, as')[2])
    assert sorted(listed) == sorted(keys.split())


def test_a_signal_while_workers_start_ends_the_run():
    """Python itself would lose the exception of a signal that comes while it forks."""
    code = """if True:
        import multiprocessing, os, signal
        from support import writing
        multiprocessing.set_start_method('fork')
        os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
        writing.run(lambda _: list(writing.in_order([(1,)], abs, 2)), {})"""
    out, err = python('-c', code).communicate(timeout=60)
    assert (out, err) == ('', 'Stopped. Nothing half-written is left; the same command starts again.\n')


def test_no_signal_leaves_half_a_set(monkeypatch):
    write({'a.jsonl': lines(*TEXTS)})
    prepare('a.jsonl', 'straight')
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda *paths: (replace(*paths), os.kill(os.getpid(), signal.SIGTERM)))
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail('stopped'))
    try:
        prepare('a.jsonl', 'out')
    finally:
        signal.signal(signal.SIGTERM, before)
    assert digests('out') == digests('straight')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_killed_then_the_same_bytes(tmp_path, number):
    """
    Nothing looks finished after kill -9, no worker survives, and the next run is not refused. SIGTERM and a
    closed terminal, which tells all processes, leave nothing at all.
    """
    write({'a.jsonl': lines(*[f'{text} ' * 4000 for text in TEXTS * 5])})
    prepare('a.jsonl', 'straight')
    process = python(ROOT / 'prepare_owt.py', '--dataset=a.jsonl', '--tokenizer=byte', cwd=tmp_path,
                     start_new_session=True)
    while process.poll() is None and not list(Path().glob('data/a/.prepare_tmp_*/ids')):
        time.sleep(0.01)
    time.sleep(0.1)
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    if number == signal.SIGHUP:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)
    if number == signal.SIGKILL:
        assert [path.name[:13] for path in Path('data/a').iterdir()] == ['.prepare_tmp_']
    else:
        assert 'Stopped. Nothing half-written is left' in said and 'Traceback' not in said
        assert not Path('data/a').exists()
    prepare('a.jsonl', 'data/a', overwrite=False)
    assert digests('data/a') == digests('straight')


# ---- tokens


def test_jobs_of_long_documents_are_short():
    texts = {'train': ['a' * 2**20, 'b', 'c' * 2**20, *'d' * 65], 'val': ['e']}
    jobs = [(split, len(documents)) for split, documents in prepare_owt.make_jobs(texts, 0)]
    assert jobs == [('train', 2), ('train', 2), ('train', 64), ('val', 1)]


def test_prepare_says_where_the_file_of_gpt2_goes(monkeypatch):
    for key, value in (('TIKTOKEN_CACHE_DIR', 'none'), ('HTTPS_PROXY', NOBODY)):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr('tiktoken.registry.ENCODINGS', {})
    write({'a.jsonl': ABC})
    sentence = refusal('a.jsonl', tokenizer='auto')
    assert 'Put r50k_base.tiktoken into a folder as 0ea1e91bbb3a60' in sentence
    assert 'set TIKTOKEN_CACHE_DIR to it, or prepare the text with --tokenizer=byte.' in sentence


@common.gpt2_is_here
def test_gpt2():
    import tiktoken
    write({'a.jsonl': lines(*TEXTS)})
    run(prepare_owt.main, {**DEFAULTS, 'dataset': 'a.jsonl', 'tokenizer': 'auto', 'num_proc': 1,
                           'val_fraction': 0.1, 'overwrite': False})
    encoding = tiktoken.get_encoding('r50k_base')
    meta = json.loads(Path('data/a/meta.json').read_text())
    assert (meta['tokenizer'], meta['vocab_size'], meta['dtype']) == ('gpt2', 50257, 'uint16')
    order = np.random.default_rng(2357).permutation(len(TEXTS))
    for split, documents in (('train', order[20:]), ('val', order[:20])):
        ids = np.fromfile(f'data/a/{split}.bin', '<u2').tolist()
        assert ids == [i for d in documents for i in [*encoding.encode_ordinary(TEXTS[d]), 50256]]
        assert len(ids) == meta[f'{split}_tokens']
    with pytest.raises(SystemExit, match="document that begins 'ab    .* a million white spaces in a row"):
        tokenizers.encode('ab' + ' ' * 1_000_000 + 'a', 'gpt2')
