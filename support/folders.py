"""Folders of pictures: CLASS/** or SPLIT/CLASS/**, and validation pictures whose classes are in a list."""

import os
from pathlib import Path
from shlex import quote
from unicodedata import normalize

from support.console import fail
from support.pictures import is_picture
from support.splits import choose_splits, examples, split_of


def open_folder(root, pictures, held_out, config):
    """The classes (folders of train), {split: class of each picture}, {split: its path}, and items(split)"""
    found = [(*folders_of(path, root), path) for path in pictures]
    said = {top: split_of(top) for top, _, _ in found if top}
    splits = choose_splits(root, said, config)
    alone = any(splits[top] == 'train' != said[top] for top in splits)  # CLASS/**
    pairs = {'train': [], 'val': [], 'test': []}
    for top, inner, path in found:
        if alone and split_of(inner) == 'train':
            fail(f'{root}/{top} looks like a data set of its own. Use '
                 f'--dataset={quote(os.path.join(root, top))}.')
        split, name = splits.get(top), top if alone else inner
        if split and (name or split != 'train'):  # others lie beside the classes
            pairs[split].append((name, path))
    if config['val']:
        pairs['val'] = [(folders_of(path, config['val'])[0], path) for path in held_out]
    classes = sorted({name for name, _ in pairs['train']})
    if len(classes) < 2:
        refuse_few(root, classes, pairs)
    if config['val_labels']:
        pairs['val'] = by_list(config['val_labels'], pairs['val'], set(classes))
    strange = [path for name, path in pairs['val'] if name not in classes]
    if strange:
        around, name = os.path.split(os.path.dirname(strange[0]))
        if config['val'] and name in classes:
            fail(f'--val={config["val"]} is not the folder around the classes. Use '
                 f'--val={quote(around)}.')
        fail(f'{len(strange):,} validation pictures are in no class folder of train ({examples(strange)}). '
             'Use --val_labels=FILE (a name and a class in each line; Tiny ImageNet comes with '
             'val_annotations.txt, ImageNet with LOC_val_solution.csv), or move each to VAL/CLASS/.')
    names, files = {}, {}
    for split in pairs:
        pairs[split].sort()
        names[split] = [name for name, _ in pairs[split]]
        files[split] = [path for _, path in pairs[split]]
    return classes, names, files, lambda split: ((path, path) for path in files[split])


def folders_of(path, root):
    """The first two folders between root and the file of a path; '' where it has fewer"""
    inside = normalize('NFC', path[len(os.path.join(root, '')):])  # an accent may be a letter of its own
    return (*inside.split(os.sep)[:-1], '', '')[:2]


def refuse_few(root, classes, pairs):
    first = [split[0][1] for split in pairs.values() if split]  # a picture of train, one of val or test
    if classes and os.path.basename(os.path.dirname(first[0])) != classes[0]:
        around = [os.path.dirname(os.path.dirname(path)) for path in first[:2]]
        below = list(Path(os.path.relpath(first[0], root)).parents)[:-2]
        named = [folder.parent for folder in below if split_of(folder.name)]
        if named and len(around) == 1:  # a whole data set, with train and val
            around = [os.path.join(root, named[0])]
        fail(f'{root} has one class, {classes[0]}, and it holds folders only. If those are the classes, use '
             f'--dataset={" --val=".join(map(quote, around))}.')
    fail(f'{root} has fewer than two class folders of training pictures ({examples(classes) or "none"}). It '
         'needs CLASS/** or train/CLASS/**.')


def by_list(file, pairs, classes):
    """(class, path) of the pictures in pairs, as the lines of file say: a name, then a class"""
    if not pairs:
        fail(f'--val_labels={file} needs validation pictures. Put them into val/, or use --val=FOLDER.')
    listed = {}
    with open(file, encoding='utf-8-sig', errors='replace') as f:
        for line in f:
            name, label = [*line.replace(',', ' ').split(), '', ''][:2]
            name = Path(name).stem if is_picture(name) else Path(name).name
            listed.setdefault(name, set()).add(label)
    found = [(' or '.join(sorted(listed.get(Path(path).stem, ''))), path) for _, path in pairs]
    missing = [path for name, path in found if name not in classes]
    if missing:
        fail(f'{file} does not state one class of train for {len(missing):,} validation pictures '
             f'({examples(missing)}). Begin one line with the name and the class of each.')
    return found
