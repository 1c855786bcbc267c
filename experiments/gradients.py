"""
The paper's figure 1: how large, and how heavy in the tail, are the gradients of GPT-2, L-DNT, ViT and V-DNT?

    python train_gpt.py config/dnt_tiny_plain.py --keep_interval=500       keeps the checkpoints of a run
    python -m experiments.gradients --runs=out/a,out/b                     measures them, several seeds too
    python -m experiments.gradients                                        draws what was measured

Measured at the first and the last ckpt_NNNNNN.pt of each run: the gradients of the six matrices of all
blocks, for several batches of the training set (pictures are not augmented).

Behind a norm, L(c w) = L(w), so the gradient at c w is 1/c of that at w: smaller gradients are not lighter
tails. So the picture has |g| and |g| / RMS(g), each matrix divided by its own RMS; the table the second.
"""

import glob
import json
import math
import os
from itertools import product
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from experiments.evidence import print_table, read_rows
from experiments.figures import name_run, plt, read_config, save, styles
from experiments.stack import CPU
from model import GPT, GPTConfig, ViT, ViTConfig
from support import normfree
from support.console import check_range, fail
from support.images import Images
from support.resume import load_checkpoint
from support.tokens import Tokens

runs = ''  # out_dirs, separated by commas; empty: only draw
batches = 8  # how many, each with its own gradient

SEED = 1337  # of the batches
RESULTS = 'results/gradients.jsonl'
WEIGHTS = ('W_q', 'W_k', 'W_v', 'W_o', 'W_1', 'W_2')
MULTIPLES = 10 ** np.arange(-0.5, 2.05, 0.1)  # of a matrix's RMS
SIZES = 10 ** np.arange(-9, 0.05, 0.2)

# -----------------------------------------------------------------------------
# measure

def losses(config, model):
    """The loss of each batch. Batch i depends on (SEED, i) alone."""
    images = 'image_size' in config
    if images:
        data = Images(config['dataset'], config, CPU)
        if not data.arrays:
            fail(f'{data.folder} has JPEGs, which this study does not read. Use small pictures: cifar10.')
        data.open('train')
        pictures, labels = data.splits['train']
        n = len(labels)
    else:
        data = Tokens(config['dataset'], config['block_size'], CPU)
        n = data.train_tokens - config['block_size']
    for i in range(batches):
        some = np.random.default_rng((SEED, i)).integers(0, n, config['global_batch_size'])
        if images:
            logits = model(data.normalized(pictures[some].permute(0, 3, 1, 2)))
            yield F.cross_entropy(logits, labels[some], label_smoothing=config['label_smoothing'])
        else:
            yield model(*data.windows('train', some))[1]

def tail(sizes):
    """The 99.9 % quantile over the median."""
    sizes = sizes.sort().values
    return (sizes[int(0.999 * len(sizes))] / sizes[len(sizes) // 2]).item()

def shares_above(g, levels):
    return [(g > level).double().mean().item() for level in levels]

def measure(path):
    """For each weight a dict of means over the batches; all layers are taken together."""
    saved = load_checkpoint(path)
    config, found = saved['config'], {weight: [] for weight in WEIGHTS}
    network = (ViT, ViTConfig) if 'image_size' in config else (GPT, GPTConfig)
    model = normfree.build(*network, saved['model_args']).eval()  # no dropout
    model.load_state_dict(saved['model'])
    for loss in losses(config, model):
        model.zero_grad()
        loss.backward()
        blocks = []
        for block in model.blocks:  # W_q, W_k and W_v are thirds of c_attn
            others = [linear.weight.grad for linear in (block.attn.c_proj, block.ffn.c_fc, block.ffn.c_proj)]
            blocks.append([*block.attn.c_attn.weight.grad.chunk(3), *others])
        for weight, layers in zip(WEIGHTS, zip(*blocks)):
            g = torch.cat([w.flatten() for w in layers]).abs()
            scaled = torch.cat([(w / w.square().mean().sqrt()).flatten() for w in layers]).abs()
            found[weight].append([tail(scaled), *shares_above(scaled, MULTIPLES), *shares_above(g, SIZES)])
    about = {'run': name_run(config), 'seed': config['seed'], 'images': 'image_size' in config,
             'iter': saved['iter']}
    for weight in WEIGHTS:
        ratio, *above = [float(f'{v:.4g}') for v in np.mean(found[weight], 0)]
        yield {**about, 'weight': weight, 'ratio': ratio, 'above': above[:len(MULTIPLES)],
               'larger': above[len(MULTIPLES):]}

def measure_runs():
    """All runs, then the file."""
    rows = []
    for out_dir in runs.split(','):
        read_config(out_dir)
        files = sorted(glob.glob(f'{glob.escape(out_dir)}/ckpt_*.pt'), key=lambda path: (len(path), path))
        if not files:
            fail(f'{out_dir} has no checkpoints such as ckpt_000500.pt. Train with --keep_interval=500.')
        for path in dict.fromkeys((files[0], files[-1])):
            rows += measure(path)
    os.makedirs('results', exist_ok=True)
    with open(RESULTS, 'w', encoding='utf-8') as f:
        f.writelines(json.dumps(row) + '\n' for row in rows)

# -----------------------------------------------------------------------------
# draw

def draw(rows):
    """Above early, below late in training. A line is the mean over the six weights and the seeds."""
    kinds = list(product(sorted({row['images'] for row in rows}), ('larger', 'above')))
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
            ax.set(xscale='log', yscale='log', ylim=(1e-6, 1.2), xlabel=unit,
                   title=f'{"pictures" if images else "language"}, {when} in training')
            if how == 'above':
                normal = [math.erfc(x / math.sqrt(2)) for x in MULTIPLES]
                ax.plot(MULTIPLES, normal, color='0.8', linewidth=9, zorder=0, label='normal distribution')
                axes[0, column].legend(fontsize=14)
    for ax in axes[:, 0]:
        ax.set_ylabel('share of entries with |g| > x')
    return fig

def table(rows):
    """The 99.9 % quantile over the median: its range over weights and seeds, and the median of each seed."""
    of_run, lines = {}, []
    for row in rows:
        of_seed = of_run.setdefault((row['run'], row['iter']), {})
        of_seed.setdefault(row['seed'], []).append(row['ratio'])
    for (run, at), of_seed in of_run.items():
        ratios = sum(of_seed.values(), [])
        medians = ', '.join(f'{median(of):.1f}' for of in of_seed.values())
        lines.append([run, at, f'{min(ratios):.1f}–{max(ratios):.1f}', medians])
    print_table('gradients', ['run', 'update', '99.9 % quantile / median', 'median of each seed'], lines)

if __name__ == '__main__':
    config = configure(globals())
    check_range(config, 1, 2**20, 'batches')
    if runs:
        measure_runs()
    measured = read_rows(RESULTS) or fail(f'{RESULTS} has no rows. Measure them with --runs=out/a,out/b.')
    table(measured)
    save(draw(measured), 'gradients')
