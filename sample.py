"""
Text out of a checkpoint.

    python sample.py --out_dir=out/dnt_tiny
    python sample.py --out_dir=out/dnt_tiny --prompt='def main(' --num_samples=3 --temperature=0.5
    python sample.py --init_from=gpt2 --prompt='Hello'         GPT-2 from the Hugging Face Hub
    python sample.py --out_dir=out/dnt_tiny --export=folder    the weights, as safetensors
"""

import codecs
import math
import os
import signal

from configurator import configure  # isort: skip (before torch, see support/__init__.py)
import torch

from model import GPT, GPTConfig
from support import pretrained
from support.console import check_range, fail
from support.distributed import catch_signals, choose_dtype, start
from support.resume import Checkpoint, find_checkpoint, load_checkpoint, load_weights, make_network
from support.textfiles import read_prompt
from support.tokenizers import open_gpt2

# -----------------------------------------------------------------------------
out_dir = 'out/gpt'  # a run (its best.pt is used, or ckpt.pt where there is none) or a checkpoint file
init_from = 'resume'  # 'resume' (the run in out_dir), or weights: a file, a folder, gpt2, a Hub id
checkpoint = ''  # a checkpoint file instead of out_dir
export = ''  # write the weights to this new folder, as model.safetensors and config.json, and stop
prompt = ''  # how the text begins; FILE:name reads it from a file; empty: the start of a document
num_samples = 1  # texts to write
max_new_tokens = 500  # length of each, in tokens
temperature = 0.8  # below 1.0 more predictable, above it wilder, 0: always the likeliest token
top_k = 0  # sample from this many likeliest tokens; 0: from all
seed = 1337  # of the random generator: another seed gives another text
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast) or float32
config = configure(globals())

# -----------------------------------------------------------------------------
check_range(config, 1, math.inf, 'num_samples', 'max_new_tokens')
check_range(config, 0, math.inf, 'temperature', 'top_k')
check_range(config, 0, 2**32 - 1, 'seed')
if 0 < temperature < 0.001:
    fail(f'temperature={temperature} is too small to divide by. Use --temperature=0 for the likeliest token.')
env = start(device, False, seed, False)
catch_signals(env)
path = checkpoint or (out_dir if init_from == 'resume' else pretrained.find_weights(init_from))
path = find_checkpoint(path)
saved = load_checkpoint(path)
if export:
    print(f'{path}: written to {export} as {pretrained.export(saved, export)}')
    raise SystemExit
if 'tokenizer' not in saved['data']:
    fail(f'{path} is not a checkpoint of train_gpt.py. Use another file.')
if saved['data']['tokenizer'] == 'gpt2' and saved['data']['vocab_size'] != 50257:
    fail(f'{path} was trained on a part of the gpt2 vocabulary (experiments/vocabulary.py), whose ids '
         'sample.py cannot decode. Use another checkpoint.')
env.dtype, env.autocast = choose_dtype(dtype, env.device_type, saved['model_args']['n_embd'])
model = make_network(GPT, GPTConfig, saved['model_args'], env)
load_weights(model, Checkpoint(path, saved), saved['data'], env)
model.eval()

if saved['data']['tokenizer'] == 'byte':
    # a prompt that is not valid UTF-8 keeps its bytes
    eot, encode = 256, lambda text: list(text.encode('utf-8', 'surrogateescape'))
    to_bytes = lambda i: bytes([i])
else:
    gpt2 = open_gpt2()
    eot, encode, to_bytes = 50256, gpt2.encode_ordinary, gpt2.decode_single_token_bytes

if prompt.startswith('FILE:'):
    prompt = read_prompt(os.path.expanduser(prompt[5:]))
# every document begins behind an end-of-text
context = torch.tensor([[eot] + encode(prompt)], device=env.device)

if hasattr(signal, 'SIGPIPE'):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # when nobody reads any more (`| head`), end quietly
for _ in range(num_samples):
    # the decoder is incremental, because a character may take several tokens
    ids, text = context, codecs.getincrementaldecoder('utf-8')('replace')
    print(text.decode(b''.join(map(to_bytes, context[0, 1:].tolist()))), end='', flush=True)
    for _ in range(max_new_tokens):
        with env.autocast:
            ids = model.generate(ids, 1, temperature, top_k or None, saved['data']['vocab_size'])
        if ids[0, -1] == eot:  # the document ends here
            break
        print(text.decode(to_bytes(ids[0, -1].item())), end='', flush=True)
    print(text.decode(b'', final=True), '-' * 80, sep='\n')
