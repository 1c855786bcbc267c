"""
A prepared text: meta.json, train.bin and val.bin of data/NAME, checked when opened and read in windows.
"""

import glob
import json
import os
from collections.abc import Sequence

import numpy as np
import torch

from support.console import fail


def data_folder(dataset: str) -> str:
    """
    The folder of a data set: data/NAME, or dataset itself as a path. The first of them that holds a prepared
    data set is used. If none does, dataset may be a folder of raw texts or pictures.
    """
    named = os.path.join('data', dataset)
    for folder in (named, dataset):
        if any(os.path.exists(os.path.join(folder, file)) for file in ('meta.json', 'train.bin')):
            return folder
    return dataset if os.path.isdir(dataset) else named


def no_data_set(folder: str, script: str, file: str):
    """Fails; script prepares such data sets, each of which has this file."""
    names = sorted(path.split(os.sep)[1] for path in glob.glob(f'data/*/{file}'))
    fail(f'There is no data set in {folder}. Make it with python {script} --dataset=FILE_OR_FOLDER, or '
         f'choose one of data/ ({", ".join(names) or "it has none"}).')


class Tokens:
    """
    The tokens of a data set on disk. meta is its meta.json. Every id must be below vocab_size, that of the
    model; 0: that of the data set, rounded up to a multiple of 64, which matrix products like.
    """

    def __init__(self, dataset: str, block_size: int, env, vocab_size: int = 0):
        self.folder, self.block_size, self.env = data_folder(dataset), block_size, env
        self.meta = read_meta(self.folder)
        ids = self.meta['vocab_size']
        self.vocab_size = vocab_size or -(-ids // 64) * 64
        if self.vocab_size < ids:
            fail(f'vocab_size={vocab_size} is less than the {ids} of the data set. Leave vocab_size at 0, or '
                 'use another checkpoint or data set.')
        for split in ('train', 'val'):
            self.check_split(split)
        self.train_tokens, self.val_tokens = self.meta['train_tokens'], self.meta['val_tokens']

    def check_split(self, split):
        """The .bin file must have as many tokens as meta.json states, if any, and enough for one window."""
        path, width = os.path.join(self.folder, f'{split}.bin'), np.dtype(self.meta['dtype']).itemsize
        if not os.path.exists(path):
            fail(f'{path} does not exist. Prepare the data set with python prepare_owt.py.')
        size = os.path.getsize(path)
        count = self.meta.setdefault(f'{split}_tokens', size // width)
        if size != count * width:
            fail(f'{path} has {size} bytes, not {width} for each of {count} tokens. It was cut short, or '
                 'meta.json belongs to another data set. Prepare the data set again with --overwrite=True.')
        if count < self.block_size + 1:
            fail(f'{path} has {count} tokens, too few for block_size={self.block_size}. Use a smaller '
                 '--block_size, or prepare more text or a larger --val_fraction.')

    def windows(self, split: str, offsets: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets on the device, int64 (len(offsets), block_size). offsets: where rows begin."""
        # a new memmap each time, because one that stays open counts every page it ever read as our memory
        data = np.memmap(os.path.join(self.folder, f'{split}.bin'), mode='r',
                         dtype=np.dtype(self.meta['dtype']).newbyteorder('<'))
        rows = np.stack([data[i:i + self.block_size + 1] for i in offsets]).astype(np.int64)
        if rows.max() >= self.vocab_size:
            fail(f'{split}.bin holds the id {rows.max()}, past the vocabulary of {self.vocab_size}. Its '
                 'meta.json or the checkpoint belongs to another data set. Prepare the data set again, or '
                 'choose another one with --dataset.', any_rank=True)
        rows = torch.from_numpy(rows)
        cuda = self.env.device_type == 'cuda'
        rows = rows.pin_memory().to(self.env.device, non_blocking=True) if cuda else rows.to(self.env.device)
        return rows[:, :-1], rows[:, 1:]


def read_meta(folder: str) -> dict:
    """meta.json, checked. nanoGPT's folders of GPT-2 tokens work without one."""
    path = os.path.join(folder, 'meta.json')
    if not os.path.exists(path):
        if os.path.exists(os.path.join(folder, 'meta.pkl')):
            fail(f'{folder} has a meta.pkl of nanoGPT, which we do not open because a pickle can run code. '
                 'Prepare the text with python prepare_owt.py.')
        if not os.path.exists(os.path.join(folder, 'train.bin')):
            no_data_set(folder, 'prepare_owt.py', 'train.bin')
        return {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}
    try:
        with open(path, encoding='utf-8') as f:
            meta = dict(json.load(f))
        if 'classes' in meta:
            fail(f'{folder} holds pictures. Use train_vit.py, or choose a text with --dataset.')
        counts = [meta[k] for k in ('vocab_size', 'train_tokens', 'val_tokens')]
        valid = meta['dtype'] in ('uint16', 'uint32') and meta['tokenizer'] in ('byte', 'gpt2') \
            and all(type(n) is int and n > 0 for n in counts)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        fail(f'{path} is not a valid meta.json for text data. Prepare the text again with '
             'python prepare_owt.py --overwrite=True.')
    return meta
