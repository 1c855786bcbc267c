"""
Text in, token ids out: data/NAME/{train,val}.bin and meta.json, which is what train_gpt.py reads.

    python prepare_owt.py --dataset=stdlib         # the source of your Python: bytes, no network
    python prepare_owt.py --dataset=FILE_OR_FOLDER --val=FILE_OR_FOLDER
    python prepare_owt.py                          # OpenWebText: 9 billion tokens, 85 GB of disk on the way
    python prepare_owt.py --dataset=HuggingFaceFW/fineweb-edu:sample-10BT --max_docs=100000

It takes a text file or a folder of them, json lines, parquet, a set on the Hub (ID or ID:CONFIG), and
OpenWebText. Text is UTF-8; text and json lines may be packed by gzip, bz2, xz or zstd. A text file, a line of
json or a row of a table is one document, and end-of-text closes it. All else ends with one sentence.

The last tenth of a single text is validation. Other documents are shuffled and split as nanoGPT does it. With
--max_docs, a set on the Hub is a stream: its rows keep their order, and every 2000th is validation. All other
tables go through the cache of `datasets` (HF_HOME moves it). After a stop, the same command starts again.
"""

import hashlib
import json
import math
import os
import re
import sys
import sysconfig
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.console import fail
from support.hub import hub_reason, load_json, load_openwebtext, load_parquet, load_tables
from support.splits import RULE as _RULE  # no key
from support.splits import data_stem, prepared_name
from support.textfiles import BadFile, fail_together, find_cut, find_texts, read_text, read_texts
from support.tokenizers import VOCAB, open_tokenizer
from support.writing import count_cores, in_order, put_in_place, run, workplace

dataset = 'openwebtext'  # 'stdlib', 'openwebtext', a file or folder, or a set on the Hub as ID or ID:CONFIG
val = ''                 # a file or folder of validation data, of the same kind as the dataset
val_fraction = 0.0       # share of train for validation; 0: 0.0005 as in nanoGPT, 0.1 of a single text
out_dir = ''             # where the bins go; '' is data/NAME
tokenizer = 'auto'       # 'gpt2' or 'byte'; 'auto' is byte for stdlib, gpt2 for the rest
text_column = 'text'     # the column of a table, or the key in json lines, that holds the text
max_docs = 0             # read at most this many documents of each split; 0: all
revision = ''            # branch, tag or commit of a set on the Hub; '' is its main branch
num_proc = 0             # processes that tokenize; 0: one per core
overwrite = False        # replace what out_dir holds; it stays until the new one is complete
if __name__ == '__main__':  # a spawned worker imports this file too
    __doc__ += f'\n{_RULE}\n'  # --help prints it
    config = configure(globals())

BATCH = 64        # documents in a job
NANOGPT = 0.0005  # its share of validation
FILES = ('train.bin', 'meta.json', 'val.bin')  # two bins without meta.json would look like nanoGPT's

# stdlib goes without these folders, tables that a program wrote, and files that differ from build to build
SKIP = set('test tests idlelib encodings site-packages dist-packages __pycache__ pydoc_data'.split())
GENERATED = re.compile(r'_sysconfigdata.*|config-.*|(_opcode_metadata|keyword|stringprep|token|html/entities|'
                       r're/_casefix)\.py')


# ---- sources: dict(read, train, val, meta). A document is a number, first those of train, then those of val,
# and read makes texts of numbers, in a worker. A stream has its rows instead: dict(rows, meta)


def open_stdlib():
    root = Path(sysconfig.get_path('stdlib'))
    digest, parts, n = hashlib.sha256(), {'train': [], 'val': []}, 0
    for name in sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py')):
        if SKIP & set(name.split('/')) or GENERATED.fullmatch(name):
            continue
        digest.update(name.encode() + b'\0' + hashlib.sha256((root / name).read_bytes()).digest())
        n += 1
        parts['train' if n % 20 else 'val'].append((root / name, 0, None))
    meta = dict(source='stdlib', python=sys.version.split()[0], sha256=digest.hexdigest())
    return source_of_texts(parts['train'], parts['val'], meta)


def open_local(config, tmp):
    """A file or folder. The rows of json lines go through the folder tmp."""
    root, kind, splits = find_texts(config)
    column = config['text_column']
    if kind == 'parquet':
        return source_of_tables(load_parquet(splits, root, column), root, column)
    if kind == 'json lines':
        return source_of_tables(load_json(splits, column, tmp), root, column)
    train = [(path, 0, None) for path in splits['train']]
    val = [(path, 0, None) for path in splits['val']]
    if len(train) == 1 and not val:  # a book, nanoGPT's input.txt
        path, raw = splits['train'][0], read_text(splits['train'][0])
        if not raw:
            fail(f'{path} is an empty file.')
        cut = find_cut(raw, config['val_fraction'] or 0.1)
        if 0 < cut < len(raw):
            train, val = [(path, 0, cut)], [(path, cut, None)]
    return source_of_texts(train, val, dict(source=root))


def source_of_texts(train, val, meta):
    """Of pieces of files, each as (path, first byte, end)"""
    return dict(read=partial(read_texts, train + val), train=len(train), val=len(val), meta=meta)


def open_hub(config):
    name, _, subset = config['dataset'].partition(':')
    column, stream = config['text_column'], config['max_docs'] > 0
    if name in ('openwebtext', 'Skylion007/openwebtext'):
        tables, label = load_openwebtext(column, stream)
    else:
        label = config['dataset']
        way = dict(path=name, name=subset or None, revision=config['revision'] or None)
        tables = load_tables(way, label, column, stream)
    if stream:
        return dict(rows=tables, meta=dict(source=label))
    return source_of_tables(tables, label, column)


def source_of_tables(tables, label, column):
    from datasets import concatenate_datasets
    train, val = tables['train'], tables.get('val', [])
    table = concatenate_datasets([train, val] if len(val) else [train])
    return dict(read=partial(read_rows, table, column), train=len(train), val=len(val),
                meta=dict(source=label, rows=len(table)))


# ---- workers


def read_rows(table, column, keys):
    return table[keys][column]


def start_worker(*given):
    """What all jobs need reaches a worker once."""
    global read, encode, end_of_text
    read, encode, end_of_text = given


def run_job(keys):
    """-> the ids of the documents, the number of empty documents, the faults"""
    pieces, empty, faults = [end_of_text[:0]], 0, []
    try:
        for text in read(keys):
            if isinstance(text, BadFile):
                faults.append(text)
                continue
            if isinstance(text, bytes):  # as some writers of parquet leave it
                text = text.decode()
            pieces += [encode(text or ''), end_of_text]
            empty += not text
    except (UnicodeDecodeError, AttributeError, TypeError):
        faults.append(BadFile('A row', 'not text', 'set --text_column to a column of text'))
    return np.concatenate(pieces).astype(end_of_text.dtype), empty, faults


# ---- the bins


def jobs_of(source, config):
    """(split, keys of documents). Without a split, nanoGPT's: train_test_split(test_size=..., seed=2357)."""
    limit = config['max_docs'] or None
    train = np.arange(source['train'])[:limit]
    val = np.arange(source['val'])[:limit] + source['train']
    if not len(val):
        order = train[np.random.default_rng(2357).permutation(len(train))]
        cut = math.ceil((config['val_fraction'] or NANOGPT) * len(order))
        train, val = order[cut:], order[:cut]
    if not len(train):
        fail(f'{config["dataset"]} has too few documents ({len(val)}) to train and validate. A file of text, '
             'a line of json or a row of a table is one document: cut the text into more.')
    for split, keys in (('train', train), ('val', val)):
        for i in range(0, len(keys), BATCH):
            yield split, keys[i:i + BATCH]


def jobs_of_stream(source, config):
    """(split, texts). Without rows for it, the first of every so many rows of train goes to validation."""
    every = max(2, round(1 / (config['val_fraction'] or NANOGPT)))
    rows = source['rows']
    try:
        for split in sorted(rows, reverse=True):
            for i, row in enumerate(rows[split].take(config['max_docs'])):
                held_out = 'val' not in rows and i % every == 0
                yield 'val' if held_out else split, [row[config['text_column']]]
    except Exception as error:
        fail(hub_reason(config['dataset'], error, 'download'))


def write_bins(tmp, jobs, workers, given):
    """The ids of the jobs, in their order, into {train,val}.bin -> counts and content for meta.json"""
    counts = dict(train_tokens=0, val_tokens=0, train_documents=0, val_documents=0)
    digests = {split: hashlib.blake2b(digest_size=16) for split in ('train', 'val')}
    empty, faults = 0, []
    jobs = takewhile(lambda job: not faults, jobs)
    with (open(tmp / 'train.bin', 'wb') as train, open(tmp / 'val.bin', 'wb') as val,
          tqdm(unit=' documents', mininterval=1) as bar):
        for (split, keys), result in in_order(jobs, run_job, workers, start_worker, given):
            ids, n_empty, bad = result
            faults += bad
            file = train if split == 'train' else val
            file.write(ids)
            digests[split].update(ids)
            counts[f'{split}_tokens'] += len(ids)
            counts[f'{split}_documents'] += len(keys)
            empty += n_empty
            bar.update(len(keys))
    if faults:
        fail_together(faults)
    if empty == counts['train_documents'] + counts['val_documents'] or not counts['train_documents']:
        fail('There is no text to train on: all documents are empty. See --text_column.')
    if empty:
        print(f'{empty:,} documents are empty. Each becomes a single end-of-text, as in nanoGPT.')
    # what a run compares when it resumes: the same tokens may come from another path
    both = digests['train'].digest() + digests['val'].digest()
    return counts | {'content': hashlib.blake2b(both, digest_size=16).hexdigest()}


def main(config):
    name = config['dataset']
    local = name not in ('stdlib', 'openwebtext') and os.path.exists(os.path.expanduser(name))
    if not local and (data_stem(name)[1] or not re.fullmatch(r'(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?', name)):
        fail(f'There is no file or folder {name}. Check the path.')
    if config['max_docs'] < 0 or config['num_proc'] < 0 or not 0 <= config['val_fraction'] < 1:
        fail('max_docs and num_proc must be 0 or more, val_fraction 0 or more and below 1.')
    if config['val'] and (config['val_fraction'] or not local):
        fail('--val only works if --dataset is a file or folder, and without --val_fraction. Leave it out.')
    tokenizer = config['tokenizer']
    if tokenizer == 'auto':
        tokenizer = 'byte' if name == 'stdlib' else 'gpt2'
    encode = open_tokenizer(tokenizer)
    vocab_size = VOCAB[tokenizer]
    end_of_text = np.array([vocab_size - 1], '<u2' if vocab_size <= 2**16 else '<u4')
    out = Path(config['out_dir'] or Path('data', prepared_name(name)))
    with workplace(out, FILES, config['overwrite']) as tmp:
        if name == 'stdlib':
            source = open_stdlib()
        elif local:
            source = open_local(config, tmp)
        else:
            source = open_hub(config)
        jobs = jobs_of_stream(source, config) if 'rows' in source else jobs_of(source, config)
        given = source.get('read', list), encode, end_of_text
        counts = write_bins(tmp, jobs, config['num_proc'] or count_cores(), given)
        meta = dict(tokenizer=tokenizer, vocab_size=vocab_size, dtype=end_of_text.dtype.name)
        (tmp / 'meta.json').write_text(json.dumps(meta | counts | source['meta'], indent=2))
        put_in_place(tmp, out, FILES)

    print(f'{out} is finished, from {source["meta"]["source"]}')
    for split in ('train', 'val'):
        documents, tokens = counts[f'{split}_documents'], counts[f'{split}_tokens']
        print(f'  {split}.bin: {documents:,} documents, {tokens:,} tokens')
    if counts['val_tokens'] < 10_000:
        print('  There are few tokens to validate on. A higher --val_fraction cuts more from train.')


if __name__ == '__main__':
    run(main, config)
