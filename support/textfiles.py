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

from support.console import fail, reason
from support.splits import examples, split_files, tell_splits

# how a file begins that we do not read: what it is, and what to do
OTHERS = {rb'\xff\xfe(?!\0\0)|\xfe\xff': ('UTF-16 text', 'iconv -f UTF-16 -t UTF-8 FILE > NEW'),
          rb'version https://git-lfs': ('a pointer of git-lfs to the real file', 'git lfs pull'),
          rb'PK\x03\x04': ('a zip archive', 'unzip FILE'),
          rb'.{257}ustar': ('a tar archive', 'tar -xf FILE')}
NOT_TEXT = 'not UTF-8 text', 'iconv -f ENCODING -t UTF-8 FILE > NEW, or unpack it if it is an archive'

HIDDEN = re.compile('[.]|__pycache__$|__MACOSX$|(dataset_infos?|meta)[.]json$')  # nobody's data
README = re.compile('README|LICENSE|NOTICE|CITATION')
ABOUT = re.compile(f'({README.pattern})|.*[.]json$')  # may lie beside data of another kind
TEXT = 'txt text tokens raw md rst tex html py c h cc cpp java js ts go rs sh'.split()
KINDS = {'parquet': 'parquet', 'jsonl': 'json lines', 'ndjson': 'json lines', 'json': 'json lines',
         **dict.fromkeys(TEXT, 'text')}


class BadFile(Exception):
    """(file, what it is, what to do)"""


def find_files(root):
    """
    (all files below root, sorted; what is skipped). Skipped are hidden names, what is no file, and links to a
    folder that is found anyway or lies around root. Another link is followed, once.
    """
    if os.path.isfile(root):
        return [str(root)], []
    if not os.path.exists(root):
        fail(f'There is no file or folder {root}. Check the path.')
    top = os.path.realpath(root)

    def leads_back(real):
        around = os.path.commonpath([top, real]) == real
        # a part that begins with a dot is hidden, or is '..' and leads out of root
        return around or not any(map(HIDDEN.match, os.path.relpath(real, top).split(os.sep)))

    files, skipped, seen, waiting = [], [], {top}, [root]
    while waiting:
        folder = waiting.pop()
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not HIDDEN.match(name):
                files.append(path)
                continue
            real = os.path.realpath(path)
            back = os.path.islink(path) and leads_back(real)
            if HIDDEN.match(name) or not os.path.isdir(path) or real in seen or back:
                skipped.append(path)
            else:
                seen.add(real)
                waiting.append(path)
    return sorted(files), sorted(skipped)


def open_zstd(path):
    import pyarrow  # the standard library has zstd from Python 3.14 on
    return io.BufferedReader(pyarrow.input_stream(str(path), compression='zstd'))


# how a file begins: what opens it. zstd may begin with a frame that is skipped
OPENERS = {rb'\x1f\x8b': gzip.open, rb'BZh': bz2.open, rb'\xfd7zXZ\0': lzma.open,
           rb'\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18': open_zstd,
           rb'': lambda path: open(path, 'rb')}


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
        if 'too much memory' in str(error):
            raise BadFile(path, 'packed by zstd with a long window', 'zstd -d --long=31 FILE') from None
        raise BadFile(path, 'packed, but cannot be unpacked: it may be cut short', 'fetch it again') from None


def check_text(path, kind):
    """Raises BadFile if the first bytes are not of that kind: 'text', 'json lines' or 'parquet'."""
    with open_text(path) as f:
        head = f.read(4096)
    for magic, other in OTHERS.items():
        if re.match(magic, head, re.DOTALL):
            raise BadFile(path, *other)
    if kind != 'parquet' and head.count(0) > len(head) / 50:  # UTF-16 without a mark is often valid UTF-8
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
        fail(f'{examples(files)} {are} {what}. Fix: {remedy}')


def kind_of(path, named):
    """'parquet', 'json lines', 'text' or None, by the ending. What is named itself is at least text."""
    match = re.search(r'[.](\w+?)([.](gz|bz2|xz|zstd?))?$', path.lower())
    return KINDS.get(match and match[1], 'text' if path in named else None)


def refuse_arrow(root, files):
    if any(path.endswith('.arrow') for path in files):
        fail(f'{root} was written by save_to_disk. Convert each of its splits to parquet: python -c "import '
             "datasets; datasets.load_from_disk('SPLIT').to_parquet('NEW/train.parquet')\"")


def without_readme(root, paths):
    """The paths, but for a README and its like directly in root. If there is nothing else, it is a text."""
    further = [path for path in paths
               if os.path.dirname(path) != root.rstrip('/') or not README.match(os.path.basename(path))]
    return further or paths


def find_texts(config):
    """The kind of the files in the dataset, {'train', 'val': paths}; checked and told"""
    root, val = config['dataset'], config['val']
    found, skipped = find_files(root)
    held_out = find_files(val)[0] if val else []
    refuse_arrow(root, found)
    kinds = {path: kind_of(path, (root, val)) for path in found + held_out}
    data = [path for path in kinds if not ABOUT.match(os.path.basename(path))]
    there = {kinds[path] for path in data} - {None} or set(kinds.values()) - {None}
    if len(there) != 1:
        fail(f'{root} holds {" and ".join(sorted(there)) or "no text"} ({examples(kinds) or "nothing"}). It '
             f'needs files of one kind, which end in .{" .".join(KINDS)}.')
    [kind] = there
    chosen = without_readme(root, [path for path in found if kinds[path] == kind])
    held_out = without_readme(val, [path for path in held_out if kinds[path] == kind])
    files = split_files(root, chosen, held_out, config)
    del files['test']
    print(f'{root}: {kind}, ', end='')
    tell_splits(root, files, sorted({*found, *skipped}.difference(*files.values())))
    for split, folder in (('train', root), ('val', val)):
        if folder and not files[split]:
            fail(f'{folder} has no {kind} for {split}. Give other files, or rename those whose names say '
                 'another split.')
    list(each(files['train'] + files['val'], check_text, kind))
    return kind, files


def read_texts(paths, kind, column='text'):
    """The texts of files of one kind"""
    read = {'text': read_text, 'json lines': read_json, 'parquet': read_parquet}[kind]
    return each(paths, read, column)


def read_prompt(path):
    """A text as prepare_owt.py reads it"""
    try:
        list(each([path], check_text, 'text'))
        [text] = read_texts([path], 'text')
    except OSError as error:
        fail(f'Cannot read the prompt file {path} ({error.strerror}).')
    return text


def decoded(raw, where):
    try:
        return raw.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise BadFile(f'{where} (byte {error.start})', *NOT_TEXT) from None


def read_text(path, column):
    with open_text(path) as f:
        yield decoded(f.read(), path)


def read_json(path, column):
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            where = f'{path}, line {number}'
            line = decoded(line, where)
            if line.strip():
                yield read_line(line, where, column)


def read_line(line, where, column):
    """The text of one line of json"""
    try:
        text = json.loads(line)[column]
        if text is None:
            return ''
        # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile(f'{where} ({reason(error)})', f'no JSON object with text under {column!r}',
                      "write one object per line (jq -c '.[]' FILE > NEW.jsonl does it for an array), set "
                      '--text_column to the key of the text, or move away what is no data') from None


@contextmanager
def open_parquet(path):
    from pyarrow.parquet import ParquetFile
    try:
        with open(path, 'rb') as f:  # of a path, pyarrow takes what is before '::' for a protocol
            table = ParquetFile(f)
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                fail(f'{path} has columns of the same name ({examples(names, 20)}). Rename one of them.')
            yield table
    except (ValueError, OSError) as error:
        fail(f'{path} cannot be read as parquet ({reason(error)}). Fetch or write it again.')


def read_parquet(path, column):
    with open_parquet(path) as table:
        check_column(path, table.schema_arrow, column)
        for batch in table.iter_batches(1024, columns=[column]):
            yield from batch[column].cast('large_string').to_pylist()


def check_column(label, schema, column):
    """The column must be one of text in a schema of pyarrow."""
    kinds = dict(zip(schema.names, map(str, schema.types)))
    if not re.match('(dictionary<values=)?(large_)?(string|binary)|null', kinds.get(column, '')):
        there = examples([f'{name}: {kind}' for name, kind in kinds.items()], 20)
        fail(f'{label} has no text under {column!r}. Set --text_column to one of its columns of text '
             f'({there}).')
