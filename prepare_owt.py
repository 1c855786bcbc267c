"""
Text in, token ids out: data/NAME/{train,val}.bin and meta.json, which is what train_gpt.py reads.

    python prepare_owt.py --dataset=stdlib         # the source of your Python: bytes, no network
    python prepare_owt.py --dataset=FILE_OR_FOLDER --val=FILE_OR_FOLDER
    python prepare_owt.py                          # OpenWebText: 9 billion tokens, 85 GB of disk on the way
    python prepare_owt.py --dataset=HuggingFaceFW/fineweb-edu:sample-10BT --max_docs=100000

It takes a text file or a folder of them, json lines, parquet, a set on the Hub (ID or ID:CONFIG), and
OpenWebText. Text is UTF-8; text and json lines may be packed by gzip, bz2, xz or zstd. A text file, a line of
json or a row of a table is one document, and end-of-text closes it. For everything else, one sentence says
what it is and how to convert it.

The last tenth of a single text is validation. Other documents are shuffled and split as nanoGPT does it, so
the same rows give nanoGPT's bins. With --max_docs, a set on the Hub is a stream instead: its rows keep their
order, and every 2000th is validation. All documents go through Arrow files: those of a set on the Hub in
the cache of `datasets` (HF_HOME moves it; you can delete it), all others in out_dir until the end. If you
stop the script, the same command starts again and gives the same bytes.
"""

import hashlib
import json
import math
import os
import re
import sys
import sysconfig
from operator import itemgetter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.console import fail
from support.hub import hub_reason, load_openwebtext, load_tables, store_tables
from support.splits import DATA, prepared_name
from support.splits import RULE as _RULE  # no key
from support.textfiles import find_texts, read_texts
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


# ---- sources: ({'train': table, maybe 'val': table}, what meta.json says of them). A table has one column


def open_stdlib(tmp):
    root = Path(sysconfig.get_path('stdlib'))
    names = []
    for path in root.rglob('*.py'):
        name = path.relative_to(root).as_posix()
        if not SKIP & set(name.split('/')) and not GENERATED.fullmatch(name):
            names.append(name)
    digest, paths = hashlib.sha256(), {'train': [], 'val': []}
    for i, name in enumerate(sorted(names)):
        digest.update(name.encode() + b'\0' + hashlib.sha256((root / name).read_bytes()).digest())
        split = 'val' if i % 20 == 19 else 'train'
        paths[split].append(root / name)
    texts = {split: read_texts(paths[split], 'text') for split in paths}
    meta = dict(source='stdlib', python=sys.version.split()[0], sha256=digest.hexdigest())
    return store_tables(tmp, texts), meta


def open_local(config, tmp):
    root, kind, files = find_texts(config)
    texts = {split: read_texts(files[split], kind, config['text_column']) for split in files if files[split]}
    if kind == 'text' and len(files['train']) == 1 and 'val' not in texts:  # a book, nanoGPT's input.txt
        [book] = texts['train']
        texts = cut(book, config['val_fraction'] or 0.1)
    return store_tables(tmp, texts), dict(source=root)


def cut(book, share):
    """The parts of a text, whose last share begins behind a line or, without lines, behind a character"""
    raw = book.encode()
    at = int(len(raw) * (1 - share))
    line = raw.find(b'\n', at) + 1
    if 0 < line < len(raw):
        at = line
    while at < len(raw) and raw[at] & 0xC0 == 0x80:
        at += 1
    if not 0 < at < len(raw):
        fail('The text is too short to train and validate. Give a longer one.')
    return {'train': [raw[:at].decode()], 'val': [raw[at:].decode()]}


def open_hub(config, tmp):
    name, _, subset = config['dataset'].partition(':')
    column, stream = config['text_column'], config['max_docs'] > 0
    if name in ('openwebtext', 'Skylion007/openwebtext'):
        tables, label = load_openwebtext(column, stream)
    else:
        label = config['dataset']
        way = dict(path=name, name=subset or None, revision=config['revision'] or None)
        tables = load_tables(way, label, column, stream)
    if stream:
        tables = store_stream(tmp, label, tables, config)
    return tables, dict(source=label)


def store_stream(tmp, label, streams, config):
    """The first rows. Without a split of its own, validation is the first of every so many of them."""
    texts = {}
    for split, rows in streams.items():
        texts[split] = map(itemgetter(config['text_column']), rows.take(config['max_docs']))
    try:
        tables = store_tables(tmp, texts)
    except Exception as error:
        fail(hub_reason(label, error))
    if 'val' not in tables:
        train = tables['train']
        every = max(2, round(1 / (config['val_fraction'] or NANOGPT)))
        held_out = np.arange(0, len(train), every)
        rest = np.delete(np.arange(len(train)), held_out)
        tables = {'train': train.select(rest), 'val': train.select(held_out)}
    return tables


# ---- tokens


def start_worker(*given):
    """What all jobs need reaches a worker once."""
    global table, encode, end_of_text
    table, encode, end_of_text = given


def run_job(rows):
    """-> the ids of the documents in these rows of the table, the number of empty documents"""
    [texts] = table[rows].values()
    pieces, empty = [], 0
    for text in texts:
        pieces += [encode(text or ''), end_of_text]
        empty += not text
    return np.concatenate(pieces).astype(end_of_text.dtype), empty


# ---- files


def choose_rows(tables, config):
    """{split: rows}, with those of val behind those of train. Without val, nanoGPT's train_test_split."""
    limit = config['max_docs'] or None
    train = np.arange(len(tables['train']))[:limit]
    if len(tables.get('val', [])):
        return {'train': train, 'val': len(tables['train']) + np.arange(len(tables['val']))[:limit]}
    order = train[np.random.default_rng(2357).permutation(len(train))]
    n_val = math.ceil((config['val_fraction'] or NANOGPT) * len(order))
    if n_val >= len(order):
        fail(f'{config["dataset"]} has too few documents ({len(order)}) to train and validate. A file of '
             'text, a line of json or a row of a table is one document: cut the text into more.')
    return {'train': order[n_val:], 'val': order[:n_val]}


def write_bins(tmp, tables, encode, end_of_text, config):
    """Writes {train,val}.bin into tmp -> counts and content for meta.json"""
    from datasets import concatenate_datasets
    chosen = choose_rows(tables, config)
    jobs = []
    for split, rows in chosen.items():
        jobs += [(split, rows[i:i + BATCH]) for i in range(0, len(rows), BATCH)]
    workers = config['num_proc'] or count_cores()
    given = concatenate_datasets(list(tables.values())), encode, end_of_text
    tokens, empty = {'train': 0, 'val': 0}, 0
    files = {split: open(tmp / f'{split}.bin', 'wb') for split in tokens}
    digests = {split: hashlib.blake2b(digest_size=16) for split in tokens}
    with files['train'], files['val'], tqdm(unit=' documents', mininterval=1) as bar:
        for (split, rows), (ids, n_empty) in in_order(jobs, run_job, workers, start_worker, given):
            files[split].write(ids)
            digests[split].update(ids)
            tokens[split] += len(ids)
            empty += n_empty
            bar.update(len(rows))
    documents = {split: len(rows) for split, rows in chosen.items()}
    if empty == documents['train'] + documents['val']:
        fail('There is no text to train on: all documents are empty. See --text_column.')
    if empty:
        print(f'{empty:,} documents are empty. Each becomes a single end-of-text, as in nanoGPT.')
    # what a run compares when it resumes: the same tokens may come from another path
    both = digests['train'].digest() + digests['val'].digest()
    return dict(train_tokens=tokens['train'], val_tokens=tokens['val'], train_documents=documents['train'],
                val_documents=documents['val'], content=hashlib.blake2b(both, digest_size=16).hexdigest())


def main(config):
    name = config['dataset']
    local = name not in ('stdlib', 'openwebtext') and os.path.exists(name)
    is_id = re.fullmatch(r'(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?', name) and not DATA.search(name)
    if not local and not is_id:
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
            tables, meta = open_stdlib(tmp)
        elif local:
            tables, meta = open_local(config, tmp)
        else:
            tables, meta = open_hub(config, tmp)
        counts = write_bins(tmp, tables, encode, end_of_text, config)
        about = dict(tokenizer=tokenizer, vocab_size=vocab_size, dtype=end_of_text.dtype.name)
        (tmp / 'meta.json').write_text(json.dumps(about | counts | meta, indent=2))
        put_in_place(tmp, out, FILES)

    print(f'{out} is finished, from {meta["source"]}')
    for split in ('train', 'val'):
        documents, tokens = counts[f'{split}_documents'], counts[f'{split}_tokens']
        print(f'  {split}.bin: {documents:,} documents, {tokens:,} tokens')
    if counts['val_tokens'] < 10_000:
        print('  There are few tokens to validate on. Give more by --val, or cut more by --val_fraction.')


if __name__ == '__main__':
    run(main, config)
