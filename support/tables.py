"""Tables of pictures: parquet with a column of pictures and one of labels, as the Hub has them."""

import json
import os
import re

import numpy as np

from support.console import fail
from support.splits import examples, split_files, tell_splits
from support.textfiles import check_text, each, find_files
from support.writing import said

USUAL = {'image_column': ['image', 'img'], 'label_column': ['label', 'fine_label']}


def open_tables(root, tables, others, config):
    """The source of the tables below root. Labels are matched by the names that each file gives them."""
    held_out = []
    if config['val']:
        found = find_files(config['val'])[0]
        held_out = [path for path in found if path.lower().endswith('.parquet')]
    files = split_files(root, tables, held_out, config)
    columns, labels, names = {}, {}, {}
    check_files(root, files)
    for split, path in [(split, path) for split in files for path in files[split]]:
        found, columns[path], names[path] = read_labels(path, split, config)
        labels.setdefault(split, []).extend(found)
    if not labels['train']:
        fail(f'{root} has no rows in train. Download it again.')
    classes = names[files['train'][0]]
    values = classes or classes_of(root, labels)
    classes = list(map(str, values))
    number = {value: i for i, value in enumerate(values)}
    for split in list(labels):
        strange = [value for value in labels[split] if isinstance(value, list) or value not in number]
        if not strange:
            labels[split] = np.array([number[value] for value in labels[split]])
        elif split == 'test':
            print(f'The test split of {root} is left out, because it has rows without a label of train '
                  f'({strange[0]}).')
            others = others + files.pop('test')
            del labels['test']
        else:
            fail(f'The {split} split of {root} has the label {strange[0]}, which is not one of the classes '
                 f'({examples(classes)}). Correct it, or choose another column with --label_column.')
    files = {split: paths for split, paths in files.items() if paths}
    tell_splits(root, {'train': [], 'val': [], **files}, sorted(others + tables_left(tables, files)))
    return dict(classes=classes, labels={split: labels[split] for split in files},
                items=lambda split: items_of(files[split], columns))


def tables_left(tables, files):
    return sorted(set(tables).difference(*files.values()))


def check_files(root, files):
    paths = sum(files.values(), [])
    list(each(paths, check_text, 'parquet'))
    for path in paths:
        if 'partial' in re.split('[^a-z]+', path[len(str(root)):].lower()):
            fail(f'{path} is part of an export that the Hub cut short. Download the whole data set.')
    if not files['train']:
        fail(f'{root} has no training files. Name them like train-00000-of-00001.parquet.')
    folders = sorted({os.path.dirname(path) for path in files['train']})
    if len(folders) > 1:
        fail(f'The train files of {root} are in several folders ({", ".join(folders)}). Choose one of them '
             f'with '
             '--dataset=FOLDER.')


def read_labels(path, split, config):
    """The labels of a file, as names if it names them; its column of pictures; the names in their order"""
    import pyarrow.parquet as pq
    columns = {}
    try:
        with open(path, 'rb') as f:  # pyarrow would read [ ] * ? in a path as a pattern
            schema = pq.read_schema(f)
            for key, usual in USUAL.items():
                usual = [config[key]] if config[key] else usual
                columns[key] = next((column for column in usual if column in schema.names), '')
                if not columns[key] and split != 'test':
                    fail(f'{path} has no column {" or ".join(usual)}. Set --{key} to one of '
                         f'{examples(schema.names, 20)}.')
            image, label = columns['image_column'], columns['label_column']
            labels = pq.read_table(f, columns=[label]).column(0).to_pylist() if image and label else [None]
        info = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    except (ValueError, OSError) as error:
        fail(f'{path} cannot be read as parquet ({said(error)}). Download it again or remove it.')
    names = info.get('info', {}).get('features', {}).get(label, {}).get('names')
    if names:
        numbers = range(len(names))
        labels = [names[value] if value in numbers else value for value in labels]
    return labels, image, names


def classes_of(root, labels):
    """Names in their order, or the numbers that occur in train and those between them in val and test"""
    kinds = {type(value) for value in labels['train']}
    if kinds == {str}:
        return sorted(set(labels['train']))
    if kinds not in ({int}, {bool}):
        fail(f'The labels of {root} are not whole numbers or names in all files. Choose another column with '
             '--label_column.')
    low, high = max(0, min(labels['train'])), max(labels['train'])
    found = sum(labels.values(), [])
    values = sorted({value for value in found if isinstance(value, int) and low <= value <= high})
    if values != list(range(len(values))):
        print(f'The {len(values):,} labels that occur ({low} to {high}) are numbered as the classes 0 to '
              f'{len(values) - 1}. The name of each class is its label.')
    return values


def items_of(paths, columns):
    """(name, bytes) of each picture"""
    import pyarrow.parquet as pq
    for path in paths:
        at = 0
        try:
            with open(path, 'rb') as f:
                batches = pq.ParquetFile(f).iter_batches(64, columns=[columns[path]], use_threads=False)
                for batch in batches:
                    column = batch.column(0)
                    cells = column.field('bytes') if hasattr(column, 'field') else column
                    for i, cell in enumerate(cells.to_pylist(), at):
                        yield f'{os.path.basename(path)} row {i}', cell or b''
                    at += len(column)
        except (ValueError, OSError) as error:
            fail(f'{path} is damaged after row {at} ({said(error)}). Download it again.')
