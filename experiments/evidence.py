"""
Compares optimizers by a protocol: search the settings of every arm, then score the best with new seeds.

    python -m experiments.evidence --question=parts  run one question or study of experiments/arms.py; after a
                                                     kill, run it again to go on
    python -m experiments.evidence --device=cuda     runs on text on a GPU, many at once (stack.py; not Muon)
    python -m experiments.evidence --table=True      print every table of what has finished

results/protocol.md has the rules. One line for each finished run goes to results/evidence.jsonl, or to
results/STUDY.jsonl of a study without a search. To stop, kill the whole process group.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from concurrent import futures
from contextlib import suppress
from datetime import datetime
from functools import cache
from itertools import chain, zip_longest

import numpy as np
import torch

from configurator import configure
from experiments.arms import OPTIMIZERS, QUESTIONS, RACE, STUDIES, claims
from experiments.stack import CPU, OWN, RULES, read_config, train_stack
from support.console import check_choice, check_range, fail
from support.tokens import Tokens

question = 'all'  # or some of the questions and studies of experiments/arms.py, with commas
processes = 2  # runs at the same time
device = 'cpu'  # or 'cuda': the runs on text, as stacks in one process
compile = True  # of each run, with a C++ compiler; the same for all arms of a comparison
table = False  # True: print tables of results/, run nothing

RESULTS = 'results/evidence.jsonl'
SEARCH_SEEDS = tuple(range(101, 109))
BOUND = {2: 0.02, 4: 0.01}  # nats: how far above the best a mean over so many seeds may lie to go on
POINTS = 48  # settings of a search
LARGEST = 256  # runs of a stack
BY_FREQUENCY = 'stdlib_4096'  # runs on this data set note the loss by frequency of the token, in a stack
SETTING = ('rate', 'embedding rate', 'warmup', 'decay')  # the axes in a table
LEVEL = 0.015  # nats: two arms match where the interval of their difference lies within this
# the config of L-DNT has a row norm. A run has it only where it says so
PLAIN = {'embed_optimizer': 'auto', 'embed_lr': 0.0, 'embed_weight_decay': -1.0}

def key(run):
    return ' '.join(f'{k}={v}' for k, v in run.items())

def read_rows(path):
    """The rows of a .jsonl file, without one that a kill cut short; none where there is no file."""
    rows = []
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            for line in f:
                with suppress(ValueError):
                    rows.append(json.loads(line))
    return rows

def read(path):
    """Finished runs by their key; what diverged has the loss inf."""
    return {key(row['run']): {'val_loss': math.inf, **row} for row in read_rows(path)}

def means(tried):
    """The mean loss of each setting that was tried."""
    return {setting: statistics.fmean(losses.values()) for setting, losses in tried.items()}

# -----------------------------------------------------------------------------
# search and score

def tries(arm, done):
    """{setting: {seed: loss}} of all that the log holds for this arm, for the stages that have ended."""
    found, tried = {}, {}
    for row in done.values():
        run = row['run']
        if run['variant'] == arm.name and run['seed'] in SEARCH_SEEDS:
            found.setdefault(arm.setting(run), {})[run['seed']] = row['val_loss']
    found.pop(None, None)  # runs of another arm of this name
    for setting, losses in found.items():
        for n in arm.stages:
            seeds = SEARCH_SEEDS[:n]
            if losses.keys() >= set(seeds):
                tried[setting] = {seed: losses[seed] for seed in seeds}
    return tried

def next_stage(arm, settings, n):
    """The runs of these settings, which have n seeds, with the seeds of their next stage."""
    until = min(seeds for seeds in arm.stages if seeds > n)
    return [{**arm.run(setting), 'seed': seed} for setting in settings for seed in SEARCH_SEEDS[n:until]]

def search(arm, done):
    """
    (the runs that are needed next, the best setting so far or None, what tries() says). A setting goes on to
    its next seeds while its mean is at most BOUND[its seeds] above that of the best, the lowest mean among
    those with the most seeds. Then come the untried neighbours of the best, up to POINTS settings in all.
    """
    tried = tries(arm, done)
    if not tried:
        return next_stage(arm, [arm.start], 0), None, tried
    mean = means(tried)
    best = min(tried, key=lambda setting: (-len(tried[setting]), mean[setting], setting))
    if len(tried[best]) < arm.stages[-1]:
        return next_stage(arm, [best], len(tried[best])), best, tried
    for n in arm.stages[:-1]:
        go_on = [setting for setting in tried
                 if len(tried[setting]) == n and mean[setting] <= mean[best] + BOUND[n]]
        if go_on:
            return next_stage(arm, sorted(go_on, key=mean.get), n), best, tried
    untried = [setting for setting in arm.beside(best) if setting not in tried]
    return next_stage(arm, untried[:max(0, POINTS - len(tried))], 0), best, tried

def scoring(arm, setting):
    return [{**arm.run(setting), 'seed': seed} for seed in arm.seeds]

def scored(arm, done):
    """{seed: row} of the finished runs that score the best setting; none while settings still race."""
    runs, best, _ = search(arm, done)
    if best is None or any(run['seed'] not in SEARCH_SEEDS[:arm.stages[0]] for run in runs):
        return {}
    return {run['seed']: done[key(run)] for run in scoring(arm, best) if key(run) in done}

def needed(of_question, done):
    """The runs that a question needs next: those of all searches, in turns; then the scoring by seeds."""
    searches = [search(arm, done) for arm in of_question]
    of_arm = [runs for runs, _, _ in searches]
    if not any(of_arm):
        of_arm = [scoring(arm, best) for arm, (_, best, _) in zip(of_question, searches)]
    in_turns = [run for runs in zip_longest(*of_arm) for run in runs if run]
    return [run for run in in_turns if key(run) not in done]

# -----------------------------------------------------------------------------
# run

def note(path, row, done):
    """Write a finished run down, with the time."""
    row = {**row, 'date': datetime.now().isoformat(' ', 'minutes')}
    with open(path, 'a+b') as f:
        if f.tell() and os.pread(f.fileno(), 1, f.tell() - 1) != b'\n':
            f.write(b'\n')  # a kill cut the last row short
        f.write(json.dumps(row).encode() + b'\n')
    done[key(row['run'])] = {'val_loss': math.inf, **row}  # as read() has it
    print(f'{row["date"]} {row.get("val_loss", row["ended"])} {key(row["run"])}', flush=True)

def train(run, study):
    """One run from where it stands to its end, by a train script; returns its line for the results."""
    out_dir = os.path.join('out', study, '_'.join(str(v) for v in run.values()).replace(' ', ''))
    images = 'image_size' in read_config(run['config'])
    line = [sys.executable, 'train_vit.py' if images else 'train_gpt.py', f'config/{run["config"]}.py',
            f'--out_dir={out_dir}', '--init_from=resume', f'--compile={compile}',
            *(f'--{k}={v}' for k, v in {**PLAIN, **run}.items() if k not in ('config', 'variant'))]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(f'{out_dir}.txt', 'a', encoding='utf-8') as console:
        code = subprocess.run(line, stdout=console, stderr=console, env=env).returncode
    with open(f'{out_dir}.txt', encoding='utf-8') as console:
        diverged = code == 1 and 'so no step was made' in console.read()[-2000:]  # that is a result too
    if code and not diverged:
        fail(f'{out_dir} ended with exit code {code}. See {out_dir}.txt.')
    rows = read_rows(f'{out_dir}/log.jsonl')
    row = {'run': run, 'iter': rows[-1]['iter'] if rows else 0, 'ended': 'diverged'}
    shares = [r['agc_share'] for r in rows if 'agc_share' in r]
    if shares:
        row['agc_share'] = round(statistics.mean(shares), 4)
    if not diverged:
        row |= {'ended': 'finished', 'val_loss': rows[-1]['loss']}  # the last row is a val row
        if images:
            row['top1'] = rows[-1]['top1']
        if study == 'cifar10':  # once, with the last weights
            line += ['--eval_only=True', '--eval_split=test']
            said = subprocess.run(line, capture_output=True, text=True, env=env).stdout
            found = re.search(r'test loss (\S+) \| top-1 (\S+)', said)
            row['test_loss'], row['test_top1'] = float(found[1]), float(found[2])
    return row

def run_study(study, runs, done, one=train):
    """Run what runs(done) yields, which may depend on done, until all is done; a line each to the log."""
    path, under_way = f'results/{study}.jsonl', {}
    os.makedirs(f'out/{study}', exist_ok=True)
    os.makedirs('results', exist_ok=True)
    with futures.ThreadPoolExecutor(processes) as pool:
        while True:
            for run in runs(done):
                if len(under_way) == processes:
                    break
                if key(run) not in done and key(run) not in under_way.values():
                    under_way[pool.submit(one, run, study)] = key(run)
            if not under_way:
                return
            for future in futures.wait(under_way, return_when=futures.FIRST_COMPLETED).done:
                del under_way[future]
                note(path, future.result(), done)

def parts_by_frequency(dataset, vocab_size, bins=10):
    """The tenth of the text that each token id belongs to, when ids are sorted by falling frequency."""
    data = Tokens(dataset, 1, CPU)
    train_ids = np.fromfile(os.path.join(data.folder, 'train.bin'), data.meta['dtype'])
    counts = np.bincount(train_ids, minlength=vocab_size)
    order = np.argsort(-counts, kind='stable')
    part = np.empty(len(counts), int)
    part[order] = np.minimum(bins - 1, bins * (np.cumsum(counts[order]) - counts[order]) // counts.sum())
    return part

def run_stacks(of_question, done):
    """The runs on text in one process: what all arms need next is trained together, shape by shape."""
    of_question = [arm for arm in of_question if OPTIMIZERS[arm.optimizer]['optimizer'] in RULES]
    while True:
        stacks = {}
        for run in needed(of_question, done):
            if 'epochs' not in run:
                shape = key({k: v for k, v in run.items() if k not in OWN})
                stacks.setdefault(shape, []).append(run)
        if not stacks:
            return
        for runs in stacks.values():
            some = runs[:LARGEST]
            bins = None
            if some[0]['dataset'] == BY_FREQUENCY:
                bins = parts_by_frequency(BY_FREQUENCY, 4096)
            for run, (loss, of_bins) in zip(some, train_stack(some, device, bins)):
                row = {'run': run, 'ended': 'diverged'}
                if math.isfinite(loss):
                    row |= {'ended': 'finished', 'val_loss': loss}
                if bins is not None:
                    row['by_frequency'] = of_bins
                note(RESULTS, row, done)

# -----------------------------------------------------------------------------
# statistics

def p_value(t, freedom):
    """How probable a t at least so far from 0 is: two-sided, by Simpson's rule over the density."""
    if math.isnan(t):  # a run diverged
        return 1.0
    x = np.linspace(0, math.atan(abs(t) / math.sqrt(freedom)), 2001)  # t = sqrt(freedom) tan x
    weights = np.array([1, *[4, 2] * 999, 4, 1]) / 3
    area = (weights * np.cos(x) ** (freedom - 1)).sum() * x[1]
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - 2 * scale * area)

@cache
def t95(freedom):
    """The t beyond which 5 % lie, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if p_value(middle, freedom) > 0.05:
            low = middle
        else:
            high = middle
    return low

def interval(values):
    """(mean, half of its 95 % interval), which is inf for a single value. Both are inf if a run diverged."""
    if not all(map(math.isfinite, values)):
        return math.inf, math.inf
    mean, freedom = statistics.fmean(values), len(values) - 1
    if not freedom:
        return mean, math.inf
    return mean, t95(freedom) * statistics.stdev(values) / math.sqrt(len(values))

def verdict(mean, half):
    """Of a difference in loss. 'fails': worse, and the whole interval is beyond the margin."""
    if abs(mean) + half <= LEVEL:
        return 'worse, by less than the margin' if mean > half else 'matches'
    if abs(mean) <= half:
        return 'open'
    if mean < 0:
        return 'better'
    return 'fails' if mean - half > LEVEL else 'worse'

def holm(ps):
    """The p values of several claims, corrected by Holm for their number."""
    corrected, last = {}, 0.0
    for rank, p in enumerate(sorted(ps)):
        last = max(last, min(1.0, (len(ps) - rank) * p))
        corrected[p] = last
    return [corrected[p] for p in ps]

def read_logs():
    """{study: what read() says of its log}."""
    return {study: read(f'results/{study}.jsonl') for study in ('evidence', *STUDIES)}

def losses_of(claim, logs):
    """{arm: {seed: loss}} of the arms of a claim, without losses where an arm lacks some of its seeds."""
    study, names = claim['study'], claim['plus'] + claim['minus']
    rows = {name: {} for name in names}
    if study in QUESTIONS:
        for arm in QUESTIONS[study]():
            if arm.name in names:
                found = scored(arm, logs['evidence'])
                rows[arm.name] = found if len(found) == len(arm.seeds) else {}
    else:
        for run in STUDIES[study]():
            name = run.get('variant', run['config'])
            if name in names and key(run) in logs[study]:
                rows[name][run['seed']] = logs[study][key(run)]
    return {name: {seed: claim['metric'](row) for seed, row in of.items()} for name, of in rows.items()}

def judged(logs):
    """All claims with seeds and verdict, and from two seeds on mean, half and p, corrected over its page."""
    found, pages = [], {}
    for claim in claims():
        losses = losses_of(claim, logs)
        seeds = sorted(set.intersection(*map(set, losses.values())))
        values = [sum(losses[name][seed] for name in claim['plus'])
                  - sum(losses[name][seed] for name in claim['minus']) for seed in seeds]
        said = {**claim, 'seeds': len(seeds), 'verdict': 'to be scored'}
        if len(seeds) > 1:
            mean, half = interval(values)
            p = p_value(mean * t95(len(seeds) - 1) / half, len(seeds) - 1)
            said |= {'mean': mean, 'half': half, 'p': p, 'verdict': verdict(mean, half)}
            if claim['kind'] == 'less' and mean < -half:  # than 0; no margin is claimed
                said['verdict'] = 'holds'
            elif claim['kind'] == 'less' and abs(mean) <= half:
                said['verdict'] = 'open'
            pages.setdefault(claim['page'], []).append(said)
        found.append(said)
    for of_page in pages.values():
        for said, p in zip(of_page, holm([said['p'] for said in of_page])):
            said['p'] = p
    return found

# -----------------------------------------------------------------------------
# tables

def print_table(title, head, rows):
    """A table of Markdown, for all studies; nothing where there are no rows."""
    if rows:
        print(f'\n{title}\n')
        print(f'| {" | ".join(head)} |')
        print('|' + '---|' * len(head))
    for row in rows:
        print(f'| {" | ".join(map(str, row))} |')

def words(setting):
    return [f'{value:g}' for value in setting]

def print_claims(logs):
    rows = {}
    for claim in judged(logs):
        if 'p' in claim:
            mean, half = claim['mean'], claim['half']
            margin = f'{abs(mean) + half:.3f}' if claim['kind'] == 'match' else ''
            p = '< 0.001' if claim['p'] < 0.001 else f'{claim["p"]:.3f}'
            rows.setdefault(claim['page'], []).append([
                claim['words'], claim['verdict'], claim['seeds'], f'{mean:+.3f} ± {half:.3f}', margin, p])
    for page, of_page in rows.items():
        print_table(f'claims of results/{page}.md',
                    ['claim', 'verdict', 'seeds', 'difference', 'smallest margin', 'p, Holm'], of_page)

def print_question(name, done):
    """The best setting of each arm and its score. Before the first score, its search has a table."""
    of_question, rows = list(QUESTIONS[name]()), []
    if not all(tries(arm, done) for arm in of_question) or not any(scored(arm, done) for arm in of_question):
        return
    for arm in of_question:
        _, best, tried = search(arm, done)
        losses = [row['val_loss'] for row in scored(arm, done).values()]
        state, said = f'{len(losses)} of {len(arm.seeds)}', ''
        if len(losses) == len(arm.seeds):
            state, said = len(losses), '{:.4f} ± {:.4f}'.format(*interval(losses))
        elif not losses:
            state = 'searching' if arm.stages == RACE else 'to be scored again'
        untried = sum(to not in tried for to in arm.beside(best))
        rows.append([arm.name, *words(best), len(tried), untried, state, said])
    print_table(f'{name}: {" ".join(QUESTIONS[name].__doc__.split())}',
                ['arm', *SETTING, 'tried', 'untried', 'seeds', 'val_loss, 95 % interval'], rows)

def print_search(name, done):
    """Every setting that was tried, the best first: its seeds and their mean."""
    for arm in QUESTIONS[name]():
        tried = tries(arm, done)
        mean = means(tried)
        best_first = sorted(tried, key=lambda to: (-len(tried[to]), mean[to]))
        rows = [[*words(to), len(tried[to]), f'{mean[to]:.4f}'] for to in best_first]
        print_table(f'the search of {arm.name}', [*SETTING, 'seeds', 'mean loss'], rows)

def print_rates(done):
    """What a rate beside the best one costs, all else as in the best, on the search seeds 101 and 102."""
    rows, (first, second) = [], SEARCH_SEEDS[:2]
    for arm in QUESTIONS['headline']():
        _, best, tried = search(arm, done)
        if not tried:
            continue
        mean = {to: (losses[first] + losses[second]) / 2 for to, losses in tried.items()}
        row = [arm.name, words(best)[0], f'{mean[best]:.4f}']
        for rate in (best[0] / 2, best[0] * 2):
            to = rate, *best[1:]
            row.append(f'{mean[to] - mean[best]:+.4f}' if to in mean else '')
        rows.append(row)
    print_table('headline: the rate alone', ['arm', 'best rate', 'search mean', 'half', 'twice'], rows)

def print_seeds(study):
    """Mean and standard deviation of each arm of a study over its seeds."""
    of_arm, rows, done = {}, [], read(f'results/{study}.jsonl')
    metrics = ['test_loss', 'test_top1'] if study == 'cifar10' else ['val_loss', 'top1']
    for run in STUDIES[study]():
        if key(run) in done:
            of_arm.setdefault(run.get('variant', run['config']), []).append(done[key(run)])
    for name, of in of_arm.items():
        row = [name, f'{of[0]["run"]["learning_rate"]:g}', len(of)]
        for metric in metrics:
            values = [found[metric] for found in of]
            spread = f' ± {statistics.stdev(values):.4f}' if len(of) > 1 else ''
            row.append(f'{statistics.fmean(values):.4f}{spread}')
        rows.append(row)
    print_table(study, ['arm', 'rate', 'seeds', *metrics], rows)

def print_variants(study):
    """Variant against learning rate: top-1 in percent, the best in bold; the share of units AGC clipped."""
    of_variant, rows, diverged = {}, [], []
    for row in read(f'results/{study}.jsonl').values():
        of_variant.setdefault(row['run']['variant'], {})[row['run']['learning_rate']] = row
    lrs = sorted({lr for of in of_variant.values() for lr in of})
    for variant, of in of_variant.items():
        if all(row['ended'] == 'diverged' for row in of.values()):
            diverged.append(variant)
            continue
        best = max(row.get('top1', 0) for row in of.values())
        cells, shares = [variant], ['*share of units that it clipped*']
        for lr in lrs:
            row = of.get(lr, {})
            cell = f'{100 * row["top1"]:.1f}' if 'top1' in row else row.get('ended', '')
            cells.append(f'**{cell}**' if row.get('top1') == best else cell)
            shares.append(f'{row["agc_share"]:.2f}' if 'agc_share' in row else '')
        rows.append(cells)
        if any(shares[1:]):
            rows.append(shares)
    print_table(study, ['top-1 (%) at learning rate', *(f'{lr:g}' for lr in lrs)], rows)
    if diverged:
        print('\nDiverged at every rate: ' + ', '.join(diverged) + '.')

def print_tables(names):
    done = read(RESULTS)
    for name in names:
        if name in QUESTIONS:
            print_question(name, done)
        elif name.startswith('cifar10'):
            print_seeds(name)
        else:
            print_variants(name)
    if 'match' in names:
        print_search('match', done)
    if 'headline' in names:
        print_rates(done)
        print_claims(read_logs())

def run_all(names):
    torch.set_num_threads(1)  # as in each run
    questions = [list(QUESTIONS[name]()) for name in names if name in QUESTIONS]
    for name in names:
        if name == 'why' or (name in QUESTIONS and device != 'cpu'):
            run_stacks(list(QUESTIONS[name]()), read(RESULTS))
    run_study('evidence', lambda done: chain.from_iterable(needed(of, done) for of in questions),
              read(RESULTS))
    for name in names:
        if name in STUDIES:
            run_study(name, lambda done: STUDIES[name](), read(f'results/{name}.jsonl'))

if __name__ == '__main__':
    config = configure(globals())
    check_range(config, 1, 64, 'processes')
    check_choice(config, ('cpu', 'cuda'), 'device')
    if device == 'cuda' and not torch.cuda.is_available():
        fail('device=cuda, but PyTorch sees no CUDA GPU. Use --device=cpu.')
    known = [*QUESTIONS, *STUDIES]
    names = known if question == 'all' else question.split(',')
    if not set(names) <= set(known):
        fail(f'question={question} is unknown. Use all or some of {",".join(known)}.')
    if not table:
        run_all(names)
    print_tables(names)
