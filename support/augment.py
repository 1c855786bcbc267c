"""
The augmentation of table 4 as plain functions of a random generator: pictures in, pictures out.

    python -m support.augment FOLDER page.png        draws a page of augmented pictures

The first functions take one picture, a PIL image in RGB. rng is default_rng((seed, 1, epoch, index)) of
np.random, so a picture does not depend on the number of workers or on a resume. The others take a batch,
(B, C, H, W).

The paper gives the names, 'RandAugment (9, 0.5)', 'mixup 0.8' and 'cutmix 1.0' (table 4). Order and ranges
are timm's. CutMix equals that of timm up to 1.0.29. timm 1.0.31 rounds the box up.
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from support.console import reason
from support.pictures import is_picture, open_picture, to_rgb
from support.textfiles import find_files

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
FILL = (124, 116, 104)  # round(255 * ImageNet's mean), for pixels that rotation, shear or translation uncover

# -----------------------------------------------------------------------------
# one picture

def draw_filter(rng, interpolation):
    """'bicubic', or 'random': bilinear half of the time, drawn for each crop and operation, as in timm."""
    return BILINEAR if interpolation == 'random' and rng.random() < 0.5 else BICUBIC


def random_resized_crop(image, rng, size=224, scale=(0.08, 1.0), interpolation='bicubic'):
    """A part, of (size, size): its share of the area uniform in scale, its ratio log-uniform, 3/4 to 4/3."""
    W, H = image.size
    for _ in range(10):  # the part may be longer than the picture
        area = rng.uniform(*scale) * W * H
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = max(1, round(math.sqrt(area * aspect)))
        h = max(1, round(math.sqrt(area / aspect)))
        if w <= W and h <= H:
            left = int(rng.integers(W - w + 1))
            top = int(rng.integers(H - h + 1))
            break
    else:  # the largest part in the middle with an allowed ratio
        w, h = min(W, round(H * 4 / 3)), min(H, round(W * 4 / 3))
        left, top = (W - w) // 2, (H - h) // 2
    # crop first: the filter of resize(box=...) would read pixels from outside the box
    part = image.crop((left, top, left + w, top + h))
    return part.resize((size, size), draw_filter(rng, interpolation))


def affine(image, resample, a, b, c, d, e, f):
    """The output's pixel (x, y) is the input's pixel (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample, fillcolor=FILL)


def factor(f, s):
    return max(0.1, 1 + 0.9 * f * s)


# name: (its argument from f = m / 10 and a random sign s, the operation on a picture x with argument v and a
# filter r, which only the geometric ones need)
OPS = {
    'AutoContrast': (lambda f, s: None, lambda x, v, r: ImageOps.autocontrast(x)),
    'Equalize': (lambda f, s: None, lambda x, v, r: ImageOps.equalize(x)),
    'Invert': (lambda f, s: None, lambda x, v, r: ImageOps.invert(x)),
    'Rotate': (lambda f, s: 30 * f * s, lambda x, v, r: x.rotate(v, r, fillcolor=FILL)),
    'ShearX': (lambda f, s: 0.3 * f * s, lambda x, v, r: affine(x, r, 1, v, 0, 0, 1, 0)),
    'ShearY': (lambda f, s: 0.3 * f * s, lambda x, v, r: affine(x, r, 1, 0, 0, v, 1, 0)),
    'TranslateX': (lambda f, s: 0.45 * f * s, lambda x, v, r: affine(x, r, 1, 0, v * x.width, 0, 1, 0)),
    'TranslateY': (lambda f, s: 0.45 * f * s, lambda x, v, r: affine(x, r, 1, 0, 0, 0, 1, v * x.height)),
    'Color': (factor, lambda x, v, r: ImageEnhance.Color(x).enhance(v)),
    'Contrast': (factor, lambda x, v, r: ImageEnhance.Contrast(x).enhance(v)),
    'Brightness': (factor, lambda x, v, r: ImageEnhance.Brightness(x).enhance(v)),
    'Sharpness': (factor, lambda x, v, r: ImageEnhance.Sharpness(x).enhance(v)),
    'Posterize': (lambda f, s: 4 - int(4 * f),  # ImageOps.posterize refuses 0 bits, which is m = 10
                  lambda x, v, r: x.point([i >> (8 - v) << (8 - v) for i in range(256)] * 3)),
    'Solarize': (lambda f, s: 256 - int(256 * f), lambda x, v, r: ImageOps.solarize(x, v)),
    'SolarizeAdd': (lambda f, s: int(110 * f),
                    lambda x, v, r: x.point([min(255, i + v) if i < 128 else i for i in range(256)] * 3)),
}


def rand_augment(image, rng, magnitude=9.0, interpolation='bicubic'):
    """timm's rand-m9-mstd0.5-inc1: two of the operations, each with p = 0.5, at m ~ N(magnitude, 0.5)."""
    for name in rng.choice(list(OPS), 2):
        if rng.random() < 0.5:
            m = min(max(rng.normal(magnitude, 0.5), 0.0), 10.0)
            sign = rng.choice((-1, 1))
            argument, operation = OPS[name]
            image = operation(image, argument(m / 10, sign), draw_filter(rng, interpolation))
    return image


def train_view(image, rng, size=224, least=0.08, magnitude=9.0, interpolation='bicubic'):
    """
    One training sample of (size, size). least: the smallest share of the area that a crop keeps. magnitude:
    that of RandAugment; 0 turns it off. interpolation: 'bicubic', or 'random' (see draw_filter).
    """
    image = random_resized_crop(image, rng, size, (least, 1.0), interpolation)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return rand_augment(image, rng, magnitude, interpolation) if magnitude else image


def eval_crop(image, size=224):
    """The short side resized to size * 8 / 7 (256 for 224), bicubic, then the center (size, size)."""
    W, H = image.size
    w, h = min(W, 8 * H), min(H, 8 * W)
    if (w, h) != (W, H):  # of a very long picture, its middle: all of it may not fit into memory
        left, top = (W - w) // 2, (H - h) // 2
        image = image.crop((left, top, left + w, top + h))
    short = size * 8 // 7
    w, h = short * w // min(w, h), short * h // min(w, h)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), BICUBIC).crop((left, top, left + size, top + size))


def to_tensor(image):
    """The picture as a uint8 tensor (3, H, W). float32 would be four times the bytes to send."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

# -----------------------------------------------------------------------------
# a batch

def batch_views(order, first, size, repeats):
    """
    The samples first to first + size of an epoch that shows each picture of order `repeats` times in a row,
    as timm's RepeatAugSampler does (arXiv:1901.09335). View v of picture i among N is sample v N + i. All
    first views come first, then the second ones: mix() pairs neighbors, which should be different pictures.
    """
    places = np.arange(first, first + size)
    places = np.concatenate([places[view::repeats] for view in range(repeats)])
    return order[places // repeats] + places % repeats * len(order)


def small_offsets(rng, n, pad=4):
    """(dy, dx, flip) for each of n samples, int64 (n, 3): dy and dx from -pad to pad, flip 0 or 1."""
    return torch.from_numpy(rng.integers((-pad, -pad, 0), (pad, pad, 1), size=(n, 3), endpoint=True))


def pad_crop_flip(images, offsets):
    """
    Shift each of images (B, C, H, W) by its row of small_offsets(), (B, 3), and mirror it where flip is 1.
    The border is reflected, because a black one would change mean and std.
    """
    B, C, H, W = images.shape
    offsets = offsets.to(images.device, non_blocking=images.is_cuda)
    dy, dx, flip = offsets.unsqueeze(-1).unbind(1)  # (B, 1) each
    rows = torch.arange(H, device=images.device)
    cols = torch.arange(W, device=images.device)
    rows = (H - 1) - ((H - 1) - (rows + dy).abs()).abs()  # (B, H), reflected at both ends
    cols = torch.where(flip == 1, W - 1 - cols, cols)  # the shift comes first, then the mirror
    cols = (W - 1) - ((W - 1) - (cols + dx).abs()).abs()  # (B, W)
    sample = torch.arange(B, device=images.device)[:, None, None, None]
    channel = torch.arange(C, device=images.device)[:, None, None]
    return images[sample, channel, rows[:, None, :, None], cols[:, None, None]]


def mix(images, labels, rng, mixup=0.8, cutmix=1.0):
    """
    Mix each of images, floats (B, C, H, W), with its partner, the sample at position XOR 1. Returns (images,
    labels of the partners (B,), lam) for mixed_loss(). lam ~ Beta(mixup, mixup), or Beta(cutmix, cutmix) for
    the area of cutmix; 0 turns one off. With both on, a batch gets either with probability 0.5.

    As in timm, the whole global batch has one kind, one lam and one box. They do not depend on the batch
    size, so each process and micro step draws the same ones from a new generator of (seed, iteration). A part
    of the global batch must be even and start at an even position, so that each sample has its partner.
    """
    B, C, H, W = images.shape
    if B % 2:
        raise ValueError(f'{B} images cannot be mixed in pairs. Use an even --micro_batch_size.')
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    if not cut and mixup == 0:
        return images, labels, 1.0
    alpha = cutmix if cut else mixup
    lam = float(rng.beta(alpha, alpha))
    partner = torch.arange(B, device=images.device) ^ 1
    if cut:
        # a box of the picture's shape and 1 - lam of its area, around any pixel; what is inside then sets lam
        h = int(H * math.sqrt(1 - lam))
        w = int(W * math.sqrt(1 - lam))
        y = int(rng.integers(H))
        x = int(rng.integers(W))
        top, bottom = max(0, y - h // 2), min(H, y + h // 2)
        left, right = max(0, x - w // 2), min(W, x + w // 2)
        lam = 1 - (bottom - top) * (right - left) / (H * W)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    else:
        mixed = lam * images + (1 - lam) * images[partner]
    return mixed, labels[partner], lam


def mixed_loss(logits, labels, partners, lam, label_smoothing=0.1):
    """Mean cross entropy of logits (B, classes) against lam label + (1 - lam) partner's, both smoothed."""
    logits = logits.float()
    return (lam * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            + (1 - lam) * F.cross_entropy(logits, partners, label_smoothing=label_smoothing))

# -----------------------------------------------------------------------------
# the page: a row for each picture, with evaluation crop, five views, mixup and cutmix with a neighboring row

if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('A folder and a page are needed. Use python -m support.augment FOLDER page.png.')
    folder, out = sys.argv[1:]
    size, files = 112, list(filter(is_picture, find_files(folder)[0]))
    if len(files) < 6:
        sys.exit(f'A page needs at least 6 pictures, not {len(files)}. Give another folder.')
    try:
        pictures = [to_rgb(open_picture(path)[0]) for path in files[::len(files) // 6][:6]]
    except (OSError, ValueError) as e:
        sys.exit(f'A picture of {folder} cannot be read ({reason(e)}). Give another folder.')
    crops = [eval_crop(picture, size) for picture in pictures]
    columns = [crops]
    for view in range(5):
        rngs = [np.random.default_rng((0, view, i)) for i in range(6)]
        columns.append([train_view(picture, rng, size) for picture, rng in zip(pictures, rngs)])
    batch = torch.stack([to_tensor(crop) for crop in crops]).float()  # (B, 3, H, W)
    for kind in (dict(cutmix=0), dict(mixup=0)):
        mixed = mix(batch, batch, np.random.default_rng((1, 0)), **kind)[0]
        columns.append(map(Image.fromarray, mixed.byte().permute(0, 2, 3, 1).numpy()))
    sheet = Image.new('RGB', (8 * (size + 2), 6 * (size + 2)), 'white')
    for j, column in enumerate(columns):
        for i, tile in enumerate(column):
            sheet.paste(tile, (j * (size + 2), i * (size + 2)))
    try:
        sheet.quantize(256).save(out, optimize=True)
    except (OSError, ValueError) as e:
        sys.exit(f'Cannot write {out} ({reason(e)}). Give another page, a .png.')
