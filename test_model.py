"""
The networks and SGDW against their equations, which are written in NumPy and float64.

python -m pytest -q runs this file and tests/ (under two minutes on two CPU cores, no network);
python -m pytest -q -m slow runs what takes longer.
"""

import math
import warnings

import numpy as np
import pytest
import torch

from model import GPT, SETTINGS, DropPath, DyT, GPTConfig, LayerNorm, RMSNorm, ViT, ViTConfig
from sgdw import SGDW

# -----------------------------------------------------------------------------
# the networks

def noisy(model):
    """The network in float64 with every parameter random: gains and biases too, so that none can hide."""
    with torch.no_grad():
        for p in model.double().parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tiny(setting='S5', seed=0, **kwargs):
    torch.manual_seed(seed)
    sizes = dict(block_size=12, vocab_size=64, n_layer=3, n_head=2, n_embd=16)
    return noisy(GPT(GPTConfig(**{**SETTINGS[setting], **sizes, **kwargs})))


def tiny_vit(setting='S5', seed=0, **kwargs):
    torch.manual_seed(seed)
    sizes = dict(image_size=12, patch_size=4, n_classes=5, n_layer=3, n_head=2, n_embd=16)
    return noisy(ViT(ViTConfig(**{**SETTINGS[setting], **sizes, **kwargs})))


def weights(model):
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def np_norm(x, w, name, kind, eps=1e-5):
    """The paper's RMSN and LN (section 2) or DyT where there is a gain of that name, else the identity."""
    if f'{name}.weight' not in w:
        return x
    gamma, beta = w[f'{name}.weight'], w.get(f'{name}.bias', 0.0)
    if kind == 'dyt':
        return gamma * np.tanh(w[f'{name}.alpha'].item() * x) + w[f'{name}.bias']
    if kind == 'layer':
        y = x - x.mean(-1, keepdims=True)
        return gamma * y / np.sqrt((y ** 2).sum(-1, keepdims=True) / x.shape[-1] + eps) + beta
    return gamma * x / np.sqrt((x ** 2).sum(-1, keepdims=True) / x.shape[-1] + 1e-6)


def np_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def np_attention(x, w, name, n_head, kind, causal=True):
    """One sequence (T, C), head by head and query by query: equations 9 and 10 as they are written."""
    T, C = x.shape
    D = C // n_head
    W, b = w[f'{name}.c_attn.weight'], w.get(f'{name}.c_attn.bias', np.zeros(3 * C))
    out = np.zeros((T, C))
    for h in range(n_head):
        rows = [slice(part * C + h * D, part * C + (h + 1) * D) for part in range(3)]
        q, k, v = (x @ W[r].T + b[r] for r in rows)
        q, k = np_norm(q, w, f'{name}.q_norm', kind), np_norm(k, w, f'{name}.k_norm', kind)
        for t in range(T):
            see = t + 1 if causal else T
            a = np_softmax(np.array([q[t] @ k[s] for s in range(see)]) / math.sqrt(D))
            out[t, h * D:(h + 1) * D] = sum(a[s] * v[s] for s in range(see))
    return out @ w[f'{name}.c_proj.weight'].T + w.get(f'{name}.c_proj.bias', 0.0)


def np_gelu(x, kind='exact'):
    if kind == 'tanh':
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def np_trunk(x, w, n_layer, n_head, kind, causal=True, gelu='exact', eps=1e-5):
    """From the sum of embeddings and positions to what the head reads: section 4.4, figures 2, 3 and 7."""
    N = lambda x, name: np_norm(x, w, name, kind, eps)
    x = N(x, 'input_norm')
    for i in range(n_layer):
        b = f'blocks.{i}.'
        y = np_attention(N(x, b + 'pre_norm'), w, b + 'attn', n_head, kind, causal)
        x = N(x + N(y, b + 'mid_norm'), b + 'post_norm')
        y = N(x, b + 'ffn_pre_norm') @ w[b + 'ffn.c_fc.weight'].T + w.get(b + 'ffn.c_fc.bias', 0.0)
        y = np_gelu(y, gelu) @ w[b + 'ffn.c_proj.weight'].T + w.get(b + 'ffn.c_proj.bias', 0.0)
        x = N(x + N(y, b + 'ffn_mid_norm'), b + 'ffn_post_norm')
    return N(x, 'final_norm')


def reference(idx, w, n_layer, n_head, kind, **options):
    """The logits of a sequence, as np_trunk spells the network out."""
    x = w['wte.weight'][idx] + w['wpe.weight'][:len(idx)]
    return np_trunk(x, w, n_layer, n_head, kind, **options) @ w['lm_head.weight'].T


IDX = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])

PRE, MID, QK = 'pre_norm ffn_pre_norm ', 'mid_norm ffn_mid_norm ', 'attn.q_norm attn.k_norm'
HAS = {  # the norms of a network outside of the blocks and in each of them
    'S1': ('final_norm', PRE), 'S2': ('final_norm', PRE + QK), 'S3': ('input_norm final_norm', PRE + QK),
    'S4': ('input_norm final_norm', PRE + MID + QK), 'S5': ('input_norm final_norm', 'pre_norm ' + MID + QK),
    'PostLN': ('', 'post_norm ffn_post_norm'), 'PeriLN': ('final_norm', PRE + MID),
    'OLMo2': ('final_norm', MID + QK), 'NoNorm': ('', '')}


@pytest.mark.parametrize('setting', list(HAS))
def test_each_setting_has_its_norms(setting):
    names = [name.removesuffix('.weight') for name in weights(tiny(setting)) if name.endswith('norm.weight')]
    outside, inside = (set(words.split()) for words in HAS[setting])
    assert set(names) == outside | {f'blocks.{i}.{name}' for i in range(3) for name in inside}


@pytest.mark.parametrize('setting', list(SETTINGS))
@pytest.mark.parametrize('kind,bias', [('layer', True), ('rms', False), ('dyt', False)])
def test_each_setting_is_its_equations(setting, kind, bias):
    """S1 with LayerNorm and bias is GPT-2 and the original ViT (equations 1 to 4 of Dosovitskiy et al.)."""
    models = [tiny(setting, norm=kind, bias=bias, flash=flash) for flash in (True, False)]
    expected = reference(IDX[:-1], weights(models[0]), 3, 2, kind)
    nll = -np.log(np_softmax(expected))[np.arange(len(IDX) - 1), IDX[1:]].mean()
    for model in models:
        logits, loss = model(torch.tensor(IDX[None, :-1]), torch.tensor(IDX[None, 1:]))
        np.testing.assert_allclose(logits[0].detach().numpy(), expected, atol=1e-10)
        assert abs(loss.item() - nll) < 1e-6  # the loss is computed in float32

    model = tiny_vit(setting, norm=kind, bias=bias, drop_path=0.3).eval()
    w, images = weights(model), np.random.default_rng(0).normal(size=(2, 3, 12, 12))
    patches = [images[1, :, r:r + 4, c:c + 4].reshape(-1) for r in (0, 4, 8) for c in (0, 4, 8)]
    E, b = w['patch_embed.weight'].reshape(16, -1), w['patch_embed.bias']
    x = np.stack([w['cls_token'][0, 0]] + [E @ patch + b for patch in patches]) + w['pos_embed'][0]
    x = np_trunk(x, w, 3, 2, kind, causal=False)
    logits = model(torch.tensor(images))[1].detach().numpy()
    np.testing.assert_allclose(logits, w['head.weight'] @ x[0] + w['head.bias'], atol=1e-10)


def test_initial_standard_deviations():
    """The table in GPT's docstring, and table 4's truncated Xavier; a tied head is the embedding itself."""
    C = 256
    gpt = GPT(GPTConfig(n_layer=2, n_embd=C, n_head=4, vocab_size=1024, block_size=512, bias=True))
    vit = ViT(ViTConfig(image_size=32, patch_size=8, n_embd=C, n_head=4, n_layer=2))
    for model in (gpt, vit):
        block = model.blocks[1]
        found = [(w, 2 * C) for w in (*block.attn.c_attn.weight.split(C), block.attn.c_proj.weight)]
        found += [(block.ffn.c_fc.weight, 5 * C), (block.ffn.c_proj.weight, 5 * C)]  # with fan_in + fan_out
        if model is vit:
            found += [(vit.patch_embed.weight, 192 + C), (vit.head.weight, 1000 + C)]
        else:
            found += [(gpt.wte.weight, 2 / 0.02 ** 2), (gpt.wpe.weight, 2 / 0.02 ** 2)]
        for w, fans in found:
            std = math.sqrt(2 / fans)
            assert abs(w.std().item() / std - 1) < 0.02
            assert abs(w.mean().item()) < 0.02 * std
            assert (w.abs().max() < 2.3 * std) == (model is vit)
        for layer in model.modules():
            assert getattr(layer, 'bias', None) is None or not layer.bias.any()
    assert gpt.lm_head.weight is gpt.wte.weight
    for setting, std in (('S5', 0.5), ('S1', 0.02)):  # with InputNorm of the patches' size
        fresh = ViT(ViTConfig(**SETTINGS[setting], patch_size=8, n_embd=C, n_head=4, n_layer=1))
        assert abs(fresh.pos_embed.std().item() / std - 1) < 0.02
        assert abs(fresh.cls_token.std().item() / std - 1) < 0.2


def test_stochastic_depth():
    assert [getattr(b.drop_path, 'p', 0) for b in tiny_vit(drop_path=0.2).blocks] == [0, 0.1, 0.2]
    drop, x = DropPath(0.25), torch.ones(40000, 1, 2)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y[..., 0], y[..., 1])
    assert abs(y.mean().item() - 1) < 0.02
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize('tied', [True, False])
def test_options_that_save_memory_change_no_gradient(tied):
    """loss_chunk (uneven: 5 of 24 tokens), recompute_blocks, ignored targets, against the plain network."""
    results = []
    for options in ({}, {'loss_chunk': 5}, {'recompute_blocks': True},
                    {'loss_chunk': 5, 'recompute_blocks': True}):
        model = tiny(tied=tied, **options)
        idx, targets = torch.randint(64, (2, 2, 12), generator=torch.Generator().manual_seed(1))
        targets[0, :3] = -100
        logits, loss = model(idx, targets)
        assert (logits is None) == ('loss_chunk' in options)
        assert model(idx)[0].shape == (2, 12, 64)
        loss.backward()
        with torch.no_grad():  # as evaluation does
            torch.testing.assert_close(model.eval()(idx, targets)[1], loss.detach(), rtol=1e-12, atol=0)
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-9, atol=1e-12)
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    grads = []
    for recompute in (False, True):  # with random masks, which must come back
        vit = tiny_vit(dropout=0.2, drop_path=0.3, recompute_blocks=recompute)
        vit(images).square().sum().backward()
        grads.append([p.grad for p in vit.parameters()])
    torch.testing.assert_close(*grads)


def test_what_forward_keeps_for_backward():
    """Bytes that autograd saves: loss_chunk spares the log-probabilities, recompute_blocks half and more."""
    kept = []
    for options in ({}, {'loss_chunk': 4}, {'recompute_blocks': True}):
        model, idx, saved = tiny(vocab_size=512, n_layer=4, **options), torch.arange(24).view(2, 12), {}

        def keep(t):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = model(idx, idx)[1]
        kept.append(sum(saved.values()) - sum(saved.get(p.data_ptr(), 0) for p in {*model.parameters()}))
        loss.backward()
    assert kept[0] - kept[1] >= 0.95 * 24 * 512 * 4, kept
    assert kept[2] < kept[0] / 2, kept


@pytest.mark.parametrize('norm', [RMSNorm(32), LayerNorm(32, bias=True), DyT(32)])
def test_norms_keep_the_dtype_under_autocast(norm):
    torch.manual_seed(0)
    x = torch.randn(5, 32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with torch.autocast('cpu', torch.bfloat16):
            assert norm(x).dtype == torch.float32
            assert torch.equal(norm(x), norm(x.clone()))
            half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    # one rounding at the end
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float()), atol=0.04, rtol=0)


def test_generate():
    model = tiny()
    idx = torch.tensor(IDX[None])
    greedy = model.generate(idx, 8, temperature=0)
    assert greedy.shape == (1, 18)
    assert torch.equal(greedy[:, :10], idx)
    for t in range(10, 18):  # each id is the likeliest one behind what fits into the context
        assert greedy[0, t] == model(greedy[:, max(0, t - 12):t])[0][0, -1].argmax()
    torch.manual_seed(0)
    sampled = model.generate(idx.repeat(20, 1), 20, temperature=5.0, n_tokens=7)[:, 10:]
    assert sampled.max() == 6  # ids past the tokenizer's never come out, all others do
    torch.manual_seed(0)
    top = model.generate(idx.repeat(50, 1), 1, temperature=5.0, top_k=2)[:, -1].unique()
    assert set(top.tolist()) == set(model(idx)[0][0, -1].topk(2).indices.tolist())
    with pytest.raises(ValueError, match='13 tokens do not fit into block_size = 12'):
        model(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize('network,config,sizes,words', [
    (GPT, GPTConfig, dict(norm='batch'), "norm='batch' is unknown. Use 'rms' or 'layer' or 'dyt'."),
    (GPT, GPTConfig, dict(gelu='fast'), "gelu='fast' is unknown. Use 'exact' or 'tanh'."),
    (GPT, GPTConfig, dict(init='zero'), "init='zero' is unknown. Use 'xavier' or 'torch'."),
    (GPT, GPTConfig, dict(n_embd=64, n_head=5), 'n_embd=64 does not divide into n_head=5 heads'),
    (ViT, ViTConfig, dict(image_size=32, patch_size=5), 'patch_size=5 does not divide image_size=32')])
def test_the_networks_refuse_in_words(network, config, sizes, words):
    with pytest.raises(ValueError, match=words):
        network(config(n_layer=1, **sizes))


# -----------------------------------------------------------------------------
# SGDW

def updates(make, steps=5, dtype=torch.float32, seed=0):
    """Parameters after some steps with the gradients of a seed."""
    g = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in ((4, 3), (5,), ())]
    opt = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(dtype)
        opt.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('momentum,nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_sgdw_is_its_equations(foreach, momentum, nesterov):
    """Without decay torch.optim.SGD, bit for bit; with decay the recursion."""
    ours = updates(lambda p: SGDW(p, 0.1, momentum, nesterov=nesterov, foreach=foreach))
    theirs = updates(lambda p: torch.optim.SGD(p, 0.1, momentum, nesterov=nesterov, foreach=False))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    lr, wd = 0.3, 0.2
    ours = updates(lambda p: SGDW(p, lr, momentum, wd, nesterov, foreach), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    w = [torch.randn(shape, generator=g).double().numpy() for shape in ((4, 3), (5,), ())]
    m = [np.zeros_like(x) for x in w]
    for _ in range(5):
        grads = [torch.randn(x.shape, generator=g).double().numpy() for x in w]
        m = [momentum * a + b for a, b in zip(m, grads)]
        steps = [b + momentum * a if nesterov else a for a, b in zip(m, grads)]
        w = [(1 - lr * wd) * x - lr * step for x, step in zip(w, steps)]
    for a, b in zip(ours, w):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-13)
