"""
Which parameters lag under mSGDW: AdamW takes over one group of an L-DNT's weights after the other.

    python -m experiments.lag        19 short runs, two at once; a line for each in results/lag.jsonl; a table

The gain of a group is the validation loss with mSGDW for all minus that with AdamW for this group, which
takes the best of three rates (by the mean over the seeds; from few seeds this flatters it); mSGDW's rate,
both decays and the warmup stay. Batches, schedule, clipping and validation windows are those of train_gpt.py.
Run it again after a kill: what is finished is not run again, and a finished table is printed without the data
set.
"""

import json
import math
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn

from configurator import configure
from experiments.reproduce import mean_spread
from model import GPT, SETTINGS, GPTConfig
from sgdw import SGDW
from support.tokens import Tokens

dataset = 'stdlib'  # a folder under data/, or a path
out = 'results/lag.jsonl'  # a line for each run
processes = 2  # runs at the same time, of one thread each
iters = 400  # updates
global_batch_size = 8  # sequences per update
block_size = 128  # context length in tokens
n_layer = 4  # blocks
n_embd = 32  # heads have 32 channels
tied = True  # False: the head is a group of its own
learning_rate = 0.4  # mSGDW
weight_decay = 3e-3  # mSGDW
adamw_lr = 8e-3  # AdamW; half and twice as much are run too
adamw_decay = 0.1  # AdamW
warmup = 0.3  # share of the run
seeds = 1  # 1, 2, ...: how many

CPU = SimpleNamespace(device='cpu', device_type='cpu')  # where Tokens puts its windows
GROUPS = ('embeddings', 'head', 'q and k', 'v and o', 'FFN', 'gains')


def pieces(model):
    """(group, tensor, rows of it) of all that trains: W_q, W_k and W_v are rows of one tensor."""
    C = model.config.n_embd
    for name, p in model.named_parameters():  # a tied head is an embedding
        if 'c_attn' in name:
            yield from (('q and k', p, slice(0, 2 * C)), ('v and o', p, slice(2 * C, 3 * C)))
        else:
            group = 'embeddings' if name.startswith(('wte', 'wpe')) else 'head' if 'lm_head' in name else \
                'FFN' if '.ffn.' in name else 'v and o' if 'c_proj' in name else 'gains'
            yield group, p, slice(None)


def get_lr(i, peak, warmup, iters):
    """Linear warmup, then a cosine to 0."""
    if i < warmup:
        return peak * (i + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * ((i - warmup) / max(1, iters - warmup)))) * peak


def train(run):
    """One run from its start to its end: the loss over all of val.bin; inf where it diverges."""
    torch.set_num_threads(1)
    torch.manual_seed(run['seed'])
    B, T = run['global_batch_size'], run['block_size']
    data = Tokens(run['dataset'], T, CPU)
    model = GPT(GPTConfig(**SETTINGS['S5'], block_size=T, vocab_size=-(-data.vocab_size // 64) * 64,
                          n_layer=run['n_layer'], n_embd=run['n_embd'], n_head=run['n_embd'] // 32,
                          tied=run['tied']))
    parts, groups = [], {True: [], False: []}
    for group, p, rows in pieces(model):
        part = nn.Parameter(p.data[rows])  # a view: what steps it steps the weight
        parts.append((part, p, rows))
        adamw = run['adamw'] in (group, 'everything')
        decay = run['adamw_decay'] if adamw else run['weight_decay']
        groups[adamw].append({'params': [part], 'weight_decay': decay if p.dim() >= 2 else 0.0})
    optimizers = [(make(groups[adamw]), run[peak]) for adamw, peak, make in (
        (False, 'learning_rate', lambda g: SGDW(g, lr=0.0, momentum=0.9)),
        (True, 'adamw_lr', lambda g: torch.optim.AdamW(g, lr=0.0, betas=(0.9, 0.95), fused=True)))
                  if groups[adamw]]

    for i in range(run['iters']):
        offsets = np.random.default_rng((run['seed'], i)).integers(0, data.train_tokens - T, size=B)
        model(*data.windows('train', offsets))[1].backward()
        if not nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            return math.inf
        for part, p, rows in parts:
            part.grad = p.grad[rows]
        for opt, peak in optimizers:
            for group in opt.param_groups:
                group['lr'] = get_lr(i, peak, round(run['warmup'] * run['iters']), run['iters'])
            opt.step()
        model.zero_grad()
    model.eval()
    with torch.no_grad():
        starts = np.arange((data.val_tokens - 1) // T) * T
        losses = [model(*data.windows('val', s))[1].item() * len(s)
                  for s in np.array_split(starts, -(-len(starts) // B))]
    return sum(losses) / len(starts)


def plan(config):
    """mSGDW for all; AdamW for one group after the other and for all, at three rates each."""
    keys = ('dataset', 'iters', 'global_batch_size', 'block_size', 'n_layer', 'n_embd', 'tied',
            'learning_rate', 'weight_decay', 'adamw_decay', 'warmup')
    for seed in range(1, 1 + config['seeds']):
        for group in ('nothing', *(g for g in GROUPS if g != 'head' or not config['tied']), 'everything'):
            for factor in (1.0, 0.5, 2.0)[:1 if group == 'nothing' else 3]:
                yield {**{k: config[k] for k in keys}, 'adamw': group, 'seed': seed,
                       'adamw_lr': 0.0 if group == 'nothing' else factor * config['adamw_lr']}


def read(path):
    rows = [json.loads(line) for line in open(path, encoding='utf-8')] if os.path.exists(path) else []
    return {json.dumps(row['run']): row['val_loss'] for row in rows}


def print_table(runs, done):
    groups, loss = {}, {}
    for run in runs:
        groups.setdefault(run['adamw'], {}).setdefault(run['adamw_lr'], []).append(done[json.dumps(run)])
    for group, of_rate in groups.items():
        rate = min(of_rate, key=lambda rate: fmean(of_rate[rate]))
        loss[group] = rate, of_rate[rate]
    nothing, everything = loss['nothing'][1], loss['everything'][1]
    print('| AdamW for | its rate | val loss | gain | share of the gain for everything |\n'
          + 5 * '|---' + '|')
    for group, (rate, values) in loss.items():
        gains = [a - b for a, b in zip(nothing, values)]
        whole = fmean(nothing) - fmean(everything)
        share = f'{fmean(gains) / whole:.0%}' if whole > 0 and group != 'nothing' else ''
        print(f'| {group} | {rate:g} | {mean_spread(values)} | {mean_spread(gains, "+.4f")} | {share} |')


if __name__ == '__main__':
    runs = list(plan(configure(globals())))
    done = read(out)
    todo = [run for run in runs if json.dumps(run) not in done]
    if todo:
        Tokens(dataset, block_size, CPU)  # or end here with a sentence
    os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
    with ProcessPoolExecutor(processes, get_context('spawn')) as pool:
        for future in as_completed(started := {pool.submit(train, run): run for run in todo}):
            run, loss = started[future], future.result()
            with open(out, 'a', encoding='utf-8') as f:
                f.write(json.dumps({'run': run, 'val_loss': loss}) + '\n')
            print(f'{loss:.4f}  AdamW for {run["adamw"]}  {run["adamw_lr"]:g}', flush=True)
    print_table(runs, read(out))
