"""
Any picture file -> the RGB picture that a data set stores. prepare_imagenet.py and train_vit.py --predict
both call this file, so that a model is asked about the pixels that it would have been trained on.

Grey, palette, CMYK and alpha become RGB; transparency is dropped, and of several frames the first counts. The
rotation in EXIF is ignored, as timm and torchvision do. Of 16 bits a channel the upper 8 are kept. Other
depths raise ValueError, because they do not tell what black and white are. So do 16-bit files whose values
all lie in the lowest quarter, as 10, 12 or 14 bits of a camera do.
"""

import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

ENDINGS = set('.jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2'.split())
ORIENTATION, PHOTOMETRIC = 0x0112, 262  # tags
logging.getLogger('PIL').setLevel(logging.CRITICAL)  # what is wrong with a file is said by who asked for it
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # a long text loses no picture


class OtherSize(Exception):
    """The pictures are not all of one small size."""


def quiet():
    """Pillow warns about odd metadata and many pixels."""
    return warnings.catch_warnings(action='ignore')


def is_picture(path):
    return os.path.splitext(path)[1].lower() in ENDINGS


def open_picture(source):
    """A path, the bytes of a file, or a PIL image -> (PIL image, not decoded; bytes or None)"""
    if isinstance(source, Image.Image):
        return source, None
    raw = source if isinstance(source, bytes) else Path(source).read_bytes()
    if raw.startswith(b'version https://git-lfs'):
        raise ValueError('a pointer of git-lfs; `git lfs pull` fetches the picture')
    try:
        with quiet():
            return Image.open(io.BytesIO(raw)), raw
    except UnidentifiedImageError:  # its message has an address in memory
        raise ValueError('Pillow cannot read this format' if raw else 'the file is empty') from None


def to_rgb(image):
    """A PIL image in RGB, 8 bits a channel."""
    packing = str([tile[3] for tile in getattr(image, 'tile', ())])  # how the file packs its samples: 'I;16B'
    with quiet():
        image.load()
    plain = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
    if image.format == 'TIFF':
        plain = plain and ';12' not in packing and image.tag_v2.get(PHOTOMETRIC) != 0
    if plain:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in 'IF':
        raise ValueError('of more than 8 bits a channel, only plain 16-bit grey says what black and white '
                         'are; save 8 bits')
    rgb = image.convert('RGB')
    if plain or ';16' in packing or '65535' in packing:
        highest = max(high for _, high in rgb.getextrema())
        if highest < 64:
            raise ValueError(f'the highest 16-bit value is about {highest * 256} of 65535, so it may be 10, '
                             '12 or 14 bits; scale the values to 16 bits, or save 8 bits')
    return rgb


def stored(source, size=None, short=256, quality=95):
    """
    What a data set stores of a picture: (bytes, RGB picture). For an array, size is the (W, H) of all its
    pictures, and the bytes are pixels. Else they are a JPEG: the file itself if it is an RGB JPEG with a
    short side of at most short pixels (0: of any size), or a new one of that short side and quality. The RGB
    picture is from before the compression.
    """
    image, raw = open_picture(source)
    keep = raw and image.format == 'JPEG' and image.mode == 'RGB'
    rgb = to_rgb(image)
    W, H = rgb.size
    if size and (W, H) != tuple(size):
        raise OtherSize
    if size:
        return rgb.tobytes(), rgb
    if short and min(W, H) > short:
        w, h = (short, short * H // W) if W <= H else (short * W // H, short)
        rgb = rgb.resize((w, h), Image.Resampling.BICUBIC)
    elif keep:
        with quiet():
            turned = image.getexif().get(ORIENTATION, 1) != 1
        if not turned:  # else some reader of the bytes would turn it
            return raw, rgb
    if len(rgb.info.get('comment', b'')) > 65_000:  # a JPEG has no room for more
        del rgb.info['comment']
    out = io.BytesIO()
    rgb.save(out, 'JPEG', quality=quality)
    return out.getvalue(), rgb

