"""Which files are train, val and test: as --val or --val_fraction states or, without them, as names say."""

import os
import re
from collections import Counter
from shlex import quote

from support.console import fail

# for --help
RULE = """\
--val=FILE_OR_FOLDER states the validation data, and --val_fraction=F cuts it from train. Without both, a
folder or file is train, val (or valid, validation, dev) or test if its name is that word or ends in it, apart
from numbers (wiki-valid.txt, train-00001). If no name says a split, all is train. If only some do, or a name
may say one (valset, train_en), the script stops with the command that states the splits. Names of source
code, Markdown and HTML files (train.py, test.md) do not count."""

WORDS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'test': 'test'}
NEAR = re.compile('(train|val|valid|validation|dev|test|eval|evaluation)(set|sets|ing|data|split)?')
HUB_ID = re.compile(r'(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?')  # NAME, OWNER/NAME, with :CONFIG
# the endings of files that hold data; names of other files (train.py) say nothing
DATA = re.compile('[.](txt|text|tokens|raw|jsonl|ndjson|json|parquet)([.](gz|bz2|xz|zstd?))?$', re.IGNORECASE)


def split_of(name):
    """'train', 'val' or 'test' where a name says it, 'train?' where it may say it, '' where it does not"""
    name = re.sub(r'[-._]\d+-of-\d+.*', '', name)  # the number of a shard
    name = re.sub('([a-z])([A-Z])', r'\1 \2', name)
    words = re.findall(r'[^\W\d_]+', name.lower())
    near = [match[1] for match in map(NEAR.fullmatch, words) if match]
    if not near:
        return ''
    split = WORDS.get(near[0], 'val')
    return split if len(near) == 1 and words[-1] in WORDS else f'{split}?'


def split_of_path(path):
    """What the first part of a relative path that says something says. Source files say nothing."""
    *names, file = path.split('/')
    if DATA.search(file):
        names.append(DATA.sub('', file))
    return next(filter(None, map(split_of, names)), '')


def choose_splits(root, said, config):
    """
    {name: 'train', 'val', 'test' or '' (left out)} of {name: what split_of said} in the folder root. It stops
    where this is not clear, with the command that makes it so.
    """
    told = set(said.values())
    clear = told <= {'train', 'val', 'test'}
    if told == {''} or config['val_fraction'] and not clear:
        return dict.fromkeys(said, 'train')
    if config['val_fraction'] and 'val' in told:
        fail(f'{root} has validation data by its names. Leave --val_fraction out, or give the training data '
             'alone as --dataset.')
    if clear:
        return {name: '' if split == 'val' and config['val'] else split for name, split in said.items()}
    if config['val'] and not told & {'val?', 'test?'}:
        return {name: '' if split in ('val', 'test') else 'train' for name, split in said.items()}

    tops = {}  # {split: the names that say it, as far as they do}
    for name, split in said.items():
        parts = name.split('/')
        says = [i for i, part in enumerate(parts) if split and split_of(part)] or [0]
        tops.setdefault(split.rstrip('?'), {})['/'.join(parts[:says[0] + 1])] = None
    perhaps = '; '.join(f'{split or "neither"}: {examples(names)}' for split, names in tops.items())
    train = list(tops.get('train') or tops.get('', []))
    train = os.path.join(root, *train) if len(train) == 1 else root
    val = config['val'] or os.path.join(root, *list(tops.get('val') or tops.get('test') or ['VAL'])[:1])
    remedy = (f'State it with --dataset={quote(train)} --val={quote(val)} or, if all of it is training data, '
              'with --val_fraction=0.1.')
    if config['val'] and train == root:  # that is the command that was given
        remedy = f'Move what is no training data out of {root}.'
    fail(f'The names in {root} do not tell train from val ({perhaps}). {remedy}')


def split_files(root, chosen, held_out, config):
    """{'train', 'val', 'test': paths} of the chosen files below root, and of held_out, the files of --val"""
    real = set(map(os.path.realpath, held_out))
    names = {os.path.relpath(path, root): path for path in chosen if os.path.realpath(path) not in real}
    splits = {'.': 'train'}
    if os.path.isdir(root):
        splits = choose_splits(root, {name: split_of_path(name) for name in names}, config)
    files = {'train': [], 'val': list(held_out), 'test': []}
    for name, path in names.items():
        if splits[name]:
            files[splits[name]].append(path)
    return files


def tell_splits(root, files, others):
    """Prints how many files each split has and what is left out, with examples, and if shards are missing."""
    told = []
    for split, paths in {**files, 'left out': others}.items():
        names = [os.path.relpath(path, root) if os.path.isdir(root) else path for path in paths]
        noun = 'file' if len(names) == 1 else 'files'
        found = f' ({examples(names)})' if names else ''
        told.append(f'{split}: {len(names):,} {noun}{found}')
    print(', '.join(told), flush=True)
    shards = Counter(re.findall(r'(?m)^(.*?)\d+-of-(\d+)', '\n'.join(sum(files.values(), []))))
    for (start, total), there in shards.items():
        if there < int(total):
            print(f'{start}*: only {there} of {int(total)} shards are here. Download the others if you want '
                  'their rows.', flush=True)


def examples(names, n=3):
    names = list(map(str, names))
    return ', '.join(names[:n]) + (' ...' if len(names) > n else '')


def prepared_name(dataset):
    """The NAME of data/NAME, where prepare_owt.py puts --dataset: a file, a folder or a set on the Hub."""
    return DATA.sub('', os.path.basename(os.path.abspath(dataset))).replace(':', '-')  # ID:CONFIG
