"""Config files against the tables of the papers, how they inherit, and configurator.py."""

import ast
import os
import re
from dataclasses import fields
from functools import cache

import pytest
import torch

from configurator import configure
from experiments.evidence import read
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.normfree import build
from tests.common import ROOT, finish, python

OURS = sorted(path.stem for path in (ROOT / 'config').glob('[a-z]*.py'))
IMAGES = [name for name in OURS if re.match('vdnt|vit|nft|nfnet|finetune_vit', name)]
PAPER = [name for name in OURS if re.match('dnt|gpt2|vdnt|vit', name)]
MUST_STATE = {'out_dir', 'optimizer', 'learning_rate', 'weight_decay', 'global_batch_size'}
WARMUP = {'warmup_iters', 'warmup_epochs'}
NORMS = tuple(SETTINGS['S5'])


def defaults(script):
    """The keys of a script, read from its source: the constants above its call of configure."""
    keys = {}
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.Assign):
            if isinstance(node.value, ast.Call):
                return keys
            keys[node.targets[0].id] = ast.literal_eval(node.value)


def text_of(name):
    return (ROOT / f'config/{name}.py').read_text()


def bases_of(name):
    return re.findall(r'(?m)^from config\.(\w+) import \*$', text_of(name))


def script_of(name):
    return 'train_vit.py' if name in IMAGES else 'train_gpt.py'


@cache
def resolve(name):
    """What a train script makes of a config of ours."""
    return configure(defaults(script_of(name)), [str(ROOT / f'config/{name}.py')])


def assigned(name):
    """The names that a file itself assigns."""
    return {target.id for node in ast.parse(text_of(name)).body if isinstance(node, ast.Assign)
            for target in ast.walk(node) if isinstance(target, ast.Name)}


# -----------------------------------------------------------------------------
# our files

@pytest.mark.parametrize('name', OURS)
def test_a_config_of_ours_states_what_it_must(name):
    text, own, c = text_of(name), assigned(name), resolve(name)
    assert own >= MUST_STATE and own & WARMUP
    assert c['out_dir'] == f'out/{name}' and 0 <= c['min_lr'] <= c['learning_rate']
    assert f'{script_of(name)} config/{name}.py' in text  # the launch line
    for base in bases_of(name):  # it inherits one level and states what differs, which the base states too
        assert not bases_of(base)
        assert len(text.splitlines()) <= 14 and own <= assigned(base)
        repeated = {key for key in own - MUST_STATE - WARMUP if c[key] == resolve(base)[key]}
        assert repeated <= {'n_head'}  # part of the line with the whole shape
    if c['init_from'] != 'scratch':  # what it would state, a resumed run would compare with the checkpoint
        network = {f.name for f in fields(ViTConfig if name in IMAGES else GPTConfig)} | {'setting'}
        assert own & network <= {'dropout', 'drop_path'}
        assert c['init_from'] in ('gpt2', 'timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k')


def all_equal(config, **values):
    assert {key: config[key] for key in values} == values


TABLE_3_AND_5 = {  # width, heads, depth, batch, GPT-2's AdamW rate, losses of table 1: AdamW, mSGDW
    'small': (768, 12, 12, 480, 6e-4, {'gpt2': (2.867, 2.906), 'dnt': (2.863, 2.849)}),
    'large': (1280, 20, 36, 512, 2.5e-4, {'gpt2': (2.492, 2.544), 'dnt': (2.481, 2.503)}),
    'xl': (1536, 24, 48, 512, 1.5e-4, {'gpt2': (2.435, 2.472), 'dnt': (2.396, 2.408)})}
TABLE_3_AND_4 = {  # width, heads, depth, patch, drop path, rate and decay of mSGDW, parameters, table 1
    'large': (1024, 16, 24, 16, 0.1, 0.5, 2e-4, {'vdnt': 304305128, 'vit': 304326632},
              {'vdnt': {'sgdw': 81.5, 'adamw': 82.1}, 'vit': {'sgdw': 78.2, 'adamw': 81.7}}),
    'huge': (1280, 16, 32, 14, 0.5, 0.1, 1e-3, {'vdnt': 632009960, 'vit': 632045800},
             {'vdnt': {'sgdw': 81.2, 'adamw': 81.9}, 'vit': {'sgdw': 73.5, 'adamw': 80.8}})}
ARMS = {'dnt_tiny': 'L-DNT mSGDW + row norm', 'dnt_tiny_plain': 'L-DNT mSGDW',
        'dnt_tiny_adamw': 'L-DNT AdamW', 'gpt2_tiny': 'GPT-2 AdamW', 'gpt2_tiny_sgdw': 'GPT-2 mSGDW'}


def count_parameters(c):
    Network, Config = (ViT, ViTConfig) if 'patch_size' in c else (GPT, GPTConfig)
    known = {f.name for f in fields(Config)} - {*NORMS, 'n_classes', 'vocab_size'}
    with torch.device('meta'):
        model = Network(Config(**SETTINGS[c['setting']], **{k: c[k] for k in known & c.keys()}))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('name', PAPER)
def test_config_has_the_numbers_of_its_row(name):
    c, text, (arch, size) = resolve(name), text_of(name), name.split('_')[:2]
    sgdw, dnt, images = c['optimizer'] == 'sgdw', arch in ('dnt', 'vdnt'), name in IMAGES
    setting, norm = ('S5', 'rms') if dnt else ('S1', 'layer')
    all_equal(c, setting=setting, norm=norm, bias=images, beta1=0.9, beta2=0.99 if images else 0.95,
              momentum=0.9, **{n: 'auto' for n in NORMS})
    if not images and size != 'tiny':
        C, H, L, batch, gpt2_lr, losses = TABLE_3_AND_5[size]
        rate = 1.0 if sgdw else 6e-4 if dnt else gpt2_lr
        decay, warmup = (1e-4, 0) if sgdw else (0.1, 2000)
        all_equal(c, n_embd=C, n_head=H, n_layer=L, global_batch_size=batch, learning_rate=rate,
                  weight_decay=decay, warmup_iters=warmup, min_lr=6e-5, max_iters=200000, grad_clip=1,
                  block_size=1024, dropout=0, dataset='openwebtext')
        assert f'({count_parameters(c) / 1e6:.1f}M parameters)' in text
        assert f'(table 1): {losses[arch][sgdw]}. Not run here.' in text
    elif not images:
        logged, = (row['run'] for row in read(ROOT / 'results/evidence.jsonl').values()
                   if [row['run'][k] for k in ('variant', 'max_iters', 'seed')] == [ARMS[name], 4500, 1])
        own = {'learning_rate', 'weight_decay', 'warmup_iters', 'embed_optimizer', 'embed_lr'}
        all_equal(c, **{k: logged[k] for k in own})  # the best of the arm's search
        all_equal(c, n_layer=4, n_head=2, n_embd=64, block_size=128, global_batch_size=8, max_iters=4500,
                  min_lr=0, dataset='stdlib', dtype='auto')
    elif size in TABLE_3_AND_4:
        C, H, L, P, drop, rate, decay, params, top1 = TABLE_3_AND_4[size]
        rate, decay = (rate, decay) if sgdw else (1e-3, 0.1)
        all_equal(c, n_embd=C, n_head=H, n_layer=L, patch_size=P, drop_path=drop, learning_rate=rate,
                  weight_decay=decay, min_lr=1e-8, epochs=150, warmup_epochs=60, global_batch_size=1024,
                  grad_clip=0, randaugment=9, mixup=0.8, cutmix=1, label_smoothing=0.1, dropout=0,
                  image_size=224, dataset='imagenet')
        assert count_parameters(c) == params[arch]
        assert f'(table 1): {top1[arch][c["optimizer"]]}. Not run here.' in text
    else:
        rate, decay = (0.05, 1e-3) if sgdw else (1e-3, 0.1)
        all_equal(c, learning_rate=rate, weight_decay=decay, epochs=6, warmup_epochs=1, min_lr=0,
                  global_batch_size=32, dtype='auto')


@pytest.mark.parametrize('name,image,batch,interval,own', [
    ('nft_cifar10', 32, 64, 703, dict(patch_size=4)), ('nft_tinyimagenet', 64, 256, 351, dict(patch_size=8)),
    ('nfnet_cifar10', 32, 64, 703, dict(arch='nfnet', learning_rate=0.025, agc=0.01))])
def test_configs_of_the_second_report(name, image, batch, interval, own):
    c = resolve(name)
    all_equal(c, optimizer='sgd', momentum=0.9, weight_decay=2e-5, epochs=100, warmup_epochs=0, grad_clip=0,
              image_size=image, global_batch_size=batch, micro_batch_size=64, eval_interval=interval,
              ckpt_interval=interval, randaugment=0, mixup=0, cutmix=0, label_smoothing=0, **own)
    if name == 'nfnet_cifar10':
        all_equal(c, drop_path=0.25, dropout=0.2)
    else:
        all_equal(c, setting='S1', norm='layer', drop_path=0, dropout=0)


def test_counts_of_the_second_report():
    """Its ViT-S: 21.33M with LayerNorm, 21.31M without, 21.34M standardized, at 10 classes."""
    for setting, covers, count in (('S1', 'none', 21328522), ('NoNorm', 'none', 21309322),
                                   ('NoNorm', 'all', 21336970)):
        c = resolve('nft_cifar10')
        keys = ('norm', 'bias', 'qkv_bias', 'n_layer', 'n_head', 'n_embd', 'image_size', 'patch_size')
        with torch.device('meta'):
            model = build(ViT, ViTConfig, SETTINGS[setting] | {k: c[k] for k in keys} | dict(
                n_classes=10, weight_standardization=covers))
        assert sum(p.numel() for p in model.parameters()) == count


PROBE = '''
import config as _ours
from config.gpt2_tiny import *
print('found', _ours.__file__, setting, n_layer, learning_rate)
learning_rte = 1.0
'''


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_config_anywhere_starts_from_ours_beside_any_package_of_that_name(tmp_path, torchrun):
    (tmp_path / 'other/config').mkdir(parents=True)
    (tmp_path / 'other/config/__init__.py').write_text('raise ImportError("this is the wrong package")')
    (tmp_path / 'mine.py').write_text(PROBE)
    env = {'PYTHONPATH': str(tmp_path / 'other')}
    out, err = finish(python(ROOT / 'train_gpt.py', 'mine.py', cwd=tmp_path, env=env, torchrun=torchrun), 1)
    assert f'found {ROOT}/config/__init__.py S1 4 0.008' in out
    # it reads on, and the names that came with the import are keys
    assert 'mine.py: unknown key learning_rte. Did you mean learning_rate?' in err

# -----------------------------------------------------------------------------
# what configurator.py makes of files and flags

def settle(tmp_path, *argv, **files):
    """What a small script makes of its arguments; files by name become config files."""
    script = {'lr': 0.1, 'n': 3, 'name': 'x', 'on': False, 'mode': 'auto', '_hidden': 1, 'os': os}
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    config = configure(script, [str(tmp_path / a) if a.removesuffix('.py') in files else a for a in argv])
    assert {k: script[k] for k in config} == config
    return config


def test_order_and_types(tmp_path):
    files = dict(a='lr = 1\nn = 5', b='n = 1e1\non = True')
    c = settle(tmp_path, 'a.py', '--lr=3', '--lr=4', 'b.py', '--name=p=q', **files)
    assert c == {'lr': 4.0, 'n': 10, 'name': 'p=q', 'on': True, 'mode': 'auto'}
    assert type(c['lr']) is float and type(c['n']) is int
    assert (c.stated, c.replaced) == ({'lr', 'n', 'name', 'on'}, {'lr': 1.0, 'name': 'x'})
    c = settle(tmp_path, '--lr=-1e-3', '--n=-4', '--mode=True', '--on=True')
    assert c == {'lr': -0.001, 'n': -4, 'name': 'x', 'on': True, 'mode': True}
    assert settle(tmp_path, '--mode=fast')['mode'] == 'fast'
    assert settle(tmp_path, '--n=7', 'c.py', c='n = 5')['n'] == 7  # the command line wins wherever it stands
    assert settle(tmp_path).stated == set()
    for text in ('123', '', 'None', 'True', '"quoted"', r'"a\nb"', '[1, 2]', ' a '):  # as typed
        assert settle(tmp_path, f'--name={text}')['name'] == text


def test_a_config_may_have_helpers(tmp_path):
    text = ('from pathlib import Path\nimport math, os.path\nsizes, nothing = dict(large=7), None\n'
            'def half(x):\n    return x / 2\nfor _i in range(15):\n    n = math.floor(half(_i))\n')
    assert settle(tmp_path, 'a.py', a=text)['n'] == 7
    with pytest.raises(SystemExit, match='unknown key here.* is a helper of this file, call it _here'):
        settle(tmp_path, 'a.py', a=f'{text}here = Path("x")\n')


def test_paths_are_strings_and_a_tilde_is_the_home_folder_but_in_the_prompt(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text('from pathlib import Path\ndataset = Path("~/text")\nexport = "~/e"')
    script = dict.fromkeys(('out_dir', 'export', 'predict', 'dataset', 'prompt'), '')
    assert configure(script, [f'{tmp_path}/mine.py', '--out_dir=~', '--predict=a/~', '--prompt=~/x']) == {
        'out_dir': str(tmp_path), 'export': f'{tmp_path}/e', 'predict': 'a/~', 'dataset': f'{tmp_path}/text',
        'prompt': '~/x'}


def test_help_lists_every_key_with_its_comment(capsys):
    keys = defaults('train_gpt.py')
    with pytest.raises(SystemExit):
        configure(keys | {'__file__': str(ROOT / 'train_gpt.py')}, ['--help'])
    listed = dict(re.findall(r'^  (\w+) = (\S+)', out := capsys.readouterr().out, re.M))
    assert listed == {key: repr(value) for key, value in keys.items()}
    assert re.search(r'^  warmup_iters = 0 +linear warmup$', out, re.M)


@pytest.mark.parametrize('flag,message', [  # a flag, or the text of a config file
    ('--lrr=1', '--lrr=1: unknown key lrr. Did you mean lr?'),
    ('--_hidden=2', '--_hidden=2: unknown key _hidden. --help lists all keys.'),
    ('--n=2.5', '--n=2.5: n must be a whole number, not 2.5.'),
    ('--lr=True', '--lr=True: lr must be a number, not True.'),
    ('--on=1', '--on=1: on must be True or False, not 1.'),
    ('--n', '--n has no value. Write --n=VALUE.'),
    ('n=3', 'n=3 is not an option. Did you mean --n=3?'),
    ('--batch_size=8', '--batch_size=8: batch_size is not a key here. Use global_batch_size (per update, '
     'over all processes) and micro_batch_size (per forward pass of one process).'),
    ('n = 1\nn = = 2\n', 'The config file {a} raises SyntaxError: invalid syntax (a.py, line 2)'),
    ('naem = "y"\n', '{a}: unknown key naem. Did you mean name? If naem is a helper of this file, '
     'call it _naem. Or is this the config of another script?'),
    ('mode = 3\n', '{a}: mode must be a string, True or False, not 3.'),
    # files that do not exist: names of similar ones, seen from this folder
    ('{config}/vdnt_smal.py', 'The config file {config}/vdnt_smal.py does not exist. Did you mean '
     '{config}/dnt_small.py'),
    ('dnt_tiny', 'dnt_tiny is neither a config file (*.py) nor --key=value. Did you mean '
     '{config}/dnt_tiny.py?'),
    ('data', 'data is neither a config file (*.py) nor --key=value.')])
def test_a_mistake_is_refused(tmp_path, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    known = {'config': os.path.relpath(ROOT / 'config'), 'a': tmp_path / 'a.py'}
    in_file = '\n' in flag
    with pytest.raises(SystemExit) as stop:
        settle(tmp_path, 'a.py' if in_file else flag.format(**known), a=flag if in_file else '')
    assert stop.value.code.startswith(message.format(**known))
