"""
Compares optimizers by a protocol: first search the settings of every arm, then score the best with new seeds.

    python -m experiments.evidence                   run all questions; after a kill, run it again to go on
    python -m experiments.evidence --question=parts  run one question
    python -m experiments.evidence --device=cuda     on a GPU, many runs at once (experiments/stack.py)
    python -m experiments.evidence --table=True      print the tables of what has finished

The protocol:

- An arm is a network and an optimizer. Each arm is searched over learning rate, warmup and weight decay, and
  over the rate of its embeddings where it has one. The search has the length of the scored runs.
- The search tries the value below and the value above on every axis, on the mean of its seeds, and goes on
  from the best of all that was tried. It ends where the best has no untried neighbour, or after POINTS
  settings. A search of stages RACE gives more seeds to the settings that are near the best (Arm.search).
- The best setting is scored with seeds that the search never used, when all arms have been searched.
- Differences are taken between runs of the same seed. Their 95 % interval is that of the t distribution. Two
  arms match if it lies within ±LEVEL.
- The decay of embeddings that have their own rate is not searched: it is EMBED_DECAY for all arms.

One line for each finished run goes to results/evidence.jsonl. To stop, kill the whole process group.
"""

import math
import os
import statistics
import time
from itertools import product, zip_longest

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from experiments import reproduce
from experiments.lag import CPU
from experiments.reproduce import difference, folder, interval, note, read, run_study, train
from experiments.searches import DECAYS, WARMUPS, key
from experiments.stack import OWN, train_stack
from model import GPT, GPTConfig
from support import normfree
from support.console import fail
from support.tokens import Tokens

question = 'all'  # or some of match, places, controls, headline, parts, why, regime, sizes, depth, pictures
processes = 2  # runs at the same time
threads = 1  # of each run
device = 'cpu'  # or 'cuda': the runs on text, as stacks in one process
compile = True  # of each run, with a C++ compiler; the same for all arms of a comparison
table = False  # True: print tables of results/evidence.jsonl, run nothing

RESULTS = 'results/evidence.jsonl'
SEARCH_SEEDS = tuple(range(101, 109))
TWO = (2,)  # a search with two seeds
RACE = (2, 4, 8)  # a search in which settings go on from two seeds to four, and to eight
BOUND = {2: 0.02, 4: 0.01}  # nats: how far above the best a mean over so many seeds may lie to go on
POINTS = 48  # settings of a search
EMBED_DECAY = 0.1
LARGEST = 256  # runs of a stack
BY_FREQUENCY = 'stdlib_4096'  # runs on this data set note the loss by frequency of the token

NETWORKS = {
    'GPT-2': {'config': 'dnt_tiny', 'setting': 'S1', 'norm': 'layer'},
    'L-DNT': {'config': 'dnt_tiny', 'setting': 'S5', 'norm': 'rms'},  # S5 among S1 to S4
    **{s: {'config': 'dnt_tiny', 'setting': s, 'norm': 'rms'} for s in ('S1', 'S2', 'S3', 'S4')},
    'ViT': {'config': 'vdnt_cifar10', 'setting': 'S1', 'norm': 'layer'},
    'V-DNT': {'config': 'vdnt_cifar10', 'setting': 'S5', 'norm': 'rms'},
}
OPTIMIZERS = {
    'AdamW': {'optimizer': 'adamw', 'embed_optimizer': 'auto'},
    'AdamW + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm'},
    'mSGDW': {'optimizer': 'sgdw', 'embed_optimizer': 'auto'},
    'mSGDW + row norm': {'optimizer': 'sgdw', 'embed_optimizer': 'rownorm'},
    'AdamW + own rate': {'optimizer': 'adamw', 'embed_optimizer': 'adamw'},
    'AdamW 0.99 + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm', 'beta2': 0.99},
    'AdamW 0.999 + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm', 'beta2': 0.999},
    'hybrid': {'optimizer': 'sgdw', 'embed_optimizer': 'adamw'},
    'Muon': {'optimizer': 'muon', 'embed_optimizer': 'adamw', 'momentum': 0.95},
    'Muon + row norm': {'optimizer': 'muon', 'embed_optimizer': 'rownorm', 'momentum': 0.95},
}
CORE = ('mSGDW + row norm', 'AdamW + row norm', 'mSGDW', 'AdamW')

# where the searches begin, from earlier searches and runs: rate, warmup (a share of the run), decay
GPT2_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.7, 1e-3), 'muon': (0.004, 0.3, 0.1)}
DNT_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.3, 3e-3), 'muon': (0.008, 0.3, 0.1)}
IMAGE_START = {'adamw': (0.001, 0.1, 0.1), 'sgdw': (0.05, 0.1, 1e-3)}
START = {'GPT-2': GPT2_START, 'S1': GPT2_START, 'ViT': IMAGE_START, 'V-DNT': IMAGE_START}
RATES = {'sgdw': [0.2 * 2.0**i for i in range(-6, 7)], 'adamw': [0.004 * 2.0**i for i in range(-6, 7)]}
RATES['muon'] = RATES['rownorm'] = RATES['adamw']
EMBED_START = {'adamw': 0.008, 'rownorm': 0.004}
AXES = ('learning_rate', 'embed_lr', 'warmup', 'weight_decay')
NO_WARMUP = ('learning_rate', 'embed_lr', 'weight_decay')  # the warmup stays where the search starts


class Arm:
    """
    A network and an optimizer at a point: a data set, a width, a length and what else is fixed. What is not
    searched stays where a search would start. start: begin at this (rate, warmup, decay) instead, or at this
    (rate, warmup, decay, rate of the embeddings). stages: how many seeds a setting of the search has after
    each stage.
    """

    def __init__(self, network, optimizer, point, seeds, searched=AXES, start=None, stages=TWO):
        self.network, self.optimizer, self.seeds, self.point = network, optimizer, seeds, point
        self.stages = stages
        flags = OPTIMIZERS[optimizer]
        kind, of_embeddings = flags['optimizer'], flags['embed_optimizer']
        rate, warmup, decay, *embed = start or START.get(network, DNT_START)[kind]
        embed_lr = embed[0] if embed else EMBED_START.get(of_embeddings, 0.0)
        axes = [(RATES[kind], rate), (RATES.get(of_embeddings, [0.0]), embed_lr), ([0.0, *WARMUPS], warmup),
                (DECAYS['sgdw' if kind == 'sgdw' else 'adamw'], decay)]
        self.values = [values if name in searched else [start] for name, (values, start) in zip(AXES, axes)]
        self.start = tuple(values.index(start) for values, (_, start) in zip(self.values, axes))

    def run(self, setting):
        """The run of a setting (a place on each axis) without a seed. It states all that arms differ in."""
        rate, embed_lr, warmup, decay = (values[i] for values, i in zip(self.values, setting))
        if 'epochs' in self.point:
            length = {'warmup_epochs': round(warmup * self.point['epochs'], 4)}
        else:
            length = {'warmup_iters': round(warmup * self.point['max_iters'])}
        return {'variant': f'{self.network} {self.optimizer}', **NETWORKS[self.network],
                **OPTIMIZERS[self.optimizer], **self.point, 'min_lr': 0.0, 'eval_interval': 0,
                'dtype': 'float32', 'learning_rate': rate, 'embed_lr': embed_lr,
                'embed_weight_decay': EMBED_DECAY if embed_lr else -1.0,
                **length, 'weight_decay': decay}

    def tried(self, done):
        """{setting: {seed: loss}} of all that the log holds for this arm, for the stages that have ended."""
        at_value = [{value: i for i, value in enumerate(values)} for values in self.values]
        found = {}
        for row in done.values():
            run = {k: v for k, v in row['run'].items() if k != 'seed'}
            if run['variant'] != f'{self.network} {self.optimizer}' or row['run']['seed'] not in SEARCH_SEEDS:
                continue
            length = self.point.get('max_iters') or self.point['epochs']
            warmup = run.get('warmup_iters', run.get('warmup_epochs')) / length
            near = min(self.values[2], key=lambda value: abs(value - warmup))
            place = (run['learning_rate'], run['embed_lr'], near, run['weight_decay'])
            setting = tuple(at.get(value) for at, value in zip(at_value, place))
            if None not in setting and self.run(setting) == run:
                found.setdefault(setting, {})[row['run']['seed']] = row['val_loss']
        tried = {}
        for setting, losses in found.items():
            for n in self.stages:
                if all(seed in losses for seed in SEARCH_SEEDS[:n]):
                    tried[setting] = {seed: losses[seed] for seed in SEARCH_SEEDS[:n]}
        return tried

    def beside(self, setting):
        """The neighbours of a setting: one step down and one up on each axis."""
        near = []
        for axis, values in enumerate(self.values):
            for i in (setting[axis] - 1, setting[axis] + 1):
                if 0 <= i < len(values):
                    near.append((*setting[:axis], i, *setting[axis + 1:]))
        return near

    def search(self, done):
        """
        (the runs that are needed next, the best setting so far or None, what tried() says). It is a race.
        A setting goes on to its next seeds while its mean is at most BOUND[its seeds] above that of the best,
        which is the lowest mean among those with the most seeds. When none goes on, the untried neighbours
        of the best are next, until it has none or POINTS settings were tried. The search depends on the
        losses of all that was tried, not on the order in which runs end.
        """
        tried = self.tried(done)
        if not tried:
            return self.stage([self.start], 0), None, tried
        mean = {setting: statistics.fmean(losses.values()) for setting, losses in tried.items()}
        best = min(tried, key=lambda setting: (-len(tried[setting]), mean[setting]))
        if len(tried[best]) < self.stages[-1]:
            return self.stage([best], len(tried[best])), best, tried
        for n in self.stages[:-1]:
            go_on = [setting for setting in tried
                     if len(tried[setting]) == n and mean[setting] <= mean[best] + BOUND[n]]
            if go_on:
                return self.stage(sorted(go_on, key=mean.get), n), best, tried
        untried = [setting for setting in self.beside(best) if setting not in tried]
        return self.stage(untried[:max(0, POINTS - len(tried))], 0), best, tried

    def stage(self, settings, n):
        """The runs of these settings, which have n seeds, with the seeds of their next stage."""
        until = min(stage for stage in self.stages if stage > n)
        return [{**self.run(setting), 'seed': seed} for setting in settings for seed in SEARCH_SEEDS[n:until]]

    def scoring(self, setting):
        return [{**self.run(setting), 'seed': seed} for seed in self.seeds]

    def scored(self, done):
        """{seed: row} of the finished runs that score the best setting; none while settings still race."""
        runs, best, _ = self.search(done)
        if best is None or any(run['seed'] not in SEARCH_SEEDS[:self.stages[0]] for run in runs):
            return {}
        return {run['seed']: done[key(run)] for run in self.scoring(best) if key(run) in done}


def needed(arms, done):
    """
    The runs that a question needs next: first the searches of all arms, in turns; when all have ended, the
    scoring of all arms, seed by seed.
    """
    searches = [arm.search(done) for arm in arms]
    of_arm = [runs for runs, _, _ in searches]
    if not any(of_arm):
        of_arm = [arm.scoring(best) for arm, (_, best, _) in zip(arms, searches)]
    in_turns = [run for runs in zip_longest(*of_arm) for run in runs if run]
    return [run for run in in_turns if key(run) not in done]


def point(iters, width=64, dataset='stdlib', **more):
    return {'dataset': dataset, 'n_embd': width, 'n_head': width // 32, 'max_iters': iters, **more}


def match():
    """
    Does mSGDW match AdamW on L-DNT with row norm? Searched and scored again, by the plan in
    results/protocol.md.
    """
    for optimizer in CORE[:2]:
        yield Arm('L-DNT', optimizer, point(4500), range(301, 349), stages=RACE)


def places():
    """The same on GPT-2, and on S1 with RMSNorm: from L-DNT it differs by the places of norms alone."""
    for network in ('GPT-2', 'S1'):
        for optimizer in CORE[:2]:
            start = (0.4, 0.3, 1e-3, 0.008) if optimizer == CORE[0] else (0.004, 0.5, 0.1, 0.004)
            yield Arm(network, optimizer, point(4500), range(301, 325), start=start, stages=RACE)


def controls():
    """
    Is it the row norm or its rate? And AdamW's beta2, hybrid and Muon, on L-DNT. The search is over the two
    learning rates.
    """
    for optimizer, start in {'AdamW + own rate': (0.008, 0.3, 0.1, 0.008),
                             'AdamW 0.99 + row norm': (0.004, 0.3, 0.3, 0.016),
                             'AdamW 0.999 + row norm': (0.004, 0.3, 0.3, 0.016),
                             'hybrid': None, 'Muon': None}.items():
        yield Arm('L-DNT', optimizer, point(4500), range(301, 317), AXES[:2], start)


def headline():
    """The tiny runs of the README at full length: eight arms."""
    first, second = match()
    yield from (first, second)
    for network, optimizer in product(('L-DNT', 'GPT-2'), CORE):
        if (network, optimizer) not in (('L-DNT', CORE[0]), ('L-DNT', CORE[1])):
            yield Arm(network, optimizer, point(4500), range(1, 17))


def parts():
    """Question 2: S1 to S5 with row norm, mSGDW against AdamW, at a third of the length."""
    for network in ('L-DNT', 'S1', 'S4', 'S3', 'S2'):
        for optimizer in CORE[:2]:
            yield Arm(network, optimizer, point(1600), range(1, 6))


def why():
    """
    Question 5: the loss by token frequency, vocabulary 4,096 (from experiments.vocabulary). The warmup is
    that of the headline and not searched. `experiments.figures frequency` prints and draws the loss of each
    tenth of the text.
    """
    for optimizer, start in {'mSGDW + row norm': (0.4, 0.3, 3e-3, 0.008), 'mSGDW': (0.4, 0.3, 3e-3),
                             'AdamW + row norm': (0.004, 0.3, 0.3, 0.008), 'AdamW': (0.008, 0.3, 0.1),
                             'hybrid': (0.4, 0.3, 3e-3, 0.016)}.items():
        yield Arm('L-DNT', optimizer, point(1600, dataset=BY_FREQUENCY), range(1, 6), NO_WARMUP, start)


def regime():
    """Question 4: 515 tokens for each parameter, at width 32. mSGDW has no warmup, as in table 5."""
    for optimizer, start in {'mSGDW + row norm': (0.2, 0.0, 3e-3), 'AdamW + row norm': (0.004, 0.02, 0.1),
                             'mSGDW': (0.2, 0.0, 1e-3), 'AdamW': (0.004, 0.02, 0.1)}.items():
        axes = NO_WARMUP if 'mSGDW' in optimizer else AXES
        yield Arm('L-DNT', optimizer, point(32000, 32), range(1, 6), axes, start)


def sizes():
    """Question 3: three widths, four lengths, two vocabularies."""
    for width, iters in ((32, 1600), (64, 1600), (128, 1600), (32, 800), (32, 3200), (32, 6400)):
        for optimizer in CORE:
            yield Arm('L-DNT', optimizer, point(iters, width), range(1, 6))


def depth():
    """Question 6: 4, 12 and 24 layers; mSGDW without warmup, too."""
    for layers in (4, 12, 24):
        for network in ('L-DNT', 'S1'):
            for optimizer in CORE[:2]:
                yield Arm(network, optimizer, point(800, 32, n_layer=layers), range(1, 6))
            start = (START.get(network, DNT_START)['sgdw'][0], 0.0, 3e-3)
            yield Arm(network, CORE[0], point(800, 32, n_layer=layers), range(1, 6), NO_WARMUP, start)


def pictures():
    """Question 7: CIFAR-10, two epochs. The row norm is on patch matrix, class token and positions."""
    for network in ('V-DNT', 'ViT'):
        for optimizer in CORE:
            yield Arm(network, optimizer, {'dataset': 'cifar10', 'patch_size': 8, 'epochs': 2.0}, range(1, 6))


QUESTIONS = {f.__name__: f for f in (match, places, controls, headline, parts, why, regime, sizes, depth,
                                     pictures)}

# -----------------------------------------------------------------------------
# run


def parts_by_frequency(dataset, vocab_size, bins=10):
    """
    Which part each token id belongs to. The vocabulary is sorted by frequency, the most frequent first, and
    cut into parts that each cover about a tenth of the training text.
    """
    data = Tokens(dataset, 1, CPU)
    train_ids = np.fromfile(os.path.join(data.folder, 'train.bin'), data.meta['dtype'])
    counts = np.bincount(train_ids, minlength=vocab_size)
    order = np.argsort(-counts, kind='stable')
    part = np.empty(len(counts), int)
    part[order] = np.minimum(bins - 1, bins * (np.cumsum(counts[order]) - counts[order]) // counts.sum())
    return part


def by_frequency(checkpoint, dataset, bins=10):
    """The validation loss of frequent and rare tokens, from a checkpoint."""
    model = normfree.build(GPT, GPTConfig, checkpoint['model_args']).eval()
    model.load_state_dict(checkpoint['model'])
    data = Tokens(dataset, checkpoint['config']['block_size'], CPU)
    part = parts_by_frequency(dataset, checkpoint['model_args']['vocab_size'], bins)
    T, sums, seen = data.block_size, np.zeros(bins), np.zeros(bins)
    for i in range((data.val_tokens - 1) // T):  # the windows of train_gpt.py's evaluation
        x, y = data.windows('val', [i * T])
        with torch.no_grad():
            losses = F.cross_entropy(model(x, y)[0][0], y[0], reduction='none').double().numpy()
        sums += np.bincount(part[y[0]], losses, bins)
        seen += np.bincount(part[y[0]], minlength=bins)
    return (sums / np.maximum(seen, 1)).round(5).tolist()  # 0: no token begins in this part


def one(run, study):
    row = train(run, study)
    if run['dataset'] == BY_FREQUENCY and 'val_loss' in row:
        path = os.path.join(folder(run, study), 'ckpt.pt')
        row['by_frequency'] = by_frequency(torch.load(path, weights_only=True), run['dataset'])
    return row


def run_stacks(arms, done):
    """All runs on text on one GPU: what is needed next of all arms is trained together, shape by shape."""
    while True:
        stacks = {}
        for run in needed(arms, done):
            if 'epochs' not in run:
                shape = key({k: v for k, v in run.items() if k not in OWN})
                stacks.setdefault(shape, {})[key(run)] = run
        if not stacks:
            return
        for runs in (list(runs.values()) for runs in stacks.values()):
            for some in (runs[i:i + LARGEST] for i in range(0, len(runs), LARGEST)):
                begin = time.time()
                by_bin = some[0]['dataset'] == BY_FREQUENCY
                bins = parts_by_frequency(BY_FREQUENCY, 4096) if by_bin else None
                for run, (loss, of_bins) in zip(some, train_stack(some, device, bins)):
                    row = {'run': run, 'ended': 'finished', 'val_loss': loss} if math.isfinite(loss) else \
                        {'run': run, 'ended': 'diverged'}
                    note(RESULTS, {**row, **({'by_frequency': of_bins} if by_bin else {})}, done)
                print(f'{len(some)} runs in {time.time() - begin:.0f} s', flush=True)


def print_table(name, done):
    rows = []
    for arm in QUESTIONS[name]():
        runs, best, tried = arm.search(done)
        if best:
            scored = arm.scored(done)
            seeds = f'{len(scored)} of {len(arm.seeds)}' if scored or not runs else 'searching'
            left = len([to for to in arm.beside(best) if to not in tried])
            count = f'{len(tried)} ({left} neighbours left)' if left else len(tried)
            rows.append((arm, arm.run(best), best, count, seeds, scored))
    if not rows:
        return
    points = [arm.point for arm, *_ in rows]
    at_keys = [k for k in dict.fromkeys(k for p in points for k in p) if len({p.get(k) for p in points}) > 1]
    head = ['arm', *at_keys, 'rate', 'embedding rate', 'warmup', 'decay', 'settings tried', 'seeds scored',
            'val_loss, 95 % interval', 'minus AdamW', 'minus AdamW + row norm']
    print(f'\n{name}: {" ".join((QUESTIONS[name].__doc__ or "").split())}\n')
    print(f'| {" | ".join(head)} |\n' + '|---' * len(head) + '|')
    for arm, best, at, count, seeds, scored in rows:
        losses = {seed: row['val_loss'] for seed, row in scored.items()}
        others = {other.optimizer: {seed: row['val_loss'] for seed, row in of_other.items()}
                  for other, *_, of_other in rows if (other.network, other.point) == (arm.network, arm.point)}
        cells = [best['variant'], *(arm.point.get(k, '') for k in at_keys),
                 *(f'{values[i]:g}' for values, i in zip(arm.values, at)), count, seeds,
                 '{:.4f} ± {:.4f}'.format(*interval(list(losses.values()))) if losses else '',
                 *(difference(losses, others.get(other, {})) if other != arm.optimizer else ''
                   for other in ('AdamW', 'AdamW + row norm'))]
        print('| ' + ' | '.join(map(str, cells)) + ' |')


if __name__ == '__main__':
    configure(globals())
    names = list(QUESTIONS) if question == 'all' else question.split(',')
    if not set(names) <= QUESTIONS.keys():
        fail(f'question={question} is unknown. Use all or some of {",".join(QUESTIONS)}.')
    if not table:
        reproduce.processes, reproduce.threads, reproduce.compile = processes, threads, compile
        torch.set_num_threads(threads)
        questions = [list(QUESTIONS[name]()) for name in names]
        if device == 'cpu':
            run_study('evidence', lambda done: (run for arms in questions for run in needed(arms, done)),
                      read(RESULTS), one)
        else:
            for arms in questions:
                run_stacks(arms, read(RESULTS))
    for name in names:
        print_table(name, read(RESULTS))
