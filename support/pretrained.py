"""
Weights that other projects made, as checkpoints of ours (GPT-2 in Hugging Face's format, ViTs in timm's), and
ours in files that other projects read. Only JSON and safetensors files are opened, never a pickle.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from dataclasses import asdict

import torch

from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.console import fail, reason

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
TOKENIZERS = ('vocab.json', 'tokenizer.json')
# SHA-256 of the tokens 0 to 50255, one a line, as GPT-2's vocab.json writes them
GPT2_TOKENS = '3a1f1c010d179f036be1992bc14b861e326341438633869c694dc4dccfe153d3'
PLAIN = SETTINGS['S1'] | {'norm': 'layer'}
GELU = {'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu': 'exact'}  # as transformers calls them
# our name -> theirs, for the parts of a name that differ, in the order in which they are replaced
NAMES = {
    'GPT-2': {'blocks': 'h', 'ffn_pre_norm': 'ln_2', 'pre_norm': 'ln_1', 'ffn': 'mlp', 'final_norm': 'ln_f'},
    'ViT': {'patch_embed': 'patch_embed.proj', 'ffn_pre_norm': 'norm2', 'pre_norm': 'norm1',
            'final_norm': 'norm', 'attn.c_attn': 'attn.qkv', 'attn.c_proj': 'attn.proj',
            'ffn.c_fc': 'mlp.fc1', 'ffn.c_proj': 'mlp.fc2'}}

# -----------------------------------------------------------------------------
# from a name to a folder

FILES = ('.pt', '.pth', '.bin', '.ckpt', '.json', '.npz', '.safetensors')  # a path, not a name on the Hub
SHORT = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')  # of openai-community/gpt2, ...


def find_weights(name: str) -> str:
    """
    The local path of some weights. A path has a folder that exists, or ends as a file of weights. The short
    names of GPT-2 and any other OWNER/NAME are downloaded from the Hugging Face Hub into its cache.
    """
    if os.path.exists(name) or os.path.isdir(os.path.dirname(name)) or name.endswith(FILES):
        return name
    if name in SHORT:
        return download(f'openai-community/{name}', name)
    if re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name):
        return download(name, name)
    return name


def download(repo, name):
    """The folder in the Hub's cache with what load() reads of a repository."""
    from huggingface_hub import constants, errors, snapshot_download
    try:
        return snapshot_download(repo, allow_patterns=[
            'config.json', SINGLE, INDEX, 'model-*-of-*.safetensors', *TOKENIZERS])
    except errors.LocalEntryNotFoundError as e:
        status = getattr(getattr(e.__cause__, 'response', None), 'status_code', None)
        why = f'answers HTTP {status}' if status else 'cannot be reached'
        fail(f'{name} is not a file or folder here, {repo} is not in the cache {constants.HF_HUB_CACHE}, and '
             f'the Hugging Face Hub {why}. Check the network, or put config.json and {SINGLE} into '
             f'{os.path.abspath(name)}.')
    except errors.RepositoryNotFoundError as e:
        if isinstance(e, errors.GatedRepoError):
            fail(f'{repo} is gated. Accept its terms on its page on the Hugging Face Hub, then log in with '
                 '`hf auth login` or set HF_TOKEN.')
        fail(f'{name} is not a file or folder here, and {repo} is not on the Hugging Face Hub. Check the '
             'spelling; if it is private, log in with `hf auth login`.')
    except Exception as e:  # of the network, of the disk: each version of the Hub's client has its own
        fail(f'The download of {repo} broke off ({reason(e)}). Run the same line again.')

# -----------------------------------------------------------------------------
# from a folder to a checkpoint

def load(path: str) -> dict:
    """
    A checkpoint (model, model_args, data, config) from a folder with config.json and safetensors files, or
    from one safetensors file, with the config.json beside it where there is one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    folder, file = (path, SINGLE) if os.path.isdir(path) else os.path.split(os.path.abspath(path))
    about, parts, tensors = {}, [file], {}
    try:
        there = os.listdir(folder)
        if INDEX in there and file not in there:
            parts = set(read_json(folder, INDEX)['weight_map'].values())
        if folder == path and ('config.json' not in there or parts == [SINGLE] and SINGLE not in there):
            fail(f'{path} has neither a checkpoint (*.pt) nor weights of GPT-2 or a ViT. Use a folder with '
                 f'config.json and {SINGLE} (or {INDEX} and its parts), not a pickle.')
        if 'config.json' in there:
            about = read_json(folder, 'config.json')
        for part in parts:
            tensors |= load_file(os.path.join(folder, part))
        # torch.compile and DDP put words before a name
        tensors = {re.sub(r'^((_orig_mod|module)\.)+', '', key): t for key, t in tensors.items()}
        if {'model_args', 'data', 'config'} <= about.keys():  # our export: a tied head is not stored twice
            head = {'lm_head.weight': tensors['wte.weight']} if 'wte.weight' in tensors else {}
            return {'model': head | tensors, **{key: about[key] for key in ('model_args', 'data', 'config')}}
        if 'architecture' in about or 'cls_token' in tensors:
            return from_timm(path, about, tensors)
        return from_gpt2(path, folder, about, tensors)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as e:
        fail(f'The weights in {path} cannot be read ({type(e).__name__}: {reason(e)}). Download them '
             'again.')


def read_json(folder, file):
    with open(os.path.join(folder, file), encoding='utf-8') as f:
        return dict(json.load(f))


def refuse(path, kind, what):
    remedy = 'a vit_*_patch* or deit_*_patch* with a class token and without layer scale'
    fail(f'{path} is not a plain {kind}: {what}. Use {remedy if kind == "ViT" else "another model"}.')


def refuse_keys(path, kind, config, plain):
    """config: (key, value) pairs of config.json. plain: {key: what it may say in a plain network}"""
    for key, value in config:
        if key in plain and value not in (*plain[key], None):
            refuse(path, kind, f'its config.json says {key}={value!r}, not {next(iter(plain[key]))!r}')


def plain_network(kind, args):
    """{their name: (our name, a tensor of its shape)} of all weights of a network"""
    with torch.device('meta'):  # tensors without memory
        network = ViT(ViTConfig(**args)) if kind == 'ViT' else GPT(GPTConfig(**args))
    weights = {}
    for name, like in network.state_dict().items():
        theirs = name
        for part in NAMES[kind].items():
            theirs = theirs.replace(*part)
        weights[theirs] = name, like
    return weights


def under_our_names(path, kind, tensors, args):
    """The tensors of a plain network with these args. Any other name, type or shape is refused."""
    model, wanted = {}, plain_network(kind, args)
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in wanted or key not in tensors:
            refuse(path, kind, f'it has {"a" if key in tensors else "no"} tensor {key}')
        (name, like), tensor = wanted[key], tensors[key]
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            refuse(path, kind, f'its {key} is quantized ({tensor.dtype})')
        if tensor.shape != like.shape:
            refuse(path, kind, f'its {key} has the shape {list(tensor.shape)}, not {list(like.shape)}')
        model[name] = tensor
    return model


def check_tokenizer(path, folder, vocab_size):
    """The ids in our data sets are GPT-2's, so the model must have been trained on those."""
    files, why = [file for file in TOKENIZERS if os.path.exists(os.path.join(folder, file))], ''
    if vocab_size < 50257 or vocab_size > 50257 and not files:
        why = f"its vocabulary has {vocab_size} entries, GPT-2's has 50257"
    for file in files:
        vocab = read_json(folder, file)
        vocab = dict(vocab['model']['vocab']) if file == 'tokenizer.json' else vocab
        tokens = '\n'.join(sorted(vocab, key=vocab.get)[:50256])
        if hashlib.sha256(tokens.encode()).hexdigest() != GPT2_TOKENS:
            why = f"{file} differs from GPT-2's"
    if why:
        fail(f"{path} has its own tokenizer ({why}), but our data sets hold GPT-2's ids. Use another model. "
             "If this one was trained on GPT-2's ids, put GPT-2's vocab.json beside its config.json.")


def from_gpt2(path, folder, hf, tensors):
    """GPT-2: setting S1, LayerNorm, bias. Hugging Face stores its matrices as (in, out)."""
    refuse_keys(path, 'GPT-2', hf.items(), {
        'model_type': ['gpt2'], 'scale_attn_weights': [True], 'scale_attn_by_inverse_layer_idx': [False],
        'add_cross_attention': [False], 'activation_function': GELU, 'n_inner': [4 * hf.get('n_embd', 0)]})
    for key in ('n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size'):
        if key not in hf:
            refuse(path, 'GPT-2', f'it has no config.json with {key}')
    args = {key: hf[key] for key in ('n_layer', 'n_head', 'n_embd', 'vocab_size')} | dict(
        block_size=hf['n_positions'], bias=True, norm_eps=hf.get('layer_norm_epsilon', 1e-5), **PLAIN,
        gelu=GELU[hf.get('activation_function') or 'gelu_new'], tied=hf.get('tie_word_embeddings', True))
    if 'data' not in hf:  # our export has it
        check_tokenizer(path, folder, args['vocab_size'])
    tensors = {key.removeprefix('transformer.'): tensor for key, tensor in tensors.items()
               if not re.search(r'\.attn\.(masked_)?bias$', key)}  # old files hold their causal masks
    ends = [tensors[key] for key in ('wte.weight', 'lm_head.weight') if key in tensors]
    if args['tied'] and ends:  # one matrix, which files hold under one of its names or under both
        if not torch.equal(ends[0], ends[-1]):
            refuse(path, 'GPT-2', 'its config.json says tie_word_embeddings=True, but it has a separate head')
        tensors |= {'wte.weight': ends[0], 'lm_head.weight': ends[0]}
    tensors = {key: tensor.t().contiguous() if '.c_' in key else tensor for key, tensor in tensors.items()}
    return {'model': under_our_names(path, 'GPT-2', tensors, args), 'model_args': args,
            'data': hf.get('data', {'tokenizer': 'gpt2', 'vocab_size': 50257}), 'config': {'setting': 'S1'}}


def unnamed_classes(n):
    return [f'class {i}' for i in range(n)]


def from_timm(path, about, tensors):
    """A plain ViT of timm. The shape follows from the tensors; a head has 64 channels, in ViT-Huge 80."""
    name, given = about.get('architecture', ''), about.get('model_args') or {}
    if name and not re.fullmatch(r'(vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+(_in21k|_miil)?',
                                 name):
        refuse(path, 'ViT', f'its config.json says architecture={name!r}')
    refuse_keys(path, 'ViT', [*about.items(), *given.items()], {
        'global_pool': ['token', ''], 'act_layer': ['gelu'], 'norm_layer': [None], 'block_fn': [None]})
    sizes = {key: tensor.shape for key, tensor in tensors.items()}
    width, *_, patch = sizes.get('patch_embed.proj.weight', (64, 3, 16, 16))
    grid = math.isqrt(sizes.get('pos_embed', (1, 197))[1] - 1)
    n_classes = sizes.get('head.bias', [0])[0]
    n_head = given.get('num_heads') or {1280: 16}.get(width, 0 if width % 64 else width // 64)
    if not n_head:
        refuse(path, 'ViT', f'the number of heads is unknown for a width of {width}')
    args = {'n_layer': max(1, len({key.split('.')[1] for key in tensors if key.startswith('blocks.')})),
            'n_head': n_head, 'n_embd': width, 'patch_size': patch, 'image_size': grid * patch,
            'n_classes': max(1, n_classes), 'norm_eps': 1e-6, 'bias': True,
            'qkv_bias': 'blocks.0.attn.qkv.bias' in tensors, **PLAIN}
    if not n_classes:  # without classes it is for fine-tuning only
        tensors |= {'head.weight': torch.zeros(1, width), 'head.bias': torch.zeros(1)}
    labels, pixels = about.get('label_names'), about.get('pretrained_cfg') or about
    named = isinstance(labels, list) and len(labels) == n_classes
    data = {'classes': labels if named else unnamed_classes(n_classes), 'layout': 'jpeg',
            # 0.5 is that of timm's own ViTs
            **{key: list(pixels.get(key) or [0.5] * 3) for key in ('mean', 'std')}}
    return {'model': under_our_names(path, 'ViT', tensors, args), 'model_args': args,
            'data': data, 'config': {'arch': 'vit', 'setting': 'S1'}}

# -----------------------------------------------------------------------------
# from a checkpoint to a folder

def export(checkpoint: dict, folder: str) -> str:
    """
    Write the weights of a checkpoint as model.safetensors with a config.json: a GPT of setting S1 with
    LayerNorm as the GPT-2 of Hugging Face, any other network under our own names. Returns what it wrote.
    """
    from safetensors.torch import save_file
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        fail(f'{folder} has files already. Use another folder for --export.')
    args, data = asdict(GPTConfig()) | checkpoint['model_args'], checkpoint['data']
    gpt2 = PLAIN.items() <= args.items() and 'n_classes' not in args \
        and args.get('weight_standardization', 'none') == 'none'
    about, tensors = {key: checkpoint[key] for key in ('model_args', 'data', 'config')}, checkpoint['model']
    kind = 'our own names, which --init_from reads'
    if gpt2:
        about, tensors = to_gpt2(args, data, tensors)
        ids = f'those of --tokenizer={data["tokenizer"]}'
        if data['tokenizer'] == 'gpt2' and data['vocab_size'] < 50257:  # experiments/vocabulary.py
            ids = f'part of {ids}'
        kind = f'GPT-2 in the format of Hugging Face, without a tokenizer. Its ids are {ids}'
    elif args['tied']:
        tensors = {key: tensor for key, tensor in tensors.items() if key != 'lm_head.weight'}
    parent = os.path.dirname(os.path.realpath(folder))
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as tmp:
            new = os.path.join(tmp, 'new')
            os.mkdir(new)
            with open(os.path.join(new, 'config.json'), 'w', encoding='utf-8') as f:
                json.dump(about, f, indent=2)
            file = os.path.join(new, SINGLE)
            save_file({key: t.clone() for key, t in tensors.items()}, file, {'format': 'pt'})
            os.chmod(file, os.stat(f.name).st_mode)  # safetensors lets only the owner read it
            os.replace(new, os.path.realpath(folder))
    except Exception as e:  # safetensors has its own error for a full disk
        fail(f'Cannot write {folder} ({reason(e)}).')
    return kind


def to_gpt2(args, data, model):
    """
    (config.json, tensors) of Hugging Face, without the rows that pad a vocabulary, so the probability that
    they had is shared by the others. Its GPT-2 always has biases: zeros where ours has none.
    """
    vocab_size = data['vocab_size']
    eot = vocab_size - 1
    hf = {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'data': data, 'vocab_size': vocab_size,
          'n_positions': args['block_size'], 'bos_token_id': eot, 'eos_token_id': eot,
          'activation_function': 'gelu' if args['gelu'] == 'exact' else 'gelu_new',
          'layer_norm_epsilon': 1e-5 if args['norm_eps'] is None else args['norm_eps'],
          'tie_word_embeddings': args['tied'], **{key: args[key] for key in ('n_layer', 'n_head', 'n_embd')},
          **{key: args['dropout'] for key in ('attn_pdrop', 'embd_pdrop', 'resid_pdrop')}}
    size = {key: args[key] for key in ('n_layer', 'n_head', 'n_embd', 'block_size')}
    tensors = {}
    for theirs, (ours, like) in plain_network('GPT-2', PLAIN | size | {'bias': True}).items():
        tensor = model[ours] if ours in model else torch.zeros(like.shape)
        if ours in ('wte.weight', 'lm_head.weight'):
            tensor = tensor[:vocab_size]
        theirs = theirs if ours == 'lm_head.weight' else f'transformer.{theirs}'
        tensors[theirs] = tensor.t().contiguous() if '.c_' in ours else tensor
    if args['tied']:
        del tensors['lm_head.weight']
    return hf, tensors
