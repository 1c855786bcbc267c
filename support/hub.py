"""Tables that `datasets` loads, from the Hub or from here, and one sentence where it does not."""

import glob
import re

from support.console import fail
from support.splits import WORDS, examples
from support.textfiles import count_rows, read_json
from support.writing import disk_is_full, said

# in this order: the Hub's own export (cut for some sets), all of it in the owner's pull request, a full copy
OPENWEBTEXT = [
    dict(path='Skylion007/openwebtext', revision='refs/convert/parquet'),
    dict(path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    dict(path='dylanebert/openwebtext'),
]
OPENWEBTEXT_ROWS = 8_013_769


def load_openwebtext(column, stream):
    """The tables of the first copy that has all rows, or of the best one; and where it lies"""
    found = []
    for way in OPENWEBTEXT:
        label = way.get('data_files') or '@'.join(way.values())
        try:
            tables = load_tables(way, label, column, stream)
        except SystemExit as reason:
            if 'cannot be reached' in str(reason):
                raise
            print(f'{reason} Trying the next copy of OpenWebText.')
            continue
        if stream:
            return tables, label
        if len(tables['train']) == OPENWEBTEXT_ROWS:
            print(f'{label} is complete. nanoGPT has 9,035,582,198 tokens of it in train, 4,434,897 in val.')
            return tables, label
        print(f'{label} has {len(tables["train"]):,} rows, OpenWebText has {OPENWEBTEXT_ROWS:,}. Trying the '
              'next copy.')
        found.append((tables, label))
    if not found:
        fail('No copy of OpenWebText could be loaded, for the reasons above. Choose another --dataset.')
    return max(found, key=lambda pair: len(pair[0]['train']))


def load_parquet(splits, root, column):
    import datasets
    way = dict(path='parquet', columns=[column], data_files={})
    way['features'] = datasets.Features({column: datasets.Value('large_string')})
    for split, paths in splits.items():
        full = [glob.escape(path) for path in paths if count_rows(path)]  # it fails at a file without rows
        if full:
            way['data_files'][split] = full
    if 'train' not in way['data_files']:
        fail(f'{root} holds no text to train on: its files of parquet have no rows.')
    return load_tables(way, root, column)


def load_json(splits, column, folder):
    """We read the lines: `datasets` takes one without the key for an empty text, and names no line."""
    import datasets
    tables, text = {}, datasets.Features({column: datasets.Value('large_string')})
    for split, paths in splits.items():
        if paths:
            given = dict(paths=tuple(paths), column=column)  # a list would be shared out
            tables[split] = datasets.Dataset.from_generator(read_json, text, str(folder), gen_kwargs=given)
    return tables


def load_tables(way, label, column, stream=False):
    """What load_dataset(**way) loads, with the column of text alone: {'train': table, maybe 'val': table}"""
    from datasets import concatenate_datasets, load_dataset_builder
    from datasets import config as hf
    hf.STREAMING_READ_MAX_RETRIES = hf.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute of retries
    stage = 'open'
    try:
        builder = load_dataset_builder(**way)
        check_column(label, builder.info.features, column)
        stage = 'download'
        if stream:
            tables = builder.as_streaming_dataset()
        elif '/partial-' in str(builder.config.data_files):
            fail(f'{label} is an export that the Hub cut short. --max_docs=N takes the first N of its rows.')
        else:
            print(f'{label}: the Arrow copy is in {hf.HF_DATASETS_CACHE} (HF_HOME moves it)', flush=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
    except Exception as error:
        fail(hub_reason(label, error, stage))
    if 'train' not in tables:
        fail(f'{label} has no split train but {", ".join(tables)}. Download it and use --dataset=FOLDER.')
    check_column(label, tables['train'].column_names, column)
    parts = {}
    for split in tables:
        if WORDS.get(split) in ('train', 'val'):
            parts.setdefault(WORDS[split], []).append(tables[split].select_columns([column]))
        else:
            print(f'{label}: left out {split}', flush=True)
    return {split: concatenate_datasets(parts[split]) for split in parts}


def check_column(label, columns, column):
    if columns and column not in columns:
        fail(f'{label} has no column {column!r}. Set --text_column to one of {examples(columns, 20)}.')


def hub_reason(label, error, stage):
    """What went wrong and how to fix it; the first telling error in the chain decides."""
    errors = [error]
    while (cause := errors[-1].__cause__ or errors[-1].__context__) and cause not in errors:
        errors.append(cause)
    for e in errors:
        kinds = ' '.join(kind.__name__ for kind in type(e).__mro__)
        status = getattr(getattr(e, 'response', None), 'status_code', None)
        if disk_is_full(e):
            return disk_is_full(e)
        if status == 403 or 'GatedRepo' in kinds or 'is a gated dataset' in str(e):
            return (f'{label} is gated or private. Accept its terms on its page on the Hub, then log in with '
                    '`hf auth login` or set HF_TOKEN.')
        if status in (401, 404) or 'DatasetNotFound' in kinds:
            return (f'{label} is not on the Hub, and no file or folder here has that name. Check the '
                    'spelling; if it is private or gated, log in with `hf auth login`.')
        if status or re.search('Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete', kinds):
            if stage == 'download':
                return f'The download of {label} broke off ({said(e)}). Run the same command again.'
            return (f'The Hub cannot be reached for {label} ({said(e)}). Check the network, or give a file '
                    'or folder as --dataset.')
    reason = said(error.__cause__ or error)
    advice = 'Fix that and run the command again.'
    if 'scripts' in reason:
        advice = 'Try --revision=refs/convert/parquet, which may have its rows.'
    elif 'onfig' in reason:
        advice = 'Name one as ID:CONFIG.'
    return f'{label} cannot be read ({reason}). {advice}'


def download(name):
    """The folder with the parquet files of a set on the Hub; cached files are not fetched again."""
    from huggingface_hub import HfApi, constants, snapshot_download
    stage = 'open'
    try:
        for revision in ('main', 'refs/convert/parquet'):  # the second is the Hub's export of other formats
            info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
            sizes = [file.size or 0 for file in info.siblings if file.rfilename.endswith('.parquet')]
            if sizes:
                break
        else:
            fail(f'{name} has no parquet files on the Hub. Download and unpack it, and use --dataset=FOLDER.')
        print(f'Downloading {name} ({sum(sizes) / 1e9:.1f} GB) to {constants.HF_HUB_CACHE}. Set HF_HOME to '
              'use another folder.', flush=True)
        stage = 'download'
        return snapshot_download(name, repo_type='dataset', revision=revision, allow_patterns='*.parquet')
    except Exception as error:
        fail(hub_reason(name, error, stage))
