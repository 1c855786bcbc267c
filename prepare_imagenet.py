"""
Pictures in, memmapped arrays out: data/NAME/, which is what train_vit.py reads.

    python prepare_imagenet.py --dataset=synthetic    ten made-up classes, 32 x 32: no network, a first try
    python prepare_imagenet.py --dataset=cifar10      from the Hub; also cifar100, tiny-imagenet, imagenet-1k
    python prepare_imagenet.py --dataset=FOLDER       CLASS/** or SPLIT/CLASS/**, or tables of parquet
    python prepare_imagenet.py --dataset=ILSVRC/Data/CLS-LOC --val_labels=LOC_val_solution.csv

It takes any picture that Pillow turns into 8-bit RGB, and 16-bit grey (upper 8 bits). Others (32 bits, grey
of a camera that does not fill 16 bits) are skipped, counted and listed. --val_labels=FILE sorts pictures of
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

If the source has neither, val_* is a tenth of each class; --val_fraction=F holds out another share.
--val_from_train=N holds out N random training pictures, to choose hyperparameters on. The source's test split
is then test_*, for the final number. If it has no test labels (ImageNet), its validation split is test_*.

JPEGs have a short side of at most 256 pixels (bicubic) and quality 95; ImageNet takes 50 GB and 2 core hours.
RGB JPEGs that are small enough keep their bytes. A run that is stopped leaves nothing.
"""

import hashlib
import json
import os
import re
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configurator import configure
from support.console import check_range, fail, reason
from support.folders import open_folder
from support.hub import download
from support.pictures import is_picture, open_picture, stored
from support.splits import RULE as _RULE  # no key
from support.splits import examples, prepared_name, tell_splits
from support.synthetic import SHAPES, draw
from support.tables import is_table, open_tables
from support.textfiles import find_files, refuse_arrow
from support.writing import count_cores, in_order, put_in_place, run, workplace

dataset = 'imagenet-1k'  # 'synthetic', a folder, a short name as above, or OWNER/NAME on the Hub
val = ''                 # a folder of validation data: CLASS/**, or any with --val_labels, or parquet
val_labels = ''          # a file with a name and a class in each line, for pictures without folders
val_fraction = 0.0       # share of each class held out as val_*; 0 is 0.1 if there is no val and no test
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
HEADER = 128    # bytes before the data of an .npy file
FILES = [f'{split}_{part}' for split in ('train', 'val', 'test')
         for part in ('images.npy', 'jpeg.bin', 'offsets.npy', 'labels.npy')] + ['meta.json']


# ---- sources: the classes, the labels of each split, and items(split), which gives (name, path or bytes)


def open_synthetic():
    labels = {split: np.arange(n) % len(SHAPES) for split, n in SYNTHETIC.items()}
    return dict(classes=list(SHAPES), labels=labels, side=32,
                items=lambda split: ((f'{split} {i}', None) for i in range(len(labels[split]))))


def open_source(config):
    root, val = config['dataset'], config['val']
    if root == 'synthetic':
        if val or config['val_labels']:
            fail('--val and --val_labels do not work with --dataset=synthetic. Leave them out.')
        return open_synthetic()
    if not os.path.exists(root):
        if root not in HUB and not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', root):
            fail(f'There is no file or folder {root}. Check the path, or use synthetic, {", ".join(HUB)} or '
                 'OWNER/NAME as --dataset.')
        root = download(HUB.get(root, root))
    files, skipped = find_files(root)
    held_out = []
    if val:
        held_out = find_files(val)[0]
        real = set(map(os.path.realpath, held_out))
        files = [path for path in files if os.path.realpath(path) not in real]
    tables, pictures = list(filter(is_table, files)), list(filter(is_picture, files))
    if tables and pictures:
        fail(f'{root} holds both pictures ({pictures[0]}) and tables ({tables[0]}). Move one kind out of it.')
    if not tables and not pictures:
        refuse_arrow(root, files)
        fail(f'{root} holds no training pictures. Set --dataset to a folder with CLASS/**, SPLIT/CLASS/** or '
             'parquet files.')
    held_out = list(filter(is_table if tables else is_picture, held_out))
    if val and not held_out:
        fail(f'--val={val} holds no {"parquet" if tables else "pictures"}, as {root} does. Give a folder of '
             'the same kind.')
    if tables and config['val_labels']:
        fail('--val_labels only works with folders of pictures. Leave it out.')
    if tables:
        classes, names, files_of, items = open_tables(root, tables, held_out, config)
    else:
        classes, names, files_of, items = open_folder(root, pictures, held_out, config)
    labels = number_labels(root, classes, names)
    used = {'train': [], 'val': []} | {split: files_of[split] for split in labels}
    tell_splits(root, used, sorted({*files, *skipped}.difference(*used.values())))
    return dict(classes=list(map(str, classes)), labels=labels, items=items)


def number_labels(root, classes, names):
    """{split: the number of the class of each of its pictures}"""
    number = {name: i for i, name in enumerate(classes)}
    labels = {}
    for split in names:
        strange = [name for name in names[split] if name not in number]
        if strange and split == 'test':
            print(f'The test split is left out: {strange[0]!r} is no class of train.')
        elif strange:
            fail(f'The {split} split of {root} has the label {strange[0]}, which is not one of the classes '
                 f'({examples(classes)}). Correct it, or choose another column with --label_column.')
        elif names[split]:
            labels[split] = np.array([number[name] for name in names[split]])
    return labels


def assign(source, config):
    """{split of the source: the split that each of its pictures goes to ('': none)}, as the docstring says"""
    labels, n, share = source['labels'], config['val_from_train'], config['val_fraction']
    total = len(labels['train'])
    if not 0 <= n < total:
        fail(f'val_from_train={n} is out of range for {total} training pictures. Use --val_from_train=N with '
             f'N from 0 to {total - 1}.')
    if share and (n or len(labels) > 1):
        fail(f'val_fraction={share:g} only works without val_from_train, and only if the source has no split '
             'but train. Use --val_from_train=N alone.')
    to = {split: split for split in labels}
    if n and len(labels) == 3:
        to['val'] = ''
        print('The validation split of the source is skipped, because --val_from_train takes its place.')
    elif n and 'val' in labels:
        to['val'] = 'test'
    elif not n and 'val' not in labels and 'test' in labels:
        to['test'] = 'val'
        print('The source has no validation split, so its test split is stored as val_*. Use '
              '--val_from_train=N to store it as test_*.')
    goals = {split: np.full(len(labels[split]), to[split], 'U5') for split in labels}
    order = np.random.default_rng(config['seed']).permutation(total)
    held_out = list(order[:n])
    if not n and len(labels) == 1:  # the first of each class, at least one and never all
        share = share or 0.1
        for label in range(len(source['classes'])):
            group = order[labels['train'][order] == label]
            held_out.extend(group[:min(max(1, round(share * len(group))), len(group) - 1)])
        if not held_out:
            fail('No class has two pictures, so none can be held out. Add pictures, or use --val=FOLDER.')
        print(f'{len(held_out):,} random training pictures ({share:g} of each class) are held out as val_*. '
              'Use --val_fraction to change the share.')
    goals['train'][held_out] = 'val'
    return goals


# ---- pixels and files


def make_jobs(source, goals):
    """(number of pictures, [(name, path or bytes, label, split to write to)]) for at most BATCH pictures"""
    for split, goal in goals.items():
        if goal.any():
            rows = zip(source['items'](split), source['labels'][split], goal)
            pictures = ((*item, label, to) for item, label, to in rows if to)
            while job := list(islice(pictures, BATCH)):
                yield len(job), job


def run_job(settings, pictures):
    """-> [(split, label, bytes)], histogram of train, [(split, name, reason)] of the skipped"""
    kept, histogram, skipped = [], np.zeros(768, np.int64), []
    for name, content, label, split in pictures:
        try:
            if content is None:
                piece, rgb = draw(name)
            else:
                piece, rgb = stored(content, *settings)
        except Exception as error:  # Pillow raises nearly everything on broken files
            skipped.append((split, name, reason(error)))
            continue
        kept.append((split, label, piece))
        if split == 'train':
            histogram += rgb.histogram()
    return kept, histogram, skipped


def one_small_side(source, goals):
    """The side of all pictures in pixels if they are squares of one size of at most SMALL, else 0"""
    sides = set()
    for _, pictures in make_jobs(source, goals):
        for _, content, *_ in pictures:
            try:
                W, H = open_picture(content)[0].size  # as the header says
            except Exception:  # run_job() tells why
                continue
            sides.add(W)
            if W != H or W > SMALL or len(sides) > 1:
                return 0
    return max(sides, default=0)


def write_files(tmp, source, goals, side, work, workers):
    """All files but meta.json -> {split: number of pictures}, histogram of train, {split: [name, reason]}"""
    goal = np.concatenate(list(goals.values()))
    splits = [split for split in ('train', 'val', 'test') if split in goal]
    labels, lengths, skipped = ({split: [] for split in splits} for _ in range(3))
    files, histogram = {}, np.zeros(768, np.int64)
    with ExitStack() as stack, tqdm(total=(goal != '').sum(), unit=' images', mininterval=1) as bar:
        for split in splits:
            name = f'{split}_images.npy' if side else f'{split}_jpeg.bin'
            files[split] = stack.enter_context(open(tmp / name, 'wb'))
            if side:
                files[split].write(bytes(HEADER))
        for (n,), (kept, counts, bad) in in_order(make_jobs(source, goals), work, workers):
            for split, label, piece in kept:
                files[split].write(piece)
                labels[split].append(label)
                lengths[split].append(len(piece))
            for split, name, why in bad:
                skipped[split].append([name, why])
            histogram += counts
            bar.update(n)
        for split in splits:
            np.save(tmp / f'{split}_labels.npy', np.array(labels[split], '<i8'))
            if side:
                files[split].seek(0)
                header = dict(descr='|u1', fortran_order=False, shape=(len(labels[split]), side, side, 3))
                np.lib.format.write_array_header_1_0(files[split], header)
            else:
                np.save(tmp / f'{split}_offsets.npy', np.cumsum([0, *lengths[split]], dtype='<i8'))
    return {split: len(labels[split]) for split in splits}, histogram, skipped


def content(folder):
    """A digest of the files of train and val (32 characters), whatever they were made from."""
    digest = hashlib.blake2b(digest_size=16)
    for file in FILES:
        if file.startswith(('train', 'val')) and (folder / file).exists():
            with open(folder / file, 'rb') as f:
                hashlib.file_digest(f, lambda: digest)
    return digest.hexdigest()


def main(config):
    for key, low, high in (('quality', 1, 100), ('resize_short', 0, 2**16), ('num_proc', 0, 1024),
                           ('seed', 0, 2**63), ('val_fraction', 0, 0.99)):
        check_range(config, low, high, key)
    out = Path(config['out_dir'] or 'data/' + prepared_name(config['dataset']))
    with workplace(out, FILES, config['overwrite']) as tmp:
        source = open_source(config)
        goals = assign(source, config)
        side = source.get('side') or one_small_side(source, goals)
        work = partial(run_job, (bool(side), config['resize_short'], config['quality']))
        workers = config['num_proc'] or count_cores()
        counts, histogram, skipped = write_files(tmp, source, goals, side, work, workers)
        for split, n in counts.items():
            if not n:
                name, why = skipped[split][0]
                fail(f'None of the {split} pictures can be used. Fix or replace them. The first is {name!r} '
                     f'({why}).')

        histogram, values = histogram.reshape(3, 256), np.arange(256) / 255
        share = histogram / histogram.sum(1, keepdims=True)
        mean = (share @ values).clip(0, 1)
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
        meta = dict(classes=source['classes'], mean=mean.tolist(), std=std.tolist(),
                    layout='arrays' if side else 'jpeg', source=config['dataset'], seed=config['seed'],
                    val_from_train=int((goals['train'] == 'val').sum()), content=content(tmp),
                    skipped=sum(skipped.values(), []))
        meta |= {f'{split}_images': n for split, n in counts.items()}
        if not side:
            meta |= dict(resize_short=config['resize_short'], quality=config['quality'])
        (tmp / 'meta.json').write_text(json.dumps(meta, indent=2))
        put_in_place(tmp, out, FILES)
    counted = ', '.join(f'{n:,} {split}' for split, n in counts.items())
    print(f'{out} is finished: {counted} images of {len(meta["classes"]):,} classes, layout {meta["layout"]}')
    if meta['skipped']:
        print(f'Skipped pictures: {len(meta["skipped"]):,} (meta.json lists all of them)')
        for name, why in meta['skipped'][:10]:
            print(f'  {name!r}: {why}')


if __name__ == '__main__':
    run(main, config)
