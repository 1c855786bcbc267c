"""Tables of parquet with a column of pictures and one of labels, as the Hub has them."""

import json
import os
import re
from contextlib import contextmanager

import numpy as np

from support.console import fail
from support.splits import examples, split_files
from support.textfiles import check_text, each
from support.writing import said

LABELS = 'u?int|bool|(large_)?string|dictionary|null'  # types that pyarrow names so


def is_table(path):
    return path.lower().endswith('.parquet')


def open_tables(root, tables, held_out, config):
    """The source of the tables below root. Labels are matched by the names that each file gives them."""
    files = split_files(root, tables, held_out, config)
    check_files(root, files)
    columns, names, values = {}, {}, {'train': [], 'val': [], 'test': []}
    for split, paths in files.items():
        for path in paths:
            columns[path], names[path], found = read_labels(path, split, config)
            values[split] += found
    if not values['train']:
        fail(f'{root} has no rows in train. Download it again.')
    classes = names[files['train'][0]] or classes_of(root, values['train'])
    number = {value: i for i, value in enumerate(classes)}
    labels = {}
    for split in values:
        strange = [value for value in values[split] if value not in number]
        if strange and split == 'test':
            print(f'The test split of {root} is left out, because it has rows without a label of train '
                  f'({strange[0]}).')
        elif strange:
            fail(f'The {split} split of {root} has the label {strange[0]}, which is not one of the classes '
                 f'({examples(classes)}). Correct it, or choose another column with --label_column.')
        elif values[split]:
            labels[split] = np.array([number[value] for value in values[split]])
    files = {split: files[split] for split in labels}
    return dict(classes=list(map(str, classes)), labels=labels, files=files,
                items=lambda split: items_of(files[split], columns))


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
             'with --dataset=FOLDER.')


@contextmanager
def opened(path):
    from pyarrow.parquet import ParquetFile
    try:
        with open(path, 'rb') as f:  # pyarrow would read [ ] * ? in a path as a pattern
            yield ParquetFile(f)
    except (ValueError, OSError) as error:
        fail(f'{path} cannot be read as parquet ({said(error)}). Download it again or remove it.')


def read_labels(path, split, config):
    """The column of pictures, the names of the classes or None, the labels: names where the file has them"""
    with opened(path) as table:
        schema, columns = table.schema_arrow, []
        for key, usual in (('image_column', ['image', 'img']), ('label_column', ['label', 'fine_label'])):
            usual = [config[key]] if config[key] else usual
            there = [column for column in usual if column in schema.names]
            if not there and split != 'test':
                fail(f'{path} has no column {" or ".join(usual)}. Set --{key} to one of '
                     f'{examples(schema.names, 20)}.')
            columns += there[:1] or ['']
        image, label = columns
        if '' in columns or not re.match(LABELS, str(schema.field(label).type)):
            return image, None, [None]
        labels = table.read([label]).column(0).to_pylist()
        info = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    names = info.get('info', {}).get('features', {}).get(label, {}).get('names')
    if names:
        numbers = range(len(names))
        labels = [names[value] if value in numbers else value for value in labels]
    return image, names, labels


def classes_of(root, labels):
    """The names in their order, or the numbers that occur"""
    kinds = {type(value) for value in labels}
    if kinds == {str}:
        return sorted(set(labels))
    if kinds in ({int}, {bool}):
        return sorted(value for value in set(labels) if value >= 0)
    fail(f'The labels of {root} are not whole numbers or names in all files. Choose another column with '
         '--label_column.')


def items_of(paths, columns):
    """(name, bytes) of each picture"""
    for path in paths:
        with opened(path) as table:
            row = 0
            for batch in table.iter_batches(64, columns=[columns[path]], use_threads=False):
                cells = batch.column(0)
                if hasattr(cells, 'field'):  # {'bytes', 'path'}
                    cells = cells.field('bytes')
                for cell in cells.to_pylist():
                    yield f'{os.path.basename(path)} row {row}', cell or b''
                    row += 1
