"""
Weights that other projects made, as checkpoints of ours (GPT-2 in Hugging Face's format, ViTs in timm's), and
ours in files that other projects read. Only config.json and safetensors files are opened, never a pickle.
"""

import json
import math
import os
import re
import shutil
from dataclasses import asdict

import torch

from model import NORMS, SETTINGS, GPTConfig
from support.console import fail

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'

# -----------------------------------------------------------------------------
# from a name to a folder

FILES = ('.pt', '.pth', '.bin', '.ckpt', '.json', '.npz', '.safetensors')  # a path, not a name on the Hub
SHORT = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')  # of openai-community/gpt2, ...


def find_weights(name: str) -> str:
    """
    The local path of some weights. A file or folder of that name comes first. After it come the short names
    of GPT-2 and any OWNER/NAME, which are downloaded from the Hugging Face Hub into its cache.
    """
    hub_id = re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name) and not name.endswith(FILES)
    if os.path.exists(name) or not (hub_id or name in SHORT):
        return name
    return download(f'openai-community/{name}' if name in SHORT else name, name)


def download(repo, name):
    """The folder in the Hub's cache with config.json and the safetensors files of a repository."""
    from huggingface_hub import constants, errors, hf_hub_download
    unknown = f'{name} is not a file or folder here'
    try:
        folder = os.path.dirname(hf_hub_download(repo, 'config.json'))
        try:
            hf_hub_download(repo, SINGLE)
        except errors.EntryNotFoundError:
            for file in parts(hf_hub_download(repo, INDEX)):
                hf_hub_download(repo, file)
        return folder
    except errors.LocalEntryNotFoundError as e:
        status = getattr(getattr(e.__cause__, 'response', None), 'status_code', None)
        why = f'answers HTTP {status}' if status else 'cannot be reached'
        fail(f'{unknown}, {repo} is not in the cache {constants.HF_HUB_CACHE}, and the Hugging Face Hub '
             f'{why}. Check the network, or put config.json and {SINGLE} into {os.path.abspath(name)}.')
    except errors.EntryNotFoundError:
        fail(f'{repo} on the Hugging Face Hub has no config.json or no {SINGLE}. Use a repository with both; '
             'pickles (pytorch_model.bin) are not opened.')
    except errors.GatedRepoError:
        fail(f'{repo} is gated. Accept its terms on its page on the Hugging Face Hub, then log in with '
             '`hf auth login` or set HF_TOKEN.')
    except errors.RepositoryNotFoundError:
        fail(f'{unknown}, and {repo} is not on the Hugging Face Hub. Check the spelling; if it is private, '
             'log in with `hf auth login`.')
    except errors.HfHubHTTPError as e:
        fail(f'The Hugging Face Hub answered HTTP {e.response.status_code} for {repo}. Try again later.')
    except Exception as e:  # of the network, of the disk: each version of the Hub's client has its own
        fail(f'The download of {repo} broke off ({first_words(e)}). Run the same line again.')


def parts(index):
    """The file names that an index of shards lists."""
    return sorted(set(read_json(index)['weight_map'].values()))


def read_json(path):
    with open(path, encoding='utf-8') as f:
        return dict(json.load(f))


def first_words(e):
    return ' '.join(str(e).split())[:200] or type(e).__name__

# -----------------------------------------------------------------------------
# from a folder to a checkpoint

def load(path: str) -> dict:
    """
    A checkpoint (model, model_args, data, config) from a folder with config.json and safetensors files, or
    from one safetensors file, with the config.json beside it where there is one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    whole = os.path.isdir(path)
    about, index, single = (os.path.join(path if whole else os.path.dirname(path), file)
                            for file in ('config.json', INDEX, SINGLE))
    if whole:
        for file, found in (('config.json', [about]), (SINGLE, [single, index])):
            if not any(map(os.path.exists, found)):
                fail(f'{path} has neither a checkpoint (*.pt) nor a {file}. Weights of GPT-2 or of a ViT '
                     f'are a folder with config.json and {SINGLE} (or {INDEX} and its parts).')
    try:
        about = read_json(about) if os.path.exists(about) else {}
        files = [path] if not whole else [single] if os.path.exists(single) else \
            [os.path.join(path, file) for file in parts(index)]
        tensors = {key: tensor for file in files for key, tensor in load_file(file).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        fail(f'The weights in {path} cannot be read ({type(e).__name__}: {first_words(e)}). Download them '
             'again.')
    if {'model_args', 'data', 'config'} <= about.keys():
        return from_ours(about, tensors)
    if 'architecture' in about or 'cls_token' in tensors:
        return from_timm(path, about, tensors)
    return from_gpt2(path, about, tensors)


def from_ours(about, tensors):
    """What export() wrote: the checkpoint of a run without its optimizer. A tied head is not stored twice."""
    if 'wte.weight' in tensors:
        tensors.setdefault('lm_head.weight', tensors['wte.weight'])
    return {'model': tensors, **{key: about[key] for key in ('model_args', 'data', 'config')}}


def gpt2_names(n_layer):
    """The layers of GPT-2: Hugging Face's name -> ours."""
    names = {'wte': 'wte', 'wpe': 'wpe', 'ln_f': 'final_norm'}
    for i in range(n_layer):
        names |= {f'h.{i}.{theirs}': f'blocks.{i}.{ours}' for theirs, ours in (
            ('ln_1', 'pre_norm'), ('attn.c_attn', 'attn.c_attn'), ('attn.c_proj', 'attn.c_proj'),
            ('ln_2', 'ffn_pre_norm'), ('mlp.c_fc', 'ffn.c_fc'), ('mlp.c_proj', 'ffn.c_proj'))}
    return names


GELU = {'gelu': 'exact', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh'}


def from_gpt2(path, hf, tensors):
    """GPT-2: setting S1, LayerNorm, bias. Hugging Face stores its matrices as (in, out)."""
    def refuse(key, plain):
        fail(f'{path} is not a plain GPT-2: its config.json says {key}={hf.get(key)!r}, not {plain!r}. Use '
             'another model.')

    if hf.get('model_type', 'gpt2') != 'gpt2':
        refuse('model_type', 'gpt2')
    try:
        args = {key: hf[key] for key in ('n_layer', 'n_head', 'n_embd', 'vocab_size')}
        args['block_size'] = hf['n_positions'] if 'n_positions' in hf else hf['n_ctx']
    except KeyError as e:
        fail(f'{path} is not a GPT-2: it has no config.json with {e.args[0]}. Weights of GPT-2 are a folder '
             f'with config.json and {SINGLE}.')
    for key, plain in (('scale_attn_weights', True), ('scale_attn_by_inverse_layer_idx', False),
                       ('add_cross_attention', False), ('n_inner', 4 * args['n_embd'])):
        if hf.get(key) not in (None, plain):
            refuse(key, plain)
    activation = hf.get('activation_function', 'gelu_new')
    if activation not in GELU:
        refuse('activation_function', list(GELU))
    args |= dict(norm='layer', bias=True, gelu=GELU[activation], norm_eps=hf.get('layer_norm_epsilon', 1e-5),
                 tied=hf.get('tie_word_embeddings', True), **SETTINGS['S1'])

    names, model = gpt2_names(args['n_layer']), {}
    for key, tensor in tensors.items():
        theirs, _, kind = key.removeprefix('transformer.').rpartition('.')
        if theirs in names:  # the rest are causal masks and a head
            matrix = kind == 'weight' and '.c_' in theirs
            model[f'{names[theirs]}.{kind}'] = tensor.t().contiguous() if matrix else tensor
    head = model.get('wte.weight') if args['tied'] else tensors.get('lm_head.weight')
    if head is not None:
        model['lm_head.weight'] = head
    need = {f'{ours}.{kind}' for ours in (*names.values(), 'lm_head') for kind in ('weight', 'bias')}
    lacking = sorted(need - {'wte.bias', 'wpe.bias', 'lm_head.bias'} - set(model))
    if lacking:
        fail(f'{path} is not a complete GPT-2: {len(lacking)} of its tensors are missing, for example '
             f'{lacking[0]}. Download it again.')
    data = hf.get('data') or {'tokenizer': 'gpt2', 'vocab_size': min(50257, args['vocab_size'])}
    return {'model': model, 'model_args': args, 'data': data, 'config': {'setting': 'S1'}}


def unnamed_classes(n):
    return [f'class {i}' for i in range(n)]


def from_timm(path, about, tensors):
    """
    A plain ViT of timm: setting S1, LayerNorm with eps 1e-6, bias. The shape follows from the tensors; a head
    has 64 channels, in ViT-Huge 80. What timm has beyond that shows as a tensor or a key, and is refused.
    """
    def refuse(what):
        fail(f'{path} is not a plain ViT: {what}. Use a vit_{{tiny,small,base,large,huge}}_patch* or '
             'deit_*_patch* with a class token and without layer scale.')

    name, given = about.get('architecture', ''), about.get('model_args') or {}
    sizes = 'tiny|small|base|large|huge'
    if name and not re.fullmatch(rf'(vit|deit)_({sizes})_patch\d+_\d+(_in21k|_miil)?', name):
        refuse(f'its config.json says architecture={name!r}')
    plain = {'global_pool': ('token', '', None), 'act_layer': ('gelu', None), 'norm_layer': (None,)}
    for key, value in [(key, values.get(key)) for key in plain for values in (about, given)]:
        if value not in plain[key]:
            refuse(f'its config.json says {key}={value!r}')

    names = {'patch_embed.proj': 'patch_embed', 'norm': 'final_norm', 'head': 'head'}
    n_layer = max(1, len({key.split('.')[1] for key in tensors if key.startswith('blocks.')}))
    for i in range(n_layer):
        names |= {f'blocks.{i}.{theirs}': f'blocks.{i}.{ours}' for theirs, ours in (
            ('norm1', 'pre_norm'), ('attn.qkv', 'attn.c_attn'), ('attn.proj', 'attn.c_proj'),
            ('norm2', 'ffn_pre_norm'), ('mlp.fc1', 'ffn.c_fc'), ('mlp.fc2', 'ffn.c_proj'))}
    names = {f'{key}.{kind}': f'{ours}.{kind}' for key, ours in names.items() for kind in ('weight', 'bias')}
    names |= {'cls_token': 'cls_token', 'pos_embed': 'pos_embed'}
    optional = {'head.weight', 'head.bias', *(f'blocks.{i}.attn.qkv.bias' for i in range(n_layer))}
    for key in sorted((names.keys() - optional) ^ (tensors.keys() - optional)):  # in one of the two alone
        refuse(f'it has {"a" if key in tensors else "no"} tensor {key}')
    model = {names[key]: tensor for key, tensor in tensors.items()}

    width, patch = model['cls_token'].size(-1), model['patch_embed.weight'].size(-1)
    positions, n_classes = model['pos_embed'].size(1), len(model.get('head.bias', ()))
    grid = math.isqrt(positions - 1)
    n_head = given.get('num_heads') or {1280: 16}.get(width, width // 64)
    if grid ** 2 + 1 != positions:
        refuse(f'its {positions} positions are not a square of patches and a class token')
    if model['blocks.0.ffn.c_fc.weight'].size(0) != 4 * width:
        refuse('its blocks.0.mlp.fc1 is not four times as wide as the model')
    if not n_head or width % n_head:
        refuse(f'the number of heads is unknown for a width of {width}')
    args = {'n_layer': n_layer, 'n_head': n_head, 'n_embd': width, 'patch_size': patch,
            'image_size': grid * patch, 'n_classes': n_classes, 'norm': 'layer', 'norm_eps': 1e-6,
            'bias': True, 'qkv_bias': 'blocks.0.attn.c_attn.bias' in model, **SETTINGS['S1']}
    labels, pixels = about.get('label_names'), about.get('pretrained_cfg') or about
    named = isinstance(labels, list) and len(labels) == n_classes
    data = {'classes': labels if named else unnamed_classes(n_classes), 'layout': 'jpeg',
            # 0.5 is that of timm's own ViTs
            **{key: list(pixels.get(key) or [0.5] * 3) for key in ('mean', 'std')}}
    return {'model': model, 'model_args': args, 'data': data, 'config': {'arch': 'vit', 'setting': 'S1'}}

# -----------------------------------------------------------------------------
# another head, another size of pictures, another normalization of pixels

def fresh_head(checkpoint, n_classes):
    """A head for other classes. It starts with zeros, as in the ViT paper."""
    model, args = checkpoint['model'], checkpoint['model_args']
    width = model['head.weight'].size(1) if 'head.weight' in model else args['n_embd']
    model |= {'head.weight': torch.zeros(n_classes, width), 'head.bias': torch.zeros(n_classes)}
    args['n_classes'] = n_classes


def resize_positions(positions, grid):
    """The positions (1, 1 + n, C) of a square of patches for one of grid x grid, bicubic, as timm does it."""
    old = math.isqrt(positions.size(1) - 1)
    square = positions[:, 1:].float().view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, C, old, old)
    square = torch.nn.functional.interpolate(square, (grid, grid), mode='bicubic', antialias=True)
    return torch.cat((positions[:, :1].float(), square.flatten(2).transpose(1, 2)), dim=1)


def take_pixels(model, then, now):
    """
    The patch embedding was trained on pixels with the mean and std of then, and will read pixels with those
    of now (two meta.json). A linear layer can take over the difference, so the network computes the same.
    """
    mean, new_mean = (torch.tensor(data['mean']).view(3, 1, 1) for data in (then, now))
    std, new_std = (torch.tensor(data['std']).clamp(min=1 / 255).view(3, 1, 1) for data in (then, now))
    w, b = model['patch_embed.weight'].float(), model['patch_embed.bias'].float()
    model['patch_embed.weight'] = w * (new_std / std)
    model['patch_embed.bias'] = b + (w * ((new_mean - mean) / std)).sum((1, 2, 3))

# -----------------------------------------------------------------------------
# from a checkpoint to a folder

def export(checkpoint: dict, folder: str) -> str:
    """
    Write the weights of a checkpoint as model.safetensors with a config.json: a GPT of setting S1 with
    LayerNorm as the GPT-2 of Hugging Face, any other network under our own names. Returns the kind in words.
    """
    from safetensors.torch import save_file
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        fail(f'{folder} has files already. Use another folder for --export.')
    gpt2 = is_gpt2(checkpoint['model_args'])
    about, tensors = to_gpt2(checkpoint) if gpt2 else to_ours(checkpoint)
    tmp = f'{folder.rstrip(os.sep)}.tmp'
    try:
        shutil.rmtree(tmp, ignore_errors=True)
        os.makedirs(tmp)
        save_file({key: t.clone() for key, t in tensors.items()}, os.path.join(tmp, SINGLE), {'format': 'pt'})
        with open(os.path.join(tmp, 'config.json'), 'w', encoding='utf-8') as f:
            json.dump(about, f, indent=2)
        os.replace(tmp, folder)
    except Exception as e:  # safetensors has its own error for a full disk
        shutil.rmtree(tmp, ignore_errors=True)
        fail(f'Cannot write {folder} ({first_words(e)}).')
    return 'GPT-2 in the format of Hugging Face' if gpt2 else 'our own names, which --init_from reads'


def is_gpt2(args):
    args = asdict(GPTConfig()) | args
    return 'n_classes' not in args and args['norm'] == 'layer' \
        and all(args[key] == SETTINGS['S1'][key] for key in NORMS) \
        and args.get('weight_standardization', 'none') == 'none'


def to_gpt2(checkpoint):
    """(config.json, tensors) of Hugging Face. Its GPT-2 always has biases: zeros where ours has none."""
    args, model = asdict(GPTConfig()) | checkpoint['model_args'], checkpoint['model']
    eot = 256 if checkpoint['data']['tokenizer'] == 'byte' else 50256
    hf = {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'data': checkpoint['data'],
          'n_positions': args['block_size'], 'bos_token_id': eot, 'eos_token_id': eot,
          'activation_function': 'gelu' if args['gelu'] == 'exact' else 'gelu_new',
          'layer_norm_epsilon': args['norm_eps'] or 1e-5, 'tie_word_embeddings': args['tied'],
          **{key: args[key] for key in ('n_layer', 'n_head', 'n_embd', 'vocab_size')},
          **{key: args['dropout'] for key in ('attn_pdrop', 'embd_pdrop', 'resid_pdrop')}}
    tensors = {} if args['tied'] else {'lm_head.weight': model['lm_head.weight']}
    for theirs, ours in gpt2_names(args['n_layer']).items():
        weight, bias = model[f'{ours}.weight'], model.get(f'{ours}.bias')
        tensors[f'transformer.{theirs}.weight'] = weight.t().contiguous() if '.c_' in theirs else weight
        if theirs not in ('wte', 'wpe'):
            tensors[f'transformer.{theirs}.bias'] = torch.zeros(len(weight)) if bias is None else bias
    return hf, tensors


def to_ours(checkpoint):
    """(config.json, tensors) as from_ours() reads them."""
    tied = checkpoint['model_args'].get('tied', True)
    return ({key: checkpoint[key] for key in ('model_args', 'data', 'config')},
            {key: t for key, t in checkpoint['model'].items() if not (tied and key == 'lm_head.weight')})
