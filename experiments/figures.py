"""
From logs to pictures: each command draws figures/NAME.png, and most print the numbers.

    python -m experiments.figures curves --runs=out/a,out/b   losses of any runs, also unfinished ones
    python -m experiments.figures arms --question=headline    each seed of each arm, and the gaps of mSGDW
    python -m experiments.figures forest                      all claims with their intervals and the margin
    python -m experiments.figures gap                         the gap against size and tokens, the paper's too
    python -m experiments.figures frequency                   frequent and rare tokens (question why)
    python -m experiments.figures sweep --study=stability     accuracy against the learning rate; or weights
    python -m experiments.figures settings                    figures 2, 3 and 7, from SETTINGS

The gap is the loss of mSGDW minus that of AdamW, seed by seed. Bars are 95 % intervals, a grey band is the
margin within which two arms match. The same input gives the same bytes.
"""

import itertools
import json
import math
import os
import statistics
import sys

import matplotlib
import numpy as np

from configurator import configure
from experiments import evidence
from experiments.evidence import LEVEL, interval, print_table, read, read_rows
from model import NORMS, SETTINGS
from support.console import check_choice, fail

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

runs = ''  # curves: out_dirs, separated by commas
key = 'loss'  # curves: what of log.jsonl: loss, top1, top5, grad_norm, ...
question = 'headline'  # arms: a question of experiments.evidence
study = ''  # sweep: NAME of results/NAME.jsonl
out = ''  # path of the picture, .png or .svg; empty: figures/NAME.png

NETWORKS = {('S1', 'layer', False): 'GPT-2', ('S1', 'layer', True): 'ViT',
            ('S5', 'rms', False): 'L-DNT', ('S5', 'rms', True): 'V-DNT'}  # by setting, norm, images or not
OPTIMIZERS = {'sgdw': 'mSGDW', 'adamw': 'AdamW', 'sgd': 'SGD', 'muon': 'Muon'}
# Okabe and Ito's colours, which the colour-blind tell apart, but for their yellow, with two darker ones
ALIKE = {'#0072B2': ('GPT-2', 'ViT', 'S1', 'Pre-LN'), '#D55E00': ('L-DNT', 'V-DNT', 'S5'),
         '#56B4E9': ('S2', 'NoNorm + WS'), '#009E73': ('S3', 'NoNorm + WS + AGC'),
         '#E69F00': ('S4', 'NoNorm + init'), '#CC79A7': ('PostLN', 'Post-LN'), '#000000': ('NoNorm',),
         '#7F4F24': ('NFNet', 'NoNorm + WS on FFN'), '#5D3A9B': ('NoNorm + init + WS',), '#888888': ('DyT',)}
COLORS = {name: color for color, names in ALIKE.items() for name in names}
LINES = {'mSGDW': ('-', 'o'), 'mSGDW + row norm': ((0, (9, 1)), 'D'), 'AdamW': ((0, (4, 1.5)), 's'),
         'AdamW + row norm': ((0, (2, 1)), 'v'), 'SGD': ('-', 'o'), 'hybrid': ((0, (4, 1, 1, 1)), '^'),
         'Muon': ((0, (6, 1, 1, 1, 1, 1)), 'h'), 'Muon + row norm': ((0, (1, 2)), '*')}

# -----------------------------------------------------------------------------
# files, names, styles, tables

def read_config(out_dir):
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError):
        fail(f'There is no run in {out_dir or "--runs="}: config.json cannot be read. Use --runs=out/a,out/b '
             'with the out_dirs of runs.')

def name_run(config):
    """Network and optimizer, and the norms that differ from the setting."""
    network = NETWORKS.get((config['setting'], config['norm'], 'image_size' in config), config['setting'])
    if config.get('arch') == 'nfnet':
        network = 'NFNet'
    optimizer = OPTIMIZERS.get(config['optimizer'], config['optimizer'])  # a reader may have added one
    embeddings = config.get('embed_optimizer')
    if embeddings == 'rownorm':
        optimizer += ' + row norm'
    if embeddings == 'adamw' and optimizer == 'mSGDW':
        optimizer = 'hybrid'
    flags = [f'{norm} {config[norm]}' for norm in NORMS if config.get(norm, 'auto') != 'auto']
    return ' '.join([network, *flags, optimizer])

def styles(names):
    """Colour, line and marker for each name. Where two would look alike, the later gets another colour."""
    found, others = [], itertools.cycle(reversed(ALIKE))
    for name in names:
        network = max((n for n in COLORS if name.startswith(n)), key=len, default='NFNet')
        optimizer = max((o for o in LINES if o in name), key=len, default='mSGDW')
        style = {'color': COLORS[network], 'linestyle': LINES[optimizer][0], 'marker': LINES[optimizer][1]}
        for _ in ALIKE:  # with more lines than that some look the same
            if style in found:
                style = {**style, 'color': next(others)}
        found.append(style)
    return found

def save(fig, name):
    """The picture without date and version, so that the same input gives the same bytes."""
    path = out or f'figures/{name}.png'
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        fig.savefig(path, dpi=120, metadata={'Date' if path.endswith('.svg') else 'Software': None})
    except (OSError, ValueError) as e:
        fail(f'Cannot write {path} ({e}). Choose another --out, a .png or .svg.')
    print(f'\n{path}')

# -----------------------------------------------------------------------------
# figures 5, 8 to 10: curves

def smooth(values):
    """Means over a twenty-fifth of the values around each: a training loss is that of a single batch."""
    half = max(2, len(values) // 50)
    return [statistics.fmean(values[max(0, i - half):i + half + 1]) for i in range(len(values))]

def curves():
    """For each run a thin line, the training loss, and a thick one, the validation loss."""
    names = [name_run(read_config(out_dir)) for out_dir in runs.split(',')]
    fig, ax = plt.subplots(figsize=(13, 7), layout='constrained')
    table, shown = [], []
    for name, out_dir, style in zip(names, runs.split(','), styles(names)):
        log = {'train': {}, 'val': {}}
        for row in read_rows(f'{out_dir}/log.jsonl'):
            if isinstance(row.get(key), (int, float)):
                log[row['split']][row['iter']] = row[key]
        if not any(log.values()):
            fail(f'{out_dir}/log.jsonl has no rows with {key}. Use another --key, or wait for the first row.')
        del style['marker']
        train, val = smooth([*log['train'].values()]), [*log['val'].values()]
        last = f'{val[-1]:.4f}' if val else ''
        ax.plot([*log['train']], train, linewidth=1.2, **style)
        ax.plot([*log['val']], val, label=f'{name}\n{out_dir}\n{last}', **style)
        shown += train[len(train) // 5:] + val[len(val) // 5:]  # the start may leave the picture
        table.append([name, out_dir, max(*log['train'], *log['val'], 0), last])
    space = 0.05 * (max(shown) - min(shown)) or 0.1
    ax.set(xlabel='update', ylabel=f'{key} (nats)' if key == 'loss' else key,
           ylim=(min(shown) - space, max(shown) + space))
    ax.locator_params(axis='x', nbins=6)  # 200000 is a wide label
    fig.legend(loc='outside right upper', title='thin: training\n(smoothed)\nthick: validation')
    print_table('curves', ['run', 'out_dir', 'last iteration', f'last validation {key}'], table)
    return fig

# -----------------------------------------------------------------------------
# arms of the protocol, and gaps between them

NOT_SCORED = 'No arms are scored yet. Run python -m experiments.evidence --question={}.'

def scored(name, metric='val_loss'):
    """[(arm, {seed: its metric})] of the arms of a question that were scored with all their seeds."""
    done, found = read(evidence.RESULTS), []
    for arm in evidence.QUESTIONS[name]():
        losses = {seed: row[metric] for seed, row in evidence.scored(arm, done).items()}
        if len(losses) == len(arm.seeds):
            found.append((arm, losses))
    return found

def gaps(found):
    """[(arm, differences by seed, mean loss of AdamW)] of each mSGDW with its AdamW."""
    rows = []
    for arm, losses in found:
        adamw = arm.name.replace('mSGDW', 'AdamW')
        others = next((of for other, of in found if (other.name, other.point) == (adamw, arm.point)), {})
        both = losses.keys() & others.keys()
        if 'mSGDW' in arm.name and len(both) > 1:
            rows.append((arm, [losses[seed] - others[seed] for seed in both],
                         statistics.fmean(others[seed] for seed in both)))
    return rows

def draw_margin(ax):
    ax.axvspan(-LEVEL, LEVEL, color='0.88', zorder=0)
    ax.axvline(0, color='0.5', linewidth=1.5, zorder=0)

def draw_rows(ax, rows, form, words):
    """rows: (name, values). A dot for each value, and below them mean and 95 % interval; returns a table."""
    table, rows = [], sorted(rows)
    names = [name for name, _ in rows]
    for y, ((name, values), style) in enumerate(zip(rows, styles(names))):
        mean, half = interval(values)
        known = half < math.inf
        said = f'{mean:{form}} ± {half:.3f}' if known else f'{mean:{form}}'
        style['linestyle'] = ''
        ax.plot(values, [y] * len(values), **style, markeredgecolor='white', alpha=0.6)
        ax.errorbar(mean, y + 0.35, xerr=half if known else None, fmt='|', color=style['color'],
                    markersize=16, capsize=7)
        ax.annotate(said, (1.02, y + 0.15), xycoords=ax.get_yaxis_transform(), va='center')
        table.append([name, len(values), said])
    ax.set(yticks=range(len(names)), yticklabels=[name.replace(' + ', '\n+ ') for name in names],
           ylim=(len(names) - 0.2, -0.5), xlabel=words)
    return table

def arms():
    """Left a row for each arm, right the gaps of mSGDW, seed by seed, and the margin."""
    check_choice(globals(), evidence.QUESTIONS, 'question')
    found = scored(question) or fail(NOT_SCORED.format(question))
    ladder = 'S5' if question == 'parts' else 'L-DNT'  # the name of L-DNT in figure 7
    losses = [(arm.name.replace('L-DNT', ladder), list(of.values())) for arm, of in found]
    differences = [(arm.name.replace('L-DNT', ladder), values) for arm, values, _ in gaps(found)]
    fig, (left, right) = plt.subplots(1, 2, figsize=(20, 2.5 + 0.8 * len(found)), layout='constrained')
    table = draw_rows(left, losses, '.3f', 'validation loss (nats)\ndots: seeds; bars: mean, 95 % interval')
    draw_margin(right)
    table += draw_rows(right, differences, '+.3f', 'mSGDW minus AdamW (nats), seed by seed\n'
                       f'grey: ±{LEVEL}, the margin of a match')
    print_table(question, ['arm, and gap', 'seeds', 'mean, 95 % interval'], table)
    return fig

def forest():
    """Every claim of the pages: its difference, 95 % interval, and the margin within which two arms match."""
    claims = evidence.judged(evidence.read_logs())
    colors = {'holds': '#009E73', 'better': '#0072B2', 'matches': '#009E73', 'fails': '#D55E00'}
    fig, ax = plt.subplots(figsize=(19, 2 + 0.42 * len(claims)), layout='constrained')
    draw_margin(ax)
    for y, claim in enumerate(claims):
        verdict = claim['verdict']
        if 'mean' in claim:
            color = colors.get(verdict, '0.35')
            ax.errorbar(claim['mean'], y, xerr=claim['half'], fmt='o', color=color, capsize=5)
            verdict += f' ({claim["mean"]:+.3f} ± {claim["half"]:.3f}, n = {claim["seeds"]})'
        ax.annotate(verdict, (1.01, y), xycoords=ax.get_yaxis_transform(), va='center')
    ax.set(yticks=range(len(claims)), yticklabels=[claim['words'] for claim in claims],
           ylim=(len(claims) - 0.4, -0.6),
           xlabel=f'difference (nats), 95 % interval, seed by seed; grey: the margin of ±{LEVEL}')
    rows = [[claim['words'], claim['verdict'], claim['seeds']] for claim in claims]
    print_table('claims', ['claim', 'verdict', 'seeds'], rows)
    return fig

# table 1 on text: weights, tokens, AdamW's and mSGDW's loss; it states no seeds
PAPER = {'GPT-2': ((124e6, 98e9, 2.867, 2.906), (774e6, 105e9, 2.492, 2.544), (1436e6, 105e9, 2.435, 2.472)),
         'L-DNT': ((124e6, 98e9, 2.863, 2.849), (774e6, 105e9, 2.481, 2.503), (1436e6, 105e9, 2.396, 2.408))}

def gap():
    """The gap in percent of AdamW's loss, because tokens differ: bytes here, words and their parts there."""
    rows = []
    for network, sizes in PAPER.items():
        for weights, tokens, adamw, sgdw in sizes:
            percent = 100 * (sgdw - adamw) / adamw
            rows.append((f'{network} mSGDW, the paper', weights, tokens, percent, math.nan))
    for name in evidence.QUESTIONS:
        for arm, differences, base in gaps(scored(name)):
            if arm.network in PAPER:
                width, vocabulary = arm.point['n_embd'], int(arm.point['dataset'].partition('_')[2] or 320)
                weights = 12 * arm.point.get('n_layer', 4) * width ** 2 + (vocabulary + 128) * width
                percents = interval([100 * difference / base for difference in differences])
                rows.append((arm.name, weights, 1024 * arm.point['max_iters'], *percents))
    rows = list(dict.fromkeys(rows))  # two questions may share an arm
    fig, axes = plt.subplots(1, 2, figsize=(17, 7.5), sharey=True, layout='constrained')
    for name in dict.fromkeys(name for name, *_ in rows):
        style = {**styles([name])[0], 'linestyle': ''}
        if 'paper' in name:
            style |= {'marker': '*', 'markersize': 26}
        _, weights, tokens, means, halves = map(np.array, zip(*(row for row in rows if row[0] == name)))
        beside = 1.2 if 'row norm' in name else 1
        for ax, x, words in zip(axes, (weights, tokens), ('weights', 'training tokens')):
            ax.errorbar(beside * x, means, halves, label=name, capsize=6, **style)
            ax.set(xscale='log', xlabel=words)
    for ax in axes:
        ax.axhline(0, color='0.5', linewidth=1.5, zorder=0)
    axes[0].set_ylabel("mSGDW minus AdamW (% of AdamW's loss)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
    print_table('gap', ['arm', 'weights', 'tokens', 'gap (%)', '95 % interval, ±'],
                [[name, f'{n:,.0f}', f'{tokens:,.0f}', f'{mean:+.2f}', f'{half:.2f}']
                 for name, n, tokens, mean, half in rows])
    return fig

def frequency():
    """The loss of each arm minus that of AdamW on each tenth of the text; one token may fill several."""
    arms = {arm.optimizer: of_seed for arm, of_seed in scored('why', 'by_frequency')}
    base = arms.pop('AdamW', None) or fail(NOT_SCORED.format('why'))
    tenths = np.flatnonzero(np.mean(list(base.values()), 0))  # those in which a token begins
    labels = [f'{a + 1}' if b == a + 1 else f'{a + 1} to {b}' for a, b in zip(tenths, [*tenths[1:], 10])]
    fig, axes = plt.subplots(1, 2, figsize=(17, 7), layout='constrained')
    table = [['AdamW', *(f'{np.mean([losses[i] for losses in base.values()]):.4f}' for i in tenths)]]
    for name, losses in arms.items():
        both, ax = losses.keys() & base.keys(), axes[int('row norm' in name)]
        means, halves = zip(*(interval([losses[s][i] - base[s][i] for s in both]) for i in tenths))
        style, = styles([f'L-DNT {name}'])
        shift = 0.12 * (len(ax.containers) - 0.5)  # beside each other
        ax.errorbar(tenths + 1 + shift, means, halves, label=name, capsize=6, **style)
        cells = [f'{mean:+.4f} ± {half:.4f}' for mean, half in zip(means, halves)]
        table.append([f'{name} minus AdamW', *cells])
    for ax, title in zip(axes, ('without row norm', 'with row norm')):
        ax.axhline(0, color='0.5', linewidth=1.5, zorder=0)
        ax.set(title=title, xticks=tenths + 1, xticklabels=labels,
               xlabel='tenth of the text,\nfrom the most frequent tokens to the rarest')
        ax.legend()
    axes[0].set_ylabel('loss minus that of AdamW (nats per token)')
    print_table('frequency', ['L-DNT', *(f'tenth {label}' for label in labels)], table)
    return fig

def sweep():
    """Top-1 against the learning rate, a line for each variant. Below what diverged."""
    check_choice(globals(), ('stability', 'weights', 'decay'), 'study')
    found = {}
    for row in read_rows(f'results/{study}.jsonl'):
        found.setdefault(row['run']['variant'], {})[row['run']['learning_rate']] = row.get('top1')
    if not found:
        fail(f'results/{study}.jsonl has no runs. Use --study=stability or another log of results/.')
    fig, (ax, below) = plt.subplots(2, figsize=(14, 8), sharex=True, layout='constrained',
                                    height_ratios=[20, len(found)])
    for y, (name, style) in enumerate(zip(found, styles(found))):
        points = {lr: 100 * top1 for lr, top1 in sorted(found[name].items()) if top1 is not None}
        lost = [lr for lr, top1 in found[name].items() if top1 is None]
        ax.plot(list(points), list(points.values()), label=name, **style)
        below.plot(lost, [y] * len(lost), 'X', markersize=15, color=style['color'])
    below.set(yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5), ylabel='diverged',
              xlabel='learning rate')
    below.set_yticklabels(found, fontsize=13)
    below.yaxis.tick_right()
    ax.set(xscale='log', ylabel='validation top-1 accuracy (%)', title='one seed')
    ax.legend(loc='upper left', bbox_to_anchor=(1, 1), handlelength=3)
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

def box(ax, x, low, high, word, width):
    color = NORM_COLORS.get(word, 'white')
    ax.add_patch(plt.Rectangle((x - width / 2, low), width, high - low, fc=color, ec='black', zorder=2))
    ax.text(x, high - 0.4, word, ha='center', va='center_baseline', zorder=3, fontsize=15,
            color='black' if word in ('QKNorm', 'PostNorm') or color == 'white' else 'white')

def settings():
    """Each row of SETTINGS as a column, x going up through it; a norm that is off leaves its place empty."""
    fig, ax = plt.subplots(figsize=(2.3 * len(SETTINGS), 9.5), layout='constrained')
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
                ax.text(x, y + 0.4, '+', ha='center', va='center', bbox=dict(boxstyle='circle', fc='white'))
            elif word == 'attention' and flags['qk_norm']:  # it holds QKNorm
                box(ax, x, y - 1, y + 0.8, word, 0.9)
                box(ax, x, y - 0.9, y - 0.1, 'QKNorm', 0.8)
            elif word != 'QKNorm' and (flag is None or flags[flag]):
                box(ax, x, y, y + 0.8, word, 0.9)
        known = ', '.join(network for (setting, *_), network in NETWORKS.items() if setting == name)
        ax.text(x, len(STACK) + 1.3, name, ha='center', fontsize=24, weight='bold')
        ax.text(x, len(STACK) + 0.5, known, ha='center')
    ax.text(-0.7, 8.4, 'block, n_layer times', rotation=90, ha='right', va='center', fontsize=18)
    ax.set(xlim=(-0.95, x + 0.6), ylim=(-0.5, len(STACK) + 2))
    ax.axis('off')
    return fig

# -----------------------------------------------------------------------------

COMMANDS = {f.__name__: f for f in (curves, arms, forest, gap, frequency, sweep, settings)}
plt.rcParams.update({'font.size': 16, 'axes.labelsize': 18, 'axes.titlesize': 18, 'legend.frameon': False,
                     'axes.spines.top': False, 'axes.spines.right': False, 'lines.linewidth': 3,
                     'lines.markersize': 10, 'svg.hashsalt': 'dnt'})

if __name__ == '__main__':
    if {'-h', '--help'} & set(sys.argv):
        configure(globals(), ['--help'])
    command = COMMANDS.get((sys.argv + [''])[1])
    if not command:
        fail(f'No picture is named. Use python -m experiments.figures [{"|".join(COMMANDS)}].')
    configure(globals(), sys.argv[2:])
    save(command(), {arms: question, sweep: study}.get(command, command.__name__))
