"""
Weights that other projects made, as checkpoints of ours.
"""

import json
import os

from configurator import fail
from model import SETTINGS


def load_gpt2(folder):
    """
    GPT-2 weights in a local Hugging Face folder (config.json, model.safetensors) as a checkpoint: setting S1, LayerNorm,
    bias, tied head. Their matrices are stored (in, out), and their GELU is the tanh approximation, ours is exact.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
            hf = json.load(f)
        tensors = load_file(os.path.join(folder, 'model.safetensors'))
        args = dict(n_layer=hf['n_layer'], n_head=hf['n_head'], n_embd=hf['n_embd'], block_size=hf['n_positions'],
                    vocab_size=hf['vocab_size'], norm='layer', bias=True, tied=True, **SETTINGS['S1'])
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        fail(f'{folder} is not a GPT-2 folder with config.json and model.safetensors ({type(e).__name__}: {e})')
    names = {'wte': 'wte', 'wpe': 'wpe', 'ln_f': 'final_norm'}
    for i in range(args['n_layer']):
        names |= {f'h.{i}.{theirs}': f'blocks.{i}.{ours}' for theirs, ours in (
            ('ln_1', 'pre_norm'), ('attn.c_attn', 'attn.c_attn'), ('attn.c_proj', 'attn.c_proj'), ('ln_2', 'ffn_pre_norm'),
            ('mlp.c_fc', 'ffn.c_fc'), ('mlp.c_proj', 'ffn.c_proj'))}
    model = {}
    for key, tensor in tensors.items():
        theirs, _, kind = key.removeprefix('transformer.').rpartition('.')
        if theirs in names:  # the rest are the head, which is tied, and causal masks
            transpose = kind == 'weight' and '.c_' in theirs
            model[f'{names[theirs]}.{kind}'] = tensor.t().contiguous() if transpose else tensor
    model['lm_head.weight'] = model.get('wte.weight')
    missing = {f'{n}.weight' for n in names.values()} - set(model)
    if missing:
        fail(f'{folder}/model.safetensors lacks {min(missing)}: it is not a whole GPT-2')
    return {'model': model, 'model_args': args, 'data': {'tokenizer': 'gpt2'}}
