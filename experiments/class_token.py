"""
Does it matter at which deviation class token and positions of a V-DNT start? 0.5, our default, against 0.02.

    python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000
    python -m experiments.class_token       # 30 short runs of a V-DNT of depth 2 and width 48, in pairs
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from model import SETTINGS, ViT, ViTConfig
from sgdw import SGDW
from support import augment
from support.optim import param_groups

dataset = 'data/cifar10'  # as prepared above
seeds = 3  # 1, 2, ...
iters = 300  # updates, of which 50 are warmup

ARMS = (('sgdw', 0.05, 0.0), ('sgdw', 0.05, 1.0), ('adamw', 1e-3, 0.0), ('sgdw', 0.2, 0.0),
        ('sgdw', 0.5, 0.0))  # optimizer, rate, clipping
BATCH, WARMUP = 32, 50


def run(seed, name, rate, clip, std, data):
    """
    (validation loss, share that class token and its position have of the squared norm of the first gradient,
    their RMS after 50 updates) of one run.
    """
    images, labels, val_images, val_labels, mean, std_of_pixels = data
    torch.manual_seed(seed)
    model = ViT(ViTConfig(**SETTINGS['S5'], n_embd=48, n_head=3, n_layer=2, image_size=32, patch_size=8,
                          n_classes=10, embed_std=std))
    if name == 'sgdw':
        opt = SGDW(param_groups(model, 1e-3), lr=rate)
    else:
        opt = torch.optim.AdamW(param_groups(model, 0.1), lr=rate, betas=(0.9, 0.99))
    order = np.random.default_rng((seed, 0)).permutation(len(labels))
    offsets = augment.small_offsets(np.random.default_rng((seed, 1)), len(labels), 2)
    for i in range(iters):
        if i == 50:
            length = (model.cls_token[0, 0] + model.pos_embed[0, 0]).detach().square().mean().sqrt().item()
        index = order[i * BATCH:(i + 1) * BATCH]
        x = augment.pad_crop_flip(images[index].permute(0, 3, 1, 2), offsets[index])
        logits = model(augment.normalize(x, mean, std_of_pixels))
        opt.zero_grad()
        F.cross_entropy(logits, labels[index], label_smoothing=0.1).backward()
        if i == 0:
            squares = sum(p.grad.square().sum() for p in model.parameters())
            token = model.cls_token.grad.square().sum() + model.pos_embed.grad[0, 0].square().sum()
            share = (token / squares).item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        lr = rate * (i + 1) / (WARMUP + 1)
        if i >= WARMUP:
            lr = 0.5 * rate * (1 + math.cos(math.pi * (i - WARMUP) / (iters - WARMUP)))
        for group in opt.param_groups:
            group['lr'] = lr
        opt.step()
    model.eval()
    logits = []
    with torch.no_grad():
        for batch in val_images.split(500):
            logits.append(model(augment.normalize(batch.permute(0, 3, 1, 2), mean, std_of_pixels)))
    return F.cross_entropy(torch.cat(logits), val_labels).item(), share, length


if __name__ == '__main__':
    configure(globals())
    torch.set_num_threads(1)
    arrays = []
    for file in ('train_images', 'train_labels', 'val_images', 'val_labels'):
        arrays.append(torch.from_numpy(np.load(f'{dataset}/{file}.npy', mmap_mode='c')))
    with open(f'{dataset}/meta.json', encoding='utf-8') as f:
        meta = json.load(f)
    for name, rate, clip in ARMS:
        for seed in range(1, seeds + 1):
            data = *arrays, meta['mean'], meta['std']
            long, long_share, _ = run(seed, name, rate, clip, 0.5, data)
            short, share, length = run(seed, name, rate, clip, 0.02, data)
            print(f'{name} {rate:g}, clipping {clip:g}, seed {seed}: loss {short:.4f} from 0.02, {long:.4f} '
                  f'from 0.5, difference {short - long:+.3f}; share {share:.2f} and {long_share:.4f}; '
                  f'length after 50 updates from 0.02: {length:.2f}', flush=True)
