"""
Pictures in, memmapped arrays out: data/NAME/ as train_vit.py reads it.

    python prepare_imagenet.py --dataset=synthetic         ten made-up classes, 32 x 32, no network: for a first try
    python prepare_imagenet.py --dataset=cifar10           from the Hub; also cifar100, tiny-imagenet, imagenet-1k
    python prepare_imagenet.py --dataset=PATH              train/CLASS/* and val/CLASS/*, or a folder of parquet
    python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000 --out_dir=data/cifar10-tune

Pictures of one size, at most 96 pixels a side, become arrays: {train,val,test}_images.npy, uint8 (N, H, W, 3). All
others become JPEGs, one after another in {split}_jpeg.bin; number i lies at bytes offsets[i] to offsets[i + 1] of
{split}_offsets.npy, int64 (N + 1). Both have {split}_labels.npy, int64 (N), and a meta.json with the classes (sorted
folder names, or the Hub's order) and the mean and std of the training pixels in 0..1.

val_*   the source's validation split; where it has only a test split, as CIFAR, that one, as most code does
test_*  the source's test split beside a validation split, if it has labels

--val_from_train=N holds N random training pictures out as val_*, to choose hyperparameters on. The source's own test
split, or its validation split where it has no test labels, as ImageNet, is then test_*: for the final number.

JPEGs: short side down to 256 (bicubic), quality 95: 36 kB a picture, 40 dB from the pixels (90: 25 kB, 38 dB); that
is 50 GB and 2 core hours for ImageNet. Pictures with a shorter side in RGB keep their bytes. Grey, CMYK, palette,
alpha and PNG all become RGB JPEG. EXIF rotation is ignored, as timm does. Pictures that cannot be decoded are named,
counted and left out. Stopped or killed at any moment, the same line goes on from there; the result is finished when
meta.json is there, and its bytes do not depend on --num_proc.
"""

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
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from configurator import configure

dataset = 'imagenet-1k'  # 'synthetic', a folder, a name of the table HUB, or OWNER/NAME on the Hub
out_dir = ''             # where the arrays go; '' is data/NAME
val_from_train = 0       # random training pictures held out as val_*
seed = 0                 # of their choice
resize_short = 256       # JPEGs: short side at most so many pixels; 0 leaves sizes as they are
quality = 95             # JPEGs: of those that are written anew
image_column = ''        # of parquet; '' is image or img
label_column = ''        # of parquet; '' is label or fine_label
num_proc = 0             # processes that decode; 0 is one on every core
overwrite = False        # replace what out_dir holds; it stays until the new one is complete
if __name__ == '__main__':  # a spawned worker imports this file too
    config = configure(globals())

HUB = {  # columns and splits are recognized by name: those of the comment
    'cifar10': 'uoft-cs/cifar10',            # img, label; train, test
    'cifar100': 'uoft-cs/cifar100',          # img, fine_label (and coarse_label); train, test
    'tiny-imagenet': 'zh-plus/tiny-imagenet',  # image, label; train, valid
    'imagenet-1k': 'ILSVRC/imagenet-1k',     # image, label; train, validation (test has no labels); gated
}
SPLITS = {'test': {'test', 'testing'}, 'train': {'train', 'training'}, 'val': {'validation', 'valid', 'val', 'dev'}}
ENDINGS = {'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.ppm', '.gif', '.tif', '.tiff'}
SYNTHETIC = {'train': 8000, 'val': 1000, 'test': 1000}  # pictures
SMALL = 96      # pixels a side that an array picture has at most
BATCH = 64      # pictures in a job
HEADER = 128    # bytes before the data of an .npy file
FILES = [f'{split}_{part}' for split in ('train', 'val', 'test')
         for part in ('images.npy', 'jpeg.bin', 'offsets.npy', 'labels.npy')]


# ---- sources: classes, the labels of each split, and items(split): (name, bytes) or (name, None) in that order


def open_synthetic():
    labels = {split: np.arange(n) % len(SHAPES) for split, n in SYNTHETIC.items()}
    return dict(classes=list(SHAPES), labels=labels, read=draw, mark=['synthetic'],
                items=lambda split: ((f'{split} {i}', None) for i in range(len(labels[split]))))


def open_folder(root, roots):
    """The ImageFolder layout: SPLIT/CLASS/**/picture."""
    names = {split: sorted(e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != '.')
             for split, path in roots.items()}
    if not names.get('test', True):
        print(f'{roots["test"]} has no class folders, so no labels: left out')
        del names['test'], roots['test']
    classes = names['train']
    number = {name: i for i, name in enumerate(classes)}
    paths, labels, others = {}, {}, 0
    for split, folder in roots.items():
        paths[split], found = [], []
        for name in names[split]:
            if name not in number:
                sys.exit(f'the class {name} is in {folder} but not in {roots["train"]}: classes are those of train; '
                         'move or rename that folder')
            files = sorted(os.path.join(at, f) for at, _, files in os.walk(folder / name, followlinks=True)
                           for f in files if f[0] != '.')
            pictures = [f for f in files if os.path.splitext(f)[1].lower() in ENDINGS]
            others += len(files) - len(pictures)
            if not pictures:
                sys.exit(f'the class folder {folder / name} holds no pictures ({" ".join(sorted(ENDINGS))}): fill it '
                         'or take it away')
            paths[split] += pictures
            found += [number[name]] * len(pictures)
        if not found:
            sys.exit(f'{folder} holds no class folders: wanted are pictures in {folder}/CLASS')
        labels[split] = np.array(found)
    if others:
        print(f'{root}: {others} files without the ending of a picture are left out')
    return dict(classes=classes, labels=labels, read=read_path, mark=chain(*paths.values()),
                items=lambda split: ((path, None) for path in paths[split]))


def open_parquet(root, paths, config):
    import pyarrow.parquet as pq
    files = {'train': [], 'val': [], 'test': []}
    for path in paths:  # the Hub's names: train-00000-of-00003.parquet, plain_text/test/0000.parquet
        words = set(re.split('[^a-z]+', path.relative_to(root).as_posix().lower()))
        if 'partial' in words:
            sys.exit(f'{path} is part of an export that the Hub cut short: get the whole set')
        for split in [split for split in SPLITS if words & SPLITS[split]][:1]:
            files[split].append(path)
    if not files['train']:
        sys.exit(f'{root} has no split train: wanted are names such as train-00000-of-00001.parquet')
    if len(folders := {str(path.parent) for path in files['train']}) > 1:
        sys.exit(f'train of {root} lies in several folders ({", ".join(sorted(folders))}): give one of them alone')
    names, columns, labels = None, {}, {}
    for split, split_paths in files.items():
        found = []
        for path in split_paths:
            try:
                schema = pq.read_schema(path)
                for key, usual in (('image_column', ['image', 'img']), ('label_column', ['label', 'fine_label'])):
                    usual = [config[key]] if config[key] else usual
                    columns[key] = next((column for column in usual if column in schema.names), '')
                    if not columns[key]:
                        sys.exit(f'{path} has no column {" or ".join(usual)}: --{key} takes one of '
                                 f'{", ".join(schema.names)}')
                found += pq.read_table(path, columns=[columns['label_column']]).column(0).to_pylist()
            except (ValueError, OSError) as error:
                sys.exit(f'{path} cannot be read as parquet ({said(error)}): mend it or take it away')
            info = json.loads((schema.metadata or {}).get(b'huggingface', b'{}')).get('info', {}).get('features', {})
            names = names or info.get(columns['label_column'], {}).get('names')
        if split == 'test' and found and set(found) <= {-1, None}:
            print(f'{root}: test has no labels, left out')
            found = []
        if found:
            labels[split] = found
    if not labels.get('train'):
        sys.exit(f'{root} has no rows in train: get the set again')
    if None in labels['train'] or not isinstance(labels['train'][0], (int, str)):
        sys.exit(f'the column {columns["label_column"]} of {root} holds no labels (numbers or names): see '
                 '--label_column')
    if isinstance(labels['train'][0], str):
        names = sorted(set(labels['train']))
        number = {name: i for i, name in enumerate(names)}
    else:
        names = names or [str(i) for i in range(max(labels['train']) + 1)]
        number = {i: i for i in range(len(names))}
    for split, found in labels.items():
        if strange := sorted({str(label) for label in found if label not in number}):
            sys.exit(f'{split} of {root} has the label {strange[0]}, which is none of the {len(names)} classes of '
                     'train: mend the labels or see --label_column')
        labels[split] = np.array([number[label] for label in found])

    def items(split):
        for path in files[split]:
            with pq.ParquetFile(path) as table:
                at = 0
                for batch in table.iter_batches(BATCH, columns=[columns['image_column']], use_threads=False):
                    column = batch.column(0)
                    cells = (column.field('bytes') if hasattr(column, 'field') else column).to_pylist()
                    yield from ((f'{path.name} row {i}', cell or b'') for i, cell in enumerate(cells, at))
                    at += len(cells)
    mark = (f'{path} {path.stat().st_size}' for path in paths)
    return dict(classes=names, labels=labels, read=read_bytes, items=items, mark=mark)


def download(name):
    """The folder with the parquet files of a set on the Hub; what is in its cache is not fetched again."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download
    try:
        for revision in ('main', 'refs/convert/parquet'):  # the second is the Hub's own export of other formats
            sizes = [f.size or 0 for f in HfApi().dataset_info(name, revision=revision, files_metadata=True).siblings
                     if f.rfilename.endswith('.parquet')]
            if sizes:
                break
        else:
            sys.exit(f'{name} has no parquet files on the Hub: download it, unpack it and give the folder')
        print(f'{name}: {sum(sizes) / 1e9:.1f} GB of download in {constants.HF_HUB_CACHE} (HF_HOME moves it)',
              flush=True)
        return Path(snapshot_download(name, repo_type='dataset', revision=revision, allow_patterns='*.parquet'))
    except errors.GatedRepoError:
        sys.exit(f'{name} is gated: accept its terms on its page on the Hub, then log in with `hf auth login` or set '
                 'HF_TOKEN')
    except errors.RepositoryNotFoundError:
        sys.exit(f'{name} is not on the Hub, and no folder here has that name: check the spelling; if it is private, '
                 'log in with `hf auth login`')
    except Exception as error:
        sys.exit(f'{name} could not be had from the Hub ({said(error)}): check the network and run the same line '
                 'again, or give a folder; --dataset=synthetic needs no network')


def open_source(config):
    name = config['dataset']
    root = Path(name).expanduser()
    if name == 'synthetic':
        return open_synthetic()
    if not root.exists():
        if name not in HUB and not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
            sys.exit(f'there is no folder {name}: check the path, or use synthetic, {", ".join(HUB)} or OWNER/NAME')
        root = download(HUB.get(name, name))
    if not root.is_dir():
        sys.exit(f'{root} is not a folder: wanted is one with train/CLASS/* and val/CLASS/*, or with parquet files')
    roots = {split: path for path in sorted(root.iterdir(), reverse=True) for split in SPLITS
             if path.is_dir() and path.name.lower() in SPLITS[split]}
    if 'train' in roots and any(entry.is_dir() for entry in os.scandir(roots['train'])):
        return open_folder(root, roots)
    if tables := sorted(root.rglob('*.parquet')):
        return open_parquet(root, tables, config)
    sys.exit(f'{root} holds no images with classes: wanted is a folder with train/CLASS/* and val/CLASS/*, or with '
             'parquet files')


def said(error):
    return ' '.join(str(error).split())[:200] or type(error).__name__


# ---- the synthetic set: a shape or a texture of any place, size, angle and pair of colours


def star(x, y):
    return np.hypot(x, y) < 0.6 + 0.3 * np.cos(5 * np.arctan2(y, x))


SHAPES = {  # on a grid of -1 to 1 across the shape; the last four look at a disc through a texture
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


def draw(name, _):
    """The synthetic picture 'SPLIT NUMBER'; every shape in turn."""
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
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), b''


# ---- workers


class OtherSize(Exception):
    """The pictures are not all of one small size."""


def read_path(path, _):
    return read_bytes(path, Path(path).read_bytes())


def read_bytes(_, raw):
    return Image.open(io.BytesIO(raw)), raw


def convert(image, raw, size, short, quality):
    """A picture -> the bytes to store and its histogram (768). size: (W, H) of the pictures of an array, or None"""
    if size and image.size != tuple(size):
        raise OtherSize
    image.load()
    keep = image.format == 'JPEG' and image.mode == 'RGB'
    if image.mode.startswith('I;16'):  # convert() would clip what is above 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    (W, H), rgb = image.size, image.convert('RGB')
    if size:
        return rgb.tobytes(), rgb.histogram()
    if short and min(W, H) > short:
        w, h = (short, short * H // W) if W <= H else (short * W // H, short)
        rgb = rgb.resize((w, h), Image.Resampling.BICUBIC)
    elif keep and image.getexif().get(0x0112, 1) == 1:  # else some reader of the bytes would turn it, and we do not
        return raw, rgb.histogram()
    out = io.BytesIO()
    rgb.save(out, 'JPEG', quality=quality)
    return out.getvalue(), rgb.histogram()


def start_worker():
    warnings.simplefilter('ignore')  # Pillow's, on odd metadata
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # when it is killed, nobody else ends its workers
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def run_job(read, settings, items):
    """-> bytes of the pictures, their lengths (-1: left out), sum of histograms, [name, reason] of those left out"""
    pieces, lengths, histogram, skipped = [], [], np.zeros(768, np.int64), []
    for item in items:
        try:
            piece, counts = convert(*read(*item), *settings)
        except OtherSize:
            raise
        except Exception as error:  # Pillow raises nearly everything on broken files
            unknown = isinstance(error, UnidentifiedImageError)  # its message has an address in memory
            skipped.append([item[0], 'in no format of pictures' if unknown else said(error)])
            lengths.append(-1)
            continue
        pieces.append(piece)
        lengths.append(len(piece))
        histogram += counts
    return b''.join(pieces), lengths, histogram, skipped


# ---- the files: in out_dir/unfinished until all are complete


def assign(labels, config):
    """Where each picture of each of the source's splits goes, '' is nowhere: the rules of the docstring."""
    n, total = config['val_from_train'], len(labels['train'])
    if not 0 <= n < total:
        sys.exit(f'val_from_train={n} is out of range: train has {total} pictures, and some have to stay')
    to = {split: split for split in labels}
    if n:
        to['val' if 'test' not in labels else 'test'] = 'test'
        if 'val' in labels and 'test' in labels:
            to['val'] = ''
            print('the source\'s own validation split is left out, as val_from_train was asked for')
    elif 'val' not in labels:
        if 'test' not in labels:
            sys.exit(f'{config["dataset"]} has no validation split: --val_from_train={max(1, total // 20)} would '
                     'hold some of the training pictures out')
        to['test'] = 'val'
        print('the source has no validation split: its test split becomes val_* (--val_from_train=N keeps it as '
              'test_*)')
    goals = {split: np.full(len(labels[split]), to[split], 'U5') for split in labels}
    goals['train'][np.random.default_rng(config['seed']).permutation(total)[:n]] = 'val'
    return goals


def make_jobs(source, goals):
    """(split to write to, items, labels) in the source's order, no job of more than BATCH"""
    for split, goal in goals.items():
        waiting = {}
        for item, label, to in zip(source['items'](split), source['labels'][split], goal if goal.any() else ()):
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
        raise RuntimeError(f'an .npy header of {f.tell()} bytes, not {HEADER}')
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
            size = source['read'](*item)[0].size
            return size if max(size) <= SMALL else None
        except Exception:
            continue


def read_state(tmp, mark):
    """How far an earlier run of the same line came, or None."""
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

    for key, f in files.items():  # what lies past the state comes again; the first offset is 0
        f.truncate(length(*key))
        f.seek(0, os.SEEK_END)
    window, pending, saved = 4 * workers, deque(), time.monotonic()  # no more jobs than the window are in memory
    total, done = sum((goal != '').sum() for goal in goals.values()), sum(state['images'].values())
    try:
        with (tqdm(total=total, initial=done + len(state['skipped']), unit=' images', mininterval=1) as bar,
              ProcessPoolExecutor(workers, initializer=start_worker) as pool):
            for job in chain(islice(make_jobs(source, goals), state['jobs'], None), [None] * window):
                if job:
                    pending.append((*job, pool.submit(run_job, source['read'], settings, job[1])))
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
                # one assignment: whatever stops the program, the state is that before or after a job
                state = {**state, 'jobs': state['jobs'] + 1, 'skipped': state['skipped'] + skipped,
                         'images': {**state['images'], split: state['images'][split] + len(ends)},
                         'bytes': {**state['bytes'], split: state['bytes'][split] + len(blob)},
                         'histogram': (np.array(state['histogram']) + histogram * (split == 'train')).tolist()}
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


def finish(out, tmp):
    """Everything of tmp into place, meta.json last. Killed in the middle, it is called again."""
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
                           ('seed', 0, 2**63)):
        if not low <= config[key] <= high:
            sys.exit(f'{key}={config[key]} is out of range: use {low} to {high}')
    out = Path(config['out_dir'] or Path('data', Path(config['dataset']).expanduser().resolve().name))
    tmp = out / 'unfinished'
    there = [file for file in (*FILES, 'meta.json') if (out / file).exists()]
    # without meta.json but with a new one at hand: killed while the files were put in place
    if there and not config['overwrite'] and ('meta.json' in there or not (tmp / 'meta.json').exists()):
        sys.exit(f'{out} holds a data set already ({", ".join(there)}): --overwrite=True replaces it, '
                 '--out_dir=... puts the new one elsewhere')
    source = open_source(config)
    labels = source['labels']
    goals = assign(labels, config)
    keys = ('val_from_train', 'seed', 'resize_short', 'quality', 'image_column', 'label_column')
    digest = hashlib.sha256(repr([[config[key] for key in keys], source['classes'], list(labels)]).encode())
    for part in chain(map(os.fsencode, source['mark']), (np.array(v).tobytes() for v in labels.values())):
        digest.update(part + b'\0')
    state = read_state(tmp, mark := digest.hexdigest())
    if state and (tmp / 'meta.json').exists():
        finish(out, tmp)
        return print(f'{out} is finished')

    workers = config['num_proc'] or (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    splits = [split for split in ('train', 'val', 'test') if any((goal == split).any() for goal in goals.values())]
    total = sum((goal != '').sum() for goal in goals.values())
    size = state['size'] if state else one_small_size(source)
    while True:
        if state:
            print(f'going on after {sum(state["images"].values()):,} images')
        else:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            state = dict(mark=mark, size=size, jobs=0, images=dict.fromkeys(splits, 0), histogram=[0] * 768,
                         bytes=dict.fromkeys(splits, 0), skipped=[])
        settings = (size, config['resize_short'], config['quality'])
        sample = run_job(source['read'], (None, *settings[1:]), islice(source['items']('train'), 32))[1]
        need = math.prod(size) * 3 if size else max(0, np.mean(sample))
        print(f'{out}: {total:,} images of {len(source["classes"])} classes as {"arrays" if size else "JPEGs"}, '
              f'about {total * need / 1e6:,.0f} MB, {shutil.disk_usage(out).free / 1e6:,.0f} MB are free', flush=True)
        try:
            state = write_files(tmp, state, source, goals, settings, workers)
            break
        except OtherSize:
            print('the pictures are not all of one size')
            state = size = None
    for split, n in state['images'].items():
        if not n:
            shutil.rmtree(tmp)
            sys.exit(f'none of the pictures of {split} can be decoded, {state["skipped"][-1][0]!r} for one '
                     f'({state["skipped"][-1][1]}): are these images?')

    histogram, values = np.array(state['histogram']).reshape(3, 256), np.arange(256) / 255
    share = histogram / histogram.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    counts = {f'{split}_images': n for split, n in state['images'].items()}
    keys = ['val_from_train', 'seed'] + ['resize_short', 'quality'] * (not size)
    write_json(tmp / 'meta.json', dict(
        classes=source['classes'], mean=mean.tolist(), std=std.tolist(), layout='arrays' if size else 'jpeg',
        **counts, source=config['dataset'], **{key: config[key] for key in keys}, skipped=state['skipped']))
    finish(out, tmp)
    print(f'{out} is finished: ' + ', '.join(f'{n:,} {split}' for split, n in state['images'].items()) + ' images')
    if state['skipped']:
        print(f'{len(state["skipped"]):,} pictures cannot be decoded and are left out (all of them in meta.json):')
        for name, reason in state['skipped'][:10]:
            print(f'  {name!r}: {reason}')


if __name__ == '__main__':
    try:
        main(config)
    except BrokenProcessPool:
        sys.exit('a process that decodes was killed, most likely for want of memory: try a lower --num_proc')
    except OSError as error:
        sys.exit(f'{error}: mend that and run the same line again')
    except KeyboardInterrupt:
        sys.exit('stopped: the same line goes on from there')
