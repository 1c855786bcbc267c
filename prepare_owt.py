"""
Text in, token ids out: data/NAME/{train,val}.bin and meta.json, which is what train_gpt.py reads.

    python prepare_owt.py --dataset=stdlib         # the source of the Python that runs it: bytes, no network
    python prepare_owt.py --dataset=PATH           # a file or folder of parquet, json lines or plain text
    python prepare_owt.py                          # OpenWebText: 9 billion tokens, 85 GB of disk on the way
    python prepare_owt.py --dataset=HuggingFaceFW/fineweb-edu:sample-10BT --max_docs=100000

A text file, or a row of a table, is one document, and end-of-text closes it. Files may be compressed (gzip,
bz2, xz, zstd); text may be UTF-8, UTF-16 or UTF-32. A validation split that the source has is kept, and its
test split is left out. Without one, the last tenth of a single text file is validation; other documents are
shuffled and split as nanoGPT does it, so the same rows give nanoGPT's bins. For that order, `datasets` first
unpacks tables to an Arrow copy in its cache (HF_HOME moves it; you can delete it afterwards).
--streaming=True needs no copy: it takes the rows in their order and, without a validation split, every 2000th
for validation. If you stop the script, nothing is left that looks finished. The same command then starts
again with the downloads and the Arrow copy that are there, and gives the same bytes.
"""

import errno
import glob
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import sysconfig
import threading
from array import array
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.splits import DATA, PACKED, WORDS, data_stem, prepared_name, split_names, tell_splits
from support.splits import RULE as _RULE  # no key
from support.textfiles import BadData, find_files, first_bytes, utf8_copy

dataset = 'openwebtext'  # 'stdlib', 'openwebtext', a file or folder, or a set on the Hub as ID or ID:CONFIG
out_dir = ''             # where the bins go; '' is data/NAME
tokenizer = 'auto'       # 'gpt2' or 'byte'; 'auto' is byte for stdlib, gpt2 for the rest
text_column = 'text'     # the column of a table, or the key in json lines, that holds the text
max_docs = 0             # at most so many documents of each split; 0 is all
val_fraction = 0.0       # share of validation if a source has none; 0 is 0.0005 (nanoGPT's), 0.1 of one text
streaming = 'auto'       # tables unshuffled, without the Arrow copy; 'auto': for max_docs of a set on the Hub
revision = ''            # branch, tag or commit of a set on the Hub; '' is its main branch
num_proc = 0             # processes that tokenize; 0 is one on every core
overwrite = False        # replace what out_dir holds; it stays until the new one is complete
if __name__ == '__main__':  # a spawned worker imports this file too
    __doc__ += f'\n{_RULE}\n'  # --help prints it
    config = configure(globals())

VOCAB = {'gpt2': 50257, 'byte': 257}  # end-of-text is the last id of both
BATCH = 64                            # documents in a job
LONG = 500_000                        # from so many white spaces in a row on, a text is encoded in pieces
SPACES = f'[^\\S\x1c-\x1f]{{{LONG},}}'  # in the sense of tiktoken, which lacks four of Python's
NANOGPT = 0.0005                      # its share of validation
# put in place in this order, once the old val.bin is gone: two bins without meta.json look like nanoGPT's
FILES = ('train.bin', 'meta.json', 'val.bin')

# stdlib goes without these folders, tables that a program wrote, and files that differ from build to build
SKIP = set('test tests idlelib encodings site-packages dist-packages __pycache__ pydoc_data'.split())
GENERATED = re.compile(r'_sysconfigdata.*|config-.*|(_opcode_metadata|keyword|stringprep|token|html/entities|'
                       r're/_casefix)\.py')
ENDINGS = {'parquet': ['.parquet'], 'json lines': ['.jsonl', '.ndjson', '.json'],
           'text': ('.txt .text .tokens .raw .md .rst .tex .html '
                    '.py .c .h .cc .cpp .java .js .ts .go .rs .sh').split()}
ABOUT = set('meta.json state.json dataset_info.json dataset_infos.json dataset_dict.json'.split())

# in this order: the Hub's own export (cut for some sets), all of it in the owner's pull request, a full copy
OPENWEBTEXT = [
    dict(path='Skylion007/openwebtext', revision='refs/convert/parquet'),
    dict(path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    dict(path='dylanebert/openwebtext'),
]
OPENWEBTEXT_ROWS = 8_013_769


# ---- sources: `parts` has the keys of each split's documents, and `read` makes texts of keys, in a worker; a
# stream has `rows` instead, and its texts are their own keys


def open_stdlib():
    root = Path(sysconfig.get_path('stdlib'))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py'))
    names = [n for n in names if not SKIP & set(n.split('/')) and not GENERATED.fullmatch(n)]
    paths = [str(root / name) for name in names]
    digest = hashlib.sha256()
    for name, path in zip(names, paths):
        digest.update(name.encode() + b'\0' + hashlib.sha256(Path(path).read_bytes()).digest())
    keys = np.array([(i, 0, -1, 0) for i in range(len(paths))])
    held_out = np.arange(len(keys)) % 20 == 19  # every 20th
    return dict(read=partial(read_files, paths, paths, ''), size=sum(map(os.path.getsize, paths)),
                parts={'train': keys[~held_out], 'val': keys[held_out]},
                meta=dict(source='stdlib', python=sys.version.split()[0], sha256=digest.hexdigest()))


def ending(name):
    """'.jsonl' of a.JSONL and of a.jsonl.gz"""
    head, dot, last = name.lower().rpartition('.')
    return ending(head) if dot + last in PACKED else dot + last


def choose_files(root):
    """The files of the kind that makes up most of root -> the kind, paths of train, paths of val, bytes"""
    files, others = ([root], []) if root.is_file() else find_files(root)
    kinds = {kind: [p for p in files if ending(p.name) in endings and (p == root or p.name not in ABOUT)]
             for kind, endings in ENDINGS.items()}
    if root.is_file() and not any(kinds.values()):
        kinds['parquet' if first_bytes(root, 4) == b'PAR1' else 'text'] = files
    size = {p: p.stat().st_size for p in files}
    kind = max(kinds, key=lambda kind: (sum(size[p] for p in kinds[kind]), len(kinds[kind])))
    if not kinds[kind]:
        if (root / 'train.bin').exists():
            sys.exit(f'{root} is prepared already. Use it with train_gpt.py --dataset={root}.')
        there = ' and '.join(sorted({p.suffix.lower() or p.name for p in files})[:5])
        what = f'holds no text, only files that end in {there}' if files else 'is an empty folder'
        sys.exit(f'{root} {what}. It needs files that end in {" ".join(chain(*ENDINGS.values()))}.')

    def name(path):
        return path.name if path == root else path.relative_to(root).as_posix()

    total = sum(size[p] for p in kinds[kind])
    # text files name a split only if they are most of the text: requirements-dev.txt in a program does not
    mostly_data = 2 * sum(size[p] for p in kinds[kind] if ending(p.name) in DATA) > total
    splits = split_names(map(name, kinds[kind]), 'any' if kind != 'text' else 'top' if mostly_data else None)
    splits = {path: '' if split == 'test' else split for path, split in zip(kinds[kind], splits.values())}
    told = tell_splits({name(p): s for p, s in splits.items()}, map(name, {*others, *files} - {*splits}))
    cut = '' if 'val' in splits.values() else '. Validation is cut from train.'
    print(f'{root}: {kind}, {told}{cut}', flush=True)
    if 'train' not in splits.values():
        sys.exit(f'{root} has no training data: by their names, all files are for validation or test. Rename '
                 'one, or give a single file as --dataset.')
    return kind, *([str(p) for p in splits if splits[p] == split] for split in ('train', 'val')), total


def open_local(config, copies):
    """The source of a file or folder. Texts that are not plain UTF-8 are unpacked into the folder copies."""
    root = Path(config['dataset']).expanduser()
    kind, train, val, size = choose_files(root)
    originals = train + val
    if kind == 'parquet':
        import pyarrow.parquet
        rows = {}
        for path in originals:
            try:
                with open(path, 'rb') as f:  # of a path, pyarrow takes what is before '::' for a protocol
                    rows[path] = pyarrow.parquet.read_metadata(f).num_rows
            except (ValueError, OSError) as error:
                sys.exit(f'{path} cannot be read as parquet ({said(error)}). Fetch it again or remove it.')
            if not rows[path]:
                print(f'{path} has no rows.')  # `datasets` fails at it
        full = {split: [glob.escape(path) for path in paths if rows[path]]
                for split, paths in (('train', train), ('val', val))}
        if not full['train']:
            sys.exit(f'{root} holds no text to train on: its files of parquet have no rows.')
        way = dict(path='parquet', data_files={split: full[split] for split in full if full[split]})
        return open_table(way, str(root), config['streaming'] is True, config, 2 * size)

    paths = [str(utf8_copy(path, copies / str(i))) for i, path in enumerate(originals)]
    size = sum(map(os.path.getsize, paths))
    if not size:
        sys.exit(f'{root} is an empty file.' if root.is_file() else
                 f'{root} holds no text: all its files of {kind} are empty.')
    keys = array('q')  # of a document: its file, first byte, bytes (-1: all that follow), line (0: no json)
    for i, path in enumerate(paths):
        if kind == 'text':
            keys.extend((i, 0, -1, 0))
            continue
        offset = 0
        with open(path, 'rb') as f:
            for number, line in enumerate(f, 1):
                if number == 1 and line.lstrip()[:1] == b'[':
                    sys.exit(f'{originals[i]}, line 1 begins a JSON array. Write one JSON object per line: '
                             "jq -c '.[]' does it.")
                if line.strip():
                    keys.extend((i, offset, len(line), number))
                offset += len(line)
    keys = np.array(keys).reshape(-1, 4)
    in_train = keys[:, 0] < len(train)
    if kind == 'text' and len(keys) == 1:  # a book, nanoGPT's input.txt: cut behind a line
        with open(paths[0], 'rb') as f:
            at = int(size * (1 - (config['val_fraction'] or 0.1)))
            f.seek(at)
            f.readline()
            cut = f.tell()
            if cut >= size:  # no line ends there: behind a character then
                f.seek(at)
                cut = at + next((i for i, byte in enumerate(f.read(4)) if byte & 0xC0 != 0x80), 0)
        if 0 < cut < size:
            keys, in_train = np.array([(0, 0, cut, 0), (0, cut, -1, 0)]), np.array([True, False])
    return dict(read=partial(read_files, paths, originals, config['text_column']), size=size,
                parts={'train': keys[in_train], 'val': keys[~in_train]}, meta=dict(source=str(root)))


def open_hub(config):
    name, _, subset = config['dataset'].partition(':')
    stream = config['streaming'] is True or config['streaming'] == 'auto' and config['max_docs'] > 0
    if name not in ('openwebtext', 'Skylion007/openwebtext'):
        way = dict(path=name, name=subset or None, revision=config['revision'] or None)
        return open_table(way, config['dataset'], stream, config)
    found = []
    for way in OPENWEBTEXT:
        label = way.get('data_files') or '@'.join(filter(None, (way['path'], way.get('revision'))))
        try:
            source = open_table(way, label, stream, config, 65e9)
        except SystemExit as reason:
            if 'cannot be reached' in str(reason):
                raise
            print(f'{reason} Trying the next copy of OpenWebText.', flush=True)
            continue
        rows = source['meta'].get('rows')
        if stream or rows == OPENWEBTEXT_ROWS:
            return source
        print(f'{label} has {rows:,} rows, OpenWebText has {OPENWEBTEXT_ROWS:,}. Trying the next copy.',
              flush=True)
        found.append(source)
    if not found:
        sys.exit('No copy of OpenWebText could be loaded, for the reasons above. Fix one of them, or choose '
                 'another --dataset.')
    return max(found, key=lambda source: source['meta']['rows'])


def open_table(way, label, stream, config, disk=None):
    """The source of what load_dataset(**way) loads."""
    from datasets import concatenate_datasets, load_dataset_builder
    from datasets import config as hf
    hf.STREAMING_READ_MAX_RETRIES = hf.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute of retries
    stage = 'open'
    try:
        builder = load_dataset_builder(**way)
        check_column(label, builder.info.features, config)
        stage = 'download'
        if stream:
            tables = builder.as_streaming_dataset()
        elif '/partial-' in str(builder.config.data_files):
            sys.exit(f'{label} is an export that the Hub cut short. --streaming=True takes what there is.')
        else:
            disk = disk or builder.info.size_in_bytes
            print(f'{label}: {f"about {disk / 1e9:.1f} GB" if disk else "an unknown size"} of downloads and '
                  f'Arrow copy in {hf.HF_DATASETS_CACHE} (HF_HOME moves it)', flush=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
    except Exception as error:
        sys.exit(hub_reason(label, error, stage))
    if 'train' not in tables:
        sys.exit(f'{label} has no split train but {", ".join(tables)}. Download it and give the folder as '
                 '--dataset.')
    check_column(label, tables['train'].column_names, config)
    column, val = config['text_column'], [split for split in tables if WORDS.get(split) == 'val']
    if out := [split for split in tables if split not in ['train', *val]]:
        print(f'{label}: left out {", ".join(out)}', flush=True)
    if stream:
        rows = {'val': concatenate_datasets([tables[s].select_columns([column]) for s in val])} if val else {}
        return dict(read=list, rows={'train': tables['train'], **rows}, meta=dict(source=label))
    table = concatenate_datasets([tables[split].select_columns([column]) for split in ['train', *val]])
    keys, cut = np.arange(len(table)), len(tables['train'])
    return dict(read=partial(read_rows, table, column), size=table.data.nbytes,
                parts={'train': keys[:cut], 'val': keys[cut:]}, meta=dict(source=label, rows=len(table)))


def check_column(label, columns, config):
    column = config['text_column']
    if columns and column not in columns:
        sys.exit(f'{label} has no column {column!r}. Set --text_column to one of {listed(columns)}.')


def listed(names):
    names = list(map(str, names))
    return ', '.join(names[:20]) + f' and {len(names) - 20:,} more' * (len(names) > 20)


def said(error):
    return ' '.join(str(error).split())[:200] or type(error).__name__


def disk_is_full(error):
    """A sentence if the disk is full, else None."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (f'There is no space left on the disk ({said(error)}). Free some, or write to another disk: '
                '--out_dir moves the tokens, HF_HOME the downloads and Arrow copies. Then run it again.')


def hub_reason(label, error, stage):
    """What went wrong and how to fix it; the first telling error in the chain decides."""
    errors = [error]
    while (cause := errors[-1].__cause__ or errors[-1].__context__) and cause not in errors:
        errors.append(cause)
    for e in errors:
        kinds = ' '.join(kind.__name__ for kind in type(e).__mro__)
        status = getattr(getattr(e, 'response', None), 'status_code', None)
        if full := disk_is_full(e):
            return full
        if status in (401, 403) or 'is a gated dataset' in str(e):
            return (f'{label} is gated or private. Accept its terms on its page on the Hub, then log in with '
                    '`hf auth login` or set HF_TOKEN.')
        if status == 404 or 'DatasetNotFound' in kinds:
            return (f'{label} is not on the Hub, and no file or folder here has that name. Check the '
                    'spelling; if it is private or gated, log in with `hf auth login`.')
        if status:
            return f'The Hub answered HTTP {status} for {label}. Run the same command later.'
        if re.search('Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete', kinds):
            if stage == 'download':
                return f'The download of {label} broke off ({said(e)}). Run the same command again.'
            return (f'The Hub cannot be reached for {label} ({said(e)}). Check the network, or give a file '
                    'or folder as --dataset. --dataset=stdlib needs no network.')
    reason = said(error.__cause__ or error)
    advice = ('Try --revision=refs/convert/parquet, which may have its rows.' if 'scripts' in reason else
              'Name one as ID:CONFIG.' if 'onfig' in reason else 'Fix that and run the command again.')
    return f'{label} cannot be read ({reason}). {advice}'


# ---- workers


def read_rows(table, column, keys):
    return table[keys][column]


def read_files(paths, names, column, keys):
    """The texts of some keys. Messages have names in place of paths, which may be copies."""
    texts = []
    for i, offset, length, number in keys:
        with open(paths[i], 'rb') as f:
            f.seek(offset)
            raw = f.read(length)
        try:
            text = raw.decode()
        except UnicodeDecodeError as e:
            what = ('holds binary data, or UTF-16 without a byte order mark' if b'\0' in raw else
                    f'is not UTF-8 at byte {offset + e.start}')
            raise BadData(f'{names[i]} {what}. Convert it from its encoding (iconv -f ENCODING -t UTF-8) or '
                          'remove it.')
        texts.append(read_line(text, f'{names[i]}, line {number}', column) if number else text)
    return texts


def read_line(line, where, column):
    """The text of one line of json."""
    try:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python refuses to convert more than 4300 digits
            row = json.loads(line, parse_int=float)
    except json.JSONDecodeError as e:
        raise BadData(f'{where} is not JSON ({e.msg}). Write one JSON object per line.')
    except RecursionError:
        raise BadData(f'{where} has too many brackets inside each other to be read. Remove that line.')
    if not isinstance(row, dict):
        raise BadData(f'{where} is not a JSON object. Write one per line, with the text under {column!r}.')
    if column not in row:
        raise BadData(f'{where} has no key {column!r}. Set --text_column to one of {listed(row)}.')
    if not isinstance(row[column], (str, type(None))):
        kind = type(row[column]).__name__
        raise BadData(f'{where} has {kind}, not text, under {column!r}. See --text_column.')
    return row[column]


def encode_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


def encode_gpt2(encoding, text):
    """
    The ids of tiktoken, where '<|endoftext|>' in a text is text. Of white space in front of something else,
    its pattern takes all but the last as one piece, and fails if that is a million. At the end of a text it
    takes any number. So we cut the text there, which changes no piece.
    """
    cuts = [0]
    if len(text) > LONG:
        cuts += [m.end() - 1 for m in re.finditer(SPACES, text) if m.end() < len(text)]
    return np.concatenate([encoding.encode_to_numpy(text[a:b], disallowed_special=())
                           for a, b in zip(cuts, [*cuts[1:], None])])


def start_worker(*given):
    """What all jobs need reaches a worker once."""
    global read, encode, end_of_text
    read, encode, end_of_text = given
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # when it is killed, nobody else ends its workers
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def run_job(keys):
    """-> the ids of the documents, the number of empty documents"""
    pieces, empty = [end_of_text[:0]], 0
    for text in read(keys):
        try:
            text = text.decode() if isinstance(text, bytes) else text  # as some writers of parquet leave it
        except UnicodeDecodeError:
            raise BadData('The text column holds binary data. Set --text_column to a column of text.')
        if text is not None and not isinstance(text, str):
            raise BadData(f'The text column holds {type(text).__name__}, not text. See --text_column.')
        try:
            ids = encode(text or '')
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape and UTF-8 cannot hold
            ids = encode(text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace'))
        pieces += [ids, end_of_text]
        empty += not text
    return np.concatenate(pieces).astype(end_of_text.dtype), empty


# ---- the bins


def split_parts(parts, config):
    """Where there is no split, nanoGPT's: train_test_split(test_size=..., seed=2357, shuffle=True)."""
    parts = {split: keys[:config['max_docs'] or None] for split, keys in parts.items()}
    if not len(parts['val']):
        order = parts['train'][np.random.default_rng(2357).permutation(len(parts['train']))]
        cut = math.ceil((config['val_fraction'] or NANOGPT) * len(order))
        parts = {'train': order[cut:], 'val': order[:cut]}
    if not len(parts['train']):
        sys.exit(f'{config["dataset"]} has too few documents ({len(parts["val"])}) to train and validate. A '
                 'file of text, a line of json or a row of a table is one document: cut the text into more.')
    return parts


def jobs_of_rows(rows, config):
    """Without rows for it, the first of every so many rows of train goes to validation."""
    every, limit = max(2, round(1 / (config['val_fraction'] or NANOGPT))), config['max_docs'] or sys.maxsize
    try:
        for split in ('val', 'train') if 'val' in rows else ('train',):
            at = 0
            for batch in rows[split].iter(BATCH):
                texts = batch[config['text_column']][:limit - at]
                if 'val' in rows:
                    yield split, texts
                else:
                    if held_out := texts[-at % every::every]:
                        yield 'val', held_out
                    yield 'train', [text for i, text in enumerate(texts, at) if i % every]
                at += len(texts)
                if at >= limit:
                    break
    except Exception as error:
        sys.exit(hub_reason(config['dataset'], error, 'download'))


def write_bins(out, jobs, total, workers, given):
    """The ids of the jobs, in their order, into {train,val}.bin.tmp -> counts and content for meta.json"""
    counts = {f'{split}_{what}': 0 for what in ('tokens', 'documents') for split in ('train', 'val')}
    window, pending, empty = 4 * workers, deque(), 0  # no more jobs than the window are in memory
    digests = {split: hashlib.blake2b(digest_size=16) for split in ('train', 'val')}
    with (open(out / 'train.bin.tmp', 'wb') as train, open(out / 'val.bin.tmp', 'wb') as val,
          tqdm(total=total, unit=' documents', mininterval=1) as bar,
          ProcessPoolExecutor(workers, initializer=start_worker, initargs=given) as pool):
        for job in chain(jobs, [None] * window):
            if job:
                pending.append((*job, pool.submit(run_job, job[1])))
            if pending and (not job or len(pending) == window):
                split, keys, result = pending.popleft()
                ids, n_empty = result.result()
                (train if split == 'train' else val).write(ids)
                digests[split].update(ids)
                counts[f'{split}_tokens'] += len(ids)
                counts[f'{split}_documents'] += len(keys)
                empty += n_empty
                bar.update(len(keys))
        for f in (train, val):
            f.flush()
            os.fsync(f.fileno())
    if empty == counts['train_documents'] + counts['val_documents'] or not counts['train_documents']:
        raise BadData('There is no text to train on: all documents are empty. See --text_column.')
    if empty:
        print(f'{empty:,} documents are empty. Each becomes a single end-of-text, as in nanoGPT.')
    # what a run compares when it resumes: the same tokens may come from another path
    content = hashlib.blake2b(b''.join(d.digest() for d in digests.values()), digest_size=16).hexdigest()
    return counts | {'content': content}


def write_set(out, source, tokenizer, encode, config):
    """The bins and meta.json as FILE.tmp, or nothing -> counts for meta.json"""
    end_of_text = np.array([VOCAB[tokenizer] - 1], '<u2' if VOCAB[tokenizer] <= 2**16 else '<u4')
    if 'rows' in source:
        jobs, total = jobs_of_rows(source['rows'], config), config['max_docs'] or None
        need = f'{end_of_text.itemsize} bytes a token'
    else:
        parts = split_parts(source['parts'], config)
        total = sum(map(len, parts.values()))
        jobs = ((split, keys[i:i + BATCH])
                for split, keys in parts.items() for i in range(0, len(keys), BATCH))
        need = f'about {source["size"] * (2 if tokenizer == "byte" else 0.5) / 1e6:,.0f} MB of tokens'
    out.mkdir(parents=True, exist_ok=True)
    print(f'{out}: {need}, {shutil.disk_usage(out).free / 1e6:,.0f} MB are free', flush=True)
    workers = config['num_proc'] or (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    try:
        counts = write_bins(out, jobs, total, workers, (source['read'], encode, end_of_text))
        meta = dict(tokenizer=tokenizer, vocab_size=VOCAB[tokenizer], dtype=end_of_text.dtype.name)
        with open(out / 'meta.json.tmp', 'w') as f:
            json.dump(meta | counts | source['meta'], f, indent=2)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        for file in FILES:
            (out / f'{file}.tmp').unlink(missing_ok=True)
        raise
    return counts


# ---- what the user asked for


def open_tokenizer(name):
    if name == 'byte':
        return encode_bytes
    if name != 'gpt2':
        sys.exit(f'unknown tokenizer {name!r}. Use --tokenizer=gpt2 or --tokenizer=byte.')
    import tiktoken
    try:
        return partial(encode_gpt2, tiktoken.get_encoding('r50k_base'))  # gpt2's ids in one file, not two
    except Exception as error:
        sys.exit(disk_is_full(error) or
                 f'The file of the gpt2 tokenizer cannot be downloaded ({said(error)}). Use '
                 '--tokenizer=byte, or put r50k_base.tiktoken into a folder under the name '
                 '0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 and set TIKTOKEN_CACHE_DIR to that folder.')


def main(config):
    name = config['dataset']
    path = Path(name).expanduser()
    local = name not in ('', 'stdlib', 'openwebtext') and (path.is_file() or path.is_dir())
    if not local and (data_stem(name)[1] or not re.fullmatch(r'(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?', name)):
        sys.exit(f'There is no file or folder {name}. Check the path.')
    if config['max_docs'] < 0 or config['num_proc'] < 0 or not 0 <= config['val_fraction'] < 1 or (
            config['streaming'] not in (True, False, 'auto')):
        sys.exit('max_docs and num_proc must be 0 or more, val_fraction 0 or more and below 1, and streaming '
                 'True, False or auto.')
    out = Path(config['out_dir'] or Path('data', prepared_name(name)))
    there = [file for file in FILES if (out / file).exists()]
    # without val.bin but with a new one beside it: killed while the files were put in place
    if there and not config['overwrite'] and ('val.bin' in there or not (out / 'val.bin.tmp').exists()):
        sys.exit(f'{out} already holds a data set ({", ".join(there)}). Use --overwrite=True to replace it '
                 'or --out_dir=... to write elsewhere.')
    tokenizer = {'auto': 'byte' if name == 'stdlib' else 'gpt2'}.get(config['tokenizer'], config['tokenizer'])
    encode = open_tokenizer(tokenizer)
    copies = out / '.copies.tmp'
    shutil.rmtree(copies, ignore_errors=True)  # of a run that was killed
    try:
        source = (open_stdlib() if name == 'stdlib' else
                  open_local(config, copies) if local else open_hub(config))
        counts = write_set(out, source, tokenizer, encode, config)
    finally:
        shutil.rmtree(copies, ignore_errors=True)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    (out / 'val.bin').unlink(missing_ok=True)
    for file in FILES:
        os.replace(out / f'{file}.tmp', out / file)

    print(f'{out} is finished, from {source["meta"]["source"]}')
    for split in ('train', 'val'):
        documents, tokens = counts[f'{split}_documents'], counts[f'{split}_tokens']
        print(f'  {split}.bin: {documents:,} documents, {tokens:,} tokens')
    if source['meta'].get('rows') == OPENWEBTEXT_ROWS:
        print('  nanoGPT has 9,035,582,198 and 4,434,897 tokens')
    if counts['val_tokens'] < 10_000:
        print('  There are few tokens to validate on. If validation is cut from train, a higher '
              '--val_fraction gives more.')


if __name__ == '__main__':
    try:
        main(config)
    except BadData as error:
        sys.exit(str(error))
    except BrokenProcessPool:
        sys.exit('A process that tokenizes was killed, probably for lack of memory. Use a lower --num_proc.')
    except OSError as error:
        sys.exit(disk_is_full(error) or f'{error}. Fix that and run the same command again.')
    except KeyboardInterrupt:
        sys.exit('Stopped. Nothing half-written is left; the same command starts again.')
