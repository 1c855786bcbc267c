"""
What the paper's runs cost, from a model on paper: nothing here is measured.

    python -m experiments.costs                        H100, at an assumed share of its peak
    python -m experiments.costs --gpu=A100 --mfu=0.29  at the share that the paper's own figure comes to

Work: 6 FLOPs per weight and 12 L C T for attention, per token, forward and backward (PaLM, arXiv:2204.02311,
appendix B); positions do no work, and a ViT's head works on one token in T. Speed: mfu times the GPU's dense
bf16 peak; on more GPUs the GPU-days stay the same only if both the share and the loader keep up. Memory: fp32
weights, gradients and optimizer state, which every GPU holds whole under DDP; activations of one sequence or
image, bf16 and with flash attention, are 32 C bytes a token and block (Korthikanti et al., arXiv:2205.05198,
without dropout) and for the loss 10 V a token (logits in bf16 and in fp32, log-probabilities). DNT's further
norms and the allocator's waste come on top.
"""

from configurator import configure, read_file
from experiments.memory import build, count
from support.console import fail
from support.report import PEAK_TFLOPS

gpu = 'H100'  # a name in PEAK_TFLOPS of support/report.py
mfu = 0.4  # share of the peak that training reaches: an assumption; one H200 reached 0.41 (results/speed.md)

ROWS = ('dnt_small', 'dnt_large', 'dnt_xl', 'vdnt_large', 'vdnt_huge')  # table 3, as config/ has them
IMAGES = 1_281_167  # ImageNet's training set
# 'around four days to train 200K steps for the 1.4B model on 32 GPUs' (section B)
PAPER_GPU_DAYS = 4 * 32


def cost(name):
    """Parameters; of a sequence or image FLOPs, tokens, number in the run and activation bytes."""
    config = read_file(f'config/{name}.py')
    model = build(config)
    c, n = model.config, count(model)
    if 'patch_size' in config:
        T, samples, vocabulary = model.pos_embed.size(1), config['epochs'] * IMAGES, 0
        idle = model.pos_embed.numel() + model.head.weight.numel() * (T - 1) / T
    else:
        T, samples, vocabulary = c.block_size, config['max_iters'] * config['global_batch_size'], c.vocab_size
        idle = model.wpe.weight.numel()
    flops = T * (6 * (n - idle) + 12 * c.n_layer * c.n_embd * T)
    return n, flops, T, samples, T * (32 * c.n_layer * c.n_embd + 10 * vocabulary)


if __name__ == '__main__':
    configure(globals())
    peaks = dict(PEAK_TFLOPS)
    if gpu not in peaks:
        fail(f'gpu={gpu} is unknown. Use one of {", ".join(peaks)}.')
    print(f'{gpu}, {peaks[gpu]} TFLOP/s dense bf16, at an assumed {mfu:.0%} of it:\n')
    print('| config | run | GFLOPs a token | memory: AdamW | mSGDW | and each sequence or image | a second | '
          'GPU-days |\n|---|---|---|---|---|---|---|---|')
    for name in ROWS:
        n, flops, T, samples, activations = cost(name)
        speed = peaks[gpu] * 1e12 * mfu / flops  # sequences or images per second
        run, a_second = f'{samples / 1e6:.0f}M images', f'{speed:,.0f} images'
        if name.startswith('dnt'):
            run, a_second = f'{samples * T / 1e9:.1f}B tokens', f'{speed * T:,.0f} tokens'
        print(f'| `{name}` {n / 1e6:.1f}M | {run} | {flops / T / 1e9:.2f} | {16 * n / 1e9:.1f} GB | '
              f'{12 * n / 1e9:.1f} GB | {activations / 1e9:.2f} GB | {a_second} | '
              f'{samples / speed / 86400:.2g} |')
    n, flops, T, samples, _ = cost('dnt_xl')
    rate = flops * samples / (PAPER_GPU_DAYS * 86400) / 1e12
    shares = rate / peaks['A100'], rate / peaks['H100']
    print(f'\nThe paper trained these {n / 1e6:.0f}M weights in about 4 days on 32 GPUs of an unknown kind:')
    print(f'{rate:.0f} TFLOP/s a GPU, an MFU of {shares[0]:.0%} if they were A100 or A800,')
    print(f'{shares[1]:.0%} if they were H100.')
