"""
The augmentation of table 4 as plain functions of a random generator: pictures in, pictures out.

    python -m support.augment FOLDER [page.png]        draws augmented pictures (default: augment.png)

The first functions take one picture, a PIL image in RGB. rng is np.random.default_rng((seed, epoch, index)),
so a picture does not depend on the number of workers or on a resume. train_view() is the training recipe:
crop, flip and RandAugment, in timm's order.

    random_resized_crop    area 0.08 to 1 of the picture, uniform; ratio 3/4 to 4/3, log-uniform; bicubic
    hflip                  with p = 0.5
    rand_augment           timm's rand-m9-mstd0.5-inc1: 2 of 15 operations, uniform with replacement, each
                           applied with p = 0.5 at a magnitude m ~ N(9, 0.5), clipped to [0, 10]; f = m / 10

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

    eval_crop              short side to size * 8 / 7 (256 for 224), center crop; bicubic

The others take a batch, a tensor (B, C, H, W). small_offsets() draws for a whole epoch or a whole global
batch; take the slice that you need.

    pad_crop_flip          shift by -4 to 4 pixels each way, flip with p = 0.5, for small pictures
    mix                    mixup, lam ~ Beta(0.8, 0.8), or cutmix, lam ~ Beta(1, 1), each with p = 0.5

The paper gives the names, 'RandAugment (9, 0.5)', 'mixup 0.8' and 'cutmix 1.0' (table 4). All ranges are
timm's. CutMix equals that of timm up to 1.0.29. timm 1.0.31 rounds the box up.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
FILL = (124, 116, 104)  # round(255 * ImageNet's mean), for pixels that rotation, shear or translation uncover

# -----------------------------------------------------------------------------
# one picture

def draw_filter(rng: np.random.Generator, interpolation: str) -> Image.Resampling:
    """'bicubic', or 'random': bilinear half of the time, drawn for each crop and operation, as in timm."""
    return BILINEAR if interpolation == 'random' and rng.random() < 0.5 else BICUBIC


def random_resized_crop(image: Image.Image, rng: np.random.Generator, size: int = 224,
                        scale: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3),
                        interpolation: str = 'bicubic') -> Image.Image:
    """A part of the picture with a random share of its area and a random ratio, resized to (size, size)."""
    W, H = image.size
    for _ in range(10):  # the part may be longer than the picture
        area = rng.uniform(*scale) * W * H
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = max(1, round(math.sqrt(area * aspect)))
        h = max(1, round(math.sqrt(area / aspect)))
        if w <= W and h <= H:
            left = int(rng.integers(W - w + 1))
            top = int(rng.integers(H - h + 1))
            break
    else:  # the largest part in the middle with an allowed ratio
        w = min(W, round(H * ratio[1]))
        h = min(H, round(W / ratio[0]))
        left = (W - w) // 2
        top = (H - h) // 2
    # crop first: the filter of resize(box=...) would read pixels from outside the box
    part = image.crop((left, top, left + w, top + h))
    return part.resize((size, size), draw_filter(rng, interpolation))


def hflip(image: Image.Image, rng: np.random.Generator, p: float = 0.5) -> Image.Image:
    """The picture, or with probability p its mirror image."""
    return ImageOps.mirror(image) if rng.random() < p else image


def affine(image, resample, a, b, c, d, e, f):
    """The output's pixel (x, y) is the input's pixel (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample, fillcolor=FILL)


def enhance(kind):
    """Argument and operation, as in OPS, of a class of ImageEnhance."""
    return lambda f, s: max(0.1, 1 + 0.9 * f * s), lambda x, v, _: kind(x).enhance(v)


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
    'Color': enhance(ImageEnhance.Color),
    'Contrast': enhance(ImageEnhance.Contrast),
    'Brightness': enhance(ImageEnhance.Brightness),
    'Sharpness': enhance(ImageEnhance.Sharpness),
    'Posterize': (lambda f, s: 4 - int(4 * f),  # ImageOps.posterize refuses 0 bits, which is m = 10
                  lambda x, v, r: x.point([i >> (8 - v) << (8 - v) for i in range(256)] * 3)),
    'Solarize': (lambda f, s: 256 - int(256 * f), lambda x, v, r: ImageOps.solarize(x, v)),
    'SolarizeAdd': (lambda f, s: int(110 * f),
                    lambda x, v, r: x.point([min(255, i + v) if i < 128 else i for i in range(256)] * 3)),
}


def rand_augment(image: Image.Image, rng: np.random.Generator, magnitude: float = 9.0, std: float = 0.5,
                 n: int = 2, p: float = 0.5, interpolation: str = 'bicubic') -> Image.Image:
    """n operations of the table above, each applied with probability p at m ~ N(magnitude, std)."""
    for name in rng.choice(list(OPS), n):
        if rng.random() < p:
            m = min(max(rng.normal(magnitude, std), 0.0), 10.0)
            sign = rng.choice((-1, 1))
            argument, operation = OPS[name]
            image = operation(image, argument(m / 10, sign), draw_filter(rng, interpolation))
    return image


def train_view(image: Image.Image, rng: np.random.Generator, size: int = 224, least: float = 0.08,
               magnitude: float = 9.0, interpolation: str = 'bicubic') -> Image.Image:
    """
    One training sample of (size, size). least: the smallest share of the area that a crop keeps. magnitude:
    that of RandAugment; 0 turns it off. interpolation: 'bicubic', or 'random' (see draw_filter).
    """
    image = random_resized_crop(image, rng, size, (least, 1.0), interpolation=interpolation)
    image = hflip(image, rng)
    return rand_augment(image, rng, magnitude, interpolation=interpolation) if magnitude else image


def eval_crop(image: Image.Image, size: int = 224) -> Image.Image:
    """The short side resized to size * 8 / 7 (small pictures are enlarged), then the center (size, size)."""
    short = size * 8 // 7
    W, H = image.size
    if max(W, H) > 8 * min(W, H):  # of a very long picture, its middle: all of it may not fit into memory
        w, h = min(W, 8 * H), min(H, 8 * W)
        left, top = (W - w) // 2, (H - h) // 2
        image = image.crop((left, top, left + w, top + h))
        W, H = w, h
    if W <= H:
        w, h = short, short * H // W
    else:
        w, h = short * W // H, short
    left = round((w - size) / 2)
    top = round((h - size) / 2)
    return image.resize((w, h), BICUBIC).crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """The picture as a uint8 tensor (3, H, W). float32 would be four times the bytes to send."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

# -----------------------------------------------------------------------------
# a batch

def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 (B, 3, H, W) to float32, by meta.json's mean and std per channel (on the scale of 0 to 1)."""
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def batch_views(order: np.ndarray, first: int, size: int, repeats: int) -> np.ndarray:
    """
    The samples first to first + size of an epoch that shows each picture of order `repeats` times in a row,
    as timm's RepeatAugSampler does (arXiv:1901.09335). View v of picture i among N is sample v N + i. All
    first views come first, then the second ones: mix() pairs neighbors, which should be different pictures.
    """
    places = np.arange(first, first + size)
    places = np.concatenate([places[view::repeats] for view in range(repeats)])
    return order[places // repeats] + places % repeats * len(order)


def small_offsets(rng: np.random.Generator, n: int, pad: int = 4) -> torch.Tensor:
    """(dy, dx, flip) for each of n samples, int64 (n, 3): dy and dx from -pad to pad, flip 0 or 1."""
    return torch.from_numpy(rng.integers((-pad, -pad, 0), (pad, pad, 1), size=(n, 3), endpoint=True))


def pad_crop_flip(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """
    Shift each of images (B, C, H, W) by its row of small_offsets(), (B, 3), and mirror it where flip is 1.
    Any dtype works. The border is reflected, because a black one would change mean and std and would be a
    feature that no test picture has.
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


def mix(images: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator, mixup: float = 0.8,
        cutmix: float = 1.0, switch: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, float]:
    """
    Mix each of images, floats (B, C, H, W), with its partner, the sample at position XOR 1. Returns (images,
    labels of the partners (B,), lam) for mixed_loss(). mixup and cutmix are the parameters of their Beta
    distributions; 0 turns one off. With both on, a batch gets cutmix with probability switch.

    As in timm, the whole global batch has one kind, one lam and one box. They do not depend on the batch
    size, so each process and micro step draws the same ones from a new generator of (seed, iteration). A part
    of the global batch must be even and start at an even position, so that each sample has its partner.
    """
    B, C, H, W = images.shape
    if B % 2:
        raise ValueError(f'{B} images cannot be mixed in pairs. Use an even --micro_batch_size.')
    cut = cutmix > 0 and (mixup == 0 or rng.random() < switch)
    if not cut and mixup == 0:
        return images, labels, 1.0
    alpha = cutmix if cut else mixup
    lam = float(rng.beta(alpha, alpha))
    partner = torch.arange(B, device=images.device) ^ 1
    if cut:
        # a box with the picture's shape and 1 - lam of its area, around any pixel. The part of it inside the
        # picture then sets lam
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


def mixed_loss(logits: torch.Tensor, labels: torch.Tensor, partners: torch.Tensor, lam: float,
               label_smoothing: float = 0.1) -> torch.Tensor:
    """
    Mean cross entropy in nats of logits (B, classes) against lam * label + (1 - lam) * label of the partner,
    both smoothed.
    """
    logits = logits.float()
    return (lam * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            + (1 - lam) * F.cross_entropy(logits, partners, label_smoothing=label_smoothing))

# -----------------------------------------------------------------------------

def page(paths: list[Path], size: int = 112, views: int = 5) -> Image.Image:
    """One row per picture: evaluation crop, training views, mixup and cutmix with a neighboring row."""
    pictures = [Image.open(path).convert('RGB') for path in paths]
    crops = [eval_crop(picture, size) for picture in pictures]
    batch = torch.stack([to_tensor(crop) for crop in crops]).float()  # (B, 3, H, W)
    labels = torch.arange(len(batch))
    mixup = mix(batch, labels, np.random.default_rng((1, 0)), mixup=0.8, cutmix=0)[0]
    cutmix = mix(batch, labels, np.random.default_rng((1, 0)), mixup=0, cutmix=1.0)[0]
    sheet = Image.new('RGB', ((views + 3) * (size + 2), len(pictures) * (size + 2)), 'white')
    for i, picture in enumerate(pictures):
        row = [crops[i]]
        for view in range(views):
            row.append(train_view(picture, np.random.default_rng((0, view, i)), size))
        for mixed in (mixup, cutmix):
            row.append(Image.fromarray(mixed[i].byte().permute(1, 2, 0).numpy()))
        for j, tile in enumerate(row):
            sheet.paste(tile, (j * (size + 2), i * (size + 2)))
    return sheet


if __name__ == '__main__':
    files = []
    if len(sys.argv) > 1:
        for path in sorted(Path(sys.argv[1]).rglob('*')):
            if path.suffix.lower() in ('.jpg', '.jpeg', '.png'):
                files.append(path)
    if len(files) < 6:
        sys.exit(f'A page needs at least 6 pictures (jpg, jpeg, png), not {len(files)}. '
                 'Run python -m support.augment FOLDER [page.png].')
    out = sys.argv[2] if len(sys.argv) > 2 else 'augment.png'
    chosen = files[:: len(files) // 6][:6]
    page(chosen).quantize(256).save(out, optimize=True)
    print(out)
