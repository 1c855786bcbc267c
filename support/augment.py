"""
Pictures in, pictures out: the augmentation of table 4 as plain functions of an explicit random generator.

    python augment.py FOLDER [page.png]        a page of augmented pictures, to look at

One sample, a PIL image in RGB; rng is np.random.default_rng((seed, epoch, index)), so that neither the number of
workers nor a resume changes it. train_view() is the recipe: crop, flip, RandAugment, in timm's order.

    random_resized_crop    area 0.08 to 1 of the picture, uniform; ratio 3/4 to 4/3, log-uniform; bicubic
    hflip                  with p = 0.5
    rand_augment           timm's rand-m9-mstd0.5-inc1: 2 of 15 operations, uniform with replacement, each applied
                           with p = 0.5 at a magnitude m ~ N(9, 0.5), clipped to [0, 10]; f = m / 10

        | operation                        | argument, +- is a random sign   | at m = 9     |
        |----------------------------------|---------------------------------|--------------|
        | AutoContrast, Equalize, Invert   | none                            |              |
        | Rotate                           | +-30 f degrees                  | +-27         |
        | ShearX, ShearY                   | +-0.3 f, about the top left     | +-0.27       |
        | TranslateX, TranslateY           | +-0.45 f of width, height       | +-0.405      |
        | Color, Contrast,                 | factor 1 +- 0.9 f, >= 0.1       | 0.19 or 1.81 |
        | Brightness, Sharpness            |                                 |              |
        | Posterize                        | keep 4 - int(4 f) bits          | 1            |
        | Solarize                         | invert from 256 - int(256 f) up | 26           |
        | SolarizeAdd                      | add int(110 f) below 128        | 99           |

    eval_crop              short side to size * 8 / 7 (256 for 224), centre crop; bicubic

A batch, a tensor (B, C, H, W). small_offsets() draws for a whole epoch or a whole global batch; slice what it gives.

    pad_crop_flip          shift by -4 to 4 pixels each way, flip with p = 0.5, for small pictures
    mix                    mixup, lam ~ Beta(0.8, 0.8), or cutmix, lam ~ Beta(1, 1), each with p = 0.5

paper: only the names and 'RandAugment (9, 0.5)', 'mixup 0.8', 'cutmix 1.0' in table 4. here: the ranges of timm.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
FILL = (124, 116, 104)  # round(255 * ImageNet's mean): what rotation, shear and translation uncover

# -----------------------------------------------------------------------------
# one sample

def random_resized_crop(image, rng, size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A part of the picture with random area and aspect ratio, resized to (size, size)."""
    W, H = image.size
    for _ in range(10):  # a long picture may not hold the part that was drawn
        area = rng.uniform(*scale) * W * H
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= W and h <= H:
            left, top = int(rng.integers(W - w + 1)), int(rng.integers(H - h + 1))
            break
    else:  # the largest part in the middle with an allowed ratio
        w, h = min(W, round(H * ratio[1])), min(H, round(W / ratio[0]))
        left, top = (W - w) // 2, (H - h) // 2
    # not resize(box=...): its filter would read pixels from outside the box
    return image.crop((left, top, left + w, top + h)).resize((size, size), BICUBIC)


def hflip(image, rng, p=0.5):
    return ImageOps.mirror(image) if rng.random() < p else image


def affine(image, a, b, c, d, e, f):
    """Output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), BICUBIC, fillcolor=FILL)


# name: (argument from f = m / 10 and a random sign s, the operation on a picture with that argument)
OPS = {
    'AutoContrast': (lambda f, s: None, lambda x, _: ImageOps.autocontrast(x)),
    'Equalize': (lambda f, s: None, lambda x, _: ImageOps.equalize(x)),
    'Invert': (lambda f, s: None, lambda x, _: ImageOps.invert(x)),
    'Rotate': (lambda f, s: 30 * f * s, lambda x, v: x.rotate(v, BICUBIC, fillcolor=FILL)),
    'ShearX': (lambda f, s: 0.3 * f * s, lambda x, v: affine(x, 1, v, 0, 0, 1, 0)),
    'ShearY': (lambda f, s: 0.3 * f * s, lambda x, v: affine(x, 1, 0, 0, v, 1, 0)),
    'TranslateX': (lambda f, s: 0.45 * f * s, lambda x, v: affine(x, 1, 0, v * x.width, 0, 1, 0)),
    'TranslateY': (lambda f, s: 0.45 * f * s, lambda x, v: affine(x, 1, 0, 0, 0, 1, v * x.height)),
    'Color': (lambda f, s: max(0.1, 1 + 0.9 * f * s), lambda x, v: ImageEnhance.Color(x).enhance(v)),
    'Contrast': (lambda f, s: max(0.1, 1 + 0.9 * f * s), lambda x, v: ImageEnhance.Contrast(x).enhance(v)),
    'Brightness': (lambda f, s: max(0.1, 1 + 0.9 * f * s), lambda x, v: ImageEnhance.Brightness(x).enhance(v)),
    'Sharpness': (lambda f, s: max(0.1, 1 + 0.9 * f * s), lambda x, v: ImageEnhance.Sharpness(x).enhance(v)),
    'Posterize': (lambda f, s: 4 - int(4 * f),  # Pillow's own refuses the 0 bits of m = 10, a black picture
                  lambda x, v: x.point([i >> (8 - v) << (8 - v) for i in range(256)] * 3)),
    'Solarize': (lambda f, s: 256 - int(256 * f), ImageOps.solarize),
    'SolarizeAdd': (lambda f, s: int(110 * f),
                    lambda x, v: x.point([min(255, i + v) if i < 128 else i for i in range(256)] * 3)),
}


def rand_augment(image, rng, magnitude=9.0, std=0.5, n=2, p=0.5):
    """The table above."""
    for name in rng.choice(list(OPS), n):
        if rng.random() < p:
            m = min(max(rng.normal(magnitude, std), 0.0), 10.0)
            argument, operation = OPS[name]
            image = operation(image, argument(m / 10, rng.choice((-1, 1))))
    return image


def train_view(image, rng, size=224, least=0.08, magnitude=9.0):
    """The recipe for one training sample; least: the smallest share of the picture, magnitude 0: no RandAugment."""
    image = hflip(random_resized_crop(image, rng, size, (least, 1.0)), rng)
    return rand_augment(image, rng, magnitude) if magnitude else image


def eval_crop(image, size=224):
    """Short side to size * 8 / 7, small pictures enlarged, then the centre (size, size)."""
    short = size * 8 // 7
    W, H = image.size
    w, h = (short, short * H // W) if W <= H else (short * W // H, short)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), BICUBIC).crop((left, top, left + size, top + size))


def to_tensor(image):
    """A PIL image in RGB as a uint8 tensor (3, H, W): a quarter of the bytes that float32 would send on."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

# -----------------------------------------------------------------------------
# a batch

def normalize(images, mean, std):
    """uint8 (B, 3, H, W) to float32 with the mean and std of a data set's meta.json."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - mean) / std


def small_offsets(rng, n, pad=4):
    """For each of n samples (dy, dx, flip), an int64 tensor (n, 3): -pad <= dy, dx <= pad, flip 0 or 1."""
    return torch.from_numpy(rng.integers((-pad, -pad, 0), (pad, pad, 1), size=(n, 3), endpoint=True))


def pad_crop_flip(images, offsets):
    """
    Shift each of images (B, C, H, W), of any dtype, by its row of small_offsets(), and mirror it where flip is 1. The
    border is reflected: a black one would be a feature that no test picture has, and would move mean and std.
    """
    B, C, H, W = images.shape
    dy, dx, flip = offsets.to(images.device, non_blocking=images.is_cuda).unsqueeze(-1).unbind(1)  # (B, 1) each
    rows, cols = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    rows = (H - 1) - ((H - 1) - (rows + dy).abs()).abs()  # (B, H), reflected at both ends
    cols = torch.where(flip == 1, W - 1 - cols, cols)  # the shifted picture is what is mirrored
    cols = (W - 1) - ((W - 1) - (cols + dx).abs()).abs()  # (B, W)
    sample, channel = torch.arange(B, device=images.device), torch.arange(C, device=images.device)
    return images[sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], cols[:, None, None]]


def mix(images, labels, rng, mixup=0.8, cutmix=1.0, switch=0.5):
    """
    Mix each of images (B, C, H, W), floats, with its partner, the sample at position XOR 1. Returns (images, labels
    of the partners, lam), for mixed_loss(). mixup and cutmix are the parameters of their Beta distributions, 0 is
    without; with both it is cutmix with probability switch.

    Which of them, lam and the box are drawn once for the whole global batch, as in timm, and not from its size: a new
    generator of (seed, iteration) in each process and micro step gives all parts of the batch the same ones. A part
    has to be even and to start at an even position, else it lacks a partner.
    """
    B, C, H, W = images.shape
    if B % 2:
        raise ValueError(f'{B} images cannot be mixed in pairs: a micro batch has to be even')
    cut = cutmix > 0 and (mixup == 0 or rng.random() < switch)
    if not cut and mixup == 0:
        return images, labels, 1.0
    lam = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    partner = torch.arange(B, device=images.device) ^ 1
    if cut:
        # a box of the picture's shape and 1 - lam of its area around any pixel; what the border leaves of it counts
        h, w = int(H * math.sqrt(1 - lam)), int(W * math.sqrt(1 - lam))
        y, x = int(rng.integers(H)), int(rng.integers(W))
        top, bottom = max(0, y - h // 2), min(H, y + h // 2)
        left, right = max(0, x - w // 2), min(W, x + w // 2)
        lam = 1 - (bottom - top) * (right - left) / (H * W)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    else:
        mixed = lam * images + (1 - lam) * images[partner]
    return mixed, labels[partner], lam


def mixed_loss(logits, labels, partners, lam, label_smoothing=0.1):
    """Mean cross entropy against lam * smoothed label + (1 - lam) * smoothed partner's, without the one-hots."""
    logits = logits.float()
    return (lam * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            + (1 - lam) * F.cross_entropy(logits, partners, label_smoothing=label_smoothing))

# -----------------------------------------------------------------------------

def page(paths, size=112, views=5):
    """A row for each picture: evaluation crop, training views, mixup, cutmix (with the neighbouring row's)."""
    pictures = [Image.open(path).convert('RGB') for path in paths]
    crops = [eval_crop(picture, size) for picture in pictures]
    batch = torch.stack([to_tensor(crop) for crop in crops]).float()  # (B, 3, H, W)
    both = [mix(batch, torch.arange(len(batch)), np.random.default_rng((1, 0)), **kind)[0]
            for kind in (dict(mixup=0.8, cutmix=0), dict(mixup=0, cutmix=1.0))]
    sheet = Image.new('RGB', ((views + 3) * (size + 2), len(pictures) * (size + 2)), 'white')
    for i, picture in enumerate(pictures):
        row = [crops[i]] + [train_view(picture, np.random.default_rng((0, v, i)), size) for v in range(views)]
        row += [Image.fromarray(mixed[i].byte().permute(1, 2, 0).numpy()) for mixed in both]
        for j, tile in enumerate(row):
            sheet.paste(tile, (j * (size + 2), i * (size + 2)))
    return sheet


if __name__ == '__main__':
    files = sorted(p for p in Path(sys.argv[1]).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png')) \
        if len(sys.argv) > 1 else []
    if len(files) < 6:
        sys.exit('python augment.py FOLDER [page.png]: the folder has to hold at least 6 pictures (jpg, jpeg, png)')
    out = sys.argv[2] if len(sys.argv) > 2 else 'augment.png'
    page(files[:: len(files) // 6][:6]).quantize(256).save(out, optimize=True)
    print(out)
