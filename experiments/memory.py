"""
Table 2: what the optimizers keep, calculated and measured, at every size of the paper.

    python -m experiments.memory        on the meta device, which makes tensors without contents

AdamW keeps two numbers for each parameter, mSGDW one, the hybrid two for the embeddings and one for the rest;
all are fp32. Measured are the tensors in the optimizer's state after one step of the optimizer itself. GB are
10^9 bytes. What a process really uses at its peak: experiments.bench --only=memory.
"""

from dataclasses import fields

import torch

from configurator import configure, read_file
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from sgdw import SGDW
from support.optim import EMBEDDINGS, Hybrid, param_groups

configs = ('gpt2_small,dnt_small,gpt2_large,dnt_large,gpt2_xl,dnt_xl,'
           'vit_large,vdnt_large,vit_huge,vdnt_huge')  # names in config/
device = 'meta'  # or cpu, where the tensors are real
KINDS = ('AdamW', 'mSGDW', 'hybrid')


def build(name):
    config = read_file(f'config/{name}.py')
    Network, Config = (ViT, ViTConfig) if 'image_size' in config else (GPT, GPTConfig)
    known = {f.name for f in fields(Config)}
    with torch.device(device):
        return Network(Config(**{k: v for k, v in config.items() if k in known}
                              | SETTINGS[config['setting']]))


def count(model):
    return sum(p.numel() for p in model.parameters())


def calculated(kind, model):
    """Bytes: 4 for each number that is kept."""
    embeddings = sum(p.numel() for name, p in model.named_parameters() if name.split('.')[0] in EMBEDDINGS)
    return 4 * {'AdamW': 2 * count(model), 'mSGDW': count(model), 'hybrid': count(model) + embeddings}[kind]


def measured(kind, model):
    """Bytes of the optimizer's state after a step."""
    groups = param_groups(model, 0.1, 1.0)
    made = {'AdamW': lambda g: torch.optim.AdamW(g, lr=1e-3), 'mSGDW': lambda g: SGDW(g, lr=1e-3)}
    opt = made[kind](groups) if kind in made else Hybrid(made['mSGDW'](groups[:2]), made['AdamW'](groups[2:]))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    states = opt.state_dict()['optimizers'] if kind == 'hybrid' else [opt.state_dict()]
    return sum(t.untyped_storage().nbytes() for state in states for of_one in state['state'].values()
               for t in of_one.values() if torch.is_tensor(t))


def table_2():
    head = ['network', 'parameters', *(f'{kind}, GB' for kind in KINDS),
            *(f'{kind}, measured' for kind in KINDS)]
    print('| ' + ' | '.join(head) + ' |\n' + len(head) * '|---' + '|')
    for name in configs.split(','):
        models = {kind: build(name) for kind in KINDS}
        cells = [f'`{name}`', f'{count(models["AdamW"]):,}',
                 *(f'{calculated(kind, model) / 1e9:.3f}' for kind, model in models.items()),
                 *(f'{measured(kind, model):,} bytes' for kind, model in models.items())]
        print('| ' + ' | '.join(cells) + ' |', flush=True)
    print('\nAdamW keeps a step counter of 4 bytes for each tensor too: measured is that much more than '
          'calculated.')


def printed():
    """Which count and which unit give the paper's 11.5 and 5.7 GB for 'the 1.4B DNT model'."""
    model = build('dnt_xl')
    n = count(model)
    counts = {f'all {n:,} parameters': n, 'without the positions (nanoGPT counts so)': n
              - model.wpe.weight.numel(), "the paper's name, 1436M": 1436 * 10**6}
    print('\n| L-DNT-XL | parameters | AdamW, 10^9 bytes | mSGDW | AdamW, 2^30 bytes | mSGDW | 11.5 and 5.7? '
          '|\n' + 7 * '|---' + '|')
    for name, n in counts.items():
        sizes = [width * n / unit for unit in (10**9, 2**30) for width in (8, 4)]
        pairs = {'10^9': sizes[:2], '2^30': sizes[2:]}
        fits = [unit for unit, pair in pairs.items() if [f'{size:.1f}' for size in pair] == ['11.5', '5.7']]
        print(f'| {name} | {n:,} | ' + ' | '.join(f'{s:.3f}' for s in sizes)
              + f' | {" ".join(fits) or "no"} |')


if __name__ == '__main__':
    configure(globals())
    table_2()
    printed()
