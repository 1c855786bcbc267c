"""The second report: weight standardization, T-Fixup, adaptive gradient clipping."""

import math

import numpy as np
import pytest
import torch

from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.normfree import build, clip_units, gradient_units, standardize, standardize_weights
from test_model import IDX, noisy, reference, tiny, tiny_vit, weights
from tests.common import final, rows, train, train_vit


def numpy_standardized(w):
    """Equation 1, unit by unit."""
    return np.stack([(row - row.mean()) / (math.sqrt(len(row)) * math.sqrt(((row - row.mean()) ** 2).mean()))
                     for row in w])


@pytest.mark.parametrize('covers', ['all', 'ffn'])
def test_weight_standardization_is_the_plain_network_of_standardized_weights(covers):
    """... times the gains, which W_q, W_k and W_v do not have."""
    model = tiny('NoNorm')
    standardize_weights(model, covers)
    noisy(model)
    w = weights(model)
    for i in range(3):
        for layer in ('attn.c_attn', 'attn.c_proj', 'ffn.c_fc', 'ffn.c_proj'):
            if covers == 'ffn' and 'attn' in layer:
                continue
            name = f'blocks.{i}.{layer}'
            w[f'{name}.weight'] = numpy_standardized(w[f'{name}.weight'])
            if layer != 'attn.c_attn':
                w[f'{name}.weight'] *= w.pop(f'{name}.gain')[:, None]
    assert not any('gain' in name for name in w)
    want = reference(IDX, w, 3, 2, 'rms')
    logits = model(torch.tensor(IDX[None]))[0][0].detach().numpy()
    np.testing.assert_allclose(logits, want, rtol=1e-8, atol=1e-10)
    plain = tiny('NoNorm')
    standardize_weights(plain, covers, gain=False)
    assert not any('gain' in n for n, _ in plain.named_parameters())
    assert torch.equal(standardize(torch.full((2, 3), 5.0)), torch.zeros(2, 3))  # a constant row: not nan


def test_deviations_of_tfixup():
    d, n = 256, 4
    matrices, embeddings = 0.67 * n ** -0.25, d ** -0.5 * (9 * n) ** -0.25
    torch.manual_seed(0)
    size = SETTINGS['NoNorm'] | dict(n_layer=n, n_head=4, n_embd=d, init='tfixup')
    gpt = build(GPT, GPTConfig, size | dict(vocab_size=512, block_size=256))
    vit = build(ViT, ViTConfig, size | dict(image_size=64, patch_size=4))
    for model, names in ((gpt, ('wte.weight', 'wpe.weight')), (vit, ('pos_embed', 'patch_embed.weight'))):
        for name, p in model.named_parameters():
            if name in names:
                assert abs(p.std().item() / embeddings - 1) < 0.02, name
            elif 'blocks' in name and p.dim() == 2:
                fans = 2 * d if 'attn' in name else 5 * d  # W_q, W_k, W_v are three matrices
                assert abs(p.std().item() / (matrices * math.sqrt(2 / fans)) - 1) < 0.02, name
    gpt = GPT(GPTConfig(n_layer=1, n_head=4, n_embd=d, init='torch'))
    vit = ViT(ViTConfig(n_layer=1, n_embd=d, init='torch'))
    layers = [vit.head, vit.patch_embed]
    for block in (gpt.blocks[0], vit.blocks[0]):
        layers += [block.attn.c_attn, block.ffn.c_proj]
    for layer in layers:  # PyTorch's own: uniform
        most = layer.weight[0].numel() ** -0.5
        assert 0.98 * most < layer.weight.abs().max() <= most
        assert abs(layer.weight.std() / most * 3 ** 0.5 - 1) < 0.02


def test_adaptive_gradient_clipping_row_by_row():
    """Equation 3 in NumPy for every kind of parameter; with zero rows, zero gradients and scalars."""
    model = tiny_vit(n_layer=2)
    model.scalar = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.rand(p.shape, dtype=torch.float64))
        model.blocks[0].ffn.c_fc.weight[3] = 0  # |w| < eps: its gradient goes to limit * eps
    units = gradient_units(model)
    head = {id(p) for p in model.head.parameters()}
    assert {id(p) for p, _ in units} == {id(p) for p in model.parameters()} - head
    for p in model.parameters():
        sizes = torch.empty(p.shape[:1] or (1,), dtype=torch.float64).uniform_(-4, 0)
        p.grad = torch.randn_like(p) * 10 ** sizes.view((*p.shape[:1], *[1] * (p.dim() - 1)))
    model.blocks[0].ffn.c_fc.weight.grad[5] = 0
    before = {n: p.grad.clone().numpy() for n, p in model.named_parameters()}
    limit, clipped, total = 0.01, 0, 0
    share = clip_units(units, limit).item()
    for n, p in model.named_parameters():
        if n.startswith('head'):
            assert np.array_equal(p.grad.numpy(), before[n])
            continue
        w, g, after = p.detach().numpy(), before[n], p.grad.numpy()
        if n in ('cls_token', 'pos_embed'):
            parts = [(0, i) for i in range(w.shape[1])]  # each position
        elif n.endswith('c_attn.bias'):
            parts = [slice(0, 16), slice(16, 32), slice(32, 48)]  # q, k, v
        else:
            parts = range(len(w)) if w.ndim >= 2 else [...]
        for part in parts:
            g_norm, w_norm = np.sqrt((g[part] ** 2).sum()), max(np.sqrt((w[part] ** 2).sum()), 1e-3)
            want = g[part] * limit * w_norm / g_norm if g_norm > 0 and g_norm / w_norm > limit else g[part]
            np.testing.assert_allclose(after[part], want, rtol=1e-12, err_msg=n)
            clipped, total = clipped + (g_norm > limit * w_norm), total + 1
    assert abs(share - clipped / total) < 1e-6
    assert 0.1 < share < 0.9
    gpt = tiny()  # tied: the head is the embedding, so both stay as they are
    assert id(gpt.wte.weight) not in {id(p) for p, _ in gradient_units(gpt)}


@pytest.mark.slow
def test_second_report_in_the_train_scripts(tokens, arrays, tmp_path):
    line = ['--setting=NoNorm', '--qkv_bias=False', '--init=tfixup', '--agc=0.01', '--grad_clip=0',
            '--learning_rate=0.02']
    train(tokens, tmp_path / 'ffn', *line, '--weight_standardization=ffn', '--optimizer=sgd', '--bias=True')
    train_vit(arrays, tmp_path / 'all', *line, '--weight_standardization=all')
    for standardized in ('ffn', 'all'):
        log, checkpoint = rows(tmp_path / standardized), final(tmp_path / standardized)
        assert all(0 < r['agc_share'] <= 1 for r in log if r['split'] == 'train')
        args = checkpoint['model_args']
        assert (args['init'], args['weight_standardization']) == ('tfixup', standardized)
        assert ('blocks.0.attn.c_proj.gain' in checkpoint['model']) == (standardized == 'all')
