"""Tables of parquet with a column of pictures and one of labels, as the Hub has them."""

import json
import os
import re

from support.console import fail
from support.splits import examples, split_files
from support.textfiles import check_text, each, open_parquet


def is_table(path):
    return path.lower().endswith('.parquet')


def open_tables(root, tables, held_out, config):
    """The classes, {split: label of each row}, {split: paths}, and items(split)"""
    files = split_files(root, tables, held_out, config)
    list(each(sum(files.values(), []), check_text, 'parquet'))
    folders = sorted({os.path.dirname(path) for path in files['train']})
    if len(folders) > 1:
        fail(f'The train files of {root} are in several folders ({", ".join(folders)}). Use --dataset=FOLDER '
             'with the folder of one set, around all of its splits.')
    columns, names, labels = {}, {}, {'train': [], 'val': [], 'test': []}
    for split, paths in files.items():
        for path in paths:
            if re.search('(^|/)partial-', os.path.relpath(path, root)):
                fail(f'{path} is part of an export that the Hub cut short. Download the whole data set.')
            columns[path], names[path], found = read_labels(path, split, config)
            labels[split] += found
    if not labels['train']:
        fail(f'{root} has no rows for training. Its files need names like train-00000-of-00001.parquet.')
    if files['val'] and not labels['val']:
        fail(f'The validation files of {root} have no rows. Use others, or leave them out.')
    classes = names[files['train'][0]]
    if not classes:
        if set(map(type, labels['train'])) not in ({str}, {int}, {bool}):
            fail(f'The labels of {root} are not whole numbers or names in all files. Choose another column '
                 'with --label_column.')
        classes = sorted(set(labels['train']) - {-1})  # which stands for no label
    if len(classes) < 2:
        fail(f'{root} has fewer than two classes ({examples(classes) or "none"}). Choose another column '
             'with --label_column.')
    return classes, labels, files, lambda split: items_of(files[split], columns)


def read_labels(path, split, config):
    """The column of pictures, the names of the classes or None, the labels: names where the file has them"""
    from pyarrow.types import is_nested, is_struct
    with open_parquet(path) as table:
        schema, columns = table.schema_arrow, []
        for key, usual in (('image_column', ['image', 'img']), ('label_column', ['label', 'fine_label'])):
            usual = [config[key]] if config[key] else usual
            there = [column for column in usual if column in schema.names]
            if not there and split != 'test':
                fail(f'{path} has no column {" or ".join(usual)}. Set --{key} to one of '
                     f'{examples(schema.names, 20)}.')
            columns += there[:1] or ['']
        image, label = columns
        if not image or not label or is_nested(schema.field(label).type):
            return image, None, [None]
        kind = schema.field(image).type
        has_bytes = is_struct(kind) and kind.get_field_index('bytes') >= 0
        if not has_bytes and not re.match('(large_)?binary|null', str(kind)):
            fail(f'{path} has no pictures under {image!r} but {kind}. Set --image_column to one of '
                 f'{examples(schema.names, 20)}.')
        labels = table.read([label]).column(0).to_pylist()
    try:
        names = json.loads(schema.metadata[b'huggingface'])['info']['features'][label]['names']
    except (ValueError, LookupError, TypeError):  # not written by `datasets`
        names = None
    if names:
        labels = [names[value] if value in range(len(names)) else value for value in labels]
    return image, names, labels


def items_of(paths, columns):
    """(name, bytes) of each picture"""
    for path in paths:
        with open_parquet(path) as table:
            row = 0
            for batch in table.iter_batches(64, columns=[columns[path]], use_threads=False):
                for cell in batch.column(0).to_pylist():
                    raw = cell['bytes'] if isinstance(cell, dict) else cell
                    yield f'{os.path.basename(path)} row {row}', raw or b''
                    row += 1
