"""
A prepared set of pictures: meta.json and the arrays or JPEGs of data/NAME, checked when they are opened; and
the loader of JPEGs.
"""

import io
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from support import augment
from support.console import fail, reason
from support.pictures import is_picture, open_picture, to_rgb
from support.textfiles import find_files
from support.tokens import data_folder, no_data_set
from support.writing import count_cores

AGAIN = 'Prepare the data set again with python prepare_imagenet.py --dataset=... --overwrite=True.'


class Images:
    """
    The pictures of a data set on disk. meta is its meta.json. splits['train'] is (pictures, labels): pictures
    are uint8 (N, H, W, 3) on the device (layout 'arrays') or offsets into the .bin file (layout 'jpeg'),
    labels int64 (N,).
    """

    def __init__(self, dataset, config, env, meta=None):
        self.folder, self.config, self.env = data_folder(dataset), config, env
        self.meta = meta or read_meta(self.folder)
        self.arrays = self.meta['layout'] == 'arrays'
        self.splits = {}
        self.mean = torch.tensor(self.meta['mean'], device=env.device).view(3, 1, 1)
        self.std = torch.tensor(self.meta['std'], device=env.device).view(3, 1, 1)
        self.std.clamp_(min=1 / 255)  # a channel may be constant

    def open(self, *names):
        """Check and open splits by name."""
        for name in names:
            self.splits[name] = self.read_split(name)
        self.tell_resolution()

    def tell_resolution(self):
        """JPEGs may hold fewer pixels than the network looks at."""
        size, short = self.config['image_size'], self.meta.get('resize_short', 0)
        needed = size * 8 // 7
        if not self.arrays and 0 < short < needed:
            self.env.say(f'The JPEGs were stored with a short side of at most {short} pixels, but '
                         f'image_size={size} looks at {needed}. For sharper pictures, prepare them again: '
                         f'python prepare_imagenet.py --resize_short={needed} --overwrite=True.')

    def size(self, split):
        """Pictures in a split, 0 where it is not open."""
        return len(self.splits[split][1]) if split in self.splits else 0

    def read_split(self, split):
        """(pictures, labels) of a split, checked."""
        files, jpeg_bytes = 'images' if self.arrays else 'offsets', 0
        try:
            labels = np.load(f'{self.folder}/{split}_labels.npy')
            pictures = np.load(f'{self.folder}/{split}_{files}.npy', mmap_mode='c')
            if not self.arrays:
                jpeg_bytes = os.path.getsize(f'{self.folder}/{split}_jpeg.bin')
        except FileNotFoundError as e:
            fail(f'{e.filename} does not exist. The data set is incomplete or has no {split} split. {AGAIN} '
                 'Folders train/, val/ and test/ become splits. --val_from_train=N makes val.')
        except (OSError, ValueError, EOFError) as e:
            fail(f'The {split} split in {self.folder} cannot be read ({e}). {AGAIN}')
        layout = pictures.dtype, pictures.ndim, labels.dtype, labels.ndim
        wanted = (np.uint8, 4, np.int64, 1) if self.arrays else (np.int64, 1, np.int64, 1)
        if layout != wanted or not len(labels):
            fail(f'The {split} split in {self.folder} is empty, or its arrays have the wrong type or shape. '
                 f'{AGAIN}')
        count = self.meta.get(f'{split}_images', len(labels))
        entries = count if self.arrays else count + 1
        whole = len(labels) == count and len(pictures) == entries
        if whole and not self.arrays:
            whole = pictures[-1] == jpeg_bytes and (np.diff(pictures) > 0).all()
        if not whole:
            fail(f'The {split} split in {self.folder} is incomplete ({len(labels)} labels, '
                 f'{len(pictures)} {files}, but meta.json states {count} images). {AGAIN}')
        classes = len(self.meta['classes'])
        if labels.min() < 0 or labels.max() >= classes:
            fail(f'{split}_labels.npy has labels from {labels.min()} to {labels.max()}, but meta.json lists '
                 f'{classes} classes (0 to {classes - 1}). {AGAIN}')
        if self.arrays:
            self.check_size(pictures)
            pictures = torch.from_numpy(pictures)  # on a CPU it stays a memmap, shared by all processes
            if self.env.device_type != 'cpu':
                pictures = pictures.to(self.env.device)
        return pictures, torch.from_numpy(labels)

    def check_size(self, pictures):
        """Small pictures must be square and at most as large as image_size; smaller ones are resized."""
        stored, size, shift = pictures.shape[1], self.config['image_size'], self.config['shift']
        if pictures.shape[1:] != (stored, stored, 3) or stored > size:
            shape = f'{pictures.shape[2]} x {stored} x {pictures.shape[3]}'
            fail(f'The pictures of {self.folder} are {shape}, but image_size={size} requires square RGB '
                 f'pictures of at most {size} x {size} x 3. Use a larger --image_size and a --patch_size '
                 'that divides it, or prepare other pictures.')
        if shift >= stored:
            fail(f'shift={shift} is too large for pictures of {stored} x {stored}. Set --shift to less than '
                 f'{stored}.')
        if stored < size and 'stored_size' not in self.meta:
            self.env.say(f'the pictures of {self.folder}, {stored} x {stored}, are resized to '
                         f'image_size={size}')
            self.meta['stored_size'] = stored  # predict makes a photo as small first

    def batches(self, split, samples):
        """
        Yield (images, labels) on the device, normalized floats (B, 3, image_size, image_size), for each of
        samples, which are lists of (epoch, index). View v of picture i among N has the index v N + i. An
        epoch of None means no augmentation.
        """
        cuda = self.env.device_type == 'cuda'  # there, copy ahead. MPS may read freed memory (pytorch#189690)
        for images, labels in self.small(split, samples) if self.arrays else self.jpegs(split, samples):
            images = images.to(self.env.device, non_blocking=cuda)
            labels = labels.to(self.env.device, non_blocking=cuda)
            yield self.normalized(images), labels

    def normalized(self, images):
        """Pictures, uint8 (B, 3, H, W), as the network reads them: normalized floats of image_size."""
        size, images = self.config['image_size'], images.float()
        if images.size(-1) != size:  # small pictures: bicubic, as Pillow and torchvision do it
            images = F.interpolate(images, (size, size), mode='bicubic', antialias=True).round().clamp(0, 255)
        return (images / 255 - self.mean) / self.std

    def small(self, split, samples):
        """Yield (pictures, labels) of arrays, uint8. The view of a sample depends on (seed, epoch, index)."""
        pictures, labels = self.splits[split]
        drawn = None
        for batch in samples:
            epoch, index = batch[0][0], torch.tensor([index for _, index in batch])
            picture = index % len(labels)
            images = pictures[picture.to(pictures.device, non_blocking=pictures.is_cuda)].permute(0, 3, 1, 2)
            if epoch is not None:
                if epoch != drawn:
                    rng = np.random.default_rng((self.config['seed'], 1, epoch))
                    views = self.config['aug_repeats'] * len(labels)
                    offsets, drawn = augment.small_offsets(rng, views, self.config['shift']), epoch
                images = augment.pad_crop_flip(images, offsets[index])
            yield images, labels[picture]

    def jpegs(self, split, samples):
        """Yield (pictures, labels) of JPEGs, uint8. Worker processes decode ahead and keep the order."""
        workers = self.config['num_workers']
        if workers < 0:
            share = max(1, count_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
            workers = share if sys.platform == 'linux' else 0
        # Each worker has its own process group, because a signal to our group (from torchrun or Ctrl-C) would
        # end the workers before the run is saved.
        loader = DataLoader(Jpegs(self, split), batch_sampler=samples, num_workers=workers,
                            pin_memory=self.env.device_type == 'cuda',
                            multiprocessing_context='fork' if workers else None,
                            worker_init_fn=lambda worker: os.setpgrp())
        try:
            yield from loader
        except ValueError as e:  # from a worker, the sentence comes behind its traceback
            fail(str(e).strip().splitlines()[-1].removeprefix('ValueError: '), any_rank=True)
        except RuntimeError as e:
            if 'DataLoader worker' not in str(e):
                raise
            fail('A process that reads pictures was killed, probably for lack of memory or of room in '
                 '/dev/shm. Use a lower --num_workers (0 needs none), or give the container more (docker run '
                 '--shm-size=2g).', any_rank=True)


class Jpegs(Dataset):
    """
    The pictures of a split by (epoch, index), each as uint8 (3, image_size, image_size) with its label. They
    are augmented. Where epoch is None, they get the evaluation crop instead.
    """

    def __init__(self, images, split):
        self.path, self.config = os.path.join(images.folder, f'{split}_jpeg.bin'), images.config
        self.offsets, self.labels = images.splits[split]
        self.file = open(self.path, 'rb')

    def __getitem__(self, key):
        (epoch, index), config = key, self.config
        picture = index % len(self.labels)
        start, end = self.offsets[picture:picture + 2]
        blob = os.pread(self.file.fileno(), end - start, start)  # forked workers share the file's position
        try:
            image = Image.open(io.BytesIO(blob)).convert('RGB')
        except Exception as e:  # Pillow raises nearly everything on broken files
            raise ValueError(f'Picture {picture} (counted from 0) in {self.path} is damaged. {AGAIN}') from e
        if epoch is None:
            image = augment.eval_crop(image, config['image_size'])
        else:
            rng = np.random.default_rng((config['seed'], 1, epoch, index))
            image = augment.train_view(image, rng, config['image_size'], config['crop_scale'],
                                       config['randaugment'], config['interpolation'])
        return augment.to_tensor(image), self.labels[picture]


def read_meta(folder):
    """meta.json, checked."""
    path = os.path.join(folder, 'meta.json')
    if not os.path.exists(path):
        no_data_set(folder, 'prepare_imagenet.py', 'train_labels.npy')
    try:
        with open(path, encoding='utf-8') as f:
            meta = dict(json.load(f))
        if 'tokenizer' in meta:
            fail(f'{folder} holds text. Use train_gpt.py, or choose pictures with --dataset.')
        valid = (meta['layout'] in ('arrays', 'jpeg') and isinstance(meta['classes'], list)
                 and len(meta['mean']) == len(meta['std']) == 3
                 and all(0 <= v <= 1 for v in meta['mean'] + meta['std']))  # std 0: a constant channel
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        fail(f'{path} is not a valid meta.json for pictures. {AGAIN}')
    return meta


@torch.no_grad()
def predict_files(path, model, data):
    """
    Print the five likeliest classes, with probabilities, of a picture or of each picture in a folder. Of a
    data set of arrays, the model knows pictures of that size, so others are made as small first.
    """
    size, classes, env = data.config['image_size'], data.meta['classes'], data.env
    small = data.meta.get('stored_size', size)
    model.eval()
    data.tell_resolution()
    files = [path]
    if os.path.isdir(path):
        try:
            files = list(filter(is_picture, find_files(path)[0]))
        except OSError as e:
            fail(f'{path} cannot be read ({reason(e)}: {e.filename}). Use another folder with --predict.')
    read = 0
    for file in files:
        try:
            image = to_rgb(open_picture(file)[0])
            if data.arrays:
                image = ImageOps.fit(image, (small, small), Image.Resampling.BICUBIC)
            else:
                image = augment.eval_crop(image, size)
        except Exception as error:  # Pillow raises nearly everything on broken files
            env.say(f'{file}: skipped ({reason(error)})')
            continue
        images = data.normalized(augment.to_tensor(image)[None].to(env.device))
        with env.autocast:
            top = model(images)[0].float().softmax(-1).topk(min(5, len(classes)))
        guesses = [f'{classes[i]} {p:.1%}' for p, i in zip(top.values.tolist(), top.indices)]
        env.say(f'{file}: ' + ', '.join(guesses))
        read += 1
    if not read:
        fail(f'{path} has no picture that can be read. Use another file or folder with --predict.')
