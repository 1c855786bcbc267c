"""
NFNet-F0, a convolutional network without normalization, and the same network with batch normalization.

Paper: Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization",
arXiv:2102.06171. What it leaves open follows its authors' code (google-deepmind/deepmind-research, nfnets).
Adaptive gradient clipping is in support/normfree.py.

A block is h + alpha f(h / beta) (section 3). beta^2 is the variance of h at the start, which is known:

    a = gelu(x) / beta                        this gelu turns N(0, 1) into variance 1
    x = x           + alpha gain f(a)         with SkipInit's gain at 1 the variance grows by alpha^2
    x = shortcut(a) + alpha gain f(a)         first block of a stage: 1 + alpha^2, whatever it was before

The paper divides before the activation. We divide after it, as the authors' code does. At the last block of
stage 3, the variance is then 1.01 instead of 1. The prediction assumes independent pixels and maps without
borders. Average pooling in the shortcuts and zero padding make the true variance smaller.

docs/normalizer-free.md has the choices that the second report ("Normalizer-free Transformers") leaves open.
With its pictures of 32 x 32, the maps have 8, 4, 2 and 1 pixels a side.

Letters in shapes: B batch, C channels, H height, W width, N fan-in (inputs of one unit).
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from model import DropPath
from support.normfree import standardize


@dataclass
class NFNetConfig:
    """NFNet-F0 by default (table 1 of the paper, and base.py and experiment_nfnets.py of its authors)."""
    image_size: int = 192  # in training; the paper evaluates at 256, and the network takes any size
    n_classes: int = 1000
    widths: tuple = (256, 512, 1536, 1536)  # channels of each stage; the bottleneck has half of them
    depths: tuple = (1, 2, 6, 3)  # blocks of each stage
    alpha: float = 0.2  # scale of a branch at SkipInit's gain 1
    drop_path: float = 0.25  # block i of n drops its branch with probability drop_path * i / n
    dropout: float = 0.2  # before the head
    se_ratio: float = 0.5  # hidden units of squeeze-excite per channel
    group_size: int = 128  # channels of a group in the 3x3 convolutions
    batch_norm: bool = False  # True: plain convolutions, each followed by batch normalization


class GELU(nn.Module):
    """The exact GELU times its gain gamma (section 3), so that N(0, 1) in gives variance 1 out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x) * 1.7015043497085571


class WSConv2d(nn.Conv2d):
    """A convolution with the weight standardize(weight) * gain, one gain per output unit."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels))  # a vector, so it does not decay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # this stays in fp32 under autocast, which rounds only the finished weight
        weight = standardize(self.weight) * self.gain.view(-1, 1, 1, 1)
        return self._conv_forward(x, weight, self.bias)


def conv(config: NFNetConfig, c_in: int, c_out: int, kernel: int = 1, stride: int = 1,
         groups: int = 1) -> nn.Module:
    """
    A convolution of this network. With batch_norm, it is a plain one with the norm after it, and there is no
    standardization or gain. Its bias stays, although the norm subtracts it again: only then the count is the
    report's.
    """
    kwargs = dict(stride=stride, padding=kernel // 2, groups=groups)
    if config.batch_norm:
        return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, **kwargs), nn.BatchNorm2d(c_out))
    return WSConv2d(c_in, c_out, kernel, **kwargs)


class SqueezeExcite(nn.Module):
    """Each channel times 2 sigmoid(W_2 relu(W_1 mean)). The 2 makes up for the sigmoid's 1/2 at the start."""

    def __init__(self, C: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(C, max(1, int(C * ratio)))
        self.fc2 = nn.Linear(self.fc1.out_features, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = 2 * self.fc2(F.relu(self.fc1(x.mean((2, 3))))).sigmoid()  # (B, C)
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """Bottleneck with two 3x3 convolutions (section 5): (B, c_in, H, W) to (B, c_out, H/stride, W/stride)."""

    def __init__(self, config: NFNetConfig, c_in: int, c_out: int, stride: int, beta: float,
                 drop_path: float):
        super().__init__()
        width = c_out // 2
        if width % config.group_size:
            raise ValueError(f'group_size={config.group_size} does not divide {width}, half of width '
                             f'{c_out}. Use a group_size that divides half of every width.')
        groups = width // config.group_size
        self.alpha, self.beta = config.alpha, beta
        self.transition = stride > 1 or c_in != c_out
        self.gelu = GELU()
        if self.transition:  # the average of an odd last row or column leaves out the padding
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False),
                                          conv(config, c_in, c_out))
        self.branch = nn.Sequential(
            conv(config, c_in, width), GELU(),
            conv(config, width, width, 3, stride, groups), GELU(),
            conv(config, width, width, 3, 1, groups), GELU(),
            conv(config, width, c_out), SqueezeExcite(c_out, config.se_ratio),
            DropPath(drop_path) if drop_path > 0 else nn.Identity())
        self.skip_gain = nn.Parameter(torch.zeros(()))  # SkipInit: at the start a block is its shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.gelu(x) / self.beta
        shortcut = self.shortcut(a) if self.transition else x
        return shortcut + self.alpha * self.skip_gain * self.branch(a)


class NFNet(nn.Module):
    """
    forward(images) gives logits: images (B, 3, H, W), logits (B, n_classes). With 10 classes it has
    68,447,014 parameters, and 68,491,926 with batch_norm. The report's 68.44M and 68.49M are these, cut off
    after two digits. alpha, beta and SkipInit are the same in both.

    At the start weights are N(0, 1/N), the head's N(0, 0.01^2), biases 0, gains 1 and SkipInit's gains 0. The
    authors' code cuts squeeze-excite's weights at two deviations; we do not. It does not rescale the branches
    that stochastic depth keeps; our DropPath divides them by 1 - p, so that the mean is that of evaluation.
    """

    def __init__(self, config: NFNetConfig):
        super().__init__()
        self.config = config
        stem = (3, 16, 32, 64, config.widths[0] // 2)
        self.stem = nn.Sequential(
            conv(config, stem[0], stem[1], 3, 2), GELU(),
            conv(config, stem[1], stem[2], 3, 1), GELU(),
            conv(config, stem[2], stem[3], 3, 1), GELU(),
            conv(config, stem[3], stem[4], 3, 2))  # (B, widths[0] / 2, H / 4, W / 4)
        self.stages = nn.ModuleList()
        c_in = stem[4]
        variance = 1.0
        n = 0  # blocks so far
        for c_out, depth, stride in zip(config.widths, config.depths, (1, 2, 2, 2)):
            stage = nn.Sequential()
            for i in range(depth):
                drop_path = config.drop_path * n / sum(config.depths)
                stage.append(Block(config, c_in, c_out, stride, variance ** 0.5, drop_path))
                if i == 0:  # a transition, which begins again at 1
                    variance = 1.0
                variance += config.alpha ** 2
                c_in, stride = c_out, 1
                n += 1
            self.stages.append(stage)
        self.final_conv = conv(config, c_in, 2 * c_in)
        self.gelu = GELU()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * c_in, config.n_classes)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                std = 0.01 if m is self.head else m.weight[0].numel() ** -0.5
                nn.init.normal_(m.weight, std=std)
                nn.init.zeros_(m.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)  # (B, C, H / 4, W / 4), then 8, 16 and 32
        x = self.gelu(self.final_conv(x)).mean((2, 3))  # (B, 2C)
        return self.head(self.dropout(x))  # (B, n_classes)


def share_statistics(model: nn.Module, env) -> None:
    """Give all processes the running statistics of rank 0's batch normalization, as DDP's forward does."""
    if env.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
