"""
Weights of other projects: random tiny models in their formats, against the reference of test_model.py, whose
names are given to their tensors here.
"""

import json
import math
import re
import runpy
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support import pretrained
from support.normfree import build
from support.resume import load_checkpoint
from test_model import np_trunk, reference
from tests import common
from tests.common import ROOT, assert_refused, assert_same_run, final, finish, load_images, rows, script


def block_shapes(block, names, width, layers):
    """Of weights, as (out, in), and biases. names: norm, q k v, projection, norm, the two of the FFN"""
    shapes, C = {}, width
    sizes = (C,), (3 * C, C), (C, C), (C,), (4 * C, C), (C, 4 * C)
    for i in range(layers):
        for name, size in zip(names, sizes):
            shapes |= {f'{block}.{i}.{name}.weight': size, f'{block}.{i}.{name}.bias': size[:1]}
    return shapes


def renamed(tensors, names):
    """In NumPy, under the names of the reference, which are those of model.py."""
    w = {}
    for key, tensor in tensors.items():
        for theirs, ours in names.items():
            key = re.sub(theirs, ours, key)
        w[key] = tensor.double().numpy()
    return w


def network_of(checkpoint):
    kind = (ViT, ViTConfig) if 'n_classes' in checkpoint['model_args'] else (GPT, GPTConfig)
    model = build(*kind, checkpoint['model_args'])
    model.load_state_dict(checkpoint['model'])
    return model.eval().double()


def assert_equal(logits, expected):
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1

# -----------------------------------------------------------------------------
# GPT-2 as Hugging Face defines it

HF = {'model_type': 'gpt2', 'n_layer': 2, 'n_head': 2, 'n_embd': 16, 'n_positions': 12, 'n_inner': None,
      'vocab_size': 50257, 'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5,
      'scale_attn_weights': True, 'reorder_and_upcast_attn': False, 'resid_pdrop': 0.1}
HF_BLOCK = 'h', ('ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
HF_NAMES = {r'^.*transformer\.': '', r'^h\.': 'blocks.', 'ln_1': 'pre_norm', 'ln_2': 'ffn_pre_norm',
            'ln_f': 'final_norm', 'mlp': 'ffn'}


def write_gpt2(folder, prefix='transformer.', shards=1, without=(), head=None, dtype=torch.float32, files=(),
               more=(), **keys):
    """
    A random GPT-2. without: keys that its config.json lacks, and tensors. head: True for one of its own,
    'wte' for a copy. files: {name: object} beside it. more: further tensors. -> (the config, the tensors)
    """
    hf, rng = HF | keys, torch.Generator().manual_seed(0)
    C, V = hf['n_embd'], hf['vocab_size']
    shapes = {'wte.weight': (V, C), 'wpe.weight': (hf['n_positions'], C),
              'ln_f.weight': (C,), 'ln_f.bias': (C,)}
    shapes |= {k: shape[::-1] for k, shape in block_shapes(*HF_BLOCK, C, 2).items()}  # matrices are (in, out)
    shapes |= {f'h.{i}.attn.bias': (1, 1, 12, 12) for i in range(2)}  # the causal masks that old files carry
    tensors = {prefix + k: (torch.randn(shape, generator=rng) * 0.5).to(dtype) for k, shape in shapes.items()}
    if head:
        wte = tensors[f'{prefix}wte.weight']
        tensors['lm_head.weight'] = wte.clone() if head == 'wte' else torch.randn((V, C), generator=rng)
    there = {k: t for k, t in (tensors | dict(more)).items() if k not in without}
    files = {'config.json': {k: v for k, v in hf.items() if k not in without}, **dict(files)}
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(there, folder / 'model.safetensors')
    else:
        part = {name: f'model-{i % shards + 1:05}-of-{shards:05}.safetensors' for i, name in enumerate(there)}
        for file in set(part.values()):
            save_file({k: t for k, t in there.items() if part[k] == file}, folder / file)
        files['model.safetensors.index.json'] = {'metadata': {}, 'weight_map': part}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return hf, tensors


def gpt2_logits(hf, tensors, idx):
    """Of idx (B, T), in float64."""
    w = renamed(tensors, HF_NAMES)
    w = {k: x.T if k.startswith('blocks') and x.ndim == 2 else x for k, x in w.items()}
    if hf.get('tie_word_embeddings', True):
        w['lm_head.weight'] = w['wte.weight']
    gelu = 'exact' if hf['activation_function'] == 'gelu' else 'tanh'
    return torch.tensor(np.stack([reference(row.numpy(), w, hf['n_layer'], hf['n_head'], 'layer', gelu=gelu,
                                            eps=hf['layer_norm_epsilon']) for row in idx]))


IDX = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('keys', [
    {}, {'prefix': ''}, {'shards': 3}, {'activation_function': 'gelu'}, {'dtype': torch.bfloat16},
    {'layer_norm_epsilon': 0.1}, {'tie_word_embeddings': False, 'head': True}, {'head': 'wte'},
    {'head': 'wte', 'without': ['transformer.wte.weight']}, {'prefix': 'module._orig_mod.transformer.'},
    {'without': ['model_type', 'activation_function', 'layer_norm_epsilon']}], ids=str)
def test_gpt2_computes_what_hugging_face_defines(tmp_path, keys):
    hf, tensors = write_gpt2(tmp_path, **keys)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint['data'] == {'tokenizer': 'gpt2', 'vocab_size': 50257}
    with torch.no_grad():
        assert_equal(network_of(checkpoint)(IDX)[0], gpt2_logits(hf, tensors, IDX))


def own(size):
    return {f'token{i}': i for i in range(size)}


INT8 = {'transformer.h.0.mlp.c_fc.weight': torch.zeros(16, 64, dtype=torch.int8)}
NOT_PLAIN_GPT2 = [
    ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True, not False'),
    ({'model_type': 'llama', 'without': ['n_head']}, "model_type='llama', not 'gpt2'"),
    ({'without': ['n_positions']}, 'no config.json with n_positions'),
    ({'n_head': [2]}, 'cannot be read (TypeError'),
    ({'tie_word_embeddings': False}, 'it has no tensor lm_head.weight'),
    ({'head': True}, 'tie_word_embeddings=True, but it has a separate head'),
    ({'more': INT8}, 'its h.0.mlp.c_fc.weight is quantized (torch.int8)'),
    ({'more': {'transformer.ln_f.bias': torch.zeros(15)}}, 'ln_f.bias has the shape [15], not [16]'),
    ({'vocab_size': 21128}, 'has its own tokenizer (its vocabulary has 21128 entries'),
    ({'files': {'vocab.json': own(50257)}}, "has its own tokenizer (vocab.json differs from GPT-2's)"),
    ({'shards': 3, 'without': ['config.json']}, 'nor weights of GPT-2 or a ViT'),
    ({'shards': 3, 'without': ['model-00002-of-00003.safetensors']}, 'model-00002-of-00003.safetensors'),
    ({'shards': 3, 'cut': 'model-00001-of-00003.safetensors'}, 'cannot be read (Safetensor')]


def test_a_typo_in_a_folder_here_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / 'out/e_dnt').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pretrained.find_weights('out/e_dnt') == 'out/e_dnt'
    assert_refused(lambda: load_checkpoint(pretrained.find_weights('out/gpt')),
                   'Cannot read the checkpoint out/gpt (No such file or directory)')


def tune(name, data, out, *extra):
    """The command line for a kind of weights: 10 updates, and a checkpoint after 6 that is kept."""
    line = ['train_gpt.py', 'config/finetune_gpt2.py', '--warmup_iters=0', '--learning_rate=3e-3']
    if name == 'train_vit.py':
        line = ['train_vit.py', 'config/finetune_vit.py', '--warmup_epochs=0', '--shift=0']
    return line + ['--device=cpu', '--dtype=float32', '--global_batch_size=4', '--log_interval=1',
                   '--max_iters=10', '--eval_interval=10', '--keep_interval=6', '--ckpt_interval=0',
                   f'--dataset={data}', f'--out_dir={out}', *extra]


def assert_it_resumes_from_the_kept_one(name, data, run):
    half = run.parent / 'half'
    shutil.copytree(run, half)
    (half / 'ckpt.pt').unlink()
    finish(script(*tune(name, data, half, '--init_from=resume')))
    assert_same_run(run, half)


@pytest.mark.slow
def test_gpt2_is_fine_tuned_and_resumes_without_a_flag_for_its_shape(tmp_path):
    text = common.write_tokens(tmp_path / 'text', tokenizer='gpt2', vocab=64, vocab_size=50257)
    hf, tensors = write_gpt2(tmp_path / 'gpt2')
    (tmp_path / 'mine.py').write_text(f'init_from = {str(tmp_path / "gpt2")!r}\n')
    line = tune('train_gpt.py', text, tmp_path / 'run')
    # without a checkpoint, resume starts from the weights that a config file names
    said, _ = finish(script(*line, tmp_path / 'mine.py', '--init_from=resume'))
    assert 'has no checkpoint yet' in said
    assert f'The weights come from {tmp_path}/gpt2. The optimizer is new.' in said
    # before the first update, the loss over the whole windows of val is that of the reference
    val = torch.from_numpy(np.fromfile(text / 'val.bin', '<u2').astype(np.int64))
    windows = val[:len(val) // 12 * 12 + 1]
    x, y = windows[:-1].view(-1, 12), windows[1:].view(-1, 12)
    first, last = [r['loss'] for r in rows(tmp_path / 'run') if r['split'] == 'val']
    expected = F.cross_entropy(gpt2_logits(hf, tensors, x).flatten(0, 1), y.flatten()).item()
    assert abs(first - expected) < 1e-5
    assert last < first - 0.1
    assert_it_resumes_from_the_kept_one('train_gpt.py', text, tmp_path / 'run')
    # what a resumed run states must still agree
    other = tune('train_gpt.py', common.write_tokens(tmp_path / 'bytes'), tmp_path / 'no')
    (shape, _), (ids, _) = common.one_after_the_other([
        [*line, '--init_from=resume', '--n_embd=32'], [*other, f'--init_from={tmp_path}/gpt2']])
    assert 'was made with n_embd=16, now it is 32' in shape
    assert 'was made with tokenizer=gpt2, now it is byte; vocab_size=50257, now it is 257. Use a data' in ids


@common.gpt2_is_here
def test_sample_continues_a_prompt_with_gpt2(tmp_path):
    import tiktoken
    gpt2 = tiktoken.get_encoding('r50k_base')
    # GPT-2's vocab.json: bytes that are no visible character are written as those from 256 on
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in visible}
    letters |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in visible)}
    vocab = {''.join(letters[b] for b in gpt2.decode_single_token_bytes(i)): i for i in range(50256)}
    files = {'vocab.json': vocab | {'<|endoftext|>': 50256}}
    hf, tensors = write_gpt2(tmp_path / 'gpt2', vocab_size=50260, files=files)  # with rows for [PAD] and such
    out, _ = finish(script('sample.py', f'--init_from={tmp_path}/gpt2', '--prompt=Hello world',
                           '--device=cpu', '--dtype=float32', '--temperature=0', '--max_new_tokens=5'))
    ids = [50256, *gpt2.encode('Hello world')]
    for _ in range(5):
        logits = gpt2_logits(hf, tensors, torch.tensor([ids]))[0, -1]
        ids.append(logits[:50257].argmax().item())
    assert gpt2.decode(ids[1:]) in out


def test_sample_refuses_numbers_that_it_cannot_use(monkeypatch):
    for flag, words in (('--seed=99999999999999999999', 'is out of range. Set --seed to a number from 0'),
                        ('--temperature=1e-40', 'temperature=1e-40 is too small to divide by. Use')):
        monkeypatch.setattr('sys.argv', ['sample.py', flag])
        assert_refused(lambda: runpy.run_path(ROOT / 'sample.py'), words)

# -----------------------------------------------------------------------------
# ViT as timm defines it

TIMM_BLOCK = 'blocks', ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
TIMM_NAMES = {r'^norm\.': 'final_norm.', r'norm1\.': 'pre_norm.', r'norm2\.': 'ffn_pre_norm.',
              r'attn\.qkv': 'attn.c_attn', r'attn\.proj': 'attn.c_proj', r'mlp\.fc1': 'ffn.c_fc',
              r'mlp\.fc2': 'ffn.c_proj'}


def write_timm(folder, n_classes=6, qkv_bias=True, positions=16, patch=4, width=64, layers=2, config=True,
               extra=(), dtype=torch.float32, prefix='', **keys):
    """A random plain ViT in timm's format. -> its tensors"""
    rng, C = torch.Generator().manual_seed(0), width
    shapes = {'cls_token': (1, 1, C), 'pos_embed': (1, 1 + positions, C),
              'patch_embed.proj.weight': (C, 3, patch, patch), 'patch_embed.proj.bias': (C,),
              'norm.weight': (C,), 'norm.bias': (C,)}
    shapes |= block_shapes(*TIMM_BLOCK, C, layers)
    if not qkv_bias:
        shapes = {k: shape for k, shape in shapes.items() if not k.endswith('qkv.bias')}
    if n_classes:
        shapes |= {'head.weight': (n_classes, C), 'head.bias': (n_classes,)}
    shapes |= {name: (C,) for name in extra}
    tensors = {k: (torch.randn(shape, generator=rng) * 0.15).to(dtype) for k, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({prefix + k: t for k, t in tensors.items()}, folder / 'model.safetensors')
    if config:
        about = {'architecture': 'vit_tiny_patch16_224', 'num_classes': n_classes, 'num_features': C,
                 'global_pool': 'token', 'pretrained_cfg': {'mean': [0.5] * 3, 'std': [0.5] * 3}, **keys}
        (folder / 'config.json').write_text(json.dumps(about))
    return tensors


def bicubic(old, new):
    """The matrix (new, old) of a resize: Keys' kernel with a = -0.5, widened where it shrinks (antialias)."""
    scale = max(1.0, old / new)
    x = np.abs((np.arange(new)[:, None] + 0.5) * old / new - (np.arange(old) + 0.5)) / scale
    k = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    return torch.from_numpy(k / k.sum(1, keepdims=True))


def resized_positions(positions, grid):
    old = math.isqrt(positions.size(1) - 1)
    m = bicubic(old, grid)
    square = torch.einsum('ai,bj,ijc->abc', m, m, positions[0, 1:].double().view(old, old, -1))
    return torch.cat((positions[0, :1].double(), square.flatten(0, 1)))


def resized_pictures(pictures, size):
    """Bytes (..., H, H, 3) -> (..., 3, size, size), rounded to bytes."""
    m = bicubic(pictures.shape[-2], size)
    return torch.einsum('ai,bj,...ijc->...cab', m, m, torch.tensor(pictures).double()).round().clamp(0, 255)


def vit_logits(tensors, images, heads=1):
    """Of images (B, 3, H, H) that are normalized as timm does it. The positions are resized to their size."""
    w = renamed(tensors, TIMM_NAMES)
    C, P = tensors['cls_token'].size(-1), tensors['patch_embed.proj.weight'].size(-1)
    grid = images.size(-1) // P
    patches = images.double().view(-1, 3, grid, P, grid, P).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(len(images), grid * grid, -1).numpy()
    layers = len({name.split('.')[1] for name in tensors if name.startswith('blocks.')})
    logits = []
    for x in patches @ w['patch_embed.proj.weight'].reshape(C, -1).T + w['patch_embed.proj.bias']:
        x = np.concatenate((w['cls_token'][0], x)) + resized_positions(tensors['pos_embed'], grid).numpy()
        x = np_trunk(x, w, layers, heads, 'layer', causal=False, eps=1e-6)
        logits.append(w['head.weight'] @ x[0] + w['head.bias'])
    return torch.tensor(np.stack(logits))


PICTURES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('keys', [{}, {'qkv_bias': False}, {'config': False}, {'width': 128},
                                  {'model_args': {'num_heads': 4}}, {'layers': 11},
                                  {'prefix': 'module.'}, {'dtype': torch.float16}], ids=str)
def test_a_vit_of_timm_computes_what_timm_defines(tmp_path, keys):
    tensors = write_timm(tmp_path, **keys)
    heads = keys.get('model_args', {}).get('num_heads', keys.get('width', 64) // 64)
    checkpoint = load_checkpoint(str(tmp_path / 'model.safetensors'))
    with torch.no_grad():
        assert_equal(network_of(checkpoint)(PICTURES.double()), vit_logits(tensors, PICTURES, heads))


NOT_PLAIN_VIT = [
    ({'extra': ['blocks.0.ls1.gamma']}, 'it has a tensor blocks.0.ls1.gamma'),
    ({'global_pool': 'avg'}, "global_pool='avg'"),
    ({'architecture': 'vit_base_patch16_clip_224'}, "architecture='vit_base_patch16_clip_224'"),
    ({'width': 96}, 'the number of heads is unknown for a width of 96'),
    ({'positions': 12}, 'pos_embed has the shape [1, 13, 64], not [1, 10, 64]')]


@pytest.mark.parametrize('write,keys,words', [
    *((write_gpt2, *case) for case in NOT_PLAIN_GPT2),
    *((write_timm, keys, f'is not a plain ViT: it{words[2:]}' if words.startswith('it ') else words)
      for keys, words in NOT_PLAIN_VIT)], ids=lambda value: value if isinstance(value, str) else '')
def test_weights_that_are_not_plain_are_refused_by_their_cause(tmp_path, write, keys, words):
    keys = dict(keys)
    cut = keys.pop('cut', None)
    write(tmp_path, **keys)
    for name in keys.get('without', ()):
        (tmp_path / name).unlink(missing_ok=True)
    if cut:
        (tmp_path / cut).write_bytes(b'cut short')
    paths = [tmp_path]
    if (tmp_path / 'model.safetensors').exists():  # the folder and the file in it are refused alike
        paths.append(tmp_path / 'model.safetensors')
    for path in paths:
        assert_refused(lambda: load_checkpoint(str(path)), str(path), words)


@pytest.mark.slow
def test_a_vit_of_timm_is_evaluated_at_any_size_of_pictures(arrays, tmp_path):
    """8 x 8 pictures at 16 pixels and at 24; the mean and std of the data set are not those of timm."""
    tensors = write_timm(tmp_path / 'timm')
    pictures, labels, _ = load_images(arrays, 'val')
    line = tune('train_vit.py', arrays, tmp_path / 'no', f'--init_from={tmp_path}/timm', '--eval_only=True')
    ended = common.one_after_the_other([line, [*line, '--image_size=24']])
    for size, (_, said) in zip((16, 24), ended):
        assert f'8 x 8, are resized to image_size={size}' in said
        assert (f'interpolated from 4 x 4 to {size // 4} x {size // 4} patches' in said) == (size != 16)
        logits = vit_logits(tensors, resized_pictures(np.array(pictures), size) / 255 * 2 - 1)
        assert f'val loss {F.cross_entropy(logits, torch.tensor(labels)).item():.4f}' in said


@pytest.mark.slow
def test_a_vit_of_timm_gets_a_new_head_learns_resumes_and_predicts(arrays, tmp_path):
    write_timm(tmp_path / 'timm', n_classes=1000)
    line = tune('train_vit.py', arrays, tmp_path / 'run')
    said, _ = finish(script(*line, f'--init_from={tmp_path}/timm'))
    assert 'a head for 1000 classes, the data set has 6 others: the head starts again at zero' in said
    log = rows(tmp_path / 'run')
    assert abs(log[0]['loss'] - math.log(6)) < 1e-6
    losses = [r['loss'] for r in log if r['split'] == 'train']
    assert np.mean(losses[5:]) < np.mean(losses[:5])
    assert_it_resumes_from_the_kept_one('train_vit.py', arrays, tmp_path / 'run')
    # a picture of the training set is predicted as training saw it: at 8 x 8, then at 16
    picture = load_images(arrays, 'train')[0][0]
    Image.fromarray(picture).save(tmp_path / 'a.png')
    said, _ = finish(script(*line, '--init_from=resume', f'--predict={tmp_path}/a.png'))
    pixels = (resized_pictures(picture, 16)[None] / 255 - 0.5) / 0.3
    p, best = network_of(final(tmp_path / 'run'))(pixels)[0].softmax(-1).max(-1)
    assert f'a.png: {"abcdef"[best]} {p:.1%}' in said


@pytest.mark.slow
def test_a_head_for_other_classes_or_for_unnamed_ones_starts_again_at_zero(seen, arrays, tmp_path):
    for name, n_classes in (('headless', 0), ('six', 6)):
        write_timm(tmp_path / name, n_classes=n_classes)
    seven = common.write_images(tmp_path / 'seven')  # classes of which three are known
    meta = json.loads((seven / 'meta.json').read_text()) | {'classes': list('abcxefg')}
    (seven / 'meta.json').write_text(json.dumps(meta))
    cases = ((tmp_path / 'headless', arrays, 6, ''),
             (tmp_path / 'six', arrays, 6, 'a head for 6 classes, the data set has 6 others'),
             (seen / 'ckpt.pt', seven, 7, 'a head for 6 classes, the data set has 7 others'))
    lines = [tune('train_vit.py', data, tmp_path / f'{i}', f'--init_from={weights}', '--max_iters=1')
             for i, (weights, data, *_) in enumerate(cases)]
    *ended, (refused, _) = common.one_after_the_other([*lines, [*lines[0], '--eval_only=True']])
    for i, ((_, said), (*_, classes, words)) in enumerate(zip(ended, cases)):
        assert words in said
        assert abs(rows(tmp_path / f'{i}')[0]['loss'] - math.log(classes)) < 1e-6
    assert 'has no head, so it knows no classes. Fine-tune it' in refused


# -----------------------------------------------------------------------------
# weights out

S1, S5 = SETTINGS['S1'] | {'norm': 'layer'}, SETTINGS['S5']
BYTES = ('byte', 60, 'without a tokenizer. Its ids are those of --tokenizer=byte')
GPT2 = ('gpt2', 50257, 'without a tokenizer. Its ids are those of --tokenizer=gpt2')
PART = ('gpt2', 50, 'without a tokenizer. Its ids are part of those of --tokenizer=gpt2')
OURS = ('byte', 60, 'our own names, which --init_from reads')


@pytest.mark.parametrize('args,words', [
    (S1 | {'bias': True, 'gelu': 'tanh', 'norm_eps': 0.01}, GPT2), (S1 | {'tied': False}, GPT2),
    (S1 | {'bias': True, 'qkv_bias': False, 'tied': False, 'norm_eps': 0.0}, BYTES), (S1, PART),
    (S5, OURS), (S5 | {'bias': True, 'tied': False}, OURS), (S1 | {'weight_standardization': 'all'}, OURS),
    (S1 | {'n_classes': 6}, OURS)], ids=str)
def test_an_export_comes_back_with_the_same_bits(tmp_path, args, words):
    tokenizer, vocab_size, words = words
    args = dict(n_layer=2, n_head=2, n_embd=16) | args
    data, inputs = {'tokenizer': tokenizer, 'vocab_size': vocab_size}, IDX[:, :9] % 50
    args |= {'block_size': 12, 'vocab_size': -(-vocab_size // 64) * 64}
    network = GPT, GPTConfig
    if 'n_classes' in args:
        args = {k: v for k, v in args.items() if k not in ('block_size', 'vocab_size')}
        args |= {'image_size': 16, 'patch_size': 4}
        data, inputs = {'classes': list('abcdef'), 'mean': [0.5] * 3, 'std': [0.3] * 3}, PICTURES.double()
        network = ViT, ViTConfig
    model = build(*network, args)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    saved = {'model': model.state_dict(), 'model_args': args, 'config': {'setting': 'S1'}, 'data': data}
    assert words in pretrained.export(saved, str(tmp_path / 'out'))
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert_refused(lambda: pretrained.export(saved, str(tmp_path / 'out')), 'has files already. Use another')
    again = load_checkpoint(str(tmp_path / 'out'))
    assert again['data'] == data
    for name, tensor in again['model'].items():  # the rows that pad GPT-2's vocabulary stay behind
        then = saved['model'].get(name, torch.zeros(tensor.shape))
        assert torch.equal(tensor, then[:len(tensor)])
    back, model = network_of(again), model.eval().double()
    with torch.no_grad():
        if 'n_classes' not in args:
            assert torch.equal(back.features(inputs), model.features(inputs))
        if 'tokenizer' in words:
            hf = json.loads((tmp_path / 'out/config.json').read_text())
            assert (hf['architectures'], hf['vocab_size'], hf['eos_token_id']) == (
                ['GPT2LMHeadModel'], vocab_size, vocab_size - 1)
            tensors = load_file(tmp_path / 'out/model.safetensors')
            assert_equal(back(inputs)[0], gpt2_logits(hf, tensors, inputs))


@pytest.mark.slow
def test_runs_are_exported_by_sample_and_read_again(straight, seen, tokens, arrays, tmp_path):
    text, vision, sample = tmp_path / 'text', tmp_path / 'vision', ['sample.py', '--device=cpu']
    new = f'--out_dir={tmp_path}/no', '--eval_only=True'
    _, _, evaluated, tested, before, after = common.one_after_the_other([
        [*sample, f'--out_dir={straight}', f'--export={text}'],
        [*sample, f'--out_dir={seen}', f'--export={vision}'],
        common.gpt_line(tokens, text, f'--init_from={text}', *new),
        common.vit_line(arrays, vision, f'--init_from={vision}', *new),
        [*sample, f'--out_dir={straight}', '--max_new_tokens=20'],
        [*sample, f'--init_from={text}', '--max_new_tokens=20']])
    assert f'val loss {final(straight, "best.pt")["best_val_loss"]:.4f}' in evaluated[1]
    assert f'top-1 {final(seen, "best.pt")["best_top1"]:.4f}' in tested[1]
    assert before[1] == after[1]
