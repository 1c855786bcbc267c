"""prepare_owt.py as people run it."""

import hashlib
import json
import os
import random
import signal
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

from support import tokenizers
from support.hub import hub_reason
from support.splits import RULE
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
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def write_lines(path, texts):
    path.write_text(''.join(json.dumps({'id': i, 'text': text}) + '\n' for i, text in enumerate(texts)))
    return path


def test_prepare_stdlib(tmp_path):
    said = prepare(tmp_path, '--dataset=stdlib', '--tokenizer=auto')
    train, val, meta = prepared(tmp_path / 'data/stdlib')
    wanted = dict(tokenizer='byte', vocab_size=257, dtype='uint16', source='stdlib',
                  python=sys.version.split()[0])
    assert {key: meta[key] for key in wanted} == wanted
    assert len(meta['sha256']) == 64
    assert f'{meta["train_tokens"]:,} tokens' in said
    root = Path(sysconfig.get_path('stdlib'))
    for name in ('html/entities.py', 'encodings/aliases.py', 'keyword.py'):
        assert (root / name).read_bytes().decode() not in train + val
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


def test_all_kinds_of_files_give_nanogpts_bins(tmp_path):
    for folder in ('lines', 'table', 'texts'):
        (tmp_path / folder).mkdir()
    for name, part in (('a', TEXTS[:90]), ('b', TEXTS[90:])):
        write_lines(tmp_path / f'lines/{name}.jsonl', part)
        (tmp_path / f'table/{name}.parquet').write_bytes(parquet(part))
    for i, text in enumerate(TEXTS):
        (tmp_path / f'texts/{i:03}.txt').write_bytes(text.encode())
    said = [prepare(tmp_path, f'--dataset={name}') for name in ('lines', 'table', 'texts')]
    for name in ('lines', 'table', 'texts'):
        train, val, meta = prepared(tmp_path / 'data' / name)
        assert (train, val) == nanogpt_split(TEXTS)
        assert meta['source'] == name
    assert '1 documents are empty. Each becomes a single end-of-text' in said[2]

    # that is what `datasets` itself calls the split
    from datasets import Dataset
    split = Dataset.from_dict({'text': TEXTS}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert (train, val) == (list(split['train']['text']), list(split['test']['text']))


MISTAKES = {
    '--dataset=good.jsonl --tokenizer=gpt3':
        "unknown tokenizer 'gpt3'. Use --tokenizer=gpt2 or --tokenizer=byte.",
    '--dataset=good.jsonl --val_fraction=1.5':
        'max_docs and num_proc must be 0 or more, val_fraction 0 or more and below 1.',
    '--dataset=stdlib --val=good.jsonl':
        '--val only works if --dataset is a file or folder, and without --val_fraction. Leave it out.',
    '--dataset=good.jsonl --out_dir=file':
        'File exists (file). Fix that and run the same command again. --out_dir and HF_HOME choose another '
        'disk.',
    '--dataset=good.jsonl --out_dir=images':
        'images already holds a data set (meta.json). Use --overwrite=True to replace it, or --out_dir=... '
        'to write elsewhere.',
    '--dataset=empty.jsonl': 'There is no text to train on: all documents are empty. See --text_column.',
    '--dataset=good.jsonl --max_doc=1': '--max_doc=1: unknown key max_doc. Did you mean max_docs?'}


def test_mistakes_get_one_sentence_and_nothing_is_written(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    write_lines(tmp_path / 'empty.jsonl', ['', ''])
    (tmp_path / 'file').write_text('in the way')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/meta.json').write_text('{"classes": 10}')
    before = {path for path in tmp_path.rglob('*')}
    said = in_parallel([lambda line=line: prepare(tmp_path, *line.split(), code=1) for line in MISTAKES])
    assert dict(zip(MISTAKES, said)) == MISTAKES
    left = {path for path in tmp_path.rglob('*') if 'hf' not in path.parts} - before
    assert left <= {tmp_path / 'data'}
    assert (tmp_path / 'images/meta.json').read_text() == '{"classes": 10}'


def test_the_old_set_and_other_files_stay(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, '--dataset=good.jsonl')
    out = tmp_path / 'data/good'
    before = digests(out)
    with open(tmp_path / 'good.jsonl', 'a') as f:
        f.write('broken\n')
    assert 'line 201' in prepare(tmp_path, '--dataset=good.jsonl', '--overwrite=True', code=1)
    assert digests(out) == before
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    left = out / '.prepare_tmp_abcd1234'  # killed between two renames
    for folder in (left, out / 'unfinished', out / '.prepare_tmp_mine'):  # the others are the user's
        folder.mkdir()
        (folder / 'notes').write_text('mine')
    (out / 'val.bin').rename(left / 'val.bin')
    prepare(tmp_path, '--dataset=good.jsonl')
    assert not left.exists()
    for name in ('unfinished', '.prepare_tmp_mine'):
        assert (out / name / 'notes').read_text() == 'mine'
        (out / name / 'notes').unlink()
        (out / name).rmdir()
    assert digests(out) == before


def test_two_runs_into_one_folder(tmp_path):
    write_lines(tmp_path / 'a.jsonl', [f'a {text} ' * 3000 for text in TEXTS])
    write_lines(tmp_path / 'b.jsonl', TEXTS)
    first = start_prepare(tmp_path, '--dataset=a.jsonl', '--out_dir=out')
    while not list(tmp_path.glob('out/.prepare_tmp_*/train.bin')) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = prepare(tmp_path, '--dataset=b.jsonl', '--out_dir=out', code=1)
    first.send_signal(signal.SIGCONT)
    finish(first)
    assert second == 'Another run writes to out. Wait until it ends, or use another --out_dir.'
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'train.bin', 'val.bin', 'meta.json'}
    assert prepared(tmp_path / 'out')[2]['source'] == 'a.jsonl'


def test_a_full_disk(tmp_path):
    write_lines(tmp_path / 'good.jsonl', [text * 100 for text in TEXTS])
    code = ('import os, errno, runpy, sys\ndef full(f): raise OSError(errno.ENOSPC, '
            'os.strerror(errno.ENOSPC))\n'
            f'os.fsync = full; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = "{ROOT}/prepare_owt.py"\n'
            'runpy.run_path(sys.argv[0], run_name="__main__")')
    _, err = finish(python('-c', code, '--dataset=good.jsonl', '--tokenizer=byte', cwd=tmp_path), 1)
    assert 'Traceback' not in err
    assert 'No space left on device. Fix that and run the same command again. --out_dir and' in err
    assert not (tmp_path / 'data/good').exists()
    below = RuntimeError('An error occurred while generating the dataset')
    below.__cause__ = OSError(28, 'No space left on device')
    said = hub_reason('me/set', below, 'download')
    assert said.startswith('me/set cannot be read (No space left on device). Fix that')


def test_names_that_the_terminal_cannot_show_and_nobody_who_reads(tmp_path):
    folder = tmp_path / 'caf\u00e9'
    folder.mkdir()
    (folder / 'train.txt').write_text('text one')
    (folder / 'val.txt').write_text('text two')
    (folder / '\u042d.png').write_bytes(b'')
    (folder / os.fsdecode(b'\xff.png')).write_bytes(b'')
    said = prepare(tmp_path, '--dataset=caf\u00e9', PYTHONIOENCODING='ascii')
    assert 'caf\\xe9: text, train: 1 file (train.txt), val: 1 file (val.txt), left out: 2 files (' in said
    assert prepared(tmp_path / 'data/caf\u00e9')[1] == ['text two']
    line = f'{sys.executable} {ROOT}/prepare_owt.py --dataset=caf\u00e9 --tokenizer=byte --out_dir=out'
    assert os.system(f'cd {tmp_path} && {line} 2>&1 | true') == 0
    deadline = time.monotonic() + 30
    while not (tmp_path / 'out/val.bin').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert prepared(tmp_path / 'out')[0] == ['text one']


def test_help_states_the_contract():
    said = finish(python('prepare_owt.py', '--help'))[0]
    assert RULE in said
    assert 'gzip, bz2, xz or zstd' in said
    lines = said.partition('keys, as')[2].splitlines()
    keys = {line.split(' = ')[0].strip() for line in lines if ' = ' in line}
    assert keys == set('dataset val val_fraction out_dir tokenizer text_column max_docs revision num_proc '
                       'overwrite'.split())


# ---- tokens

GPT2 = ['--dataset=good.jsonl', '--tokenizer=gpt2', '--val_fraction=0.1']


def test_prepare_says_where_the_file_of_gpt2_goes(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    sentence = prepare(tmp_path, *GPT2, code=1, TIKTOKEN_CACHE_DIR=str(tmp_path / 'none'), HTTPS_PROXY=NOBODY)
    assert 'Put r50k_base.tiktoken into a folder as 0ea1e91bbb3a60' in sentence
    assert 'set TIKTOKEN_CACHE_DIR to it, or prepare the text with --tokenizer=byte.' in sentence


@gpt2_is_here
def test_prepare_gpt2(tmp_path):
    import tiktoken
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


@pytest.fixture
def encoding():
    """gpt2's pattern with a few merges of white space, which need no file"""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    merges = [bytes([i]) for i in range(256)] + [
        b'  ', b'\n\n', b'    ', b' a', b'ab', b'        ', b'\n\n\n\n', b'\xc2\xa0']
    return tiktoken.Encoding('small', pat_str=r50k_pat_str, special_tokens={},
                             mergeable_ranks={merge: i for i, merge in enumerate(merges)})


def test_long_white_space_has_the_ids_of_tiktoken(encoding, monkeypatch):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(tokenizers, 'LONG', 2)
    parts = [' ', '  ', '\n', '\t', '\r\n', '\x0b', '\x1c', '\x1f', '\x85', '\xa0', '\u2028', '\u3000',
             '\u200b',
             '\ufeff', ' ' * 33, '\n' * 64, 'a', 'ab', '\u4e2d', '1', "'s", "'", '.', '<|endoftext|>']
    for _ in range(5000):
        text = ''.join(rng.choice(parts, rng.integers(12)))
        assert tokenizers.encode_gpt2(encoding, text).tolist() == encoding.encode_ordinary(text), repr(text)


@pytest.mark.slow
def test_a_million_white_spaces(encoding):
    with pytest.raises(BaseException):  # else we need none of it
        encoding.encode_to_numpy(' ' * 1_000_000 + 'a')
    for text in (' ' * 1_000_000 + 'a', 'a' + ' \n' * 700_000 + 'b' + '\n' * 1_200_000,
                 '\u3000' * 1_000_000 + '.'):
        assert encoding.decode(tokenizers.encode_gpt2(encoding, text).tolist()) == text
    # where tiktoken can do it, its ids
    text = ' ' * 900_000 + 'ab' + '\n' * 700_000 + ' a'
    assert tokenizers.encode_gpt2(encoding, text).tolist() == encoding.encode_ordinary(text)


@pytest.mark.slow
def test_prepare_killed_at_random_moments_then_gives_the_same_bytes(tmp_path):
    """Nothing looks finished after kill -9, no worker survives, and the next run is not refused."""
    write_lines(tmp_path / 'good.jsonl', [f'{text} ' * 4000 for text in TEXTS * 5])
    prepare(tmp_path, '--dataset=good.jsonl', '--out_dir=straight')
    out, killed = tmp_path / 'killed', 0
    for wait in [0, *(random.Random(1).uniform(0, 1) for _ in range(4))]:
        process = start_prepare(tmp_path, '--dataset=good.jsonl', '--out_dir=killed', '--overwrite=True')
        while process.poll() is None and not list(out.glob('.prepare_tmp_*/train.bin')):
            time.sleep(0.01)
        time.sleep(wait)
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
        children = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        if process.returncode == -signal.SIGKILL:
            killed += 1
            assert not (out / 'val.bin').exists() or not list(out.glob('.prepare_tmp_*'))
        deadline = time.monotonic() + 20
        while any(Path(f'/proc/{pid}').exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f'/proc/{pid}').exists() for pid in children)
    prepare(tmp_path, '--dataset=good.jsonl', '--out_dir=killed', '--overwrite=True')
    assert killed >= 3
    assert digests(out) == digests(tmp_path / 'straight')
