"""
What the paper's runs cost on 1, 8 and 32 GPUs, from a model on paper: nothing here is measured.

    python -m experiments.costs                        H100, at an assumed share of its peak
    python -m experiments.costs --gpu=A100 --mfu=0.29  at the share that the paper's own figure comes to

Work: 6 FLOPs per weight and 12 L C T for attention, per token, forward and backward (PaLM, arXiv:2204.02311,
appendix B); positions do no work, and a ViT's head works on one token in T. Speed: mfu times the GPU's dense
bf16 peak; that it stays the same on 32 GPUs and that the loader keeps up is assumed too. Memory: fp32
weights, gradients and optimizer state, which every GPU holds whole under DDP; activations of one sequence or
image, bf16 and with flash attention, are 32 C bytes a token and block (Korthikanti et al., arXiv:2205.05198,
without dropout) and for the loss 10 V a token (logits in bf16 and in fp32, log-probabilities). DNT's further
norms and the allocator's waste come on top.
"""

import runpy

import torch

from configurator import configure
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.console import fail
from support.report import PEAK_TFLOPS

gpu = 'H100'  # a name in PEAK_TFLOPS of support/report.py
mfu = 0.4  # share of the peak that training reaches: an assumption; one H200 reached 0.41 (results/speed.md)
configure(globals())

ROWS = ('dnt_small', 'dnt_large', 'dnt_xl', 'vdnt_large', 'vdnt_huge')  # table 3, as config/ has them
IMAGES = 1_281_167  # ImageNet's training set
# 'around four days to train 200K steps for the 1.4B model on 32 GPUs' (section B)
PAPER_DAYS, PAPER_GPUS = 4, 32


def cost(name):
    """Parameters; of a sequence or image FLOPs, tokens, number in the run and activation bytes."""
    c = runpy.run_path(f'config/{name}.py')
    size = dict(SETTINGS['S5'], **{k: c[k] for k in ('n_layer', 'n_head', 'n_embd')})
    with torch.device('meta'):  # shapes without memory
        if 'patch_size' in c:
            model = ViT(ViTConfig(**size, image_size=c['image_size'], patch_size=c['patch_size']))
            T, count, vocab = model.pos_embed.size(1), c['epochs'] * IMAGES, 0
            idle = model.pos_embed.numel() + model.head.weight.numel() * (T - 1) / T
        else:
            model = GPT(GPTConfig(**size, bias=False, block_size=c['block_size']))
            T, count = c['block_size'], c['max_iters'] * c['global_batch_size']
            idle, vocab = model.wpe.weight.numel(), model.config.vocab_size
    n = sum(p.numel() for p in model.parameters())
    flops = T * (6 * (n - idle) + 12 * c['n_layer'] * c['n_embd'] * T)
    return n, flops, T, count, T * (32 * c['n_layer'] * c['n_embd'] + 10 * vocab)


def round_off(x):
    """12345.6 -> '12,000': two figures, for a model on paper has no more"""
    return f'{float(f"{x:.2g}"):,.0f}'


peaks = dict(PEAK_TFLOPS)
if gpu not in peaks:
    fail(f'gpu={gpu} is unknown. Use one of {", ".join(peaks)}.')
print(f'{gpu}, {peaks[gpu]} TFLOP/s dense bf16, at an assumed {mfu:.0%} of it:\n')
print('| config | run | GFLOPs a token | memory: AdamW | mSGDW | and each sequence or image | 1 GPU | 8 GPUs '
      '| 32 GPUs |\n|---|---|---|---|---|---|---|---|---|')
for name in ROWS:
    n, flops, T, count, activations = cost(name)
    cells = []
    for gpus in (1, 8, 32):
        speed = gpus * peaks[gpu] * 1e12 * mfu / flops  # sequences or images per second
        what = f'{round_off(speed * T)} tokens/s' if name[0] == 'd' else f'{round_off(speed)} images/s'
        cells.append(f'{what}, {count / speed / 86400:.2g} days')
    run = f'{count * T / 1e9:.1f}B tokens' if name[0] == 'd' else f'{count / 1e6:.0f}M images'
    print(f'| `{name}` {n / 1e6:.1f}M | {run} | {flops / T / 1e9:.2f} | {16 * n / 1e9:.1f} GB | '
          f'{12 * n / 1e9:.1f} GB | {activations / 1e9:.2f} GB | {" | ".join(cells)} |')

n, flops, T, count, _ = cost('dnt_xl')
rate = flops * count / (PAPER_DAYS * 86400 * PAPER_GPUS) / 1e12
shares = [f'{rate / peaks[kind]:.0%}' for kind in ('A100', 'H100')]
print(f'\nThe paper trained this {n / 1e6:.0f}M model in about {PAPER_DAYS} days on {PAPER_GPUS} GPUs, whose '
      f'kind it leaves\nopen (the 774M model ran on A800): {rate:.0f} TFLOP/s a GPU, an MFU of {shares[0]} '
      'where they were A100 or\n'
      f'A800, {shares[1]} where they were H100.')
