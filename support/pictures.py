"""
Any picture file -> the RGB picture that a data set stores. prepare_imagenet.py and train_vit.py --predict
both call this file, so that a model is asked about the pixels that it would have been trained on.

Grey, palette, CMYK and alpha become RGB; transparency is dropped, and of several frames the first counts. The
rotation in EXIF is ignored, as timm and torchvision do. Of 16 bits a channel the upper 8 are kept, of a
12-bit TIFF the upper 8 of 12. Some files do not tell what black and white are: 32-bit and signed values, and
16-bit files whose values all lie in the lowest quarter, as 10, 12 or 14 bits of a camera do. They raise
ValueError with the reason.
"""

import io
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.textfiles import find_files
from support.writing import said

ENDINGS = set('.jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2'.split())
logging.getLogger('PIL').setLevel(logging.CRITICAL)  # what is wrong with a file is said by who asked for it


class OtherSize(Exception):
    """The pictures are not all of one small size."""


@contextmanager
def silence(image_format=''):
    """Pillow warns about odd metadata and many pixels, and libtiff writes to standard error on its own."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if image_format != 'TIFF':
            yield
            return
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)


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
        with silence():
            return Image.open(io.BytesIO(without_texts(raw))), raw
    except UnidentifiedImageError:  # its message has an address in memory
        raise ValueError('Pillow cannot read this format' if raw else 'the file is empty') from None


def without_texts(raw):
    """A PNG without texts and color profile, for whose size Pillow would refuse it. Other files stay."""
    if not raw.startswith(b'\x89PNG'):
        return raw
    kept, at = [raw[:8]], 8
    while at < len(raw):
        end = at + 12 + int.from_bytes(raw[at:at + 4], 'big')
        if raw[at + 4:at + 8] not in (b'tEXt', b'zTXt', b'iTXt', b'iCCP'):
            kept.append(raw[at:end])
        at = end
    return b''.join(kept)


def to_rgb(image):
    """A PIL image in RGB, 8 bits a channel."""
    packing = str([tile[3] for tile in getattr(image, 'tile', ())])  # how the file packs its samples: 'I;16B'
    with silence(image.format):
        image.load()
        if image.mode in ('I', 'F') and image.format not in ('PNG', 'PPM'):  # whose I is 16 bits
            raise ValueError('32-bit or signed values do not say what black and white are; save 8 or 16 bits')
        deep = ';16' in packing or '65535' in packing  # 12 bits of a PPM that says so are scaled by Pillow
        if not image.mode.startswith('I'):
            rgb = image.convert('RGB')
            if deep:  # Pillow has dropped the lower 8 bits
                refuse_dark(max(high for _, high in rgb.getextrema()) * 256)
            return rgb
        values, bits = np.asarray(image), 12 if ';12' in packing else 16
        # 8 bits that were stretched to 16 are multiples of 256 or 257
        if (deep or packing == '[]') and (values % 256).any() and (values % 257).any():
            refuse_dark(int(values.max()))
        if image.format == 'TIFF' and image.tag_v2.get(262) == 0:  # white is 0: Pillow minds it for 8 bits
            values = 2**bits - 1 - values
        return Image.fromarray((values >> bits - 8).astype(np.uint8)).convert('RGB')


def refuse_dark(highest):
    if highest < 2**14:
        raise ValueError(f'the highest 16-bit value is about {highest} of 65535, so it may be 10, 12 or 14 '
                         'bits; scale the values to 16 bits, or save 8 bits')


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
        with silence():
            turned = image.getexif().get(0x0112, 1) != 1
        if not turned:  # else some reader of the bytes would turn it
            return raw, rgb
    if len(rgb.info.get('comment', b'')) > 65_000:  # a JPEG has no room for more
        del rgb.info['comment']
    out = io.BytesIO()
    rgb.save(out, 'JPEG', quality=quality)
    return out.getvalue(), rgb


def pictures_in(path, meta, image_size):
    """
    (file, RGB picture, '') for each picture of a folder, or one; else (file, None, reason). A data set of
    arrays holds pictures of image_size alone: others are cropped to the middle square and resized.
    """
    files, skipped = find_files(path) if os.path.isdir(path) else ([path], [])
    if os.path.isdir(path):
        files = filter(is_picture, files)
    for file in sorted([*files, *filter(is_picture, skipped)]):
        try:
            if file in skipped:
                raise ValueError('it is hidden, no regular file, or there already')
            rgb = to_rgb(open_picture(file)[0])
            if meta['layout'] == 'arrays':
                rgb = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BICUBIC)
            yield file, rgb, ''
        except Exception as error:  # Pillow raises nearly everything on broken files
            yield file, None, said(error)
