"""
Pictures in, memmapped arrays out: data/NAME/, which is what train_vit.py reads.

    python prepare_imagenet.py --dataset=synthetic    ten made-up classes, 32 x 32: no network, a first try
    python prepare_imagenet.py --dataset=cifar10      from the Hub; also cifar100, tiny-imagenet, imagenet-1k
    python prepare_imagenet.py --dataset=FOLDER       CLASS/** or SPLIT/CLASS/**, or tables of parquet
    python prepare_imagenet.py --dataset=ILSVRC/Data/CLS-LOC --val_labels=LOC_val_solution.csv
    python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000 --out_dir=data/cifar10-tune

It takes any picture that Pillow turns into 8-bit RGB, and 16-bit grey (upper 8 bits). Others (12 or 32 bits,
values of a camera that fill no 16 bits) are skipped, counted and listed. --val_labels=FILE sorts pictures of
val that lie in no class folders: the first two words of each of its lines are a name and a class
(val_annotations.txt of Tiny ImageNet, LOC_val_solution.csv of ImageNet).

If all pictures have one square size of at most 96 pixels, they become arrays: {train,val,test}_images.npy,
uint8 (N, H, W, 3). Otherwise they become JPEGs, one after another in {split}_jpeg.bin. Picture i is its bytes
offsets[i] to offsets[i + 1], with the offsets in {split}_offsets.npy, int64 (N + 1). Both layouts have
{split}_labels.npy, int64 (N), and meta.json: the classes (sorted folder names, the Hub's order, or the
numbers that occur), the mean and std of the training pixels in 0..1, and content, a BLAKE2 digest of the
files of train and val. Two data sets with the same content are the same.

val_*   the source's validation split; if it has only a test split (CIFAR), that one, as most code does
test_*  the source's test split, if it has labels and there is a validation split too

Of CLASS/** alone, val_* is a tenth of each class; --val_fraction=F holds out another share.
--val_from_train=N holds out N random training pictures, to choose hyperparameters on. The source's test split
is then test_*, for the final number. If it has no test labels (ImageNet), its validation split is test_*.

JPEGs have a short side of at most 256 pixels (bicubic) and quality 95. A picture takes 36 kB at a PSNR of 40
dB (higher is better; at quality 90: 25 kB, 38 dB). ImageNet takes 50 GB and 2 core hours. RGB JPEGs that are
small enough keep their bytes. A run that is stopped leaves nothing. The bytes do not depend on --num_proc.
"""

import hashlib
import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.console import fail
from support.folders import open_folder
from support.hub import download
from support.pictures import OtherSize, is_picture, open_picture, stored
from support.splits import RULE as _RULE  # no key
from support.splits import tell_splits
from support.synthetic import SHAPES, draw
from support.tables import is_table, open_tables
from support.textfiles import find_files, refuse_arrow
from support.writing import count_cores, in_order, put_in_place, run, said, workplace

dataset = 'imagenet-1k'  # 'synthetic', a folder, a short name as above, or OWNER/NAME on the Hub
val = ''                 # a folder of validation data: CLASS/**, or any with --val_labels, or parquet
val_labels = ''          # a file with a name and a class in each line, for pictures without folders
val_fraction = 0.0       # share of each class held out as val_*; of CLASS/** alone, 0 is 0.1
val_from_train = 0       # number of random training pictures held out as val_*
out_dir = ''             # where the arrays go; '' is data/NAME
seed = 0                 # chooses which pictures are held out
resize_short = 256       # JPEGs: a longer short side is reduced to this many pixels; 0: keep all sizes
quality = 95             # quality of the JPEGs that this script encodes
image_column = ''        # column of pictures in parquet; '' is image or img
label_column = ''        # column of labels in parquet; '' is label or fine_label
num_proc = 0             # processes that decode; 0: one per core
overwrite = False        # replace what out_dir holds; it stays until the new one is complete
if __name__ == '__main__':  # a spawned worker imports this file too
    __doc__ += f'\n{_RULE}\n'  # --help prints it
    config = configure(globals())

HUB = {  # columns and splits are recognized by the names in the comments
    'cifar10': 'uoft-cs/cifar10',            # img, label; train, test
    'cifar100': 'uoft-cs/cifar100',          # img, fine_label (and coarse_label); train, test
    'tiny-imagenet': 'zh-plus/tiny-imagenet',  # image, label; train, valid
    'imagenet-1k': 'ILSVRC/imagenet-1k',     # image, label; train, validation (test has no labels); gated
}
SYNTHETIC = {'train': 8000, 'val': 1000, 'test': 1000}  # pictures
SMALL = 96      # most pixels a side of a picture in arrays
BATCH = 64      # pictures in a job
NEEDS = 'Set --dataset to a folder with CLASS/**, SPLIT/CLASS/** or parquet files.'
HEADER = 128    # bytes before the data of an .npy file
FILES = [f'{split}_{part}' for split in ('train', 'val', 'test')
         for part in ('images.npy', 'jpeg.bin', 'offsets.npy', 'labels.npy')] + ['meta.json']


# ---- sources: the classes, the labels of each split, and items(split), which gives (name, path or bytes)


def open_synthetic():
    labels = {split: np.arange(n) % len(SHAPES) for split, n in SYNTHETIC.items()}
    return dict(classes=list(SHAPES), labels=labels,
                items=lambda split: ((f'{split} {i}', None) for i in range(len(labels[split]))))


def open_source(config):
    name = root = config['dataset']
    if name == 'synthetic':
        return open_synthetic()
    if not os.path.exists(root):
        if name not in HUB and not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
            fail(f'There is no folder {name}. Check the path, or use synthetic, {", ".join(HUB)} or '
                 'OWNER/NAME as --dataset.')
        root = download(HUB.get(name, name))
    if not os.path.isdir(root):
        fail(f'{root} is not a folder. {NEEDS}')
    files, skipped = find_files(root)
    held_out = []
    if config['val']:
        held_out = find_files(config['val'])[0]
        real = set(map(os.path.realpath, held_out))
        files = [path for path in files if os.path.realpath(path) not in real]
    tables, pictures = list(filter(is_table, files)), list(filter(is_picture, files))
    if tables and pictures:
        fail(f'{root} holds both pictures ({pictures[0]}) and tables ({tables[0]}). Move one kind out of it.')
    if not tables and not pictures:
        refuse_arrow(root, files)
        fail(f'{root} holds no pictures. {NEEDS}')
    held_out = list(filter(is_table if tables else is_picture, held_out))
    if config['val'] and not held_out:
        fail(f'--val={config["val"]} holds no {"parquet" if tables else "pictures"}, as {root} does. Give a '
             'folder of the same kind.')
    if tables and config['val_labels']:
        fail(f'{root} holds tables, which have labels of their own. Leave --val_labels out.')
    if tables:
        source = open_tables(root, tables, held_out, config)
    else:
        source = open_folder(root, pictures, held_out, config)
    left_out = {*files, *skipped}.difference(*source['files'].values())
    tell_splits(root, {'train': [], 'val': [], **source['files']}, sorted(left_out))
    return source


def assign(source, config):
    """The split that each picture of each source split goes to ('': none), by the rules of the docstring."""
    labels, n = source['labels'], config['val_from_train']
    total = len(labels['train'])
    share = config['val_fraction']
    if source.get('alone') and not n and not share and 'val' not in labels:
        share = 0.1
    if not 0 <= n < total:
        fail(f'val_from_train={n} is out of range for {total} training pictures. Use --val_from_train=N with '
             f'N from 0 to {total - 1}.')
    to = {split: split for split in labels}
    if n:
        to['val' if 'test' not in labels else 'test'] = 'test'
        if 'val' in labels and 'test' in labels:
            to['val'] = ''
            print('The validation split of the source is skipped, because --val_from_train takes its place.')
    elif 'val' not in labels and 'test' in labels:
        to['test'] = 'val'
        print('The source has no validation split, so its test split is stored as val_*. Use '
              '--val_from_train=N to store it as test_*.')
    elif 'val' not in labels and not share:
        fail(f'{config["dataset"]} has no validation split. State it with --val=FOLDER, or hold out '
             f'--val_from_train={max(1, total // 20)} pictures, or --val_fraction=0.1 of each class.')
    if share and (n or 'val' in to.values()):
        fail(f'val_fraction={share:g} only works without val_from_train, and only if the source has no split '
             'but train. Use --val_from_train=N alone.')
    goals = {split: np.full(len(labels[split]), to[split], 'U5') for split in labels}
    order = np.random.default_rng(config['seed']).permutation(total)
    if share:
        held_out = []
        by_class = order[labels['train'][order].argsort(kind='stable')]
        for group in np.split(by_class, np.bincount(labels['train']).cumsum()[:-1]):
            held_out.append(group[:min(max(1, round(share * len(group))), len(group) - 1)])
        order = np.concatenate(held_out)
        n = len(order)
        if not n:
            fail('No class has two pictures, so none can be held out. Add pictures, or use --val=FOLDER.')
        print(f'{n:,} random training pictures ({share:g} of each class) are held out as val_*. Use '
              '--val_fraction to change the share.')
    goals['train'][order[:n]] = 'val'
    return goals


# ---- workers


def run_job(job):
    """-> bytes of the pictures, their labels and lengths, sum of histograms, [name, reason] of the skipped"""
    settings, items, labels = job
    pieces, kept, histogram, skipped = [], [], np.zeros(768, np.int64), []
    for (name, content), label in zip(items, labels):
        try:
            piece, rgb = stored(draw(name) if content is None else content, *settings)
        except OtherSize:
            raise
        except Exception as error:  # Pillow raises nearly everything on broken files
            skipped.append([name, said(error)])
            continue
        pieces.append(piece)
        kept.append(label)
        histogram += rgb.histogram()
    return b''.join(pieces), kept, [len(piece) for piece in pieces], histogram, skipped


# ---- the files


def make_jobs(source, goals, settings):
    """(split to write to, what run_job takes) in the source's order, at most BATCH pictures a job"""
    for split, goal in goals.items():
        waiting = {}
        if not goal.any():
            continue
        for item, label, to in zip(source['items'](split), source['labels'][split], goal):
            if to:
                items, labels = waiting.setdefault(to, ([], []))
                items.append(item)
                labels.append(label)
                if len(items) == BATCH:
                    yield to, (settings, *waiting.pop(to))
        for to in waiting:
            yield to, (settings, *waiting[to])


def one_small_size(source):
    """The (W, H) of the first picture that opens if it is small enough for arrays, else None."""
    for name, content in source['items']('train'):
        try:
            W, H = (draw(name) if content is None else open_picture(content)[0]).size
            return (W, H) if W == H <= SMALL else None
        except Exception:
            continue


def write_files(tmp, source, goals, settings, workers):
    """All files but meta.json -> {split: number of pictures}, histogram of train, {split: [name, reason]}"""
    size = settings[0]
    every = np.concatenate(list(goals.values()))
    splits = [split for split in ('train', 'val', 'test') if split in every]
    labels, lengths, skipped = ({split: [] for split in splits} for _ in range(3))
    files = {split: open(tmp / f'{split}_{"images.npy" if size else "jpeg.bin"}', 'wb') for split in splits}
    histogram, total = np.zeros(768, np.int64), (every != '').sum()
    try:
        if size:
            for f in files.values():
                f.write(bytes(HEADER))
        with tqdm(total=total, unit=' images', mininterval=1) as bar:
            for (split, job), result in in_order(make_jobs(source, goals, settings), run_job, workers):
                blob, kept, sizes, counts, bad = result
                files[split].write(blob)
                labels[split] += kept
                lengths[split] += sizes
                skipped[split] += bad
                if split == 'train':
                    histogram += counts
                bar.update(len(job[1]))
        for split, f in files.items():
            if size:
                f.seek(0)
                shape = (len(labels[split]), size[1], size[0], 3)
                header = dict(descr='|u1', fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(f, header)
    finally:
        for f in files.values():
            f.close()
    for split in labels:
        np.save(tmp / f'{split}_labels.npy', np.array(labels[split], '<i8'))
        if not size:
            np.save(tmp / f'{split}_offsets.npy', np.cumsum([0, *lengths[split]], dtype='<i8'))
    return {split: len(labels[split]) for split in labels}, histogram, skipped


def content(folder):
    """A digest of the files of train and val (32 characters), whatever they were made from."""
    digest = hashlib.blake2b(digest_size=16)
    for file in FILES:
        if file.startswith(('train', 'val')) and (folder / file).exists():
            with open(folder / file, 'rb') as f:
                while block := f.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def main(config):
    for key, low, high in (('quality', 1, 100), ('resize_short', 0, 2**16), ('num_proc', 0, 1024),
                           ('seed', 0, 2**63), ('val_fraction', 0, 0.99)):
        if not low <= config[key] <= high:
            fail(f'{key}={config[key]} is out of range. Use --{key} with a value from {low} to {high}.')
    out = Path(config['out_dir'] or Path('data', Path(config['dataset']).resolve().name))
    with workplace(out, FILES, config['overwrite']) as tmp:
        source = open_source(config)
        goals = assign(source, config)
        size = one_small_size(source)
        workers = config['num_proc'] or count_cores()
        total = sum((goal != '').sum() for goal in goals.values())
        while True:
            settings = size, config['resize_short'], config['quality']
            first = run_job(((None, *settings[1:]), list(islice(source['items']('train'), 32)), [0] * 32))
            need = size[0] * size[1] * 3 if size else len(first[0]) / max(1, len(first[1]))
            free = shutil.disk_usage(out).free
            kind = 'arrays' if size else 'JPEGs'
            print(f'{out}: {total:,} images of {len(source["classes"])} classes as {kind}, about '
                  f'{total * need / 1e6:,.0f} MB ({free / 1e6:,.0f} MB are free)', flush=True)
            try:
                counts, histogram, skipped = write_files(tmp, source, goals, settings, workers)
                break
            except OtherSize:
                print('The pictures are not all of one size. Starting again with JPEGs.')
                size = None
                for path in tmp.iterdir():
                    path.unlink()
        for split, n in counts.items():
            if not n:
                name, why = skipped[split][0]
                fail(f'None of the {split} pictures can be used. Fix or replace them. The first is {name!r} '
                     f'({why}).')

        histogram, values = histogram.reshape(3, 256), np.arange(256) / 255
        share = histogram / histogram.sum(1, keepdims=True)
        mean = (share @ values).clip(0, 1)
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
        meta = dict(classes=source['classes'], mean=mean.tolist(), std=std.tolist())
        meta['layout'] = 'arrays' if size else 'jpeg'
        meta |= {f'{split}_images': n for split, n in counts.items()}
        held_out = int((goals['train'] == 'val').sum())
        meta |= dict(source=config['dataset'], val_from_train=held_out, seed=config['seed'])
        if not size:
            meta |= dict(resize_short=config['resize_short'], quality=config['quality'])
        skipped = sum(skipped.values(), [])
        meta |= dict(content=content(tmp), skipped=skipped)
        (tmp / 'meta.json').write_text(json.dumps(meta, indent=2))
        put_in_place(tmp, out, FILES)
    counted = ', '.join(f'{n:,} {split}' for split, n in counts.items())
    print(f'{out} is finished: {counted} images')
    if skipped:
        were = 's were' if len(skipped) > 1 else ' was'
        print(f'{len(skipped):,} picture{were} skipped (meta.json lists all of them):')
        for name, why in skipped[:10]:
            print(f'  {name!r}: {why}')


if __name__ == '__main__':
    run(main, config)
