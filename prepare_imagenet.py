"""
Pictures in, memmapped arrays out: data/NAME/, which is what train_vit.py reads.

    python prepare_imagenet.py --dataset=synthetic    ten made-up classes, 32 x 32: no network, a first try
    python prepare_imagenet.py --dataset=cifar10      from the Hub; also cifar100, tiny-imagenet, imagenet-1k
    python prepare_imagenet.py --dataset=PATH         train/CLASS/* and val/CLASS/*, or a folder of parquet
    python prepare_imagenet.py --dataset=PATH         CLASS/* alone: val_* is a tenth of each class
    python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000 --out_dir=data/cifar10-tune

If all pictures have one size of at most 96 pixels a side, they become arrays: {train,val,test}_images.npy,
uint8 (N, H, W, 3). Otherwise they become JPEGs, one after another in {split}_jpeg.bin. Picture i is its bytes
offsets[i] to offsets[i + 1], with the offsets in {split}_offsets.npy, int64 (N + 1). Both layouts have
{split}_labels.npy, int64 (N), and meta.json: the classes (sorted folder names, the Hub's order, or the
numbers that occur), the mean and std of the training pixels in 0..1, and content, a BLAKE2 digest of the
files of train and val. Two data sets with the same content are the same.

val_*   the source's validation split; if it has only a test split (CIFAR), that one, as most code does
test_*  the source's test split, if it has labels and there is a validation split too

--val_from_train=N holds out N random training pictures as val_*, to choose hyperparameters on. The source's
test split is then test_*, for the final number. If it has no test labels (ImageNet), its validation split is
test_*. If the source has only training pictures, --val_fraction=F holds out the share F of each class.

JPEGs have a short side of at most 256 pixels (bicubic) and quality 95. A picture takes 36 kB at a PSNR of 40
dB (higher is better; at quality 90: 25 kB, 38 dB). ImageNet takes 50 GB and 2 core hours. RGB JPEGs that are
small enough keep their bytes. support/pictures.py says how other kinds of pictures are converted. Pictures
that cannot be used are skipped, counted and listed. You can stop the program at any moment; the same command
continues from there. The data set is finished when meta.json exists. Its bytes do not depend on --num_proc.
"""

import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from unicodedata import normalize

import numpy as np
from PIL import Image
from tqdm import tqdm

from configurator import configure
from support.pictures import (
    ENDINGS,
    OtherSize,
    find_pictures,
    is_hidden,
    open_picture,
    reason,
    stored,
    subfolders,
)
from support.splits import RULE as _RULE  # no key
from support.splits import split_names, tell_splits

dataset = 'imagenet-1k'  # 'synthetic', a folder, a short name as above, or OWNER/NAME on the Hub
out_dir = ''             # where the arrays go; '' is data/NAME
val_from_train = 0       # random training pictures held out as val_*
val_fraction = 0.0       # share of each class held out if only train exists; CLASS/* alone: 0 is 0.1
seed = 0                 # chooses which pictures are held out
resize_short = 256       # JPEGs: most pixels of the short side; 0 keeps all sizes
quality = 95             # quality of the JPEGs that this script encodes
image_column = ''        # column of pictures in parquet; '' is image or img
label_column = ''        # column of labels in parquet; '' is label or fine_label
num_proc = 0             # processes that decode; 0 is one on every core
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
         for part in ('images.npy', 'jpeg.bin', 'offsets.npy', 'labels.npy')]


# ---- sources: the classes, the labels of each split, and items(split), which gives (name, path or bytes)


def open_synthetic():
    labels = {split: np.arange(n) % len(SHAPES) for split, n in SYNTHETIC.items()}
    return dict(classes=list(SHAPES), labels=labels, mark=['synthetic'],
                items=lambda split: ((f'{split} {i}', None) for i in range(len(labels[split]))))


def said_by(names):
    """The split that each top folder's name stands for, or '', as if train and val were beside it."""
    said = split_names([f'{name}/x' for name in (*names, 'train', 'val')], files=None)
    return {name: said[f'{name}/x'] for name in names}


def class_folders(top):
    """
    {split: {class: its folders}} for SPLIT/CLASS, or for CLASS alone (all are training pictures), else None.
    If folders with classes are named val or test and none train, the others with classes are train.
    """
    inner = {name: subfolders(top / name) for name in subfolders(top)}
    said = said_by(inner)
    splits = {name: said[name] for name in inner if said[name] and inner[name]}
    if splits and 'train' not in splits.values():
        splits |= {name: 'train' for name in inner if not said[name] and inner[name]}
    if 'train' in splits.values():
        for name in inner:
            if said[name] == 'val' and not inner[name] and find_pictures(top / name)[0]:
                sys.exit(f'The pictures in {top / name} are not in class folders. Move each to '
                         f'{top / name}/CLASS/.')
        folders = {split: {} for split in ('train', 'val', 'test') if split in splits.values()}
        for name, split in splits.items():
            for of_class in inner[name]:
                # macOS may store an accented letter as two characters
                folders[split].setdefault(normalize('NFC', of_class), []).append(top / name / of_class)
        return folders
    if splits or {'train'} < set(said.values()) - {''}:  # train/ and val/ with pictures are not two classes
        return None
    for name in inner:
        if {'train'} < set(said_by(inner[name]).values()) - {''}:
            sys.exit(f'{top / name} looks like a data set of its own. Use --dataset={top / name}.')
    found = {name: find_pictures(top / name) for name in inner}
    if any(is_table(path) for path in chain(top.iterdir(), *(others for _, others in found.values()))):
        return None
    classes = {name: [top / name] for name in inner if found[name][0]}
    if len(classes) == 1:
        sys.exit(f'{top} has pictures in one folder only ({", ".join(classes)}). Sort them into at '
                 'least two class folders.')
    return {'train': classes} if classes else None


def open_folder(root):
    """The ImageFolder layout: (SPLIT/)CLASS/**/picture; None if it is another one."""
    around = [root]  # skip a single folder around everything, as archives have it
    while len(names := subfolders(around[-1])) == 1 and not said_by(names)[names[0]] \
            and subfolders(around[-1] / names[0]):
        around.append(around[-1] / names[0])
    folders = class_folders(top := around[-1])
    if not folders:
        return None
    classes = sorted(folders['train'])
    number = {name: i for i, name in enumerate(classes)}
    if strange := sorted(set(folders.get('test', ())) - set(classes)):
        print(f'The test split of {root} has the folder {strange[0]}, which is not a class of train. It is '
              'skipped.')
        del folders['test']
    ours = [folder for by_class in folders.values() for of_class in by_class.values() for folder in of_class]
    above = {*around, *(folder.parent for folder in ours)}
    others = [path for folder in sorted(above) for path in sorted(folder.iterdir())
              if path not in {*above, *ours}]
    seen = {os.path.realpath(folder) for folder in (*above, *ours)}
    paths, labels = {}, {}
    for split, by_class in folders.items():
        paths[split], found = [], []
        for name, folder in ((name, folder) for name in sorted(by_class) for folder in by_class[name]):
            if name not in number:
                sys.exit(f'The class {name} is in {folder.parent} but not in train, whose folders are the '
                         f'classes. Rename or remove {folder}.')
            pictures, rest = find_pictures(folder, seen)
            if not pictures:
                sys.exit(f'The class folder {folder} holds no pictures ({" ".join(sorted(ENDINGS))}). Add '
                         'some or remove the folder.')
            others += rest
            paths[split] += pictures
            found += [number[name]] * len(pictures)
        labels[split] = np.array(found)
    print(tell_splits({path: split for split in paths for path in paths[split]},
                      [os.path.relpath(path, root) for path in others]))
    return dict(classes=classes, labels=labels, mark=chain(*paths.values()), alone=ours[0].parent == top,
                items=lambda split: ((path, path) for path in paths[split]))


def is_table(path):
    return os.path.splitext(path)[1].lower() == '.parquet' and not is_hidden(os.path.basename(path))


def open_parquet(root, config):
    """Tables with a column of pictures and one of labels; None if there are none."""
    pictures, others = find_pictures(root)
    paths = sorted(Path(path) for path in others if is_table(path))
    if not paths:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq
    names = {path: path.relative_to(root).as_posix() for path in paths}
    said = split_names(list(names.values()), files='any')
    files = {split: [path for path in paths if said[names[path]] == split]
             for split in ('train', 'val', 'test')}
    for path in paths:
        if 'partial' in re.split('[^a-z]+', names[path].lower()):
            sys.exit(f'{path} is part of an export that the Hub cut short. Download the whole data set.')
    if not files['train']:
        sys.exit(f'{root} has no training files. Name them like train-00000-of-00001.parquet.')
    if len(folders := {str(path.parent) for path in files['train']}) > 1:
        sys.exit(f'The train files of {root} are in several folders ({", ".join(sorted(folders))}). Choose '
                 'one of them with --dataset=FOLDER.')
    usual = {'image_column': ['image', 'img'], 'label_column': ['label', 'fine_label']}
    classes, columns, labels = None, {}, {}
    for split, path in [(split, path) for split in files for path in files[split]]:
        try:
            with open(path, 'rb') as f:  # pyarrow would read [ ] * ? in a path as a pattern
                schema = pq.read_schema(f)
                for key, wanted in usual.items():
                    wanted = [config[key]] if config[key] else wanted
                    columns[path, key] = next((column for column in wanted if column in schema.names), '')
                    if not columns[path, key] and split != 'test':
                        sys.exit(f'{path} has no column {" or ".join(wanted)}. Set --{key} to one of '
                                 f'{", ".join(schema.names)}.')
                column = columns[path, 'image_column'] and columns[path, 'label_column']
                labels.setdefault(split, []).extend(
                    pq.read_table(f, columns=[column]).column(0).to_pylist() if column else [None])
            info = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
        except (pa.ArrowException, ValueError, OSError) as error:
            sys.exit(f'{path} cannot be read as parquet ({reason(error)}). Download it again or remove it.')
        classes = classes or info.get('info', {}).get('features', {}).get(column, {}).get('names')
    labels = {split: found for split, found in labels.items() if found}
    if not labels.get('train'):
        sys.exit(f'{root} has no rows in train. Download it again.')
    if {type(value) for value in labels['train']} not in ({int}, {bool}, {str}):
        sys.exit(f'The column {columns[files["train"][0], "label_column"]} of {root} holds no labels (whole '
                 'numbers or names). Choose another column with --label_column.')
    if isinstance(labels['train'][0], str):
        values = classes = sorted(set(labels['train']))
    elif classes:
        values = range(len(classes))
    else:  # the numbers that occur in train, and those between them that occur in val and test
        low, high = max(0, min(labels['train'])), max(labels['train'])
        values = sorted({value for value in chain(*labels.values())
                         if isinstance(value, int) and low <= value <= high})
        classes = [str(value) for value in values]
        if values != list(range(len(values))):
            print(f'The {len(values):,} labels that occur ({low} to {high}) are numbered as the classes 0 to '
                  f'{len(values) - 1}. The name of each class is its label.')
    number = {value: i for i, value in enumerate(values)}
    for split, found in list(labels.items()):
        known = [isinstance(value, (int, str)) and value in number for value in found]
        strange = next((value for value, fine in zip(found, known) if not fine), None)
        if all(known):
            labels[split] = np.array([number[value] for value in found])
        elif split == 'test':
            what = f'the label {strange}, which train does not have' if any(known) else 'no labels'
            print(f'The test split of {root} has {what}. It is skipped.')
            said |= {names[path]: '' for path in files['test']}
            del labels['test']
        else:
            sys.exit(f'The {split} split of {root} has the label {strange}, which is not one of the classes. '
                     'Correct the labels, or choose another column with --label_column.')
    others = [path for path in pictures + others if not is_table(path)]
    print(tell_splits(said, [os.path.relpath(path, root) for path in others]))

    def items(split):
        for path in files[split]:
            at = 0
            try:
                with open(path, 'rb') as f:
                    for batch in pq.ParquetFile(f).iter_batches(
                            BATCH, columns=[columns[path, 'image_column']], use_threads=False):
                        column = batch.column(0)
                        cells = (column.field('bytes') if hasattr(column, 'field') else column).to_pylist()
                        yield from ((f'{path.name} row {i}', cell or b'') for i, cell in enumerate(cells, at))
                        at += len(cells)
            except (pa.ArrowException, OSError) as error:
                sys.exit(f'{path} is damaged after row {at} ({reason(error)}). Download it again.')
    mark = (f'{path} {path.stat().st_size}' for path in paths)
    return dict(classes=classes, labels=labels, items=items, mark=mark)


def download(name):
    """The folder with the parquet files of a set on the Hub; cached files are not fetched again."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download
    try:
        for revision in ('main', 'refs/convert/parquet'):  # the second is the Hub's export of other formats
            info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
            sizes = [f.size or 0 for f in info.siblings if f.rfilename.endswith('.parquet')]
            if sizes:
                break
        else:
            sys.exit(f'{name} has no parquet files on the Hub. Download and unpack it yourself, then use '
                     '--dataset=FOLDER.')
        print(f'Downloading {name} ({sum(sizes) / 1e9:.1f} GB) to {constants.HF_HUB_CACHE}. Set HF_HOME to '
              'use another folder.')
        return Path(snapshot_download(name, repo_type='dataset', revision=revision,
                                      allow_patterns='*.parquet'))
    except errors.GatedRepoError:
        sys.exit(f'{name} is gated. Accept its terms on its page on the Hub, then log in with `hf auth '
                 'login` or set HF_TOKEN.')
    except errors.RepositoryNotFoundError:
        sys.exit(f'{name} is not on the Hub, and there is no folder of that name. Check the spelling. If it '
                 'is private, log in with `hf auth login`.')
    except Exception as error:
        sys.exit(f'{name} could not be downloaded from the Hub ({reason(error)}). Check the network and run '
                 'the same command again, or use --dataset=FOLDER. --dataset=synthetic needs no network.')


def open_source(config):
    name = config['dataset']
    root = Path(name).expanduser()
    if name == 'synthetic':
        return open_synthetic()
    if not root.exists():
        if name not in HUB and not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
            sys.exit(f'There is no folder {name}. Check the path, or use synthetic, {", ".join(HUB)} or '
                     'OWNER/NAME as --dataset.')
        root = download(HUB.get(name, name))
    layouts = 'train/CLASS/* and val/CLASS/*, or CLASS/* alone, or parquet files'
    if not root.is_dir():
        sys.exit(f'{root} is not a folder. Set --dataset to a folder with {layouts}.')
    return open_folder(root) or open_parquet(root, config) or sys.exit(
        f'{root} holds no images with classes. Set --dataset to a folder with {layouts}.')


# ---- the synthetic set: shapes and textures with random places, sizes, angles and pairs of colours


def star(x, y):
    return np.hypot(x, y) < 0.6 + 0.3 * np.cos(5 * np.arctan2(y, x))


SHAPES = {  # on a grid of -1 to 1 across the shape; the last four are a disc with a texture
    'disc': lambda x, y: np.hypot(x, y) < 0.9,
    'ring': lambda x, y: abs(np.hypot(x, y) - 0.7) < 0.22,
    'square': lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    'triangle': lambda x, y: (y < 0.6) & (y > 1.8 * abs(x) - 0.9),
    'cross': lambda x, y: (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.9),
    'star': star,
    'stripes': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(9 * x) > 0),
    'checks': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(7 * x) * np.sin(7 * y) > 0),
    'dots': lambda x, y: (np.hypot(x, y) < 0.95) & (np.cos(9 * x) + np.cos(9 * y) > 0.7),
    'waves': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(13 * np.hypot(x, y)) > 0),
}


def draw(name):
    """The synthetic picture 'SPLIT NUMBER'; the shapes take turns."""
    split, i = name.split()
    rng = np.random.default_rng((['train', 'val', 'test'].index(split), int(i)))
    angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(9, 15)
    grid = (np.arange(64) + 0.5) / 2 - 16  # twice as fine as the picture, for soft edges
    x, y = grid[None, :] - rng.uniform(-4, 4), grid[:, None] - rng.uniform(-4, 4)
    x, y = (np.cos(angle) * x - np.sin(angle) * y) / radius, (np.sin(angle) * x + np.cos(angle) * y) / radius
    inside = SHAPES[list(SHAPES)[int(i) % len(SHAPES)]](x, y).reshape(32, 2, 32, 2).mean((1, 3))[..., None]
    back, fore = rng.uniform(0, 255, (2, 3))
    while abs(back - fore).max() < 80:
        fore = rng.uniform(0, 255, 3)
    pixels = back + (fore - back) * inside + rng.normal(0, 12, (32, 32, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# ---- workers


def start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # when it is killed, nobody else ends its workers
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def run_job(settings, items):
    """-> bytes of the pictures, lengths (-1: skipped), sum of histograms, [name, reason] of the skipped"""
    pieces, lengths, histogram, skipped = [], [], np.zeros(768, np.int64), []
    for name, content in items:
        try:
            piece, rgb = stored(draw(name) if content is None else content, *settings)
        except OtherSize:
            raise
        except Exception as error:  # Pillow raises nearly everything on broken files
            skipped.append([name, reason(error)])
            lengths.append(-1)
            continue
        pieces.append(piece)
        lengths.append(len(piece))
        histogram += rgb.histogram()
    return b''.join(pieces), lengths, histogram, skipped


# ---- the files: in out_dir/unfinished until all are complete


def assign(source, config):
    """The split that each picture of each source split goes to ('': none), by the rules of the docstring."""
    labels, n = source['labels'], config['val_from_train']
    share = config['val_fraction'] or 0.1 * (source.get('alone', False) and not n)
    total = len(labels['train'])
    if not 0 <= n < total:
        sys.exit(f'val_from_train={n} is out of range for {total} training pictures. Use '
                 f'--val_from_train=N with N from 0 to {total - 1}.')
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
        sys.exit(f'{config["dataset"]} has no validation split. Use --val_from_train={max(1, total // 20)} '
                 'to hold out that many training pictures, or --val_fraction=0.1 for a tenth of each class.')
    if share and (n or 'val' in to.values()):
        sys.exit(f'val_fraction={share:g} only works without val_from_train, and only if the source has no '
                 'split but train. Use --val_from_train=N alone.')
    goals = {split: np.full(len(labels[split]), to[split], 'U5') for split in labels}
    order = np.random.default_rng(config['seed']).permutation(total)
    if share:
        by_class = order[labels['train'][order].argsort(kind='stable')]
        groups = np.split(by_class, np.bincount(labels['train']).cumsum()[:-1])
        order = np.concatenate([g[:min(max(1, round(share * len(g))), len(g) - 1)] for g in groups])
        n = len(order)
        if not n:
            sys.exit('No class has two pictures, so none can be held out. Add pictures, or a folder val/.')
        print(f'{n:,} random training pictures ({share:g} of each class) are held out as val_*. Use '
              '--val_fraction to change the share.')
    goals['train'][order[:n]] = 'val'
    return goals


def make_jobs(source, goals):
    """(split to write to, items, labels) in the source's order, at most BATCH pictures a job"""
    for split, goal in goals.items():
        waiting = {}
        goal = goal if goal.any() else ()
        for item, label, to in zip(source['items'](split), source['labels'][split], goal):
            if to:
                items, labels = waiting.setdefault(to, ([], []))
                items.append(item)
                labels.append(label)
                if len(items) == BATCH:
                    yield to, *waiting.pop(to)
        yield from ((to, *lists) for to, lists in waiting.items())


def npy_header(dtype, shape):
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, dict(descr=dtype, fortran_order=False, shape=shape))
    if f.tell() != HEADER:
        raise RuntimeError(f'The .npy header has {f.tell()} bytes, not {HEADER}.')
    return f.getvalue()


def write_json(path, value):
    with open(f'{path}.tmp', 'w') as f:
        json.dump(value, f, indent=2)
        f.flush()
        os.fsync(f.fileno())
    os.replace(f'{path}.tmp', path)


def one_small_size(source):
    """The (W, H) of the first picture that opens if it is small enough for arrays, else None."""
    for item in source['items']('train'):
        try:
            size = (draw(item[0]) if item[1] is None else open_picture(item[1])[0]).size
            return size if max(size) <= SMALL else None
        except Exception:
            continue


def read_state(tmp, mark):
    """How far an earlier run of the same command came, or None."""
    try:
        state = json.loads((tmp / 'state.json').read_text())
        whole = all((tmp / f'{split}_labels.npy').exists() for split in state['images'])
        return state if state['mark'] == mark and (whole or (tmp / 'meta.json').exists()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_files(tmp, state, source, goals, settings, workers):
    """All files but meta.json into tmp, from where state says -> the state at the end"""
    size, splits, images = state['size'], list(state['images']), 'images.npy' if state['size'] else 'jpeg.bin'
    parts = (images, 'labels.npy') if size else (images, 'labels.npy', 'offsets.npy')
    files = {(split, part): open(tmp / f'{split}_{part}', 'r+b' if state['jobs'] else 'w+b')
             for split in splits for part in parts}

    def length(split, part):
        n = state['images'][split]
        return {'jpeg.bin': state['bytes'][split], 'images.npy': HEADER + state['bytes'][split],
                'labels.npy': HEADER + 8 * n, 'offsets.npy': HEADER + 8 * (n + 1)}[part]

    def save():
        for f in files.values():
            f.flush()
            os.fsync(f.fileno())
        write_json(tmp / 'state.json', state)

    for key, f in files.items():  # what lies past the state is written again; the first offset is 0
        f.truncate(length(*key))
        f.seek(0, os.SEEK_END)
    window, pending, saved = 4 * workers, deque(), time.monotonic()  # at most window jobs are in memory
    total, done = sum((goal != '').sum() for goal in goals.values()), sum(state['images'].values())
    try:
        with (tqdm(total=total, initial=done + len(state['skipped']), unit=' images', mininterval=1) as bar,
              ProcessPoolExecutor(workers, initializer=start_worker) as pool):
            for job in chain(islice(make_jobs(source, goals), state['jobs'], None), [None] * window):
                if job:
                    pending.append((*job, pool.submit(run_job, settings, job[1])))
                if not pending or job and len(pending) < window:
                    continue
                split, items, labels, result = pending.popleft()
                blob, lengths, histogram, skipped = result.result()
                lengths = np.array(lengths)
                ends = state['bytes'][split] + lengths[lengths >= 0].cumsum()
                files[split, images].write(blob)
                files[split, 'labels.npy'].write(np.array(labels, '<i8')[lengths >= 0].tobytes())
                if not size:
                    files[split, 'offsets.npy'].write(ends.astype('<i8').tobytes())
                # one assignment, so a stop at any moment leaves the state before or after a job
                state = {**state, 'jobs': state['jobs'] + 1,
                         'skipped': state['skipped'] + [[split, *skip] for skip in skipped],
                         'images': {**state['images'], split: state['images'][split] + len(ends)},
                         'bytes': {**state['bytes'], split: state['bytes'][split] + len(blob)},
                         'histogram': (state['histogram'] + histogram * (split == 'train')).tolist()}
                bar.update(len(items))
                if time.monotonic() - saved > 5:
                    save()
                    saved = time.monotonic()
        save()
        for (split, part), f in files.items():
            n = state['images'][split]
            shape = {'images.npy': (n, *(size or ())[::-1], 3), 'labels.npy': (n,), 'offsets.npy': (n + 1,)}
            if part in shape:
                f.seek(0)
                f.write(npy_header('|u1' if part == 'images.npy' else '<i8', shape[part]))
        for f in files.values():
            f.flush()
            os.fsync(f.fileno())
    finally:
        for f in files.values():
            f.close()
    return state


def content(folder):
    """A digest of the files of train and val (32 characters), whatever they were made from."""
    digest = hashlib.blake2b(digest_size=16)
    for file in FILES:
        if file.startswith(('train', 'val')) and (folder / file).exists():
            with open(folder / file, 'rb') as f:
                while block := f.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def finish(out, tmp):
    """Moves the files of tmp into place, meta.json last. If this is killed, the next run does it again."""
    (out / 'meta.json').unlink(missing_ok=True)
    state = json.loads((tmp / 'state.json').read_text())
    layout = ('labels.npy', 'images.npy') if state['size'] else ('labels.npy', 'jpeg.bin', 'offsets.npy')
    for file in FILES:
        split, part = file.split('_')
        if split not in state['images'] or part not in layout:
            (out / file).unlink(missing_ok=True)  # of the set that is replaced
        elif (tmp / file).exists():
            os.replace(tmp / file, out / file)
    os.replace(tmp / 'meta.json', out / 'meta.json')
    shutil.rmtree(tmp)


def main(config):
    for key, low, high in (('quality', 1, 100), ('resize_short', 0, 2**16), ('num_proc', 0, 1024),
                           ('seed', 0, 2**63), ('val_fraction', 0, 0.99)):
        if not low <= config[key] <= high:
            sys.exit(f'{key}={config[key]} is out of range. Use --{key} with a value from {low} to {high}.')
    out = Path(config['out_dir'] or Path('data', Path(config['dataset']).expanduser().resolve().name))
    tmp = out / 'unfinished'
    there = [file for file in (*FILES, 'meta.json') if (out / file).exists()]
    # without meta.json but with a new one in tmp, a run was killed while it moved the files into place
    if there and not config['overwrite'] and ('meta.json' in there or not (tmp / 'meta.json').exists()):
        sys.exit(f'{out} already holds a data set ({", ".join(there)}). Use --overwrite=True to replace it '
                 'or --out_dir=... to write elsewhere.')
    source = open_source(config)
    labels = source['labels']
    goals = assign(source, config)
    keys = 'val_from_train val_fraction seed resize_short quality image_column label_column'.split()
    digest = hashlib.sha256(repr([[config[key] for key in keys], source['classes'], list(labels)]).encode())
    for part in chain(map(os.fsencode, source['mark']), (np.array(v).tobytes() for v in labels.values())):
        digest.update(part + b'\0')
    state = read_state(tmp, mark := digest.hexdigest())
    if state and (tmp / 'meta.json').exists():
        finish(out, tmp)
        return print(f'{out} is finished')

    workers = config['num_proc'] or (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    splits = [split for split in ('train', 'val', 'test')
              if any((goal == split).any() for goal in goals.values())]
    total = sum((goal != '').sum() for goal in goals.values())
    size = state['size'] if state else one_small_size(source)
    while True:
        if state:
            print(f'Continuing after {sum(state["images"].values()):,} images.')
        else:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            state = dict(mark=mark, size=size, jobs=0, images=dict.fromkeys(splits, 0), histogram=[0] * 768,
                         bytes=dict.fromkeys(splits, 0), skipped=[])
        settings = (size, config['resize_short'], config['quality'])
        sample = run_job((None, *settings[1:]), islice(source['items']('train'), 32))[1]
        need = math.prod(size) * 3 if size else max(0, np.mean(sample))
        free = shutil.disk_usage(out).free
        kind = 'arrays' if size else 'JPEGs'
        print(f'{out}: {total:,} images of {len(source["classes"])} classes as {kind}, '
              f'about {total * need / 1e6:,.0f} MB ({free / 1e6:,.0f} MB are free)')
        try:
            state = write_files(tmp, state, source, goals, settings, workers)
            break
        except OtherSize:
            print('The pictures are not all of one size. Starting again with JPEGs.')
            state = size = None
    for split, n in state['images'].items():
        if not n:
            shutil.rmtree(tmp)
            name, why = next(skip for where, *skip in state['skipped'] if where == split)
            sys.exit(f'None of the {split} pictures can be used. Fix or replace them. The first is '
                     f'{name!r} ({why}).')

    histogram, values = np.array(state['histogram']).reshape(3, 256), np.arange(256) / 255
    share = histogram / histogram.sum(1, keepdims=True)
    mean = (share @ values).clip(0, 1)
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    counts = {f'{split}_images': n for split, n in state['images'].items()}
    keys = ['seed'] + ['resize_short', 'quality'] * (not size)
    skipped = [skip for _, *skip in state['skipped']]
    write_json(tmp / 'meta.json', dict(
        classes=source['classes'], mean=mean.tolist(), std=std.tolist(), layout='arrays' if size else 'jpeg',
        **counts, source=config['dataset'], val_from_train=int((goals['train'] == 'val').sum()),
        **{key: config[key] for key in keys}, content=content(tmp), skipped=skipped))
    finish(out, tmp)
    counted = ', '.join(f'{n:,} {split}' for split, n in state['images'].items())
    print(f'{out} is finished: {counted} images')
    if skipped:
        were = 's were' if len(skipped) > 1 else ' was'
        print(f'{len(skipped):,} picture{were} skipped (meta.json lists all of them):')
        for name, why in skipped[:10]:
            print(f'  {name!r}: {why}')


if __name__ == '__main__':
    try:
        main(config)
    except BrokenProcessPool:
        sys.exit('A worker process was killed, probably for lack of memory. Use a lower --num_proc.')
    except OSError as error:
        advice = 'Free some space' if error.errno == errno.ENOSPC else 'Fix that'
        sys.exit(f'{reason(error)} ({error.filename or config["out_dir"] or "data"}). {advice}, then run the '
                 'same command again. It continues from there.')
    except KeyboardInterrupt:
        sys.exit('Stopped. The same command continues from there.')
