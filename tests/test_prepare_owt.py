"""prepare_owt.py as people run it."""

import hashlib
import json
import random
import signal
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from tests.common import (
    NOBODY,
    ROOT,
    TEXTS,
    finish,
    gpt2_is_here,
    in_parallel,
    nanogpt_split,
    parquet,
    prepare,
    prepared,
    python,
    start_prepare,
)


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def write_lines(path, texts, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'id': i, 'text': text, **more}) + '\n'
                            for i, text in enumerate(texts)))
    return path


def test_prepare_stdlib(tmp_path):
    said = prepare(tmp_path, '--dataset=stdlib', '--tokenizer=auto')
    train, val, meta = prepared(tmp_path / 'data/stdlib')
    assert meta['tokenizer'] == 'byte'
    assert meta['vocab_size'] == 257
    assert meta['dtype'] == 'uint16'
    assert meta['source'] == 'stdlib'
    assert meta['python'] == sys.version.split()[0]
    assert len(meta['sha256']) == 64
    assert f'{meta["train_tokens"]:,} tokens' in said
    assert 'MB are free' in said
    root = Path(sysconfig.get_path('stdlib'))
    both = set(train + val)
    for name in ('argparse.py', 'json/decoder.py', 'html/entities.py', 'encodings/aliases.py', 'keyword.py'):
        assert ((root / name).read_bytes().decode() in both) == (name in ('argparse.py', 'json/decoder.py'))
    assert len(val) == (len(train) + len(val)) // 20
    # in sorted order, every 20th held out: put together again, the list is sorted
    rest, held_out = iter(train), iter(val)
    everything = [next(held_out) if i % 20 == 19 else next(rest) for i in range(len(train) + len(val))]
    at = [everything.index((root / name).read_bytes().decode())
          for name in ('abc.py', 'ast.py', 'json/decoder.py', 'logging/handlers.py', 'zipapp.py')]
    assert at == sorted(at)

    before = digests(tmp_path / 'data/stdlib')
    assert '--overwrite=True' in prepare(tmp_path, '--dataset=stdlib', code=1)
    prepare(tmp_path, '--dataset=stdlib', '--overwrite=True', '--num_proc=1')
    assert digests(tmp_path / 'data/stdlib') == before


def test_prepare_text_files(tmp_path):
    folder = tmp_path / 'texts'
    for i, text in enumerate(TEXTS):
        # of a text, the name says nothing about the split
        path = folder / f'{i % 3}' / (f'{i:03d}.txt' if i % 2 else f'train_{i:03d}.py')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (folder / '.hidden').mkdir()
    (folder / '.hidden/not.txt').write_text('not me')
    (folder / 'picture.png').write_bytes(b'\x89PNG\xff')
    in_order = [p.read_bytes().decode() for p in sorted(folder.glob('*/*'), key=lambda p: p.as_posix())
                if '.hidden' not in p.parts]
    said = prepare(tmp_path, f'--dataset={folder}')
    train, val, meta = prepared(tmp_path / 'data/texts')
    assert (train, val) == nanogpt_split(in_order)
    assert len(val) == 1
    assert '1 documents are empty' in said
    assert meta['source'] == str(folder)
    prepare(tmp_path, f'--dataset={folder}', '--out_dir=other', '--max_docs=40', '--val_fraction=0.25')
    train, val, meta = prepared(tmp_path / 'other')
    assert len(train) == 30
    assert sorted(train + val) == sorted(in_order[:40])


@pytest.mark.slow
def test_prepare_json_lines_and_parquet_give_the_same_bins(tmp_path):
    pytest.importorskip('datasets')
    write_lines(tmp_path / 'lines/a.jsonl', TEXTS[:90])
    write_lines(tmp_path / 'lines/b.jsonl', TEXTS[90:])
    (tmp_path / 'lines/README.md').write_text('about')
    (tmp_path / 'table').mkdir()
    for name, part in (('a', TEXTS[:90]), ('b', TEXTS[90:])):
        (tmp_path / f'table/{name}.parquet').write_bytes(parquet(part))
    prepare(tmp_path, '--dataset=lines', '--num_proc=1')
    prepare(tmp_path, '--dataset=table', '--num_proc=3')
    train, val, _ = prepared(tmp_path / 'data/lines')
    assert (train, val) == nanogpt_split(TEXTS)
    for name in ('train.bin', 'val.bin'):
        assert (tmp_path / 'data/lines' / name).read_bytes() == (tmp_path / 'data/table' / name).read_bytes()

    # that is what `datasets` itself calls the split
    from datasets import Dataset
    split = Dataset.from_dict({'text': TEXTS}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert (train, val) == (list(split['train']['text']), list(split['test']['text']))

    # a stream is read in its order, one row of so many to validation
    prepare(tmp_path, '--dataset=table', '--out_dir=stream', '--streaming=True', '--val_fraction=0.1',
            '--max_docs=150')
    train, val, _ = prepared(tmp_path / 'stream')
    assert val == TEXTS[:150:10]
    assert train == [t for i, t in enumerate(TEXTS[:150]) if i % 10]


@pytest.mark.slow
def test_prepare_cuts_a_lone_text_by_position(tmp_path):
    lines = [f'{i}: caf\u00e9\n' for i in range(100)]
    (tmp_path / 'input.txt').write_text(''.join(lines), encoding='utf-8')
    prepare(tmp_path, '--dataset=input.txt')
    train, val, _ = prepared(tmp_path / 'data/input')
    assert len(train) == len(val) == 1
    assert train[0] + val[0] == ''.join(lines)
    assert val[0].startswith('91: ')  # nine tenths are within line 90, which is kept whole
    prepare(tmp_path, '--dataset=input.txt', '--val_fraction=0.5', '--out_dir=half')
    train, val, _ = prepared(tmp_path / 'half')
    assert train[0] + val[0] == ''.join(lines)
    assert abs(len(train[0]) - len(val[0])) < 20
    for n in range(8):  # without lines it is cut behind a character, wherever nine tenths are
        text = '\u00e9' * 50 + 'a' * n + '\U0001f600' * 20
        (tmp_path / 'one.txt').write_text(text, encoding='utf-8')
        prepare(tmp_path, '--dataset=one.txt', '--overwrite=True', '--num_proc=1')
        train, val, _ = prepared(tmp_path / 'data/one')
        assert train[0] + val[0] == text
        assert 0 < len(val[0]) < 15


def test_prepare_keeps_named_splits_and_odd_lines(tmp_path):
    write_lines(tmp_path / 'named/train-00000-of-00002.jsonl', TEXTS[:50])
    write_lines(tmp_path / 'named/train-00001-of-00002.jsonl', TEXTS[50:100])
    write_lines(tmp_path / 'named/validation.jsonl', TEXTS[100:120])
    write_lines(tmp_path / 'named/test.jsonl', TEXTS[120:])
    prepare(tmp_path, '--dataset=named')
    assert prepared(tmp_path / 'data/named')[:2] == (TEXTS[:100], TEXTS[100:120])

    (tmp_path / 'odd.json').write_bytes(b'{"text": "a\\ud800b"}\r\n\n  \n{"text": null}\n'
                                        b'{"text": "\\ud83d\\ude00"}')
    prepare(tmp_path, '--dataset=odd.json', '--val_fraction=0.3')
    train, val, meta = prepared(tmp_path / 'data/odd')
    assert sorted(train + val) == ['', 'a\ufffdb', '\U0001f600']


MISTAKES = [  # arguments, words of the sentence
    ('--dataset=broken.jsonl', ['broken.jsonl', 'line 201', 'not JSON']),
    ('--dataset=good.jsonl --text_column=body', ["no key 'body'", 'id, text', '--text_column']),
    ('--dataset=number.jsonl', ['int', 'not text', '--text_column']),
    ('--dataset=array.json', ['array.json, line 1', 'JSON array']),
    ('--dataset=latin --val_fraction=0.5', ['b.txt', 'not UTF-8 at byte 3', 'iconv']),
    ('--dataset=pictures', ['pictures holds no text', '.jsonl']),
    ('--dataset=alone.jsonl', ['too few documents (1)', 'cut the text']),
    ('--dataset=nothing.jsonl', ['nothing.jsonl is an empty file']),
    ('--dataset=empty.jsonl', ['all documents are empty']),
    ('--dataset=bad.parquet', ['bad.parquet', 'parquet']),
    ('--dataset=./not/there', ['no file or folder ./not/there']),
    ('--dataset=good.jsonl --tokenizer=gpt3', ["unknown tokenizer 'gpt3'", 'byte']),
    ('--dataset=good.jsonl --val_fraction=1.5', ['val_fraction']),
    ('--dataset=good.jsonl --max_docs=-1', ['max_docs']),
    ('--dataset=good.jsonl --out_dir=file', ['file', 'Fix that']),
    ('--dataset=good.jsonl --out_dir=images', ['images', 'meta.json', '--out_dir']),
    ('--dataset=good.jsonl --max_doc=1', ['max_docs'])]


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file() and 'hf' not in p.parts}


@pytest.fixture(scope='module')
def mistakes(tmp_path_factory):
    """-> the sentence by the arguments, the folder, and its files before"""
    folder = tmp_path_factory.mktemp('mistakes')
    for name in ('latin', 'pictures', 'images'):
        (folder / name).mkdir()
    write_lines(folder / 'good.jsonl', TEXTS)
    broken = write_lines(folder / 'broken.jsonl', TEXTS)
    broken.write_text(broken.read_text() + '{"text": "cut off\n')
    write_lines(folder / 'number.jsonl', [1, 2, 3])
    write_lines(folder / 'alone.jsonl', ['one line is one document'])
    write_lines(folder / 'empty.jsonl', ['', '', ''])
    for name, content in {
            'array.json': b'[\n {"text": "a"},\n {"text": "b"}\n]\n', 'latin/a.txt': b'fine',
            'latin/b.txt': b'caf\xe9 au lait', 'pictures/a.png': b'\x89PNG', 'nothing.jsonl': b'',
            'file': b'in the way', 'bad.parquet': b'PAR1 is not enough',
            'images/meta.json': b'{"classes": 10}'}.items():
        (folder / name).write_bytes(content)
    before = contents(folder)
    said = in_parallel([lambda a=a: prepare(folder, *a.split(), code=1) for a, _ in MISTAKES])
    return {arguments: sentence for (arguments, _), sentence in zip(MISTAKES, said)}, folder, before


@pytest.mark.parametrize('arguments,words', MISTAKES)
def test_prepare_refuses_in_words(mistakes, arguments, words):
    for word in words:
        assert word in mistakes[0][arguments]


def test_prepare_refuses_before_it_writes(mistakes):
    _, folder, before = mistakes
    assert contents(folder) == before
    assert not (folder / 'data').exists() or not list((folder / 'data').iterdir())


def test_prepare_leaves_the_old_set_until_the_new_one_is_complete(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, '--dataset=good.jsonl')
    before = digests(tmp_path / 'data/good')
    (tmp_path / 'good.jsonl').write_text((tmp_path / 'good.jsonl').read_text() + 'broken\n')
    assert 'line 201' in prepare(tmp_path, '--dataset=good.jsonl', '--overwrite=True', code=1)
    assert digests(tmp_path / 'data/good') == before
    # killed between two renames: no bin pair without meta.json, and the next call is not refused
    (tmp_path / 'data/good/val.bin').rename(tmp_path / 'data/good/val.bin.tmp')
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, '--dataset=good.jsonl')
    assert digests(tmp_path / 'data/good') == before


def test_prepare_says_that_the_disk_is_full(tmp_path):
    pytest.importorskip('resource')
    write_lines(tmp_path / 'good.jsonl', [text * 100 for text in TEXTS])
    code = ('import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); '
            f'sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {str(ROOT / "prepare_owt.py")!r}; '
            f'runpy.run_path(sys.argv[0], run_name="__main__")')
    _, err = finish(python('-c', code, '--dataset=good.jsonl', '--tokenizer=byte', cwd=tmp_path), 1)
    assert 'Traceback' not in err, err
    assert 'File too large' in err
    assert not (tmp_path / 'data/good').exists()


def test_prepare_takes_four_bytes_past_65536_ids(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    code = ('import prepare_owt as p; p.VOCAB["byte"] = 70_000; p.main(dict(dataset="good.jsonl", '
            'out_dir="big", tokenizer="byte", text_column="text", max_docs=0, val_fraction=0.0005, '
            'streaming="auto", revision="", num_proc=1, overwrite=False))')
    finish(python('-c', code, cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}))
    assert prepared(tmp_path / 'big')[:2] == nanogpt_split(TEXTS)
    assert np.fromfile(tmp_path / 'big/val.bin', '<u4')[-1] == 69_999


GPT2 = ['--dataset=good.jsonl', '--tokenizer=gpt2', '--val_fraction=0.1']


def test_prepare_says_where_the_file_of_gpt2_goes(tmp_path):
    pytest.importorskip('tiktoken')
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    sentence = prepare(tmp_path, *GPT2, code=1, TIKTOKEN_CACHE_DIR=str(tmp_path / 'none'), HTTPS_PROXY=NOBODY)
    assert 'TIKTOKEN_CACHE_DIR' in sentence
    assert '--tokenizer=byte' in sentence


@gpt2_is_here
def test_prepare_gpt2(tmp_path):
    tiktoken = pytest.importorskip('tiktoken')
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, *GPT2)
    encoding = tiktoken.get_encoding('r50k_base')
    meta = json.loads((tmp_path / 'data/good/meta.json').read_text())
    assert (meta['tokenizer'], meta['vocab_size'], meta['dtype']) == ('gpt2', 50257, 'uint16')
    order = np.random.default_rng(2357).permutation(len(TEXTS))
    for split, documents in (('train', order[20:]), ('val', order[:20])):
        ids = np.fromfile(tmp_path / f'data/good/{split}.bin', '<u2').tolist()
        assert ids == [i for d in documents for i in [*encoding.encode_ordinary(TEXTS[d]), 50256]]
        assert len(ids) == meta[f'{split}_tokens']
        assert ids.count(50256) == len(documents)
        assert encoding.decode(ids) == ''.join(TEXTS[d] + '<|endoftext|>' for d in documents)


def kill_midway(folder, flags, wait):
    """kill -9 after so many seconds of writing; True if it was still at work. No worker may survive it."""
    process = start_prepare(folder, *flags)
    tmp = folder / 'killed/train.bin.tmp'
    while process.poll() is None and not tmp.exists():
        time.sleep(0.01)
    time.sleep(wait)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    children = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in children)
    return process.returncode == -signal.SIGKILL


def killed_as_if_never(tmp_path, texts, waits):
    write_lines(tmp_path / 'good.jsonl', texts)
    prepare(tmp_path, '--dataset=good.jsonl', '--out_dir=straight')
    flags, killed = ['--dataset=good.jsonl', '--out_dir=killed'], 0
    for wait in waits:
        if kill_midway(tmp_path, flags, wait):
            killed += 1
            assert not {'train.bin', 'val.bin'} <= {p.name for p in (tmp_path / 'killed').iterdir()}
            assert not (tmp_path / 'killed/val.bin').exists()
        else:
            for path in (tmp_path / 'killed').iterdir():
                path.unlink()
    prepare(tmp_path, *flags)
    assert digests(tmp_path / 'killed') == digests(tmp_path / 'straight')
    return killed


@pytest.mark.slow
def test_prepare_killed_halfway_then_gives_the_same_bytes(tmp_path):
    assert killed_as_if_never(tmp_path, [f'{text} ' * 4000 for text in TEXTS], [0])


@pytest.mark.slow
def test_prepare_killed_at_five_random_moments(tmp_path):
    waits = [random.Random(1).uniform(0, 1) for _ in range(5)]
    assert killed_as_if_never(tmp_path, [f'{text} ' * 4000 for text in TEXTS] * 5, waits) >= 3
