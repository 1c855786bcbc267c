"""Text as people have it on disk: prepare_owt.py reads it right or says in one sentence why it does not."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prepare_owt
from support.splits import RULE, prepared_name, split_names, tell_splits
from support.textfiles import BadData, find_files

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {key: getattr(prepare_owt, key) for key in (
    'out_dir', 'text_column', 'max_docs', 'val_fraction', 'streaming', 'revision', 'overwrite')}
NAMES = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, content):
    """Text as UTF-8, bytes as they are, a list as json lines."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = ''.join(json.dumps({'text': text}) + '\n' for text in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, texts):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({'text': texts}), path)


def prepare(dataset, out='out', tokenizer='byte', **keys):
    """-> the documents of train and of val, decoded from the bins"""
    prepare_owt.main({**DEFAULTS, 'dataset': str(dataset), 'tokenizer': tokenizer, 'num_proc': 1,
                      'out_dir': out, 'overwrite': True, **keys})
    assert {p.name for p in Path(out).iterdir()} >= {'train.bin', 'val.bin', 'meta.json'}
    assert not list(Path(out).glob('*.tmp')) and not list(Path(out).glob('.*'))
    return [documents(Path(out) / f'{split}.bin') for split in ('train', 'val')]


def documents(path):
    ids = np.fromfile(path, '<u2')
    parts = np.split(ids, np.flatnonzero(ids == 256) + 1)[:-1]
    return [bytes(part[:-1].astype(np.uint8)).decode() for part in parts]


def refused(dataset, **keys):
    """The sentence that main() ends with. Nothing is left behind."""
    with pytest.raises((SystemExit, BadData)) as caught:
        prepare(dataset, out='nowhere', **keys)
    assert not Path('nowhere').exists()
    return str(caught.value)


def script(*flags, **env):
    """prepare_owt.py as a process of its own -> what it printed, its error output, its exit code"""
    env = {**os.environ, 'PYTHONIOENCODING': 'utf-8', **env}
    line = [sys.executable, str(ROOT / 'prepare_owt.py'), '--tokenizer=byte', '--num_proc=1', *flags]
    run = subprocess.run(line, env=env, capture_output=True, encoding='utf-8', timeout=200)
    assert 'Traceback' not in run.stderr, run.stderr
    return run.stdout, run.stderr.strip(), run.returncode

# -----------------------------------------------------------------------------
# names of splits


@pytest.mark.parametrize('files, expected', [
    # a pair of names that differ in the word alone, with any case, packing and numbers
    ('TinyStories-train.txt TinyStories-valid.txt README.txt', 'train val -'),
    ('TinyStoriesV2-GPT4-train.txt TinyStoriesV2-GPT4-valid.txt', 'train val'),
    ('wiki.train.tokens wiki.valid.tokens wiki.test.tokens', 'train val test'),
    ('en_train_v2.TXT en_Dev_v2.TXT', 'train val'),
    ('StoriesTrain.txt StoriesValid.txt', 'train val'),
    ('c4-train.00000-of-00002.json.gz c4-train.00001-of-00002.json.gz c4-validation.00000-of-00001.json.gz',
     'train train val'),
    ('train_data.txt val_data.txt', 'train val'),
    ('corpus.txt corpus-dev.txt', 'train val'),
    ('a-train.txt b-valid.txt', 'train val'),
    # a name that is the word
    ('train-1.txt extra.txt val.txt', 'train - val'),
    ('train.txt val.txt vocab.txt LICENSE.md prepare.py', 'train val - - -'),
    ('part1.txt part2.txt val.txt', 'train train val'),
    ('part1.txt part2.txt dev.txt', 'train train val'),
    ('part1.txt part2.txt validation-00000-of-00001.txt', 'train train val'),
    ('part1.txt part2.txt test.txt', 'train train test'),
    ('books-1.txt books-2.txt books-val.txt', 'train train val'),
    ('train.txt test.txt', 'train test'),
    ('train1.txt train02.txt valid3.txt', 'train train val'),
    # all names of validation are validation
    ('train.txt val.txt dev.txt valid.txt validation.txt', 'train val val val val'),
    ('val/a.txt dev/b.txt train/c.txt', 'val val train'),
    ('train/deep/a.txt validation/b.txt test/c.txt notes.txt', 'train val test -'),
    ('a/1.txt b/2.txt val/3.txt', 'train train val'),
    # words in titles
    ('a.jsonl dev_test_notes.jsonl', 'train train'),
    ('dev_notes.txt meeting_minutes.txt valid_reasons.txt training_manual.txt', 'train train train train'),
    ('acid_test.txt web-dev.txt ulysses.txt', 'train train train'),
    ('trainspotting.txt invalid.txt devil.txt', 'train train train'),
    ('train_val.txt other.txt', 'train train'),
    # source code, and folders that programs have
    ('train.py val.py test.py model.py', 'train train train train'),
    ('docs/test.txt requirements/dev.txt a.txt', 'train train train'),
    ('dev/a.py nanochat/b.py test/c.py tests/d.py', 'train train train train'),
    # nothing that a name is told apart from
    ('val.txt', 'train'), ('train.txt', 'train'), ('train-1.txt more.txt', 'train train'),
    ('data/train-0.txt data/val-0.txt', 'train val'),  # a folder around everything
    ('train/a.txt train/dev.txt', 'train train'),
    ('data/part.txt data/val.txt README.md prepare.py', 'train val train train'),
    ('en/train.txt en/val.txt fr/train.txt fr/dev.txt README.md', 'train val train val -'),
    ('val.txt test.txt', 'val test'),
])
def test_names_of_splits(files, expected):
    splits = split_names(files.split())
    assert splits == dict(zip(files.split(), [s if s != '-' else '' for s in expected.split()], strict=True))


def test_names_of_splits_deep_down_and_of_folders_alone():
    tables = ['en/train.jsonl', 'en/val.jsonl', 'fr/validation/1.jsonl', 'fr/2.jsonl']
    assert list(split_names(tables, 'any').values()) == ['train', 'val', 'val', '']
    assert list(split_names(tables[1:], 'top').values()) == ['train'] * 3
    pictures = ['train/cat/val.png', 'dev/cat/1.png', 'val.png', 'val/train/1.png']
    assert list(split_names(pictures, None).values()) == ['train', 'val', '', 'val']


def test_what_is_left_out_is_listed():
    splits = {'a': 'train', 'b': 'train', 'c': 'val', 'd': ''}
    assert tell_splits(splits, ['x.png']) == 'train: 2 files, val: 1 file, left out: 2 files (d, x.png)'
    assert tell_splits({'a': 'train'}) == 'train: 1 file, val: 0 files, left out: 0 files'
    assert tell_splits({'a': 'train', 'b': 'test'}) == (
        'train: 1 file, val: 0 files, test: 1 file, left out: 0 files')
    assert tell_splits({}, map(str, range(35))).endswith(
        'left out: 35 files (0, 1, 10, 11, 12, 13, 14, 15, 16, 17 and 25 more)')


def test_text_files_keep_their_named_splits(capsys):
    write('stories/TinyStories-train.txt', 'once ' * 50)
    write('stories/TinyStories-valid.txt', 'upon')
    write('stories/README.txt', 'about')
    write('stories/.git/HEAD', 'ref')
    assert prepare('stories') == [['once ' * 50], ['upon']]
    said = capsys.readouterr().out
    assert 'stories: text, train: 1 file, val: 1 file, left out: 2 files (.git, README.txt)' in said
    assert prepare('stories/TinyStories-valid.txt', val_fraction=0.5) == [['up'], ['on']]  # a file of its own

    for folder in 'train', 'val', 'dev', 'test':
        write(f'folders/{folder}/a.md', folder)
    assert prepare('folders') == [['train'], ['dev', 'val']]
    assert 'left out: 1 file (test/a.md)' in capsys.readouterr().out


def test_source_code_keeps_no_named_splits(capsys):
    write('repository/train.py', 'import model')
    write('repository/val.py', 'import this')
    write('repository/requirements-dev.txt', 'pytest')
    write('repository/requirements-test.txt', 'tox')
    write('repository/docs/test.md', '# test')
    train, val = prepare('repository', val_fraction=0.2)
    assert sorted(train + val) == ['# test', 'import model', 'import this', 'pytest', 'tox']
    assert len(val) == 1
    said = capsys.readouterr().out
    assert 'train: 5 files, val: 0 files, left out: 0 files. Validation is cut from train.' in said


@pytest.mark.parametrize('suffix', ['.jsonl', '.parquet', '.JSONL', '.PARQUET'])
def test_tables_keep_their_named_splits(suffix, capsys):
    make = write if suffix.lower() == '.jsonl' else table
    for name in 'train-1', 'extra', 'val':
        make(f'one/{name}{suffix}', [name] * 2)
    for name in 'part1', 'part2', 'val':
        make(f'two/{name}{suffix}', [name] * 2)
    for name in 'train', 'dev_test_notes', 'en/validation', 'en/dev':
        make(f'three/{name}{suffix}', [name])
    assert prepare('one') == [['train-1'] * 2, ['val'] * 2]
    assert f'train: 1 file, val: 1 file, left out: 1 file (extra{suffix})' in capsys.readouterr().out
    assert prepare('two') == [['part1'] * 2 + ['part2'] * 2, ['val'] * 2]
    assert prepare('three') == [['train'], ['en/dev', 'en/validation']]
    assert f'left out: 1 file (dev_test_notes{suffix})' in capsys.readouterr().out


def test_a_stream_keeps_the_validation_split_too():
    table('set/train.parquet', ['a', 'b', 'c'])
    table('set/validation.parquet', ['d', 'e'])
    assert prepare('set', streaming=True) == [['a', 'b', 'c'], ['d', 'e']]
    assert prepare('set', streaming=True, max_docs=1) == [['a'], ['d']]


def test_names_alone_leave_nothing_to_train_on():
    write('set/val.txt', 'a')
    write('set/test.txt', 'b')
    assert 'set has no training data' in refused('set')

# -----------------------------------------------------------------------------
# endings, compression, encodings


def zstd(raw):
    return pytest.importorskip('pyarrow').Codec('zstd').compress(raw).to_pybytes()


@pytest.mark.parametrize(
    'name', ['a.JSONL', 'a.Json', 'a.ndjson.gz', 'a.jsonl.zst', 'A.JSONL.XZ', 'a.json.bz2'])
def test_json_lines_whatever_their_name(name):
    lines = write('lines', texts := ['first', 'caf\u00e9', 'third']).read_bytes()
    packing = {**NAMES, '.zst': zstd}.get(Path(name).suffix.lower(), bytes)
    write(f'in/{name}', packing(lines))
    for dataset in f'in/{name}', 'in':
        train, val = prepare(dataset, val_fraction=0.3)
        assert sorted(train + val) == sorted(texts) and len(val) == 1


@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_packed_text_whatever_its_name(pack):
    text = 'na\u00efve \u4e2d\u6587\n' * 2000
    for i, name in enumerate(['a.txt', 'a.TXT.gz', 'a.log']):
        write(name, pack(text.encode()))
        train, val = prepare(name)
        assert train[0] + val[0] == text and abs(len(val[0]) - len(text) / 10) < 20
    write('two.txt', pack(b'one ') + pack(b'two'))  # as `cat a.gz b.gz` makes it
    assert ''.join(sum(prepare('two.txt', val_fraction=0.5), [])) == 'one two'


def test_packed_files_are_shuffled_like_plain_ones():
    texts = [f'text {i} ' * (i % 5) for i in range(300)]
    write('plain/a.jsonl', texts[:200])
    write('plain/b.jsonl', texts[200:])
    for path in Path('plain').iterdir():
        write(f'packed/{path.name}.gz', gzip.compress(path.read_bytes()))
    assert prepare('plain') == prepare('packed')


TEXT = 'na\u00efve \u042d\u0442\u043e \u4e2d\u6587 \U0001f600\r\nline 2\n'


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le',
                                      'utf-32-be', 'bom-utf-16-be', 'bom-utf-32-be'])
def test_other_encodings_of_unicode(encoding):
    bom, text = '\ufeff' * encoding.startswith('bom'), 'many plain words, and '*20 + TEXT
    encode = encoding.removeprefix('bom-')
    write('a/1.txt', (bom + text).encode(encode))
    write('a/2.txt', gzip.compress((bom + 'short').encode(encode)))
    write('a/3.txt', 'plain')
    train, val = prepare('a', val_fraction=0.1)
    assert sorted(train + val) == sorted([text, 'short', 'plain'])
    lines = bom + ''.join(json.dumps({'text': t}, ensure_ascii=False) + '\n' for t in (text, 'b', 'c'))
    write('a.jsonl', lines.encode(encode))
    train, val = prepare('a.jsonl', val_fraction=0.1)
    assert sorted(train + val) == sorted([text, 'b', 'c'])


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
def test_utf_16_of_cyrillic_without_a_mark(encoding):
    """Each of its bytes alone is valid UTF-8."""
    text = '\u042d\u0442\u043e \u0442\u0435\u043a\u0441\u0442, \u043d\u043e \u043d\u0435 UTF-8\n' * 9
    write('a.txt', text.encode(encoding))
    train, val = prepare('a.txt')
    assert train[0] + val[0] == text


def test_a_zero_byte_in_utf_8_is_a_byte_of_it():
    text = 'a long text with one\0zero, ' + 'as crawls have them, ' * 20
    write('a.txt', text)
    assert ''.join(sum(prepare('a.txt'), [])) == text


@pytest.mark.parametrize('content, words', [
    (b'PK\3\4' + bytes(99), 'not text but a zip archive'),
    (b'%PDF-1.7\n', 'not text but a PDF'),
    (gzip.compress(b'x' * 257 + b'ustar\0' + b'x' * 300), 'not text but a tar archive'),
    (gzip.compress(gzip.compress(b'text')), 'compressed twice'),
    (gzip.compress(os.urandom(5000))[:3000], 'cannot be unpacked'),
    (lzma.compress(os.urandom(5000))[:3000], 'cannot be unpacked'),
    (b'\x28\xb5\x2f\xfd' + bytes(99), 'cannot be unpacked'),
    ('\ufeffab'.encode('utf-16-le') + b'\0', 'nor valid UTF-16'),
    (bytes(range(255)) * 20, 'holds binary data'),
    (bytes(range(256)) * 20, 'nor valid UTF-16-BE'),
    (bytes(500), 'holds binary data'),
    ('\u4e2d\u6587\u5b57\u7b26\n'.encode('utf-16-le') * 20, 'UTF-16'),
    ('caf\u00e9'.encode('latin1') * 20, 'not UTF-8 at byte 3'),
    ('\u4e2d\u6587'.encode('gbk') * 20, 'not UTF-8 at byte 0'),
])
def test_what_is_no_text_is_called_by_its_name(content, words):
    write('in/a.txt', 'fine')
    path = write('in/b.txt', content)
    sentence = refused('in', val_fraction=0.5)
    assert str(path) in sentence and words in sentence and 'latin1' not in sentence


def test_a_table_with_another_ending_is_still_a_table():
    table('a.parquet', ['one', 'two'])
    Path('a.parquet').rename('a.data')
    train, val = prepare('a.data', val_fraction=0.5)
    assert sorted(train + val) == ['one', 'two']
    Path('a.data').rename('a.txt')
    assert 'a.txt is not text but a parquet file' in refused('a.txt')

# -----------------------------------------------------------------------------
# links and paths


def test_links_add_nothing_twice(capsys):
    for i in range(4):
        write(f'set/deep/{i}.txt', f'text {i}')
    write('elsewhere/far/5.txt', 'text 5')
    Path('set/deep/up').symlink_to('..')
    Path('set/deep/self').symlink_to('.')
    Path('set/again').symlink_to('deep')
    Path('set/0.txt').symlink_to('deep/0.txt')
    Path('set/nowhere.txt').symlink_to('gone.txt')
    Path('set/loop').symlink_to('loop')
    Path('set/one').symlink_to(Path('elsewhere').resolve())
    Path('set/two').symlink_to(Path('elsewhere').resolve())
    Path('elsewhere/back').symlink_to(Path('set').resolve())
    Path('elsewhere/home').symlink_to(Path().resolve())
    train, val = prepare('set', val_fraction=0.1)
    assert sorted(train + val) == ['text 0', 'text 1', 'text 2', 'text 3', 'text 5']
    said = capsys.readouterr().out
    assert 'train: 5 files' in said and 'left out: 9 files (' in said and 'nowhere.txt' in said


def test_links_into_a_store_are_files():
    """As the cache of the Hub and git-annex keep them."""
    for i in range(3):
        write(f'set/blobs/{i}', f'text {i}')
        Path(f'set/{i}.txt').symlink_to(f'blobs/{i}')
        write(f'annex/.git/{i}.txt', f'text {i}')
        Path(f'annex/{i}.txt').symlink_to(f'.git/{i}.txt')
    for name in 'set', 'annex':
        files = [path.relative_to(name).as_posix() for path in find_files(Path(name))[0] if path.suffix]
        assert files == ['0.txt', '1.txt', '2.txt']


def test_brackets_and_stars_in_paths():
    table('a[1]*?/tr[ai]n{x}.parquet', ['one', 'two'])
    write('b[1]*?/[x].jsonl', ['three', 'four'])
    for dataset, texts in (('a[1]*?', ['one', 'two']), ('a[1]*?/tr[ai]n{x}.parquet', ['one', 'two']),
                           ('b[1]*?', ['four', 'three'])):
        train, val = prepare(dataset, val_fraction=0.5)
        assert sorted(train + val) == texts

# -----------------------------------------------------------------------------
# tokens


def tiktoken_encoding():
    tiktoken = pytest.importorskip('tiktoken')
    cache = os.environ.get('TIKTOKEN_CACHE_DIR') or os.environ.get('DATA_GYM_CACHE_DIR')
    if not cache or not (Path(cache) / '0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4').exists():
        # the same pattern with a few merges of white space, which need no file
        from tiktoken_ext.openai_public import r50k_pat_str
        merges = [bytes([i]) for i in range(256)] + [
            b'  ', b'\n\n', b'    ', b' a', b'ab', b'        ', b'\n\n\n\n', b'\xc2\xa0']
        return tiktoken.Encoding('small', pat_str=r50k_pat_str, special_tokens={},
                                 mergeable_ranks={merge: i for i, merge in enumerate(merges)})
    return tiktoken.get_encoding('r50k_base')


def test_long_white_space_has_the_ids_of_tiktoken(monkeypatch):
    encoding, rng = tiktoken_encoding(), np.random.default_rng(1)
    monkeypatch.setattr(prepare_owt, 'SPACES', prepare_owt.SPACES.replace(str(prepare_owt.LONG), '2'))
    monkeypatch.setattr(prepare_owt, 'LONG', 1)
    parts = [' ', '  ', '\n', '\t', '\r\n', '\x0b', '\x1c', '\x1f', '\x85', '\xa0', '\u2028',
             '\u3000', '\u200b', '\ufeff', ' ' * 33, '\n' * 64, 'a', 'ab', '\u4e2d', '1', "'s", "'", '.',
             '<|endoftext|>']
    for _ in range(5000):
        text = ''.join(rng.choice(parts, rng.integers(12)))
        assert prepare_owt.encode_gpt2(encoding, text).tolist() == encoding.encode_ordinary(text), repr(text)


@pytest.mark.slow
def test_a_million_white_spaces():
    encoding = tiktoken_encoding()
    with pytest.raises(BaseException):  # else we need none of it
        encoding.encode_to_numpy(' ' * 1_000_000 + 'a')
    for text in (' ' * 1_000_000 + 'a', 'a' + ' \n' * 700_000 + 'b' + '\n' * 1_200_000,
                 '\u3000' * 1_000_000 + '.', (' ' * 600_000 + 'a') * 2):
        assert encoding.decode(prepare_owt.encode_gpt2(encoding, text).tolist()) == text
    # where tiktoken can do it, its ids
    text = ' ' * 900_000 + 'ab' + '\n' * 700_000 + ' a'
    assert prepare_owt.encode_gpt2(encoding, text).tolist() == encoding.encode_ordinary(text)

# -----------------------------------------------------------------------------
# sentences in place of tracebacks


def test_numbers_and_brackets_without_end_in_json():
    digits = '9' * 5000
    write('a.jsonl', f'{{"text": "one", "id": {digits}}}\n{{"text": "two", "id": -{digits}}}\n')
    train, val = prepare('a.jsonl', val_fraction=0.5)
    assert sorted(train + val) == ['one', 'two']
    write('b.jsonl', '{"text": "fine"}\n' * 2 + f'{{"text": "x", "deep": {"[" * 200_000}{"]" * 200_000}}}\n')
    assert 'b.jsonl, line 3 has too many brackets' in refused('b.jsonl')
    write('c.jsonl', f'{{"text": {digits}}}\n' * 3)
    sentence = refused('c.jsonl')
    assert 'c.jsonl, line ' in sentence and 'not text' in sentence and len(sentence) < 200
    row = json.dumps({f'key {i}': i for i in range(5000)})
    write('d.jsonl', f'{row}\n{row}\n')
    sentence = refused('d.jsonl')
    assert 'and 4,980 more' in sentence and len(sentence) < 500
    for line, words in (('3', 'is not a JSON object'), ('["text"]', 'begins a JSON array'),
                        ('{"text": ["a"]}', 'has list, not text'), ('{"text": "cut', 'is not JSON')):
        write('e.jsonl', f'{line}\n' * 3)
        sentence = refused('e.jsonl')
        assert 'e.jsonl, line ' in sentence and words in sentence


def test_names_that_the_terminal_cannot_show():
    write('caf\u00e9/train.txt', 'text one')
    write('caf\u00e9/val.txt', 'text two')
    write('caf\u00e9/\u042d.png', b'')
    if os.name == 'posix':
        write(os.fsdecode(b'caf\xc3\xa9/\xff.png'), b'')
    out, error, code = script('--dataset=caf\u00e9', PYTHONIOENCODING='ascii')
    assert code == 0 and 'caf\\xe9: text, train: 1 file, val: 1 file, left out: ' in out, error
    assert '\\u042d.png' in out
    assert documents('data/caf\u00e9/val.bin') == ['text two']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk():
    write('a.jsonl', [f'text {i}' * 100 for i in range(300)])
    Path('out').mkdir()
    Path('out/train.bin.tmp').symlink_to('/dev/full')
    _, error, code = script('--dataset=a.jsonl', '--out_dir=out')
    assert code == 1 and 'There is no space left on the disk' in error and '--out_dir' in error
    assert not Path('out').exists()


def test_a_full_disk_below_datasets():
    error = RuntimeError('An error occurred while generating the dataset')
    error.__cause__ = OSError(28, 'No space left on device')
    sentence = prepare_owt.hub_reason('me/set', error, 'download')
    assert sentence.startswith('There is no space left on the disk') and 'HF_HOME' in sentence


def test_copies_of_a_killed_run_go_away():
    write('a.txt', gzip.compress(b'some text'))
    write('out/.copies.tmp/0', 'old')
    assert ''.join(sum(prepare('a.txt'), [])) == 'some text'  # prepare() looks that none is left


def test_empty_inputs():
    write('empty.txt', '')
    write('empties/a.jsonl', '')
    write('empties/b.jsonl', '')
    Path('folder').mkdir()
    write('pictures/a.png', b'\x89PNG')
    assert refused('empty.txt') == 'empty.txt is an empty file.'
    assert refused('empties') == 'empties holds no text: all its files of json lines are empty.'
    assert refused('folder') == 'folder is an empty folder. It needs files that end in ' + ' '.join(
        sum(prepare_owt.ENDINGS.values(), [])) + '.'
    assert refused('pictures').startswith('pictures holds no text, only files that end in .png. It needs')


def test_other_things_that_are_no_text():
    """Members of the kinds that we found ourselves."""
    table('empty/a.parquet', [])
    assert refused('empty') == 'empty holds no text to train on: its files of parquet have no rows.'
    write('disk/data-00000-of-00001.arrow', b'ARROW1')  # save_to_disk() of `datasets`
    write('disk/state.json', '{"_data_files": []}')
    assert 'disk holds no text, only files that end in .arrow and .json' in refused('disk')
    write('set/a.txt', 'some text')
    prepare('set/a.txt', out='ready')
    assert refused('ready') == 'ready is prepared already. Use it with train_gpt.py --dataset=ready.'
    assert refused('not.txt') == 'There is no file or folder not.txt. Check the path.'  # not "no network"
    write('mark.txt', b'\xef\xbb\xbf')
    write('nothing.txt', gzip.compress(b''))
    for name in 'mark.txt', 'nothing.txt':
        assert refused(name) == f'{name} is an empty file.'
    write('array.json', '[{"text": "a"}, {"text": "b"}]')
    assert 'array.json, line 1 begins a JSON array' in refused('array.json')
    if hasattr(os, 'mkfifo'):
        os.mkfifo('set/b.txt')
        write('set/c.txt', 'more')
        assert sorted(sum(prepare('set'), [])) == ['more', 'some text']


def test_tables_of_other_writers():
    pa = pytest.importorskip('pyarrow')
    table('shards/a.parquet', [])  # a shard without rows
    table('shards/b.parquet', ['one', 'two'])
    assert sorted(sum(prepare('shards', val_fraction=0.5), [])) == ['one', 'two']
    texts = ['one', 'zw\u00f6lf']
    table('bytes.parquet', [text.encode() for text in texts])
    table('numbered.parquet', pa.array(texts).dictionary_encode())
    table('large.parquet', pa.array(texts, pa.large_string()))
    for name in 'bytes', 'numbered', 'large':
        for streaming in True, False:
            both = prepare(f'{name}.parquet', val_fraction=0.5, streaming=streaming)
            assert sorted(sum(both, [])) == texts
    table('binary.parquet', [b'\xff\xd8', b'\xff'])
    assert refused('binary.parquet') == (
        'The text column holds binary data. Set --text_column to a column of text.')


@pytest.mark.parametrize('dataset, name', [
    ('mytext.txt', 'mytext'), ('in/my.text.TXT', 'my.text'), ('mytext.txt.gz', 'mytext'),
    ('a.jsonl.zst', 'a'),
    ('gone.txt', 'gone'), ('gone.jsonl.gz', 'gone'), ('book', 'book'), ('odd.ending', 'odd'),
    ('folder.v1', 'folder.v1'), ('folder.txt', 'folder.txt'), ('folder.v1/', 'folder.v1'),
    ('stdlib', 'stdlib'), ('owner/set', 'set'),
    ('owner/set-1.5:config', 'set-1.5-config')])
def test_the_name_of_a_prepared_folder(dataset, name):
    for file in 'mytext.txt', 'in/my.text.TXT', 'mytext.txt.gz', 'a.jsonl.zst', 'book', 'odd.ending':
        write(file, 'text')
    for folder in 'folder.v1', 'folder.txt':
        Path(folder).mkdir()
    assert prepared_name(dataset) == name
    assert prepared_name(os.path.join(os.getcwd(), dataset)) == name


def test_a_text_is_prepared_under_its_name():
    write('in/mytext.txt.gz', gzip.compress(b'some text'))
    prepare_owt.main({**DEFAULTS, 'dataset': 'in/mytext.txt.gz', 'tokenizer': 'byte', 'num_proc': 1})
    assert ''.join(sum(map(documents, ('data/mytext/train.bin', 'data/mytext/val.bin')), [])) == 'some text'


def test_help_states_the_rule_of_splits():
    out, _, code = script('--help')
    assert code == 0 and RULE in out and len(RULE.splitlines()) == 3
    lines = out.partition('keys, as')[2].splitlines()
    keys = [line.split(' = ')[0].strip() for line in lines if ' = ' in line]
    assert set(keys) == {*DEFAULTS, 'dataset', 'tokenizer', 'num_proc'}
