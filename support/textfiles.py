"""Files as people have them: found in folders, recognized by their first bytes, unpacked, read as texts."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import zlib
from contextlib import contextmanager
from functools import partial

from support.console import fail
from support.splits import examples, is_about, split_files, tell_splits
from support.writing import said

# the first bytes of what we do not read as text: what it is, and what to do
OTHERS = {b'\xff\xfe\0\0': ('UTF-32 text', 'iconv -f UTF-32 -t UTF-8 FILE > NEW'),
          b'\xff\xfe': ('UTF-16 text', 'iconv -f UTF-16 -t UTF-8 FILE > NEW'),
          b'\xfe\xff': ('UTF-16 text', 'iconv -f UTF-16 -t UTF-8 FILE > NEW'),
          b'version https://git-lfs': ('a pointer of git-lfs to the real file', 'git lfs pull'),
          b'PAR1': ('a parquet file', 'mv FILE FILE.parquet'),
          b'PK\3\4': ('a zip archive', 'unzip FILE'),
          b'%PDF-': ('a PDF', 'pdftotext FILE')}
NOT_TEXT = 'not UTF-8 text', 'iconv -f ENCODING -t UTF-8 FILE > NEW, or unpack it if it is an archive'
LONG_WINDOW = 'packed by zstd with a long window', 'zstd -d --long=31 FILE'
CUT = 'packed, but cannot be unpacked: it may be cut short', 'fetch it again'
CONTROL = bytes(i for i in range(32) if not 9 <= i <= 13 and i != 27)  # all but white space and escape
BOM = b'\xef\xbb\xbf'

HIDDEN = re.compile('[.]|__pycache__$|__MACOSX$')
METADATA = re.compile('(meta|state|dataset_(info|infos|dict))[.]json')
TEXT = 'txt text tokens raw md rst tex html py c h cc cpp java js ts go rs sh'.split()
KINDS = {'parquet': 'parquet', 'jsonl': 'json lines', 'ndjson': 'json lines', 'json': 'json lines',
         **dict.fromkeys(TEXT, 'text')}


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
    top = os.path.join(os.path.realpath(root), '')
    files, links, skipped, seen = {}, [], [], set()  # {path without links: path}
    for folder, folders, names in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.join(os.path.realpath(folder), '')
        leads_back = os.path.islink(folder) and (real.startswith(top) or top.startswith(real))
        if real in seen or seen and (leads_back or HIDDEN.match(os.path.basename(folder))):
            skipped.append(folder)
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            path = os.path.join(folder, name)
            if HIDDEN.match(name) or not os.path.isfile(path):
                skipped.append(path)
            elif os.path.islink(path):
                links.append(path)
            else:
                files[real + name] = path
    found = list(files.values())
    for link in links:
        again = files.get(os.path.realpath(link), '').endswith(os.path.splitext(link)[1])  # a store has none
        (skipped if again else found).append(link)
    return sorted(found), sorted(skipped)


def stop(error):
    raise error


def open_zstd(path):
    import pyarrow  # the standard library has zstd from Python 3.14 on
    return io.BufferedReader(pyarrow.input_stream(str(path), compression='zstd'))


# how a file begins: what opens it. zstd may begin with a frame that is skipped
OPENERS = {rb'\x1f\x8b': gzip.open, rb'BZh': bz2.open, rb'\xfd7zXZ\0': lzma.open,
           rb'\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18': open_zstd, rb'': partial(open, mode='rb')}


@contextmanager
def open_text(path):
    """A file to read bytes from, unpacked if its first bytes say that it is packed."""
    with open(path, 'rb') as f:
        head = f.read(6)
    opener = next(opener for magic, opener in OPENERS.items() if re.match(magic, head))
    try:
        with opener(path) as f:
            yield f
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, 'errno', None):
            raise
        raise BadFile(path, *(LONG_WINDOW if 'too much memory' in str(error) else CUT)) from None


def check_text(path, kind):
    """Raises BadFile if the first bytes are not of that kind: 'text', 'json lines' or 'parquet'."""
    with open_text(path) as f:
        head = f.read(4096)
    if kind == 'parquet' and head.startswith(b'PAR1'):
        return
    for magic, other in OTHERS.items():
        if head.startswith(magic):
            raise BadFile(path, *other)
    if kind == 'parquet':
        raise BadFile(path, 'no parquet file', 'fetch it again')
    if head[257:262] == b'ustar':
        raise BadFile(path, 'a tar archive', 'tar -xf FILE')
    if kind == 'json lines' and head.removeprefix(BOM).lstrip()[:1] == b'[':
        raise BadFile(path, 'a JSON array', "jq -c '.[]' FILE > NEW.jsonl")
    if len(head.translate(None, CONTROL)) < 0.9 * len(head):
        raise BadFile(path, *NOT_TEXT)


def each(paths, function, *given):
    """What function(path, *given) yields for each path. It ends with all files that have the first fault."""
    faults = []
    for path in paths:
        try:
            yield from function(path, *given) or ()
        except BadFile as fault:
            faults.append(fault)
    if faults:
        _, what, remedy = faults[0].args
        files = [str(fault.args[0]) for fault in faults if fault.args[1:] == (what, remedy)]
        are = 'is' if len(files) == 1 else 'are'
        more = f' and {len(files) - 3:,} more' if len(files) > 3 else ''
        fail(f'{", ".join(files[:3])}{more} {are} {what}. Fix: {remedy}')


def kind_of(path):
    """'parquet', 'json lines', 'text' or None, by the ending of the name"""
    name = os.path.basename(path).lower()
    match = re.search(r'[.](\w+?)([.](gz|bz2|xz|zstd?))?$', name)
    if match and not METADATA.fullmatch(name):
        return KINDS.get(match[1])


def choose_kind(root, files):
    """'parquet', 'json lines' or 'text', and the files of that kind. Two kinds in one folder stop."""
    if os.path.isfile(root):
        return kind_of(root) or 'text', files
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
    refuse_arrow(root, others)
    there = examples(map(os.path.basename, others)) or 'nothing'
    fail(f'{root} holds no text but {there}. It needs files that end in .{" .".join(KINDS)}.')


def refuse_arrow(root, files):
    if any(path.endswith('.arrow') for path in files):
        fail(f'{root} was written by save_to_disk. Convert each of its splits to parquet: python -c "import '
             "datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\"")


def find_texts(config):
    """The path of the dataset, the kind of its files, {'train', 'val': paths}; checked and told"""
    root, folder = config['dataset'], config['val']
    files, skipped = find_files(root)
    kind, chosen = choose_kind(root, files)
    held_out = []
    if folder:
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
    list(each(used, check_text, kind))
    return root, kind, splits


def read_texts(paths, kind, column='text'):
    """The texts of files of one kind"""
    if kind == 'text':
        return each(paths, lambda path: [read_text(path)])
    return each(paths, read_json if kind == 'json lines' else read_parquet, column)


def read_text(path):
    with open_text(path) as f:
        raw = f.read().removeprefix(BOM)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadFile(f'{path} (byte {error.start})', *NOT_TEXT) from None


def read_prompt(path):
    """A text as prepare_owt.py reads it"""
    try:
        list(each([path], check_text, 'text'))
        [text] = read_texts([path], 'text')
    except OSError as error:
        fail(f'Cannot read the prompt file {path} ({error.strerror}).')
    return text


def read_json(path, column):
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            line = line.removeprefix(BOM)
            if line.strip():
                yield read_line(line, f'{path}, line {number}', column)


def read_line(line, where, column):
    """The text of one line of json"""
    try:
        row = json.loads(line.decode(), parse_int=float)  # Python converts no int of more than 4300 digits
        if row[column] is None:
            return None
        # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return row[column].encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    except UnicodeDecodeError:
        raise BadFile(where, *NOT_TEXT) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        start = line[:80].decode(errors='replace').strip()
        raise BadFile(f'{where} ({said(error)}: {start})', f'no JSON object with text under {column!r}',
                      'write one object per line, or set --text_column to the key of the text') from None


def read_parquet(path, column):
    import pyarrow
    import pyarrow.parquet
    try:
        with open(path, 'rb') as f:  # of a path, pyarrow takes what is before '::' for a protocol
            table = pyarrow.parquet.ParquetFile(f)
            check_column(path, table.schema_arrow, column)
            for batch in table.iter_batches(64, columns=[column]):
                yield from batch.column(0).cast(pyarrow.large_string()).to_pylist()
    except (ValueError, OSError) as error:
        raise BadFile(path, f'not readable as parquet ({said(error)})', 'fetch or write it again') from None


def check_column(label, schema, column):
    """The column must be one of text in a schema of pyarrow."""
    kinds = dict(zip(schema.names, map(str, schema.types)))
    if not re.match('(dictionary<values=)?(large_)?(string|binary)|null', kinds.get(column, '')):
        there = examples([f'{name}: {kind}' for name, kind in kinds.items()], 20)
        fail(f'{label} has no text under {column!r}. Set --text_column to one of its columns of text '
             f'({there}).')
