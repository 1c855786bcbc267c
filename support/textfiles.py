"""Files as people have them: folders with links in them, compressed text, text in UTF-16 or UTF-32."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import shutil
import zlib
from pathlib import Path

# what the first bytes say, whatever the file is called
PACKED = {b'\x1f\x8b': 'gzip', b'BZh': 'bz2', b'\xfd7zXZ\0': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
BOMS = {codecs.BOM_UTF8: 'utf-8-sig',
        codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32',  # begins with the mark of UTF-16
        codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}
NO_TEXT = {b'PK\3\4': 'a zip archive. Unpack it', b"7z\xbc\xaf'\x1c": 'a 7z archive. Unpack it',
           b'Rar!\x1a\7': 'a rar archive. Unpack it', b'%PDF-': 'a PDF. Extract its text',
           b'PAR1': 'a parquet file. Give it the ending .parquet',
           b'\x89PNG': 'a picture. Remove it', b'\xff\xd8\xff': 'a picture. Remove it'}
CONTROL = bytes(i for i in range(32) if not 9 <= i <= 13 and i != 27)  # all but white space and escape


class BadData(Exception):
    """A sentence for the user about a file of theirs."""


def hidden(name):
    return name[0] == '.' or name == '__pycache__'


def find_files(root):
    """
    All files below root, each once, and what is skipped: hidden names, links that lead nowhere, links to what
    is found below root anyway, links to a folder around root. A link to a folder elsewhere is followed, once.
    """
    top = Path(os.path.realpath(root))
    files, skipped, seen, todo = [], [], {top}, [root]
    while todo:
        for path in todo.pop().iterdir():
            real = Path(os.path.realpath(path)) if path.is_symlink() or path.is_dir() else path
            again = path.is_symlink() and (
                real in top.parents or top in real.parents and real.suffix.lower() == path.suffix.lower()
                and not any(map(hidden, real.relative_to(top).parts)))
            if hidden(path.name) or again or real in seen or not (path.is_dir() or path.is_file()):
                skipped.append(path)
            elif path.is_dir():
                seen.add(real)
                todo.append(path)
            else:
                files.append(path)
    return sorted(files, key=Path.as_posix), skipped


def first_bytes(path, n=4096):
    with open(path, 'rb') as f:
        return f.read(n)


def open_unpacked(path):
    """The bytes of a file, unpacked if it is compressed, whatever its name."""
    head = first_bytes(path, 10)
    packed = next((name for magic, name in PACKED.items() if head.startswith(magic)), None)
    if packed == 'zstd':  # the standard library has it from Python 3.14 on
        import pyarrow
        return pyarrow.input_stream(str(path), compression='zstd')
    return {'gzip': gzip.open, 'bz2': bz2.open, 'xz': lzma.open, None: open}[packed](path, 'rb')


def find_encoding(path, head):
    """UTF-8, UTF-16 or UTF-32, as Python calls them. Raises BadData if this is no text."""
    what = next((what for magic, what in NO_TEXT.items() if head.startswith(magic)), None)
    if head[257:262] == b'ustar':
        what = 'a tar archive. Unpack it'
    if any(head.startswith(magic) for magic in PACKED):
        what = 'compressed twice. Unpack it'
    if what:
        raise BadData(f'{path} is not text but {what}.')
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding
    if len(head) - len(head.translate(None, CONTROL)) <= len(head) / 10:
        return 'utf-8'  # a worker looks at every byte
    # without a mark, the zeros in spaces, line ends and Latin letters tell which of its bytes comes first
    zeros = [head[i::4].count(0) / max(1, len(head[i::4])) for i in range(4)]
    if zeros[3] == 1 and zeros[2] > 0.9 > zeros[0]:
        return 'utf-32-le'
    if zeros[0] == 1 and zeros[1] > 0.9 > zeros[3]:
        return 'utf-32-be'
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if min(even, odd) >= max(even, odd) / 20:
        raise BadData(f'{path} is not text: it holds binary data. Convert it to UTF-8 text or remove it.')
    return 'utf-16-le' if odd > even else 'utf-16-be'


def utf8_copy(path, copy):
    """The path of the same text in UTF-8: the file itself, or a copy if it is packed or otherwise encoded."""
    try:
        head = first_bytes(path)
        if packed := any(head.startswith(magic) for magic in PACKED):
            with open_unpacked(path) as f:
                head = f.read(4096)
        encoding = find_encoding(path, head)
        if encoding == 'utf-8' and not packed:
            return path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open_unpacked(path) as f, open(copy, 'wb') as out:
            if encoding != 'utf-8':
                f, out = io.TextIOWrapper(f, encoding, newline=''), io.TextIOWrapper(out, 'utf-8', newline='')
            shutil.copyfileobj(f, out, 2**20)
            out.flush()
        return copy
    except UnicodeDecodeError as e:
        raise BadData(f'{path} is neither UTF-8 nor valid {encoding.upper()} ({e.reason}). Convert it to '
                      'UTF-8 or remove it.')
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        if getattr(e, 'errno', None):
            raise
        raise BadData(f'{path} is packed but cannot be unpacked ({e}). It may be cut short. Fetch it again.')
