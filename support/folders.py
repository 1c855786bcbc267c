"""Folders of pictures: CLASS/** or SPLIT/CLASS/**, and validation pictures whose classes are in a list."""

import os
from unicodedata import normalize

import numpy as np

from support.console import fail
from support.splits import choose_splits, examples, split_of


def open_folder(root, pictures, held_out, config):
    """The source of the pictures below root. The classes are the folders of train, sorted by name."""
    found = [(*folders_of(path, root), path) for path in pictures]
    said = {top: split_of(top) for top in dict.fromkeys(top for top, _, _ in found) if top}
    splits = choose_splits(root, said, config)
    alone = any(splits[top] == 'train' != said[top] for top in splits)  # CLASS/**
    pairs, val_folder = {'train': [], 'val': [], 'test': []}, config['val']
    for top, inner, path in found:
        split = splits.get(top)
        if split:  # a picture in root itself has none
            pairs[split].append((top if alone else inner, path))
        if split == 'val':
            val_folder = os.path.join(root, top)
    if config['val']:
        pairs['val'] = [(folders_of(path, val_folder)[0], path) for path in held_out]
    classes = sorted({name for name, _ in pairs['train'] if name})
    if alone and 'train' in map(split_of, {inner for _, inner, _ in found}):
        name = next(top for top, inner, _ in found if split_of(inner) == 'train')
        fail(f'{root}/{name} looks like a data set of its own. Use --dataset={root}/{name}.')
    if len(classes) < 2:
        check_few(root, classes, pairs, alone)
    if config['val_labels']:
        pairs['val'] = by_list(config['val_labels'], pairs['val'], set(classes))
    val = {name for name, _ in pairs['val']}
    strange = val.difference(classes)
    if strange - {''} or val and strange == val:
        name = max(strange) or 'no folder'
        fail(f'{val_folder} has pictures in {name}, which is no class folder of train. Use --val_labels=FILE '
             '(a name and a class in each line; Tiny ImageNet comes with val_annotations.txt, ImageNet with '
             f'LOC_val_solution.csv), or move each to {val_folder}/CLASS/.')
    strange = {name for name, _ in pairs['test']}.difference(classes)
    if strange:
        name = max(strange) or 'pictures'
        print(f'The test split is left out: it has {name}, which is no class of train.')
        del pairs['test']

    number = {name: i for i, name in enumerate(classes)}
    files, labels = {}, {}
    for split in pairs:
        if pairs[split]:
            known = sorted((number[name], path) for name, path in pairs[split] if name)
            labels[split] = np.array([label for label, _ in known])
            files[split] = [path for _, path in known]
    return dict(classes=classes, labels=labels, alone=alone, files=files,
                items=lambda split: ((path, path) for path in files[split]))


def folders_of(path, root):
    """The first two folders between root and the file of a path; '' where it has fewer"""
    inside = normalize('NFC', path[len(os.path.join(root, '')):])  # an accent may be a letter of its own
    names = inside.split(os.sep)[:-1]
    return (*names, '', '')[:2]


def check_few(root, classes, pairs, alone):
    """Stops where there are no classes, and at a folder around them."""
    train = [path for name, path in pairs['train'] if name]
    folders = [os.path.dirname(path) for path in train]
    if train and not any(normalize('NFC', os.path.basename(folder)) == classes[0] for folder in folders):
        val = [os.path.dirname(path) for _, path in pairs['val'] + pairs['test']]
        around = [os.path.dirname(folder) for folder in (folders[0], *val[:1])]
        fail(f'{root} has one class, {classes[0]}, and it holds folders only. If those are the classes, use '
             f'--dataset={" --val=".join(around)}.')
    if alone or not classes:
        fail(f'{root} has fewer than two class folders of training pictures ({examples(classes) or "none"}). '
             'It needs CLASS/** or train/CLASS/**.')


def by_list(file, pairs, classes):
    """(class, path) of the pictures in pairs, as the lines of file say: a name, then a class"""
    listed = {}
    with open(file, encoding='utf-8-sig', errors='replace') as f:
        for line in f:
            words = line.replace(',', ' ').split()
            if len(words) > 1:
                listed[stem(words[0])] = words[1]
    if not pairs:
        fail(f'--val_labels={file} needs validation pictures. Put them into val/, or use --val=FOLDER.')
    found = [(listed.get(stem(path)), path) for _, path in pairs]
    missing = [f'{path}: {name}' for name, path in found if name not in classes]
    if missing:
        fail(f'{file} states no class of train for {len(missing):,} validation pictures '
             f'({examples(missing)}). Use the list of this data set.')
    return found


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]
