"""
What the paper's runs cost: table 2, and estimates on paper.

    python -m experiments.costs                        H100, at an assumed share of its peak
    python -m experiments.costs --gpu=A800 --mfu=0.29  at the share that the paper's own figure comes to

Table 2 is measured: the tensors in the optimizers' own state after a step on the meta device.

The estimates are a model, and nothing in them is measured. Work: support/report.py has the formula. Speed:
mfu times the GPU's dense bf16 peak. Memory: fp32 weights, gradients and optimizer state, whole on every GPU;
activations of one sequence or image, bf16 and with flash attention, are 32 C bytes a token and block
(Korthikanti et al., arXiv:2205.05198, without dropout) and for the loss 10 V a token (logits in bf16 and in
fp32, log-probabilities). DNT's further norms and the allocator's waste come on top. GB are 10^9 bytes.
"""

from dataclasses import fields

import torch

from configurator import configure, read_file
from experiments.evidence import print_table
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from sgdw import SGDW
from support.console import check_choice, check_range
from support.optim import EMBEDDINGS
from support.report import PEAK_TFLOPS, flops_per_unit

gpu = 'H100'  # a name in PEAK_TFLOPS of support/report.py
mfu = 0.4  # share of the peak that training reaches: an assumption; one H200 reached 0.41 (results/speed.md)

CONFIGS = ('dnt_small', 'dnt_large', 'dnt_xl', 'vdnt_large', 'vdnt_huge')  # GPT-2 and ViT are as large
IMAGES = 1_281_167  # ImageNet's training set

def build(config):
    """The network of a file in config/, without contents."""
    Network, Config = (ViT, ViTConfig) if 'image_size' in config else (GPT, GPTConfig)
    args = {f.name: config[f.name] for f in fields(Config) if f.name in config}
    with torch.device('meta'):
        return Network(Config(**args | SETTINGS[config['setting']]))

def count(model):
    return sum(p.numel() for p in model.parameters())

def kept(kind, model):
    """Bytes of the optimizer's state after a step."""
    embeddings, others = [], []
    for name, p in model.named_parameters():
        (embeddings if name.split('.')[0] in EMBEDDINGS else others).append(p)
    if kind == 'AdamW':
        optimizers = [torch.optim.AdamW(embeddings + others, lr=1e-3)]
    elif kind == 'mSGDW':
        optimizers = [SGDW(embeddings + others, lr=1e-3)]
    else:
        optimizers = [SGDW(others, lr=1e-3), torch.optim.AdamW(embeddings, lr=1e-3)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    size = 0
    for opt in optimizers:
        opt.step()
        for state in opt.state.values():
            size += sum(v.untyped_storage().nbytes() for v in state.values() if torch.is_tensor(v))
    return size

def estimate(name, config, model, peak):
    """A row of the table."""
    c, n, flops = model.config, count(model), flops_per_unit(model)
    if name.startswith('dnt'):
        T, samples, of_loss = c.block_size, config['max_iters'] * config['global_batch_size'], c.vocab_size
        flops *= T
        run, units, word = f'{samples * T / 1e9:.1f}B tokens', T, 'tokens'
    else:
        T, samples, of_loss = model.pos_embed.size(1), config['epochs'] * IMAGES, 0
        run, units, word = f'{samples / 1e6:.0f}M images', 1, 'images'
    speed = peak * mfu / flops  # sequences or images per second
    activations = T * (32 * c.n_layer * c.n_embd + 10 * of_loss)
    return [f'`{name}` {n / 1e6:.1f}M', run, f'{flops / T / 1e9:.2f}', f'{16 * n / 1e9:.1f} GB',
            f'{12 * n / 1e9:.1f} GB', f'{activations / 1e9:.2f} GB', f'{speed * units:,.0f} {word}',
            f'{samples / speed / 86400:.2g}']

if __name__ == '__main__':
    peaks = dict(PEAK_TFLOPS)
    check_choice(configure(globals()), peaks, 'gpu')
    check_range(globals(), 0.001, 1, 'mfu')
    memory, estimates = [], []
    for name in CONFIGS:
        config = read_file(f'config/{name}.py')
        model = build(config)
        sizes = [f'{kept(kind, model) / 1e9:.3f}' for kind in ('AdamW', 'mSGDW', 'hybrid')]
        memory.append([f'`{name}`', f'{count(model):,}', *sizes])
        estimates.append(estimate(name, config, model, 1e12 * peaks[gpu]))
    print_table('table 2', ['network', 'parameters', 'AdamW, GB', 'mSGDW, GB', 'hybrid, GB'], memory)
    print_table(f'{gpu}, {peaks[gpu]} TFLOP/s dense bf16, at an assumed {mfu:.0%} of it:',
                ['config', 'run', 'GFLOPs a token', 'memory: AdamW', 'mSGDW', 'and each sequence or image',
                 'a second', 'GPU-days'], estimates)
