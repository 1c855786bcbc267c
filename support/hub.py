"""Tables that `datasets` loads from the Hub or that we store, and one sentence where that does not work."""

import re
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from support.console import fail
from support.splits import WORDS
from support.textfiles import check_column
from support.writing import said

# in this order: the Hub's own export (cut for some sets), all of it in the owner's pull request, a full copy
OPENWEBTEXT = [
    dict(path='Skylion007/openwebtext', revision='refs/convert/parquet'),
    dict(path='parquet', data_files='hf://datasets/Skylion007/openwebtext@refs%2Fpr%2F18/data/*.parquet'),
    dict(path='dylanebert/openwebtext'),
]
OPENWEBTEXT_ROWS = 8_013_769

# what the kinds of an error, its HTTP status or its message say: what that means, and what to do
REASONS = {
    'GatedRepo|is a gated dataset|HTTP 403':
        'is gated or private. Accept its terms on its page on the Hub, then log in with `hf auth login` or '
        'set HF_TOKEN.',
    'DatasetNotFound|HTTP 40[14]':
        'is not on the Hub, and no file or folder here has that name. Check the spelling; if it is private '
        'or gated, log in with `hf auth login`.',
    '^[^:]*(Connect|Timeout|Protocol|Network|Offline|ReadError|Incomplete|HTTP)':  # not of the message
        'cannot be reached on the Hub ({}). Check the network and run the same command again, or give a file '
        'or folder as --dataset.',
    'Config name|BuilderConfig': 'cannot be read ({}). Name one as ID:CONFIG.',
    'Dataset scripts': 'cannot be read ({}). Try --revision=refs/convert/parquet, which may have its rows.',
}


def load_openwebtext(column, stream):
    """The tables of the first copy that has all rows, and where it lies"""
    for way in OPENWEBTEXT:
        label = way.get('data_files') or '@'.join(way.values())
        try:
            tables = load_tables(way, label, column, stream)
        except SystemExit as reason:
            if 'cannot be reached' in str(reason):
                raise
            print(f'{reason} Trying the next copy of OpenWebText.')
            continue
        if stream or len(tables['train']) == OPENWEBTEXT_ROWS:
            return tables, label
        print(f'{label} has {len(tables["train"]):,} rows, OpenWebText has {OPENWEBTEXT_ROWS:,}. Trying the '
              'next copy.')
    fail('No copy of OpenWebText is complete, for the reasons above. Name the one that you want, as in '
         '--dataset=dylanebert/openwebtext.')


def load_tables(way, label, column, stream):
    """What load_dataset(**way) loads, with the column of text alone: {'train': table, maybe 'val': table}"""
    from datasets import Features, Value, concatenate_datasets, load_dataset_builder
    from datasets import config as hf
    hf.STREAMING_READ_MAX_RETRIES = hf.STREAMING_OPEN_MAX_RETRIES = 2  # each is half a minute of retries
    parts = {}
    try:
        builder = load_dataset_builder(**way)
        check_features(label, builder.info.features, column)
        if stream:
            tables = builder.as_streaming_dataset()
        elif '/partial-' in str(builder.config.data_files):
            fail(f'{label} is an export that the Hub cut short. --max_docs=N takes the first N of its rows.')
        else:
            print(f'{label}: the Arrow copy is in {hf.HF_DATASETS_CACHE} (HF_HOME moves it)', flush=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
        for split, table in tables.items():
            if WORDS.get(split) not in ('train', 'val'):
                print(f'{label}: left out {split}', flush=True)
                continue
            check_features(label, table.features, column)
            table = table.select_columns([column])
            if 'binary' in str(table.features):  # as some writers of parquet leave a text
                table = table.cast(Features({column: Value('large_string')}))
            parts.setdefault(WORDS[split], []).append(table)
    except Exception as error:
        fail(hub_reason(label, error))
    if 'train' not in parts:
        fail(f'{label} has no split train but {", ".join(tables)}. Download it and use --dataset=FOLDER.')
    return {split: concatenate_datasets(parts[split]) for split in parts}


def check_features(label, features, column):
    if features:  # the Hub does not always state them
        check_column(label, features.arrow_schema, column)


def store_tables(tmp, splits):
    """{split: table} of {split: texts}. The tables lie in tmp."""
    import datasets
    import pyarrow as pa
    text = pa.large_string()  # `datasets` itself writes no text of more than 2 GB
    tables = {}
    for split in splits:
        path = str(tmp / f'{split}.arrow')
        texts = iter(tqdm(splits[split], f'reading {split}', unit=' documents', mininterval=1))
        with pa.OSFile(path, 'wb') as f, pa.ipc.new_stream(f, pa.schema({'text': text})) as writer:
            while batch := list(islice(texts, 64)):
                writer.write(pa.table({'text': pa.array(batch, text)}))
        tables[split] = datasets.Dataset.from_file(path)
        if not len(tables[split]):
            fail(f'There are no documents for {split}: its files are empty. Give files that hold some.')
    return tables


def hub_reason(label, error):
    """What went wrong and how to fix it; the first telling error in the chain decides."""
    cause, seen = error, []
    while cause and cause not in seen:
        status = getattr(getattr(cause, 'response', None), 'status_code', None)
        kinds = ' '.join(kind.__name__ for kind in type(cause).__mro__)
        if status:
            kinds += f' HTTP {status}'
        for pattern, sentence in REASONS.items():
            if re.search(pattern, f'{kinds}: {cause}'):
                return f'{label} {sentence.format(said(cause))}'
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return (f'{label} cannot be read ({said(error.__cause__ or error)}). Fix that and run the same command '
            'again. --out_dir and HF_HOME choose another disk.')


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
