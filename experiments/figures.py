"""
From checkpoints and logs to pictures: each command writes figures/NAME.png and .svg and prints the table beside it.

    python -m experiments.figures gradients --runs=out/gpt2_tiny,out/dnt_tiny   figure 1: |gradient| of each weight
    python -m experiments.figures curves --runs=out/a_1,out/a_2,out/b_1         figures 5, 8 to 10: bands over seeds
    python -m experiments.figures ablation --study=NAME                         figure 6: S1 to S5
    python -m experiments.figures grid --study=tiny_grid                        the last loss against learning rate
    python -m experiments.figures grid --study=stability --metric=top1 --out=stability    the same for each variant
    python -m experiments.figures settings                                      figures 2, 3 and 7, from SETTINGS
    python -m experiments.figures norms --weight_scale=4                        figure 4, measured

gradients reads the checkpoints that stay: train with --keep_interval=N. A study is results/NAME.jsonl, which
experiments.reproduce writes. Pictures are for a projector; the same input gives the same bytes.
"""

import io
import json
import math
import os
import re
import statistics
import sys

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import augment
from configurator import configure, fail, read_file
from experiments.reproduce import mean_spread
from model import GPT, NORMS, SETTINGS, GPTConfig, ViT, ViTConfig
from training import data_folder

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

runs = ''  # gradients, curves: out_dirs, separated by commas
study = ''  # grid, ablation: NAME of results/NAME.jsonl
out = ''  # name of the picture in figures/, or a path; empty: the command's
key = 'loss'  # curves: what of log.jsonl: loss, top1, top5, grad_norm, ...
split = 'val'  # curves: val or train
smooth = 1  # curves: rows of the log whose mean a point is
metric = 'val_loss'  # grid, ablation: what of a study's rows: val_loss, top1, test_top1, ...
batches = 8  # gradients: how many, each with its own gradient
batch_size = 0  # gradients: sequences or images in each; 0: as the run was trained
tail = 0.001  # gradients: share of the largest |g| that the Hill index is of
n_layer = 8  # norms: depth
n_embd = 64  # norms: width
n_head = 4  # norms: attention heads
block_size = 64  # norms: tokens
networks = 3  # norms: fresh ones, whose median is shown
weight_scale = 1.0  # norms: factor on the matrices of the blocks: training makes them grow
seed = 1337  # gradients, norms: batches and fresh weights
device = 'cpu'  # gradients: cpu or cuda

# Okabe and Ito's colours, which the colour-blind tell apart, without their yellow
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
STROKES, MARKERS = ('-', '--', ':', '-.'), ('o', 's', '^', 'D')  # the next ones when all colours were used
NETWORKS = {('S1', 'layer', False): 'GPT-2', ('S1', 'layer', True): 'ViT',
            ('S5', 'rms', False): 'L-DNT', ('S5', 'rms', True): 'V-DNT'}  # by setting, norm, images or not
OPTIMIZERS = {'sgdw': 'mSGDW', 'adamw': 'AdamW', 'sgd': 'SGD'}
WEIGHTS = ('W_q', 'W_k', 'W_v', 'W_o', 'W_1', 'W_2')
# what seeds of one experiment may differ in
BOOKKEEPING = ('seed', 'out_dir', 'init_from', 'overwrite', 'eval_only', 'ckpt_interval', 'keep_interval',
               'micro_batch_size', 'num_workers', 'device', 'compile', 'torch', 'git', 'gpu', 'world_size')
CROSS = dict(marker='X', markersize=16, markeredgecolor='white', linestyle='')

# -----------------------------------------------------------------------------
# files, names, tables

def read_rows(path, how):
    """The objects of a .jsonl file."""
    rows = []
    try:
        with open(path, encoding='utf-8') as f:
            for line in f:
                try:
                    rows.append(json.loads(line))
                except ValueError:  # a line that a kill cut short
                    continue
    except OSError as e:
        fail(f'cannot read {path} ({e.strerror}): {how}')
    return rows or fail(f'{path} is empty: {how}')


def run_dirs():
    dirs = [d for d in runs.split(',') if d] or fail('which runs? write --runs=out/a,out/b')
    for d in dirs:
        if not os.path.isdir(d):
            fail(f'there is no run in {d}: give the out_dir of a run, or of several with commas between them')
    return dirs


def name_runs(configs):
    """For each config its network and optimizer, and where those are equal what else tells it apart."""
    names = []
    for c in configs:
        network = 'NFNet' if c.get('arch') == 'nfnet' else \
            NETWORKS.get((c['setting'], c['norm'], 'image_size' in c), c['setting'])
        names.append(' '.join([network, *(f'{k}={c[k]}' for k in NORMS if c[k] != 'auto'), OPTIMIZERS[c['optimizer']]]))
    for name in {n for n in names if names.count(n) > 1}:
        same = [i for i, n in enumerate(names) if n == name]
        differ = [k for k in configs[same[0]] if k not in BOOKKEEPING
                  and len({configs[i].get(k) for i in same}) > 1] or ['out_dir']
        for i in same:
            names[i] += ''.join(f', {k}={configs[i].get(k)}' for k in differ)
    return names


def quantity(name, images):
    """(factor, words with the unit) of a number that runs log or end with; shares become percents."""
    where = 'test ' if name.startswith('test') else 'training ' if (name, split) == ('loss', 'train') else 'validation '
    if 'top' in name:
        return 100, f'{where}top-{name[-1]} accuracy (%)'
    return 1, f'{where}loss (nats per {"image" if images else "token"})' if 'loss' in name else name


def print_table(head, rows):
    for row in (head, ['---'] * len(head), *rows):
        print('| ' + ' | '.join(map(str, row)) + ' |')


def band(ax, x, seeds, i, **style):
    """Line i of a picture: for each x the mean over the seeds, between the lowest and the highest."""
    color = COLORS[i % len(COLORS)]
    ax.plot(x, [statistics.fmean(v) for v in seeds], STROKES[i // len(COLORS) % 4], color=color, **style)
    ax.fill_between(x, [min(v) for v in seeds], [max(v) for v in seeds], color=color, alpha=0.25, linewidth=0)


def save(fig, name):
    """The picture as .png and .svg, without date and version, so that the same input gives the same bytes."""
    path = re.sub(r'\.(png|svg)$', '', out or name)
    path = path if os.path.dirname(path) else os.path.join('figures', path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fig.savefig(f'{path}.png', dpi=120, metadata={'Software': None})
        fig.set_layout_engine('none')  # it is laid out
        fig.savefig(f'{path}.svg', metadata={'Date': None, 'Creator': None})
    except OSError as e:
        fail(f'cannot write {path}.png and .svg ({e.strerror}): choose another --out')
    print(f'\n{path}.png {path}.svg')

# -----------------------------------------------------------------------------
# figure 1: gradients

def load_model(path):
    """(checkpoint, network) of a file."""
    try:
        saved = torch.load(path, map_location='cpu', weights_only=True)
        if saved['config'].get('arch') == 'nfnet':
            fail(f'{path} is an NFNet: gradients are drawn for the weights of a Transformer')
        Network, Config = (GPT, GPTConfig) if 'vocab_size' in saved['model_args'] else (ViT, ViTConfig)
        model = Network(Config(**saved['model_args']))
        model.load_state_dict(saved['model'])
    except Exception as e:  # a zip that is cut short, a pickle of classes, a file of something else
        fail(f'{path} is not a whole checkpoint of this project ({type(e).__name__}): give another run')
    return saved, model.eval().to(device)  # no dropout, no drop path


def read_batch(saved, i):
    """(inputs, targets): batch i of the run's training data, the same for all runs on it; images as they are."""
    config, meta = saved['config'], saved['data']
    folder = data_folder(config['dataset'])
    rng, n = np.random.default_rng((seed, i)), batch_size or config['global_batch_size']
    try:
        if 'block_size' in config:
            T, dtype = config['block_size'], np.dtype(meta['dtype']).newbyteorder('<')
            tokens = np.memmap(f'{folder}/train.bin', dtype, 'r')
            rows = np.stack([tokens[j:j + T + 1] for j in rng.integers(0, len(tokens) - T, n)]).astype(np.int64)
            return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])
        targets = np.load(f'{folder}/train_labels.npy')
        index = np.sort(rng.integers(0, len(targets), n))
        if meta['layout'] == 'arrays':
            images = torch.from_numpy(np.load(f'{folder}/train_images.npy', mmap_mode='r')[index]).permute(0, 3, 1, 2)
        else:
            offsets, images = np.load(f'{folder}/train_offsets.npy'), []
            with open(f'{folder}/train_jpeg.bin', 'rb') as f:
                for start, end in zip(offsets[index], offsets[index + 1]):
                    f.seek(start)
                    image = Image.open(io.BytesIO(f.read(end - start)))  # Image.open(f) would rewind the file
                    images.append(augment.eval_crop(image.convert('RGB'), config['image_size']))
            images = torch.stack([augment.to_tensor(image) for image in images])
    except (OSError, ValueError) as e:
        fail(f'cannot read the training data of {config["out_dir"]} in {folder} ({e}): put it where it was')
    return augment.normalize(images, meta['mean'], meta['std']), torch.from_numpy(targets[index])


def backward(saved, model, X, Y):
    """The gradient of the run's loss on a batch, in micro batches no larger than the run's."""
    model.zero_grad()
    for x, y in zip(*(t.to(device).split(saved['config']['micro_batch_size']) for t in (X, Y))):
        loss = model(x, y)[1] if isinstance(model, GPT) else \
            F.cross_entropy(model(x), y, label_smoothing=saved['config']['label_smoothing'])
        (loss * len(x) / len(X)).backward()


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
    Three numbers that no factor on g changes: the kurtosis of g; the 99.9 % quantile of |g| over its median; the Hill
    index of |g|, 1 / mean(log(|g| / u)) over its k largest entries, a share `tail` of all, u being the largest one
    below. For a power law, P(|g| > x) ~ x^-a, the last is a, with standard error a / sqrt(k). Normal: 0, 4.9, 13.
    """
    size = g.abs().flatten().double().sort().values
    k, n = max(1, int(tail * len(size))), len(size)
    hill = 1 / (size[-k:] / size[-k - 1]).log().mean()
    return kurtosis(g), (size[int(0.999 * n)] / size[n // 2]).item(), hill.item()


def measure_gradients(path, bins):
    """(iter and config, for each weight: histograms of |g| and |g| / RMS(g), the numbers of each batch)."""
    saved, model = load_model(path)
    found = [(np.zeros(len(bins) - 1), np.zeros(len(bins) - 1), []) for _ in WEIGHTS]
    for i in range(batches):
        backward(saved, model, *read_batch(saved, i))
        for (absolute, free, numbers), layers in zip(found, zip(*map(gradients_of, model.blocks))):
            g = torch.cat([w.flatten() for w in layers])
            own = torch.cat([(w / w.square().mean().sqrt()).flatten() for w in layers])  # each matrix by its own RMS
            for histogram, values in ((absolute, g), (free, own)):
                histogram += np.histogram(values.abs().clamp(min=10 ** bins[0]).log10().cpu().numpy(), bins)[0]
            numbers.append((g.abs().median().item(), g.square().mean().sqrt().item(), *heaviness(own), kurtosis(g)))
    return {'iter': saved['iter'], 'config': saved['config']}, found


def gradients():
    """
    |gradient| of each weight over all layers, at the first, the middle and the last checkpoint that was kept.

    With a norm behind it the scale of a weight does not change the loss, L(c w) = L(w), so its gradient at c w is 1/c
    of that at w. MidNorm (for W_v, W_o, W_2) and QKNorm (for W_q, W_k) hence change the size of each matrix's gradient
    by themselves, whatever the shape of the distribution: smaller gradients are not lighter tails. So the upper row and
    two columns of the table show the absolute scale; all else is of g / RMS(g), each matrix by its own RMS, from which
    such factors are gone. The last column leaves them in: matrices of different scale, put together, have a tail that
    none of them has alone. The quantile over the median also rises where most entries are nearly 0.
    """
    bins, dirs, table, found = np.arange(-20, 4.05, 0.1), run_dirs(), [], []
    if len(dirs) > len(COLORS):
        fail(f'{len(dirs)} runs are too many for one picture: give up to {len(COLORS)}')
    for d in dirs:
        files = sorted(os.path.join(d, f) for f in os.listdir(d) if re.fullmatch(r'ckpt_\d+\.pt', f))
        if not files:
            fail(f'{d} has no checkpoints that were kept (like ckpt_000500.pt): train with --keep_interval=N')
        found.append([measure_gradients(f, bins) for f in dict.fromkeys((files[0], files[len(files) // 2], files[-1]))])
    names = name_runs([{**of_run[0][0]['config'], 'out_dir': d} for d, of_run in zip(dirs, found)])
    fig, axes = plt.subplots(2, 6, figsize=(16, 9), sharey='row', sharex='row', layout='constrained')
    shown = set()
    for i, (weight, (top, bottom)) in enumerate(zip(WEIGHTS, axes.T)):
        for color, name, of_run in zip(COLORS, names, found):
            for stroke, (saved, of_weight) in zip((':', '--', '-')[-len(of_run):], of_run):
                absolute, free, numbers = of_weight[i]
                percent, above = 100 * absolute / absolute.sum(), free[::-1].cumsum()[::-1] / free.sum()
                top.plot(10 ** (bins[:-1] + 0.05), percent, stroke, color=color, linewidth=2)
                bottom.plot(10 ** bins[:-1][above > 0], above[above > 0], stroke, color=color, linewidth=2)
                shown.update(bins[1:-1][percent[1:] > 0.2])  # bin 0 holds what is 0
                cells = [mean_spread(v, digits) for v, digits in zip(zip(*numbers), ('.1e', '.1e', *4 * ['.1f']))]
                table.append([f'${weight}$', name, saved['iter'], *cells])
        x = np.linspace(0.1, 5, 100)
        bottom.plot(x, [math.erfc(v / math.sqrt(2)) for v in x], color='0.75', linewidth=8, zorder=0)
        top.set(title=f'${weight}$', xscale='log', xlabel='|g| (nats)', xlim=(10 ** min(shown), 10 ** max(shown)))
        bottom.set(xscale='log', yscale='log', xlabel='x', xlim=(0.3, 100), ylim=(1e-6, 1.5), xticks=(1, 10, 100))
        top.minorticks_off()
        bottom.minorticks_off()
    axes[0, 0].set(ylabel='entries (% per 0.1 decade)', ylim=(0, None))
    axes[1, 0].set_ylabel('share with |g| > x RMS(g)')
    lines = [plt.Line2D([], [], color=color, linewidth=6, label=name) for color, name in zip(COLORS, names)]
    lines += [plt.Line2D([], [], color='black', linestyle=stroke, linewidth=2, label=when)
              for stroke, when in zip((':', '--', '-'), ('early', 'middle', 'late'))]
    lines += [plt.Line2D([], [], color='0.75', linewidth=8, label='normal distribution')]
    ncols = len(lines) if len(lines) < 7 else 4
    fig.legend(handles=lines, loc='outside upper center', ncols=ncols, columnspacing=1.2, handlelength=1.6)

    normal = torch.erfinv((2 * torch.arange(10 ** 6).double() + 1) / 10 ** 6 - 1)
    table.append(['', 'normal distribution', '', '', '', *(f'{v:z.1f}' for v in heaviness(normal)), ''])
    print_table(['weight', 'run', 'iteration', 'median of abs(g)', 'RMS(g)', 'kurtosis', '99.9 % / median',
                 'Hill index', 'kurtosis, scales left in'], table)
    k = max(1, int(tail * found[0][0][1][0][0].sum() / batches))
    print(f'\nMean ± standard deviation over {batches} batches. Excess kurtosis, 99.9 % quantile over median and Hill '
          f'index are of g / RMS(g),\neach matrix by its own. The Hill index is of the largest {tail:.2%} of |g|: k = '
          f'{k} entries of ${WEIGHTS[0]}$ in a batch, standard error {1 / math.sqrt(k):.0%}.')
    return fig

# -----------------------------------------------------------------------------
# figures 5, 8 to 10: curves

def read_run(out_dir):
    """(config, {iteration: value}) of a run."""
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            config = {**json.load(f), 'out_dir': out_dir}
    except (OSError, ValueError):
        fail(f'{out_dir} has no config.json that can be read: give the out_dir of a run')
    rows = [row for row in read_rows(os.path.join(out_dir, 'log.jsonl'), 'let the run begin')
            if row['split'] == split and isinstance(row.get(key), (int, float))]
    if not rows:
        fail(f'{out_dir}/log.jsonl has no {split} rows with {key}: use another --key or --split, or wait for the first')
    values = [quantity(key, False)[0] * row[key] for row in rows]
    return config, {row['iter']: statistics.fmean(values[max(0, i + 1 - smooth):i + 1]) for i, row in enumerate(rows)}


def curves():
    """A line for each set of runs that differ in nothing but the seed: their mean, in a band from lowest to highest."""
    groups = {}
    for config, log in map(read_run, run_dirs()):
        same = json.dumps({k: v for k, v in config.items() if k not in BOOKKEEPING}, sort_keys=True)
        groups.setdefault(same, []).append((config, log))
    names = name_runs([group[0][0] for group in groups.values()])
    label, table, later, early = quantity(key, 'image_size' in config)[1], [], [], False
    fig, ax = plt.subplots(figsize=(12, 7), layout='constrained')
    for i, (name, group) in enumerate(zip(names, groups.values())):
        logs = [log for _, log in group]
        at, last = sorted(set().union(*logs)), [log[max(log)] for log in logs]
        seeds = [[log[x] for log in logs if x in log] for x in at]
        band(ax, at, seeds, i, label=f'{name}: {statistics.fmean(last):#.4g}')
        for log in logs:
            if max(log) < at[-1]:
                ax.plot(max(log), log[max(log)], color=COLORS[i % len(COLORS)], **CROSS)
                early = True
        later += [v for x, values in zip(at, seeds) for v in values if x > at[-1] / 10] or last
        table.append([name, len(logs), ', '.join(map(str, sorted({max(log) for log in logs}))), mean_spread(last)])
    if early:
        ax.plot([], [], color='0.3', label='a seed ended early', **CROSS)
    margin = 0.05 * (max(later) - min(later)) or 0.1  # what lies before the first tenth may leave the picture
    ax.set(xlabel='iteration', ylabel=label, ylim=(min(later) - margin, max(later) + margin))
    ax.legend(title='last value, mean of the seeds' if len(groups) < len(run_dirs()) else 'last value')
    print_table(['run', 'seeds', 'last iteration', label], table)
    return fig

# -----------------------------------------------------------------------------
# studies: the learning rate, and figure 6

def read_study(*needed):
    """(rows, factor, words) of a study; every run in it has those keys."""
    path = f'results/{study}.jsonl' if study else fail('which study? write --study=NAME for results/NAME.jsonl')
    rows = read_rows(path, 'run the study first, python -m experiments.reproduce')
    for name in needed:
        if any(name not in row['run'] for row in rows):
            fail(f'{path} has runs without {name}: this picture needs it')
    if not any(metric in row for row in rows if row['ended'] != 'diverged'):
        fail(f'{path} has no finished run with {metric}: use another --metric')
    return rows, *quantity(metric, any('top1' in row for row in rows))


def best_seeds(rows, factor):
    """What the seeds ended with at the best of all else that was varied and never diverged; [] where all of it did."""
    groups = {}
    for row in rows:
        groups.setdefault(json.dumps({k: v for k, v in row['run'].items() if k != 'seed'}), []).append(row)
    good = [[factor * row[metric] for row in group] for group in groups.values()
            if all(row['ended'] != 'diverged' and metric in row for row in group)]
    return min(good, key=lambda values: statistics.fmean(values) * (-1 if 'top' in metric else 1), default=[])


def grid():
    """
    The last value against the learning rate, a line for each config, or for each variant of a study that has them, at
    the best of what else was varied. What diverged has no value: it is marked below, in a row for each line.
    """
    rows, factor, label = read_study('config', 'learning_rate')
    for row in rows:
        row['line'] = row['run'].get('variant', row['run']['config'])
    names = list(dict.fromkeys(row['line'] for row in rows))
    lost = [name for name in names if any((row['line'], row['ended']) == (name, 'diverged') for row in rows)]
    rates, cells = sorted({row['run']['learning_rate'] for row in rows}), {}
    fig, axes = plt.subplots(1 + bool(lost), figsize=(16, 9) if len(names) > 4 else (12, 7), sharex=True, squeeze=False,
                             layout='constrained', height_ratios=[20, len(lost)][:1 + bool(lost)])
    ax, below = axes[0, 0], axes[-1, 0]
    for i, name in enumerate(names):
        points = {}
        for lr in rates:
            here = [row for row in rows if (row['line'], row['run']['learning_rate']) == (name, lr)]
            values, diverged = best_seeds(here, factor), sum(row['ended'] == 'diverged' for row in here)
            if values:
                points[lr] = values
            cells[name, lr] = mean_spread(values) if values else ''
            if diverged:
                below.plot(lr, lost.index(name), color=COLORS[i % len(COLORS)], **CROSS)
                cells[name, lr] = f'{cells[name, lr]} ({diverged} of {len(here)} diverged)'.strip()
        band(ax, list(points), points.values(), i, marker=MARKERS[i // len(COLORS) % 4], label=name)
    if lost:
        below.set(yticks=range(len(lost)), ylim=(len(lost) - 0.5, -0.5), ylabel='diverged')
        below.set_yticklabels(lost, fontsize=13)
        below.yaxis.tick_right()
        below.tick_params(axis='y', length=0)
    ax.set(xscale='log', ylabel=label)
    below.set_xlabel('learning rate')
    ax.legend(**(dict(loc='upper left', bbox_to_anchor=(1, 1)) if len(names) > 4 else {}))
    print_table(['learning rate', *names], [[f'{lr:g}', *(cells[name, lr] for name in names)] for lr in rates])
    return fig


def ablation():
    """What each setting ends with: a bar from the lowest seed to the highest and a line at their mean."""
    rows, factor, label = read_study('config')
    arms = {}  # by setting and optimizer, which the run states or its config
    for row in rows:
        stated = {**read_file(f'config/{row["run"]["config"]}.py'), **row['run']}
        arms.setdefault((stated['setting'], OPTIMIZERS[stated['optimizer']]), []).append(row)
    names, optimizers = ([x for x in all_of if any(x in arm for arm in arms)]
                         for all_of in (SETTINGS, OPTIMIZERS.values()))
    fig, ax = plt.subplots(figsize=(12, 7), layout='constrained')
    table, width = [], 0.75 / len(optimizers)
    for (name, optimizer), here in sorted(arms.items()):
        i, values = optimizers.index(optimizer), best_seeds(here, factor)
        x = names.index(name) + (i - (len(optimizers) - 1) / 2) * width
        table.append([name, optimizer, len(values), mean_spread(values) if values else 'diverged'])
        if not values:
            y = 0.03 if 'top' in metric else 0.97  # at the edge of the picture where the bad values are
            ax.plot(x, y, transform=ax.get_xaxis_transform(), color=COLORS[i], **CROSS)
            continue
        ax.bar(x, max(values) - min(values), 0.9 * width, min(values), color=COLORS[i], alpha=0.4)
        mean, high = statistics.fmean(values), max(values)
        ax.hlines(mean, x - 0.45 * width, x + 0.45 * width, color=COLORS[i], linewidth=5)
        ax.annotate(f'{mean:#.4g}', (x, high), (0, 9), textcoords='offset points', ha='center')
    for color, optimizer in zip(COLORS, optimizers):
        ax.plot([], [], color=color, linewidth=5, label=optimizer)
    if any(row[3] == 'diverged' for row in table):
        ax.plot([], [], color='0.3', label='diverged', **CROSS)
    ax.use_sticky_edges = False  # room below the lowest bar
    ax.margins(y=0.12)
    ax.set(xticks=range(len(names)), xticklabels=names, ylabel=label)
    ax.legend(title='mean, lowest to highest seed')
    print_table(['setting', 'optimizer', 'seeds', label], table)
    return fig

# -----------------------------------------------------------------------------
# figures 2, 3 and 7: which norm sits where

NORM_COLORS = {'InputNorm': '#D55E00', 'PreNorm': '#009E73', 'QKNorm': '#E69F00', 'MidNorm': '#0072B2',
               'PostNorm': '#CC79A7', 'FinalNorm': '#555555'}
# the way of x from below to above: (word, its flag in SETTINGS); None: always there
STACK = (('embedding', None), ('InputNorm', 'input_norm'),
         ('branch', None), ('PreNorm', 'pre_norm'), ('QKNorm', 'qk_norm'), ('attention', None), ('MidNorm', 'mid_norm'),
         ('+', None), ('PostNorm', 'post_norm'),
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
                        bbox=dict(boxstyle='circle,pad=0.1', facecolor='white', edgecolor='black', linewidth=1.5))
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
    print_table(['setting', *NORMS], [[name, *('x' * flags[n] for n in NORMS)] for name, flags in SETTINGS.items()])
    return fig

# -----------------------------------------------------------------------------
# figure 4: what each norm does

def measure_norms(flags, number):
    """For each layer of a fresh GPT: RMS of its input, norms of six gradients, two singular values of its Jacobian."""
    torch.manual_seed(seed + number)
    model = GPT(GPTConfig(**flags, norm='rms', flash=False, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                          block_size=block_size, vocab_size=256))
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.mul_(weight_scale if p.dim() == 2 else 1)
    idx = torch.randint(256, (8, block_size + 1))
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    x, rows = model.input_norm(model.wte(idx[0, :-1]) + model.wpe.weight).detach(), []  # (T, C)
    for block in model.blocks:
        # of the last token's output with respect to its own input
        jacobian = torch.func.jacrev(lambda last: block(torch.cat((x[:-1], last[None]))[None])[0, -1])(x[-1])
        values = torch.linalg.svdvals(jacobian.detach())
        rows.append([x.square().mean().sqrt().item(), *(g.norm().item() for g in gradients_of(block)),
                     values[0].item(), values.median().item()])
        x = block(x[None])[0].detach()
    return np.array(rows)


def norms():
    """
    S5 with one norm off at a time, S1 with one on (PreNorm: off), all with RMSNorm, on random bytes: in each layer the
    RMS of the residual stream, the norm of each weight's gradient, and the singular values of the Jacobian of the
    block, largest over median. Fresh weights are small and most norms have little to do: --weight_scale=4 shows more.
    """
    fig, axes = plt.subplots(2, 5, figsize=(16, 9), sharex=True, sharey='col', layout='constrained')
    flips = {None: None, 'InputNorm': 'input_norm', 'PreNorm': 'pre_norm', 'MidNorm': 'mid_norm', 'QKNorm': 'qk_norm'}
    table, layers, plain = [], np.arange(1, n_layer + 1), []
    for row, base in zip(axes, ('S5', 'S1')):
        for word, flag in flips.items():
            flags = {k: v != (k == flag) for k, v in SETTINGS[base].items()}
            name = f'{base} {"+" if flags[flag] else "−"} {word}' if word else base
            found = np.median([measure_norms(flags, n) for n in range(networks)], axis=0)
            table += [[name, i, *(f'{v:.2g}' for v in values)] for i, values in zip(layers, found)]
            shown = found[:, 0], *(np.hypot(found[:, i], found[:, i + 1]) for i in (1, 3, 5)), found[:, 7] / found[:, 8]
            plain += [] if word else [shown]
            for ax, y in zip(row, shown):
                ax.plot(layers, y, color=NORM_COLORS.get(word, 'black'), linewidth=2.5 if word else 7,
                        zorder=3 if word else 2, alpha=1 if word else 0.35)
    titles = ('RMS of the\nresidual stream',
              *(f'gradient norm of\n${pair}$ (nats)' for pair in ('W_q, W_k', 'W_v, W_o', 'W_1, W_2')),
              'Jacobian of block\n' r'$\sigma_{max}\ /\ \sigma_{median}$')
    for i, title in enumerate(titles):
        usual = np.concatenate([y[i] for y in plain])  # S5 and S1 as they are: what is far off leaves the picture
        axes[0, i].set(title=title, yscale='log', ylim=(usual.min() / 8, usual.max() * 8))
        axes[1, i].set(xlabel='layer', yscale='log', xticks=sorted({1, (n_layer + 1) // 2, n_layer}))
        axes[0, i].minorticks_off()
        axes[1, i].minorticks_off()
    axes[0, 4].set_ylim(0.8, None)
    axes[0, 0].set_ylabel('S5, one norm off')
    axes[1, 0].set_ylabel('S1, one norm on\n(PreNorm: off)')
    lines = [plt.Line2D([], [], color=NORM_COLORS.get(word, 'black'), linewidth=4 if word else 7,
                        alpha=1 if word else 0.35, label=word or 'none switched') for word in flips]
    fig.legend(handles=lines, loc='outside upper center', ncols=5)
    print_table(['network', 'layer', 'RMS of x', *(f'gradient of ${w}$' for w in WEIGHTS), 'largest singular value',
                 'median'], table)
    print(f'\nDepth {n_layer}, width {n_embd}, {n_head} heads, {block_size} tokens; fresh matrices times '
          f'{weight_scale:g}; median of {networks} networks.')
    return fig

# -----------------------------------------------------------------------------

COMMANDS = {f.__name__: f for f in (gradients, curves, ablation, grid, settings, norms)}
plt.rcParams.update({'font.size': 16, 'axes.labelsize': 18, 'axes.titlesize': 18, 'legend.frameon': False,
                     'axes.spines.top': False, 'axes.spines.right': False, 'lines.linewidth': 3, 'lines.markersize': 10,
                     'svg.hashsalt': 'dnt'})

if __name__ == '__main__':
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        fail(f'which picture? python -m experiments.figures [{"|".join(COMMANDS)}]')
    for name, value in configure(globals(), sys.argv[2:]).items():
        low, high = 0 if name in ('seed', 'batch_size') else 1e-9, 0.5 if name == 'tail' else 2 ** 40
        if not isinstance(value, str) and not low <= value <= high:
            fail(f'{name}={value} is out of range: use {"a smaller" if value > high else "a larger"} one')
    if n_embd % n_head:
        fail(f'n_embd={n_embd} does not divide into n_head={n_head} heads')
    if device != 'cpu' and not torch.cuda.is_available():
        fail(f'device={device}, but torch finds no CUDA GPU here: use --device=cpu')
    save(COMMANDS[sys.argv[1]](), sys.argv[1])
