"""
Any picture file -> the RGB picture that a data set stores, and that train_vit.py --predict looks at.

Grey, palette, CMYK and alpha become RGB; transparency is dropped, and of several frames the first counts. The
rotation in EXIF is ignored, as timm and torchvision do; Pillow itself turns a TIFF. Of 16 bits a channel the
upper 8 are kept, unless all values lie in the lowest quarter, as 10, 12 or 14 bits of a camera do. That and
other depths raise ValueError.
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
warnings.filterwarnings('ignore', module='PIL')
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # a long text loses no picture


def is_picture(path):
    return os.path.splitext(path)[1].lower() in ENDINGS


def open_picture(source):
    """A path or the bytes of a file -> (PIL image, not decoded; the bytes)"""
    raw = source if isinstance(source, bytes) else Path(source).read_bytes()
    if raw.startswith(b'version https://git-lfs'):
        raise ValueError('a pointer of git-lfs; `git lfs pull` fetches the picture')
    try:
        return Image.open(io.BytesIO(raw)), raw
    except UnidentifiedImageError:  # its message has an address in memory
        raise ValueError('Pillow cannot read this format' if raw else 'the file is empty') from None


def to_rgb(image):
    """A PIL image in RGB, 8 bits a channel."""
    packing = str([tile[3] for tile in image.tile])  # of the samples in the file, such as 'RGB;16B' or 65535
    image.load()
    plain = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
    if plain and not (image.format == 'TIFF' and image.tag_v2.get(PHOTOMETRIC) == 0):  # 0: white is 0
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


def stored(source, arrays=False, short=256, quality=95):
    """
    What a data set stores of a picture: (bytes, RGB picture before compression). For arrays, the bytes are
    pixels. Else they are a JPEG: the file itself if it is an RGB JPEG with a short side of at most short
    pixels (0: of any size), or a new one of that short side and quality.
    """
    image, raw = open_picture(source)
    rgb = to_rgb(image)
    if arrays:
        return rgb.tobytes(), rgb
    least = min(rgb.size)
    if short and least > short:
        W, H = rgb.size
        rgb = rgb.resize((short * W // least, short * H // least), Image.Resampling.BICUBIC)
    elif image.format == 'JPEG' and image.mode == 'RGB':
        if image.getexif().get(ORIENTATION, 1) == 1:  # else some reader of the bytes would turn it
            return raw, rgb
    rgb.info.pop('comment', None)  # a JPEG has no room for a long one
    out = io.BytesIO()
    rgb.save(out, 'JPEG', quality=quality)
    return out.getvalue(), rgb
