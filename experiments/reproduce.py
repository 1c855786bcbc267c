"""
Grids, seeds and variants: starts the train scripts as processes and writes down how they end.

    python -m experiments.reproduce cifar10_grid         learning rates of the four CIFAR-10 configs, short
    python -m experiments.reproduce cifar10              the four at full length, at half the rates too
    python -m experiments.reproduce stability            learning rates from 1e-4 to 1, with and without norms
    python -m experiments.reproduce weights              the same from PyTorch's own initial weights
    python -m experiments.reproduce decay                S5 with coupled and with decoupled weight decay
    python -m experiments.reproduce language_grid        six arms, width 32: rate, warmup, decay, embed_lr
    python -m experiments.reproduce language             these at the best of that, three seeds
    python -m experiments.reproduce knobs_grid           from there: momentum, clip, batch, untied; best rates
    python -m experiments.reproduce knobs                these at the best of that, three seeds
    python -m experiments.reproduce law                  the gap of mSGDW: length, width, vocabulary (law.py)
    python -m experiments.reproduce law_fifth            the point that experiments.law has predicted
    python -m experiments.reproduce sizes                AdamW and the hybrid at three widths, after law
    python -m experiments.reproduce ablation_grid        S1 to S5 under both optimizers: learning rates
    python -m experiments.reproduce ablation             these at the best rate of each, three seeds
    python -m experiments.reproduce ablation_cifar10_grid and ablation_cifar10: the same for CIFAR-10
    python -m experiments.reproduce cifar10 --table=True    print the table of what has been run

Run it again after a kill: what is finished is not run again, the rest is resumed. One line for each finished
run goes to results/STUDY.jsonl. A run that another study has finished counts for all.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime
from itertools import combinations

from configurator import configure
from experiments import searches
from experiments.searches import key, read_config, walk
from support.console import fail

processes = 2  # runs at the same time
threads = 1  # of each run
compile = 'auto'  # of each run; True saves a sixth of a CIFAR-10 run on a CPU, with a C++ compiler
table = False  # True: only print the table of results/STUDY.jsonl

# the tiny config of L-DNT has a row norm. A run has it only where it says so
PLAIN = {'embed_optimizer': 'auto', 'embed_lr': 0.0, 'embed_weight_decay': -1.0}
CIFAR = ('vdnt_cifar10', 'vdnt_cifar10_adamw', 'vit_cifar10', 'vit_cifar10_sgdw')
CIFAR_LRS = {'sgdw': (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
             'adamw': (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3)}
VARIANTS = {
    'Pre-LN': {'setting': 'S1'},
    'Post-LN': {'setting': 'PostLN'},
    'NoNorm': {'setting': 'NoNorm'},
    'NoNorm + WS': {'setting': 'NoNorm', 'weight_standardization': 'all'},
    'NoNorm + WS + AGC': {'setting': 'NoNorm', 'weight_standardization': 'all', 'agc': 0.01},
    'NoNorm + init': {'setting': 'NoNorm', 'init': 'tfixup'},
    'NoNorm + init + WS': {'setting': 'NoNorm', 'init': 'tfixup', 'weight_standardization': 'all'},
    'NoNorm + WS on FFN': {'setting': 'NoNorm', 'weight_standardization': 'ffn'},
    'S5': {'setting': 'S5', 'norm': 'rms'},
}
SMALL = {'n_layer': 6, 'n_head': 2, 'n_embd': 48, 'patch_size': 8, 'epochs': 1, 'dtype': 'float32',
         'eval_interval': 0, 'ckpt_interval': 0}  # a ViT for two cores


def cifar10_grid(done):
    """
    Half an epoch each, from the middle of the grid outwards until the best rate has a worse one on both
    sides. Where the two best are closer than 0.01, both once more for an epoch.
    """
    for config in CIFAR:
        lrs = CIFAR_LRS[read_config(config)['optimizer']]
        runs = [{'config': config, 'learning_rate': lr, 'epochs': 0.5, 'warmup_epochs': 0.1} for lr in lrs]
        todo, best = walk(lambda lr: runs[lrs.index(lr)], (lrs,), [(lr,) for lr in lrs[2:5]], done)
        yield from todo
        if not todo:
            limit = done[key(best)]['val_loss'] + 0.01
            close = [run for run in runs if key(run) in done and done[key(run)]['val_loss'] < limit]
            yield from ({**run, 'epochs': 1.0, 'warmup_epochs': 0.2} for run in close if len(close) > 1)


def cifar10(done):
    """
    Full length: seed 1 at the rate of the config and at half of it, and on to the half while that is better
    (short runs may choose too high a rate); then the best with two more seeds. The test set is read once a
    run.
    """
    for config in CIFAR:
        lr = read_config(config)['learning_rate']
        todo, best = walk(lambda lr: {'config': config, 'seed': 1, 'learning_rate': lr},
                          [[lr / 2**i for i in range(5)]], [[lr], [lr / 2]], done)
        yield from todo or ({**best, 'seed': seed} for seed in (2, 3))


def sweep(variants, **more):
    for lr in (1e-2, 1e-1, 1e-3, 3e-2, 3e-1, 3e-3, 1.0, 3e-4, 1e-4):  # the middle of the range comes first
        for variant, flags in variants.items():
            yield {'config': 'nft_cifar10', 'variant': variant, **SMALL, **flags, **more, 'learning_rate': lr}


def stability(done):
    """
    The second report's question at a size for two cores: which variants of a small ViT train at which
    learning rates, with its optimizer (coupled decay 2e-5, batch 64, no warmup), one epoch.
    """
    return sweep(VARIANTS)


def weights(done):
    """The same with PyTorch's own initial weights in place of Xavier's, where that makes a difference."""
    return sweep({variant: flags for variant, flags in VARIANTS.items() if 'init' not in flags}, init='torch')


def decay(done):
    """Coupled decay, as in torch's SGD, against the decoupled one of mSGDW, where decay counts."""
    for lr in (1e-1, 3e-1):
        for weight_decay in (1e-3, 1e-2):
            for optimizer in ('sgd', 'sgdw'):
                variant = f'{"coupled" if optimizer == "sgd" else "decoupled"}, {weight_decay:g}'
                yield {'config': 'nft_cifar10', 'variant': variant, **SMALL, **VARIANTS['S5'],
                       'optimizer': optimizer, 'weight_decay': weight_decay, 'learning_rate': lr}


STUDIES = {**{f.__name__: f for f in (cifar10_grid, cifar10, stability, weights, decay)},
           **searches.STUDIES}

# -----------------------------------------------------------------------------
# runs

def read(path):
    """Finished runs by their key."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding='utf-8') as f:
        rows = [{'val_loss': math.inf, **json.loads(line)} for line in f]  # what diverged has none
    return {key(row['run']): row for row in rows}


def read_all():
    return {k: row for study in STUDIES for k, row in read(f'results/{study}.jsonl').items()}


def folder(run, study):
    return os.path.join('out', study, '_'.join(str(v) for v in run.values()).replace(' ', ''))


def train(run, study):
    """One run from where it stands to its end; returns its line for the results."""
    out_dir = folder(run, study)
    images = 'image_size' in read_config(run['config'])
    line = [sys.executable, 'train_vit.py' if images else 'train_gpt.py', f'config/{run["config"]}.py',
            f'--out_dir={out_dir}', '--init_from=resume', f'--compile={compile}',
            *(f'--{k}={v}' for k, v in {**PLAIN, **run}.items() if k not in ('config', 'variant'))]
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    with open(f'{out_dir}.txt', 'a', encoding='utf-8') as console:
        code = subprocess.run(line, stdout=console, stderr=console, env=env).returncode
    rows = []
    if os.path.exists(os.path.join(out_dir, 'log.jsonl')):
        with open(os.path.join(out_dir, 'log.jsonl'), encoding='utf-8') as f:
            rows = [json.loads(line) for line in f]
    with open(f'{out_dir}.txt', encoding='utf-8') as console:
        diverged = code == 1 and 'so no step was made' in console.read()[-2000:]  # that is a result too
    if code == 0 or diverged:
        row = {'run': run, 'iter': rows[-1]['iter'] if rows else 0, 'ended': 'diverged' if diverged
               else 'finished'}
        shares = [r['agc_share'] for r in rows if 'agc_share' in r]
        if shares:
            row['agc_share'] = round(statistics.mean(shares), 4)
        if not diverged:
            row['val_loss'] = rows[-1]['loss']  # the last row is a val row
            if images:
                row['top1'] = rows[-1]['top1']
            if study == 'cifar10':  # once, with the last weights
                said = subprocess.run([*line, '--eval_only=True', '--eval_split=test'], capture_output=True,
                                      text=True, env=env).stdout
                found = re.findall(r'test loss (\S+) \| top-1 (\S+)', said)[0]
                row['test_loss'], row['test_top1'] = map(float, found)
        return row
    fail(f'{out_dir} ended with exit code {code}. See {out_dir}.txt.')


def note(path, row, done):
    """Write a finished run down, with the time."""
    row['date'] = datetime.now().isoformat(' ', 'minutes')
    with open(path, 'a', encoding='utf-8') as f:
        f.write(json.dumps(row) + '\n')
    done[key(row['run'])] = {'val_loss': math.inf, **row}  # as read() has it
    print(f'{row["date"]} {row.get("val_loss", row["ended"])} {key(row["run"])}', flush=True)


def run_study(study, runs, done, one=train):
    """
    Run what runs(done) yields until all of it is done, a line each to results/STUDY.jsonl. Whenever a run
    ends, start the first one that is needed and not yet under way: what runs yields may depend on done.
    """
    path, under_way = f'results/{study}.jsonl', {}
    os.makedirs(os.path.join('out', study), exist_ok=True)
    os.makedirs('results', exist_ok=True)

    with ThreadPoolExecutor(processes) as pool:
        while True:
            for run in runs(done):
                if len(under_way) == processes:
                    break
                if key(run) not in done and key(run) not in under_way.values():
                    under_way[pool.submit(one, run, study)] = key(run)
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                del under_way[future]
                note(path, future.result(), done)

# -----------------------------------------------------------------------------
# statistics

# the two-sided 95 % point of the t distribution, for 1 to 9 degrees of freedom
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
LEVEL = 0.015  # nats: two arms match where the interval of their difference lies within this


def mean_spread(values, digits='.4f'):
    """'mean ± standard deviation' of what several seeds gave; 'diverged' where one of them did."""
    if not values or max(values) == math.inf:
        return 'diverged' if values else ''
    spread = f' ± {statistics.stdev(values):{digits.lstrip("+")}}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):{digits}}{spread}'


def interval(values):
    """(mean, half of its 95 % interval); inf for a single value, or where a run diverged."""
    n, mean = len(values) - 1, statistics.fmean(values)
    if not n or math.inf in values:
        return mean, math.inf
    t = T95[n - 1] if n <= len(T95) else 1.96 + 2.7 / n
    return mean, t * statistics.stdev(values) / math.sqrt(n + 1)


def verdict(mean, half):
    """Of a difference in loss: whether the arms match, or one is better, or neither can be said."""
    if abs(mean) + half <= LEVEL:
        return 'matches'
    return 'open' if abs(mean) <= half else 'better' if mean < 0 else 'worse'


def difference(a, b, points=False):
    """
    'mean ± half of the 95 % interval, verdict' of a minus b, which are losses by seed, seed by seed. points:
    they are accuracies, and the difference is in percentage points, without a verdict.
    """
    both = [a[s] - b[s] for s in a if s in b]
    if len(both) < 2 or not all(map(math.isfinite, both)):
        return ''
    mean, half = interval(both)
    return f'{100 * mean:+.1f} ± {100 * half:.1f} points' if points else \
        f'{mean:+.4f} ± {half:.4f}, {verdict(mean, half)}'

# -----------------------------------------------------------------------------
# tables


def print_table(study):
    """A row for all that differ in the seed alone: what is varied, and mean and spread of their ends."""
    groups = {}
    for row in read(f'results/{study}.jsonl').values():
        groups.setdefault(key({k: v for k, v in row['run'].items() if k != 'seed'}), []).append(row)
    groups = sorted(groups.values(), key=lambda g: (g[0]['run']['config'], g[0]['run']['learning_rate']))
    runs = [rows[0]['run'] for rows in groups]
    varied = [k for k in runs[0] if k == 'config' or k != 'seed' and len({run.get(k) for run in runs}) > 1]
    metrics = [m for m in ('val_loss', 'top1', 'test_loss', 'test_top1') if any(m in g[0] for g in groups)]
    head = [*varied, 'seeds', *metrics]
    print('| ' + ' | '.join(head) + ' |\n' + '|---' * len(head) + '|')
    for run, rows in zip(runs, groups):
        cells = [f'`{run[k]}`' if k == 'config' else str(run.get(k, '')) for k in varied] + [str(len(rows))]
        cells += [mean_spread([row.get(m, math.inf) for row in rows]) for m in metrics]
        print('| ' + ' | '.join(cells) + ' |')
    seeds = {run['config']: {row['run'].get('seed'): row.get(metrics[-1], math.inf) for row in rows}
             for run, rows in zip(runs, groups) if len(rows) > 1}
    if len(seeds) > 1:
        print(f'\n| {metrics[-1]}, seed by seed | minus | 95 % interval |\n|---|---|---|')
    for a, b in combinations(seeds, 2):
        print(f'| `{a}` | `{b}` | {difference(seeds[a], seeds[b], points="top1" in metrics[-1])} |')


def print_variants(study):
    """Variant against learning rate: top-1 in percent, the best in bold; the share of units AGC clipped."""
    results = read(f'results/{study}.jsonl').values()
    results = {(row['run']['variant'], row['run']['learning_rate']): row for row in results}
    variants, lrs = dict.fromkeys(variant for variant, _ in results), sorted({lr for _, lr in results})
    print('| top-1 (%) at learning rate | ' + ' | '.join(f'{lr:g}' for lr in lrs) + ' |\n|---|' + '---|'
          * len(lrs))
    for variant in variants:
        rows = [results.get((variant, lr), {}) for lr in lrs]
        best = max(row.get('top1', 0) for row in rows)
        cells = [f'{100 * row["top1"]:.1f}' if 'top1' in row else row.get('ended', '') for row in rows]
        cells = [f'**{cell}**' if row.get('top1') == best else cell for row, cell in zip(rows, cells)]
        print(f'| {variant} | ' + ' | '.join(cells) + ' |')
        if any('agc_share' in row for row in rows):
            cells = [f'{row["agc_share"]:.2f}' if 'agc_share' in row else '' for row in rows]
            print('| *share of units that it clipped* | ' + ' | '.join(cells) + ' |')


def print_search(study):
    """Where each search stands; in brackets the losses at the next lower and the next higher value."""
    def like(run, *free):  # finished runs that differ from it in nothing else
        return [row for row in done.values() if list(row['run']) == list(run)
                and all(row['run'][k] == v for k, v in run.items() if k not in free)]

    done, axes = read_all(), ('learning_rate', 'warmup_iters', 'weight_decay', 'embed_lr')
    print('| arm | runs | val_loss | ' + ' | '.join(axes) + ' |\n' + '|---' * (3 + len(axes)) + '|')
    for _, best in searches.SEARCHES[study.removesuffix('_grid')](done):
        if not best:
            continue
        cells = [best['variant'], str(len(like(best, *axes))), f'{done[key(best)]["val_loss"]:.4f}']
        for axis in axes:
            at = best.get(axis)
            line = {row['run'][axis]: row['val_loss'] for row in like(best, axis)} if axis in best else {}
            sides = (max((v for v in line if v < at), default=None),
                     min((v for v in line if v > at), default=None))
            between = ', '.join(f'{line[v]:.4f}' if v in line else 'edge' for v in sides)
            cells.append(f'{at:g} ({between})' if len(line) > 1 else f'{at:g}' if line else '')
        print('| ' + ' | '.join(cells) + ' |')


def print_arms(study):
    """Mean and spread over the seeds; the difference to AdamW; the paper's number."""
    done, arms = read_all(), {}
    for run in STUDIES[study](done):
        if key(run) in done:
            arms.setdefault(run['variant'], {})[run['seed']] = done[key(run)]
    runs = {name: next(iter(arm.values()))['run'] for name, arm in arms.items()}
    varied = [k for k in ('learning_rate', 'warmup_iters', 'weight_decay', 'embed_lr')
              if len({run.get(k) for run in runs.values()}) > 1]
    metrics = [m for m in ('val_loss', 'top1')
               if any(m in row for arm in arms.values() for row in arm.values())]
    # compare with L-DNT AdamW; in an ablation with AdamW of the same setting
    of = {name: 'L-DNT AdamW' if 'L-DNT AdamW' in arms else name.replace('mSGDW', 'AdamW') for name in arms}
    paper = ['paper, 124M'] * bool(set(arms) & set(searches.PAPER))
    minus = 'minus ' + ('L-DNT AdamW' if 'L-DNT AdamW' in arms else 'AdamW') + ', 95 % interval'
    head = ['arm', *varied, 'seeds', *metrics, minus, *paper]
    print('| ' + ' | '.join(head) + ' |\n' + '|---' * len(head) + '|')
    for name, arm in arms.items():
        cells = [name, *(f'{runs[name][k]:g}' if k in runs[name] else '' for k in varied), str(len(arm))]
        cells += [mean_spread([row[m] for row in arm.values() if m in row]) for m in metrics]
        ours, others = ({s: row['val_loss'] for s, row in a.items()} for a in (arm, arms.get(of[name], {})))
        cells.append(difference(ours, others) if of[name] != name else '')
        print('| ' + ' | '.join(cells + [str(searches.PAPER.get(name, '')) for _ in paper]) + ' |')


def print_sizes(study):
    """For each width mean and spread over the seeds, and the difference."""
    done, (first, second) = read_all(), searches.SIZE_ARMS
    minus = f'{second} minus {first}, 95 % interval'
    print(f'| width | updates | {first} | {second} | {minus} |\n|---|---|---|---|---|')
    for width, arms in searches.size_runs(done).items():
        a, b = ([done[key(run)]['val_loss'] for run in arms[arm]] for arm in (first, second))
        print(f'| {width} | {arms[first][0]["max_iters"]} | {mean_spread(a)} | {mean_spread(b)} | '
              f'{difference(dict(enumerate(b)), dict(enumerate(a)))} |')


TABLES = {'stability': print_variants, 'weights': print_variants,
          'decay': print_variants, 'sizes': print_sizes,
          **{f'{name}_grid': print_search for name in searches.SEARCHES},
          **dict.fromkeys(searches.SEARCHES, print_arms)}

if __name__ == '__main__':
    if {'-h', '--help'} & set(sys.argv):
        configure(globals(), ['--help'])
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:
        fail(f'No study is named. Use python -m experiments.reproduce [{"|".join(STUDIES)}].')
    configure(globals(), sys.argv[2:])
    if not table:
        run_study(sys.argv[1], STUDIES[sys.argv[1]], read_all())
    TABLES.get(sys.argv[1], print_table)(sys.argv[1])
