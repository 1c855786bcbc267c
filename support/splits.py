"""
Which split a file belongs to, told by names: one rule for text, json lines, parquet and pictures.

    >>> split_names(['TinyStories-train.txt', 'TinyStories-valid.txt', 'README.txt'])
    {'TinyStories-train.txt': 'train', 'TinyStories-valid.txt': 'val', 'README.txt': ''}

Nothing is opened here, and nothing is left out in silence: tell_splits() names what is.
"""

import re

# three lines for --help
RULE = """\
A file or top folder belongs to a split if its name is train, val, valid, validation, dev or test (numbers aside), if it
ends in that word (wiki-valid.txt), or if it differs from another name in that word alone (val_en, train_en). All of val,
valid, validation and dev is validation, test is kept apart, and other names are training data where none says train."""

WORDS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
         'test': 'test', 'testing': 'test', 'eval': 'test', 'evaluation': 'test'}
FILLERS = set('of part shard chunk split data dataset set file v'.split())  # train-00000-of-00002, val_data, train.part3
# the endings of files that hold data, and of those that pack them; the name of any other file (train.py) says nothing
DATA = {'.txt', '.text', '.tokens', '.raw', '.jsonl', '.ndjson', '.json', '.parquet'}
PACKED = {'.gz', '.zst', '.bz2', '.xz'}


def split_names(paths, files='top'):
    """
    {path: 'train', 'val', 'test' or '' (left out)} for paths relative to the folder of a data set, with '/' between
    their parts. Names of folders at the top count always, those of files where they hold data: files='top' at the top,
    'any' at every depth, as do the folders above them then (a table is data wherever it lies), None nowhere.
    Where names tell no splits apart, all is 'train'.
    """
    parts = {path: path.split('/') for path in paths}
    # one folder around everything (data/train-00000-of-00002.parquet) is not the top yet
    while parts and all(len(p) > 1 for p in parts.values()) and len({p[0] for p in parts.values()}) == 1 \
            and not _exact(_words(next(iter(parts.values()))[0])):
        parts = {path: p[1:] for path, p in parts.items()}

    spoken = {}  # of each path, the names that may say its split: (words, is it a file), from the top down
    for path, p in parts.items():
        folders = p[:-1] if files == 'any' else p[:-1][:1]
        stem, is_data = _stem(p[-1])
        spoken[path] = [(_words(folder), False) for folder in folders]
        if is_data and (files == 'any' or files == 'top' and len(p) == 1):
            spoken[path].append((_words(stem), True))

    names = {name for given in spoken.values() for name in given}
    said, sure = _say(names)
    if not sure and not {'train'} < set(said.values()):
        said = {}
    splits = {path: next((said[name] for name in given if name in said), '') for path, given in spoken.items()}
    there = set(splits.values())
    if len(there) == 1 or there == {'', 'train'}:  # no name, or nothing that it is told apart from
        return dict.fromkeys(splits, 'train')
    if not {'train', 'val'} <= there:
        splits = {path: split or 'train' for path, split in splits.items()}
    return splits


def _say(names):
    """The split of each name that says one, and whether one of them is sure of it without company."""
    said, sure = {}, False
    frames = {}  # what is around the split word -> the splits that occur in it
    for words, _ in names:
        if (at := _place(words)) is not None:
            frames.setdefault((words[:at], words[at + 1:]), set()).add(WORDS[words[at]])
    for words, is_file in names:
        if (at := _place(words)) is None:
            continue
        split, frame = WORDS[words[at]], (words[:at], words[at + 1:])
        rest = frame[0] + frame[1]
        validates = split == 'val' and words[at] != 'dev'  # 'dev' and 'test' are folders of many programs too
        partner = rest and (len(frames[frame]) > 1 or any(rest == other for other, _ in names))
        if not rest or partner or not frame[1]:
            said[words, is_file] = split
            sure |= bool(partner) or validates or is_file and not rest and split != 'train'
    return said, sure


def _words(name):
    """A name in lower-case words: TinyStories-train_v2 -> ('tiny', 'stories', 'train')"""
    apart = re.sub('([a-z])([A-Z])', r'\1 \2', name)
    return tuple(word for word in re.findall(r'[^\W\d_]+', apart.lower()) if word not in FILLERS)


def _place(words):
    """Where the one split word of a name is, None if there is none or more than one (dev_test_notes)."""
    places = [i for i, word in enumerate(words) if word in WORDS]
    return places[0] if len(places) == 1 else None


def _exact(words):
    return len(words) == 1 and words[0] in WORDS


def _stem(name):
    """A file's name without the endings of data, and whether it had one."""
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
    counts = {split: sum(s == split for s in splits.values()) for split in ('train', 'val', 'test')}
    out = sorted([path for path, split in splits.items() if not split] + list(others))
    names = ', '.join(out[:10]) + (f' and {len(out) - 10:,} more' if len(out) > 10 else '')
    return ', '.join([f'{split}: {files(n)}' for split, n in counts.items() if n or split != 'test']
                     + [f'left out: {files(len(out))}' + (f' ({names})' if out else '')])
