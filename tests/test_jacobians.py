"""The spread of singular values and the tail of gradients, where both are known."""

import pytest
import torch

from experiments import jacobians
from model import Block, GPTConfig


def test_spread_of_maps_with_known_singular_values():
    torch.manual_seed(0)
    Q, R = (torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0] for _ in range(2))
    W = Q @ torch.diag(torch.tensor([9.0, 5, 4, 3, 2, 1, 0.5], dtype=torch.float64)) @ R
    x = torch.linalg.solve(W.T, torch.ones(7, dtype=torch.float64))[None]  # x W is 1
    assert jacobians.spread(lambda x: x @ W, x) == pytest.approx(9 / 3)
    assert jacobians.spread(lambda x: (x @ W).square(), x) == pytest.approx(9 / 3)  # the slope is 2 W there


def test_tail_of_normal_gradients_whatever_their_sizes():
    torch.manual_seed(0)
    block = Block(GPTConfig(n_embd=64, n_head=2))
    for factor, p in enumerate(block.parameters(), 1):
        p.grad = factor * torch.randn_like(p)
    block.attn.c_attn.weight.grad[:64] *= 100  # W_q has an RMS of its own
    assert jacobians.tail(block) == pytest.approx(3.2905 / 0.6745, rel=0.03)  # the normal quantiles
