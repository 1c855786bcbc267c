"""
Weights of other projects: random tiny models in their formats, against references that are written here from
their definitions and import nothing of model.py.
"""

import json
import math
import os
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
from support.images import Images
from support.normfree import build
from support.resume import load_checkpoint, resize_positions
from tests.common import (
    ROOT,
    assert_same_run,
    final,
    finish,
    gpt2_is_here,
    in_parallel,
    load_images,
    python,
    rows,
    train,
    train_vit,
    write_images,
    write_tokens,
)


def assert_refused(action, *words):
    """It ends with one sentence that has these words."""
    with pytest.raises(SystemExit) as stop:
        action()
    assert '\n' not in stop.value.code
    for word in words:
        assert word in stop.value.code


# -----------------------------------------------------------------------------
# a pre-norm transformer, from its definition

def block_shapes(block, names, width, layers):
    """Of weights, as (out, in), and biases. names: norm, q k v, projection, norm, the two of the FFN"""
    shapes, C = {}, width
    sizes = (C,), (3 * C, C), (C, C), (C,), (4 * C, C), (C, 4 * C)
    for i in range(layers):
        for name, size in zip(names, sizes):
            shapes |= {f'{block}.{i}.{name}.weight': size, f'{block}.{i}.{name}.bias': size[:1]}
    return shapes


def gelu(x, name):
    if name == 'gelu':
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def transformer(x, w, block, names, heads, act, eps, causal):
    """x (B, T, C) through all blocks and the last norm. w: float64, matrices as (out, in)"""
    def linear(x, name):
        return x @ w[f'{name}.weight'].T + w.get(f'{name}.bias', 0)

    def layer_norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return x * w[f'{name}.weight'] + w[f'{name}.bias']

    future = torch.ones(x.size(1), x.size(1)).triu(1) > 0
    for i in range(len({k.split('.')[1] for k in w if k.startswith(f'{block}.')})):
        norm, qkv, proj, ffn_norm, up, down = (f'{block}.{i}.{name}' for name in names)
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2)
                   for t in linear(layer_norm(x, norm), qkv).chunk(3, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.size(-1))
        if causal:
            scores = scores.masked_fill(future, -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), proj)
        x = x + linear(gelu(linear(layer_norm(x, ffn_norm), up), act), down)
    return layer_norm(x, 'ln_f' if causal else 'norm')


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
    w = {k.split('transformer.')[-1]: t.double() for k, t in tensors.items()}
    w = {k: t.T if '.c_' in k and t.dim() == 2 else t for k, t in w.items()}
    x = transformer(w['wte.weight'][idx] + w['wpe.weight'][:idx.size(1)], w, *HF_BLOCK, hf['n_head'],
                    hf['activation_function'], hf['layer_norm_epsilon'], causal=True)
    return x @ w['wte.weight' if hf.get('tie_word_embeddings', True) else 'lm_head.weight'].T


IDX = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('keys', [
    {}, {'prefix': ''}, {'shards': 3}, {'activation_function': 'gelu'}, {'dtype': torch.bfloat16},
    {'activation_function': 'gelu_pytorch_tanh'}, {'layer_norm_epsilon': 0.1}, {'n_inner': 64},
    {'tie_word_embeddings': False, 'head': True}, {'head': 'wte'},
    {'head': 'wte', 'without': ['transformer.wte.weight']},
    {'prefix': '_orig_mod.transformer.'}, {'prefix': 'module._orig_mod.transformer.'},
    {'without': ['model_type', 'activation_function', 'layer_norm_epsilon']},
    {'reorder_and_upcast_attn': True}], ids=str)
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
    ({'scale_attn_weights': False}, 'scale_attn_weights=False, not True'),
    ({'add_cross_attention': True}, 'add_cross_attention=True, not False'),
    ({'activation_function': 'relu'}, "activation_function='relu', not 'gelu_new'"),
    ({'n_inner': 32}, 'n_inner=32, not 64'),
    ({'model_type': 'llama', 'without': ['n_head']}, "model_type='llama', not 'gpt2'"),
    ({'without': ['n_head']}, 'no config.json with n_head'),
    ({'without': ['n_positions']}, 'no config.json with n_positions'),
    ({'n_head': [2]}, 'cannot be read (TypeError'),
    ({'n_head': 3}, 'n_embd=16 does not divide into n_head=3'),
    ({'tie_word_embeddings': False}, 'it has no tensor lm_head.weight'),
    ({'head': True}, 'tie_word_embeddings=True, but it has a separate head'),
    ({'n_layer': 3}, 'it has no tensor h.2.attn.c_attn.bias'),
    ({'n_layer': 1}, 'it has a tensor h.1.attn.c_attn.bias'),
    ({'more': INT8}, 'its h.0.mlp.c_fc.weight is quantized (torch.int8)'),
    ({'more': {'score.weight': torch.zeros(2, 16)}}, 'it has a tensor score.weight'),
    ({'more': {'transformer.ln_f.bias': torch.zeros(15)}}, 'ln_f.bias has the shape [15], not [16]'),
    ({'vocab_size': 21128}, 'has its own tokenizer (its vocabulary has 21128 entries'),
    ({'vocab_size': 52000}, 'has its own tokenizer (its vocabulary has 52000 entries'),
    ({'vocab_size': 50265, 'files': {'vocab.json': own(50265)}},
     "has its own tokenizer (vocab.json differs from GPT-2's)"),
    ({'files': {'vocab.json': own(50257)}}, "has its own tokenizer (vocab.json differs from GPT-2's)"),
    ({'files': {'tokenizer.json': {'model': {'vocab': own(50257)}}}}, 'tokenizer (tokenizer.json differs'),
    ({'files': {'tokenizer.json': {'model': {'vocab': [['a', -1.5], ['b', -2.0]]}}}}, '(tokenizer.json diff'),
    ({'shards': 3, 'without': ['config.json']}, 'nor weights of GPT-2 or a ViT'),
    ({'shards': 3, 'without': ['model.safetensors.index.json']}, 'nor weights of GPT-2 or a ViT'),
    ({'shards': 3, 'without': ['model-00002-of-00003.safetensors']}, 'model-00002-of-00003.safetensors'),
    ({'shards': 3, 'cut': 'model-00001-of-00003.safetensors'}, 'cannot be read (Safetensor')]


def test_a_typo_in_a_folder_here_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / 'out/e_dnt').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pretrained.find_weights('out/e_dnt') == 'out/e_dnt'
    for name, words in (('out/e_dmt', 'Did you mean out/e_dnt?'), ('out/gpt', 'Check the spelling.')):
        assert_refused(lambda: pretrained.find_weights(name),
                       f'{name} does not exist in the folder out. {words} For a name on the')


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp('text'), tokenizer='gpt2', vocab=64, vocab_size=50257)


def finetune(text, out, *extra, code=0):
    return finish(python('train_gpt.py', 'config/finetune_gpt2.py', f'--dataset={text}', f'--out_dir={out}',
                         '--device=cpu', '--dtype=float32', '--global_batch_size=4', '--warmup_iters=0',
                         '--learning_rate=3e-3', '--log_interval=1', '--max_iters=10', '--eval_interval=10',
                         '--keep_interval=5', '--ckpt_interval=5', *extra), code)


@pytest.mark.slow
def test_gpt2_is_fine_tuned_and_resumes_without_a_flag_for_its_shape(text, tmp_path):
    hf, tensors = write_gpt2(tmp_path / 'gpt2')
    said, _ = finetune(text, tmp_path / 'run', f'--init_from={tmp_path}/gpt2')
    assert 'The optimizer is new.' in said
    log = rows(tmp_path / 'run')
    # before the first update, the loss over the whole windows of val is that of the reference
    val = torch.from_numpy(np.fromfile(text / 'val.bin', '<u2').astype(np.int64))
    windows = val[:len(val) // 12 * 12 + 1]
    x, y = windows[:-1].view(-1, 12), windows[1:].view(-1, 12)
    first, last = [r['loss'] for r in log if r['split'] == 'val']
    expected = F.cross_entropy(gpt2_logits(hf, tensors, x).flatten(0, 1), y.flatten()).item()
    assert abs(first - expected) < 1e-5
    assert last < first - 0.1
    assert [r['iter'] for r in log if r['split'] == 'train'] == list(range(10))
    assert final(tmp_path / 'run')['model_args']['gelu'] == 'tanh'
    # half of it, then resumed by the same line
    half = tmp_path / 'half'
    half.mkdir()
    shutil.copy(tmp_path / 'run/ckpt_000005.pt', half)
    (half / 'log.jsonl').write_text((tmp_path / 'run/log.jsonl').read_text())
    shutil.copy(tmp_path / 'run/best.pt', half)
    finetune(text, half, '--init_from=resume')
    assert_same_run(tmp_path / 'run', half)
    # what a resumed run states must still agree
    _, said = finetune(text, half, '--init_from=resume', '--n_embd=32', code=1)
    assert 'was made with n_embd=16, now it is 32' in said


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_from_the_weights_of_the_config(text, tokens, tmp_path):
    write_gpt2(tmp_path / 'gpt2')
    (tmp_path / 'mine.py').write_text(f'init_from = {str(tmp_path / "gpt2")!r}\n')
    said, _ = finetune(text, tmp_path / 'run', f'{tmp_path}/mine.py', '--init_from=resume', '--max_iters=1',
                       '--block_size=8')  # a shorter context
    assert 'has no checkpoint yet' in said
    assert f'The weights come from {tmp_path}/gpt2' in said
    assert final(tmp_path / 'run')['model']['wpe.weight'].shape == (8, 16)
    _, said = train(tokens, tmp_path / 'no', f'--init_from={tmp_path}/gpt2', code=1)
    assert 'was made with tokenizer=gpt2, now it is byte; vocab_size=50257, now it is 257. Use a data' in said


@gpt2_is_here
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
    out, _ = finish(python('sample.py', f'--init_from={tmp_path}/gpt2', '--prompt=Hello world',
                           '--device=cpu', '--dtype=float32', '--temperature=0', '--max_new_tokens=5'))
    ids = [50256, *gpt2.encode('Hello world')]
    for _ in range(5):
        logits = gpt2_logits(hf, tensors, torch.tensor([ids]))[0, -1]
        ids.append(logits[:50257].argmax().item())
    assert gpt2.decode(ids[1:]) in out


@pytest.mark.parametrize('flag,words', [
    ('--seed=99999999999999999999', 'seed=99999999999999999999 is out of range. Set --seed to'),
    ('--temperature=1e-40', 'temperature=1e-40 is too small to divide by. Use --temperature=0'),
    ('--temperature=-1', 'temperature=-1.0 is out of range'), ('--num_samples=0', 'num_samples=0 is out of')])
def test_sample_refuses_numbers_that_it_cannot_use(monkeypatch, flag, words):
    monkeypatch.setattr('sys.argv', ['sample.py', flag])
    assert_refused(lambda: runpy.run_path(ROOT / 'sample.py'), words)


# -----------------------------------------------------------------------------
# ViT as timm defines it

TIMM_BLOCK = 'blocks', ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')


def write_timm(folder, n_classes=6, qkv_bias=True, positions=16, patch=4, width=64, layers=2, config=True,
               extra=(), channels=3, dtype=torch.float32, prefix='', **keys):
    """A random plain ViT in timm's format. -> its tensors"""
    rng, C = torch.Generator().manual_seed(0), width
    shapes = {'cls_token': (1, 1, C), 'pos_embed': (1, 1 + positions, C),
              'patch_embed.proj.weight': (C, channels, patch, patch),
              'patch_embed.proj.bias': (C,), 'norm.weight': (C,), 'norm.bias': (C,)}
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


def vit_logits(tensors, images, heads=1):
    """
    The logits, in float64, of images (B, 3, H, H) that are normalized as timm does it. The positions are
    interpolated to the size of the images.
    """
    w = {k: t.double() for k, t in tensors.items()}
    C, P = w['cls_token'].size(-1), w['patch_embed.proj.weight'].size(-1)
    B, grid = len(images), images.size(-1) // P

    patches = images.double().view(B, 3, grid, P, grid, P).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(B, grid * grid, -1)
    x = patches @ w['patch_embed.proj.weight'].flatten(1).T + w['patch_embed.proj.bias']
    old = math.isqrt(w['pos_embed'].size(1) - 1)
    m = bicubic(old, grid)
    square = torch.einsum('ai,bj,ijc->abc', m, m, w['pos_embed'][0, 1:].view(old, old, C))
    cls = w['cls_token'].expand(B, 1, C) + w['pos_embed'][:, :1]
    x = torch.cat((cls, x + square.reshape(1, -1, C)), dim=1)
    x = transformer(x, w, *TIMM_BLOCK, heads, 'gelu', 1e-6, causal=False)
    return x[:, 0] @ w['head.weight'].T + w['head.bias']


PICTURES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('keys', [{}, {'qkv_bias': False}, {'config': False}, {'width': 128},
                                  {'model_args': {'num_heads': 4}}, {'layers': 11},
                                  {'prefix': 'module.'}, {'dtype': torch.float16}], ids=str)
def test_a_vit_of_timm_computes_what_timm_defines(tmp_path, keys):
    tensors = write_timm(tmp_path, **keys)
    heads = keys.get('model_args', {}).get('num_heads', keys.get('width', 64) // 64)
    checkpoint = load_checkpoint(str(tmp_path / 'model.safetensors'))
    assert checkpoint['model_args']['norm_eps'] == 1e-6
    with torch.no_grad():
        assert_equal(network_of(checkpoint)(PICTURES.double()), vit_logits(tensors, PICTURES, heads))


@pytest.mark.parametrize('grid', [3, 4, 7])
def test_positions_are_interpolated_as_timm_does_it(grid):
    old = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    new, m = resize_positions(old, grid), bicubic(4, grid)
    expected = torch.einsum('ai,bj,ijc->abc', m, m, old[0, 1:].view(4, 4, 8).double())
    torch.testing.assert_close(new[0, 1:].double(), expected.reshape(-1, 8), atol=1e-5, rtol=0)
    assert torch.equal(new[:, 0], old[:, 0])


NOT_PLAIN_VIT = [
    ({'extra': ['dist_token']}, 'it has a tensor dist_token'),
    ({'extra': ['blocks.0.ls1.gamma']}, 'it has a tensor blocks.0.ls1.gamma'),
    ({'extra': ['blocks.0.attn.q_norm.weight']}, 'it has a tensor blocks.0.attn.q_norm.weight'),
    ({'extra': ['fc_norm.weight']}, 'it has a tensor fc_norm.weight'),
    ({'extra': ['norm_pre.weight']}, 'it has a tensor norm_pre.weight'),
    ({'global_pool': 'avg'}, "global_pool='avg'"),
    ({'model_args': {'global_pool': 'avg', 'fc_norm': False}}, "global_pool='avg'"),
    ({'model_args': {'act_layer': 'quick_gelu'}}, "act_layer='quick_gelu'"),
    ({'model_args': {'block_fn': 'ResPostBlock'}}, "block_fn='ResPostBlock'"),
    ({'architecture': 'resnet50'}, "architecture='resnet50'"),
    ({'architecture': 'vit_base_patch16_clip_224'}, "architecture='vit_base_patch16_clip_224'"),
    ({'width': 32}, 'the number of heads is unknown for a width of 32'),
    ({'width': 96}, 'the number of heads is unknown for a width of 96'),
    ({'channels': 1}, 'patch_embed.proj.weight has the shape [64, 1, 4, 4], not [64, 3, 4, 4]'),
    ({'channels': 1, 'config': False}, 'patch_embed.proj.weight has the shape [64, 1, 4, 4], not [64, 3'),
    ({'positions': 12}, 'pos_embed has the shape [1, 13, 64], not [1, 10, 64]'),
    ({'layers': 0}, 'it has no tensor blocks.0.attn.proj.bias')]


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
    alone = tmp_path / 'model.safetensors'  # the folder and the file in it are refused alike
    for path in [alone] * alone.exists() + [tmp_path] * (tmp_path / 'config.json').exists() or [tmp_path]:
        assert_refused(lambda: load_checkpoint(str(path)), str(path), words)


TUNE = ['config/finetune_vit.py', '--device=cpu', '--dtype=float32', '--global_batch_size=4',
        '--max_iters=10', '--warmup_epochs=0', '--log_interval=1', '--eval_interval=10', '--keep_interval=5',
        '--ckpt_interval=5', '--shift=0']


def tune(data, out, *extra, code=0):
    return finish(python('train_vit.py', *TUNE, f'--dataset={data}', f'--out_dir={out}', *extra), code)


def reference_loss(tensors, arrays, size, split='val'):
    """Of pictures that are resized, rounded to bytes and normalized as timm does it."""
    images, labels, _ = load_images(arrays, split)
    images, m = torch.tensor(np.array(images)).permute(0, 3, 1, 2).double(), bicubic(images.shape[1], size)
    images = torch.einsum('ai,bj,ncij->ncab', m, m, images).round().clamp(0, 255)
    logits = vit_logits(tensors, images / 255 * 2 - 1)
    return F.cross_entropy(logits, torch.from_numpy(labels)).item()


@pytest.mark.slow
def test_a_vit_of_timm_is_evaluated_at_any_size_of_pictures(arrays, tmp_path):
    """8 x 8 pictures at 16 pixels and at 24; the mean and std of the data set are not those of timm."""
    tensors = write_timm(tmp_path / 'timm')
    for size, flags in ((16, []), (24, ['--image_size=24'])):
        said, _ = tune(arrays, tmp_path / 'no', f'--init_from={tmp_path}/timm', '--eval_only=True', *flags)
        assert f'8 x 8, are resized to image_size={size}' in said
        assert (f'interpolated from 4 x 4 to {size // 4} x {size // 4} patches' in said) == (size != 16)
        assert f'val loss {reference_loss(tensors, arrays, size):.4f}' in said


@pytest.mark.slow
def test_a_vit_of_timm_gets_a_new_head_learns_resumes_and_predicts(arrays, tmp_path):
    write_timm(tmp_path / 'timm', n_classes=1000)
    said, _ = tune(arrays, tmp_path / 'run', f'--init_from={tmp_path}/timm')
    assert 'a head for 1000 classes, the data set has 6 others: the head starts again at zero' in said
    log = rows(tmp_path / 'run')
    first, last = [r['loss'] for r in log if r['split'] == 'val']
    assert abs(first - math.log(6)) < 1e-6
    losses = [r['loss'] for r in log if r['split'] == 'train']
    assert len(losses) == 10
    assert np.mean(losses[5:]) < np.mean(losses[:5])
    half = tmp_path / 'half'
    half.mkdir()
    for name in ('ckpt_000005.pt', 'best.pt', 'log.jsonl'):
        shutil.copy(tmp_path / 'run' / name, half)
    tune(arrays, half, '--init_from=resume')
    assert_same_run(tmp_path / 'run', half)
    # a picture of the training set is predicted as training saw it: at 8 x 8, then at 16
    images, _, _ = load_images(arrays, 'train')
    Image.fromarray(images[0]).save(tmp_path / 'a.png')
    said, _ = tune(arrays, tmp_path / 'run', '--init_from=resume', f'--predict={tmp_path}/a.png')
    model, m = network_of(final(tmp_path / 'run', 'best.pt')), bicubic(8, 16)
    pixels = torch.einsum('ai,bj,ijc->cab', m, m, torch.tensor(images[0]).double()).round().clamp(0, 255)
    p, best = model((pixels[None] / 255 - 0.5) / 0.3)[0].softmax(-1).max(-1)
    ckpt = network_of(final(tmp_path / 'run'))
    q, last = ckpt((pixels[None] / 255 - 0.5) / 0.3)[0].softmax(-1).max(-1)
    assert any(f'a.png: {"abcdef"[i]} {x:.1%}' in said for i, x in ((best, p), (last, q)))


@pytest.mark.slow
def test_a_vit_without_a_head_or_without_names_gets_a_new_head(arrays, tmp_path):
    write_timm(tmp_path / 'timm', n_classes=0)
    tune(arrays, tmp_path / 'run', f'--init_from={tmp_path}/timm', '--max_iters=1')
    assert abs(rows(tmp_path / 'run')[0]['loss'] - math.log(6)) < 1e-6
    _, said = tune(arrays, tmp_path / 'no', f'--init_from={tmp_path}/timm', '--eval_only=True', code=1)
    assert 'has no head, so it knows no classes. Fine-tune it' in said
    write_timm(tmp_path / 'six')  # as many classes as the data set has, but which of them comes first?
    said, _ = tune(arrays, tmp_path / 'named', f'--init_from={tmp_path}/six', '--max_iters=1')
    assert 'a head for 6 unnamed classes, the data set has 6 others: the head starts again at zero' in said
    assert abs(rows(tmp_path / 'named')[0]['loss'] - math.log(6)) < 1e-6


@pytest.mark.slow
def test_our_own_vit_gets_a_new_head_for_other_classes(seen, arrays, tmp_path):
    data = write_images(tmp_path / 'data')
    meta = json.loads((data / 'meta.json').read_text())
    (data / 'meta.json').write_text(json.dumps(meta | {'classes': list('abcxefg')}))
    said, _ = train_vit(data, tmp_path / 'run', f'--init_from={seen}/ckpt.pt', '--learning_rate=0',
                        '--min_lr=0')
    assert 'a head for 6 classes, the data set has 7 others' in said
    assert abs(rows(tmp_path / 'run')[0]['loss'] - math.log(7)) < 1e-6
    then, now = final(seen)['model'], final(tmp_path / 'run')['model']
    assert all(torch.equal(then[k], now[k]) for k in then if not k.startswith('head'))
    _, said = train_vit(data, tmp_path / 'no', f'--init_from={seen}/ckpt.pt', '--eval_only=True', code=1)
    assert "was trained on other classes: its class 3 is 'd', that of the data set is 'x'" in said


@pytest.mark.parametrize('size', [16, 20, 224])
def test_small_pictures_are_resized_as_pillow_does_it(arrays, size):
    class Env:
        device, device_type, said = 'cpu', 'cpu', []
        say = said.append
    data = Images(str(arrays), {'image_size': size, 'shift': 4, 'eval_only': False}, Env)
    data.open('train', 'val')
    assert len(Env.said) == 1
    pictures = data.splits['train'][0] // 2 + 64  # Pillow rounds and cuts off after each of its two passes
    ours = data.resized(pictures.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy().astype(int)
    theirs = np.stack([Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)
                       for p in pictures.numpy()])
    assert np.abs(ours - theirs).max() <= 1


# -----------------------------------------------------------------------------
# weights out

S1, S5 = SETTINGS['S1'] | {'norm': 'layer'}, SETTINGS['S5']
BYTES = ('byte', 60, 'without a tokenizer: its ids are list(text.encode()), and 256 ends a document.')
GPT2 = ('gpt2', 50257, "without a tokenizer: load AutoTokenizer.from_pretrained('gpt2') of transformers.")
PART = ('gpt2', 50, 'without a tokenizer: its ids are those of experiments/vocabulary.py.')
OURS = ('byte', 60, 'our own names, which --init_from reads')


@pytest.mark.parametrize('args,words', [
    (S1, BYTES), (S1 | {'bias': True, 'gelu': 'tanh', 'norm_eps': 0.01}, GPT2), (S1 | {'tied': False}, GPT2),
    (S1 | {'bias': True, 'qkv_bias': False, 'tied': False, 'norm_eps': 0.0}, BYTES), (S1, PART),
    (S5, OURS), (S5 | {'bias': True, 'tied': False}, OURS), (S1 | {'weight_standardization': 'all'}, OURS),
    (S1 | {'n_classes': 6}, OURS), (S5 | {'n_classes': 6}, OURS)], ids=str)
def test_an_export_comes_back_with_the_same_bits(tmp_path, args, words):
    tokenizer, vocab_size, words = words
    args = dict(n_layer=2, n_head=2, n_embd=16) | args
    data, inputs = {'tokenizer': tokenizer, 'vocab_size': vocab_size}, IDX[:, :9] % 50
    if 'n_classes' in args:
        args |= {'image_size': 16, 'patch_size': 4}
        data, inputs = {'classes': list('abcdef'), 'mean': [0.5] * 3, 'std': [0.3] * 3}, PICTURES
    else:
        args |= {'block_size': 12, 'vocab_size': -(-vocab_size // 64) * 64}
    model = build(ViT if 'n_classes' in args else GPT, ViTConfig if 'n_classes' in args else GPTConfig, args)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    saved = {'model': model.state_dict(), 'model_args': args, 'config': {'setting': 'S1'}, 'data': data}
    (tmp_path / 'out.tmp').write_text('of the user')
    before = os.umask(0o027)
    try:
        assert words in pretrained.export(saved, str(tmp_path / 'out'))
    finally:
        os.umask(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'out.tmp']
    assert [oct(p.stat().st_mode)[-3:] for p in (tmp_path / 'out', *sorted((tmp_path / 'out').iterdir()))] \
        == ['750', '640', '640']
    again = load_checkpoint(str(tmp_path / 'out'))
    assert again['data'] == data
    back = network_of(again)
    for name, tensor in again['model'].items():  # the rows that pad GPT-2's vocabulary stay behind
        then = saved['model'].get(name, torch.zeros(tensor.shape))
        assert torch.equal(tensor, then[:len(tensor)])
    with torch.no_grad():
        if 'n_classes' in args:
            assert torch.equal(back(inputs.double()), model.eval().double()(inputs.double()))
            return
        assert torch.equal(back.features(inputs), model.double().features(inputs))
        if words != OURS[2]:
            hf = json.loads((tmp_path / 'out/config.json').read_text())
            assert (hf['model_type'], hf['architectures']) == ('gpt2', ['GPT2LMHeadModel'])
            assert hf['vocab_size'] == vocab_size
            tensors = load_file(tmp_path / 'out/model.safetensors')
            assert_equal(back(inputs)[0], gpt2_logits(hf, tensors, inputs))


@pytest.mark.slow
def test_runs_are_exported_by_sample_and_read_again(straight, seen, tokens, arrays, tmp_path):
    def export(run, name):
        return finish(python('sample.py', f'--out_dir={run}', f'--export={tmp_path}/{name}',
                             '--device=cpu'))[0]

    said = in_parallel([lambda: export(straight, 'text'), lambda: export(seen, 'vision')])
    assert all('our own names' in s for s in said)
    for run, name in ((straight, 'text'), (seen, 'vision')):
        best, again = final(run, 'best.pt'), load_checkpoint(str(tmp_path / name))
        assert again['model'].keys() == best['model'].keys()
        assert all(torch.equal(t, best['model'][k]) for k, t in again['model'].items())
        assert again['model_args'] == best['model_args']
    out, _ = train(tokens, tmp_path / 'no', f'--init_from={tmp_path}/text', '--eval_only=True')
    best = final(straight, 'best.pt')
    assert f'val loss {best["best_val_loss"]:.4f}' in out
    out, _ = train_vit(arrays, tmp_path / 'no', f'--init_from={tmp_path}/vision', '--eval_only=True')
    assert f'top-1 {final(seen, "best.pt")["best_top1"]:.4f}' in out
    texts = in_parallel([lambda f=f: finish(python('sample.py', f, '--device=cpu', '--max_new_tokens=20'))[0]
                         for f in (f'--out_dir={straight}', f'--init_from={tmp_path}/text')])
    assert texts[0] == texts[1]
    before = (straight / 'config.json').read_text()  # a folder with files is left alone
    _, said = finish(python('sample.py', f'--out_dir={straight}', f'--export={straight}', '--device=cpu'), 1)
    assert 'has files already. Use another folder' in said
    assert (straight / 'config.json').read_text() == before
