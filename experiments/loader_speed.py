"""
How fast one core reads training pictures, and how many cores 8 GPUs would need.

    python prepare_imagenet.py --dataset=path/to/imagefolder --out_dir=data/pictures
    python -m experiments.loader_speed --dataset=data/pictures

Each way of reading takes its turn with the same pictures, several times; the median and the spread are printed, in
pictures per second of one core. The limit is plain Pillow: decode, one crop, one resize.
"""

import io
import os
import statistics
import time

import numpy as np
import torch
from PIL import Image

import augment
from configurator import configure, fail

dataset = 'data/imagenet'  # prepared by prepare_imagenet.py, as JPEGs
image_size = 224
repeats = 7  # turns
count = 100  # pictures a turn
gpu_speed = 600  # pictures per second that one GPU trains on: an assumption, to be replaced by what yours does
configure(globals())
torch.set_num_threads(1)  # as in a worker process of a DataLoader

if not os.path.exists(os.path.join(dataset, 'train_offsets.npy')):
    fail(f'{dataset} holds no JPEGs: python prepare_imagenet.py makes them')
offsets = np.load(os.path.join(dataset, 'train_offsets.npy'))
with open(os.path.join(dataset, 'train_jpeg.bin'), 'rb') as f:
    jpegs = [f.read(end - start) for start, end in zip(offsets, offsets[1:count + 1])]


def decode(jpeg, rng):
    return Image.open(io.BytesIO(jpeg)).convert('RGB')


def limit(jpeg, rng):
    image = decode(jpeg, rng)
    side = min(image.size)
    return image.crop((0, 0, side, side)).resize((image_size, image_size), augment.BICUBIC)


def plain(jpeg, rng):
    return augment.to_tensor(augment.train_view(decode(jpeg, rng), rng, image_size, magnitude=0))


def recipe(jpeg, rng):
    return augment.to_tensor(augment.train_view(decode(jpeg, rng), rng, image_size))


ways = {'decode': decode, 'decode, crop, resize (the limit)': limit, 'our loader without RandAugment': plain,
        'our loader with RandAugment': recipe}
speeds = {name: [] for name in ways}
for turn in range(repeats):
    for name, read in ways.items():
        start = time.process_time()  # what this core worked, whatever else the machine does
        for i, jpeg in enumerate(jpegs):
            read(jpeg, np.random.default_rng((turn, i)))
        speeds[name].append(len(jpegs) / (time.process_time() - start))

print(f'| what | pictures per second and core | of the limit | cores for 8 GPUs at {gpu_speed} pictures/s each |\n|---|---|---|---|')
top = statistics.median(speeds['decode, crop, resize (the limit)'])
for name, values in speeds.items():
    middle = statistics.median(values)
    print(f'| {name} | {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f}) | {middle / top:.2f} | {8 * gpu_speed / middle:.0f} |')
