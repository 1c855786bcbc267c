"""
Everything that must stay true: python -m pytest -q (under two minutes on two CPU cores, no network);
python -m pytest -q -m slow runs what takes longer. References are written from the equations, in NumPy and float64.
"""

import hashlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch

import training
from configurator import configure
from model import GPT, NORMS, SETTINGS, GPTConfig, LayerNorm, RMSNorm
from sgdw import SGDW

ROOT = Path(__file__).resolve().parent

# -----------------------------------------------------------------------------
# the model against the equations


def tiny(setting='S5', seed=0, **kwargs):
    """A small GPT in float64 whose every parameter is random: gains and biases too, so that none can hide."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SETTINGS[setting], **dict(block_size=12, vocab_size=64, n_layer=3, n_head=2, n_embd=16),
                             **kwargs})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def weights(model):
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def np_norm(x, w, name, kind):
    """The paper's RMSN and LN (section 2), where there is a gain of that name; the rest is the identity."""
    if f'{name}.weight' not in w:
        return x
    gamma, beta = w[f'{name}.weight'], w.get(f'{name}.bias', 0.0)
    if kind == 'layer':
        y = x - x.mean(-1, keepdims=True)
        return gamma * y / np.sqrt((y ** 2).sum(-1, keepdims=True) / x.shape[-1] + 1e-5) + beta
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


def np_ffn(x, w, name):
    gelu = np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))
    h = gelu(x @ w[f'{name}.c_fc.weight'].T + w.get(f'{name}.c_fc.bias', 0.0))
    return h @ w[f'{name}.c_proj.weight'].T + w.get(f'{name}.c_proj.bias', 0.0)


def reference(idx, w, setting, n_layer, n_head, kind):
    """The network of a setting as a straight line, each spelled out from section 4.4 and figures 2, 3 and 7."""
    N = lambda x, name: np_norm(x, w, name, kind)  # noqa: E731
    x = w['wte.weight'][idx] + w['wpe.weight'][:len(idx)]
    if setting in ('S3', 'S4', 'S5'):
        x = N(x, 'input_norm')
    for i in range(n_layer):
        b = f'blocks.{i}.'
        att = lambda x: np_attention(x, w, b + 'attn', n_head, kind)  # noqa: B023, E731
        ffn = lambda x: np_ffn(x, w, b + 'ffn')  # noqa: B023, E731
        if setting in ('S1', 'S2', 'S3'):
            x = x + att(N(x, b + 'pre_norm'))
            x = x + ffn(N(x, b + 'ffn_pre_norm'))
        elif setting == 'S4':
            x = x + N(att(N(x, b + 'pre_norm')), b + 'mid_norm')
            x = x + N(ffn(N(x, b + 'ffn_pre_norm')), b + 'ffn_mid_norm')
        elif setting == 'S5':
            x = x + N(att(N(x, b + 'pre_norm')), b + 'mid_norm')
            x = x + N(ffn(x), b + 'ffn_mid_norm')
        elif setting == 'PostLN':
            x = N(x + att(x), b + 'post_norm')
            x = N(x + ffn(x), b + 'ffn_post_norm')
        else:
            x = x + att(x)
            x = x + ffn(x)
    if setting in ('S1', 'S2', 'S3', 'S4', 'S5'):
        x = N(x, 'final_norm')
    return x @ w['lm_head.weight'].T


IDX = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
# which norms a setting has, by the names of their gains in one block; q_norm and k_norm go together
HAS = {'S1': 'pre_norm ffn_pre_norm', 'S2': 'pre_norm ffn_pre_norm attn.q_norm attn.k_norm',
       'S3': 'pre_norm ffn_pre_norm attn.q_norm attn.k_norm',
       'S4': 'pre_norm ffn_pre_norm attn.q_norm attn.k_norm mid_norm ffn_mid_norm',
       'S5': 'pre_norm attn.q_norm attn.k_norm mid_norm ffn_mid_norm',
       'PostLN': 'post_norm ffn_post_norm', 'NoNorm': ''}


@pytest.mark.parametrize('setting', list(SETTINGS))
@pytest.mark.parametrize('kind,bias', [('layer', True), ('rms', False)])
def test_each_setting_is_its_equations(setting, kind, bias):
    """S1 with LayerNorm and bias is GPT-2; the others are the paper's, Vaswani's, and none."""
    model = tiny(setting, norm=kind, bias=bias)
    w = weights(model)
    block = {k[len('blocks.0.'):-len('.weight')] for k in w if k.startswith('blocks.0.') and k.endswith('norm.weight')}
    assert block == set(HAS[setting].split())
    assert ('input_norm.weight' in w) == (setting in ('S3', 'S4', 'S5'))
    assert ('final_norm.weight' in w) == (setting[0] == 'S')
    logits, loss = model(torch.tensor(IDX[None, :-1]), torch.tensor(IDX[None, 1:]))
    expected = reference(IDX[:-1], w, setting, 3, 2, kind)
    np.testing.assert_allclose(logits[0].detach().numpy(), expected, atol=1e-10)
    nll = -np.log(np_softmax(expected))[np.arange(len(IDX) - 1), IDX[1:]].mean()
    assert abs(loss.item() - nll) < 1e-6  # the loss is computed in float32


@pytest.mark.parametrize('qk_norm', [True, False])
def test_flash_is_attention_by_hand(qk_norm):
    fast, slow = (tiny(qk_norm=qk_norm, flash=flash) for flash in (True, False))
    idx = torch.tensor(IDX[None])
    torch.testing.assert_close(fast(idx)[0], slow(idx)[0], atol=1e-12, rtol=0)


def test_no_token_sees_the_future():
    model, idx = tiny(), torch.tensor(IDX[None])
    other = idx.clone()
    other[0, 6:] = 7
    a, b = model(idx)[0], model(other)[0]
    assert torch.equal(a[:, :6], b[:, :6]) and not torch.allclose(a[:, 6:], b[:, 6:])


SCALED = {  # weights that sit before a norm: scaling them changes nothing
    'mid_norm': lambda m: [m.blocks[1].attn.c_proj.weight], 'ffn_mid_norm': lambda m: [m.blocks[1].ffn.c_proj.weight],
    'qk_norm q': lambda m: [m.blocks[1].attn.c_attn.weight[:16]],
    'qk_norm k': lambda m: [m.blocks[1].attn.c_attn.weight[16:32]],
    'input_norm': lambda m: [m.wte.weight, m.wpe.weight]}


@pytest.mark.parametrize('where', list(SCALED))
@pytest.mark.parametrize('kind', ['rms', 'layer'])
def test_scale_before_a_norm_changes_nothing(where, kind):
    norms_eps_aside = 2e-3  # eps is inside the norms, so invariance is up to it
    for setting, invariant in (('S5', True), ('S1', False)):
        model, idx = tiny(setting, norm=kind, tied=False), torch.tensor(IDX[None])
        before = model(idx)[0].detach()
        with torch.no_grad():
            for w in SCALED[where](model):
                w.mul_(3.0)
        change = (model(idx)[0] - before).abs().max() / before.std()
        assert change < norms_eps_aside if invariant else change > 10 * norms_eps_aside


def test_parameter_counts_of_table_3():
    """124.4M, 773.6M, 1438.0M at vocabulary 50304, no bias, S5 (tied head)."""
    for n_layer, n_head, n_embd, count in ((12, 12, 768, 124.4e6), (36, 20, 1280, 773.6e6), (48, 24, 1536, 1438.0e6)):
        with torch.device('meta'):
            model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
        n, C = sum(p.numel() for p in model.parameters()), n_embd
        norms = n_layer * (3 * C + 2 * C // n_head) + 2 * C
        assert n == 50304 * C + 1024 * C + n_layer * 12 * C * C + norms
        assert abs(n - count) < 0.06e6


def test_initial_standard_deviations():
    """The table in GPT's docstring, measured; the tied head is the embedding, not a Linear of its own."""
    C = 256
    model = GPT(GPTConfig(n_layer=2, n_embd=C, n_head=4, vocab_size=1024, block_size=512, bias=True))
    block, std = model.blocks[1], {}
    for name, w in zip('qkv', block.attn.c_attn.weight.split(C)):
        std[name] = (w, math.sqrt(2 / (2 * C)))
    std |= {'o': (block.attn.c_proj.weight, math.sqrt(2 / (2 * C))), '1': (block.ffn.c_fc.weight, math.sqrt(2 / (5 * C))),
            '2': (block.ffn.c_proj.weight, math.sqrt(2 / (5 * C))), 'wte': (model.wte.weight, EMBEDDING_STD(C)),
            'wpe': (model.wpe.weight, EMBEDDING_STD(C))}
    for name, (w, expected) in std.items():
        assert abs(w.std().item() / expected - 1) < 0.02, name
        assert abs(w.mean().item()) < 0.02 * expected, name
    assert model.lm_head.weight is model.wte.weight
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None)


def EMBEDDING_STD(C):
    return 0.02


@pytest.mark.parametrize('norm', [RMSNorm(32), LayerNorm(32, bias=True)])
def test_norms_keep_the_dtype_under_autocast(norm):
    x = torch.randn(5, 32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with torch.autocast('cpu', torch.bfloat16):
            assert norm(x).dtype == torch.float32 and torch.equal(norm(x), norm(x.clone()))
            half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float()), atol=0.04, rtol=0)  # one rounding at the end


def test_generate():
    model = tiny()
    idx = torch.tensor(IDX[None])
    greedy = model.generate(idx, 8, temperature=0)
    assert greedy.shape == (1, 18) and torch.equal(greedy[:, :10], idx)
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
def test_sgdw_is_torch_sgd_without_decay(foreach, momentum, nesterov):
    ours = updates(lambda p: SGDW(p, 0.1, momentum=momentum, nesterov=nesterov, foreach=foreach))
    theirs = updates(lambda p: torch.optim.SGD(p, 0.1, momentum=momentum, nesterov=nesterov, foreach=False))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgdw_is_the_recursion_with_decay(foreach, nesterov):
    lr, mu, wd = 0.3, 0.9, 0.2
    ours = updates(lambda p: SGDW(p, lr, mu, wd, nesterov, foreach=foreach), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    w = [torch.randn(shape, generator=g).double().numpy() for shape in ((4, 3), (5,), ())]
    m = [np.zeros_like(x) for x in w]
    for _ in range(5):
        grads = [torch.randn(x.shape, generator=g).double().numpy() for x in w]
        m = [mu * a + b for a, b in zip(m, grads)]
        w = [(1 - lr * wd) * x - lr * (b + mu * a if nesterov else a) for x, a, b in zip(w, m, grads)]
    for a, b in zip(ours, w):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-13)


def test_sgdw_decoupled_is_not_coupled():
    ours = updates(lambda p: SGDW(p, 0.3, 0.9, 0.2))
    coupled = updates(lambda p: torch.optim.SGD(p, 0.3, 0.9, weight_decay=0.2))
    assert not torch.allclose(ours[0], coupled[0], atol=1e-3)


def test_sgdw_loop_and_foreach_agree_on_mixed_dtypes_and_groups():
    results = []
    for foreach in (False, True):
        g = torch.Generator().manual_seed(1)
        kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
        params = [torch.randn(6, generator=g).to(d).requires_grad_() for d in kinds]
        opt = SGDW([{'params': params[:3], 'weight_decay': 0.1}], lr=0.5, foreach=foreach)
        opt.add_param_group({'params': params[3:], 'lr': 0.05})
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(6, generator=g).to(p.dtype)
            before = [p.grad.clone() for p in params]
            opt.step()
            assert all(torch.equal(p.grad, b) for p, b in zip(params, before))  # gradients are only read
        results.append(params)
    for a, b in zip(*results):
        exact = a.dtype != torch.bfloat16  # foreach rounds mu and 1 - lr wd to bfloat16, the loop does not
        torch.testing.assert_close(a, b, atol=0 if exact else 0.1, rtol=0)


def test_sgdw_state_survives_a_round_trip_and_a_skipped_step(tmp_path):
    def grads(params, seed):
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))

    a, b = [torch.nn.Linear(3, 2) for _ in range(2)]
    b.load_state_dict(a.state_dict())
    opt_a, opt_b = SGDW(a.parameters(), lr=torch.tensor(0.1), weight_decay=0.1), SGDW(b.parameters(), lr=0.1,
                                                                                     weight_decay=0.1)
    opt_a.step()  # nothing has a gradient yet: no state, no change
    assert not opt_a.state and torch.equal(a.weight, b.weight)
    for seed in (0, 1):
        for net, opt in ((a, opt_a), (b, opt_b)):
            grads(list(net.parameters()), seed)
            opt.step()
        if seed == 0:  # resume b from disk
            torch.save(opt_b.state_dict(), tmp_path / 'opt.pt')
            opt_b = SGDW(b.parameters(), lr=9.0)
            opt_b.load_state_dict(torch.load(tmp_path / 'opt.pt', weights_only=True))
    assert torch.equal(a.weight, b.weight)
    assert opt_b.step(closure=lambda: torch.tensor(7.0)) == 7.0


def test_sgdw_refuses_in_words():
    p = torch.zeros(3, requires_grad=True)
    for kwargs, text in (({'lr': -1.0}, 'lr must be at least 0'), ({'lr': float('nan')}, 'lr must be at least 0'),
                         ({'lr': 1.0, 'momentum': -0.1}, 'momentum must be'), ({'lr': torch.ones(2)}, 'one element'),
                         ({'lr': 1.0, 'weight_decay': -1}, 'weight_decay must be'),
                         ({'lr': 1.0, 'momentum': 0.0, 'nesterov': True}, 'nesterov needs momentum')):
        with pytest.raises(ValueError, match=text):
            SGDW([p], **kwargs)
    emb = torch.nn.Embedding(4, 2, sparse=True)
    emb(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match='does not support sparse gradients'):
        SGDW(emb.parameters(), 0.1).step()
    z = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    z.grad = torch.ones_like(z)
    with pytest.raises(RuntimeError, match='does not support complex'):
        SGDW([z], 0.1).step()

# -----------------------------------------------------------------------------
# training.py and configurator.py


def test_schedule():
    lr = [training.lr_at(i, 1.0, 0.1, 10, 110) for i in range(111)]
    assert lr[0] == 1 / 11 and lr[9] == 10 / 11 and lr[10] == 1.0 and abs(lr[60] - 0.55) < 1e-12 and lr[110] == 0.1
    assert all(a >= b for a, b in zip(lr[10:], lr[11:]))
    assert training.lr_at(0, 1.0, 0.0, 0, 10) == 1.0  # no warmup: the peak at once
    assert training.lr_at(1, 1.0, 0.0, 2000, 2) < 0.001  # a run shorter than its warmup


@pytest.mark.parametrize('norm,bias', [('rms', False), ('layer', True)])
def test_param_groups_hold_each_tensor_once(norm, bias):
    model = tiny(norm=norm, bias=bias)
    decay, rest = training.param_groups(model, 0.1)
    ids = [id(p) for group in (decay, rest) for p in group['params']]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].split('.')[-2] for p in decay['params']} == {'wte', 'wpe', 'c_attn', 'c_proj', 'c_fc'}
    assert all(names[id(p)].endswith('bias') or 'norm' in names[id(p)] for p in rest['params'])
    assert decay['weight_decay'] == 0.1 and rest['weight_decay'] == 0.0


def test_split_batch():
    assert training.split_batch(480, 16, 8) == (15, 4)
    assert training.split_batch(480, 30, 16) == (30, 1)
    assert training.split_batch(2, 16, 1) == (2, 1)
    with pytest.raises(SystemExit, match='global_batch_size=10 does not divide over 4 processes'):
        training.split_batch(10, 16, 4)


def settle(*argv, tmp_path=None, **files):
    script = {'lr': 0.1, 'n': 3, 'name': 'x', 'on': False, 'mode': 'auto', '_hidden': 1, '__file__': __file__,
              '__doc__': 'A script.', 'configure': configure}
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    argv = [str(tmp_path / a) if a.endswith('.py') else a for a in argv]
    config = configure(script, argv)
    assert all(script[k] == v for k, v in config.items())
    return config


def test_configurator_order_and_types(tmp_path):
    c = settle('a.py', '--lr=3', 'b.py', '--name=p=q', tmp_path=tmp_path, a='lr = 1\nn = 2 * 5\n_x = 3\nimport math\n',
               b='n = 1e1\non = True\n')
    assert c == {'lr': 3.0, 'n': 10, 'name': 'p=q', 'on': True, 'mode': 'auto'} and type(c['lr']) is float
    assert type(c['n']) is int
    c = settle('--lr=-1e-3', '--n=-4', '--name=123', '--mode=True', '--on=True', tmp_path=tmp_path)
    assert c == {'lr': -0.001, 'n': -4, 'name': '123', 'on': True, 'mode': True}
    assert settle('--name=', tmp_path=tmp_path)['name'] == ''
    assert settle('--name=__import__("os")', tmp_path=tmp_path)['name'] == '__import__("os")'  # a string, not a call


@pytest.mark.parametrize('argv,text', [
    (['--lrr=1'], r"--lrr=1: unknown key 'lrr', did you mean lr\?"), (['--n=2.5'], r'n wants int, got 2.5 \(float\)'),
    (['--n=x'], "n wants int, got 'x'"), (['--lr=True'], 'lr wants float, got True'),
    (['--on=1'], 'on wants True or False, got 1'), (['mode.py'], 'mode wants True, False or auto, got 3'),
    (['--n'], '--n has no value: write --n=VALUE'), (['n=3'], r'did you mean --n=3\?'),
    (['nothing.py'], 'nothing.py does not exist'), (['--_hidden=2'], 'unknown key'),
    (['--batch_size=8'], 'replaced by global_batch_size'),
    (['--gradient_accumulation_steps=8'], 'replaced by global_batch_size'),
    (['bad.py'], 'bad.py, line 2:'), (['imports.py'], "imports.py fails: ModuleNotFoundError: No module named 'nowhere'"),
    (['typo.py'], "typo.py: unknown key 'naem', did you mean name"), (['wrong.py'], "wrong.py: lr wants float, got '1e-3'")])
def test_configurator_refuses_in_words(tmp_path, argv, text):
    with pytest.raises(SystemExit, match=text):
        settle(*argv, tmp_path=tmp_path, bad='n = 1\nn = = 2\n', imports='import nowhere\n', typo='naem = "y"\n',
               wrong='lr = "1e-3"\n', mode='mode = 3\n')

# -----------------------------------------------------------------------------
# train_gpt.py as people run it: as a process. tiny networks on tiny data

SIZE = ['--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=8', '--global_batch_size=4', '--max_iters=20',
        '--log_interval=1', '--eval_interval=5', '--ckpt_interval=5', '--device=cpu',
        '--learning_rate=0.1', '--warmup_iters=2', '--dtype=float32', '--compile=False']


def python(*argv, cwd=ROOT, torchrun=0, **kwargs):
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={torchrun}'] if torchrun else []
    return subprocess.Popen([sys.executable, *launch, *map(str, argv)], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs)


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (process.args, process.returncode, out, err)
    return out, err


def in_parallel(jobs):
    """Results of functions without arguments, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: job(), jobs))


def write_tokens(folder, n_train=3000, n_val=400, vocab=257, seed=0, **meta):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    meta = {'tokenizer': 'byte', 'vocab_size': vocab, 'dtype': 'uint16', 'train_tokens': n_train, 'val_tokens': n_val,
            'source': 'test', **meta}
    for split, n in (('train', n_train), ('val', n_val)):
        (rng.integers(0, 40, n) ** 2 % vocab).astype(meta['dtype']).tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope='session')
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp('tokens'))


def train(tokens, out, *extra, code=0, torchrun=0):
    """Runs train_gpt.py to its end; returns what it said."""
    return finish(python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', *extra, torchrun=torchrun),
                  code)


def rows(out):
    """The log without times and speeds."""
    lines = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith('_per_s')} for row in lines]


def final(out, name='ckpt.pt'):
    return torch.load(out / name, weights_only=True)


def assert_same_run(a, b):
    assert rows(a) == rows(b)
    for name in ('ckpt.pt', 'best.pt'):
        x, y = final(a, name), final(b, name)
        assert x['iter'] == y['iter'] and all(torch.equal(x['model'][k], y['model'][k]) for k in y['model'])


@pytest.fixture(scope='session')
def straight(tokens, tmp_path_factory):
    """One uninterrupted run; dropout on, so that its masks must come back too."""
    out = tmp_path_factory.mktemp('straight')
    train(tokens, out, '--dropout=0.1')
    return out


def test_log_and_checkpoint_are_as_promised(straight, tokens):
    log = rows(straight)
    assert [(r['iter'], r['split']) for r in log] == \
        sorted([(i, 'train') for i in range(20)] + [(i, 'val') for i in range(0, 21, 5)], key=lambda r: (r[0], r[1] == 'train'))
    assert log[-1]['split'] == 'val' and log[-1]['iter'] == 20
    assert all(r['tokens'] == (r['iter'] + (r['split'] == 'train')) * 32 for r in log)
    ckpt = final(straight)
    assert {'model', 'optimizer', 'iter', 'config', 'model_args'} <= set(ckpt) and ckpt['iter'] == 20
    assert json.loads((straight / 'config.json').read_text())['learning_rate'] == 0.1
    # the last val row is the loss of the saved weights over the fixed windows, each counted once
    model = GPT(GPTConfig(**ckpt['model_args'])).eval()
    model.load_state_dict(ckpt['model'])
    val = torch.from_numpy(np.fromfile(tokens / 'val.bin', np.uint16).astype(np.int64))
    starts = range(0, 392, 8)  # 49 windows in 400 tokens
    loss = model(torch.stack([val[i:i + 8] for i in starts]), torch.stack([val[i + 1:i + 9] for i in starts]))[1]
    assert abs(loss.item() - log[-1]['loss']) < 1e-6
    assert not list(straight.glob('*.tmp'))


def test_batches_are_windows_of_the_data_and_change_with_iteration_and_seed(tmp_path):
    """A rate of 0 leaves the weights alone, so the losses of a run tell which windows it saw."""
    n = 60
    write_tokens(tmp_path / 'tokens', n_train=n)
    for name, seed in (('a', 5), ('b', 6)):
        train(tmp_path / 'tokens', tmp_path / name, '--learning_rate=0', '--min_lr=0', '--weight_decay=0', f'--seed={seed}',
              '--global_batch_size=1', '--setting=S1')
    model = GPT(GPTConfig(**final(tmp_path / 'a')['model_args']))
    model.load_state_dict(final(tmp_path / 'a')['model'])
    ids = torch.from_numpy(np.fromfile(tmp_path / 'tokens/train.bin', np.uint16).astype(np.int64))
    every = [model(ids[None, i:i + 8], ids[None, i + 1:i + 9])[1].item() for i in range(n - 8)]
    seen = []
    for r in rows(tmp_path / 'a'):
        if r['split'] == 'train':
            seen.append(int(np.argmin(np.abs(np.array(every) - r['loss']))))
            assert abs(every[seen[-1]] - r['loss']) < 1e-5  # the loss of one window, targets one ahead
    assert len(set(seen)) > 8
    assert [r['loss'] for r in rows(tmp_path / 'a')] != [r['loss'] for r in rows(tmp_path / 'b')]


def test_repeats_and_resumes_bit_for_bit(straight, tokens, tmp_path):
    def again():
        train(tokens, tmp_path / 'again', '--dropout=0.1')
        assert_same_run(straight, tmp_path / 'again')

    def interrupted():
        out = tmp_path / 'interrupted'
        process = python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', '--dropout=0.1')
        while not (out / 'ckpt.pt').exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with open(out / 'log.jsonl', 'a') as f:
            f.write('{"iter": 19, "split": "tr')  # and a line that the kill cut short
        train(tokens, out, '--dropout=0.1', '--init_from=resume')
        assert_same_run(straight, out)

    def too_early():  # killed before anything was saved: resume starts at 0
        out = tmp_path / 'early'
        (out).mkdir()
        said = train(tokens, out, '--dropout=0.1', '--init_from=resume')[0]
        assert 'no checkpoint yet: starting at iteration 0' in said
        assert_same_run(straight, out)

    in_parallel([again, interrupted, too_early])


def test_sigterm_saves_and_leaves(straight, tokens, tmp_path):
    out = tmp_path / 'out'
    process = python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', '--dropout=0.1', '--ckpt_interval=0')
    next(line for line in process.stdout if 'iter      2' in line)
    process.terminate()
    said = finish(process, 143)[0]
    assert 'stopped by a signal at iteration' in said and final(out)['iter'] > 2
    train(tokens, out, '--dropout=0.1', '--ckpt_interval=0', '--init_from=resume')
    assert rows(straight) == rows(out)


def test_one_process_or_two_micro_batches_and_evaluation_change_nothing(tokens, tmp_path):
    jobs = {'one': [], 'two': [], 'two_micro': ['--micro_batch_size=1'], 'micro': ['--micro_batch_size=1'], 'eval_often': ['--eval_interval=1'],
            'eval_never': ['--eval_interval=0']}
    in_parallel([lambda n=n, extra=extra: train(tokens, tmp_path / n, *extra, torchrun=2 if n.startswith('two') else 0)
                 for n, extra in jobs.items()])
    runs = {n: rows(tmp_path / n) for n in jobs}
    for n in ('two', 'two_micro', 'micro'):
        assert [(r['iter'], r['split']) for r in runs[n]] == [(r['iter'], r['split']) for r in runs['one']]
        for a, b in zip(runs['one'], runs[n]):
            assert abs(a['loss'] - b['loss']) < 1e-5
    trained = [[r for r in runs[n] if r['split'] == 'train'] for n in ('one', 'eval_often', 'eval_never')]
    assert trained[0] == trained[1] == trained[2] and len(trained[0]) == 20
    assert len({r['loss'] for r in trained[0]}) == 20


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_other_optimizers_learn(tokens, tmp_path, optimizer):
    train(tokens, tmp_path, f'--optimizer={optimizer}', '--learning_rate=0.01', '--setting=S1', '--norm=layer', '--bias=True',
          '--tied=False', '--log_interval=0')
    log = rows(tmp_path)
    assert log[-1]['loss'] < log[0]['loss'] - 0.05 and {r['split'] for r in log} == {'val'}


def test_weights_of_another_run_and_samples(straight, tokens, tmp_path):
    said, _ = train(tokens, tmp_path / 'tuned', f'--init_from={straight}/ckpt.pt', '--eval_interval=20', '--seed=9')
    assert 'with a fresh optimizer' in said
    assert rows(tmp_path / 'tuned')[0]['loss'] == pytest.approx(rows(straight)[-1]['loss'], abs=1e-6)
    out, _ = train(tokens, straight, '--init_from=resume', '--eval_only=True', '--dropout=0.1')
    assert f'val loss {rows(straight)[-1]["loss"]}' in out
    texts = [finish(python('sample.py', f'--out_dir={straight}', '--device=cpu', '--max_new_tokens=40', '--prompt=ab',
                           '--num_samples=2', f'--seed={s}', '--top_k=30'))[0] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and texts[0].count('-' * 80) == 2
    assert all(t.startswith('ab') for t in texts)


def bad_data(folder, **change):
    write_tokens(folder)
    for name, content in change.items():
        path = folder / name.replace('_', '.')
        path.unlink() if content is None else path.write_bytes(content)
    return folder


def test_mistakes_get_one_sentence(straight, tokens, tmp_path):
    meta = json.loads((tokens / 'meta.json').read_text())
    garbage = tmp_path / 'garbage.pt'
    garbage.write_bytes(b'not a checkpoint')
    cut = tmp_path / 'cut.pt'
    cut.write_bytes((straight / 'ckpt.pt').read_bytes()[:5000])
    foreign = tmp_path / 'foreign.pt'
    torch.save({'state_dict': {}}, foreign)
    lacking = tmp_path / 'lacking.pt'
    whole = final(straight)
    torch.save({**whole, 'model': {k: v for k, v in whole['model'].items() if 'wpe' in k}}, lacking)
    file = tmp_path / 'file'
    file.write_text('')
    lies = json.dumps({**meta, 'train_tokens': 2999}).encode()
    table = [  # arguments, words of the message
        (['--n_embd=1048576', '--n_head=1', f'--out_dir={tmp_path}/x'], 'does not fit into memory'),
        (['--n_layer=1001'], 'use 1 to 1000'), (['--dropout=1.5'], 'dropout=1.5 is out of range'),
        (['--beta2=1'], 'beta2=1.0 is out of range'),
        (['--dataset=nowhere'], 'there is no data set in data/nowhere: make it with python prepare_owt.py'),
        ([f'--dataset={bad_data(tmp_path / "a", train_bin=None)}'], 'train.bin does not exist'),
        ([f'--dataset={bad_data(tmp_path / "b", train_bin=b"x" * 101)}'], 'has 101 bytes, not 2 for each of 3000 tokens'),
        ([f'--dataset={bad_data(tmp_path / "c", val_bin=b"")}'], 'has 0 bytes, not 2 for each of 400'),
        ([f'--dataset={bad_data(tmp_path / "d", meta_json=b"{")}'], 'meta.json is broken'),
        ([f'--dataset={bad_data(tmp_path / "e", meta_json=lies)}'], 'has 6000 bytes, not 2 for each of 2999 tokens'),
        ([f'--dataset={bad_data(tmp_path / "f", meta_json=None, meta_pkl=b"x")}'], 'meta.pkl of nanoGPT'),
        (['--vocab_size=100'], 'vocab_size=100 is less than the 257 of'),
        ([f'--dataset={bad_data(tmp_path / "g", train_bin=b"xx" * 3000)}', f'--out_dir={tmp_path}/g/out'],
         'train.bin holds the id 30840, past the vocabulary of 320'),
        (['--block_size=400'], 'too few for block_size=400'),
        (['--n_head=3'], 'n_embd=16 does not divide into n_head=3 heads'), (['--n_layer=0'], 'n_layer=0 is out of range'),
        (['--block_size=-8'], 'block_size=-8 is out of range'), (['--micro_batch_size=0'], 'micro_batch_size=0 is out of'),
        (['--setting=S6'], 'setting=S6 is unknown: use one of S1'), (['--optimizer=adam'], 'optimizer=adam is unknown'),
        (['--norm=batch'], 'norm=batch is unknown'), (['--mid_norm=maybe'], 'mid_norm=maybe is not one of'),
        (['--device=tpu'], 'device=tpu is unknown'), (['--dtype=float16'], 'dtype=float16 is not one of'),
        (['--seed=-1'], 'seed=-1 is out of range'), (['--learning_rate=1e999'], 'learning_rate=inf is out of range'),
        (['--init_from=resume', '--n_layer=3'], 'was made with n_layer=2'),
        (['--init_from=resume', '--seed=2'], 'was made with seed=1337'),
        (['--init_from=resume', '--setting=S1'], 'was made with input_norm=True'),
        (['--init_from=resume', '--max_iters=10'], 'is at iteration 20, past max_iters=10'),
        ([], 'holds a run: go on with it (--init_from=resume), replace it (--overwrite=True)'),
        ([f'--init_from={straight}/ckpt.pt', '--n_embd=32', f'--out_dir={tmp_path}/x'], 'was made with n_embd=16, now it is 32'),
        ([f'--init_from={straight}/ckpt.pt', '--block_size=9', f'--out_dir={tmp_path}/x'], 'knows 8 positions, fewer than'),
        ([f'--init_from={tokens}'], 'is not a GPT-2 folder'),
        (['--eval_only=True'], 'eval_only needs weights'), (['--seed=4294967296'], 'seed=4294967296 is out of range'),
        ([f'--dataset={bad_data(tmp_path / "h", meta_json=json.dumps({**meta, "vocab_size": 257.5}).encode())}'],
         'meta.json is broken'),
        ([f'--dataset={bad_data(tmp_path / "i", meta_json=json.dumps({**meta, "tokenizer": "gpt3"}).encode())}'],
         'meta.json is broken'),
        (['--init_from=resume', f'--dataset={bad_data(tmp_path / "j", meta_json=json.dumps({**meta, "source": "x"}).encode())}'],
         'was made with source=test, now it is x'),
        ([f'--init_from={straight}/best.pt', '--overwrite=True'], 'lies in the out_dir that is to be overwritten'),
        ([f'--init_from={lacking}', f'--out_dir={tmp_path}/x'], 'does not hold the weights of this model'),
        ([f'--init_from={garbage}'], 'is not a whole checkpoint of this project'),
        ([f'--init_from={cut}'], 'is not a whole checkpoint of this project'),
        ([f'--init_from={foreign}'], 'it has no config, data, iter'), (['--init_from=absent.pt'], 'cannot read the checkpoint'),
        ([f'--out_dir={file}'], 'cannot use out_dir='),
        (['--learning_rate=1e30', '--grad_clip=0', '--overwrite=True', f'--out_dir={tmp_path}/nan'],
         'The last good checkpoint is none. Try a lower learning_rate'),
    ]
    before = {p.name: p.read_bytes() for p in straight.iterdir()}

    def check(args, text):
        out, err = train(tokens, straight, '--dropout=0.1', *args, code=1)
        assert text in err and len(err.strip().splitlines()) == 1, (args, out, err)

    in_parallel([lambda row=row: check(*row) for row in table])
    assert {p.name: p.read_bytes() for p in straight.iterdir()} == before  # nothing was lost


def test_gpt2_weights_from_a_hugging_face_folder(tmp_path):
    """A random checkpoint in that format computes the same as the equations with its (in, out) matrices."""
    from safetensors.torch import save_file
    rng, C = torch.Generator().manual_seed(0), 16
    shapes = {'wte.weight': (64, C), 'wpe.weight': (12, C), 'ln_f.weight': (C,), 'ln_f.bias': (C,)}
    for i in range(2):
        for name, shape in (('attn.c_attn', (C, 3 * C)), ('attn.c_proj', (C, C)), ('mlp.c_fc', (C, 4 * C)),
                            ('mlp.c_proj', (4 * C, C))):
            shapes |= {f'h.{i}.{name}.weight': shape, f'h.{i}.{name}.bias': shape[1:]}
        shapes |= {f'h.{i}.ln_{j}.{k}': (C,) for j in (1, 2) for k in ('weight', 'bias')}
        shapes[f'h.{i}.attn.bias'] = (1, 1, 12, 12)  # the causal mask that old files carry
    hf = {k: torch.randn(shape, generator=rng) for k, shape in shapes.items()}
    save_file(hf, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({'n_layer': 2, 'n_head': 2, 'n_embd': C, 'n_positions': 12,
                                                      'vocab_size': 64}))
    checkpoint = training.load_gpt2(tmp_path)
    model = GPT(GPTConfig(**checkpoint['model_args']))
    model.load_state_dict(checkpoint['model'])
    x = hf['wte.weight'][IDX] + hf['wpe.weight'][:len(IDX)]

    def ln(x, name):
        return torch.nn.functional.layer_norm(x, (C,), hf[f'{name}.weight'], hf[f'{name}.bias'])

    def conv1d(x, name):
        return x @ hf[f'{name}.weight'] + hf[f'{name}.bias']

    for h in ('h.0', 'h.1'):
        q, k, v = conv1d(ln(x, f'{h}.ln_1'), f'{h}.attn.c_attn').view(-1, 3, 2, 8).permute(1, 2, 0, 3)
        mask = torch.full((len(IDX), len(IDX)), float('-inf')).triu(1)
        y = ((q @ k.mT / 8 ** 0.5 + mask).softmax(-1) @ v).transpose(0, 1).reshape(-1, C)
        x = x + conv1d(y, f'{h}.attn.c_proj')
        x = x + conv1d(torch.nn.functional.gelu(conv1d(ln(x, f'{h}.ln_2'), f'{h}.mlp.c_fc')), f'{h}.mlp.c_proj')
    expected = ln(x, 'ln_f') @ hf['wte.weight'].T
    torch.testing.assert_close(model(torch.tensor(IDX[None]))[0][0], expected, atol=1e-3, rtol=1e-4)
    (tmp_path / 'model.safetensors').write_bytes(b'cut short')
    with pytest.raises(SystemExit, match='is not a GPT-2 folder'):
        training.load_gpt2(tmp_path)


def test_overwrite_replaces_a_run(tokens, tmp_path):
    for extra in ([], ['--overwrite=True', '--seed=3']):
        train(tokens, tmp_path, '--keep_interval=10', *extra)
    assert final(tmp_path)['config']['seed'] == 3 and len(rows(tmp_path)) == 25
    assert sorted(p.name for p in tmp_path.glob('*.pt')) == ['best.pt', 'ckpt.pt', 'ckpt_000010.pt', 'ckpt_000020.pt']
    with pytest.raises(SystemExit, match='cannot read the checkpoint'):
        training.load_checkpoint(tmp_path / 'ckpt_000030.pt')


TABLE_3_AND_5 = {  # width, heads, depth, batch, parameters, AdamW's rate for GPT-2; table 1: AdamW and mSGDW of both
    'small': (768, 12, 12, 480, 124.4, 6e-4, {'gpt2': (2.867, 2.906), 'dnt': (2.863, 2.849)}),
    'large': (1280, 20, 36, 512, 773.6, 2.5e-4, {'gpt2': (2.492, 2.544), 'dnt': (2.481, 2.503)}),
    'xl': (1536, 24, 48, 512, 1438.0, 1.5e-4, {'gpt2': (2.435, 2.472), 'dnt': (2.396, 2.408)})}


def load_config(path):
    """What train_gpt.py makes of a config file."""
    names = {'__name__': 'config', '__file__': str(ROOT / 'train_gpt.py')}
    exec((ROOT / 'train_gpt.py').read_text().split('config = configure(globals())')[0], names)
    return configure(names, [str(path)])


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.py')), ids=lambda path: path.stem)
def test_config_has_the_numbers_of_its_row(path):
    text, c = path.read_text(), load_config(path)
    for key in ('optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', 'warmup_iters'):
        assert f'\n{key} = ' in text, key
    arch, size = path.stem.split('_')[:2]
    assert path.stem.split('_')[2:] in ([], [c['optimizer']]) and c['out_dir'] == f'out/{path.stem}'
    assert (c['setting'], c['norm'], c['bias']) == (('S5', 'rms', False) if arch == 'dnt' else ('S1', 'layer', False))
    assert all(c[n] == 'auto' for n in NORMS) and (c['beta1'], c['beta2'], c['momentum']) == (0.9, 0.95, 0.9)
    with torch.device('meta'):
        model = GPT(GPTConfig(**SETTINGS[c['setting']], **{k: c[k] for k in (
            'n_layer', 'n_head', 'n_embd', 'block_size', 'norm', 'bias')}))
    if size in TABLE_3_AND_5:
        C, H, L, batch, params, gpt2_lr, losses = TABLE_3_AND_5[size]
        assert (c['n_embd'], c['n_head'], c['n_layer'], c['global_batch_size']) == (C, H, L, batch)
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - params) < 0.1
        sgdw = c['optimizer'] == 'sgdw'
        lr = 1.0 if sgdw else 6e-4 if arch == 'dnt' else gpt2_lr
        assert (c['learning_rate'], c['min_lr'], c['weight_decay'], c['warmup_iters'], c['max_iters'], c['grad_clip'],
                c['block_size'], c['dropout']) == (lr, 6e-5, 1e-4 if sgdw else 0.1, 0 if sgdw else 2000, 200000, 1.0, 1024, 0)
        assert f'(table 1): {losses[arch][sgdw]}. not run here.' in text
        assert f'= {batch * 1024:,} tokens per update' in text and f'{batch * 1024 * 200000 / 1e9:.1f}B tokens' in text
    else:  # the tiny ones share model size, data and iterations
        same = ('dataset', 'n_layer', 'n_head', 'n_embd', 'block_size', 'global_batch_size', 'max_iters', 'eval_tokens', 'seed')
        first = load_config(ROOT / 'config/dnt_tiny.py')
        assert size == 'tiny' and all(c[k] == first[k] for k in same)


def test_help_lists_every_key_with_its_comment():
    out, _ = finish(python('train_gpt.py', '--help'))
    assert 'warmup_iters = 0' in out and 'linear warmup' in out and "init_from = 'scratch'" in out
    assert out.count('\n  ') >= 45


def test_a_full_disk_leaves_the_last_checkpoint(tokens, tmp_path):
    """Files cannot grow past a limit that the network of the first run keeps, and that of the second does not."""
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    train(tokens, tmp_path, '--max_iters=5')
    good = (tmp_path / 'ckpt.pt').read_bytes()
    assert len(good) > 20_000
    process = python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={tmp_path}', '--init_from=resume',
                     preexec_fn=small_files)
    _, err = finish(process, 1)
    assert 'cannot write' in err and 'the last good one' in err and len(err.strip().splitlines()) == 1, err
    assert (tmp_path / 'ckpt.pt').read_bytes() == good and not list(tmp_path.glob('*.tmp'))
    train(tokens, tmp_path, '--init_from=resume')  # with room again
    assert final(tmp_path)['iter'] == 20 and len(rows(tmp_path)) == 25


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_every_rank(tokens, tmp_path):
    train(tokens, tmp_path, '--max_iters=6', '--ckpt_interval=1')
    before = final(tmp_path)
    extra = ['--init_from=resume', '--ckpt_interval=1']
    _, err = train(tokens, tmp_path, '--learning_rate=1e30', '--warmup_iters=0', '--grad_clip=0', *extra, code=1, torchrun=2)
    said = [line for line in err.splitlines() if 'so no step was made' in line]
    assert len(said) == 1 and 'iteration 7: loss nan, gradient norm nan at learning rate' in said[0], err
    assert 'The last good checkpoint is that of iteration 6' in said[0]
    assert all(torch.equal(before['model'][k], final(tmp_path)['model'][k]) for k in before['model'])
    train(tokens, tmp_path, *extra)  # and it is good: with the old rate the run goes on from it
    assert final(tmp_path)['iter'] == 20


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tokens, tmp_path):
    """kill -9 at random moments, most of them while a checkpoint is written, then resume: the same run, bit for bit."""
    moments, kills, out, extra = random.Random(0), [], tmp_path / 'killed', ['--max_iters=400', '--dropout=0.1']
    train(tokens, tmp_path / 'straight', *extra, '--ckpt_interval=1')
    for _ in range(20):
        process = python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', *extra, '--ckpt_interval=1',
                         '--init_from=resume')
        next((line for line in process.stdout if 'iter  ' in line), None)
        time.sleep(moments.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        kills.append(final(out)['iter'] if (out / 'ckpt.pt').exists() else 0)
    assert kills == sorted(kills) and len({k for k in kills if 0 < k < 400}) > 10  # in the midst of it, and none lost
    train(tokens, out, *extra, '--ckpt_interval=1', '--init_from=resume')
    assert_same_run(tmp_path / 'straight', out)


@pytest.mark.slow
def test_sigterm_under_torchrun_saves_once_and_all_leave(tokens, tmp_path):
    process = python('train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={tmp_path}', '--max_iters=100000',
                     '--eval_interval=0', '--ckpt_interval=0', torchrun=2)
    next(line for line in process.stdout if 'iter      9' in line)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode not in (None, -9)
    assert final(tmp_path)['iter'] >= 9 and final(tmp_path)['iter'] <= rows(tmp_path)[-1]['iter'] + 1


@pytest.mark.slow
@pytest.mark.skipif(not any(os.access(os.path.join(d, 'g++'), os.X_OK) for d in os.environ['PATH'].split(':')),
                    reason='torch.compile on a CPU needs a C++ compiler')
@pytest.mark.parametrize('torchrun', [0, 2])
def test_compile_is_the_same_to_rounding(tokens, tmp_path, torchrun):
    train(tokens, tmp_path / 'eager')
    train(tokens, tmp_path / 'compiled', '--compile=True', '--micro_batch_size=1', torchrun=torchrun)
    for a, b in zip(rows(tmp_path / 'eager'), rows(tmp_path / 'compiled')):
        assert abs(a['loss'] - b['loss']) < 1e-4


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(tokens, tmp_path):
    for dtype in ('float32', 'bfloat16'):
        train(tokens, tmp_path / dtype, f'--dtype={dtype}')
    a, b = rows(tmp_path / 'float32')[-1], rows(tmp_path / 'bfloat16')[-1]
    assert abs(a['loss'] - b['loss']) < 0.02

# -----------------------------------------------------------------------------
# prepare_owt.py

TEXTS = ['one two', '', 'na\u00efve \u4e2d\u6587 \U0001f600\r\nnew line', 'x<|endoftext|>y'] + [
    f'document {i} ' * (i % 7 + 1) for i in range(196)]
NOBODY = 'http://127.0.0.1:9'  # nothing listens there


def start_prepare(folder, *flags, hub=NOBODY, **env):
    """prepare_owt.py in a folder of its own, bytes unless told otherwise, and no way out to the network."""
    flags = ['--num_proc=2', *flags] if any('--tokenizer' in f for f in flags) else [
        '--num_proc=2', '--tokenizer=byte', *flags]
    env = {**os.environ, 'HF_HOME': str(folder / 'hf'), 'HF_ENDPOINT': hub, 'HF_HUB_DISABLE_TELEMETRY': '1',
           'HF_HUB_DISABLE_XET': '1', 'HF_HUB_ETAG_TIMEOUT': '2', 'HF_HUB_DOWNLOAD_TIMEOUT': '2', **env}
    return subprocess.Popen([sys.executable, str(ROOT / 'prepare_owt.py'), *flags], cwd=folder, env=env,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def prepare(folder, *flags, code=0, **env):
    """Runs to the end; returns what it printed or, if it refused, the sentence it ended with."""
    return end_prepare(start_prepare(folder, *flags, **env), code)


def end_prepare(process, code=0):
    out, err = process.communicate(timeout=200)
    assert process.returncode == code and 'Traceback' not in err, (process.args, process.returncode, out, err)
    return out if code == 0 else err.replace('\r', '\n').strip().splitlines()[-1]


def prepared(folder):
    """-> the documents of train and val as they are decoded from the bins, and the meta file"""
    meta = json.loads((folder / 'meta.json').read_text())
    documents = []
    for split in ('train', 'val'):
        ids = np.fromfile(folder / f'{split}.bin', meta['dtype'])
        ends = np.flatnonzero(ids == meta['vocab_size'] - 1)
        assert len(ids) == meta[f'{split}_tokens'] and len(ends) == meta[f'{split}_documents']
        assert ends[-1] == len(ids) - 1
        starts = np.r_[0, ends[:-1] + 1]
        documents.append([bytes(ids[a:b].astype(np.uint8)).decode() for a, b in zip(starts, ends)])
    assert not list(folder.glob('*.tmp'))
    return *documents, meta


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def nanogpt_split(texts):
    order = np.random.default_rng(2357).permutation(len(texts))
    cut = -(-len(texts) * 5 // 10_000)
    return [texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]]


def write_lines(path, texts, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps({'id': i, 'text': text, **more}) + '\n' for i, text in enumerate(texts)))
    return path


def test_prepare_stdlib(tmp_path):
    said = prepare(tmp_path, '--dataset=stdlib', '--tokenizer=auto')
    train, val, meta = prepared(tmp_path / 'data/stdlib')
    assert meta['tokenizer'] == 'byte' and meta['vocab_size'] == 257 and meta['dtype'] == 'uint16'
    assert meta['source'] == 'stdlib' and meta['python'] == sys.version.split()[0] and len(meta['sha256']) == 64
    assert f'{meta["train_tokens"]:,} tokens' in said and 'MB are free' in said
    root = Path(sysconfig.get_path('stdlib'))
    both = set(train + val)
    for name in ('argparse.py', 'json/decoder.py', 'html/entities.py', 'encodings/aliases.py', 'keyword.py'):
        assert ((root / name).read_bytes().decode() in both) == (name in ('argparse.py', 'json/decoder.py'))
    assert len(val) == (len(train) + len(val)) // 20
    # in sorted order, every 20th held out: put together again, the list is sorted
    rest, held_out = iter(train), iter(val)
    everything = [next(held_out) if i % 20 == 19 else next(rest) for i in range(len(train) + len(val))]
    at = [everything.index((root / name).read_bytes().decode())
          for name in ('abc.py', 'ast.py', 'json/decoder.py', 'logging/handlers.py', 'zipapp.py')]
    assert at == sorted(at)

    before = digests(tmp_path / 'data/stdlib')
    assert '--overwrite=True' in prepare(tmp_path, '--dataset=stdlib', code=1)
    prepare(tmp_path, '--dataset=stdlib', '--overwrite=True', '--num_proc=1')
    assert digests(tmp_path / 'data/stdlib') == before


def test_prepare_text_files(tmp_path):
    folder = tmp_path / 'texts'
    for i, text in enumerate(TEXTS):
        # of a text, the name says nothing about the split
        path = folder / f'{i % 3}' / (f'{i:03d}.txt' if i % 2 else f'train_{i:03d}.py')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (folder / '.hidden').mkdir()
    (folder / '.hidden/not.txt').write_text('not me')
    (folder / 'picture.png').write_bytes(b'\x89PNG\xff')
    in_order = [p.read_bytes().decode() for p in sorted(folder.glob('*/*'), key=lambda p: p.as_posix())
                if '.hidden' not in p.parts]
    said = prepare(tmp_path, f'--dataset={folder}')
    train, val, meta = prepared(tmp_path / 'data/texts')
    assert (train, val) == nanogpt_split(in_order) and len(val) == 1
    assert '1 documents are empty' in said and meta['source'] == str(folder)
    prepare(tmp_path, f'--dataset={folder}', '--out_dir=other', '--max_docs=40', '--val_fraction=0.25')
    train, val, meta = prepared(tmp_path / 'other')
    assert len(train) == 30 and sorted(train + val) == sorted(in_order[:40])


def test_prepare_json_lines_and_parquet_give_the_same_bins(tmp_path):
    pytest.importorskip('datasets')
    write_lines(tmp_path / 'lines/a.jsonl', TEXTS[:90])
    write_lines(tmp_path / 'lines/b.jsonl', TEXTS[90:])
    (tmp_path / 'lines/README.md').write_text('about')
    (tmp_path / 'table').mkdir()
    for name, part in (('a', TEXTS[:90]), ('b', TEXTS[90:])):
        (tmp_path / f'table/{name}.parquet').write_bytes(parquet(part))
    prepare(tmp_path, '--dataset=lines', '--num_proc=1')
    prepare(tmp_path, '--dataset=table', '--num_proc=3')
    train, val, _ = prepared(tmp_path / 'data/lines')
    assert (train, val) == nanogpt_split(TEXTS)
    for name in ('train.bin', 'val.bin'):
        assert (tmp_path / 'data/lines' / name).read_bytes() == (tmp_path / 'data/table' / name).read_bytes()

    # that is what `datasets` itself calls the split
    from datasets import Dataset
    split = Dataset.from_dict({'text': TEXTS}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert (train, val) == (list(split['train']['text']), list(split['test']['text']))

    # a stream is read in its order, one row of so many to validation
    prepare(tmp_path, '--dataset=table', '--out_dir=stream', '--streaming=True', '--val_fraction=0.1',
            '--max_docs=150')
    train, val, _ = prepared(tmp_path / 'stream')
    assert val == TEXTS[:150:10] and train == [t for i, t in enumerate(TEXTS[:150]) if i % 10]


def test_prepare_keeps_named_splits_and_odd_lines(tmp_path):
    write_lines(tmp_path / 'named/train-00000-of-00002.jsonl', TEXTS[:50])
    write_lines(tmp_path / 'named/train-00001-of-00002.jsonl', TEXTS[50:100])
    write_lines(tmp_path / 'named/validation.jsonl', TEXTS[100:120])
    write_lines(tmp_path / 'named/test.jsonl', TEXTS[120:])
    prepare(tmp_path, '--dataset=named')
    assert prepared(tmp_path / 'data/named')[:2] == (TEXTS[:100], TEXTS[100:120])

    (tmp_path / 'odd.json').write_bytes(b'{"text": "a\\ud800b"}\r\n\n  \n{"text": null}\n'
                                        b'{"text": "\\ud83d\\ude00"}')
    prepare(tmp_path, '--dataset=odd.json', '--val_fraction=0.3')
    train, val, meta = prepared(tmp_path / 'data/odd')
    assert sorted(train + val) == ['', 'a\ufffdb', '\U0001f600']


def test_prepare_refuses_in_words(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    broken = write_lines(tmp_path / 'broken.jsonl', TEXTS)
    broken.write_text(broken.read_text() + '{"text": "cut off\n')
    write_lines(tmp_path / 'number.jsonl', [1, 2, 3])
    (tmp_path / 'array.json').write_text('[\n {"text": "a"},\n {"text": "b"}\n]\n')
    (tmp_path / 'latin').mkdir()
    (tmp_path / 'latin/a.txt').write_text('fine')
    (tmp_path / 'latin/b.txt').write_bytes(b'caf\xe9 au lait')
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures/a.png').write_bytes(b'\x89PNG')
    (tmp_path / 'alone.txt').write_text('one text is one document')
    (tmp_path / 'nothing.jsonl').write_text('')
    write_lines(tmp_path / 'empty.jsonl', ['', '', ''])
    (tmp_path / 'bad.parquet').write_bytes(b'PAR1 is not enough')
    (tmp_path / 'file').write_text('in the way')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/meta.json').write_text('{"classes": 10}')
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    cases = [
        (['--dataset=broken.jsonl'], ['broken.jsonl', 'line 201', 'not JSON']),
        (['--dataset=good.jsonl', '--text_column=body'], ["no key 'body'", 'id, text', '--text_column']),
        (['--dataset=number.jsonl'], ['int', 'not text', '--text_column']),
        (['--dataset=array.json'], ['array.json, line ', 'one object a line']),
        (['--dataset=latin', '--val_fraction=0.5'], ['b.txt', 'not UTF-8 at byte 3', 'iconv']),
        (['--dataset=pictures'], ['pictures holds no text', '.jsonl']),
        (['--dataset=alone.txt'], ['too few documents (1)', 'cut the text']),
        (['--dataset=nothing.jsonl'], ['nothing.jsonl holds no text']),
        (['--dataset=empty.jsonl'], ['all documents are empty']),
        (['--dataset=bad.parquet'], ['bad.parquet', 'parquet']),
        (['--dataset=./not/there'], ['no file or folder ./not/there']),
        (['--dataset=good.jsonl', '--tokenizer=gpt3'], ["unknown tokenizer 'gpt3'", 'byte']),
        (['--dataset=good.jsonl', '--val_fraction=1.5'], ['val_fraction']),
        (['--dataset=good.jsonl', '--max_docs=-1'], ['max_docs']),
        (['--dataset=good.jsonl', '--out_dir=file'], ['file', 'mend']),
        (['--dataset=good.jsonl', '--out_dir=images'], ['images', 'meta.json', '--out_dir']),
        (['--dataset=good.jsonl', '--max_doc=1'], ['max_docs']),
    ]
    for three in (cases[i:i + 3] for i in range(0, len(cases), 3)):
        for process, words in [(start_prepare(tmp_path, *flags), words) for flags, words in three]:
            sentence = end_prepare(process, code=1)
            assert all(word in sentence for word in words), (sentence, words)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    assert not (tmp_path / 'data').exists() or not list((tmp_path / 'data').iterdir())


def test_prepare_leaves_the_old_set_until_the_new_one_is_complete(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, '--dataset=good.jsonl')
    before = digests(tmp_path / 'data/good')
    (tmp_path / 'good.jsonl').write_text((tmp_path / 'good.jsonl').read_text() + 'broken\n')
    assert 'line 201' in prepare(tmp_path, '--dataset=good.jsonl', '--overwrite=True', code=1)
    assert digests(tmp_path / 'data/good') == before
    # killed between two renames: no bin pair without meta.json, and the next call is not refused
    (tmp_path / 'data/good/val.bin').rename(tmp_path / 'data/good/val.bin.tmp')
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    prepare(tmp_path, '--dataset=good.jsonl')
    assert digests(tmp_path / 'data/good') == before


def test_prepare_says_that_the_disk_is_full(tmp_path):
    resource = pytest.importorskip('resource')
    write_lines(tmp_path / 'good.jsonl', [text * 100 for text in TEXTS])
    code = (f'import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); '
            f'sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {str(ROOT / "prepare_owt.py")!r}; '
            f'runpy.run_path(sys.argv[0], run_name="__main__")')
    run = subprocess.run([sys.executable, '-c', code, '--dataset=good.jsonl', '--tokenizer=byte'], cwd=tmp_path,
                         capture_output=True, text=True)
    assert resource and run.returncode == 1 and 'Traceback' not in run.stderr, run.stderr
    assert 'File too large' in run.stderr and not (tmp_path / 'data/good').exists()


def test_prepare_takes_four_bytes_past_65536_ids(tmp_path):
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    code = ('import prepare_owt as p; p.VOCAB["byte"] = 70_000; p.main(dict(dataset="good.jsonl", out_dir="big", '
            'tokenizer="byte", text_column="text", max_docs=0, val_fraction=0.0005, streaming="auto", '
            'revision="", num_proc=1, overwrite=False))')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                   check=True, capture_output=True)
    assert prepared(tmp_path / 'big')[:2] == nanogpt_split(TEXTS)
    assert np.fromfile(tmp_path / 'big/val.bin', '<u4')[-1] == 69_999


def test_prepare_gpt2(tmp_path):
    tiktoken = pytest.importorskip('tiktoken')
    write_lines(tmp_path / 'good.jsonl', TEXTS)
    flags = ['--dataset=good.jsonl', '--tokenizer=gpt2', '--val_fraction=0.1']
    sentence = prepare(tmp_path, *flags, code=1, TIKTOKEN_CACHE_DIR=str(tmp_path / 'none'), HTTPS_PROXY=NOBODY,
                       https_proxy=NOBODY)
    assert 'TIKTOKEN_CACHE_DIR' in sentence and '--tokenizer=byte' in sentence
    cache = os.environ.get('TIKTOKEN_CACHE_DIR') or os.environ.get('DATA_GYM_CACHE_DIR')
    if not cache or not (Path(cache) / '0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4').exists():
        pytest.skip("gpt2's file is not here and there is no network: set TIKTOKEN_CACHE_DIR to where it is")
    prepare(tmp_path, *flags)
    encoding = tiktoken.get_encoding('r50k_base')
    meta = json.loads((tmp_path / 'data/good/meta.json').read_text())
    assert (meta['tokenizer'], meta['vocab_size'], meta['dtype']) == ('gpt2', 50257, 'uint16')
    order = np.random.default_rng(2357).permutation(len(TEXTS))
    for split, documents in (('train', order[20:]), ('val', order[:20])):
        ids = np.fromfile(tmp_path / f'data/good/{split}.bin', '<u2').tolist()
        assert ids == [i for d in documents for i in [*encoding.encode_ordinary(TEXTS[d]), 50256]]
        assert len(ids) == meta[f'{split}_tokens'] and ids.count(50256) == len(documents)
        assert encoding.decode(ids) == ''.join(TEXTS[d] + '<|endoftext|>' for d in documents)


def kill_midway(folder, flags, wait):
    """kill -9 after so many seconds of writing; True if it was still at work. No worker may survive it."""
    process = start_prepare(folder, *flags)
    tmp = folder / 'killed/train.bin.tmp'
    while process.poll() is None and not tmp.exists():
        time.sleep(0.01)
    time.sleep(wait)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    children = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in children)
    return process.returncode == -signal.SIGKILL


def killed_as_if_never(tmp_path, texts, waits):
    write_lines(tmp_path / 'good.jsonl', texts)
    prepare(tmp_path, '--dataset=good.jsonl', '--out_dir=straight')
    flags, killed = ['--dataset=good.jsonl', '--out_dir=killed'], 0
    for wait in waits:
        if kill_midway(tmp_path, flags, wait):
            killed += 1
            assert not {'train.bin', 'val.bin'} <= {p.name for p in (tmp_path / 'killed').iterdir()}
            assert not (tmp_path / 'killed/val.bin').exists()
        else:
            for path in (tmp_path / 'killed').iterdir():
                path.unlink()
    prepare(tmp_path, *flags)
    assert digests(tmp_path / 'killed') == digests(tmp_path / 'straight')
    return killed


def test_prepare_killed_halfway_then_gives_the_same_bytes(tmp_path):
    assert killed_as_if_never(tmp_path, [f'{text} ' * 4000 for text in TEXTS], [0])


@pytest.mark.slow
def test_prepare_killed_at_five_random_moments(tmp_path):
    waits = [random.Random(1).uniform(0, 1) for _ in range(5)]
    assert killed_as_if_never(tmp_path, [f'{text} ' * 4000 for text in TEXTS] * 5, waits) >= 3


# a Hub of our own: as much of it as load_dataset asks for


class Hub(BaseHTTPRequestHandler):
    """
    server.sets: {'owner/name' or 'owner/name@revision': {path: bytes} or an HTTP status}; .broken: paths of which
    only half is sent; .plain: without the header by which the Hub says more about an error
    """
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', half=False, **headers):
        self.send_response(status)
        for key, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[:len(body) // 2] if half else body)
        self.close_connection = half

    def do_GET(self):
        sent = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        url = urlsplit(self.path)
        words = [unquote(word) for word in url.path.strip('/').split('/')]
        api = words[0] == 'api'
        name, rest = '/'.join(words[api + 1:api + 3]), words[api + 3:]
        commits = {f'{r:0>40}'.replace('/', '-'): r for r in ('main', 'refs/convert/parquet', 'refs/pr/18')}
        asked = [pair for pair in commits.items() if rest[1:] and rest[1] in pair]
        commit, revision = (asked or list(commits.items()))[0]
        files = self.server.sets.get(name if revision == 'main' else f'{name}@{revision}', 404)
        if isinstance(files, int):
            code = {401: 'GatedRepo', 403: 'GatedRepo', 404: 'RepoNotFound'}.get(files, '')
            return self.answer(files, b'{}', **({} if self.server.plain else {'X_Error_Code': code}))
        if not api:  # name/resolve/revision/path
            path = '/'.join(rest[2:])
            if path not in files:
                return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
            body, status, headers = files[path], 200, {}
            if wanted := self.headers.get('Range'):
                start, _, end = wanted[len('bytes='):].partition('-')
                end = min(int(end or len(body)), len(body) - 1)
                headers['Content_Range'] = f'bytes {start}-{end}/{len(body)}'
                body, status = body[int(start):end + 1], 206
            return self.answer(status, body, half=path in self.server.broken and self.command == 'GET',
                               ETag=f'"{hashlib.sha1(files[path]).hexdigest()}"', X_Repo_Commit=commit, **headers)

        def entry(path):
            oid = hashlib.sha1(files[path]).hexdigest()
            return {'type': 'file', 'path': path, 'size': len(files[path]), 'oid': oid}

        if rest[:1] == ['tree']:
            head = ''.join(f'{word}/' for word in rest[2:])
            below = [path for path in files if path.startswith(head)]
            if not below:
                return self.answer(404, b'{}', X_Error_Code='EntryNotFound')
            deep = 'recursive=true' in url.query.lower()
            folders = {head + path[len(head):].split('/')[0] for path in below if '/' in path[len(head):]}
            body = [entry(path) for path in below if deep or '/' not in path[len(head):]]
            body += [{'type': 'directory', 'path': folder, 'size': 0, 'oid': 'b' * 40} for folder in folders]
        elif rest[:1] == ['paths-info']:
            body = [entry(path) for path in files if path in unquote(sent.decode())]
        else:
            body = {'id': name, 'sha': commit, 'siblings': [{'rfilename': path} for path in files], 'tags': []}
        self.answer(200, json.dumps(body).encode(), Content_Type='application/json')

    do_HEAD = do_POST = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.daemon_threads = True
    server.sets, server.broken, server.plain = {}, set(), False
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def parquet(texts, column='text'):
    import pyarrow as pa
    import pyarrow.parquet
    file = io.BytesIO()
    pa.parquet.write_table(pa.table({column: texts, 'id': list(range(len(texts)))}), file)
    return file.getvalue()


@pytest.mark.slow
def test_prepare_from_the_hub(tmp_path, hub):
    pytest.importorskip('datasets')
    card = b"""---
configs:
- {config_name: one, data_files: a/*.parquet}
- {config_name: two, data_files: [{split: train, path: b/t.parquet}, {split: validation, path: b/v.parquet}]}
---
"""
    hub.sets['me/plain'] = {'data/train-00000-of-00002.parquet': parquet(TEXTS[:90]),
                            'data/train-00001-of-00002.parquet': parquet(TEXTS[90:])}
    hub.sets['me/parts'] = {'README.md': card, 'a/x.parquet': parquet(TEXTS[:20]),
                            'b/t.parquet': parquet(TEXTS[20:100]), 'b/v.parquet': parquet(TEXTS[100:])}
    prepare(tmp_path, '--dataset=me/plain', hub=hub.url)
    train, val, meta = prepared(tmp_path / 'data/plain')
    assert (train, val) == nanogpt_split(TEXTS) and meta['source'] == 'me/plain' and meta['rows'] == len(TEXTS)
    prepare(tmp_path, '--dataset=me/plain', '--out_dir=few', '--max_docs=100', '--val_fraction=0.05', hub=hub.url)
    assert prepared(tmp_path / 'few')[:2] == ([t for i, t in enumerate(TEXTS[:100]) if i % 20], TEXTS[:100:20])
    prepare(tmp_path, '--dataset=me/parts:two', hub=hub.url)
    assert prepared(tmp_path / 'data/parts-two')[:2] == (TEXTS[20:100], TEXTS[100:])

    # openwebtext: an export that is cut is not taken, one with too few rows only for want of a better one
    owner = 'Skylion007/openwebtext'
    hub.sets[f'{owner}@refs/convert/parquet'] = {'plain_text/partial-train/0000.parquet': parquet(TEXTS)}
    hub.sets[f'{owner}@refs/pr/18'] = {'data/train-00000-of-00093.parquet': parquet(TEXTS[:50])}
    hub.sets['dylanebert/openwebtext'] = {'plain_text/train-00000-of-00080.parquet': parquet(TEXTS)}
    said = prepare(tmp_path, hub=hub.url)
    assert 'cut short' in said and '50 rows' in said and '200 rows, OpenWebText has 8,013,769' in said
    train, val, meta = prepared(tmp_path / 'data/openwebtext')
    assert meta['source'] == 'dylanebert/openwebtext' and (train, val) == nanogpt_split(TEXTS)
    prepare(tmp_path, '--max_docs=30', '--overwrite=True', hub=hub.url)
    meta = prepared(tmp_path / 'data/openwebtext')[2]
    assert meta['source'] == f'{owner}@refs/convert/parquet'
    assert meta['train_documents'] + meta['val_documents'] == 30


@pytest.mark.slow
@pytest.mark.parametrize('plain', [False, True])
def test_prepare_says_why_the_hub_refuses(tmp_path, hub, plain):
    pytest.importorskip('datasets')
    hub.plain = plain
    card = b"""---
configs:
- {config_name: one, data_files: a.parquet}
- {config_name: two, data_files: b.parquet}
---
"""
    hub.sets |= {'me/a401': 401, 'me/a403': 403, 'me/a404': 404,
                 'me/script': {'script.py': b'', 'README.md': b'hello'},
                 'me/column': {'data/train.parquet': parquet(TEXTS, 'content')},
                 'me/two': {'README.md': card, 'a.parquet': parquet(TEXTS), 'b.parquet': parquet(TEXTS)},
                 'me/test': {'data/test.parquet': parquet(TEXTS)},
                 'me/half': {'data/train-half.parquet': parquet(TEXTS * 99)}}
    hub.broken.add('data/train-half.parquet')
    for flags, words in (
            ('me/a401', ['me/a401', 'hf auth login']),
            ('me/a403', ['me/a403', 'gated', 'terms', 'hf auth login']),
            ('me/a404', ['me/a404 is not on the Hub', 'spelling']),
            ('me/script', ['--revision=refs/convert/parquet']),
            ('me/column', ["no column 'text'", 'content']),
            ('me/column --max_docs=10', ["no column 'text'", 'content']),
            ('me/two', ['one', 'two', 'ID:CONFIG']),
            ('me/two:three', ['one', 'two', 'ID:CONFIG']),
            ('me/test', ['no split train but test']),
            ('me/half', ['download of me/half broke off', 'same line'])):
        sentence = prepare(tmp_path, *f'--dataset={flags}'.split(), code=1, hub=hub.url)
        assert all(word in sentence for word in words), sentence
        assert not (tmp_path / 'data').exists() or not list((tmp_path / 'data').iterdir())


@pytest.mark.slow
def test_prepare_says_that_there_is_no_network(tmp_path):
    pytest.importorskip('datasets')
    for process in [start_prepare(tmp_path, *flags) for flags in (['--dataset=me/any'], [])]:
        sentence = end_prepare(process, code=1)
        assert 'cannot be reached' in sentence and 'check the network' in sentence
    assert not (tmp_path / 'data').exists()
