"""The synthetic set: shapes and textures with random places, sizes, angles and pairs of colors, 32 x 32."""

import math

import numpy as np
from PIL import Image

SHAPES = {  # on a grid of -1 to 1 across the shape; the last four are a disc with a texture
    'disc': lambda x, y: np.hypot(x, y) < 0.9,
    'ring': lambda x, y: abs(np.hypot(x, y) - 0.7) < 0.22,
    'square': lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    'triangle': lambda x, y: (y < 0.6) & (y > 1.8 * abs(x) - 0.9),
    'cross': lambda x, y: (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.9),
    'star': lambda x, y: np.hypot(x, y) < 0.6 + 0.3 * np.cos(5 * np.arctan2(y, x)),
    'stripes': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(9 * x) > 0),
    'checks': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(7 * x) * np.sin(7 * y) > 0),
    'dots': lambda x, y: (np.hypot(x, y) < 0.95) & (np.cos(9 * x) + np.cos(9 * y) > 0.7),
    'waves': lambda x, y: (np.hypot(x, y) < 0.95) & (np.sin(13 * np.hypot(x, y)) > 0),
}


def draw(name):
    """The synthetic picture 'SPLIT NUMBER', as (bytes, RGB picture); the shapes take turns."""
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
    rgb = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return rgb.tobytes(), rgb
