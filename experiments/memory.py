"""
Table 2: what the optimizers keep, at every size of the paper.

    python -m experiments.memory        on the meta device, which makes tensors without contents

Measured are the tensors in the optimizer's state after one step of the optimizer itself; GB are 10^9 bytes.
AdamW keeps two fp32 numbers for each parameter, mSGDW one, the hybrid two for the embeddings and one for the
rest. What a process really uses at its peak is more: results/speed.md.
"""

from dataclasses import fields

import torch

from configurator import configure, read_file
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from sgdw import SGDW
from support.optim import param_groups

CONFIGS = ('gpt2_small', 'dnt_small', 'gpt2_large', 'dnt_large', 'gpt2_xl', 'dnt_xl',
           'vit_large', 'vdnt_large', 'vit_huge', 'vdnt_huge')


def build(config):
    """The network of a file in config/, without contents."""
    Network, Config = (ViT, ViTConfig) if 'image_size' in config else (GPT, GPTConfig)
    known = {f.name for f in fields(Config)}
    with torch.device('meta'):
        return Network(Config(**{k: v for k, v in config.items() if k in known}
                              | SETTINGS[config['setting']]))


def count(model):
    return sum(p.numel() for p in model.parameters())


def kept(kind, model):
    """Bytes of the optimizer's state after a step."""
    groups = param_groups(model, 0.1, 1.0)  # the last two have the embeddings
    if kind == 'AdamW':
        optimizers = [torch.optim.AdamW(groups, lr=1e-3)]
    elif kind == 'mSGDW':
        optimizers = [SGDW(groups, lr=1e-3)]
    else:
        optimizers = [SGDW(groups[:2], lr=1e-3), torch.optim.AdamW(groups[2:], lr=1e-3)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    tensors = []
    for opt in optimizers:
        opt.step()
        for state in opt.state.values():
            tensors += [v for v in state.values() if torch.is_tensor(v)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


if __name__ == '__main__':
    configure(globals())
    print('| network | parameters | AdamW, GB | mSGDW, GB | hybrid, GB |\n|---|---|---|---|---|')
    for name in CONFIGS:
        config = read_file(f'config/{name}.py')
        sizes = [f'{kept(kind, build(config)) / 1e9:.3f}' for kind in ('AdamW', 'mSGDW', 'hybrid')]
        print(f'| `{name}` | {count(build(config)):,} | {" | ".join(sizes)} |', flush=True)
