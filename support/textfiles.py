"""Files as people have them: found in folders, recognized by their first bytes, unpacked."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import zlib
from contextlib import contextmanager

from support.console import fail
from support.splits import examples, is_about, split_ending, split_files, tell_splits
from support.writing import said

UTF16 = 'UTF-16 text', 'iconv -f UTF-16 -t UTF-8 FILE > NEW'
UTF32 = 'UTF-32 text', 'iconv -f UTF-32 -t UTF-8 FILE > NEW'
TWICE = 'packed twice', 'unpack it once'
PICTURE = 'a picture', 'prepare_imagenet.py takes pictures'
# the first bytes of what we do not read as text: what it is, and what to do
OTHERS = {b'\xff\xfe\0\0': UTF32, b'\0\0\xfe\xff': UTF32, b'\xff\xfe': UTF16, b'\xfe\xff': UTF16,
          b'version https://git-lfs': ('a pointer of git-lfs to the real file', 'git lfs pull'),
          b'PK\3\4': ('a zip archive', 'unzip FILE'), b'%PDF-': ('a PDF', 'pdftotext FILE'),
          b"7z\xbc\xaf'\x1c": ('a 7z archive', '7z x FILE'), b'Rar!\x1a\7': ('a rar archive', 'unrar x FILE'),
          b'PAR1': ('a parquet file', 'mv FILE FILE.parquet'),
          b'\x1f\x8b': TWICE, b'BZh': TWICE, b'\xfd7zXZ\0': TWICE, b'\x28\xb5\x2f\xfd': TWICE,
          b'\x89PNG': PICTURE, b'\xff\xd8\xff': PICTURE}
LONG_WINDOW = 'packed by zstd with a long window', 'zstd -d --long=31 FILE'
CUT = 'packed, but cannot be unpacked: it may be cut short', 'fetch it again'
BINARY = 'binary data, or UTF-16 without a byte order mark', 'iconv -f UTF-16LE -t UTF-8 FILE > NEW'
CONTROL = bytes(i for i in range(32) if not 9 <= i <= 13 and i != 27)  # all but white space and escape
BOM = b'\xef\xbb\xbf'

HIDDEN = re.compile('[.]|__pycache__$|__MACOSX$')
METADATA = re.compile('(meta|state|dataset_(info|infos|dict))[.]json')
ENDINGS = {'parquet': ['.parquet'], 'json lines': ['.jsonl', '.ndjson', '.json'],
           'text': ('.txt .text .tokens .raw .md .rst .tex .html '
                    '.py .c .h .cc .cpp .java .js .ts .go .rs .sh').split()}


class BadFile(Exception):
    """(file, what it is, what to do)"""


def find_files(root):
    """
    (all files below root, sorted; what is skipped). Skipped are hidden names, what is no file, and links to
    what is found anyway or to a folder around root. Another link is followed, once.
    """
    if os.path.isfile(root):
        return [str(root)], []
    if not os.path.exists(root):
        fail(f'There is no file or folder {root}. Check the path.')
    top = os.path.realpath(root)
    files, skipped, seen = {}, [], set()  # {path without links: path}
    folders, links, linked_files = [root], [], []
    while folders or links:
        if not folders:  # what links lead to may be found anyway, so they come last
            links.sort(reverse=True)
            folders.append(links.pop())
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen or top.startswith(os.path.join(real, '')):
            skipped.append(folder)
            continue
        seen.add(real)
        for entry in os.scandir(folder):
            leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)
            if HIDDEN.match(entry.name) or leads_nowhere or not (entry.is_dir() or entry.is_file()):
                skipped.append(entry.path)
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            elif entry.is_symlink():
                linked_files.append(entry.path)
            else:
                files[os.path.join(real, entry.name)] = entry.path
    found = list(files.values())
    for path in linked_files:
        real = os.path.realpath(path)
        again = real in files and os.path.splitext(real)[1] == os.path.splitext(path)[1]  # a store has none
        (skipped if again else found).append(path)
    return sorted(found), sorted(skipped)


@contextmanager
def open_text(path):
    """A file to read bytes from, unpacked if its first bytes say that it is packed."""
    with open(path, 'rb') as f:
        head = f.read(6)
    try:
        if head.startswith(b'\x1f\x8b'):
            f = gzip.open(path)
        elif head.startswith(b'BZh'):
            f = bz2.open(path)
        elif head.startswith(b'\xfd7zXZ\0'):
            f = lzma.open(path)
        elif head.startswith(b'\x28\xb5\x2f\xfd') or head[1:4] == b'\x2a\x4d\x18':  # a frame that is skipped
            import pyarrow  # the standard library has zstd from Python 3.14 on
            f = io.BufferedReader(pyarrow.input_stream(str(path), compression='zstd'))
        else:
            f = open(path, 'rb')
        with f:
            yield f
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, 'errno', None):
            raise
        raise BadFile(path, *(LONG_WINDOW if 'too much memory' in str(error) else CUT)) from None


def read_bytes(path):
    """The bytes of a text, unpacked and without the mark of UTF-8"""
    with open_text(path) as f:
        return f.read().removeprefix(BOM)


def read_text(path, start=0, end=None):
    """A text, or its bytes from start to end"""
    try:
        return read_bytes(path)[start:end].decode()
    except UnicodeDecodeError as error:
        raise BadFile(f'{path} (byte {start + error.start})', 'not UTF-8',
                      'iconv -f ENCODING -t UTF-8 FILE > NEW') from None


def read_prompt(path):
    """A text as prepare_owt.py reads it."""
    try:
        check_text(path, 'text')
        return read_text(path)
    except BadFile as fault:
        fail_together([fault])
    except OSError as error:
        fail(f'Cannot read the prompt file {path} ({error.strerror}).')


def check_text(path, kind):
    """Raises BadFile if the first bytes are not of that kind: 'text', 'json lines' or 'parquet'."""
    with open_text(path) as f:
        head = f.read(4096)
    if kind == 'parquet' and head.startswith(b'PAR1'):
        return
    for magic, other in OTHERS.items():
        if head.startswith(magic):
            raise BadFile(path, *other)
    if head[257:262] == b'ustar':
        raise BadFile(path, 'a tar archive', 'tar -xf FILE')
    if kind == 'json lines' and head.removeprefix(BOM).lstrip()[:1] == b'[':
        raise BadFile(path, 'a JSON array', "jq -c '.[]' FILE > NEW.jsonl")
    if len(head) - len(head.translate(None, CONTROL)) > len(head) / 10:
        raise BadFile(path, *BINARY)


def fail_together(faults):
    """Ends with one sentence about all files that have the first fault. faults: [BadFile]"""
    _, what, remedy = faults[0].args
    files = sorted(str(fault.args[0]) for fault in faults if fault.args[1:] == (what, remedy))
    are = 'is' if len(files) == 1 else 'are'
    more = f' and {len(files) - 3:,} more' if len(files) > 3 else ''
    fail(f'{", ".join(files[:3])}{more} {are} {what}. Fix: {remedy}')


def each(paths, function, *given):
    """function(path, *given) of each path, in their order. It ends with all that have the first fault."""
    faults = []
    for path in paths:
        try:
            yield function(path, *given)
        except BadFile as fault:
            faults.append(fault)
    if faults:
        fail_together(faults)


def kind_of(path):
    ending = split_ending(path)[1]
    for kind, endings in ENDINGS.items():
        if ending in endings and not METADATA.fullmatch(os.path.basename(path)):
            return kind


def choose_kind(root, files):
    """'parquet', 'json lines' or 'text', and the files of that kind. Two kinds in one folder stop."""
    if os.path.isfile(root):
        with open(root, 'rb') as f:
            other = 'parquet' if f.read(4) == b'PAR1' else 'text'
        return kind_of(root) or other, files
    kinds = {}
    for path in files:
        kinds.setdefault(kind_of(path), []).append(path)
    others = kinds.pop(None, [])
    for kind in list(kinds):  # a README or a package.json may lie beside the data
        if len(kinds) > 1 and all(is_about(path) or path.endswith('.json') for path in kinds[kind]):
            del kinds[kind]
    if len(kinds) == 1:
        return kinds.popitem()
    if kinds:
        there = [f'{kind} ({examples(map(os.path.basename, kinds[kind]), 2)})' for kind in kinds]
        fail(f'{root} holds {" and ".join(there)}. Move all but one kind out of it, or give a single file.')
    if os.path.exists(f'{root}/train.bin'):
        fail(f'{root} is prepared already. Use it with train_gpt.py --dataset={root}.')
    refuse_arrow(root, others)
    there = examples(map(os.path.basename, others)) or 'nothing'
    endings = ' '.join(sum(ENDINGS.values(), []))
    fail(f'{root} holds no text but {there}. It needs files that end in {endings}.')


def refuse_arrow(root, files):
    if any(path.endswith('.arrow') for path in files):
        fail(f'{root} was written by save_to_disk. Convert each of its splits to parquet: python -c "import '
             "datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\"")


def find_texts(config):
    """The path of the dataset, the kind of its files, {'train', 'val': paths}; all checked and told."""
    root, column = config['dataset'], config['text_column']
    files, skipped = find_files(root)
    kind, chosen = choose_kind(root, files)
    held_out = []
    if config['val']:
        folder = config['val']
        val_kind, held_out = choose_kind(folder, find_files(folder)[0])
        if val_kind != kind:
            fail(f'--val={folder} is {val_kind}, but {root} is {kind}. Give the same kind.')
    splits = split_files(root, chosen, held_out, config)
    del splits['test']
    used = splits['train'] + splits['val']
    print(f'{root}: {kind}, ', end='')
    tell_splits(root, splits, sorted({*files, *skipped}.difference(used)))
    if not splits['train']:
        fail(f'{root} has no training data: by their names, all files are for validation or test. Rename one '
             'of them, or give it as --dataset.')
    rows = list(each(used, check_file, kind, column))
    if kind == 'parquet':
        empty = {path for path, n in zip(used, rows) if not n}  # `datasets` fails at a file without rows
        splits = {split: [path for path in splits[split] if path not in empty] for split in splits}
    return root, kind, splits


def check_file(path, kind, column):
    """-> the number of rows of a table"""
    check_text(path, kind)
    if kind != 'parquet':
        return None
    import pyarrow.parquet
    try:
        with open(path, 'rb') as f:  # of a path, pyarrow takes what is before '::' for a protocol
            metadata = pyarrow.parquet.read_metadata(f)
    except (ValueError, OSError) as error:
        raise BadFile(path, f'not readable as parquet ({said(error)})', 'fetch it again') from None
    schema = metadata.schema.to_arrow_schema()
    kinds = dict(zip(schema.names, map(str, schema.types)))
    if not re.match('(dictionary<values=)?(large_)?(string|binary)|null', kinds.get(column, '')):
        there = examples([f'{name}: {kind}' for name, kind in kinds.items()], 20)
        raise BadFile(path, f'without text under {column!r} (its columns are {there})',
                      'set --text_column to a column of text')
    return metadata.num_rows


def read_texts(pieces):
    """The texts of pieces of files, each as (path, first byte, end)"""
    return each(pieces, lambda piece: read_text(*piece))


def read_json(pieces, column):
    """The texts of files of json lines"""
    rows = 0
    try:
        for path in pieces:
            with open_text(path) as f:
                for number, line in enumerate(f, 1):
                    line = line.removeprefix(BOM)
                    if line.strip():
                        yield read_line(line, f'{path}, line {number}', column)
                        rows += 1
    except BadFile as fault:
        fail_together([fault])
    if not rows:
        fail(f'There is no text in {examples(pieces)}.')


def read_line(line, where, column):
    """The text of one line of json."""
    try:
        row = json.loads(line.decode(), parse_int=float)  # Python converts no int of more than 4300 digits
        text = row[column]
        if text is None:
            return None
        # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    except KeyError:
        why = f'its keys are {examples(row, 20)}'
    except TypeError:
        why = f'it has {type(row).__name__}'
    except AttributeError:
        why = f'it has {type(text).__name__} there'
    except (ValueError, RecursionError) as error:
        why = said(error)
    raise BadFile(where, f'no JSON object with text under {column!r} ({why})',
                  'write one object per line, or set --text_column to the key of the text')
