"""
Text out of a checkpoint.

    python sample.py --out_dir=out/dnt_tiny
    python sample.py --out_dir=out/dnt_tiny --prompt='def main(' --num_samples=3 --temperature=0.5
    python sample.py --init_from=gpt2 --prompt='Hello'         GPT-2 from the Hugging Face Hub
    python sample.py --out_dir=out/dnt_tiny --export=folder    the weights, as safetensors
"""

import torch

from configurator import configure, fail
from model import GPT, GPTConfig
from support import pretrained
from support.checkpoint import find_checkpoint, load_checkpoint
from support.distributed import start
from support.normfree import build

# -----------------------------------------------------------------------------
out_dir = 'out/gpt'  # the run; its best.pt is used, or ckpt.pt where there is none
init_from = 'resume'  # the run in out_dir, or weights: a file, a folder, gpt2, a Hub id
checkpoint = ''  # a checkpoint file instead of out_dir
export = ''  # a new folder: write the weights there as model.safetensors and config.json, and leave
prompt = ''  # what the text begins with, FILE:name reads a file; empty: the start of a document
num_samples = 1  # texts to write
max_new_tokens = 500  # length of each, in tokens
temperature = 0.8  # below 1.0 more predictable, above it wilder, 0: always the likeliest token
top_k = 0  # sample among that many likeliest tokens, 0: among all
seed = 1337  # another seed, another text
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast) or float32
configure(globals())

# -----------------------------------------------------------------------------
for key, value in (('num_samples', num_samples), ('max_new_tokens', max_new_tokens)):
    if value < 1:
        fail(f'{key}={value} is out of range: use at least 1')
if temperature < 0 or top_k < 0:
    fail('temperature and top_k cannot be negative')
env = start(device, dtype, False, seed, False)
source = checkpoint or find_checkpoint(out_dir if init_from == 'resume' else pretrained.find_weights(init_from))
saved = load_checkpoint(source)
if export:
    print(f'{source}: written to {export} as {pretrained.export(saved, export)}')
    raise SystemExit
if 'tokenizer' not in saved['data']:
    fail(f'{source} is not a checkpoint of train_gpt.py')
if saved['data']['tokenizer'] == 'gpt2' and saved['data']['vocab_size'] != 50257:
    fail(f'{source} was trained on a part of the gpt2 vocabulary (experiments/vocabulary.py), which is not written out here')
model = build(GPT, GPTConfig, saved['model_args'])
model.load_state_dict(saved['model'])
model.eval().to(env.device)

if saved['data']['tokenizer'] == 'byte':
    eot, encode = 256, lambda text: list(text.encode('utf-8'))
    decode = lambda ids: bytes(i for i in ids if i < 256).decode('utf-8', errors='replace')
else:
    import tiktoken
    try:
        gpt2 = tiktoken.get_encoding('r50k_base')  # the ids of gpt2, in one file instead of two
    except Exception as e:
        fail(f'the file of the gpt2 tokenizer cannot be fetched ({type(e).__name__}): put r50k_base.tiktoken under the '
             'name 0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 into a folder and set TIKTOKEN_CACHE_DIR to it')
    eot, encode, decode = 50256, gpt2.encode_ordinary, lambda ids: gpt2.decode([i for i in ids if i != 50256])

if prompt.startswith('FILE:'):
    try:
        with open(prompt[5:], encoding='utf-8') as f:
            prompt = f.read()
    except (OSError, UnicodeDecodeError) as e:
        fail(f'cannot read the prompt {prompt[5:]}: {e}')
context = torch.tensor([[eot] + encode(prompt)], device=env.device)  # every document begins behind an end-of-text

for i in range(num_samples):
    with env.autocast:
        ids = model.generate(context, max_new_tokens, temperature, top_k or None, saved['data']['vocab_size'])[0].tolist()
    end = ids.index(eot, context.size(1)) if eot in ids[context.size(1):] else len(ids)  # a document that ended stays so
    print(decode(ids[:end]), '-' * 80, sep='\n')
