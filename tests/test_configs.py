"""The files in config/ against the tables of the paper and of the second report."""

import pytest
import torch

from model import GPT, NORMS, SETTINGS, GPTConfig, ViT, ViTConfig
from support.normfree import build
from tests.common import ROOT, load_config

# width, heads, depth, batch, parameters, AdamW's rate for GPT-2; table 1: AdamW and mSGDW of both
TABLE_3_AND_5 = {
    'small': (768, 12, 12, 480, 124.4, 6e-4, {'gpt2': (2.867, 2.906), 'dnt': (2.863, 2.849)}),
    'large': (1280, 20, 36, 512, 773.6, 2.5e-4, {'gpt2': (2.492, 2.544), 'dnt': (2.481, 2.503)}),
    'xl': (1536, 24, 48, 512, 1438.0, 1.5e-4, {'gpt2': (2.435, 2.472), 'dnt': (2.396, 2.408)})}

CONFIGS = sorted((ROOT / 'config').glob('*.py'))


@pytest.mark.parametrize('path', [p for p in CONFIGS if 'image_size' not in p.read_text()],
                         ids=lambda path: path.stem)
def test_config_has_the_numbers_of_its_row(path):
    text, c = path.read_text(), load_config(path)
    for key in ('optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', 'warmup_iters'):
        assert f'\n{key} = ' in text, key
    arch, size = path.stem.split('_')[:2]
    assert path.stem.split('_')[2:] in ([], [c['optimizer']])
    assert c['out_dir'] == f'out/{path.stem}'
    norms = dict(setting='S5', norm='rms') if arch == 'dnt' else dict(setting='S1', norm='layer')
    assert c == c | norms | dict.fromkeys(NORMS, 'auto')
    assert c == c | dict(bias=False, beta1=0.9, beta2=0.95, momentum=0.9)
    with torch.device('meta'):
        model = GPT(GPTConfig(**SETTINGS[c['setting']], **{k: c[k] for k in (
            'n_layer', 'n_head', 'n_embd', 'block_size', 'norm', 'bias')}))
    if size in TABLE_3_AND_5:
        C, H, L, batch, params, gpt2_lr, losses = TABLE_3_AND_5[size]
        assert c == c | dict(n_embd=C, n_head=H, n_layer=L, global_batch_size=batch)
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - params) < 0.1
        sgdw = c['optimizer'] == 'sgdw'
        lr = 1.0 if sgdw else 6e-4 if arch == 'dnt' else gpt2_lr
        assert c == c | dict(learning_rate=lr, min_lr=6e-5, weight_decay=1e-4 if sgdw else 0.1,
                             warmup_iters=0 if sgdw else 2000, max_iters=200000, grad_clip=1.0,
                             block_size=1024, dropout=0.0)
        assert f'(table 1): {losses[arch][sgdw]}. not run here.' in text
        assert f'= {batch * 1024:,} tokens per update' in text
        assert f'{batch * 1024 * 200000 / 1e9:.1f}B tokens' in text
    else:  # the tiny ones share model size, data and iterations
        same = ('dataset', 'n_layer', 'n_head', 'n_embd', 'block_size', 'global_batch_size', 'max_iters',
                'eval_tokens', 'seed')
        first = load_config(ROOT / 'config/dnt_tiny.py')
        assert size == 'tiny'
        assert c == c | {k: first[k] for k in same}


# width, heads, depth, patch, drop path, rate and decay of mSGDW, parameters, top-1 of table 1
TABLE_3_AND_4 = {
    'large': (1024, 16, 24, 16, 0.1, 0.5, 2e-4, {'vdnt': 304305128, 'vit': 304326632},
              {'vdnt': {'sgdw': 81.5, 'adamw': 82.1}, 'vit': {'sgdw': 78.2, 'adamw': 81.7}}),
    'huge': (1280, 16, 32, 14, 0.5, 0.1, 1e-3, {'vdnt': 632009960, 'vit': 632045800},
             {'vdnt': {'sgdw': 81.2, 'adamw': 81.9}, 'vit': {'sgdw': 73.5, 'adamw': 80.8}}),
}


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.stem.startswith(('vdnt', 'vit'))],
                         ids=lambda path: path.stem)
def test_vision_config_has_the_numbers_of_its_row(path):
    text, c = path.read_text(), load_config(path, 'train_vit.py')
    for key in ('optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', 'warmup_epochs', 'epochs'):
        assert f'\n{key} = ' in text, key
    arch, size = path.stem.split('_')[:2]
    sgdw = c['optimizer'] == 'sgdw'
    assert path.stem.split('_')[2:] == ([] if sgdw == (arch == 'vdnt') else [c['optimizer']])
    assert c['out_dir'] == f'out/{path.stem}'
    norms = dict(setting='S5', norm='rms') if arch == 'vdnt' else dict(setting='S1', norm='layer')
    assert c == c | norms | dict.fromkeys(NORMS, 'auto')
    assert c == c | dict(bias=True, beta1=0.9, beta2=0.99, momentum=0.9)
    with torch.device('meta'):
        model = ViT(ViTConfig(**SETTINGS[c['setting']], **{k: c[k] for k in (
            'n_layer', 'n_head', 'n_embd', 'patch_size', 'image_size', 'norm', 'bias')}))
    if size in TABLE_3_AND_4:
        C, H, L, P, drop, lr, decay, params, top1 = TABLE_3_AND_4[size]
        assert c == c | dict(n_embd=C, n_head=H, n_layer=L, patch_size=P, drop_path=drop)
        assert sum(p.numel() for p in model.parameters()) == params[arch]
        assert f'{params[arch] / 1e6:.1f}M' in text
        lr, decay = (lr, decay) if sgdw else (1e-3, 0.1)
        assert c == c | dict(learning_rate=lr, weight_decay=decay, min_lr=1e-8, epochs=150, warmup_epochs=60,
                             global_batch_size=1024, grad_clip=0, dropout=0, image_size=224, randaugment=9,
                             mixup=0.8, cutmix=1.0, label_smoothing=0.1, dataset='imagenet')
        assert f'(table 1): {top1[arch][c["optimizer"]]}. not run here.' in text
    else:  # those for CIFAR-10 share all but norms and optimizer
        first = load_config(ROOT / 'config/vdnt_cifar10.py', 'train_vit.py')
        own = {'out_dir', 'setting', 'norm', 'optimizer', 'learning_rate', 'weight_decay'}
        assert size == 'cifar10'
        assert c == first | {k: c[k] for k in own}


def test_counts_of_the_second_report():
    """Its ViT-S: 21.33M with LayerNorm, 21.31M without, 21.34M standardized, at 10 classes."""
    for setting, covers, count in (('S1', 'none', 21328522), ('NoNorm', 'none', 21309322),
                                   ('NoNorm', 'all', 21336970)):
        c = load_config(ROOT / 'config/nft_cifar10.py', 'train_vit.py')
        keys = ('norm', 'bias', 'qkv_bias', 'n_layer', 'n_head', 'n_embd', 'image_size', 'patch_size')
        with torch.device('meta'):
            model = build(ViT, ViTConfig, SETTINGS[setting] | {k: c[k] for k in keys} | dict(
                n_classes=10, weight_standardization=covers))
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize('name,image,patch,batch', [('nft_cifar10', 32, 4, 64),
                                                    ('nft_tinyimagenet', 64, 8, 256),
                                                    ('nfnet_cifar10', 32, 4, 64)])
def test_configs_of_the_second_report(name, image, patch, batch):
    c = load_config(ROOT / f'config/{name}.py', 'train_vit.py')
    assert c == c | dict(optimizer='sgd', momentum=0.9, weight_decay=2e-5, epochs=100, warmup_epochs=0,
                         global_batch_size=batch, image_size=image, grad_clip=0, out_dir=f'out/{name}',
                         randaugment=0, mixup=0, cutmix=0, label_smoothing=0)
    if name == 'nfnet_cifar10':
        assert c == c | dict(arch='nfnet', learning_rate=0.025, agc=0.01, drop_path=0.25, dropout=0.2)
    else:
        assert c == c | dict(setting='S1', norm='layer', patch_size=patch, drop_path=0, dropout=0)
