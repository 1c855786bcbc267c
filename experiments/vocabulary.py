"""
The text of the question why in 4,096 tokens: the gpt2 tokenizer, cut off after its first merges.

    python -m experiments.vocabulary      data/stdlib_4096 from data/stdlib

A BPE learns one merge after the other, and an id of gpt2 is the place of its merge. So the ids below size - 1
are what BPE gives when it is stopped there; end-of-text is id size - 1.
"""

import json
from pathlib import Path

import numpy as np
import tiktoken

from configurator import configure
from experiments.stack import CPU
from prepare_owt import FILES
from support.console import check_range, fail
from support.tokenizers import open_gpt2
from support.tokens import Tokens
from support.writing import put_in_place, workplace

dataset = 'stdlib'  # a folder under data/, or a path: what prepare_owt.py --tokenizer=byte made
size = 4096  # of the vocabulary, end-of-text included
out_dir = ''  # '' is the folder of dataset with _SIZE behind it
overwrite = False  # replace what is there

if __name__ == '__main__':
    check_range(configure(globals()), 257, 50257, 'size')
    source, gpt2 = Tokens(dataset, 1, CPU), open_gpt2()
    if source.meta['tokenizer'] != 'byte':
        fail(f'{source.folder} does not hold bytes. Prepare the text with --tokenizer=byte.')
    folder = Path(out_dir or f'{source.folder.rstrip("/")}_{size}')
    ranks = {token: rank for token, rank in gpt2._mergeable_ranks.items() if rank < size - 1}
    tokenizer = tiktoken.Encoding(f'gpt2_{size}', pat_str=gpt2._pat_str, mergeable_ranks=ranks,
                                  special_tokens={})
    meta = {'tokenizer': 'gpt2', 'vocab_size': size, 'dtype': 'uint16', 'source': source.meta['source']}
    with workplace(folder, FILES, overwrite) as tmp:
        for split in ('train', 'val'):
            ids = np.fromfile(f'{source.folder}/{split}.bin', source.meta['dtype'])
            documents = np.split(ids.astype(np.uint8), np.flatnonzero(ids == 256) + 1)[:-1]
            texts = [document[:-1].tobytes().decode('utf-8') for document in documents]  # 256 closes each
            tokens = [[*of_text, size - 1] for of_text in tokenizer.encode_ordinary_batch(texts)]
            np.concatenate(tokens).astype('<u2').tofile(tmp / f'{split}.bin')
            meta |= {f'{split}_tokens': sum(map(len, tokens)), f'{split}_documents': len(texts),
                     f'{split}_bytes': len(ids) - len(texts)}
        (tmp / 'meta.json').write_text(json.dumps(meta, indent=2))
        put_in_place(tmp, folder, FILES)
    print(f'{folder}: {meta["train_tokens"]:,} + {meta["val_tokens"]:,} tokens, '
          f'{meta["train_bytes"] / meta["train_tokens"]:.2f} bytes each')
