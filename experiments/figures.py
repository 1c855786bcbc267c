"""
From logs to pictures: each command draws figures/NAME.png and prints the table beside it.

    python -m experiments.figures curves --runs=out/a,out/b     losses of any runs, also unfinished ones
    python -m experiments.figures seeds --study=language        the last loss of each arm, seed by seed
    python -m experiments.figures seeds --study=ablation        figure 6: S1 to S5
    python -m experiments.figures seeds --study=evidence --where=max_iters=4500,n_embd=64 --out=headline
    python -m experiments.figures frequency                     frequent and rare tokens (evidence's why)
    python -m experiments.figures grid --study=language_grid    the last loss against the learning rate
    python -m experiments.figures settings                      figures 2, 3 and 7, from SETTINGS
    python -m experiments.figures gradients                     figure 1, from results/gradients.jsonl
    python -m experiments.figures gradients --runs=out/a,out/b  measures these first (--keep_interval=N)

A study is results/NAME.jsonl, which experiments.reproduce writes. Every network has one colour and every
optimizer one line and one marker in all figures. Pictures are for a projector; the same input gives the same
bytes.
"""

import itertools
import json
import math
import os
import re
import statistics
import sys

import matplotlib
import numpy as np
import torch

from configurator import configure, read_file
from experiments import evidence
from experiments.evidence import interval, mean_spread, read
from experiments.stack import CPU
from model import GPT, NORMS, SETTINGS, GPTConfig
from support import normfree
from support.console import fail
from support.tokens import Tokens

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

runs = ''  # curves, gradients: out_dirs, separated by commas
study = ''  # seeds, grid, gradients: NAME of results/NAME.jsonl
out = ''  # name of the picture in figures/, or a path, as .png or .svg; empty: the study's or the command's
key = 'loss'  # curves: what of log.jsonl: loss, top1, top5, grad_norm, ...
metric = 'val_loss'  # seeds, grid: what of a study's rows: val_loss, top1, test_top1, ...
where = ''  # seeds, grid: only runs with these values: max_iters=4500,n_embd=64
search_seeds = '101,102'  # seeds: those by which settings were chosen; they are not drawn
batches = 8  # gradients: how many, each with its own gradient
batch_size = 0  # gradients: sequences in each; 0: as the run was trained
tail = 0.001  # gradients: share of the largest |g| that the Hill index is of
seed = 1337  # gradients: of the batches

NETWORKS = {('S1', 'layer', False): 'GPT-2', ('S1', 'layer', True): 'ViT',
            ('S5', 'rms', False): 'L-DNT', ('S5', 'rms', True): 'V-DNT'}  # by setting, norm, images or not
OPTIMIZERS = {'sgdw': 'mSGDW', 'adamw': 'AdamW', 'sgd': 'SGD', 'muon': 'Muon'}
# Okabe and Ito's colours, which the colour-blind tell apart, but for their yellow, with two darker ones
COLORS = {name: color for color, names in {
    '#0072B2': 'GPT-2,ViT,S1,Pre-LN', '#D55E00': 'L-DNT,V-DNT,S5', '#56B4E9': 'S2,NoNorm + WS',
    '#009E73': 'S3,NoNorm + WS + AGC', '#E69F00': 'S4,NoNorm + init', '#CC79A7': 'PostLN,Post-LN',
    '#000000': 'NoNorm', '#7F4F24': 'NFNet,NoNorm + WS on FFN', '#5D3A9B': 'NoNorm + init + WS'
}.items() for name in names.split(',')}
LINES = {'mSGDW': ('-', 'o'), 'mSGDW + row norm': ((0, (9, 1)), 'D'), 'mSGDW, embed_lr': (':', 'P'),
         'AdamW': ((0, (4, 1.5)), 's'), 'AdamW + row norm': ((0, (2, 1)), 'v'), 'SGD': ('-', 'o'),
         'hybrid': ((0, (4, 1, 1, 1)), '^'), 'Muon': ((0, (6, 1, 1, 1, 1, 1)), 'h'),
         'Muon + row norm': ((0, (1, 2)), '*')}
# what seeds of one experiment may differ in
BOOKKEEPING = ('seed', 'out_dir', 'init_from', 'overwrite', 'eval_only', 'ckpt_interval', 'keep_interval',
               'micro_batch_size', 'num_workers', 'device', 'compile', 'torch', 'git', 'gpu', 'world_size')
CROSS = dict(marker='X', markersize=16, markeredgecolor='white', linestyle='')

# -----------------------------------------------------------------------------
# files, names, styles, tables

def read_rows(path, how):
    """The objects of a .jsonl file."""
    rows = []
    try:
        with open(path, encoding='utf-8') as f:
            for line in f:
                try:
                    rows.append(json.loads(line))
                except ValueError:  # the last line of a run that goes on, or a line that a kill cut short
                    continue
    except OSError as e:
        fail(f'Cannot read {path} ({e.strerror}). {how}')
    return rows or fail(f'{path} is empty. {how}')


def run_dirs():
    dirs = [d for d in runs.split(',') if d] or fail('No runs are given. Use --runs=out/a,out/b.')
    for d in dirs:
        if not os.path.isdir(d):
            fail(f'There is no run in {d}. Give the out_dir of a run, or several with commas between them.')
    return dirs


def name_runs(configs):
    """For each config its network and optimizer, and where those are equal what else tells it apart."""
    names = []
    for c in configs:
        network = 'NFNet' if c.get('arch') == 'nfnet' else \
            NETWORKS.get((c['setting'], c['norm'], 'image_size' in c), c['setting'])
        flags = [f'{"with" if c[k] else "without"} {k}' for k in NORMS if c.get(k, 'auto') != 'auto']
        optimizer, embeddings = OPTIMIZERS.get(c['optimizer'], c['optimizer']), c.get('embed_optimizer')
        optimizer = 'hybrid' if (optimizer, embeddings) == ('mSGDW', 'adamw') else \
            optimizer + ' + row norm' * (embeddings == 'rownorm')
        names.append(' '.join([network, *flags, optimizer]))
    for name in {n for n in names if names.count(n) > 1}:
        same = [i for i, n in enumerate(names) if n == name]
        differ = [k for k in configs[same[0]] if k not in BOOKKEEPING
                  and len({configs[i].get(k) for i in same}) > 1]
        for i in same:
            few = ''.join(f', {k} {configs[i].get(k)}' for k in differ) if len(differ) < 3 else ''
            names[i] += few or f' in {configs[i]["out_dir"]}'
    return names


def styles(names):
    """Colour, line and marker for each name. Where two would look alike, the later gets another colour."""
    found, others = [], itertools.cycle(dict.fromkeys(reversed(COLORS.values())))
    for name in names:
        network = max((n for n in COLORS if name.startswith(n)), key=len, default='NFNet')
        optimizer = max((o for o in LINES if o in name), key=len, default='mSGDW')
        style = dict(zip(('color', 'linestyle', 'marker'), (COLORS[network], *LINES[optimizer])))
        for _ in COLORS:  # with more lines than that some look the same
            if style in found:
                style = {**style, 'color': next(others)}
        found.append(style)
    return found


def quantity(name, images, where='validation '):
    """(factor, words with the unit) of a number that runs log or end with; shares become percents."""
    where = 'test ' if name.startswith('test') else where
    if 'top' in name:
        return 100, f'{where}top-{name[-1]} accuracy (%)'
    return 1, f'{where}loss (nats per {"image" if images else "token"})' if 'loss' in name else name


def print_table(head, rows):
    for row in (head, ['---'] * len(head), *rows):
        print('| ' + ' | '.join(map(str, row)) + ' |')


def save(fig, name):
    """The picture without date and version, so that the same input gives the same bytes."""
    path = out or f'{name}.png'
    path += '' if path.endswith(('.png', '.svg')) else '.png'
    path = path if os.path.dirname(path) else os.path.join('figures', path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        empty = ('Date', 'Creator') if path.endswith('.svg') else ('Software',)
        fig.savefig(path, dpi=120, metadata=dict.fromkeys(empty))
    except OSError as e:
        fail(f'Cannot write {path} ({e.strerror}). Choose another --out.')
    print(f'\n{path}')

# -----------------------------------------------------------------------------
# figures 5, 8 to 10: curves

def read_run(out_dir):
    """(config, {split: {iteration: value}}) of a run."""
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            config = {**json.load(f), 'out_dir': out_dir}
    except (OSError, ValueError):
        fail(f'{out_dir} has no readable config.json. Give the out_dir of a run.')
    factor, log = quantity(key, False)[0], {'train': {}, 'val': {}}
    for row in read_rows(os.path.join(out_dir, 'log.jsonl'), 'Wait until the run has begun.'):
        if isinstance(row.get(key), (int, float)):
            log[row['split']][row['iter']] = factor * row[key]
    if not any(log.values()):
        fail(f'{out_dir}/log.jsonl has no rows with {key}. Use another --key, or wait for the first row.')
    return config, log


def mean_of(logs):
    """{iteration: values of the runs that have one}, in order."""
    return {x: [log[x] for log in logs if x in log] for x in sorted(set().union(*logs))}


def smooth(values):
    """Means over a twenty-fifth of the values around each: a training loss is that of a single batch."""
    half = max(2, len(values) // 50)
    return [statistics.fmean(values[max(0, i - half):i + half + 1]) for i in range(len(values))]


def curves():
    """
    For each set of runs that differ in nothing but the seed a thin line, the training loss, and a thick one,
    the validation loss: means of the seeds, and a band from the lowest to the highest. The first fifth may
    leave the picture above or below: what it is drawn for comes later.
    """
    groups = {}
    for config, log in map(read_run, run_dirs()):
        same = json.dumps({k: v for k, v in config.items() if k not in BOOKKEEPING}, sort_keys=True)
        groups.setdefault(same, []).append((config, log))
    names = name_runs([group[0][0] for group in groups.values()])
    end = max(1, *(x for group in groups.values() for _, log in group for of_split in log.values()
              for x in of_split))
    label = quantity(key, 'image_size' in config, '')[1]
    fig, ax = plt.subplots(figsize=(13, 7), layout='constrained')
    table, lines, shown, rest = [], [], {'train': [], 'val': []}, []
    for name, style, group in zip(names, styles(names), groups.values()):
        marker, last, ends = style.pop('marker'), {}, {max((*log['train'], *log['val'])) for _, log in group}
        for split, width in (('train', 1.2), ('val', 3)):
            seeds = mean_of([log[split] for _, log in group])
            means = [statistics.fmean(v) for v in seeds.values()]
            means = smooth(means) if split == 'train' else means
            few = marker if split == 'val' and len(means) < 30 else None
            ax.plot(list(seeds), means, linewidth=width, marker=few, **style)
            if split == 'val':
                ax.fill_between(list(seeds), *([f(v) for v in seeds.values()] for f in (min, max)),
                                linewidth=0, color=style['color'], alpha=0.25)
            shown[split] += [y for x, y in zip(seeds, means) if x > max(ends) / 5]
            rest += means
            last[split] = [log[split][max(log[split])] for _, log in group if log[split]]
        said = mean_spread(last['val']) or f'training {mean_spread(last["train"])}'
        lines.append(plt.Line2D([], [], linewidth=3, marker=marker, label=f'{name}\n{said}', **style))
        table.append([name, len(group), ', '.join(map(str, sorted(ends))), said])
    # validation chooses the range; where training is lower it is shown, too
    chosen = shown['val'] or shown['train'] or rest
    low, high = min(chosen + shown['train']), max(chosen)
    margin = 0.05 * (high - low) or 0.1
    ax.set(xlabel='update', ylabel=label, xlim=(end / 100, end * 1.01), ylim=(low - margin, high + margin))
    lines += [plt.Line2D([], [], color='0.3', linewidth=width, label=split)
              for width, split in ((1.2, 'training'), (3, 'validation'))]
    fig.legend(handles=lines, loc='outside right upper', handlelength=3, title='last validation value')
    print_table(['run', 'seeds', 'last iteration', f'last validation {label}'], table)
    return fig

# -----------------------------------------------------------------------------
# studies: the seeds of each arm, and the learning rate

def read_study(*needed):
    """(rows, each with its name, factor, words) of a study; every run in it has those keys."""
    path = f'results/{study or fail("No study is given. Use --study=NAME for results/NAME.jsonl.")}.jsonl'
    wanted = [pair.split('=') for pair in where.split(',') if '=' in pair]
    rows = [row for row in read_rows(path, 'Run it first with python -m experiments.evidence.')
            if all(str(row['run'].get(k)) == v for k, v in wanted)] or fail(f'{path} has no run with {where}')
    for name in needed:
        if any(name not in row['run'] for row in rows):
            fail(f'{path} has runs without {name}, which this picture needs.')
    if not any(metric in row for row in rows if row['ended'] != 'diverged'):
        fail(f'{path} has no finished run with {metric}. Use another --metric.')
    for row in rows:
        run = row['run']
        row['name'] = run.get('variant') or name_runs([{**read_file(f'config/{run["config"]}.py'), **run}])[0]
    return rows, *quantity(metric, any('top1' in row for row in rows))


def best_seeds(rows, factor):
    """What the seeds ended with at the best of all else that was varied and never diverged, or []."""
    groups = {}
    for row in rows:
        groups.setdefault(json.dumps({k: v for k, v in row['run'].items() if k != 'seed'}), []).append(row)
    good = [[factor * row[metric] for row in group] for group in groups.values()
            if all(row['ended'] != 'diverged' and metric in row for row in group)]
    # a place of the search that got no further seeds is not what was chosen
    most = max(map(len, good), default=0)
    return min((values for values in good if len(values) == most), default=[],
               key=lambda values: statistics.fmean(values) * (-1 if 'top' in metric else 1))


def seeds():
    """A row for each arm: a dot for each seed, and a bar at their mean with its 95 % interval."""
    rows, factor, label = read_study('config')
    arms = {}
    for row in rows:
        if str(row['run'].get('seed')) not in search_seeds.split(','):
            arms.setdefault(row['name'], []).append(row)
    fig, ax = plt.subplots(figsize=(13, 2 + 0.55 * len(arms)), layout='constrained')
    table, names = [], sorted(arms)  # networks together
    for y, (name, style) in enumerate(zip(names, styles(names))):
        values, color = best_seeds(arms[name], factor), style['color']
        mean, half = interval(values) if values else (0, math.inf)
        table.append([name, len(values), mean_spread(values) if values else 'diverged',
                      f'{half:.4f}' if half < math.inf else ''])
        if values:
            ax.errorbar(mean, y, xerr=half if half < math.inf else None, color=color, linewidth=2, capsize=6)
            ax.plot(mean, y, '|', color=color, markersize=24, markeredgewidth=4)
            ax.plot(values, [y] * len(values), style['marker'], color=color, markeredgecolor='white',
                    zorder=3)
        else:  # at the edge of the picture where the bad values are
            ax.plot(0.02 if 'top' in metric else 0.98, y, transform=ax.get_yaxis_transform(), color=color,
                    **CROSS)
        ax.annotate(f'{mean:#.4g}' if values else 'diverged', (1.01, y), xycoords=ax.get_yaxis_transform(),
                    va='center')
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6),
           xlabel=f'{label}\na dot for each seed; their mean and its 95 % interval')
    ax.grid(axis='x', color='0.9')
    print_table(['arm', 'seeds', label, '95 % interval, ±'], table)
    return fig


def frequency():
    """
    How far each arm of evidence's why is from AdamW on each tenth of the text, the tenth of the most frequent
    tokens first. Differences are between runs of the same seed, with 95 % intervals. One frequent token may
    fill several tenths.
    """
    done = read(evidence.RESULTS)
    arms = {arm.optimizer: {seed: row['by_frequency'] for seed, row in arm.scored(done).items()}
            for arm in evidence.QUESTIONS['why']()}
    if not all(arms.values()):
        fail('Not all arms are scored yet. Run python -m experiments.evidence --question=why.')
    base = arms.pop('AdamW')
    tenths = np.flatnonzero(np.mean(list(base.values()), 0))  # those in which a token begins
    ranges = [f'{a + 1}' if b == a + 1 else f'{a + 1} to {b}' for a, b in zip(tenths, [*tenths[1:], 10])]
    fig, ax = plt.subplots(figsize=(13, 7), layout='constrained')
    table = [['AdamW', *(f'{np.mean([losses[i] for losses in base.values()]):.4f}' for i in tenths)]]
    for (name, losses), style in zip(arms.items(), styles([f'L-DNT {name}' for name in arms])):
        gaps = [interval([losses[seed][i] - base[seed][i] for seed in losses.keys() & base.keys()])
                for i in tenths]
        ax.errorbar(tenths + 1, *zip(*gaps), label=name, capsize=6, **style)
        table.append([f'{name} minus AdamW', *(f'{mean:+.4f} ± {half:.4f}' for mean, half in gaps)])
    ax.axhline(0, color='0.6', linewidth=1.5, zorder=0)
    ax.set(title='L-DNT, vocabulary 4,096', xticks=tenths + 1, xticklabels=ranges,
           xlabel='tenth of the text, from the most frequent tokens to the rarest',
           ylabel='validation loss minus that of AdamW\n(nats per token)')
    fig.legend(loc='outside upper center', ncols=4, handlelength=4)
    print_table(['L-DNT', *(f'tenth {tenth}' for tenth in ranges)], table)
    return fig


def grid():
    """
    The last value against the learning rate, a line for each arm, at the best of what else was varied. What
    diverged has no value: it is marked below, in a row for each line.
    """
    rows, factor, label = read_study('config', 'learning_rate')
    names = list(dict.fromkeys(row['name'] for row in rows))
    lost = [name for name in names if any((row['name'], row['ended']) == (name, 'diverged') for row in rows)]
    rates, cells, best = sorted({row['run']['learning_rate'] for row in rows}), {}, []
    fig, axes = plt.subplots(1 + bool(lost), figsize=(14, 8), sharex=True, squeeze=False,
                             layout='constrained', height_ratios=[20, len(lost)][:1 + bool(lost)])
    ax, below = axes[0, 0], axes[-1, 0]
    for name, style in zip(names, styles(names)):
        points = {}
        for lr in rates:
            here = [row for row in rows if (row['name'], row['run']['learning_rate']) == (name, lr)]
            values, diverged = best_seeds(here, factor), sum(row['ended'] == 'diverged' for row in here)
            if values:
                points[lr] = statistics.fmean(values)
            cells[name, lr] = mean_spread(values) if values else ''
            if diverged:
                below.plot(lr, lost.index(name), color=style['color'], **CROSS)
                cells[name, lr] = f'{cells[name, lr]} ({diverged} of {len(here)} diverged)'.strip()
        best += [min(points.values())] if points else []
        ax.plot(list(points), list(points.values()), label=name, **style)
    if lost:
        below.set(yticks=range(len(lost)), ylim=(len(lost) - 0.5, -0.5), ylabel='diverged')
        below.set_yticklabels(lost, fontsize=13)
        below.yaxis.tick_right()
        below.tick_params(axis='y', length=0)
    ax.set(xscale='log', ylabel=label)
    low, high = (f(best, default=0) for f in (min, max))
    if 'loss' in metric and low < high:  # rates far from the best may leave the picture above
        ax.set_ylim(low - 0.1 * (high - low), min(high + (high - low), ax.get_ylim()[1]))
    below.set_xlabel('learning rate')
    ax.legend(loc='upper left', bbox_to_anchor=(1, 1), handlelength=3)
    print_table(['learning rate', *names], [[f'{lr:g}', *(cells[name, lr] for name in names)]
                                            for lr in rates])
    return fig

# -----------------------------------------------------------------------------
# figures 2, 3 and 7: which norm sits where

NORM_COLORS = {'InputNorm': '#D55E00', 'PreNorm': '#009E73', 'QKNorm': '#E69F00', 'MidNorm': '#0072B2',
               'PostNorm': '#CC79A7', 'FinalNorm': '#555555'}
# the way of x from below to above: (word, its flag in SETTINGS); None: always there
STACK = (('embedding', None), ('InputNorm', 'input_norm'),
         ('branch', None), ('PreNorm', 'pre_norm'), ('QKNorm', 'qk_norm'), ('attention', None),
         ('MidNorm', 'mid_norm'), ('+', None), ('PostNorm', 'post_norm'),
         ('branch', None), ('PreNorm', 'ffn_pre_norm'), ('FFN', None), ('MidNorm', 'mid_norm'),
         ('+', None), ('PostNorm', 'post_norm'), ('FinalNorm', 'final_norm'), ('head', None))


def box(ax, x, low, high, word, width=0.9, text=0.5):
    """A box with a word at a share of its height: a norm in its colour, all else white."""
    color = NORM_COLORS.get(word, 'white')
    ax.add_patch(plt.Rectangle((x - width / 2, low), width, high - low, facecolor=color, linewidth=1.5,
                               edgecolor='black' if color == 'white' else color, zorder=2))
    ax.text(x, low + text * (high - low), word, ha='center', va='center_baseline', zorder=3,
            color='black' if word in ('QKNorm', 'PostNorm') or color == 'white' else 'white')


def settings():
    """Each row of SETTINGS as a column, x going up through it; a norm that is off leaves its place empty."""
    fig, ax = plt.subplots(figsize=(16, 9.5), layout='constrained')
    line = dict(color='black', linewidth=1.5, zorder=1)
    for column, (name, flags) in enumerate(SETTINGS.items()):
        x = 1.3 * column
        ax.plot([x, x], [-0.4, len(STACK) + 0.2], **line)
        ax.add_patch(plt.Rectangle((x - 0.63, 1.9), 1.16, 13, facecolor='0.93', zorder=0))
        for y, (word, flag) in enumerate(STACK):
            if word == 'branch':  # the residual connection goes from here to the next +
                start = y + 0.4
            elif word == '+':
                ax.plot([x, x - 0.55, x - 0.55, x], [start, start, y + 0.4, y + 0.4], **line)
                ax.text(x, y + 0.4, '+', ha='center', va='center', zorder=3,
                        bbox=dict(boxstyle='circle,pad=0.1', facecolor='white', edgecolor='black',
                                  linewidth=1.5))
            elif word == 'attention':  # it holds QKNorm
                box(ax, x, y - 1, y + 0.8, word, text=0.75 if flags['qk_norm'] else 0.5)
                if flags['qk_norm']:
                    box(ax, x, y - 0.9, y - 0.1, 'QKNorm', width=0.8)
            elif word != 'QKNorm' and (flag is None or flags[flag]):
                box(ax, x, y, y + 0.8, word)
        known = ', '.join(network for (setting, _, _), network in NETWORKS.items() if setting == name)
        ax.text(x, len(STACK) + 1.3, name, ha='center', fontsize=24, weight='bold')
        ax.text(x, len(STACK) + 0.5, known, ha='center')
    ax.text(-0.7, 8.4, 'block, n_layer times', rotation=90, ha='right', va='center', fontsize=18)
    ax.set(xlim=(-0.95, x + 0.6), ylim=(-0.5, len(STACK) + 2))
    ax.axis('off')
    print_table(['setting', *NORMS], [[name, *('x' * flags[n] for n in NORMS)] for name,
                                      flags in SETTINGS.items()])
    return fig

# -----------------------------------------------------------------------------
# figure 1: gradients

WEIGHTS = ('W_q', 'W_k', 'W_v', 'W_o', 'W_1', 'W_2')
LEVELS = 10 ** np.arange(-0.5, 2.05, 0.1)  # multiples of a matrix's RMS


def load_gpt(path):
    """(checkpoint, network) of a file."""
    try:
        saved = torch.load(path, map_location='cpu', weights_only=True)
        model = normfree.build(GPT, GPTConfig, saved['model_args'])
        model.load_state_dict(saved['model'])
    except Exception as e:  # a zip that is cut short, a pickle of classes, a file of something else, a ViT
        fail(f'{path} is not a complete checkpoint of train_gpt.py ({type(e).__name__}). Use another run.')
    return saved, model.eval()  # no dropout


def gradients_of(block):
    """The gradients of a block in the order of WEIGHTS; W_q, W_k and W_v are thirds of c_attn."""
    linears = block.attn.c_proj, block.ffn.c_fc, block.ffn.c_proj
    return *block.attn.c_attn.weight.grad.chunk(3), *(linear.weight.grad for linear in linears)


def kurtosis(g):
    """Excess kurtosis: 0 for a normal distribution, 3 for a Laplace distribution."""
    centred = g.double() - g.double().mean()
    return ((centred ** 4).mean() / (centred ** 2).mean() ** 2 - 3).item()


def heaviness(g):
    """
    Three numbers that no factor on g changes: the kurtosis of g; the 99.9 % quantile of |g| over its median;
    the Hill index of |g|, 1 / mean(log(|g| / u)) over its k largest entries, a share `tail` of all, u being
    the largest one below. For a power law, P(|g| > x) ~ x^-a, the last is a, with standard error a / sqrt(k).
    Normal: 0, 4.9, 13.
    """
    size = g.abs().flatten().double().sort().values
    k, n = max(1, int(tail * len(size))), len(size)
    hill = 1 / (size[-k:] / size[-k - 1]).log().mean()
    return kurtosis(g), (size[int(0.999 * n)] / size[n // 2]).item(), hill.item()


def measure_gradients(path):
    """Rows of results/gradients.jsonl, one for each weight: over all layers and batches, of g / RMS(g)."""
    saved, model = load_gpt(path)
    config = saved['config']
    data, found = Tokens(config['dataset'], config['block_size'], CPU), [[] for _ in WEIGHTS]
    for i in range(batches):
        offsets = np.random.default_rng((seed, i)).integers(0, data.train_tokens - config['block_size'],
                                                            batch_size or config['global_batch_size'])
        model.zero_grad()
        model(*data.windows('train', offsets))[1].backward()
        for of_weight, layers in zip(found, zip(*map(gradients_of, model.blocks))):
            # each matrix by its own RMS
            g = torch.cat([(w / w.square().mean().sqrt()).flatten() for w in layers])
            of_weight.append([*heaviness(g), *((g.abs() > x).double().mean().item() for x in LEVELS)])
    for weight, of_weight in zip(WEIGHTS, found):
        numbers, ratio, hill, *above = (float(f'{v:.4g}') for v in np.mean(of_weight, 0))
        yield {'iter': saved['iter'], 'weight': weight, 'kurtosis': numbers, 'ratio': ratio, 'hill': hill,
               'above': above}


def gradients():
    """
    How heavy the tails of the gradients are, late in training, for two of the weights; the table has all six.

    With a norm behind it the scale of a weight does not change the loss, L(c w) = L(w), so its gradient at c
    w is 1/c of that at w. MidNorm (for W_v, W_o, W_2) and QKNorm (for W_q, W_k) hence change the size of each
    matrix's gradient by themselves, whatever the shape of the distribution: smaller gradients are not lighter
    tails. So all is of g / RMS(g), each matrix by its own RMS. The quantile over the median also rises where
    most entries are nearly 0.
    """
    path = f'results/{study or "gradients"}.jsonl'
    if runs:
        files = {d: sorted(f for f in os.listdir(d) if re.fullmatch(r'ckpt_\d+\.pt', f)) for d in run_dirs()}
        for d in files:
            if not files[d]:
                fail(f'{d} has no checkpoints such as ckpt_000500.pt. Train with --keep_interval=500.')
        names = name_runs([{**load_gpt(os.path.join(d, of_run[0]))[0]['config'], 'out_dir': d} for d,
                           of_run in files.items()])
        rows = [{'run': name, **row} for name, (d, of_run) in zip(names, files.items())
                for f in dict.fromkeys((of_run[0], of_run[len(of_run) // 2], of_run[-1]))
                for row in measure_gradients(os.path.join(d, f))]
        os.makedirs('results', exist_ok=True)
        with open(path, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(row) + '\n' for row in rows)
    rows = read_rows(path, 'Measure them first with --runs=out/a,out/b.')
    names = list(dict.fromkeys(row['run'] for row in rows))
    last = {name: max(row['iter'] for row in rows if row['run'] == name) for name in names}
    fig, axes = plt.subplots(1, 2, figsize=(15, 7), sharey=True, layout='constrained')
    for weight, ax in zip(('W_q', 'W_2'), axes):
        ax.plot(LEVELS, [math.erfc(x / math.sqrt(2)) for x in LEVELS], color='0.8', linewidth=9,
                label='normal distribution')
        for name, style in zip(names, styles(names)):
            above, = (row['above'] for row in rows
                      if (row['run'], row['weight'], row['iter']) == (name, weight, last[name]))
            above = [share or math.nan for share in above]  # beyond the largest entry there is no line
            ax.plot(LEVELS, above, **{**style, 'marker': ''}, label=name)
        ax.set(title=f'gradient of ${weight}$, late in training', xscale='log', yscale='log', xlim=(0.5, 60),
               ylim=(1e-6, 1.2), xlabel='x', xticks=(1, 3, 10, 30), xticklabels=(1, 3, 10, 30))
        ax.minorticks_off()
    axes[0].set_ylabel('share of entries with |g| > x RMS(g)')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=5)
    table = []
    for run, at in dict.fromkeys((row['run'], row['iter']) for row in rows):
        here = [row for row in rows if (row['run'], row['iter']) == (run, at)]
        ends = ([f(row[number] for row in here) for f in (min, max)]
                for number in ('kurtosis', 'ratio', 'hill'))
        table.append([run, at, *(f'{low:.1f} to {high:.1f}' for low, high in ends)])
    print_table(['run', 'update', 'excess kurtosis', '99.9 % quantile / median', 'Hill index'], table)
    return fig

# -----------------------------------------------------------------------------

COMMANDS = {f.__name__: f for f in (curves, seeds, frequency, grid, settings, gradients)}
plt.rcParams.update({'font.size': 16, 'axes.labelsize': 18, 'axes.titlesize': 18, 'legend.frameon': False,
                     'axes.spines.top': False, 'axes.spines.right': False, 'lines.linewidth': 3,
                     'lines.markersize': 10, 'svg.hashsalt': 'dnt'})

if __name__ == '__main__':
    if {'-h', '--help'} & set(sys.argv):
        configure(globals(), ['--help'])
    command = COMMANDS.get((sys.argv + [''])[1])
    if not command:
        fail(f'No picture is named. Use python -m experiments.figures [{"|".join(COMMANDS)}].')
    for name, value in configure(globals(), sys.argv[2:]).items():
        low, high = 0 if name in ('seed', 'batch_size') else 1e-9, 0.5 if name == 'tail' else 2 ** 40
        if not isinstance(value, str) and not low <= value <= high:
            fail(f'{name}={value} is out of range. Use a {"smaller" if value > high else "larger"} value.')
    save(command(), study if study and command in (seeds, grid) else command.__name__)
