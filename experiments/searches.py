"""
Studies that search before they compare: each arm at its own best of one grid, which a walk finds with few
runs.

experiments.reproduce runs them: language (six arms), knobs (one more setting each), law (the gap of mSGDW by
length, width and vocabulary), ablation (S1 to S5). Each run states all that varies. ITERS is what the whole
thing costs: at 800 some three hours of one core.
"""

import os
import runpy
from itertools import chain

from support.console import fail

# updates of 1,024 tokens in language and knobs; half in ablation; a quarter to four times as many in law
ITERS = 800
# one text by its vocabularies: all studies are on the first, the law on all (experiments.vocabulary)
DATA = {257: 'stdlib', 512: 'stdlib_512', 1024: 'stdlib_1024', 4096: 'stdlib_4096'}
TEXT, *LARGER = DATA.values()
SEEDS = (1, 2, 3)
LEAST = 0.002  # nats: what a step of a search must gain; less is noise

# language, law, ablation: every search of an optimizer begins at one rate, share of warmup and decay
RATES = {'sgdw': [0.0125 * 2**i for i in range(10)], 'adamw': [2.5e-4 * 2**i for i in range(10)]}
WARMUPS = [0.02, 0.1, 0.3, 0.5, 0.7, 0.9]
DECAYS = {'sgdw': [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], 'adamw': [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]}
START = {'sgdw': (0.4, 0.3, 3e-3), 'adamw': (8e-3, 0.3, 0.1)}
ARMS = {
    'GPT-2 AdamW': {'config': 'gpt2_tiny'},
    'GPT-2 mSGDW': {'config': 'gpt2_tiny_sgdw'},
    'L-DNT AdamW': {'config': 'dnt_tiny_adamw'},
    'L-DNT mSGDW': {'config': 'dnt_tiny'},
    'L-DNT mSGDW, embed_lr': {'config': 'dnt_tiny', 'embed_optimizer': 'auto'},
    'L-DNT hybrid': {'config': 'dnt_tiny', 'embed_optimizer': 'adamw'},
}
# table 1, 124M
PAPER = {'GPT-2 AdamW': 2.867, 'GPT-2 mSGDW': 2.906, 'L-DNT AdamW': 2.863, 'L-DNT mSGDW': 2.849}
# what one more setting is worth, each with its own rates, weight_decay as it was; half the batch, same tokens
KNOBS = {
    'L-DNT AdamW': [{'tied': False}, {'grad_clip': 0.25}, {'global_batch_size': 4, 'max_iters': 2 * ITERS},
                    {'beta2': 0.99}],
    'L-DNT mSGDW': [{'tied': False}, {'grad_clip': 0.25}, {'global_batch_size': 4, 'max_iters': 2 * ITERS},
                    {'momentum': 0.8}, {'momentum': 0.95}, {'momentum': 0.98}],
    'L-DNT mSGDW, embed_lr': [{'tied': False}, {'grad_clip': 0.25}, {'momentum': 0.95}],
    'L-DNT hybrid': [{'tied': False}, {'grad_clip': 0.25}, {'momentum': 0.95}],
}
LAW_ARMS = ('L-DNT AdamW', 'L-DNT mSGDW', 'L-DNT hybrid')
SIZE_ARMS = LAW_ARMS[0], LAW_ARMS[2]
PREDICTION = 'results/law_prediction.json'

# ablation on CIFAR-10: learning rates, and where the search begins
IMAGE_RATES = {'sgdw': [0.0125 * 2**i for i in range(8)], 'adamw': [2.5e-4 * 2**i for i in range(8)]}
IMAGE_START = {'sgdw': 0.05, 'adamw': 1e-3}


def read_config(config):
    return runpy.run_path(f'config/{config}.py')


def key(run):
    return ' '.join(f'{k}={v}' for k, v in run.items())


def walk(make, axes, starts, done, least=0.0):
    """
    The next step of a search for the lowest validation loss on a grid: (the runs it needs, the best run so
    far).

    axes are lists of values, starts lists of such values, and make(*values) is the run there. From the best
    start it goes along one axis as long as that lowers the loss by more than least, then along the next,
    until it stands still on all of them; then no runs are left.
    """
    def run(at):
        return make(*(values[i] for values, i in zip(axes, at)))

    def loss(at):
        return done[key(run(at))]['val_loss']

    n = len(axes)
    rings = [[tuple(d * (k == axis) for k in range(n)) for d in (-1, 1)] for axis in range(n)]
    near, at, axis, still = [tuple(values.index(v) for values, v in zip(axes, start))
                             for start in starts], None, 0, 0
    while True:
        missing = [run(to) for to in near if key(run(to)) not in done]
        if missing:
            return missing, at and run(at)
        to = min(near, key=loss)
        if at is None or loss(to) < loss(at) - least:
            at, still = to, 0
        else:
            axis, still = (axis + 1) % len(rings), still + 1
        if still == len(rings):
            return [], run(at)
        steps = [tuple(map(sum, zip(at, step))) for step in rings[axis]]
        near = [to for to in steps if all(0 <= i < len(values) for i, values in zip(to, axes))] or [at]

# -----------------------------------------------------------------------------
# language: six arms, the law


def kinds(arm):
    """{rate that an arm has: the optimizer that it is for}."""
    kind = read_config(arm['config'])['optimizer']
    of_embeddings = 'adamw' if arm.get('embed_optimizer') == 'adamw' else kind
    return {'learning_rate': kind, **({'embed_lr': of_embeddings} if 'embed_optimizer' in arm else {})}


def search(variant, point, done, base=None):
    """
    The walk of an arm at a point (data set, width, updates) over learning rate, warmup, decay and, where the
    arm has one, embed_lr. From a base, a run that another search has found, over the learning rate alone.
    """
    (dataset, width, iters), arm = point, ARMS[variant]
    kind, *of_embeddings = kinds(arm).values()
    axes = [RATES[kind], WARMUPS, DECAYS[kind], *(RATES[k] for k in of_embeddings)]
    start = [*START[kind], *(START[k][0] for k in of_embeddings)]
    if base:
        start = [base['learning_rate'], base['warmup_iters'] / base['max_iters'], base['weight_decay'],
                 *([base['embed_lr']] if 'embed_lr' in base else [])]
        axes = [RATES[kind], *([v] for v in start[1:])]

    def make(lr, warmup, decay, *embed_lr):
        return {'variant': variant, **arm, 'dataset': dataset, 'n_embd': width, 'n_head': width // 32,
                'max_iters': iters, 'eval_interval': 0, 'dtype': 'float32', 'learning_rate': lr,
                'warmup_iters': round(warmup * iters), 'weight_decay': decay,
                **dict(zip(['embed_lr'], embed_lr))}
    return walk(make, axes, [start], done, least=LEAST)


def language_searches(done):
    for variant in ARMS:
        yield search(variant, (TEXT, 32, ITERS), done)


def knob_searches(done):
    found = dict(zip(ARMS, language_searches(done)))
    if any(todo for todo, _ in found.values()):
        fail('knobs begins where language_grid ends. Run language_grid first.')
    yield from (found[arm] for arm in KNOBS)  # as they are, to compare with
    for arm, changes in KNOBS.items():
        _, base = found[arm]
        grids = {rate: RATES[kind] for rate, kind in kinds(base).items()}
        for change in changes:
            name = f'{arm}, ' + ' '.join(f'{k}={v}' for k, v in change.items() if k != 'max_iters')
            run = {**base, **change, 'variant': name}
            run['warmup_iters'] = base['warmup_iters'] * run['max_iters'] // base['max_iters']
            yield walk(lambda *lr: {**run, **dict(zip(grids, lr))}, list(grids.values()),
                       [[base[k] for k in grids]], done, least=LEAST)


def law_points():
    """(data set, width, updates): four lengths; at half the length two more widths, three vocabularies."""
    half = ITERS // 2
    return [*((TEXT, 32, n) for n in (ITERS // 4, half, ITERS, 2 * ITERS)),
            (TEXT, 64, half), (TEXT, 96, half), *((data, 32, half) for data in LARGER)]


def fifth_point():
    return TEXT, 32, 4 * ITERS


def law_runs(variant, point, done):
    """(what the search at a point still needs, the point's runs: the best found, with two more seeds)."""
    todo, base = search(variant, (TEXT, 32, ITERS), done)
    if todo:
        fail('law begins where language_grid ends. Run language_grid first.')
    todo, best = search(variant, point, done, base)
    return todo, [] if todo else [best, *({**best, 'seed': seed} for seed in SEEDS[:2])]


def law(done, points=None):
    for point in points or law_points():
        for variant in LAW_ARMS:
            yield from chain(*law_runs(variant, point, done))


def law_fifth(done):
    if not os.path.exists(PREDICTION):
        fail('There is no prediction. Run python -m experiments.law --predict=True once law is finished.')
    return law(done, [fifth_point()])


def size_runs(done):
    """
    {width: {variant: runs}}: AdamW and hybrid at three widths and twice the length of language, three seeds.
    Width 32 is a point of the law; the others take the learning rate that the law found for them at a quarter
    of this length.
    """
    runs = {}
    for width, iters in ((32, 2 * ITERS), (64, ITERS // 2), (96, ITERS // 2)):
        factor = 2 * ITERS // iters
        found = {variant: law_runs(variant, (TEXT, width, iters), done) for variant in SIZE_ARMS}
        if any(todo for todo, _ in found.values()):
            fail('sizes begins where law ends. Run law first.')
        runs[width] = {variant: [{**run, 'max_iters': factor * run['max_iters'], 'warmup_iters': factor
                                  * run['warmup_iters']}
                                 for run in of_arm] for variant, (_, of_arm) in found.items()}
    return runs


def sizes(done):
    return [run for arms in size_runs(done).values() for of_arm in arms.values() for run in of_arm]

# -----------------------------------------------------------------------------
# S1 to S5, all with RMSNorm; warmup and decay as every search begins, or as the config has them


def settings(sgdw, adamw):
    for setting in ('S1', 'S2', 'S3', 'S4', 'S5'):
        for kind, name, config in (('sgdw', 'mSGDW', sgdw), ('adamw', 'AdamW', adamw)):
            yield kind, {'variant': f'{setting} {name}', 'config': config, 'setting': setting, 'norm': 'rms',
                         'dtype': 'float32', 'eval_interval': 0}


def ablation_searches(done):
    for kind, arm in settings('dnt_tiny', 'dnt_tiny_adamw'):
        lr, warmup, decay = START[kind]
        rest = {'dataset': TEXT, 'n_embd': 32, 'n_head': 1, 'max_iters': ITERS // 2,
                'warmup_iters': round(warmup * (ITERS // 2)), 'weight_decay': decay}
        yield walk(lambda lr: {**arm, **rest, 'learning_rate': lr}, [RATES[kind]], [[lr]], done, least=LEAST)


def ablation_cifar10_searches(done):
    for kind, arm in settings('vdnt_cifar10', 'vdnt_cifar10_adamw'):
        # 16 patches of a picture, a quarter of the work
        rest = {'patch_size': 8, 'epochs': 0.5, 'warmup_epochs': 0.1}
        yield walk(lambda lr: {**arm, **rest, 'learning_rate': lr}, [IMAGE_RATES[kind]],
                   [[IMAGE_START[kind]]], done, least=LEAST)


def grid_and_seeds(name, search_all):
    """Two studies: the search of each arm; what it found with all seeds, first all arms with the first."""
    def grid(done):
        return [run for todo, _ in search_all(done) for run in todo]

    def seeds(done):
        found = list(search_all(done))
        if any(todo for todo, _ in found):
            fail(f'{name} begins where {name}_grid ends. Run {name}_grid first.')
        return [{**best, 'seed': seed} for seed in SEEDS for _, best in found]
    return {f'{name}_grid': grid, name: seeds}


SEARCHES = {'language': language_searches, 'knobs': knob_searches, 'ablation': ablation_searches,
            'ablation_cifar10': ablation_cifar10_searches}
STUDIES = {'law': law, 'law_fifth': law_fifth, 'sizes': sizes}
for name, search_all in SEARCHES.items():
    STUDIES |= grid_and_seeds(name, search_all)

if __name__ == '__main__':
    print(__doc__.strip(), '\n\nRun them with: python -m experiments.reproduce NAME')
