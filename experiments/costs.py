"""
What the paper's runs cost: table 2, and estimates on paper.

    python -m experiments.costs                        H100, at an assumed share of its peak
    python -m experiments.costs --gpu=A800 --mfu=0.29  at the share that the paper's own figure comes to

Table 2 is measured: the tensors in the optimizers' own state after a step on the meta device, which makes
tensors without contents. GB are 10^9 bytes.

The estimates are a model, and nothing in them is measured. Work: support/report.py has the formula. Speed:
mfu times the GPU's dense bf16 peak; on more GPUs the GPU-days stay the same only if both the share and the
loader keep up. Memory: fp32 weights, gradients and optimizer state, which every GPU holds whole under DDP;
activations of one sequence or image, bf16 and with flash attention, are 32 C bytes a token and block
(Korthikanti et al., arXiv:2205.05198, without dropout) and for the loss 10 V a token (logits in bf16 and in
fp32, log-probabilities). DNT's further norms and the allocator's waste come on top.
"""

from dataclasses import fields

import torch

from configurator import configure, read_file
from experiments.evidence import print_rows
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from sgdw import SGDW
from support.console import fail
from support.optim import param_groups
from support.report import PEAK_TFLOPS, flops_per_unit

gpu = 'H100'  # a name in PEAK_TFLOPS of support/report.py
mfu = 0.4  # share of the peak that training reaches: an assumption; one H200 reached 0.41 (results/speed.md)

CONFIGS = ('dnt_small', 'dnt_large', 'dnt_xl', 'vdnt_large', 'vdnt_huge')  # GPT-2 and ViT are as large
IMAGES = 1_281_167  # ImageNet's training set
# 'around four days to train 200K steps for the 1.4B model on 32 GPUs' (section B)
PAPER_GPU_DAYS = 4 * 32

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
    size = 0
    for opt in optimizers:
        opt.step()
        for state in opt.state.values():
            size += sum(v.untyped_storage().nbytes() for v in state.values() if torch.is_tensor(v))
    return size

def estimate(name, peak):
    """A row of the table."""
    config = read_file(f'config/{name}.py')
    model = build(config)
    c, n, flops = model.config, count(model), flops_per_unit(model)
    if name.startswith('dnt'):
        T, samples, of_loss = c.block_size, config['max_iters'] * config['global_batch_size'], c.vocab_size
        flops *= T
        speed = peak * mfu / flops  # sequences or images per second
        run, a_second = f'{samples * T / 1e9:.1f}B tokens', f'{speed * T:,.0f} tokens'
    else:
        T, samples, of_loss = model.pos_embed.size(1), config['epochs'] * IMAGES, 0
        speed = peak * mfu / flops
        run, a_second = f'{samples / 1e6:.0f}M images', f'{speed:,.0f} images'
    activations = T * (32 * c.n_layer * c.n_embd + 10 * of_loss)
    return [f'`{name}` {n / 1e6:.1f}M', run, f'{flops / T / 1e9:.2f}', f'{16 * n / 1e9:.1f} GB',
            f'{12 * n / 1e9:.1f} GB', f'{activations / 1e9:.2f} GB', a_second,
            f'{samples / speed / 86400:.2g}']

if __name__ == '__main__':
    configure(globals())
    peaks = dict(PEAK_TFLOPS)
    if gpu not in peaks:
        fail(f'gpu={gpu} is unknown. Use one of {", ".join(peaks)}.')
    rows = []
    for name in CONFIGS:
        model = build(read_file(f'config/{name}.py'))
        sizes = [f'{kept(kind, model) / 1e9:.3f}' for kind in ('AdamW', 'mSGDW', 'hybrid')]
        rows.append([f'`{name}`', f'{count(model):,}', *sizes])
    print_rows('table 2', ['network', 'parameters', 'AdamW, GB', 'mSGDW, GB', 'hybrid, GB'], rows)
    print_rows(f'{gpu}, {peaks[gpu]} TFLOP/s dense bf16, at an assumed {mfu:.0%} of it:',
               ['config', 'run', 'GFLOPs a token', 'memory: AdamW', 'mSGDW', 'and each sequence or image',
                'a second', 'GPU-days'],
               [estimate(name, 1e12 * peaks[gpu]) for name in CONFIGS])
    config = read_file('config/dnt_xl.py')
    tokens = config['max_iters'] * config['global_batch_size'] * config['block_size']
    rate = flops_per_unit(build(config)) * tokens / (PAPER_GPU_DAYS * 86400) / 1e12
    share = rate / peaks['A800']
    print(f"\nThe paper's 4 days on 32 A800 GPUs are {rate:.0f} TFLOP/s a GPU, an MFU of {share:.0%}.")
