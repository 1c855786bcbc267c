"""
What is compared: the arms of each question, the runs of the studies without a search, and the claims.

experiments/evidence.py is the protocol: it searches, scores and judges. Start there:

    python -m experiments.evidence --question=NAME      NAME is a question or a study of this file
"""

from itertools import product
from operator import itemgetter
from statistics import fmean

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
}
ROWNORM = ('mSGDW + row norm', 'AdamW + row norm')
CORE = (*ROWNORM, 'mSGDW', 'AdamW')
EMBED_DECAY = 0.1  # of embeddings with a rate of their own; not searched

# the axes of a search, and where it begins: rate, warmup (a share of the run), decay
AXES = ('learning_rate', 'embed_lr', 'warmup', 'weight_decay')
NO_WARMUP = ('learning_rate', 'embed_lr', 'weight_decay')  # the warmup stays where the search starts
RATES = {'sgdw': [0.2 * 2.0**i for i in range(-6, 7)], 'adamw': [0.004 * 2.0**i for i in range(-6, 7)]}
RATES['muon'] = RATES['rownorm'] = RATES['adamw']
WARMUPS = [0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9]
DECAYS = {'sgdw': [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], 'adamw': [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]}
DECAYS['muon'] = DECAYS['adamw']
EMBED_START = {'adamw': 0.008, 'rownorm': 0.004}
GPT2_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.7, 1e-3), 'muon': (0.004, 0.3, 0.1)}
DNT_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.3, 3e-3), 'muon': (0.008, 0.3, 0.1)}
IMAGE_START = {'adamw': (0.001, 0.1, 0.1), 'sgdw': (0.05, 0.1, 1e-3)}
START = {'GPT-2': GPT2_START, 'S1': GPT2_START, 'ViT': IMAGE_START, 'V-DNT': IMAGE_START}
# how many seeds a setting of a search has after each stage
TWO = (2,)
RACE = (2, 4, 8)

# -----------------------------------------------------------------------------
# questions: arms with a search of their own

def arm(network, optimizer, point, seeds, searched=AXES, start=None, stages=TWO):
    """
    What evidence.Arm takes. start: (rate, warmup, decay) or (rate, warmup, decay, rate of the embeddings),
    where the search begins; what is not searched stays there.
    """
    return {'network': network, 'optimizer': optimizer, 'point': point, 'seeds': seeds, 'searched': searched,
            'start': start, 'stages': stages}

def point(iters, width=64, dataset='stdlib', **more):
    return {'dataset': dataset, 'n_embd': width, 'n_head': width // 32, 'max_iters': iters, **more}

def match():
    """Does mSGDW match AdamW on L-DNT with row norm? By the plan in results/protocol.md."""
    for optimizer in ROWNORM:
        yield arm('L-DNT', optimizer, point(4500), range(301, 349), stages=RACE)

def places():
    """The same on GPT-2, and on S1 with RMSNorm, which differs from L-DNT by where its norms are alone."""
    starts = (0.4, 0.3, 1e-3, 0.008), (0.004, 0.5, 0.1, 0.004)
    for network in ('GPT-2', 'S1'):
        for optimizer, start in zip(ROWNORM, starts):
            yield arm(network, optimizer, point(4500), range(301, 325), start=start, stages=RACE)

def controls():
    """Is it the row norm or the rate of its own? And AdamW's beta2, hybrid, Muon: both rates are searched."""
    starts = {'AdamW + own rate': (0.008, 0.3, 0.1, 0.008), 'AdamW 0.99 + row norm': (0.004, 0.3, 0.3, 0.016),
              'AdamW 0.999 + row norm': (0.004, 0.3, 0.3, 0.016), 'hybrid': None, 'Muon': None}
    for optimizer, start in starts.items():
        yield arm('L-DNT', optimizer, point(4500), range(301, 317), AXES[:2], start)

def headline():
    """The tiny runs of the README at full length: two networks, two optimizers, with and without row norm."""
    for network, optimizer in product(('L-DNT', 'GPT-2'), CORE):
        yield arm(network, optimizer, point(4500), range(1, 17))

def parts():
    """Figure 7: S1 to S5 with row norm, at a third of the length."""
    for network, optimizer in product(('S1', 'S2', 'S3', 'S4', 'L-DNT'), ROWNORM):
        yield arm(network, optimizer, point(1600), range(1, 6))

def why():
    """The loss by token frequency, vocabulary 4,096 (from experiments.vocabulary), with headline's warmup."""
    starts = {'mSGDW + row norm': (0.4, 0.3, 3e-3, 0.008), 'mSGDW': (0.4, 0.3, 3e-3),
              'AdamW + row norm': (0.004, 0.3, 0.3, 0.008), 'AdamW': (0.008, 0.3, 0.1),
              'hybrid': (0.4, 0.3, 3e-3, 0.016)}
    for optimizer, start in starts.items():
        yield arm('L-DNT', optimizer, point(1600, dataset='stdlib_4096'), range(1, 6), NO_WARMUP, start)

def regime():
    """The paper's regime: 515 tokens for each parameter, at width 32. mSGDW has no warmup, as in table 5."""
    starts = {'mSGDW + row norm': (0.2, 0.0, 3e-3), 'AdamW + row norm': (0.004, 0.02, 0.1),
              'mSGDW': (0.2, 0.0, 1e-3), 'AdamW': (0.004, 0.02, 0.1)}
    for optimizer, start in starts.items():
        axes = NO_WARMUP if 'mSGDW' in optimizer else AXES
        yield arm('L-DNT', optimizer, point(32000, 32), range(1, 6), axes, start)

def sizes():
    """Three widths and four lengths."""
    for width, iters in ((32, 1600), (64, 1600), (128, 1600), (32, 800), (32, 3200), (32, 6400)):
        for optimizer in CORE:
            yield arm('L-DNT', optimizer, point(iters, width), range(1, 6))

def depth():
    """4, 12 and 24 layers; mSGDW without warmup, too."""
    for layers, network in product((4, 12, 24), ('L-DNT', 'S1')):
        at = point(800, 32, n_layer=layers)
        for optimizer in ROWNORM:
            yield arm(network, optimizer, at, range(1, 6))
        rate, _, _ = START.get(network, DNT_START)['sgdw']
        yield arm(network, ROWNORM[0], at, range(1, 6), NO_WARMUP, (rate, 0.0, 3e-3))

def pictures():
    """Table 1 in small: CIFAR-10, two epochs. The row norm is on patch matrix, class token and positions."""
    for network, optimizer in product(('V-DNT', 'ViT'), CORE):
        at = {'dataset': 'cifar10', 'patch_size': 8, 'epochs': 2.0}
        yield arm(network, optimizer, at, range(1, 6))

QUESTIONS = {f.__name__: f for f in (match, places, controls, headline, parts, why, regime, sizes, depth,
                                     pictures)}

# -----------------------------------------------------------------------------
# studies without a search: their runs, with the rates that earlier searches chose

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
    'DyT': {'setting': 'S1', 'norm': 'dyt'},
}
SMALL = {'n_layer': 6, 'n_head': 2, 'n_embd': 48, 'patch_size': 8, 'epochs': 1, 'dtype': 'float32',
         'eval_interval': 0, 'ckpt_interval': 0}  # a ViT for two cores

def sweep(variants, **more):
    for lr in (1e-2, 1e-1, 1e-3, 3e-2, 3e-1, 3e-3, 1.0, 3e-4, 1e-4):  # the middle of the range comes first
        for variant, flags in variants.items():
            yield {'config': 'nft_cifar10', 'variant': variant, **SMALL, **flags, **more, 'learning_rate': lr}

def stability():
    """The second report: which variants of a small ViT train at which rates, one epoch."""
    return sweep(VARIANTS)

def weights():
    """The same with PyTorch's own initial weights in place of Xavier's, where that makes a difference."""
    return sweep({variant: flags for variant, flags in VARIANTS.items() if 'init' not in flags}, init='torch')

def decay():
    """Coupled decay, as in torch's SGD, against the decoupled one of mSGDW, where decay counts."""
    for lr, weight_decay, (name, optimizer) in product(
            (1e-1, 3e-1), (1e-3, 1e-2), (('coupled', 'sgd'), ('decoupled', 'sgdw'))):
        yield {'config': 'nft_cifar10', 'variant': f'{name}, {weight_decay:g}', **SMALL, **VARIANTS['S5'],
               'optimizer': optimizer, 'weight_decay': weight_decay, 'learning_rate': lr}

def cifar10():
    """Four configs at full length. The test set is read once a run."""
    of_adamw = dict.fromkeys(('vdnt_cifar10_adamw', 'vit_cifar10'), 0.001)
    of_sgdw = dict.fromkeys(('vdnt_cifar10', 'vit_cifar10_sgdw'), 0.05)
    for seed, (config, rate) in product((1, 2, 3), [*of_sgdw.items(), *of_adamw.items()]):
        yield {'config': config, 'seed': seed, 'learning_rate': rate}

def cifar10_settings():
    """Figure 6 on pictures: S1 to S5 with RMSNorm, half an epoch."""
    of_optimizer = {'mSGDW': ('vdnt_cifar10', 0.05), 'AdamW': ('vdnt_cifar10_adamw', 0.001)}
    for seed, setting in product((1, 2, 3), ('S1', 'S2', 'S3', 'S4', 'S5')):
        for optimizer, (config, rate) in of_optimizer.items():
            yield {'variant': f'{setting} {optimizer}', 'config': config, 'setting': setting, 'norm': 'rms',
                   'dtype': 'float32', 'eval_interval': 0, 'patch_size': 8, 'epochs': 0.5,
                   'warmup_epochs': 0.1, 'learning_rate': rate, 'seed': seed}

STUDIES = {f.__name__: f for f in (stability, weights, decay, cifar10, cifar10_settings)}

# -----------------------------------------------------------------------------
# claims

PLAIN = ('mSGDW', 'AdamW')
LADDER = {'S1': 'S1', 'S2': 'S2', 'S3': 'S3', 'S4': 'S4', 'S5': 'L-DNT'}

def claim(page, words, study, plus, minus, kind='less', metric=itemgetter('val_loss')):
    """
    The sum of the losses of plus minus that of minus. kind: 'less', it is claimed to be below 0; 'match',
    within the margin of 0. metric: the loss of a row of the log.
    """
    return {'page': page, 'words': words, 'study': study, 'plus': plus, 'minus': minus, 'kind': kind,
            'metric': metric}

def matches(page, words, study, network, optimizers):
    """The gap on a network is 0."""
    ours, theirs = optimizers
    return claim(page, words, study, [f'{network} {ours}'], [f'{network} {theirs}'], 'match')

def smaller(page, words, study, network, other, optimizers):
    """The gap is smaller on a network than on another."""
    ours, theirs = optimizers
    return claim(page, words, study, [f'{network} {ours}', f'{other} {theirs}'],
                 [f'{network} {theirs}', f'{other} {ours}'])

def tenths(first, last):
    """The loss on some tenths of the text, the first has the most frequent tokens."""
    return lambda row: fmean(row['by_frequency'][first - 1:last])

def claims():
    """All claims of the pages, in the order of the forest plot."""
    page, gap = 'language', 'mSGDW matches AdamW on'
    for words, optimizers, of_dnt in (('plain', PLAIN, 'headline'), ('row norm', ROWNORM, 'match')):
        yield matches(page, f'{words}: {gap} L-DNT', of_dnt, 'L-DNT', optimizers)
        yield matches(page, f'{words}: {gap} GPT-2', 'headline', 'GPT-2', optimizers)
        yield smaller(page, f'{words}: the gap is smaller on L-DNT than on GPT-2', 'headline', 'L-DNT',
                      'GPT-2', optimizers)
        for name in optimizers:
            yield claim(page, f'L-DNT beats GPT-2, both with {name}', 'headline', [f'L-DNT {name}'],
                        [f'GPT-2 {name}'])
        yield claim(page, f'{words}: L-DNT with mSGDW beats GPT-2 with AdamW', 'headline',
                    [f'L-DNT {optimizers[0]}'], [f'GPT-2 {optimizers[1]}'])
    rownorm, plain, adamw = ['L-DNT mSGDW + row norm'], ['L-DNT mSGDW'], ['L-DNT AdamW']
    yield claim(page, 'mSGDW with row norm beats plain AdamW on L-DNT', 'headline', rownorm, adamw)
    for name, network in product(PLAIN, ('L-DNT', 'GPT-2')):
        yield claim(page, f'the row norm helps {name} on {network}', 'headline',
                    [f'{network} {name} + row norm'], [f'{network} {name}'])
    for words, study in (('515 tokens per weight', 'regime'), ('4,096 tokens', 'why')):
        yield matches(page, f'{words}, plain: {gap} L-DNT', study, 'L-DNT', PLAIN)
        yield matches(page, f'{words}, row norm: {gap} L-DNT', study, 'L-DNT', ROWNORM)
        yield claim(page, f'{words}: mSGDW with row norm beats plain AdamW', study, rownorm, adamw)
    yield matches(page, f'{words}: AdamW on the embeddings closes the gap', study, 'L-DNT',
                  ('hybrid', 'AdamW'))
    yield claim(page, f'{words}: AdamW on the embeddings helps mSGDW', study, ['L-DNT hybrid'], plain)
    yield claim(page, f'{words}: AdamW is ahead on the rarer tokens, tenths 7 to 10', study, adamw, plain,
                metric=tenths(7, 10))
    yield claim(page, f'{words}: the row norm helps mSGDW on the rarest tenth', study, rownorm, plain,
                metric=tenths(10, 10))

    page = 'ablation'
    for name, network in LADDER.items():
        yield matches(page, f'ladder, {name}: mSGDW matches AdamW', 'parts', network, ROWNORM)
    for other, name in ('S1', 'S5'), ('S1', 'S2'), ('S2', 'S3'), ('S3', 'S4'), ('S4', 'S5'):
        yield smaller(page, f'ladder: the gap is smaller in {name} than in {other}', 'parts', LADDER[name],
                      LADDER[other], ROWNORM)
    for name in ROWNORM:
        yield claim(page, f'ladder: S2 is like S1 with {name}', 'parts', [f'S2 {name}'], [f'S1 {name}'],
                    'match')
        yield claim(page, f'ladder: S5 is like S4 with {name}', 'parts', [f'L-DNT {name}'], [f'S4 {name}'],
                    'match')
        yield claim(page, f'InputNorm helps {name} (S2 to S3)', 'parts', [f'S3 {name}'], [f'S2 {name}'])

    page, loss = 'images', itemgetter('test_loss')
    dnt, dnt_adamw, vit, vit_adamw = 'vdnt_cifar10', 'vdnt_cifar10_adamw', 'vit_cifar10_sgdw', 'vit_cifar10'
    for words, kind, ours, theirs in (('mSGDW matches AdamW on V-DNT', 'match', dnt, dnt_adamw),
                                      ('mSGDW matches AdamW on ViT', 'match', vit, vit_adamw),
                                      ('V-DNT beats ViT, both with mSGDW', 'less', dnt, vit),
                                      ('V-DNT beats ViT, both with AdamW', 'less', dnt_adamw, vit_adamw)):
        yield claim(page, f'CIFAR-10: {words}', 'cifar10', [ours], [theirs], kind, loss)
    for other in ('S1', 'S2', 'S4', 'S5'):
        yield claim(page, f'CIFAR-10: S3 is better than {other} with mSGDW', 'cifar10_settings',
                    ['S3 mSGDW'], [f'{other} mSGDW'])

if __name__ == '__main__':
    print(__doc__.strip())
