"""
A prepared text: meta.json, train.bin and val.bin of data/NAME, checked when they are opened, read in windows.
"""

import json
import os

import numpy as np
import torch

from configurator import fail
from support.splits import prepared_name


def data_folder(dataset: str) -> str:
    """
    The folder of a prepared data set: data/NAME, the path itself, or where prepare_owt.py puts this argument. A path
    comes before a name, and a folder that holds a prepared data set comes before one with raw texts or pictures.
    """
    folders = [os.path.join('data', dataset), dataset]
    if os.path.dirname(dataset):
        folders.reverse()
    for folder in [*folders, os.path.join('data', prepared_name(dataset))]:
        if any(os.path.exists(os.path.join(folder, file)) for file in ('meta.json', 'train.bin')):
            return folder
    return dataset if os.path.isdir(dataset) else folders[0]


class Tokens:
    """
    The tokens of a data set on disk. meta is its meta.json, train_tokens and val_tokens are the sizes of its splits.
    vocab_size, set once the model is known, is the bound that every id must stay below.
    """

    def __init__(self, dataset, block_size, env):
        self.folder, self.block_size, self.env = data_folder(dataset), block_size, env
        self.meta = read_meta(self.folder, dataset)
        self.vocab_size = self.meta['vocab_size']
        for split in ('train', 'val'):
            self.check_split(split)
        self.train_tokens, self.val_tokens = self.meta['train_tokens'], self.meta['val_tokens']

    def check_split(self, split):
        """The .bin file has as many tokens as meta.json says, enough for one window. nanoGPT's folders say no number."""
        path, width = os.path.join(self.folder, f'{split}.bin'), np.dtype(self.meta['dtype']).itemsize
        if not os.path.exists(path):
            fail(f'{path} does not exist: python prepare_owt.py makes it')
        size = os.path.getsize(path)
        count = self.meta.setdefault(f'{split}_tokens', size // width)
        if size != count * width:
            fail(f'{path} has {size} bytes, not {width} for each of {count} tokens: it was cut short or meta.json is of '
                 'another set; prepare the data set again')
        if count < self.block_size + 1:
            fail(f'{path} has {count} tokens, too few for block_size={self.block_size}: use a smaller block_size or '
                 'more text')

    def windows(self, split: str, offsets) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets (len(offsets), block_size) that start at those tokens of a split, on the device."""
        # a new memmap each time: one that lives on counts every page it ever read as memory of this process
        data = np.memmap(os.path.join(self.folder, f'{split}.bin'), mode='r',
                         dtype=np.dtype(self.meta['dtype']).newbyteorder('<'))
        rows = np.stack([data[i:i + self.block_size + 1] for i in offsets]).astype(np.int64)
        if rows.max() >= self.vocab_size:
            fail(f'{split}.bin holds the id {rows.max()}, past the vocabulary of {self.vocab_size}: the data set and '
                 'its meta.json, or the checkpoint, do not belong together', any_rank=True)
        rows = torch.from_numpy(rows)
        cuda = self.env.device_type == 'cuda'
        rows = rows.pin_memory().to(self.env.device, non_blocking=True) if cuda else rows.to(self.env.device)
        return rows[:, :-1], rows[:, 1:]


def read_meta(folder, dataset):
    """meta.json, checked. nanoGPT's folders of GPT-2 tokens have none and are taken as they are."""
    path = os.path.join(folder, 'meta.json')
    if not os.path.isdir(folder):
        fail(f'there is no data set in {folder}: make it with python prepare_owt.py --dataset={dataset}')
    if not os.path.exists(path):
        if os.path.exists(os.path.join(folder, 'meta.pkl')):
            fail(f'{folder} has a meta.pkl of nanoGPT (pickles are not opened here): prepare the text with '
                 'prepare_owt.py')
        return {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}
    try:
        with open(path, encoding='utf-8') as f:
            meta = dict(json.load(f))
        counts = [meta[k] for k in ('vocab_size', 'train_tokens', 'val_tokens')]
        valid = meta['dtype'] in ('uint16', 'uint32') and meta['tokenizer'] in ('byte', 'gpt2') \
            and all(type(n) is int and n > 0 for n in counts)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        fail(f'{path} is broken or of another kind of data set: prepare the text again, with --overwrite=True')
    return meta
