"""
The paper's figure 1: how large, and how heavy in the tail, are the gradients of GPT-2, L-DNT, ViT and V-DNT?

    python train_gpt.py config/dnt_tiny_plain.py --keep_interval=500       keeps the checkpoints of a run
    python -m experiments.gradients --runs=out/a,out/b                     measures them, several seeds too
    python -m experiments.gradients                                        draws what was measured

Measured at the first and the last ckpt_NNNNNN.pt of each run: the gradients of W_q, W_k, W_v,
W_o, W_1 and W_2 of all blocks, for several batches of the training set (pictures as they are stored, not
augmented). A line each goes to results/gradients.jsonl.

Behind a norm, L(c w) = L(w), so the gradient at c w is 1/c of that at w: smaller gradients are not lighter
tails. So the picture has both: |g|, and |g| / RMS(g) with each matrix divided by its own RMS.
"""

import json
import math
import os
import re
from itertools import product
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from experiments.evidence import print_table
from experiments.figures import name_run, plt, read_config, read_rows, save, styles
from experiments.stack import CPU
from model import GPT, GPTConfig, ViT, ViTConfig
from support import normfree
from support.checks import check_range
from support.console import fail
from support.images import Images
from support.tokens import Tokens

runs = ''  # out_dirs, separated by commas; empty: only draw
batches = 8  # how many, each with its own gradient

TAIL = 0.001  # share of the largest |g| that the Hill index is of
SEED = 1337  # of the batches
RESULTS = 'results/gradients.jsonl'
WEIGHTS = ('W_q', 'W_k', 'W_v', 'W_o', 'W_1', 'W_2')
MULTIPLES = 10 ** np.arange(-0.5, 2.05, 0.1)  # of a matrix's RMS
SIZES = 10 ** np.arange(-9, 0.05, 0.2)
NUMBERS = {'kurtosis': 'excess kurtosis', 'ratio': '99.9 % quantile / median', 'hill': 'Hill index'}

# -----------------------------------------------------------------------------
# measure

def load(path):
    """(checkpoint, network) of a file."""
    try:
        saved = torch.load(path, map_location='cpu', weights_only=True)
        network = (ViT, ViTConfig) if 'image_size' in saved['config'] else (GPT, GPTConfig)
        model = normfree.build(*network, saved['model_args'])
        model.load_state_dict(saved['model'])
    except Exception as e:  # a zip that is cut short, a pickle of classes, a file of something else
        fail(f'{path} is not a complete checkpoint of a GPT or ViT ({type(e).__name__}). Use another run.')
    return saved, model.eval()  # no dropout

def places(n, config):
    """Where the samples of each batch are. Batch i depends on (SEED, i) alone."""
    return [np.random.default_rng((SEED, i)).integers(0, n, config['global_batch_size'])
            for i in range(batches)]

def losses_of_text(config, model):
    data = Tokens(config['dataset'], config['block_size'], CPU)
    for some in places(data.train_tokens - config['block_size'], config):
        yield model(*data.windows('train', some))[1]

def losses_of_pictures(config, model):
    data = Images(config['dataset'], config, CPU)
    if not data.arrays:
        fail(f'{data.folder} has JPEGs, which this study does not read. Use small pictures: cifar10.')
    data.open('train')
    pictures, labels = data.splits['train']
    for some in places(len(labels), config):
        logits = model(data.normalized(pictures[some].permute(0, 3, 1, 2)))
        yield F.cross_entropy(logits, labels[some], label_smoothing=config['label_smoothing'])

def gradients_of(block):
    """The gradients of a block in the order of WEIGHTS; W_q, W_k and W_v are thirds of c_attn."""
    linears = block.attn.c_proj, block.ffn.c_fc, block.ffn.c_proj
    return [*block.attn.c_attn.weight.grad.chunk(3), *(linear.weight.grad for linear in linears)]

def heaviness(g):
    """
    Three numbers that no factor on g changes: the excess kurtosis of g; the 99.9 % quantile of |g| over its
    median; the Hill index of |g|, 1 / mean(log(|g| / u)) over its k largest entries, a share TAIL of all, u
    being the largest one below: for a power law P(|g| > x) ~ x^-a it is a. Normal: 0, 4.9, 13.
    """
    centred = g.double() - g.double().mean()
    kurtosis = (centred ** 4).mean() / (centred ** 2).mean() ** 2 - 3
    size = g.abs().flatten().double().sort().values
    k, n = max(1, int(TAIL * len(size))), len(size)
    hill = 1 / (size[-k:] / size[-k - 1]).log().mean()
    return [kurtosis.item(), (size[int(0.999 * n)] / size[n // 2]).item(), hill.item()]

def shares_above(g, levels):
    return [(g.abs() > level).double().mean().item() for level in levels]

def measure(path):
    """For each weight a dict of means over the batches; all layers are taken together."""
    saved, model = load(path)
    config, found = saved['config'], {weight: [] for weight in WEIGHTS}
    losses = losses_of_pictures if 'image_size' in config else losses_of_text
    for loss in losses(config, model):
        model.zero_grad()
        loss.backward()
        for weight, layers in zip(WEIGHTS, zip(*(gradients_of(block) for block in model.blocks))):
            g = torch.cat([w.flatten() for w in layers])
            scaled = torch.cat([(w / w.square().mean().sqrt()).flatten() for w in layers])  # by its own RMS
            found[weight].append([*heaviness(scaled), *shares_above(scaled, MULTIPLES),
                                  *shares_above(g, SIZES)])
    about = {'run': name_run(config), 'seed': config['seed'], 'images': 'image_size' in config,
             'iter': saved['iter']}
    for weight in WEIGHTS:
        kurtosis, ratio, hill, *above = [float(f'{v:.4g}') for v in np.mean(found[weight], 0)]
        yield {**about, 'weight': weight, 'kurtosis': kurtosis, 'ratio': ratio, 'hill': hill,
               'above': above[:len(MULTIPLES)], 'larger': above[len(MULTIPLES):]}

def measure_runs():
    """All runs, then the file."""
    lines = []
    for out_dir in runs.split(','):
        read_config(out_dir)
        files = [f for f in os.listdir(out_dir) if re.fullmatch(r'ckpt_\d+\.pt', f)]
        files.sort(key=lambda f: int(f[5:-3]))  # 1000000 comes after 999999
        if not files:
            fail(f'{out_dir} has no checkpoints such as ckpt_000500.pt. Train with --keep_interval=500.')
        for file in dict.fromkeys((files[0], files[-1])):
            lines += [json.dumps(row) + '\n' for row in measure(os.path.join(out_dir, file))]
    os.makedirs('results', exist_ok=True)
    with open(RESULTS, 'w', encoding='utf-8') as f:
        f.writelines(lines)

# -----------------------------------------------------------------------------
# draw

def draw(rows):
    """Above early, below late in training. A line is the mean over the six weights and the seeds."""
    kinds = [(images, how) for images, how in product((False, True), ('larger', 'above'))
             if any(row['images'] == images and how in row for row in rows)]  # older rows have no 'larger'
    fig, axes = plt.subplots(2, len(kinds), figsize=(2 + 6 * len(kinds), 11), layout='constrained',
                             squeeze=False, sharey=True)
    for column, (images, how) in enumerate(kinds):
        names = list(dict.fromkeys(row['run'] for row in rows if row['images'] == images))
        levels, unit = (SIZES, 'x') if how == 'larger' else (MULTIPLES, 'x / RMS(g)')
        for ax, end, when in zip(axes[:, column], (min, max), ('early', 'late')):
            for name, style in zip(names, styles(names)):
                at = end(row['iter'] for row in rows if row['run'] == name)
                of_run = [row for row in rows if (row['run'], row['iter']) == (name, at)]
                shares = np.mean([row[how] for row in of_run], 0)
                shares[(shares == 0) | (shares > 0.98)] = math.nan  # there is nothing to see
                seeds = len({row['seed'] for row in of_run})
                label = f'{name}, {seeds} seeds' if seeds > 1 else f'{name}, one seed'
                ax.plot(levels, shares, **{**style, 'marker': ''}, label=label)
            if how == 'above':
                ax.plot(MULTIPLES, [math.erfc(x / math.sqrt(2)) for x in MULTIPLES], color='0.8', linewidth=9,
                        zorder=0, label='normal distribution')
            ax.set(xscale='log', yscale='log', ylim=(1e-6, 1.2), xlabel=unit,
                   title=f'{"pictures" if images else "language"}, {when} in training')
        if how == 'above':
            axes[0, column].legend(fontsize=14)
    for ax in axes[:, 0]:
        ax.set_ylabel('share of entries with |g| > x')
    return fig

def table(rows):
    """The least and the largest value over weights and seeds, and for each seed the median over weights."""
    lines = []
    for run, at in dict.fromkeys((row['run'], row['iter']) for row in rows):
        line = [run, at]
        for number in NUMBERS:
            values = [row[number] for row in rows if (row['run'], row['iter']) == (run, at)]
            line.append(f'{min(values):.1f}–{max(values):.1f}')
        of_seed = {}
        for row in rows:
            if (row['run'], row['iter']) == (run, at):
                of_seed.setdefault(row['seed'], []).append(row['ratio'])
        line.append(', '.join(f'{median(ratios):.1f}' for ratios in of_seed.values()))
        lines.append(line)
    print_table(['run', 'update', *NUMBERS.values(), 'quantile / median of each seed'], lines)

if __name__ == '__main__':
    config = configure(globals())
    check_range(config, 1, 2**20, 'batches')
    if runs:
        measure_runs()
    measured = read_rows(RESULTS, 'Measure them first with --runs=out/a,out/b.')
    table(measured)
    save(draw(measured), 'gradients')
