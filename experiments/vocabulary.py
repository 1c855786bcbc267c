"""
One text in smaller vocabularies: the gpt2 tokenizer cut off after its first merges.

    python -m experiments.vocabulary --dataset=stdlib                     data/stdlib_512, _1024 and _4096
    python -m experiments.vocabulary --dataset=mytext --sizes=257,2048    any folder of gpt2 or byte tokens

A BPE learns one merge after the other, and an id of gpt2 is the place of its merge: 256 bytes, then merges of
what came before. So the ids below K - 1 are a tokenizer of their own, what BPE gives when it is stopped
there; end-of-text is id K - 1. Documents are read back to bytes and tokenized anew; the splits stay as they
are. meta.json counts bytes too: nats per token times tokens over bytes are nats per byte.
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

dataset = 'stdlib'  # a folder under data/, or a path: train.bin, val.bin and meta.json of prepare_owt.py
sizes = '512,1024,4096'  # vocabularies, end-of-text included: 257 to 50257
out_dir = ''  # what the names of the new folders begin with; '': data/NAME
overwrite = False  # replace what is there


def cut(gpt2, size):
    """The tokenizer of the first size - 1 ids."""
    ranks = {token: rank for token, rank in gpt2['mergeable_ranks'].items() if rank < size - 1}
    return tiktoken.Encoding(f'gpt2_{size}', pat_str=gpt2['pat_str'], mergeable_ranks=ranks,
                             special_tokens={})


def documents(path, meta, gpt2):
    """The documents of a .bin file as bytes."""
    ids, end = np.fromfile(path, np.dtype(meta['dtype']).newbyteorder('<')), meta['vocab_size'] - 1
    if meta['tokenizer'] == 'gpt2':
        tokenizer = cut(gpt2, 50257)
        to_bytes = lambda doc: tokenizer.decode_bytes(doc.tolist())  # noqa: E731
    else:
        to_bytes = lambda doc: doc.astype(np.uint8).tobytes()  # noqa: E731
    return [to_bytes(doc[doc != end]) for doc in np.split(ids, np.flatnonzero(ids == end) + 1) if len(doc)]


def write(folder, size, splits, meta, gpt2):
    """train.bin, val.bin, meta.json; a document that is no UTF-8 text is left out and counted."""
    tokenizer, counts = cut(gpt2, size), {}
    os.makedirs(folder, exist_ok=True)
    for split, docs in splits.items():
        tokens = n_bytes = skipped = 0
        with open(os.path.join(folder, f'{split}.bin'), 'wb') as f, ThreadPoolExecutor() as pool:
            for doc, ids in zip(docs, pool.map(lambda doc: encode(tokenizer, doc), docs)):
                if ids is None:
                    skipped += 1
                    continue
                f.write(np.array([*ids, size - 1], '<u2').tobytes())
                tokens, n_bytes = tokens + len(ids) + 1, n_bytes + len(doc)
        counts |= {f'{split}_tokens': tokens, f'{split}_bytes': n_bytes,
                   f'{split}_documents': len(docs) - skipped, f'{split}_skipped': skipped}
    with open(os.path.join(folder, 'meta.json'), 'w', encoding='utf-8') as f:
        json.dump({'tokenizer': 'gpt2', 'vocab_size': size, 'dtype': 'uint16', 'source': meta['source'],
                   **counts}, f, indent=2)
    return counts


def encode(tokenizer, doc):
    try:
        return tokenizer.encode_ordinary(doc.decode('utf-8'))
    except UnicodeDecodeError:
        return None


if __name__ == '__main__':
    configure(globals())
    source = data_folder(dataset)
    try:
        with open(os.path.join(source, 'meta.json'), encoding='utf-8') as f:
            meta = json.load(f)
        wanted = [int(size) for size in sizes.split(',')]
        gpt2 = r50k_base()
        splits = {split: documents(os.path.join(source, f'{split}.bin'), meta, gpt2)
                  for split in ('train', 'val')}
    except OSError as e:
        fail(f'Cannot read {e.filename} ({e.strerror}). Prepare the text with prepare_owt.py first, and put '
             'the file of the tokenizer where docs/data.md says.')
    except (ValueError, KeyError) as e:
        fail(f'{source}/meta.json or sizes={sizes} is not valid ({e}). Use --sizes=512,1024 for example.')
    if not all(257 <= size <= 50257 for size in wanted):
        fail(f'sizes={sizes} is out of range. A vocabulary has 257 to 50257 ids.')
    for size in wanted:
        folder = f'{out_dir or source.rstrip("/")}_{size}'
        if os.path.exists(os.path.join(folder, 'meta.json')) and not overwrite:
            fail(f'{folder} exists already. Use --overwrite=True to replace it.')
        counts = write(folder, size, splits, meta, gpt2)
        print(f'{folder}: {counts["train_tokens"]:,} + {counts["val_tokens"]:,} tokens, '
              f'{counts["train_bytes"] / counts["train_tokens"]:.2f} bytes each; left out '
              f'{counts["train_skipped"]} + {counts["val_skipped"]} documents that are no UTF-8', flush=True)
