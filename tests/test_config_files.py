"""Config files against the tables of the papers, how they inherit, and configurator.py."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from configurator import configure
from experiments.evidence import read
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.normfree import build

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {path.stem: path for path in sorted((ROOT / 'config').glob('[!_]*.py'))}
IMAGES = [name for name in CONFIGS
          if name.split('_')[0] in ('vdnt', 'vit', 'nft', 'nfnet') or name == 'finetune_vit']
FINETUNE = ['finetune_gpt2', 'finetune_vit']
NORMS = tuple(SETTINGS['S5'])


def defaults(script):
    """The keys of a script, read from its source: the constants above its call of configure."""
    keys = {}
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.Assign):
            if isinstance(node.value, ast.Call):
                return keys
            keys[node.targets[0].id] = ast.literal_eval(node.value)


def resolve(name):
    """What a train script makes of a config of ours."""
    return configure(defaults('train_vit.py' if name in IMAGES else 'train_gpt.py'), [str(CONFIGS[name])])


def assigned(path):
    """The names that a file itself assigns."""
    return {name.id for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)
            for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def base_of(path):
    """The module of ours that a config imports, None for a full file."""
    body = ast.parse(path.read_text()).body
    imports = [node.module for node in body if isinstance(node, ast.ImportFrom)]
    assert len(imports) <= 1
    return imports[0].removeprefix('config.') if imports else None


# -----------------------------------------------------------------------------
# our files

def test_there_are_32_configs_of_six_families_and_two_for_fine_tuning():
    bases = [name for name, path in CONFIGS.items() if base_of(path) is None]
    assert bases == ['dnt_small', 'dnt_tiny', *FINETUNE,
                     'nfnet_cifar10', 'nft_cifar10', 'vdnt_cifar10', 'vdnt_large']
    assert len(CONFIGS) == 34 and (ROOT / 'config/__init__.py').read_text() == ''


@pytest.mark.parametrize('name', CONFIGS)
def test_config_states_what_it_must(name):
    text, own = CONFIGS[name].read_text(), assigned(CONFIGS[name])
    warmup = 'warmup_epochs' if name in IMAGES else 'warmup_iters'
    assert own >= {'out_dir', 'optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', warmup}
    for key in ('out_dir', 'optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', warmup):
        assert f'\n{key} = ' in text, f'{key} has no line of its own'
    c = resolve(name)
    assert c['out_dir'] == f'out/{name}' and 0 <= c['min_lr'] <= c['learning_rate']
    script = 'train_vit.py' if name in IMAGES else 'train_gpt.py'
    assert f'{script} config/{name}.py' in text  # the launch line
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize('name', [name for name in CONFIGS if base_of(CONFIGS[name])])
def test_variant_inherits_one_level_and_states_what_differs(name):
    path, base = CONFIGS[name], base_of(CONFIGS[name])
    assert base_of(CONFIGS[base]) is None
    first = ast.parse(path.read_text()).body[0]
    assert ast.unparse(first) == f'from config.{base} import *'
    assert 6 <= len(path.read_text().splitlines()) <= 14
    mine, theirs = resolve(name), resolve(base)
    stated_anyway = {'optimizer', 'learning_rate', 'weight_decay', 'global_batch_size', 'warmup_iters',
                     'warmup_epochs'}
    repeated = {key for key in assigned(path) - stated_anyway if mine[key] == theirs[key]}
    assert repeated <= {'n_head'}  # part of the line with the whole shape
    # a full file says all of what its variants change
    assert assigned(path) <= assigned(CONFIGS[base])


@pytest.mark.parametrize('name,weights', [
    ('finetune_gpt2', 'gpt2'), ('finetune_vit', 'timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k')])
def test_a_config_for_fine_tuning_leaves_the_network_to_its_weights(name, weights):
    """What it would state, a resumed run would compare with the checkpoint."""
    network = {f.name for f in fields(ViTConfig if name in IMAGES else GPTConfig)} | {'setting'}
    assert resolve(name)['init_from'] == weights
    assert assigned(CONFIGS[name]) & network <= {'dropout', 'drop_path'}


TABLE_3_AND_5 = {  # width, heads, depth, batch, GPT-2's AdamW rate, losses of table 1: AdamW, mSGDW
    'small': (768, 12, 12, 480, 6e-4, {'gpt2': (2.867, 2.906), 'dnt': (2.863, 2.849)}),
    'large': (1280, 20, 36, 512, 2.5e-4, {'gpt2': (2.492, 2.544), 'dnt': (2.481, 2.503)}),
    'xl': (1536, 24, 48, 512, 1.5e-4, {'gpt2': (2.435, 2.472), 'dnt': (2.396, 2.408)})}


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in IMAGES + FINETUNE])
def test_config_has_the_numbers_of_its_row(name):
    text, c = CONFIGS[name].read_text(), resolve(name)
    (arch, size), rest = name.split('_')[:2], name.split('_')[2:]
    sgdw = c['optimizer'] == 'sgdw'
    assert rest == ([] if sgdw == (arch == 'dnt') else [c['optimizer']]) or name == 'dnt_tiny_plain'
    assert (c['setting'], c['norm']) == (('S5', 'rms') if arch == 'dnt' else ('S1', 'layer'))
    assert not c['bias']
    assert all(c[n] == 'auto' for n in NORMS)
    assert (c['beta1'], c['beta2'], c['momentum']) == (0.9, 0.95, 0.9)
    if size in TABLE_3_AND_5:
        C, H, L, batch, gpt2_lr, losses = TABLE_3_AND_5[size]
        assert (c['n_embd'], c['n_head'], c['n_layer'], c['global_batch_size']) == (C, H, L, batch)
        assert c['learning_rate'] == (1.0 if sgdw else 6e-4 if arch == 'dnt' else gpt2_lr)
        assert (c['weight_decay'], c['warmup_iters']) == ((1e-4, 0) if sgdw else (0.1, 2000))
        assert (c['min_lr'], c['max_iters'], c['grad_clip'], c['block_size'], c['dropout'], c['dataset']) == \
            (6e-5, 200000, 1, 1024, 0, 'openwebtext')
        with torch.device('meta'):
            model = GPT(GPTConfig(**SETTINGS[c['setting']], **{k: c[k] for k in (
                'n_layer', 'n_head', 'n_embd', 'block_size', 'norm', 'bias')}))
        assert f'({sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters)' in text
        assert f'(table 1): {losses[arch][sgdw]}. Not run here.' in text
        peaks = re.search(rf'(?m)^\| {size}, .*', (ROOT / 'results/speed.md').read_text())[0].split('|')
        assert f'eak memory per GPU: {peaks[2 + 2 * (arch == "gpt2") + (not sgdw)].strip()} GB' in text
        if batch == 512 or name == 'dnt_small':
            assert f'= {batch * 1024:,} tokens per update' in text
            assert f'{batch * 1024 * 200000 / 1e9:.1f}B tokens' in text
    else:  # the tiny ones share everything but norms, optimizer and its numbers
        first = resolve('dnt_tiny')
        embed = {'embed_optimizer', 'embed_lr', 'embed_weight_decay'}
        own = {'out_dir', 'setting', 'norm', 'optimizer', 'learning_rate', 'weight_decay', 'warmup_iters'}
        assert {k for k in c if c[k] != first[k]} <= own | embed
        arm = {'dnt_tiny': 'L-DNT mSGDW + row norm', 'dnt_tiny_plain': 'L-DNT mSGDW',
               'dnt_tiny_adamw': 'L-DNT AdamW', 'gpt2_tiny': 'GPT-2 AdamW',
               'gpt2_tiny_sgdw': 'GPT-2 mSGDW'}[name]
        logged = [row['run'] for row in read(ROOT / 'results/evidence.jsonl').values()
                  if [row['run'][k] for k in ('variant', 'max_iters', 'seed')] == [arm, 4500, 1]]
        assert len(logged) == 1  # the best of the arm's search
        same = {*embed, 'setting', 'norm', 'optimizer', 'learning_rate', 'weight_decay', 'warmup_iters'}
        assert {k: c[k] for k in same} == {k: logged[0][k] for k in same}
        assert (c['n_layer'], c['n_head'], c['n_embd'], c['block_size'], c['global_batch_size'],
                c['max_iters'], c['min_lr'], c['dataset'], c['dtype']) == \
            (4, 2, 64, 128, 8, 4500, 0, 'stdlib', 'auto')


TABLE_3_AND_4 = {  # width, heads, depth, patch, drop path, rate and decay of mSGDW, parameters, table 1
    'large': (1024, 16, 24, 16, 0.1, 0.5, 2e-4, {'vdnt': 304305128, 'vit': 304326632},
              {'vdnt': {'sgdw': 81.5, 'adamw': 82.1}, 'vit': {'sgdw': 78.2, 'adamw': 81.7}}),
    'huge': (1280, 16, 32, 14, 0.5, 0.1, 1e-3, {'vdnt': 632009960, 'vit': 632045800},
             {'vdnt': {'sgdw': 81.2, 'adamw': 81.9}, 'vit': {'sgdw': 73.5, 'adamw': 80.8}})}


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith(('vdnt', 'vit'))])
def test_vision_config_has_the_numbers_of_its_row(name):
    text, c = CONFIGS[name].read_text(), resolve(name)
    (arch, size), rest = name.split('_')[:2], name.split('_')[2:]
    sgdw = c['optimizer'] == 'sgdw'
    assert rest == ([] if sgdw == (arch == 'vdnt') else [c['optimizer']])
    assert (c['setting'], c['norm']) == (('S5', 'rms') if arch == 'vdnt' else ('S1', 'layer'))
    assert c['bias'] is True
    assert all(c[n] == 'auto' for n in NORMS)
    assert (c['beta1'], c['beta2'], c['momentum']) == (0.9, 0.99, 0.9)
    if size in TABLE_3_AND_4:
        C, H, L, P, drop, lr, decay, params, top1 = TABLE_3_AND_4[size]
        assert (c['n_embd'], c['n_head'], c['n_layer'], c['patch_size'], c['drop_path']) == (C, H, L, P, drop)
        assert (c['learning_rate'], c['weight_decay']) == ((lr, decay) if sgdw else (1e-3, 0.1))
        assert (c['min_lr'], c['epochs'], c['warmup_epochs'], c['global_batch_size'], c['grad_clip']) == \
            (1e-8, 150, 60, 1024, 0)
        assert (c['randaugment'], c['mixup'], c['cutmix'], c['label_smoothing'], c['dropout']) == \
            (9, 0.8, 1, 0.1, 0)
        assert (c['image_size'], c['dataset']) == (224, 'imagenet')
        with torch.device('meta'):
            model = ViT(ViTConfig(**SETTINGS[c['setting']], **{k: c[k] for k in (
                'n_layer', 'n_head', 'n_embd', 'patch_size', 'image_size', 'norm', 'bias')}))
        assert sum(p.numel() for p in model.parameters()) == params[arch]
        assert f'({params[arch] / 1e6:.1f}M parameters)' in text
        assert f'(table 1): {top1[arch][c["optimizer"]]}. Not run here.' in text
    else:  # those for CIFAR-10 share everything but norms and optimizer
        first = resolve('vdnt_cifar10')
        own = {'out_dir', 'setting', 'norm', 'optimizer', 'learning_rate', 'weight_decay'}
        assert {k for k in c if c[k] != first[k]} <= own
        assert (c['learning_rate'], c['weight_decay']) == ((0.05, 1e-3) if sgdw else (1e-3, 0.1))
        assert (c['epochs'], c['warmup_epochs'], c['min_lr'], c['global_batch_size'], c['dtype']) == \
            (6, 1, 0, 32, 'auto')


@pytest.mark.parametrize('name,image,patch,batch,interval', [
    ('nft_cifar10', 32, 4, 64, 703), ('nft_tinyimagenet', 64, 8, 256, 351),
    ('nfnet_cifar10', 32, 4, 64, 703)])
def test_configs_of_the_second_report(name, image, patch, batch, interval):
    c = resolve(name)
    assert (c['optimizer'], c['momentum'], c['weight_decay'], c['epochs'], c['warmup_epochs'],
            c['grad_clip']) == ('sgd', 0.9, 2e-5, 100, 0, 0)
    assert (c['image_size'], c['global_batch_size'], c['micro_batch_size']) == (image, batch, 64)
    assert c['eval_interval'] == c['ckpt_interval'] == interval
    assert not any(c[k] for k in ('randaugment', 'mixup', 'cutmix', 'label_smoothing'))
    if name == 'nfnet_cifar10':
        assert (c['arch'], c['learning_rate'], c['agc'], c['drop_path'], c['dropout']) == \
            ('nfnet', 0.025, 0.01, 0.25, 0.2)
    else:
        assert (c['setting'], c['norm'], c['patch_size'], c['drop_path'], c['dropout']) == \
            ('S1', 'layer', patch, 0, 0)


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


# -----------------------------------------------------------------------------
# from any folder, beside any other package of that name

PROBE = '''
import config as _ours
from config.gpt2_tiny import *
print('found', _ours.__file__, setting, n_layer, learning_rate)
learning_rte = 1.0
'''


@pytest.mark.slow
@pytest.mark.parametrize('launch', [
    pytest.param([], id='python'),
    pytest.param(['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'], id='torchrun',
                 marks=pytest.mark.slow)])
def test_a_config_anywhere_starts_from_ours(tmp_path, launch):
    (tmp_path / 'other/config').mkdir(parents=True)
    (tmp_path / 'other/config/__init__.py').write_text('raise ImportError("this is the wrong package")')
    (tmp_path / 'mine.py').write_text(PROBE)
    done = subprocess.run([sys.executable, *launch, str(ROOT / 'train_gpt.py'), 'mine.py'], cwd=tmp_path,
                          capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path / 'other')})
    assert done.returncode == 1
    assert f'found {ROOT}/config/__init__.py S1 4 0.008' in done.stdout
    # it reads on, and the names that came with the import are keys
    assert 'mine.py: unknown key learning_rte. Did you mean learning_rate?' in done.stderr


def test_experiments_read_configs_with_runpy(tmp_path):
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config/__init__.py').write_text('raise ImportError("this is the wrong package")')
    code = "import runpy; print(runpy.run_path('config/gpt2_tiny.py')['n_layer'])"
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True,
                         env={**os.environ, 'PYTHONPATH': str(tmp_path)}).stdout
    assert out == '4\n'


# -----------------------------------------------------------------------------
# what configurator.py makes of files and flags

def settle(tmp_path, *argv, **files):
    """What a small script makes of its arguments; files by name become config files."""
    script = {'lr': 0.1, 'n': 3, 'name': 'x', 'on': False, 'mode': 'auto', '_hidden': 1, 'os': os}
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    config = configure(script, [str(tmp_path / a) if a.endswith('.py') and '=' not in a else a for a in argv])
    assert {k: script[k] for k in config} == config
    return config


def test_order_and_types(tmp_path):
    c = settle(tmp_path, 'a.py', '--lr=3', 'b.py', '--name=p=q', a='lr = 1\nn = 5', b='n = 1e1\non = True')
    assert c == {'lr': 3.0, 'n': 10, 'name': 'p=q', 'on': True, 'mode': 'auto'}
    assert type(c['lr']) is float and type(c['n']) is int
    c = settle(tmp_path, '--lr=-1e-3', '--n=-4', '--mode=True', '--on=True')
    assert c == {'lr': -0.001, 'n': -4, 'name': 'x', 'on': True, 'mode': True}
    assert settle(tmp_path, '--mode=fast')['mode'] == 'fast'
    assert settle(tmp_path, '--n=7', 'c.py', c='n = 5')['n'] == 7  # the command line wins wherever it stands


@pytest.mark.parametrize('text', [
    '123', '', 'None', 'True', '1e3', '"quoted"', "'quoted'", '"half', 'He said "no"', '"a" "b"', r'"a\nb"',
    '[1, 2]', '__import__("os")', ' spaces ', 'p=q'], ids=repr)
def test_a_string_on_the_command_line_is_taken_as_typed(tmp_path, text):
    assert settle(tmp_path, f'--name={text}')['name'] == text


IGNORED = {
    'module': 'import math, os.path\nn = math.floor(7.5)',
    'environment': 'from os import environ\nn = 7',
    'class': 'from pathlib import Path\nn = 7',
    'builtin': 'from math import floor\nn = floor(7.5)',
    'function': 'def double(x):\n    return 2 * x\nn = double(3) + 1',
    'lambda': 'square = lambda x: x * x\nn = square(2) + 3',
    'list': 'sizes = [1, 2, 7]\nn = sizes[-1]',
    'dict': 'sizes = dict(small=1, large=7)\nn = sizes["large"]',
    'none': 'nothing = None\nn = 7',
    'comprehension': 'n = max(i for i in range(8))',
    'private loop': 'for _i in range(8):\n    n = _i',
    'private path': 'from pathlib import Path\n_here = Path("x")\nn = 7',
    'private number': '_width = 7\nn = _width'}


@pytest.mark.parametrize('text', IGNORED.values(), ids=IGNORED)
def test_a_config_may_have_helpers(tmp_path, text):
    assert settle(tmp_path, 'a.py', a=text) == {'lr': 0.1, 'n': 7, 'name': 'x', 'on': False, 'mode': 'auto'}


@pytest.mark.parametrize('text', [
    'for i in range(3):\n    n = i', 'i = 3', 'i = 3.0', 'i = "3"', 'i = True', 'from math import pi as i',
    'from pathlib import Path\ni = Path("x")'])
def test_a_helper_that_may_be_a_misspelled_key_needs_an_underscore(tmp_path, text):
    message = r'a\.py: unknown key i\. .* If i is a helper of this file, call it _i\.'
    with pytest.raises(SystemExit, match=message):
        settle(tmp_path, 'a.py', a=text)
    assert settle(tmp_path, 'a.py', a=re.sub(r'\bi\b', '_i', text))['name'] == 'x'


def test_a_path_serves_as_string(tmp_path):
    c = settle(tmp_path, 'a.py', a='from pathlib import Path\nname = Path("data") / "mine"\n')
    assert c['name'] == os.path.join('data', 'mine') and type(c['name']) is str


def test_a_config_starts_from_another_in_any_folder(tmp_path):
    (tmp_path / 'mine.py').write_text('from config.gpt2_tiny import *\nn_layer *= 2\nout_dir = "out/mine"')
    c = configure(defaults('train_gpt.py'), [str(tmp_path / 'mine.py')])
    assert c == {**resolve('gpt2_tiny'), 'n_layer': 8, 'out_dir': 'out/mine'}


@pytest.mark.slow
def test_help_lists_every_key_with_its_comment():
    out = subprocess.run([sys.executable, 'train_gpt.py', '--help'], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    listed = dict(re.findall(r'^  (\w+) = (\S+)', out, re.M))
    assert listed == {key: repr(value) for key, value in defaults('train_gpt.py').items()}
    assert re.search(r'^  warmup_iters = 0 +linear warmup$', out, re.M)


BATCH_SIZE = ('batch_size is not a key here. Use global_batch_size (per update, over all processes) and '
              'micro_batch_size (per forward pass of one process).')


@pytest.mark.parametrize('flag,message', [
    ('--lrr=1', '--lrr=1: unknown key lrr. Did you mean lr?'),
    ('--lrr=x.py', '--lrr=x.py: unknown key lrr. Did you mean lr?'),
    ('--zzz=1', '--zzz=1: unknown key zzz. --help lists all keys.'),
    ('--_hidden=2', '--_hidden=2: unknown key _hidden. --help lists all keys.'),
    ('--n=2.5', '--n=2.5: n must be a whole number, not 2.5.'),
    ('--n=x', "--n=x: n must be a whole number, not 'x'."),
    ('--n=None', '--n=None: n must be a whole number, not None.'),
    ('--n=', "--n=: n must be a whole number, not ''."),
    ('--lr=True', '--lr=True: lr must be a number, not True.'),
    ('--on=1', '--on=1: on must be True or False, not 1.'),
    ('--n', '--n has no value. Write --n=VALUE.'),
    ('n=3', 'n=3 is not an option. Did you mean --n=3?'),
    ('-n=3', '-n=3 is not an option. Did you mean --n=3?'),
    ('--batch_size=8', '--batch_size=8: ' + BATCH_SIZE),
    ('--compile_optimizer=True', '--compile_optimizer=True: compile_optimizer is not a key here. It is gone, '
     'because it saved less than 1 % of an update. Leave it out.'),
    ('--lr_decay_iters=1', '--lr_decay_iters=1: lr_decay_iters is not a key here. Use max_iters. '
     'The cosine ends where the run ends.')])
def test_a_wrong_flag_is_refused(tmp_path, flag, message):
    with pytest.raises(SystemExit) as stop:
        settle(tmp_path, flag)
    assert stop.value.code == message


@pytest.mark.parametrize('text,message', [
    ('n = 1\nn = = 2\n', 'The config file {a} raises SyntaxError: invalid syntax (a.py, line 2)'),
    ('import nowhere\n', "The config file {a} raises ModuleNotFoundError: No module named 'nowhere'"),
    ('naem = "y"\n', '{a}: unknown key naem. Did you mean name? If naem is a helper of this file, '
     'call it _naem. Or is this the config of another script?'),
    ('lr = "1e-3"\n', "{a}: lr must be a number, not '1e-3'."),
    ('mode = 3\n', '{a}: mode must be a string, True or False, not 3.'),
    ('n = [3]\n', '{a}: n must be a whole number, not [3].'),
    ('name = None\n', '{a}: name must be a string, not None.'),
    ('on = "True"\n', "{a}: on must be True or False, not 'True'."),
    ('import math as name\n', "{a}: name must be a string, not <module 'math'"),
    ('batch_size = 12\n', '{a}: ' + BATCH_SIZE)])
def test_a_wrong_config_file_is_refused(tmp_path, text, message):
    with pytest.raises(SystemExit) as stop:
        settle(tmp_path, 'a.py', a=text)
    assert stop.value.code.startswith(message.format(a=tmp_path / 'a.py'))


@pytest.mark.parametrize('arg,near', [
    ('config/dnt_tiny', 'config/dnt_tiny.py'), ('dnt_tiny', 'config/dnt_tiny.py'),
    ('dnt_tiny.py', 'config/dnt_tiny.py'), ('config/vdnt_smal.py', 'config/dnt_small.py'),
    ('{tmp}/mine_smal.py', '{tmp}/mine_small.py'), ('{tmp}/mine_small', '{tmp}/mine_small.py'),
    ('qqqqqqqqqqqq.py', ''), ('data', '')])
def test_a_config_that_does_not_exist_gets_similar_names(tmp_path, monkeypatch, arg, near):
    monkeypatch.chdir(ROOT)
    (tmp_path / 'mine_small.py').write_text('')
    arg, near = arg.format(tmp=tmp_path), near.format(tmp=tmp_path)
    with pytest.raises(SystemExit) as stop:
        configure({'n': 3}, [arg])
    wrong, _, names = stop.value.code.partition(' Did you mean ')
    assert wrong == (f'The config file {arg} does not exist.' if arg.endswith('.py') else
                     f'{arg} is neither a config file (*.py) nor --key=value.')
    assert names.strip('?').split(' or ')[0] == near
    if not arg.endswith('.py'):
        assert names == f'{near}?' * bool(near)  # it is there, so no other is named


def test_a_similar_name_is_given_as_seen_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        configure({'n': 3}, ['config/dnt_tiny.py'])
    wrong, _, path = stop.value.code.partition(' Did you mean ')
    assert wrong == 'The config file config/dnt_tiny.py does not exist.'
    assert os.path.samefile(path.strip('?'), ROOT / 'config/dnt_tiny.py')
