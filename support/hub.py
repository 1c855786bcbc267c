"""Data sets of the Hugging Face Hub, and one sentence where one cannot be read."""

import re
from itertools import chain
from pathlib import Path

from support.console import fail, reason
from support.splits import WORDS
from support.textfiles import check_column

# in this order: the owner's set with a pull request, a full copy, the Hub's own export, which may be cut
OPENWEBTEXT = {
    'Skylion007/openwebtext@refs/pr/18': dict(
        path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    'dylanebert/openwebtext': dict(path='dylanebert/openwebtext'),
    'Skylion007/openwebtext@refs/convert/parquet': dict(
        path='Skylion007/openwebtext', revision='refs/convert/parquet'),
}
OPENWEBTEXT_ROWS = 8_013_769


def load_openwebtext(column, stream):
    """The texts of the first copy that has all rows, and where it lies"""
    for label, way in OPENWEBTEXT.items():
        try:
            return load_texts(label, way, column, stream, OPENWEBTEXT_ROWS), label
        except SystemExit as ended:
            print(f'{ended} So this copy of OpenWebText is left out.')
    fail('No copy of OpenWebText can be read in full, for the reasons above. Fix one of them, or name a copy '
         'as --dataset=dylanebert/openwebtext.')


def load_texts(label, way, column, stream, rows=0):
    """{'train': texts, maybe 'val': texts} of what load_dataset(**way) loads, which must have these rows"""
    from datasets import config, load_dataset
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute
    try:
        tables = load_dataset(**way, streaming=stream)
    except Exception as error:
        fail(hub_reason(label, error))
    texts = {}
    for split, table in tables.items():
        to = WORDS.get(split)
        if to in ('train', 'val'):
            texts[to] = chain(texts.get(to, []), read_rows(label, table, column))
        else:
            print(f'{label}: left out {split}', flush=True)
    if 'train' not in texts:
        fail(f'{label} has no split train but {", ".join(tables)}. Download it and use --dataset=FOLDER.')
    if rows and not stream and len(tables['train']) != rows:
        fail(f'{label} has {len(tables["train"]):,} rows, not {rows:,}.')
    return texts


def read_rows(label, table, column):
    try:
        for rows in table.with_format('arrow').iter(1000):
            check_column(label, rows.schema, column)
            yield from rows[column].cast('large_string').to_pylist()
    except Exception as error:
        fail(hub_reason(label, error))


def hub_reason(label, error):
    """What went wrong, by the kinds of the errors that led to it, and how to fix it"""
    kinds, cause = [], error
    while cause:
        kinds += [kind.__name__ for kind in type(cause).__mro__]
        kinds.append(f'HTTP {getattr(getattr(cause, "response", None), "status_code", "")}')
        cause = cause.__cause__ or cause.__context__
    kinds, why = ' '.join(kinds), reason(error.__cause__ or error)
    if re.search('GatedRepo|DatasetNotFound|HTTP 40[134]', kinds):
        return (f'{label} is not on the Hub, or it is gated or private, and no file or folder here has that '
                'name. Check the spelling. If its page on the Hub asks you to, accept its terms, then log in '
                'with `hf auth login` or set HF_TOKEN.')
    if re.search('Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete|HTTP [1-9]', kinds):
        return (f'{label} cannot be reached on the Hub ({why}), and no file or folder here has that name. '
                'Check the spelling and the network, and run the same command again.')
    return (f'{label} cannot be read ({why}). Fix that, name a part of the set as ID:CONFIG, or try the '
            'export of the Hub, which may be cut short (--revision=refs/convert/parquet). HF_HOME chooses '
            'another disk.')


def download(name):
    """The folder with the parquet files of a set on the Hub; cached files are not fetched again."""
    from huggingface_hub import constants, snapshot_download
    print(f'Downloading {name} to {constants.HF_HUB_CACHE} (HF_HOME moves it)', flush=True)
    try:
        for revision in ('main', 'refs/convert/parquet'):  # the second is the Hub's export of other formats
            folder = snapshot_download(name, repo_type='dataset', revision=revision,
                                       allow_patterns='*.parquet')
            if list(Path(folder).rglob('*.parquet')):
                return folder
    except Exception as error:
        fail(hub_reason(name, error))
    fail(f'{name} has no parquet files on the Hub. Download and unpack it, and use --dataset=FOLDER.')
