"""
Text in, token ids out: data/NAME/{train,val}.bin and meta.json, which is what train_gpt.py reads.

    python prepare_owt.py --dataset=stdlib         # the source of the Python that runs it: bytes, no network
    python prepare_owt.py --dataset=PATH           # a file or folder of parquet, json lines or plain text
    python prepare_owt.py                          # OpenWebText: 9 billion tokens, 85 GB of disk on the way
    python prepare_owt.py --dataset=HuggingFaceFW/fineweb-edu:sample-10BT --max_docs=100000

A text file, or a row of a table, is one document; its ids are closed by end-of-text. A validation split that
the source has is kept; of a text file that stands alone the last tenth is it; else documents are shuffled and
split as nanoGPT does it: the same rows give nanoGPT's bins. The price of that order: `datasets` first unpacks tables to an Arrow copy in its cache (HF_HOME moves
it; delete it afterwards if you like). --streaming=True goes without: the rows of train as they come, the
first of every 2000 to validation. Stopped at any moment it leaves nothing that looks finished; the same line
then starts anew, with the downloads and the Arrow copy that are there, and gives the same bytes.
"""

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

dataset = 'openwebtext'  # 'stdlib', 'openwebtext', a file or folder, or a set on the Hub as ID or ID:CONFIG
out_dir = ''             # where the bins go; '' is data/NAME
tokenizer = 'auto'       # 'gpt2' or 'byte'; 'auto' is byte for stdlib, gpt2 for the rest
text_column = 'text'     # the column of a table, or the key in json lines, that holds the text
max_docs = 0             # at most so many documents of each split; 0 is all
val_fraction = 0.0       # goes to validation where the source has no such split; 0: 0.0005 (nanoGPT's), of a lone text 0.1
streaming = 'auto'       # tables unshuffled, without the Arrow copy; 'auto': for max_docs of a set on the Hub
revision = ''            # branch, tag or commit of a set on the Hub; '' is its main branch
num_proc = 0             # processes that tokenize; 0 is one on every core
overwrite = False        # replace what out_dir holds; it stays until the new one is complete
if __name__ == '__main__':  # a spawned worker imports this file too
    config = configure(globals())

VOCAB = {'gpt2': 50257, 'byte': 257}  # end-of-text is the last id of both
BATCH = 64                            # documents in a job
NANOGPT = 0.0005                      # its share of validation
# put in place in this order, once the old val.bin is gone: two bins without meta.json look like nanoGPT's
FILES = ('train.bin', 'meta.json', 'val.bin')

# stdlib goes without these folders, tables that a program wrote, and files that differ from build to build
SKIP = set('test tests idlelib encodings site-packages dist-packages __pycache__ pydoc_data'.split())
GENERATED = re.compile(r'_sysconfigdata.*|config-.*|(_opcode_metadata|keyword|stringprep|token|html/entities|'
                       r're/_casefix)\.py')
ENDINGS = {'parquet': ['.parquet'], 'json lines': ['.jsonl', '.ndjson', '.json'],
           'text': '.txt .md .rst .tex .html .py .c .h .cc .cpp .java .js .ts .go .rs .sh'.split()}
SPLITS = {'test': {'test', 'testing', 'eval', 'evaluation'}, 'train': {'train', 'training'},
          'val': {'validation', 'valid', 'val', 'dev'}}

# in this order: the Hub's own export (cut for some sets), all of it in the owner's pull request, a full copy
OPENWEBTEXT = [
    dict(path='Skylion007/openwebtext', revision='refs/convert/parquet'),
    dict(path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    dict(path='dylanebert/openwebtext'),
]
OPENWEBTEXT_ROWS = 8_013_769


class BadData(Exception):
    """A sentence for the user, from a worker."""


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
    return dict(read=partial(read_files, paths, ''), parts={'train': keys[~held_out], 'val': keys[held_out]},
                size=sum(map(os.path.getsize, paths)),
                meta=dict(source='stdlib', python=sys.version.split()[0], sha256=digest.hexdigest()))


def open_local(config):
    root = Path(config['dataset']).expanduser()
    paths = [root] if root.is_file() else sorted(
        (p for p in root.rglob('*') if p.is_file() and p.name != 'meta.json'
         and not any(n[0] == '.' or n == '__pycache__' for n in p.relative_to(root).parts)),
        key=lambda p: p.relative_to(root).as_posix())
    kinds = {kind: [p for p in paths if p.suffix in ENDINGS[kind]] for kind in ENDINGS}
    if root.is_file() and not any(kinds.values()):
        kinds['text'] = paths
    kind = max(kinds, key=lambda kind: sum(p.stat().st_size for p in kinds[kind]))
    if not kinds[kind]:
        sys.exit(f'{root} holds no text: wanted are files that end in {" ".join(chain(*ENDINGS.values()))}')
    print(f'{root}: {len(kinds[kind])} files of {kind}, {len(paths) - len(kinds[kind])} others left out')

    # the Hub's names of splits (train-00000-of-00003.parquet, val/1.jsonl); of a text, train.py says nothing
    splits = {'train': [], 'val': [], 'test': []}
    for path in kinds[kind] if kind != 'text' else []:
        name = path.name if path == root else path.relative_to(root).as_posix()
        words = set(re.split('[^a-z]+', name.lower()))
        for split in [split for split in SPLITS if words & SPLITS[split]][:1]:
            splits[split].append(str(path))
    if not splits['train']:
        splits = {'train': list(map(str, kinds[kind])), 'val': []}
    paths = splits['train'] + splits['val']
    size = sum(map(os.path.getsize, paths))
    if kind == 'parquet':
        import pyarrow.parquet
        for path in paths:
            try:
                pyarrow.parquet.read_schema(path)
            except (ValueError, OSError) as error:
                sys.exit(f'{path} cannot be read as parquet ({said(error)}): mend it or take it away')
        way = dict(path='parquet', data_files={s: splits[s] for s in ('train', 'val') if splits[s]})
        return open_table(way, str(root), config['streaming'] is True, config, 2 * size)

    keys = array('q')  # of a document: its file, its first byte, its bytes (-1: all that follow), its line (0: no json)
    for i, path in enumerate(paths):
        if kind == 'text':
            keys.extend((i, 0, -1, 0))
            continue
        offset = 0
        with open(path, 'rb') as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    keys.extend((i, offset, len(line), number))
                offset += len(line)
    keys = np.array(keys).reshape(-1, 4)
    in_train = keys[:, 0] < len(splits['train'])
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
    return dict(read=partial(read_files, paths, config['text_column']), meta=dict(source=str(root)),
                parts={'train': keys[in_train], 'val': keys[~in_train]}, size=size)


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
            print(f'not this way: {reason}', flush=True)
            continue
        rows = source['meta'].get('rows')
        if stream or rows == OPENWEBTEXT_ROWS:
            return source
        print(f'{label} has {rows:,} rows, OpenWebText has {OPENWEBTEXT_ROWS:,}', flush=True)
        found.append(source)
    if not found:
        sys.exit('openwebtext could not be had in any of these ways: mend one, or give another --dataset')
    return max(found, key=lambda source: source['meta']['rows'])


def open_table(way, label, stream, config, disk=None):
    """The source of what load_dataset(**way) loads."""
    from datasets import concatenate_datasets, config as hf, load_dataset_builder
    hf.STREAMING_READ_MAX_RETRIES = hf.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute of retries
    stage = 'open'
    try:
        builder = load_dataset_builder(**way)
        check_column(label, builder.info.features, config)
        stage = 'download'
        if stream:
            tables = builder.as_streaming_dataset()
        elif '/partial-' in str(builder.config.data_files):
            sys.exit(f'{label} is an export that the Hub cut short: --streaming=True takes what there is')
        else:
            disk = disk or builder.info.size_in_bytes
            print(f'{label}: {f"about {disk / 1e9:.1f} GB" if disk else "an unknown size"} of download and '
                  f'Arrow copy in {hf.HF_DATASETS_CACHE} (HF_HOME moves it)', flush=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
    except Exception as error:
        sys.exit(hub_reason(label, error, stage))
    if 'train' not in tables:
        sys.exit(f'{label} has no split train but {", ".join(tables)}: download it and give the folder')
    check_column(label, tables['train'].column_names, config)
    if stream:
        return dict(read=list, rows=tables['train'], meta=dict(source=label))
    splits = ['train'] + [split for split in tables if split in SPLITS['val']][:1]
    table = concatenate_datasets([tables[split].select_columns([config['text_column']]) for split in splits])
    keys, cut = np.arange(len(table)), len(tables['train'])
    return dict(read=partial(read_rows, table, config['text_column']), size=table.data.nbytes,
                parts={'train': keys[:cut], 'val': keys[cut:]}, meta=dict(source=label, rows=len(table)))


def check_column(label, columns, config):
    column = config['text_column']
    if columns and column not in columns:
        sys.exit(f'{label} has no column {column!r}: --text_column takes one of {", ".join(columns)}')


def said(error):
    return ' '.join(str(error).split())[:200] or type(error).__name__


def hub_reason(label, error, stage):
    """What went wrong and the mend, in one sentence; the first telling error in the chain decides."""
    errors = [error]
    while (cause := errors[-1].__cause__ or errors[-1].__context__) and cause not in errors:
        errors.append(cause)
    for e in errors:
        kinds = ' '.join(kind.__name__ for kind in type(e).__mro__)
        status = getattr(getattr(e, 'response', None), 'status_code', None)
        if status in (401, 403) or 'is a gated dataset' in str(e):
            return (f'{label} is gated or private: accept its terms on its page on the Hub, then log in with '
                    '`hf auth login` or set HF_TOKEN')
        if status == 404 or 'DatasetNotFound' in kinds:
            return (f'{label} is not on the Hub, and no file or folder here has that name: check the '
                    'spelling; if it is private or gated, log in with `hf auth login`')
        if status:
            return f'the Hub answered HTTP {status} for {label}: try the same line later'
        if re.search('Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete', kinds):
            if stage == 'download':
                return f'the download of {label} broke off ({said(e)}): run the same line again'
            return (f'the Hub cannot be reached for {label} ({said(e)}): check the network, or give a file '
                    'or folder; --dataset=stdlib needs no network')
    reason = said(error.__cause__ or error)
    mend = ('--revision=refs/convert/parquet may have its rows' if 'scripts' in reason else
            'name one as ID:CONFIG' if 'onfig' in reason else 'mend that and run the same line again')
    return f'{label} cannot be read ({reason}): {mend}'


# ---- workers


def read_rows(table, column, keys):
    return table[keys][column]


def read_files(paths, column, keys):
    texts = []
    for i, offset, length, number in keys:
        with open(paths[i], 'rb') as f:
            f.seek(offset)
            raw = f.read(length)
        try:
            text = raw.decode()
            texts.append(json.loads(text)[column] if number else text)
        except UnicodeDecodeError as e:
            raise BadData(f'{paths[i]} is not UTF-8 at byte {offset + e.start}: convert it (iconv -f '
                          'latin1 -t utf-8) or take it away')
        except json.JSONDecodeError as e:
            raise BadData(f'{paths[i]}, line {number} is not JSON ({e.msg}): mend it, one object a line')
        except (KeyError, TypeError):
            row = json.loads(text)
            there = ', '.join(row) if isinstance(row, dict) else 'it is no object'
            raise BadData(f'{paths[i]}, line {number} has no key {column!r} ({there}): see --text_column')
    return texts


def encode_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


def encode_gpt2(encoding, text):
    return encoding.encode_to_numpy(text, disallowed_special=())  # '<|endoftext|>' in a text is text


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
        if text is not None and not isinstance(text, str):
            raise BadData(f'the text column holds {type(text).__name__}, not text: see --text_column')
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
        sys.exit(f'{config["dataset"]} has too few documents ({len(parts["val"])}) to train and validate: a '
                 'text file, a line of json or a row of a table is one; cut the text into more')
    return parts


def jobs_of_rows(rows, config):
    """The first of every so many rows goes to validation."""
    every, limit, at = max(2, round(1 / (config['val_fraction'] or NANOGPT))), config['max_docs'] or sys.maxsize, 0
    try:
        for batch in rows.iter(BATCH):
            texts = batch[config['text_column']][:limit - at]
            if held_out := texts[-at % every::every]:
                yield 'val', held_out
            yield 'train', [text for i, text in enumerate(texts, at) if i % every]
            at += len(texts)
            if at >= limit:
                break
    except Exception as error:
        sys.exit(hub_reason(config['dataset'], error, 'download'))


def write_bins(out, jobs, total, workers, given):
    """The ids of the jobs, in their order, into {train,val}.bin.tmp -> counts for meta.json"""
    counts = {f'{split}_{what}': 0 for what in ('tokens', 'documents') for split in ('train', 'val')}
    window, pending, empty = 4 * workers, deque(), 0  # no more jobs than the window are in memory
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
                counts[f'{split}_tokens'] += len(ids)
                counts[f'{split}_documents'] += len(keys)
                empty += n_empty
                bar.update(len(keys))
        for f in (train, val):
            f.flush()
            os.fsync(f.fileno())
    if empty == counts['train_documents'] + counts['val_documents'] or not counts['train_documents']:
        raise BadData('there is no text to train on, all documents are empty: see --text_column')
    if empty:
        print(f'{empty:,} documents are empty: an end-of-text alone stands for each, as in nanoGPT')
    return counts


# ---- what the user asked for


def open_tokenizer(name):
    if name == 'byte':
        return encode_bytes
    if name != 'gpt2':
        sys.exit(f'unknown tokenizer {name!r}: there are gpt2 and byte')
    import tiktoken
    try:
        return partial(encode_gpt2, tiktoken.get_encoding('r50k_base'))  # gpt2's ids in one file, not two
    except Exception as error:
        sys.exit(f'the file of the gpt2 tokenizer cannot be fetched ({said(error)}): put '
                 'r50k_base.tiktoken under the name 0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 into a folder '
                 'and set TIKTOKEN_CACHE_DIR to it, or use --tokenizer=byte')


def main(config):
    name = config['dataset']
    path = Path(name).expanduser()
    local = name not in ('', 'stdlib', 'openwebtext') and path.exists()
    if not local and not re.fullmatch(r'(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?', name):
        sys.exit(f'there is no file or folder {name}: check the path')
    if config['max_docs'] < 0 or config['num_proc'] < 0 or not 0 <= config['val_fraction'] < 1 or (
            config['streaming'] not in (True, False, 'auto')):
        sys.exit('max_docs and num_proc are 0 or more, val_fraction is 0 or more and below 1, and streaming is '
                 'True, False or auto')
    stem = path.stem if path.is_file() else path.resolve().name.replace(':', '-')
    out = Path(config['out_dir'] or Path('data', stem))
    there = [file for file in FILES if (out / file).exists()]
    # without val.bin but with a new one beside it: killed while the files were put in place
    if there and not config['overwrite'] and ('val.bin' in there or not (out / 'val.bin.tmp').exists()):
        sys.exit(f'{out} holds a data set already ({", ".join(there)}): --overwrite=True replaces it, '
                 '--out_dir=... puts the new one elsewhere')
    tokenizer = {'auto': 'byte' if name == 'stdlib' else 'gpt2'}.get(config['tokenizer'], config['tokenizer'])
    encode = open_tokenizer(tokenizer)
    end_of_text = np.array([VOCAB[tokenizer] - 1], '<u2' if VOCAB[tokenizer] <= 2**16 else '<u4')
    source = open_stdlib() if name == 'stdlib' else open_local(config) if local else open_hub(config)

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
        if not any(out.iterdir()):
            out.rmdir()
        raise
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
        print('  little to validate on: where documents are split here, a higher --val_fraction takes more')


if __name__ == '__main__':
    try:
        main(config)
    except BadData as error:
        sys.exit(str(error))
    except BrokenProcessPool:
        sys.exit('a process that tokenizes was killed, likely for want of memory: try a lower --num_proc')
    except OSError as error:
        sys.exit(f'{error}: mend that and run the same line again')
    except KeyboardInterrupt:
        sys.exit('stopped: nothing half-written is left, the same line starts anew')
