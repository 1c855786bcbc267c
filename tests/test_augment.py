"""Crops, RandAugment, mixup and cutmix against their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from support import augment
from tests.common import finish, noise_picture, python, smooth_picture, stream


def test_rand_augment_arguments():
    """At magnitude 9 for both signs, and the ends of the range at sign -1."""
    expected = {
        **dict.fromkeys(['AutoContrast', 'Equalize', 'Invert']), 'Rotate': (27, -27),
        **dict.fromkeys(['ShearX', 'ShearY'], (0.27, -0.27)), 'Solarize': (26, 26), 'SolarizeAdd': (99, 99),
        **dict.fromkeys(['TranslateX', 'TranslateY'], (0.405, -0.405)), 'Posterize': (1, 1),
        **dict.fromkeys(['Color', 'Contrast', 'Brightness', 'Sharpness'], (1.81, 0.19))}
    assert set(augment.OPS) == set(expected)
    for name, values in expected.items():
        got = tuple(augment.OPS[name][0](0.9, sign) for sign in (1, -1))
        assert got == (pytest.approx(values) if values else (None, None)), name
    ends = {'Color': (1.0, pytest.approx(0.1)), 'Rotate': (0, -30), 'SolarizeAdd': (0, 110),
            'Posterize': (4, 0), 'Solarize': (256, 0)}
    for name, values in ends.items():
        assert tuple(augment.OPS[name][0](f, -1) for f in (0.0, 1.0)) == values


def apply_op(name, image, value, resample=Image.Resampling.BICUBIC):
    return np.asarray(augment.OPS[name][1](image, value, resample)).astype(int)


def test_rand_augment_operations_on_colours():
    image = noise_picture(40, 30)
    x = np.asarray(image).astype(int)
    assert (apply_op('Invert', image, None) == 255 - x).all()
    assert (apply_op('Posterize', image, 1) == x // 128 * 128).all()
    assert not apply_op('Posterize', image, 0).any()
    assert (apply_op('Solarize', image, 26) == np.where(x < 26, x, 255 - x)).all()
    assert (apply_op('SolarizeAdd', image, 99) == np.where(x < 128, np.minimum(x + 99, 255), x)).all()
    grey = np.round(x @ [0.299, 0.587, 0.114])[..., None]
    smoothed = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(int)
    for name, degenerate in (('Brightness', 0), ('Color', grey), ('Contrast', round(grey.mean())),
                             ('Sharpness', smoothed)):
        for value in (0.19, 1.81):
            wanted = np.clip(degenerate + value * (x - degenerate), 0, 255)
            assert abs(apply_op(name, image, value) - wanted).max() < 3, (name, value)
    stretched = apply_op('AutoContrast', Image.fromarray((x // 4 + 50).astype(np.uint8)), None)
    assert (stretched.min(), stretched.max() >= 254) == (0, True)
    equal = apply_op('Equalize', Image.fromarray((x ** 2 // 255).astype(np.uint8)), None)
    assert (abs(np.bincount(equal[..., 0].ravel() // 64) / 1200 - 0.25) < 0.12).all()  # a quarter in each


def test_rand_augment_geometry():
    """On a ramp each output pixel tells which input point it shows."""
    W, H = 120, 100
    Y, X = np.mgrid[0:H, 0:W] + 0.5
    ramp = Image.fromarray(np.stack([2 * X, 2 * Y, 100 + 0 * X], -1).astype(np.uint8))
    c, s = math.cos(math.radians(27)), math.sin(math.radians(27))
    U, V = X - W / 2, Y - H / 2
    for name, value, x, y in (('Rotate', 27, W / 2 + c * U - s * V, H / 2 + s * U + c * V),
                              ('Rotate', -27, W / 2 + c * U + s * V, H / 2 - s * U + c * V),
                              ('ShearX', 0.27, X + 0.27 * Y, Y), ('ShearY', 0.27, X, Y + 0.27 * X),
                              ('TranslateX', 0.405, X + 0.405 * W, Y),
                              ('TranslateX', -0.405, X - 0.405 * W, Y),
                              ('TranslateY', 0.405, X, Y + 0.405 * H)):
        got = apply_op(name, ramp, value)
        inside = (x > 3) & (x < W - 3) & (y > 3) & (y < H - 3)
        outside = (x < -1) | (x > W + 1) | (y < -1) | (y > H + 1)
        assert inside.mean() > 0.4
        assert outside.mean() > 0.04
        assert abs(got - np.stack([2 * x, 2 * y, 100 + 0 * x], -1))[inside].max() < 3
        assert (got[outside] == (124, 116, 104)).all()


def test_rand_augment_draws(monkeypatch):
    drawn, applied = [], []
    monkeypatch.setattr(augment, 'OPS', {
        name: (lambda f, s, name=name: (name, f, s), lambda image, v, r: applied.append((*v, r)))
        for name in augment.OPS})
    for i in range(3000):
        before = len(applied)
        augment.rand_augment(None, stream(0, i), interpolation='random')
        drawn.append(len(applied) - before)
    assert np.bincount(drawn) / 3000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)  # two, each with p = 0.5
    names, f, sign, filters = zip(*applied)
    for values, n in ((names, 15), (sign, 2), (filters, 2)):  # each value as often as the others
        share = np.array([values.count(value) for value in set(values)]) / len(values)
        assert share == pytest.approx([1 / n] * n, abs=0.03 if n == 2 else 0.02)
    assert (np.mean(f), np.std(f), max(f)) == pytest.approx((0.9, 0.05, 1.0), abs=0.005)


class CropRecorder:
    """Stands for a picture and remembers the crop."""

    def __init__(self, *size):
        self.size = size

    def crop(self, box):
        self.box = box
        return self

    def resize(self, size, _):
        assert size == (224, 224)
        return self


def test_random_resized_crop():
    boxes = np.array([augment.random_resized_crop(CropRecorder(1000, 1000), stream(i), scale=(0.08, 0.5)).box
                      for i in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all() and (boxes <= 1000).all()
    area, ratio = w * h / 1e6, np.log(w / h)
    for values, low, high in ((area, 0.08, 0.5), (ratio, -math.log(4 / 3), math.log(4 / 3))):  # both uniform
        assert low - 0.01 < values.min() and values.max() < high + 0.01
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.01)
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), abs=0.006)
    assert (boxes[:, 0] / (1000 - w)).mean() == pytest.approx(0.5, abs=0.02)  # anywhere
    for size, middle in (((1000, 30), (480, 0, 520, 30)), ((30, 1000), (0, 480, 30, 520))):  # nothing fits
        assert augment.random_resized_crop(CropRecorder(*size), stream(0)).box == middle
    image = noise_picture(60, 40)
    for i in range(20):  # a random filter changes nothing but the filter
        box = augment.random_resized_crop(CropRecorder(60, 40), stream(i)).box
        sharp, smooth = (image.crop(box).resize((8, 8), r) for r in (augment.BICUBIC, augment.BILINEAR))
        assert augment.random_resized_crop(image, stream(i), 8) == sharp
        assert augment.random_resized_crop(image, stream(i), 8, interpolation='random') in (sharp, smooth)


@pytest.mark.parametrize('repeats', [1, 3])
def test_a_batch_has_several_views_of_a_picture(repeats):
    """
    A batch has what a list has in which every picture comes `repeats` times in a row: the samples of timm
    1.0.31's RepeatAugSampler over all ranks. Neighbors, which mix() pairs, are different pictures.
    """
    order, size = stream(0).permutation(100), 32
    listed = [(picture, view) for picture in order for view in range(repeats)]
    for first in (0, 32, 64):
        samples = augment.batch_views(order, first, size, repeats)
        batch = [(sample % 100, sample // 100) for sample in samples]
        assert sorted(batch) == sorted(listed[first:first + size])
        assert repeats > 1 or batch == listed[first:first + size]
        assert (samples[::2] % 100 != samples[1::2] % 100).all()


def test_eval_crop():
    """The centre stays, and the scale is short / short side."""
    for size, short in ((224, 256), (160, 182), (32, 36)):
        X = np.mgrid[0:300, 0:450][1] + 0.5
        image = Image.fromarray(np.stack([X / 2] * 3, -1).astype(np.uint8))
        row = np.asarray(augment.eval_crop(image, size)).astype(int)[size // 2, :, 0]
        wanted = (225 + (np.arange(size) + 0.5 - size / 2) * 300 / short) / 2
        assert augment.eval_crop(image, size).size == (size, size)
        assert abs(row - wanted).max() < 3
    image = noise_picture(341, 256)  # the short side is 256 already
    assert augment.eval_crop(image).tobytes() == image.crop((58, 16, 282, 240)).tobytes()
    assert augment.eval_crop(noise_picture(20, 90)).size == (224, 224)  # smaller than the crop: enlarged


def test_one_sample_is_a_function_of_its_key():
    image = noise_picture(80, 60)
    views = {key: augment.train_view(image, stream(*key), 32).tobytes() for key in np.ndindex(2, 2, 4)}
    assert all(augment.train_view(image, stream(*key), 32).tobytes() == view for key, view in views.items())
    assert len(set(views.values())) == len(views)
    ramp = Image.fromarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3)))
    rows = [np.asarray(augment.train_view(ramp, stream(i), 8, magnitude=0))[0, :, 0] for i in range(400)]
    assert abs(sum(row[0] > row[-1] for row in rows) - 200) < 40  # mirrored


@pytest.mark.parametrize('H, W, pad', [(9, 11, 4), (1, 1, 0), (2, 2, 1), (3, 3, 2), (4, 4, 3), (5, 5, 4)])
def test_pad_crop_flip(H, W, pad):
    """Every shift is that of NumPy's reflected picture, for tiny ones too."""
    shifts = range(-pad, pad + 1)
    offsets = torch.tensor(list(itertools.product(shifts, shifts, (0, 1))))
    images = torch.from_numpy(stream(0).integers(0, 256, (len(offsets), 3, H, W), dtype=np.uint8))
    got = augment.pad_crop_flip(images, offsets)
    for x, (dy, dx, flip), y in zip(images.numpy(), offsets.tolist(), got.numpy()):
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), mode='reflect') if pad else x
        shifted = padded[:, pad + dy:pad + dy + H, pad + dx:pad + dx + W]
        assert (y == (shifted[:, :, ::-1] if flip else shifted)).all()
    assert torch.equal(augment.pad_crop_flip(images[1:2], offsets[1:2]), got[1:2])  # a slice of the batch


def test_mixup_and_cutmix_distributions():
    """Pictures of one value each, 0 and 1 by turns, show what was mixed and where."""
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 64, 48)
    lams = {True: [], False: []}
    for i in range(2000):
        mixed, partners, lam = augment.mix(images, torch.tensor([5, 7]), stream(0, i))
        first, second = mixed[:, 0].numpy()
        assert partners.tolist() == [7, 5]
        assert 0 <= lam <= 1
        # the box's area after clipping, or the share
        assert (first.mean(), second.mean()) == pytest.approx((1 - lam, lam), abs=1e-5)
        cut = set(np.unique(first)) <= {0, 1}
        if cut and 0 < lam < 1:  # one box
            rows, cols = first.nonzero()
            assert (np.ptp(rows) + 1) * (np.ptp(cols) + 1) == len(rows)
        lams[cut].append(lam)
    assert len(lams[True]) == pytest.approx(1000, abs=90)  # switch 0.5
    assert np.mean(lams[False]) == pytest.approx(0.5, abs=0.03)
    # Beta(a, a): 1 / (4 (2a + 1))
    assert np.var(lams[False]) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)
    # a side of ratio r around a uniform centre keeps r - r^2 / 4 of its length, and r^2 = 1 - lam is uniform
    assert np.mean(lams[True]) == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.03)


def test_mix_does_not_depend_on_the_number_of_processes():
    images = torch.rand(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    for i in range(20):
        whole, partners, lam = augment.mix(images, labels, stream(3, i))
        assert partners.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
        parts = [augment.mix(images[at:at + 2], labels[at:at + 2], stream(3, i)) for at in range(0, 8, 2)]
        assert torch.equal(torch.cat([part[0] for part in parts]), whole)
        assert {part[2] for part in parts} == {lam}
    assert torch.equal(augment.mix(images, labels, stream(0), mixup=0, cutmix=0)[0], images)
    with pytest.raises(ValueError, match='3 images cannot be mixed in pairs'):
        augment.mix(images[:3], labels[:3], stream(0))


def test_mixed_loss_is_soft_target_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 10), torch.randint(10, (6,))
    partners = labels[torch.arange(6) ^ 1]
    soft = [0.1 / 10 + 0.9 * F.one_hot(y, 10) for y in (labels, partners)]
    for lam in (0.0, 0.3, 1.0):
        target = lam * soft[0] + (1 - lam) * soft[1]
        wanted = -(target * logits.log_softmax(-1)).sum(-1).mean()
        assert augment.mixed_loss(logits, labels, partners,
                                  lam).item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.slow
def test_page_of_augmented_pictures(tmp_path):
    line = ['-m', 'support.augment', tmp_path, tmp_path / 'page.png']  # as the docstring says
    assert 'at least 6 pictures, not 0' in finish(python(*line), 1)[1]
    for i in range(6):
        smooth_picture(40, 30, i).save(tmp_path / f'{i}.png')
    finish(python(*line))
    sheet = Image.open(tmp_path / 'page.png').convert('RGB')
    assert sheet.size == (8 * 114, 6 * 114)
    first = np.asarray(augment.eval_crop(smooth_picture(40, 30), 112)).astype(int)
    assert abs(first - np.asarray(sheet)[:112, :112]).mean() < 20  # in 256 colours for the whole page
