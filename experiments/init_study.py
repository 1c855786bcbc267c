"""
Which initialization, measured at L-DNT-Small's width (768) and vocabulary (50304) with table 5's mSGDW.

    python -m experiments.init_study --dataset=data/NAME      gpt2 tokens; depth 2 and short contexts for a CPU

For each reading of 'Xavier': the share of the position in what the blocks see after InputNorm, the loss before
training, and the loss after some updates (the mean of the last ten, same batches for all).
"""

import json
import os

import numpy as np
import torch
import torch.nn as nn

from configurator import configure, fail
from model import GPT, GPTConfig
from sgdw import SGDW
from training import lr_at, param_groups

dataset = 'data/openwebtext'  # a folder of gpt2 tokens
iters = 30  # updates
batch = 4  # sequences of 128 tokens each
learning_rate = 1.0  # table 5
warmup_iters = 0  # table 5
seed = 1337  # weights and batches

READINGS = {  # std of wte, std of wpe, W_q, W_k, W_v as one (3C, C) matrix or three
    'embeddings 0.02, three matrices (ours)': (0.02, 0.02, False),
    'embeddings 0.02, one fused matrix': (0.02, 0.02, True),
    'Xavier for all, three matrices': (None, None, False),
    'embeddings 0.0361 = 1 / sqrt(C)': (768 ** -0.5, 768 ** -0.5, False),
}


def study(reading, data):
    wte_std, wpe_std, fused = READINGS[reading]
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_layer=2, block_size=1024))
    with torch.no_grad():
        for weight, std in ((model.wte.weight, wte_std), (model.wpe.weight, wpe_std)):
            nn.init.xavier_normal_(weight) if std is None else weight.normal_(std=std)
        for block in model.blocks if fused else ():
            nn.init.xavier_normal_(block.attn.c_attn.weight)
    token, position = (w.detach().square().mean().item() for w in (model.wte.weight, model.wpe.weight))
    opt, losses = SGDW(param_groups(model, 1e-4), lr=learning_rate), []
    for i in range(iters):
        starts = np.random.default_rng((seed, i)).integers(0, len(data) - 129, batch)
        rows = torch.from_numpy(np.stack([data[s:s + 129] for s in starts]).astype(np.int64))
        loss = model(rows[:, :-1], rows[:, 1:])[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in opt.param_groups:
            group['lr'] = lr_at(i, learning_rate, 6e-5, warmup_iters, iters)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return position / (token + position), losses[0], float(np.mean(losses[-10:]))


if __name__ == '__main__':
    configure(globals())
    meta = os.path.join(dataset, 'meta.json')
    if not os.path.exists(meta) or json.load(open(meta, encoding='utf-8'))['tokenizer'] != 'gpt2':
        fail(f'{dataset} holds no gpt2 tokens: make some with prepare_owt.py')
    tokens = np.memmap(os.path.join(dataset, 'train.bin'), dtype='<u2', mode='r')
    print('| initialization | position, share of x | first loss | last loss |\n|---|---|---|---|', flush=True)
    for name in READINGS:
        share, first, last = study(name, tokens)
        print(f'| {name} | {share:.0%} | {first:.3f} | {last:.3f} |', flush=True)
