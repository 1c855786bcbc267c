"""
One text in smaller vocabularies: the gpt2 tokenizer cut off after its first merges.

    python -m experiments.vocabulary --dataset=stdlib                     data/stdlib_512, _1024 and _4096
    python -m experiments.vocabulary --dataset=mytext --sizes=257,2048    any folder of byte tokens

A BPE learns one merge after the other, and an id of gpt2 is the place of its merge. So the ids below K - 1
are what BPE gives when it is stopped there; end-of-text is id K - 1. Documents are read back to text and
tokenized anew; the splits stay as they are. meta.json counts bytes too.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_base

from configurator import configure
from support.console import fail
from support.tokens import data_folder

dataset = 'stdlib'  # a folder under data/, or a path: what prepare_owt.py --tokenizer=byte made
sizes = '512,1024,4096'  # vocabularies, end-of-text included: 257 to 50257
overwrite = False  # replace what is there

def cut(gpt2, size):
    """The tokenizer of the first size - 1 ids."""
    ranks = {token: rank for token, rank in gpt2['mergeable_ranks'].items() if rank < size - 1}
    return tiktoken.Encoding(f'gpt2_{size}', pat_str=gpt2['pat_str'], mergeable_ranks=ranks,
                             special_tokens={})

def documents(path):
    """The documents of a .bin file of byte tokens, each closed by id 256."""
    ids = np.fromfile(path, '<u2')
    ends = np.flatnonzero(ids == 256)
    starts = np.r_[0, ends[:-1] + 1]
    return [ids[start:end].astype(np.uint8).tobytes().decode('utf-8') for start, end in zip(starts, ends)]

def write(folder, tokenizer, size, splits, source):
    """train.bin, val.bin and meta.json; returns what the last says."""
    meta = {'tokenizer': 'gpt2', 'vocab_size': size, 'dtype': 'uint16', 'source': source}
    os.makedirs(folder, exist_ok=True)
    for split, docs in splits.items():
        with ThreadPoolExecutor() as pool:
            tokens = [[*ids, size - 1] for ids in pool.map(tokenizer.encode_ordinary, docs)]
        np.concatenate(tokens).astype('<u2').tofile(f'{folder}/{split}.bin')
        meta |= {f'{split}_tokens': sum(map(len, tokens)), f'{split}_documents': len(docs),
                 f'{split}_bytes': sum(len(doc.encode()) for doc in docs)}
    with open(f'{folder}/meta.json', 'w', encoding='utf-8') as f:
        json.dump(meta, f, indent=2)
    return meta

if __name__ == '__main__':
    configure(globals())
    source = data_folder(dataset)
    wanted = [int(size) if size.isdigit() else 0 for size in sizes.split(',')]
    if not all(257 <= size <= 50257 for size in wanted):
        fail(f'sizes={sizes} is out of range. Use vocabularies of 257 to 50257 ids: --sizes=512,1024.')
    try:
        with open(f'{source}/meta.json', encoding='utf-8') as f:
            about = json.load(f)
        if about['tokenizer'] != 'byte':
            fail(f'{source} has {about["tokenizer"]} tokens. Prepare the text with --tokenizer=byte.')
        splits = {split: documents(f'{source}/{split}.bin') for split in ('train', 'val')}
        gpt2 = r50k_base()
    except OSError as e:
        fail(f'Cannot read {e.filename} ({e.strerror}). Prepare the text with prepare_owt.py first, and put '
             'the file of the tokenizer where docs/data.md says.')
    for size in wanted:
        folder = f'{source.rstrip("/")}_{size}'
        if os.path.exists(f'{folder}/meta.json') and not overwrite:
            fail(f'{folder} exists already. Use --overwrite=True to replace it.')
        made = write(folder, cut(gpt2, size), size, splits, about['source'])
        print(f'{folder}: {made["train_tokens"]:,} + {made["val_tokens"]:,} tokens, '
              f'{made["train_bytes"] / made["train_tokens"]:.2f} bytes each', flush=True)
