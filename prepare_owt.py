"""
Text in, token ids out: data/NAME/{train,val}.bin and meta.json, which is what train_gpt.py reads.

    python prepare_owt.py --dataset=stdlib         # the source of your Python: bytes, no network
    python prepare_owt.py --dataset=FILE_OR_FOLDER --val=FILE_OR_FOLDER
    python prepare_owt.py                          # OpenWebText: 9 billion tokens, 100 GB of disk on the way
    python prepare_owt.py --dataset=HuggingFaceFW/fineweb-edu:sample-10BT --max_docs=100000

It takes a text file or a folder of them, json lines, parquet, a set on the Hub (ID or ID:CONFIG), and
OpenWebText. Text is UTF-8; text and json lines may be packed by gzip, bz2, xz or zstd. A text file, a line of
json or a row of a table is one document, and end-of-text closes it. For everything else, one sentence says
what it is and how to convert it.

The last tenth of a single text is validation. Other documents are shuffled and split as nanoGPT does it, so
the same rows give nanoGPT's bins. A set on the Hub is downloaded to the cache of `datasets` (HF_HOME moves
it; you can delete it); with --max_docs, it is read as a stream instead. If you stop the script, the same
command starts again and gives the same bytes.
"""

import hashlib
import json
import math
import os
import re
import sys
import sysconfig
from array import array
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.console import check_range, fail
from support.hub import load_openwebtext, load_texts
from support.splits import DATA, HUB_ID, prepared_name
from support.splits import RULE as _RULE  # no key
from support.textfiles import find_texts, read_texts
from support.tokenizers import VOCAB, encode
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

OPENWEBTEXT = 'openwebtext', 'Skylion007/openwebtext'
BATCH, CHARACTERS = 64, 2**20  # a job has so many documents, or fewer where they are long
FILES = ('train.bin', 'meta.json', 'val.bin')  # two bins without meta.json would look like nanoGPT's

# stdlib goes without these folders, tables that a program wrote, and files that differ from build to build
SKIP = set('test tests idlelib encodings site-packages dist-packages __pycache__ pydoc_data'.split())
GENERATED = re.compile(r'_sysconfigdata.*|config-.*|(_opcode_metadata|keyword|stringprep|token|html/entities|'
                       r're/_casefix)\.py')


# ---- sources: ({'train': texts, maybe 'val': texts}, what meta.json says of them)


def open_stdlib():
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
    return texts, dict(source='stdlib', python=sys.version.split()[0], sha256=digest.hexdigest())


def open_local(config):
    kind, files = find_texts(config)
    texts = {split: read_texts(files[split], kind, config['text_column']) for split in files if files[split]}
    if kind == 'text' and len(files['train']) == 1 and 'val' not in texts:  # a book, nanoGPT's input.txt
        [book] = texts['train']
        texts = cut(book, config['val_fraction'] or 0.1)
    return texts, dict(source=config['dataset'])


def cut(book, share):
    """The parts of a text, whose last share begins behind a line or, without lines, behind a character"""
    raw = book.encode()
    at = len(raw[:int(len(raw) * (1 - share))].decode(errors='ignore'))
    line = book.find('\n', at) + 1
    if 0 < line < len(book):
        at = line
    return {'train': [book[:at]], 'val': [book[at:]]}


def open_hub(config):
    label = config['dataset']
    name, _, subset = label.partition(':')
    column, stream = config['text_column'], config['max_docs'] > 0
    if name in OPENWEBTEXT:
        texts, label = load_openwebtext(column, stream)
    else:
        way = dict(path=name, name=subset or None, revision=config['revision'] or None)
        texts = load_texts(label, way, column, stream)
    if config['val_fraction'] and 'val' in texts:
        fail(f'{label} has a validation split of its own. Leave --val_fraction out.')
    return texts, dict(source=label)


# ---- tokens


def make_jobs(texts, max_docs):
    """(split, documents) in the order of the texts"""
    for split in texts:
        documents, size = [], 0
        for document in islice(texts[split], max_docs or None):
            documents.append(document)
            size += len(document or '')
            if len(documents) == BATCH or size > CHARACTERS:
                yield split, documents
                documents, size = [], 0
        if documents:
            yield split, documents


def run_job(tokenizer, documents):
    """-> the ids of the documents, each with its end-of-text, and how many each has"""
    pieces = [encode(text or '', tokenizer) for text in documents]
    return np.concatenate(pieces), list(map(len, pieces))


def write_ids(path, texts, tokenizer, config):
    """Writes the ids of all documents as they come -> {split: documents}, the number of ids of each"""
    n_documents, lengths = dict.fromkeys(texts, 0), array('q')
    jobs = make_jobs(texts, config['max_docs'])
    workers = config['num_proc'] or count_cores()
    with open(path, 'wb') as f, tqdm(unit=' documents', mininterval=1) as bar:
        for (split,), (ids, counts) in in_order(jobs, partial(run_job, tokenizer), workers):
            f.write(ids)
            n_documents[split] += len(counts)
            lengths.extend(counts)
            bar.update(len(counts))
    return n_documents, np.array(lengths)


# ---- files


def choose_documents(n_documents, config):
    """{split: numbers of its documents, in their order}. Without val, nanoGPT's train_test_split."""
    n = n_documents['train']
    if 'val' in n_documents:
        return {'train': np.arange(n), 'val': np.arange(n, n + n_documents['val'])}
    order = np.random.default_rng(2357).permutation(n)
    n_val = math.ceil((config['val_fraction'] or 0.0005) * n)
    return {'train': order[n_val:], 'val': order[:n_val]}


def write_bins(tmp, texts, tokenizer, dtype, config):
    """Writes {train,val}.bin into tmp -> counts and content for meta.json"""
    n_documents, lengths = write_ids(tmp / 'ids', texts, tokenizer, config)
    ends = lengths.cumsum()
    counts, both = {}, b''
    for split, documents in choose_documents(n_documents, config).items():
        tokens = int(lengths[documents].sum())
        if tokens == len(documents):
            fail(f'There is no text for {split}: none of its {tokens} documents holds any. A file of text, a '
                 'line of json or a row of a table is one document. Give more, or another --text_column.')
        counts |= {f'{split}_tokens': tokens, f'{split}_documents': len(documents)}
        ids = np.asarray(np.memmap(tmp / 'ids', dtype, 'r'))
        digest = hashlib.blake2b(digest_size=16)
        parts = np.array_split(documents, len(documents) // 1000 + 1)
        with open(tmp / f'{split}.bin', 'wb') as f:
            for some in tqdm(parts, f'{split}.bin', mininterval=1):
                block = np.concatenate([ids[end - n:end] for end, n in zip(ends[some], lengths[some])])
                f.write(block)
                digest.update(block)
        both += digest.digest()
    empty = (lengths == 1).sum()
    if empty:
        print(f'{empty:,} documents are empty. Each becomes a single end-of-text, as in nanoGPT.')
    # what a run compares when it resumes: the same tokens may come from another path
    return counts | dict(content=hashlib.blake2b(both, digest_size=16).hexdigest())


def main(config):
    name = config['dataset']
    local = name not in ('stdlib', 'openwebtext') and os.path.exists(name)
    if not local and (not HUB_ID.fullmatch(name) or DATA.search(name)):
        fail(f'There is no file or folder {name}. Check the path.')
    check_range(config, 0, math.inf, 'max_docs', 'num_proc')
    check_range(config, 0, 0.99, 'val_fraction')
    if config['val'] and (config['val_fraction'] or not local):
        fail('--val only works if --dataset is a file or folder, and without --val_fraction. Leave it out.')
    if config['val_fraction'] and name == 'stdlib':
        fail('stdlib has validation data of its own. Leave --val_fraction out.')
    if config['revision'] and (local or name == 'stdlib' or name.partition(':')[0] in OPENWEBTEXT):
        fail('--revision only works if --dataset is a set on the Hub other than OpenWebText. Leave it out.')
    tokenizer = config['tokenizer']
    if tokenizer == 'auto':
        tokenizer = 'byte' if name == 'stdlib' else 'gpt2'
    if tokenizer not in VOCAB:
        fail(f'unknown tokenizer {tokenizer!r}. Use --tokenizer=gpt2 or --tokenizer=byte.')
    dtype = encode('', tokenizer).dtype
    out = Path(config['out_dir'] or Path('data', prepared_name(name)))
    with workplace(out, FILES, config['overwrite']) as tmp:
        if name == 'stdlib':
            texts, meta = open_stdlib()
        elif local:
            texts, meta = open_local(config)
        else:
            texts, meta = open_hub(config)
        counts = write_bins(tmp, texts, tokenizer, dtype, config)
        about = dict(tokenizer=tokenizer, vocab_size=VOCAB[tokenizer], dtype=dtype.name)
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
