"""
Trains many small GPTs at once on one device: the same network with other seeds, optimizers and rates.

All runs go through model.py's GPT together: the batch holds the sequences of run 1, then those of run 2, and
so on, and each layer has a stack of weights. A run gets the same initial weights, batches, updates and
schedule as from train_gpt.py, and the same loss up to rounding (python -m experiments.evidence uses it).
"""

import math
import runpy
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, SETTINGS, GPTConfig, LayerNorm, RMSNorm
from sgdw import normalize_rows
from support.console import fail
from support.optim import EMBEDDINGS
from support.tokens import Tokens

CPU = SimpleNamespace(device='cpu', device_type='cpu', say=print)  # where data go
# what the runs of one stack may differ in
OWN = ('variant', 'seed', 'optimizer', 'embed_optimizer', 'momentum', 'beta2', 'learning_rate',
       'embed_lr', 'embed_weight_decay', 'warmup_iters', 'weight_decay')
# what else a run may state
SHAPE = ('config', 'setting', 'norm', 'n_layer', 'n_head', 'n_embd', 'block_size', 'dataset', 'max_iters',
         'min_lr', 'global_batch_size', 'grad_clip', 'eval_interval', 'dtype')
KIND = ('optimizer', 'embed_optimizer', 'momentum', 'beta2')  # runs of a kind stand side by side in the stack

def read_config(config):
    return runpy.run_path(f'config/{config}.py')

# -----------------------------------------------------------------------------
# layers: E runs with B sequences each come as E * B sequences, and each run is multiplied by its own weights

class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight  # (E, out, in)

    def forward(self, x):  # (E * B, T, in)
        y = torch.bmm(x.reshape(len(self.weight), -1, x.size(-1)), self.weight.transpose(1, 2))
        return y.view(*x.shape[:-1], -1)

class Embedding(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight  # (E, V, C)

    def forward(self, idx):  # (E * B, T)
        E, V, C = self.weight.shape
        self.B = len(idx) // E
        rows = idx.reshape(E, -1) + V * torch.arange(E, device=idx.device)[:, None]
        return self.weight.reshape(E * V, C).index_select(0, rows.flatten()).view(*idx.shape, C)

class Positions(nn.Module):
    def __init__(self, weight, tokens):
        super().__init__()
        self.weight, self.tokens = weight, tokens  # (E, block_size, C); the embedding of the same sequences

    def forward(self, pos):  # (T,)
        E, _, C = self.weight.shape
        return self.weight[:, None, :len(pos)].expand(E, self.tokens.B, -1, C).reshape(-1, len(pos), C)

class Norm(nn.Module):
    def __init__(self, weight, norm):
        super().__init__()
        self.weight, self.eps = weight, norm.eps  # (E, C)
        self.normalize = F.rms_norm if isinstance(norm, RMSNorm) else F.layer_norm

    def forward(self, x):  # (E * B, T, C), or (E * B, T, H, D) of queries and keys
        y = self.normalize(x, x.shape[-1:], eps=self.eps)
        return (y.reshape(len(self.weight), -1, x.size(-1)) * self.weight[:, None]).view(x.shape)

def stacked(model, weights):
    """The network with stacks as its layers. weights: {name: (E, *shape)}; there are no biases."""
    for name, module in list(model.named_modules()):
        weight = weights.get(f'{name}.weight', weights['wte.weight'])  # the head may be tied
        parent, _, leaf = name.rpartition('.')
        if isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent), leaf, Linear(weight))
        elif isinstance(module, RMSNorm | LayerNorm):
            setattr(model.get_submodule(parent), leaf, Norm(weight, module))
    model.wte = Embedding(weights['wte.weight'])
    model.wpe = Positions(weights['wpe.weight'], model.wte)
    return model

# -----------------------------------------------------------------------------
# updates of the runs e in rows, on a range of columns of (E, P). lr, wd: (e, 1)

def sgdw(w, g, m, v, lr, wd, mu, t, tensors):
    m.mul_(mu).add_(g)
    w.mul_(1 - lr * wd).sub_(lr * m)

def rownorm(w, g, m, v, lr, wd, mu, t, tensors):
    m.mul_(mu).add_(g)
    w.mul_(1 - lr * wd)
    for a, shape in tensors:
        n = math.prod(shape)
        step = torch.vmap(normalize_rows)(m[:, a:a + n].unflatten(1, shape))
        w[:, a:a + n].sub_(lr * step.flatten(1))

def adamw(w, g, m, v, lr, wd, mu, t, tensors, beta2, beta1=0.9):
    w.mul_(1 - lr * wd)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    bias1, bias2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
    w.sub_(lr / bias1 * m / (v.sqrt() / math.sqrt(bias2) + 1e-8))

RULES = {'sgdw': sgdw, 'rownorm': rownorm, 'adamw': adamw}  # Muon's runs are for the train script

def group(name):
    """Which columns hold a parameter: those of matrices, of embeddings, and of gains, which do not decay."""
    if name.split('.')[0] in EMBEDDINGS:
        return 'embeddings'
    return 'gains' if 'norm' in name else 'matrices'

def parts(runs, columns, device):
    """(rule, rows, columns, factor of the rate, decay, momentum, tensors) for each part of the stack."""
    kinds = [tuple(c[k] for k in KIND) for c in runs]
    for kind in dict.fromkeys(kinds):
        rows = slice(kinds.index(kind), kinds.index(kind) + kinds.count(kind))
        optimizer, embed, mu, beta2 = kind
        for what, (a, b, tensors) in columns.items():
            own = what == 'embeddings' and runs[rows.start]['embed_lr']
            rule = embed if own and embed != 'auto' else optimizer
            scale = [c['embed_lr'] / c['learning_rate'] if own else 1.0 for c in runs[rows]]
            stated = own and runs[rows.start]['embed_weight_decay'] >= 0
            key = 'embed_weight_decay' if stated else 'weight_decay'
            decay = [0.0 if what == 'gains' else c[key] for c in runs[rows]]
            columns_of = [torch.tensor(x, device=device)[:, None] for x in (scale, decay)]
            step = partial(adamw, beta2=beta2) if rule == 'adamw' else RULES[rule]
            yield step, rows, slice(a, b), *columns_of, mu, tensors

def schedule(config):
    """The rates of all updates: train_gpt.py's get_lr."""
    i, warmup = np.arange(config['max_iters']), config['warmup_iters']
    peak, low = config['learning_rate'], config['min_lr']
    progress = np.minimum(1.0, (i - warmup) / max(1, config['max_iters'] - warmup))
    cosine = low + 0.5 * (1.0 + np.cos(np.pi * progress)) * (peak - low)
    return np.where(i < warmup, peak * (i + 1) / (warmup + 1), cosine)

# -----------------------------------------------------------------------------

def train_stack(runs, device, bins=None):
    """
    Train runs that differ in OWN alone. Returns (validation loss, loss of each bin) for each of them, over
    the windows of train_gpt.py's evaluation. bins: the bin of each token id, (V,); None: all are in one.
    """
    unknown = set().union(*runs) - {*OWN, *SHAPE}
    if unknown:
        fail(f'A stack does not know {", ".join(sorted(unknown))}. Use --device=cpu.')
    runs = [{**read_config(run['config']), **run} for run in runs]
    order = sorted(range(len(runs)), key=lambda i: [str(runs[i][k]) for k in KIND])
    runs = [runs[i] for i in order]
    c, E = runs[0], len(runs)
    B, T = c['global_batch_size'], c['block_size']
    data = Tokens(c['dataset'], T, CPU)
    ids = {split: np.fromfile(f'{data.folder}/{split}.bin', data.meta['dtype']) for split in ('train', 'val')}
    ids = {split: torch.from_numpy(x.astype(np.int32)).to(device) for split, x in ids.items()}
    seeds = sorted({c['seed'] for c in runs})
    of_seed = torch.tensor([seeds.index(c['seed']) for c in runs], device=device)
    window = torch.arange(T + 1, device=device)

    # the weights of a run are a row of W; views of W are the weights of the layers
    args = GPTConfig(**SETTINGS[c['setting']], norm=c['norm'], n_layer=c['n_layer'], n_head=c['n_head'],
                     n_embd=c['n_embd'], block_size=T, vocab_size=data.vocab_size)
    first = {}
    for s in seeds:
        torch.manual_seed(s)
        first[s] = dict(GPT(args).named_parameters())
    shapes = {name: p.shape for name, p in first[seeds[0]].items()}
    names = sorted(shapes, key=lambda name: ('matrices', 'embeddings', 'gains').index(group(name)))
    W = torch.stack([torch.cat([first[c['seed']][name].detach().flatten() for name in names]) for c in runs])
    W = W.to(device)
    M, V = torch.zeros_like(W), torch.zeros_like(W)
    views, columns, at = {}, {}, 0
    for name in names:
        n = shapes[name].numel()
        views[name] = W[:, at:at + n].unflatten(1, shapes[name]).detach().requires_grad_()
        a, _, tensors = columns.get(group(name), (at, at, []))
        columns[group(name)] = a, at + n, tensors + [(at - a, shapes[name])]
        at += n
    net = stacked(GPT(args).to(device), views)
    rates = torch.from_numpy(np.stack([schedule(c) for c in runs], 1)).float().to(device)[:, :, None]
    todo = list(parts(runs, columns, device))

    def losses(rows):  # (E, B, T + 1) to the loss of each token, (E, B * T)
        idx, targets = rows[..., :-1].flatten(0, 1), rows[..., 1:].flatten()
        logits = net(idx)[0]
        return F.cross_entropy(logits.flatten(0, 1), targets, reduction='none').view(E, -1)

    for t in range(c['max_iters']):  # batches as in train_gpt.py's get_batch
        starts = [np.random.default_rng((seed, t)).integers(data.train_tokens - T, size=B) for seed in seeds]
        starts = torch.from_numpy(np.stack(starts)).to(device)[of_seed]  # (E, B)
        loss = losses(ids['train'][starts[:, :, None] + window].long()).mean(1)
        grads = torch.autograd.grad(loss.sum(), [views[name] for name in names])
        with torch.no_grad():
            G = torch.cat([g.flatten(1) for g in grads], 1)
            if c['grad_clip']:
                G.mul_((c['grad_clip'] / (G.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))
            for rule, rows, cols, scale, decay, mu, tensors in todo:
                w, g, m, v = (x[rows, cols] for x in (W, G, M, V))
                rule(w, g, m, v, rates[t, rows] * scale, decay, mu, t, tensors)

    # evaluation: the same windows as train_gpt.py
    starts = torch.arange((data.val_tokens - 1) // T, device=device) * T
    bins = torch.zeros(args.vocab_size, dtype=torch.int64) if bins is None else torch.as_tensor(bins)
    one_hot = F.one_hot(bins.to(device)).double()  # (V, bins)
    sums, seen = torch.zeros(E, one_hot.size(1), dtype=torch.float64, device=device), 0
    with torch.no_grad():
        for some in starts.split(max(1, 4096 // E)):
            rows = ids['val'][some[:, None] + window].long()
            of_bin = one_hot[rows[:, 1:].flatten()]  # (tokens, bins)
            sums += losses(rows.expand(E, -1, -1)).double() @ of_bin
            seen = seen + of_bin.sum(0)
    results = zip((sums.sum(1) / seen.sum()).tolist(), (sums / seen.clamp(min=1)).tolist())
    return [result for _, result in sorted(zip(order, results))]

if __name__ == '__main__':
    print(__doc__.strip())
