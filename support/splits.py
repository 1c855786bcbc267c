"""
Which split a file belongs to, told by names: one rule for text, json lines, parquet and pictures.

    >>> split_names(['TinyStories-train.txt', 'TinyStories-valid.txt', 'README.txt'])
    {'TinyStories-train.txt': 'train', 'TinyStories-valid.txt': 'val', 'README.txt': ''}

Nothing is opened here, and nothing is left out in silence: tell_splits() lists what is.
"""

import os
import re
from itertools import takewhile
from pathlib import Path

# for --help
RULE = """\
A file or top folder is train, val (or valid, validation, dev) or test if that word is its name (train-00001),
ends its name (wiki-valid.txt), or is all that differs from another name (train_en, val_en). Source code says
nothing. Other names are training data; where both train and val are named, they are left out and listed."""

WORDS = {'train': 'train', 'training': 'train',
         'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
         'test': 'test', 'testing': 'test', 'eval': 'test', 'evaluation': 'test'}
FILLERS = set('of part shard chunk split data dataset set file v'.split())  # train-0-of-2, val_data
# the endings of files that hold data, and what may follow them; names of other files (train.py) say nothing
DATA = {'.txt', '.text', '.tokens', '.raw', '.jsonl', '.ndjson', '.json', '.parquet'}
PACKED = {'.gz', '.bz2', '.xz', '.zst', '.zstd'}


def split_names(paths, files='top'):
    """
    {path: 'train', 'val', 'test' or '' (left out)} for paths relative to the folder of a data set, with '/'
    between their parts. Names of folders at the top count. So do names of files that hold data: at the top,
    further down if those say both train and val; with files='any' at every depth (and all folders: a table is
    data wherever it lies); with None never. Where names tell no splits apart, all is 'train'.
    """
    parts = {path: path.split('/') for path in paths}
    # folders around all data (data/train-00000-of-00002.parquet) are not the top yet
    data = [p[:-1] for p in parts.values() if data_stem(p[-1])[1]] or [p[:-1] for p in parts.values()]
    around = list(takewhile(lambda folder: not is_split(words_of(folder)), os.path.commonprefix(data)))
    parts = {path: p[len(around):] if p[:len(around)] == around else p for path, p in parts.items()}

    for level in dict.fromkeys((files, 'any' if files == 'top' else files)):
        names = {}  # path -> the names that may say its split, from the top down, as (words, is it a file)
        for path, (*folders, file) in parts.items():
            stem, is_data = data_stem(file)
            names[path] = [(words_of(name), False) for name in (folders if level == 'any' else folders[:1])]
            if is_data and (level == 'any' or level == 'top' and not folders):
                names[path].append((words_of(stem), True))
        said = splits_said({name for given in names.values() for name in given})
        splits = {path: next((said[n] for n in given if n in said), '') for path, given in names.items()}
        there = set(splits.values())
        if {'train', 'val'} <= there:
            return splits
        if level == files and len(there) > 1 and there != {'', 'train'}:
            return {path: split or 'train' for path, split in splits.items()}
    return dict.fromkeys(parts, 'train')


def splits_said(names):
    """{name: split} of the names that say one. Each name is (words, is it a file)."""
    said, sure, around = {}, False, {}
    places = {name: [i for i, word in enumerate(name[0]) if word in WORDS] for name in names}
    places = {name: at[0] for name, at in places.items() if len(at) == 1}  # not dev_test_notes
    for (words, _), at in places.items():
        around.setdefault((words[:at], words[at + 1:]), set()).add(WORDS[words[at]])
    for (words, is_file), at in places.items():
        word, before, after = words[at], words[:at], words[at + 1:]
        rest = before + after
        partner = rest and (len(around[before, after]) > 1 or any(rest == other for other, _ in names))
        if partner or not after:
            said[words, is_file] = WORDS[word]
            # programs have folders called dev and test, and titles end in such words
            sure |= bool(partner) or word in ('val', 'valid', 'validation') or (
                is_file and not rest and WORDS[word] != 'train')
    # the less sure ones need the company of one that is, or a train to be told apart from
    return said if sure or {'train'} < set(said.values()) else {}


def words_of(name):
    """'TinyStories-train_v2' -> ('tiny', 'stories', 'train')"""
    name = re.sub(r'-\d{5}-of-\d{5}-[0-9a-f]{16}$', '', name)  # the Hub's older shards end in a hash
    apart = re.sub('([a-z])([A-Z])', r'\1 \2', name)
    return tuple(word for word in re.findall(r'[^\W\d_]+', apart.lower()) if word not in FILLERS)


def is_split(words):
    return len(words) == 1 and words[0] in WORDS


def data_stem(name):
    """A file's name without the endings of data, and whether it had one: 'a.txt.gz' -> ('a', True)"""
    stem, is_data = name, False
    while '.' in stem[1:]:
        head, dot, ending = stem.rpartition('.')
        ending = (dot + ending).lower()
        if ending not in DATA and (is_data or ending not in PACKED):
            break
        stem, is_data = head, is_data or ending in DATA
    return stem, is_data


def tell_splits(splits, others=()):
    """One line for the user: how many files each split has, and the names of what is left out."""
    def files(n):
        return f'{n:,} file' + 's' * (n != 1)
    counts = {split: list(splits.values()).count(split) for split in ('train', 'val', 'test')}
    out = sorted([path for path, split in splits.items() if not split] + list(others))
    names = ', '.join(out[:10]) + f' and {len(out) - 10:,} more' * (len(out) > 10)
    return ', '.join([f'{split}: {files(n)}' for split, n in counts.items() if n or split != 'test']
                     + [f'left out: {files(len(out))}' + f' ({names})' * bool(out)])


def prepared_name(dataset):
    """The NAME of data/NAME, where prepare_owt.py puts --dataset: a file, a folder or a set on the Hub."""
    path = Path(dataset).expanduser()
    if path.is_dir() or not path.is_file() and not data_stem(path.name)[1]:
        return path.resolve().name.replace(':', '-')  # ID:CONFIG
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem
