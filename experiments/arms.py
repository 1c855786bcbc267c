"""
What is compared: the arms of each question, the runs of the studies without a search, and the claims.

python -m experiments.evidence --question=NAME runs a question or a study of this file by the protocol.
"""

from itertools import product
from operator import itemgetter
from statistics import fmean

NETWORKS = {
    'GPT-2': {'config': 'dnt_tiny', 'setting': 'S1', 'norm': 'layer'},
    'L-DNT': {'config': 'dnt_tiny', 'setting': 'S5', 'norm': 'rms'},  # S5 among S1 to S4
    **{s: {'config': 'dnt_tiny', 'setting': s, 'norm': 'rms'} for s in ('S1', 'S2', 'S3', 'S4')},
    'ViT': {'config': 'vdnt_cifar10', 'setting': 'S1', 'norm': 'layer'},
    'V-DNT': {'config': 'vdnt_cifar10', 'setting': 'S5', 'norm': 'rms'}}
OPTIMIZERS = {
    'AdamW': {'optimizer': 'adamw', 'embed_optimizer': 'auto'},
    'AdamW + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm'},
    'mSGDW': {'optimizer': 'sgdw', 'embed_optimizer': 'auto'},
    'mSGDW + row norm': {'optimizer': 'sgdw', 'embed_optimizer': 'rownorm'},
    'AdamW + own rate': {'optimizer': 'adamw', 'embed_optimizer': 'adamw'},
    'AdamW 0.99 + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm', 'beta2': 0.99},
    'AdamW 0.999 + row norm': {'optimizer': 'adamw', 'embed_optimizer': 'rownorm', 'beta2': 0.999},
    'hybrid': {'optimizer': 'sgdw', 'embed_optimizer': 'adamw'},
    'Muon': {'optimizer': 'muon', 'embed_optimizer': 'adamw', 'momentum': 0.95}}
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
GPT2_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.7, 1e-3)}
DNT_START = {'adamw': (0.004, 0.5, 0.1), 'sgdw': (0.4, 0.3, 3e-3), 'muon': (0.008, 0.3, 0.1)}
IMAGE_START = {'adamw': (0.001, 0.1, 0.1), 'sgdw': (0.05, 0.1, 1e-3)}
START = {'GPT-2': GPT2_START, 'S1': GPT2_START, 'ViT': IMAGE_START, 'V-DNT': IMAGE_START}
# how many seeds a setting of a search has after each stage
TWO, RACE = (2,), (2, 4, 8)

# -----------------------------------------------------------------------------
# questions: arms with a search of their own

class Arm:
    """
    A network and an optimizer at a point: a data set, a width, a length. A setting has a value on each axis.
    start: (rate, warmup, decay) or (rate, warmup, decay, rate of the embeddings); what is not searched stays.
    """

    def __init__(self, network, optimizer, point, seeds, searched=AXES, start=None, stages=TWO):
        self.network, self.optimizer, self.point, self.seeds = network, optimizer, point, seeds
        self.stages, self.name = stages, f'{network} {optimizer}'
        kind, of_embeddings = OPTIMIZERS[optimizer]['optimizer'], OPTIMIZERS[optimizer]['embed_optimizer']
        rate, warmup, decay, *embed = start or START.get(network, DNT_START)[kind]
        embed_lr = embed[0] if embed else EMBED_START.get(of_embeddings, 0.0)
        self.start = rate, embed_lr, warmup, decay
        axes = RATES[kind], RATES.get(of_embeddings, [0.0]), WARMUPS, DECAYS[kind]
        self.axes = [axis if name in searched else [at] for name, axis, at in zip(AXES, axes, self.start)]

    def run(self, setting):
        """The run of a setting without a seed. It states all that arms differ in."""
        rate, embed_lr, warmup, decay = setting
        if 'epochs' in self.point:
            length = {'warmup_epochs': round(warmup * self.point['epochs'], 4)}
        else:
            length = {'warmup_iters': round(warmup * self.point['max_iters'])}
        return {'variant': self.name, **NETWORKS[self.network], **OPTIMIZERS[self.optimizer], **self.point,
                'min_lr': 0.0, 'eval_interval': 0, 'dtype': 'float32', 'learning_rate': rate,
                'embed_lr': embed_lr, 'embed_weight_decay': EMBED_DECAY if embed_lr else -1.0,
                **length, 'weight_decay': decay}

    def setting(self, run):
        """The setting of a run of this arm, or None."""
        length = self.point.get('max_iters') or self.point['epochs']
        share = run.get('warmup_iters', run.get('warmup_epochs')) / length
        warmup = min(self.axes[2], key=lambda warmup: abs(warmup - share))
        found = run['learning_rate'], run['embed_lr'], warmup, run['weight_decay']
        on_axes = all(value in axis for value, axis in zip(found, self.axes))
        return found if on_axes and {**self.run(found), 'seed': run['seed']} == run else None

    def beside(self, setting):
        """The neighbours of a setting: one step down and one up on each axis."""
        near = []
        for place, axis in enumerate(self.axes):
            i = axis.index(setting[place])
            for value in axis[max(0, i - 1):i] + axis[i + 1:i + 2]:
                near.append((*setting[:place], value, *setting[place + 1:]))
        return near

def point(iters, width=64, dataset='stdlib', **more):
    return {'dataset': dataset, 'n_embd': width, 'n_head': width // 32, 'max_iters': iters, **more}

def match():
    """Does mSGDW match AdamW on L-DNT with row norm? By the plan in results/protocol.md."""
    for optimizer in ROWNORM:
        yield Arm('L-DNT', optimizer, point(4500), range(301, 349), stages=RACE)

def places():
    """The same on GPT-2, and on S1 with RMSNorm, which differs from L-DNT by where its norms are alone."""
    starts = (0.4, 0.3, 1e-3, 0.008), (0.004, 0.5, 0.1, 0.004)
    for network in ('GPT-2', 'S1'):
        for optimizer, start in zip(ROWNORM, starts):
            yield Arm(network, optimizer, point(4500), range(301, 325), start=start, stages=RACE)

def controls():
    """Is it the row norm or the rate of its own? And AdamW's beta2, hybrid, Muon: both rates are searched."""
    starts = {'AdamW + own rate': (0.008, 0.3, 0.1, 0.008), 'AdamW 0.99 + row norm': (0.004, 0.3, 0.3, 0.016),
              'AdamW 0.999 + row norm': (0.004, 0.3, 0.3, 0.016), 'hybrid': None, 'Muon': None}
    for optimizer, start in starts.items():
        yield Arm('L-DNT', optimizer, point(4500), range(301, 317), AXES[:2], start)

def headline():
    """The tiny runs of the README at full length: two networks, two optimizers, with and without row norm."""
    for network, optimizer in product(('L-DNT', 'GPT-2'), CORE):
        searched_by_match = network == 'L-DNT' and optimizer in ROWNORM
        stages = RACE if searched_by_match else TWO
        yield Arm(network, optimizer, point(4500), range(1, 17), stages=stages)

def parts():
    """Figure 7: S1 to S5 with row norm, at a third of the length."""
    for network, optimizer in product(('S1', 'S2', 'S3', 'S4', 'L-DNT'), ROWNORM):
        yield Arm(network, optimizer, point(1600), range(1, 6))

def why():
    """The loss by token frequency, vocabulary 4,096 (from experiments.vocabulary), with headline's warmup."""
    starts = {'mSGDW + row norm': (0.4, 0.3, 3e-3, 0.008), 'mSGDW': (0.4, 0.3, 3e-3),
              'AdamW + row norm': (0.004, 0.3, 0.3, 0.008), 'AdamW': (0.008, 0.3, 0.1),
              'hybrid': (0.4, 0.3, 3e-3, 0.016)}
    for optimizer, start in starts.items():
        yield Arm('L-DNT', optimizer, point(1600, dataset='stdlib_4096'), range(1, 6), NO_WARMUP, start)

def regime():
    """The paper's regime: 515 tokens for each parameter, at width 32. mSGDW has no warmup, as in table 5."""
    starts = {'mSGDW + row norm': (0.2, 0.0, 3e-3), 'AdamW + row norm': (0.004, 0.02, 0.1),
              'mSGDW': (0.2, 0.0, 1e-3), 'AdamW': (0.004, 0.02, 0.1)}
    for optimizer, start in starts.items():
        axes = NO_WARMUP if 'mSGDW' in optimizer else AXES
        yield Arm('L-DNT', optimizer, point(32000, 32), range(1, 6), axes, start)

def sizes():
    """Three widths and four lengths."""
    for width, iters in ((32, 1600), (64, 1600), (128, 1600), (32, 800), (32, 3200), (32, 6400)):
        for optimizer in CORE:
            yield Arm('L-DNT', optimizer, point(iters, width), range(1, 6))

def depth():
    """4, 12 and 24 layers; mSGDW without warmup, too."""
    for layers, network in product((4, 12, 24), ('L-DNT', 'S1')):
        at = point(800, 32, n_layer=layers)
        for optimizer in ROWNORM:
            yield Arm(network, optimizer, at, range(1, 6))
        rate, _, _ = START.get(network, DNT_START)['sgdw']
        yield Arm(network, ROWNORM[0], at, range(1, 6), NO_WARMUP, (rate, 0.0, 3e-3))

def pictures():
    """Table 1 in small: CIFAR-10, two epochs. The row norm is on patch matrix, class token and positions."""
    for network, optimizer in product(('V-DNT', 'ViT'), CORE):
        at = {'dataset': 'cifar10', 'patch_size': 8, 'epochs': 2.0}
        yield Arm(network, optimizer, at, range(1, 6))

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
    'DyT': {'setting': 'S1', 'norm': 'dyt'}}
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
    rates = {'vdnt_cifar10': 0.05, 'vit_cifar10_sgdw': 0.05, 'vdnt_cifar10_adamw': 0.001,
             'vit_cifar10': 0.001}
    for seed, (config, rate) in product((1, 2, 3), rates.items()):
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

def claim(words, study, plus, minus, kind='less', metric=itemgetter('val_loss')):
    """
    The sum of the losses of plus minus that of minus. kind: 'less', it is claimed to be below 0; 'match',
    within the margin of 0. metric: the loss of a row of the log.
    """
    return {'words': words, 'study': study, 'plus': plus, 'minus': minus, 'kind': kind, 'metric': metric}

def matches(words, study, network, optimizers):
    """The gap on a network is 0."""
    ours, theirs = optimizers
    return claim(words, study, [f'{network} {ours}'], [f'{network} {theirs}'], 'match')

def smaller(words, study, network, other, optimizers):
    """The gap is smaller on a network than on another."""
    ours, theirs = optimizers
    return claim(words, study, [f'{network} {ours}', f'{other} {theirs}'],
                 [f'{network} {theirs}', f'{other} {ours}'])

def tenths(first, last):
    """The loss on some tenths of the text, the first has the most frequent tokens."""
    return lambda row: fmean(row['by_frequency'][first - 1:last])

def on_language():
    gap, long = 'mSGDW matches AdamW on', 'headline'
    for words, optimizers, of_dnt in (('plain', PLAIN, long), ('row norm', ROWNORM, 'match')):
        yield matches(f'{words}: {gap} L-DNT', of_dnt, 'L-DNT', optimizers)
        yield matches(f'{words}: {gap} GPT-2', long, 'GPT-2', optimizers)
        yield smaller(f'{words}: the gap is smaller on L-DNT than on GPT-2', long, 'L-DNT', 'GPT-2',
                      optimizers)
        for name in optimizers:
            yield claim(f'L-DNT beats GPT-2, both with {name}', long, [f'L-DNT {name}'], [f'GPT-2 {name}'])
        ours, theirs = optimizers
        yield claim(f'{words}: L-DNT with mSGDW beats GPT-2 with AdamW', long, [f'L-DNT {ours}'],
                    [f'GPT-2 {theirs}'])
    rownorm, plain, adamw = ['L-DNT mSGDW + row norm'], ['L-DNT mSGDW'], ['L-DNT AdamW']
    yield claim('mSGDW with row norm beats plain AdamW on L-DNT', long, rownorm, adamw)
    for name, network in product(PLAIN, ('L-DNT', 'GPT-2')):
        arm = f'{network} {name}'
        yield claim(f'the row norm helps {name} on {network}', long, [f'{arm} + row norm'], [arm])
    for words, study in (('515 tokens per weight', 'regime'), ('4,096 tokens', 'why')):
        yield matches(f'{words}, plain: {gap} L-DNT', study, 'L-DNT', PLAIN)
        yield matches(f'{words}, row norm: {gap} L-DNT', study, 'L-DNT', ROWNORM)
        yield claim(f'{words}: mSGDW with row norm beats plain AdamW', study, rownorm, adamw)
    yield matches(f'{words}: AdamW on the embeddings closes the gap', study, 'L-DNT', ('hybrid', 'AdamW'))
    yield claim(f'{words}: AdamW on the embeddings helps mSGDW', study, ['L-DNT hybrid'], plain)
    yield claim(f'{words}: AdamW is ahead on the rarer tokens, tenths 7 to 10', study, adamw, plain,
                metric=tenths(7, 10))
    yield claim(f'{words}: the row norm helps mSGDW on the rarest tenth', study, rownorm, plain,
                metric=tenths(10, 10))

def on_ablation():
    ladder = {'S1': 'S1', 'S2': 'S2', 'S3': 'S3', 'S4': 'S4', 'S5': 'L-DNT'}
    for name, network in ladder.items():
        yield matches(f'ladder, {name}: mSGDW matches AdamW', 'parts', network, ROWNORM)
    for other, name in ('S1', 'S5'), ('S1', 'S2'), ('S2', 'S3'), ('S3', 'S4'), ('S4', 'S5'):
        words = f'ladder: the gap is smaller in {name} than in {other}'
        yield smaller(words, 'parts', ladder[name], ladder[other], ROWNORM)
    for name in ROWNORM:
        s1, s2, s3, s4, s5 = ([f'{network} {name}'] for network in ladder.values())
        yield claim(f'ladder: S2 is like S1 with {name}', 'parts', s2, s1, 'match')
        yield claim(f'ladder: S5 is like S4 with {name}', 'parts', s5, s4, 'match')
        yield claim(f'InputNorm helps {name} (S2 to S3)', 'parts', s3, s2)

def on_images():
    loss, said = itemgetter('test_loss'), 'CIFAR-10: '
    dnt, dnt_adamw, vit, vit_adamw = (
        [name] for name in ('vdnt_cifar10', 'vdnt_cifar10_adamw', 'vit_cifar10_sgdw', 'vit_cifar10'))
    yield claim(said + 'mSGDW matches AdamW on V-DNT', 'cifar10', dnt, dnt_adamw, 'match', loss)
    yield claim(said + 'mSGDW matches AdamW on ViT', 'cifar10', vit, vit_adamw, 'match', loss)
    yield claim(said + 'V-DNT beats ViT, both with mSGDW', 'cifar10', dnt, vit, 'less', loss)
    yield claim(said + 'V-DNT beats ViT, both with AdamW', 'cifar10', dnt_adamw, vit_adamw, 'less', loss)
    for other in ('S1', 'S2', 'S4', 'S5'):
        yield claim(said + f'S3 is better than {other} with mSGDW', 'cifar10_settings', ['S3 mSGDW'],
                    [f'{other} mSGDW'])

def claims():
    """All claims of the pages, in the order of the forest plot."""
    for page, of_page in (('language', on_language), ('ablation', on_ablation), ('images', on_images)):
        for said in of_page():
            yield {'page': page, **said}

if __name__ == '__main__':
    print(__doc__.strip())
