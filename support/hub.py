"""Tables that `datasets` loads, from the Hub or from here, and one sentence where it does not."""

import glob
import re
from itertools import islice

from tqdm import tqdm

from support.console import fail
from support.splits import WORDS, examples
from support.writing import said

# in this order: the Hub's own export (cut for some sets), all of it in the owner's pull request, a full copy
OPENWEBTEXT = [
    dict(path='Skylion007/openwebtext', revision='refs/convert/parquet'),
    dict(path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    dict(path='dylanebert/openwebtext'),
]
OPENWEBTEXT_ROWS = 8_013_769


def load_openwebtext(column, stream):
    """The tables of the first copy that has all rows, or of the one with most; and where it lies"""
    best, most = None, 0
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
        rows = len(tables['train'])
        if rows == OPENWEBTEXT_ROWS:
            print(f'{label} is complete. nanoGPT has 9,035,582,198 and 4,434,897 tokens.')
            return tables, label
        print(f'{label} has {rows:,} rows, OpenWebText has {OPENWEBTEXT_ROWS:,}. Trying the next copy.')
        if rows > most:
            best, most = (tables, label), rows
    if not best:
        fail('No copy of OpenWebText could be loaded, for the reasons above. Choose another --dataset.')
    return best


def load_parquet(splits, label, column):
    import datasets
    if not splits['train']:
        fail(f'{label} holds no text to train on: its files of parquet have no rows.')
    files = {split: list(map(glob.escape, paths)) for split, paths in splits.items() if paths}
    text = datasets.Features({column: datasets.Value('large_string')})
    way = dict(path='parquet', data_files=files, columns=[column], features=text)
    return load_tables(way, label, column)


def store_tables(tmp, read, splits, *given):
    """Tables of the texts that read(pieces, ...) finds in the pieces of each split. They lie in tmp."""
    import datasets
    import pyarrow as pa
    text = pa.large_string()  # `datasets` itself writes no text of more than 2 GB
    tables = {}
    for split, pieces in splits.items():
        if pieces:
            path = str(tmp / f'{split}.arrow')
            texts = iter(tqdm(read(pieces, *given), f'reading {split}', unit=' documents', mininterval=1))
            with pa.OSFile(path, 'wb') as f, pa.ipc.new_stream(f, pa.schema({'text': text})) as writer:
                for batch in iter(lambda: list(islice(texts, 64)), []):
                    writer.write(pa.table({'text': pa.array(batch, text)}))
            tables[split] = datasets.Dataset.from_file(path)
    return tables


def load_tables(way, label, column, stream=False):
    """What load_dataset(**way) loads, with the column of text alone: {'train': table, maybe 'val': table}"""
    from datasets import concatenate_datasets, load_dataset_builder
    from datasets import config as hf
    hf.STREAMING_READ_MAX_RETRIES = hf.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute of retries
    stage = 'open'
    try:
        builder = load_dataset_builder(**way)
        stage = 'download'
        if stream:
            tables = builder.as_streaming_dataset()
        elif '/partial-' in str(builder.config.data_files):
            fail(f'{label} is an export that the Hub cut short. --max_docs=N takes the first N of its rows.')
        else:
            check_column(label, builder.info.features, column)
            print(f'{label}: the Arrow copy is in {hf.HF_DATASETS_CACHE} (HF_HOME moves it)', flush=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
    except Exception as error:
        fail(hub_reason(label, error, stage))
    if 'train' not in tables:
        fail(f'{label} has no split train but {", ".join(tables)}. Download it and use --dataset=FOLDER.')
    check_column(label, tables['train'].features, column)
    parts = {}
    for split in tables:
        if WORDS.get(split) in ('train', 'val'):
            parts.setdefault(WORDS[split], []).append(tables[split].select_columns([column]))
        else:
            print(f'{label}: left out {split}', flush=True)
    return {split: concatenate_datasets(parts[split]) for split in parts}


def check_column(label, columns, column):
    """columns: {name: its feature}, or None where the Hub does not say"""
    if columns and column not in columns:
        fail(f'{label} has no column {column!r}. Set --text_column to one of {examples(columns, 20)}.')
    kind = getattr((columns or {}).get(column), 'dtype', 'string')
    if kind not in ('string', 'large_string', 'binary', 'large_binary', 'null'):
        fail(f'The column {column!r} of {label} is not text but {kind}. Set --text_column to one of '
             f'{examples(columns, 20)}.')


def hub_reason(label, error, stage):
    """What went wrong and how to fix it; the first telling error in the chain decides."""
    cause, seen = error, []
    while cause and cause not in seen:
        kinds = ' '.join(kind.__name__ for kind in type(cause).__mro__)
        status = getattr(getattr(cause, 'response', None), 'status_code', None)
        if status == 403 or 'GatedRepo' in kinds or 'is a gated dataset' in str(cause):
            return (f'{label} is gated or private. Accept its terms on its page on the Hub, then log in with '
                    '`hf auth login` or set HF_TOKEN.')
        if status in (401, 404) or 'DatasetNotFound' in kinds:
            return (f'{label} is not on the Hub, and no file or folder here has that name. Check the '
                    'spelling; if it is private or gated, log in with `hf auth login`.')
        if status or re.search('Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete', kinds):
            if stage == 'download':
                return f'The download of {label} broke off ({said(cause)}). Run the same command again.'
            return (f'The Hub cannot be reached for {label} ({said(cause)}). Check the network, or give a '
                    'file or folder as --dataset.')
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    reason = said(error.__cause__ or error)
    advice = 'Fix that and run the same command again. --out_dir and HF_HOME choose another disk.'
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
