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
from support.splits import PACKED, examples, is_about, split_files, tell_splits
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

METADATA = re.compile('(meta|state|dataset_(info|infos|dict))[.]json')
ENDINGS = {'parquet': ['.parquet'], 'json lines': ['.jsonl', '.ndjson', '.json'],
           'text': ('.txt .text .tokens .raw .md .rst .tex .html '
                    '.py .c .h .cc .cpp .java .js .ts .go .rs .sh').split()}


class BadFile(Exception):
    """(file, what it is, what to do)"""


def is_hidden(name):
    return name[0] == '.' or name in ('__pycache__', '__MACOSX')


def find_files(root):
    """
    (all files below root, sorted; what is skipped). Skipped are hidden names, pipes, and links that lead
    nowhere, to a folder around them or to what is found anyway. Another link is followed, once.
    """
    if os.path.isfile(root):
        return [str(root)], []
    if not os.path.exists(root):
        fail(f'There is no file or folder {root}. Check the path.')
    top = os.path.realpath(root)
    files, links, skipped, seen = [], [], [], {top}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in list(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            around = top.startswith(os.path.join(real, ''))
            inside = real.startswith(os.path.join(top, '')) and os.path.islink(path)
            if is_hidden(name) or around or inside or real in seen:
                skipped.append(path)
                folders.remove(name)
            else:
                seen.add(real)
        for name in names:
            path = os.path.join(folder, name)
            if is_hidden(name) or not os.path.isfile(path):
                skipped.append(path)
            elif os.path.islink(path):
                links.append(path)
            else:
                files.append(path)
    found = {os.path.realpath(path) for path in files} if links else ()
    for path in links:  # the files of a store have no endings, or are hidden
        real = os.path.realpath(path)
        again = real in found and os.path.splitext(real)[1] == os.path.splitext(path)[1]
        (skipped if again else files).append(path)
    return sorted(files), sorted(skipped)


def first_bytes(path, n=4096):
    with open(path, 'rb') as f:
        return f.read(n)


@contextmanager
def open_text(path):
    """A file to read bytes from, unpacked if its first bytes say that it is packed."""
    head = first_bytes(path, 6)
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


def read_text(path):
    """The bytes of a text, unpacked and without the mark of UTF-8."""
    with open_text(path) as f:
        return f.read().removeprefix(BOM)


def read_prompt(path):
    """A text as prepare_owt.py reads it."""
    try:
        check_text(path, 'text')
        return read_text(path).decode()
    except UnicodeDecodeError as error:
        fail_together([not_utf8(f'{path} (byte {error.start})')])
    except BadFile as fault:
        fail_together([fault])
    except OSError as error:
        fail(f'Cannot read the prompt file {path} ({error.strerror}).')


def not_utf8(where):
    return BadFile(where, 'not UTF-8', 'iconv -f ENCODING -t UTF-8 FILE > NEW')


def find_cut(raw, share):
    """Where the last share of a text begins: behind a line or, without lines, behind a character"""
    at = int(len(raw) * (1 - share))
    cut = raw.find(b'\n', at) + 1
    if cut in (0, len(raw)):
        cut = at
        while cut < len(raw) and raw[cut] & 0xC0 == 0x80:
            cut += 1
    return cut


def read_texts(pieces, keys):
    """The texts, or faults, of some pieces of files, which are (path, first byte, end)."""
    for key in keys:
        path, start, end = pieces[key]
        try:
            yield read_text(path)[start:end].decode()
        except UnicodeDecodeError as error:
            yield not_utf8(f'{path} (byte {start + error.start})')
        except BadFile as fault:
            yield fault


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


def kind_of(path):
    path = path.lower()
    for ending in PACKED:
        path = path.removesuffix(ending)
    for kind, endings in ENDINGS.items():
        if os.path.splitext(path)[1] in endings and not METADATA.fullmatch(os.path.basename(path)):
            return kind


def choose_kind(root, files):
    """'parquet', 'json lines' or 'text', and the files of that kind. Two kinds in one folder stop."""
    if os.path.isfile(root):
        return kind_of(root) or ('parquet' if first_bytes(root).startswith(b'PAR1') else 'text'), files
    found = {kind: [path for path in files if kind_of(path) == kind] for kind in ENDINGS}
    texts = [path for path in found['text'] if not is_about(path)]
    if found['parquet'] or texts:  # these have a package.json or the like beside them
        found['json lines'] = [path for path in found['json lines'] if not path.endswith('.json')]
    if found['parquet'] or found['json lines']:  # and these a README
        found['text'] = texts
    found = {kind: paths for kind, paths in found.items() if paths}
    if len(found) == 1:
        return found.popitem()
    if found:
        kinds = ' and '.join(f'{kind} ({examples(map(os.path.basename, found[kind]), 2)})' for kind in found)
        fail(f'{root} holds {kinds}. Move all but one kind out of it, or give a single file.')
    if os.path.exists(f'{root}/train.bin'):
        fail(f'{root} is prepared already. Use it with train_gpt.py --dataset={root}.')
    if any(path.endswith('.arrow') for path in files):
        fail(f'{root} was written by save_to_disk. Convert each of its splits to parquet: python -c "import '
             "datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\"")
    there = sorted({os.path.splitext(path)[1] or os.path.basename(path) for path in files})
    what = f'holds no text, only files that end in {examples(there, 5)}' if files else 'is an empty folder'
    fail(f'{root} {what}. It needs files that end in {" ".join(sum(ENDINGS.values(), []))}.')


def find_texts(config):
    """The path of the dataset, the kind of its files, {'train', 'val': paths}; all checked and told."""
    root = os.path.expanduser(config['dataset'])
    files, skipped = find_files(root)
    kind, chosen = choose_kind(root, files)
    held_out = []
    if config['val']:
        folder = os.path.expanduser(config['val'])
        val_kind, held_out = choose_kind(folder, find_files(folder)[0])
        if val_kind != kind:
            fail(f'--val={folder} is {val_kind}, but {root} is {kind}. Give the same kind.')
    splits = split_files(root, chosen, held_out, config)
    del splits['test']
    others = {*files, *skipped}.difference(splits['train'], splits['val'])
    print(f'{root}: {kind}, ', end='')
    tell_splits(root, splits, sorted(others))
    if not splits['train']:
        fail(f'{root} has no training data: by their names, all files are for validation or test. Rename one '
             'of them, or give it as --dataset.')
    faults = []
    for path in splits['train'] + splits['val']:
        try:
            check_text(path, kind)
            if kind == 'parquet':
                check_table(path, config['text_column'])
        except BadFile as fault:
            faults.append(fault)
    if faults:
        fail_together(faults)
    return root, kind, splits


def check_table(path, column):
    import pyarrow.parquet
    try:
        with open(path, 'rb') as f:  # of a path, pyarrow takes what is before '::' for a protocol
            schema = pyarrow.parquet.read_schema(f)
    except (ValueError, OSError) as error:
        raise BadFile(path, f'not readable as parquet ({said(error)})', 'fetch it again') from None
    kinds = dict(zip(schema.names, map(str, schema.types)))
    if column not in kinds:
        raise BadFile(path, f'without a column {column!r}',
                      f'set --text_column to one of {examples(kinds, 20)}')
    if not re.match('(dictionary<values=)?(large_)?(string|binary)|null', kinds[column]):
        raise BadFile(path, f'without text: {column!r} has {kinds[column]}', 'see --text_column')


def count_rows(path):
    import pyarrow.parquet
    with open(path, 'rb') as f:
        return pyarrow.parquet.read_metadata(f).num_rows


def read_json(paths, column):
    rows = 0
    try:
        for path in paths:
            with open_text(path) as f:
                for number, line in enumerate(f, 1):
                    line = line.removeprefix(BOM)
                    if line.strip():
                        yield {column: read_line(line, f'{path}, line {number}', column)}
                        rows += 1
    except BadFile as fault:
        fail_together([fault])
    if not rows:
        fail(f'There is no text in {examples(paths)}.')


def read_line(line, where, column):
    """The text of one line of json."""
    try:
        row = json.loads(line.decode(), parse_int=float)  # Python converts no int of more than 4300 digits
        why = f'it has {type(row).__name__}'
        if isinstance(row, dict):
            why = f'its keys are {examples(row, 20)}'
            text = row.get(column, row)
            if isinstance(text, (str, type(None))):
                # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
                return text and text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
            if column in row:
                why = f'it has {type(text).__name__} there'
    except (ValueError, RecursionError) as error:
        why = said(error)
    raise BadFile(where, f'no JSON object with text under {column!r} ({why})',
                  'write one object per line, or set --text_column to the key of the text')
