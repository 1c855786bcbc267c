"""
Table 2: what the optimizers keep, calculated and measured, at every size of the paper.

    python -m experiments.memory                                          all sizes, on the meta device: no memory needed
    python -m experiments.memory --configs=dnt_small --device=cpu         with real tensors, and what the process grew by
    python -m experiments.memory --configs=dnt_xl --device=cuda --batch=4 on a GPU, and the peak of a whole update

AdamW keeps two numbers for each parameter, mSGDW one, the hybrid two for the embeddings and one for the rest; all are
fp32. Measured are the tensors in the optimizer's state after one step of the optimizer itself: on the meta device it
makes them all, with their sizes, and none of their contents. GB are 10^9 bytes.
"""

import os
from dataclasses import fields

import torch

import training
from configurator import configure, fail, read_file
from model import SETTINGS, GPT, GPTConfig, ViT, ViTConfig
from sgdw import SGDW

# names in config/
configs = 'gpt2_small,dnt_small,gpt2_large,dnt_large,gpt2_xl,dnt_xl,vit_large,vdnt_large,vit_huge,vdnt_huge'
device = 'meta'  # meta, cpu, cuda
batch = 0  # cuda: sequences or images of a forward and backward pass before the step; 0: gradients are zeros
KINDS = ('AdamW', 'mSGDW', 'hybrid')


def build(name):
    config = read_file(f'config/{name}.py')
    Network, Config = (ViT, ViTConfig) if 'image_size' in config else (GPT, GPTConfig)
    known = {f.name for f in fields(Config)}
    with torch.device(device):
        return config, Network(Config(**{k: v for k, v in config.items() if k in known} | SETTINGS[config['setting']]))


def make(kind, model):
    groups, fused = training.param_groups(model, 0.1, 1.0), device != 'meta'
    adamw = lambda g: torch.optim.AdamW(g, lr=1e-3, fused=fused)  # noqa: E731
    sgdw = lambda g: SGDW(g, lr=1e-3)  # noqa: E731
    return training.Hybrid(sgdw(groups[:2]), adamw(groups[2:])) if kind == 'hybrid' else \
        {'AdamW': adamw, 'mSGDW': sgdw}[kind](groups)


def calculated(kind, model):
    """Bytes: 4 for each number that is kept."""
    numbers = {name: p.numel() for name, p in model.named_parameters()}
    embeddings = sum(n for name, n in numbers.items() if name.split('.')[0] in training.EMBEDDINGS)
    total = sum(numbers.values())
    return 4 * {'AdamW': 2 * total, 'mSGDW': total, 'hybrid': total + embeddings}[kind]


def in_use():
    """Bytes that this process holds on the device."""
    if device == 'cuda':
        return torch.cuda.memory_allocated()
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def measured(kind, config, model):
    """(bytes of the state after a step, growth of what is in use or None, peak of an update or None)."""
    opt = make(kind, model)
    if batch:
        with torch.autocast('cuda', torch.bfloat16):
            if isinstance(model, GPT):
                idx = torch.zeros(batch, model.config.block_size, dtype=torch.long, device=device)
                loss = model(idx, idx)[1]
            else:
                size = model.config.image_size
                loss = model(torch.zeros(batch, 3, size, size, device=device)).float().sum()
        loss.backward()
    else:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
            p.grad.add_(0.0)  # touched, so that the process has its pages before we look
    before = in_use() if device != 'meta' else 0
    opt.step()
    grown = in_use() - before if device != 'meta' else None
    states = opt.state_dict()['optimizers'] if kind == 'hybrid' else [opt.state_dict()]
    tensors = [t for s in states for of_one in s['state'].values() for t in of_one.values() if torch.is_tensor(t)]
    peak = torch.cuda.max_memory_allocated() if batch else None
    return sum(t.untyped_storage().nbytes() for t in tensors), grown, peak


def table_2():
    print('| network | parameters | ' + ' | '.join(f'{kind}, GB' for kind in KINDS) + ' | '
          + ' | '.join(f'{kind}, measured' for kind in KINDS) + (' | grown, GB' if device != 'meta' else '')
          + (' | peak, GB' if batch else '') + ' |\n' + '|---' * (8 + (device != 'meta') + bool(batch)) + '|')
    for name in configs.split(','):
        said, found, grown, peak = [], [], [], []
        for kind in KINDS:
            if device == 'cuda':
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            config, model = build(name)
            state, more, most = measured(kind, config, model)
            said.append(f'{calculated(kind, model) / 1e9:.3f}')
            found.append(f'{state:,} bytes')
            grown += [f'{more / 1e9:.3f}'] if more is not None else []
            peak += [f'{most / 1e9:.2f}'] if most else []
            n = sum(p.numel() for p in model.parameters())
            del model
        cells = [f'`{name}`', f'{n:,}', *said, *found, *(', '.join(x) for x in (grown, peak) if x)]
        print('| ' + ' | '.join(cells) + ' |', flush=True)
    print('\nAdamW keeps a step counter of 4 bytes for each tensor too: measured is that much more than calculated.')


def printed():
    """Which count and which unit give the paper's 11.5 and 5.7 GB for 'the 1.4B DNT model'."""
    model = build('dnt_xl')[1]
    n = sum(p.numel() for p in model.parameters())
    counts = {f'all {n:,} parameters': n, 'without the positions (nanoGPT counts so)': n - model.wpe.weight.numel(),
              "the paper's name, 1436M": 1436 * 10**6}
    print('\n| L-DNT-XL | parameters | AdamW, 10^9 bytes | mSGDW | AdamW, 2^30 bytes | mSGDW | 11.5 and 5.7? |\n'
          '|---|---|---|---|---|---|---|')
    for name, count in counts.items():
        sizes = [width * count / unit for unit in (10**9, 2**30) for width in (8, 4)]
        pairs = {'10^9': sizes[:2], '2^30': sizes[2:]}
        fits = [unit for unit, pair in pairs.items() if [f'{size:.1f}' for size in pair] == ['11.5', '5.7']]
        print(f'| {name} | {count:,} | ' + ' | '.join(f'{s:.3f}' for s in sizes) + f' | {" ".join(fits) or "no"} |')


if __name__ == '__main__':
    configure(globals())
    if device not in ('meta', 'cpu', 'cuda') or batch and device != 'cuda':
        fail(f'device={device} is not one of meta, cpu, cuda, or batch={batch} is not for it: batch needs a GPU')
    if device == 'cpu' and not os.path.exists('/proc/self/statm'):
        fail('device=cpu reads what the process holds from /proc, which only Linux has: use meta')
    table_2()
    if device == 'meta':
        printed()
