"""Folders of pictures: CLASS/** or SPLIT/CLASS/**, and validation pictures whose classes are in a list."""

import os
import re
from unicodedata import normalize

import numpy as np

from support.console import fail
from support.pictures import is_picture
from support.splits import choose_splits, examples, split_of, tell_splits
from support.textfiles import find_files


def open_folder(root, pictures, others, config):
    """The source of the pictures below root. The classes are the folders of train, sorted by name."""
    held_out = []
    if config['val']:
        folder = config['val']
        held_out = [path for path in find_files(folder)[0] if is_picture(path)]
        real = set(map(os.path.realpath, held_out))
        pictures = [path for path in pictures if os.path.realpath(path) not in real]
    tops = by_folder(root, pictures, 0)
    others = others + tops.pop('', [])  # pictures in root itself
    said = {top: says(root, top, tops[top]) for top in tops}
    splits = choose_splits(root, said, config)
    alone = any(splits[top] and splits[top] != said[top] for top in tops)  # CLASS/**
    found = {'train': {}, 'val': {}, 'test': {}}  # {split: {class: paths}}
    for top, split in splits.items():
        if not split:
            others = others + tops[top]
        elif alone:
            found[split][top] = tops[top]
        else:
            for name, paths in by_folder(root, tops[top], 1).items():
                found[split].setdefault(name, []).extend(paths)
    check_layout(root, found, alone)
    others = others + found['train'].pop('', [])  # pictures in train itself
    if config['val']:
        found['val'] = by_folder(folder, held_out, 0)
    elif found['val']:
        folder = os.path.join(root, next(top for top in splits if splits[top] == 'val'))
    if config['val_labels']:
        found['val'] = by_list(config['val_labels'], found['val'], found['train'])
    elif found['val'] and not set(found['val']) & set(found['train']):
        fail(f'The pictures of {folder} are not in the class folders of train. Use '
             f'--val_labels={find_list(root, folder)}, or move each to {folder}/CLASS/.')
    others = others + found['val'].pop('', [])
    strange = sorted(set(found['val']) - set(found['train']))
    if strange:
        fail(f'The class {strange[0]} is in {folder} but not in train, whose folders are the classes. Rename '
             'or remove it.')
    strange = sorted(set(found['test']) - set(found['train']))
    if strange:
        print(f'The test split is left out: it has {strange[0] or "pictures"}, which is no class of train.')
        others = others + sum(found.pop('test').values(), [])

    classes, paths, labels = sorted(found['train']), {}, {}
    for split in found:
        if found[split]:
            paths[split], labels[split] = [], []
            for i, name in enumerate(classes):
                of_class = sorted(found[split].get(name, []))
                paths[split] += of_class
                labels[split] += [i] * len(of_class)
            labels[split] = np.array(labels[split])
    tell_splits(root, {'train': [], 'val': [], **paths}, sorted(others))
    return dict(classes=classes, labels=labels, alone=alone,
                items=lambda split: ((path, path) for path in paths[split]))


def by_folder(root, paths, depth):
    """{name of the folder that many levels below root: paths in it}; '' for those that are not so deep"""
    found, start = {}, len(os.path.join(root, ''))
    for path in paths:
        parts = path[start:].split(os.sep)
        name = parts[depth] if len(parts) > depth + 1 else ''
        found.setdefault(normalize('NFC', name), []).append(path)  # an accent may be a letter of its own
    return found


def says(root, top, paths):
    """What the name of a folder says. One that holds pictures itself may be a class (test_tube)."""
    split = split_of(top)
    return '' if split.endswith('?') and '' in by_folder(root, paths, 1) else split


def check_layout(root, found, alone):
    """Stops at a folder around the classes, and where there are none."""
    train = found['train']
    if not train:
        fail(f'{root} has no folder of training pictures. It needs CLASS/** or train/CLASS/**.')
    if set(train) == {''}:
        fail(f'The training pictures of {root} are not in class folders. Move each to train/CLASS/.')
    for name, paths in train.items():
        inner = by_folder(root, paths, 1 if alone else 2)
        if alone and any(split_of(folder) == 'train' for folder in inner):
            fail(f'{root}/{name} looks like a data set of its own. Use --dataset={root}/{name}.')
        if len(train) == 1 and '' not in inner:
            val = [path for split in ('val', 'test') for paths in found[split].values() for path in paths]
            places = [os.path.dirname(os.path.dirname(path)) for path in (paths[0], *val[:1])]
            fail(f'{root} has one class, {name}, and it holds folders only. If those are the classes, use '
                 f'--dataset={" --val=".join(places)}.')
    if alone and len(train) == 1:
        fail(f'{root} has pictures in one folder only ({", ".join(train)}). Sort them into at least two '
             'class folders.')


def by_list(file, found, train):
    """{class: paths} of the pictures in found, as the lines of file say: a name, then a class"""
    listed = {}
    with open(file, encoding='utf-8-sig') as f:
        for line in f:
            words = re.split('[\t,]' if re.search('[\t,]', line) else ' ', line.strip(), maxsplit=1)
            if len(words) == 2 and words[1].strip():
                listed[stem(words[0])] = words[1].split()[0]
    classes, missing = {}, []
    for path in sum(found.values(), []):
        name = listed.pop(stem(path), None)
        if name not in train:
            missing.append(path if name is None else f'{path}: {name}')
        classes.setdefault(name, []).append(path)
    if not classes:
        fail(f'--val_labels={file} needs validation pictures. Put them into val/, or use --val=FOLDER.')
    if missing:
        fail(f'{file} states no class of train for {len(missing):,} validation pictures '
             f'({examples(missing)}). Use the list of this data set.')
    if len(listed) > 1:  # a table has a head
        print(f'{file} lists {len(listed):,} pictures that are not there ({examples(listed)}).')
    return classes


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def find_list(root, folder):
    """The list of classes that comes with Tiny ImageNet or ImageNet, if it lies where they have it."""
    places = [folder, root]
    for _ in range(3):
        places.append(os.path.dirname(os.path.abspath(places[-1])))
    for place in places:
        for name in ('val_annotations.txt', 'LOC_val_solution.csv'):
            if os.path.exists(os.path.join(place, name)):
                return os.path.join(place, name)
    return 'FILE (a name and a class in each line)'
