"""
How fast, and how near to what this machine can do: memory, optimizer, training step, vision, loader; and
nanoGPT.

    python -m experiments.bench                                   under five minutes on two quiet CPU cores
    python -m experiments.bench --only=optimizer,step --repeats=9 --json=FILE
    python -m experiments.bench --nanogpt=path/to/nanoGPT         GPT-2 beside a checkout of nanoGPT, too
    python -m experiments.bench --only=loader --images=FOLDER     how many cores read pictures for 8 GPUs

What is compared takes turns after a turn to warm up, so that the noise of a machine hits all alike: in one
process, but for nanoGPT, which is a process of its own. Times are medians over the turns, 'from' the fastest
'to' the slowest; a ratio is the median of each turn's ratio, and the last table has them all. Times on CUDA
are those of events on its stream. MPS: not run.
"""

import contextlib
import datetime
import io
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from json import dumps
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from sgdw import SGDW
from support.checks import check_range
from support.console import fail
from support.distributed import explain, start
from support.optim import param_groups
from support.run import replace_text

only = 'memory,nanogpt,optimizer,step,vision,loader'  # sections
sections = only.split(',')
json = ''  # a file for all numbers, too
repeats = 4  # turns
size = '124M'  # of memory, step and nanoGPT: 124M, 774M, 1438M (table 3) or tiny
optimizer_size = 'auto'  # of the optimizer; auto: the largest that fits a GPU, else size
micro_batch_size = 0  # sequences of a step, 0: 16 on a GPU, else 2
block_size = 0  # tokens of each, 0: 1024 on a GPU, else 256
memory_batch_size = 0  # sequences of full length where memory is measured, 0: 16 on a GPU, else 1
loss_chunk = 256  # tokens whose logits are held at once, beside all at once
image_batch_size = 0  # images of a step, 0: 64 on a GPU, else 8
images = 'data/imagenet'  # JPEGs for the loader, prepared by prepare_imagenet.py
gpu_speed = 1100  # pictures per second that one GPU trains on: V-DNT-Large on an H200; give what yours does
nanogpt = ''  # the path of a checkout of nanoGPT
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # float32, bfloat16; auto: float32, and bfloat16 too where the device has it in hardware
compile = 'auto'  # True: steps with torch.compile, too; auto: on a GPU, for a CPU compiles for minutes
peak_of = ''  # 'AdamW,256': print the peak of that optimizer and chunk in bytes; memory starts itself so
seed = 1337  # of weights and batches
config = configure(globals())

SIZES = {'124M': dict(n_layer=12, n_head=12, n_embd=768), '774M': dict(n_layer=36, n_head=20, n_embd=1280),
         '1438M': dict(n_layer=48, n_head=24, n_embd=1536),
         'tiny': dict(n_layer=4, n_head=2, n_embd=64, block_size=128, vocab_size=320)}  # config/dnt_tiny.py
NETWORKS = {'GPT-2': ('S1', 'layer'), 'S1 rms': ('S1', 'rms'), 'L-DNT': ('S5', 'rms')}

check_range(config, 1, 1000, 'repeats')
check_range(config, 0, 2**32 - 1, 'seed')
check_range(config, 1, 2**20, 'loss_chunk')
check_range(config, 0, 2**20, 'micro_batch_size', 'block_size', 'memory_batch_size', 'image_batch_size')
for key in ('size', 'optimizer_size'):
    if config[key] not in SIZES and (key, config[key]) != ('optimizer_size', 'auto'):
        fail(f'{key}={config[key]} is unknown. Use one of {", ".join(SIZES)}.')
longest, vocab = (getattr(GPTConfig(**SIZES[size]), key) for key in ('block_size', 'vocab_size'))
if block_size > longest:
    fail(f'block_size={block_size} is more than the {longest} positions of size={size}.')
if not set(only.split(',')) <= set(sections):
    fail(f'--only={only} has an unknown section. Use some of {",".join(sections)}.')
if not re.fullmatch(r'((AdamW|mSGDW),\d+)?', peak_of):
    fail(f'--peak_of={peak_of} is not AdamW or mSGDW, a comma and a number of tokens.')
if nanogpt and not os.path.exists(os.path.join(nanogpt, 'model.py')):
    fail(f'--nanogpt={nanogpt} has no model.py. Give the path of a checkout of nanoGPT.')
if not os.path.isdir(os.path.dirname(json) or '.'):
    fail(f'There is no folder {os.path.dirname(json)} for --json={json}.')

with contextlib.redirect_stdout(io.StringIO()):  # a word on training without compile
    env = start(device, dtype, compile, seed, deterministic=False)
gpu = env.device_type == 'cuda'
dtypes = ['float32', 'bfloat16'] if dtype == 'auto' and env.dtype == 'bfloat16' else [env.dtype]
B, T = micro_batch_size or (16 if gpu else 2), block_size or min(longest, 1024 if gpu else 256)
memory_B, image_B = memory_batch_size or (16 if gpu else 1), image_batch_size or (64 if gpu else 8)

# -----------------------------------------------------------------------------
# tools

tables, ratios = [], []


def sync():
    if env.device_type != 'cpu':
        getattr(torch, env.device_type).synchronize()


def clock(run):
    """Seconds that run() takes on the device."""
    sync()
    if gpu:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        sync()
        return begin.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    sync()
    return time.perf_counter() - begin


def take_turns(arms, turns=repeats):
    """Seconds of every turn: {name: function} gives {name: list}."""
    for run in arms.values():  # the first call compiles, and makes the optimizer's state
        run()
    seconds = [{name: clock(run) for name, run in arms.items()} for _ in range(turns)]
    return {name: [turn[name] for turn in seconds] for name in arms}


def times(name, seconds):
    """The first columns of a table, in milliseconds."""
    ms = [1e3 * s for s in seconds[name]]
    return {'what': name, 'ms': statistics.median(ms), 'from': min(ms), 'to': max(ms)}


def compare(seconds, a, b, target=None):
    """Keep a's time in units of b's for the last table. target: what it is meant to be at most."""
    r = [x / y for x, y in zip(seconds[a], seconds[b])]
    median = statistics.median(r)
    reached = '' if not target else 'yes' if median <= target else 'no'
    ratios.append({'time of': a, 'in units of': b, 'ratio': median, 'from': min(r), 'to': max(r),
                   'aim at most': target or '', 'reached': reached})


def cell(value):
    form = '' if not isinstance(value, float) else ',.0f' if abs(value) >= 1000 else '.3g'
    return f'{value:{form}}'


def table(title, rows):
    """Print rows, dicts of the same keys, and keep them for --json."""
    print(f'\n{title}\n\n| ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * len(rows[0]))
    for row in rows:
        print('| ' + ' | '.join(map(cell, row.values())) + ' |', flush=True)
    tables.append({'title': title, 'rows': rows})


def make_gpt(size, setting, norm, on=env.device, **kwargs):
    with torch.device(on):
        return GPT(GPTConfig(**{**SETTINGS[setting], **SIZES[size], 'norm': norm, **kwargs}))


def count(model):
    return sum(p.numel() for p in model.parameters())


def tokens(batch, length):
    """Inputs and targets (batch, length): random ids, which take as long as any others."""
    return torch.randint(vocab, (2, batch, length), device=env.device).unbind(0)


def sgdw(model, **kwargs):
    return SGDW(param_groups(model, 1e-4), lr=1e-3, momentum=0.9, **kwargs)


def adamw(model, **kwargs):
    return torch.optim.AdamW(param_groups(model, 0.1), lr=1e-4, betas=(0.9, 0.95), **kwargs)


# as train_gpt.py does
OPTIMIZERS = {'mSGDW': partial(sgdw, compile=env.compile), 'AdamW': partial(adamw, fused=True)}


def autocast(dtype):
    return torch.autocast(env.device_type, torch.bfloat16, enabled=dtype == 'bfloat16')


def gpt_loss(model, X, Y):
    return model(X, Y)[1]


def vit_loss(model, X, Y):
    return F.cross_entropy(model(X), Y)


def update(opt, dtype, loss_of, *args):
    """What a train script does for an update of one micro batch. loss_of(*args) is the forward pass."""
    with autocast(dtype):
        loss = loss_of(*args)
    loss.backward()
    params = [p for group in opt.param_groups for p in group['params']]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    if not math.isfinite(loss.item() + norm.item()):  # the loop waits here, too
        fail(f'The loss is {loss.item()} and the gradient norm {norm.item()}, so nothing can be measured.')
    torch.nn.utils.clip_grads_with_norm_(params, 1.0, norm)
    opt.step()
    opt.zero_grad(set_to_none=True)

# -----------------------------------------------------------------------------
# sections

def peak_memory():
    """Bytes: the most so far that torch allocated on a GPU; elsewhere that this process held."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    from resource import RUSAGE_SELF, getrusage  # not on Windows
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def peak(optimizer, chunk):
    """Bytes at the peak of an update with accumulation, in a process of its own; chunk 0: all logits."""
    before = peak_memory()
    model = make_gpt(size, 'S5', 'rms', loss_chunk=chunk)
    opt, X, Y = OPTIMIZERS[optimizer](model), *tokens(memory_B, longest)
    update(opt, env.dtype, gpt_loss, model, X[:1, :8], Y[:1, :8])  # from here on the optimizer has its state
    with autocast(env.dtype):
        loss = gpt_loss(model, X[:1, :8], Y[:1, :8])
    loss.backward()  # and from here on there are gradients, to which the next micro batch adds
    update(opt, env.dtype, gpt_loss, model, X, Y)
    return peak_memory() - before


def memory():
    n, rows, arms, X, Y = count(make_gpt(size, 'S5', 'rms', on='meta')), [], {}, *tokens(memory_B, longest)
    chunks = {'all logits at once': 0, f'loss_chunk {loss_chunk}': loss_chunk}
    for optimizer, copies in (('AdamW', 4), ('mSGDW', 3)):  # weights, gradients, and two moments or one
        for name, chunk in chunks.items():
            said = subprocess.run([sys.executable, '-m', 'experiments.bench', *sys.argv[1:],
                                   f'--peak_of={optimizer},{chunk}'], capture_output=True, text=True)
            if said.returncode:
                fail(f'The peak of {optimizer} was not measured ({said.stderr.splitlines()[-1:]}).')
            most = int(said.stdout)
            # in backward fp32 log probabilities, their gradient and that of the logits are there together
            state, logits = 4 * copies * n, 3 * 4 * vocab * min(memory_B * longest, chunk or math.inf)
            rows.append({'what': f'{optimizer}, {name}', 'weights, gradients, moments (GB)': state / 1e9,
                         'logits (GB)': logits / 1e9, 'measured peak (GB)': most / 1e9,
                         'more than both (GB)': (most - state - logits) / 1e9})
    table(f'Peak memory: L-DNT, {n:,} parameters, {memory_B} x {longest} tokens, {env.dtype}. Weights and '
          'logits are calculated; the rest: activations, work space and, on a CPU, holes of malloc', rows)
    for name, chunk in chunks.items():
        model = make_gpt(size, 'S5', 'rms', n_layer=0, loss_chunk=chunk)
        arms[name] = partial(update, sgdw(model), env.dtype, gpt_loss, model, X, Y)
    seconds = take_turns(arms)
    table(f'The same without blocks: embedding, head, loss over {vocab:,} ids, step',
          [times(a, seconds) for a in arms])
    compare(seconds, *reversed(chunks))


def optimizer():
    sizes = [optimizer_size] if optimizer_size != 'auto' else ['1438M', '774M', '124M'] if gpu else [size]
    def needed(size):  # bytes: w, g, four momenta, four moments, a, b and two more while AdamW works
        return 4 * 14 * count(make_gpt(size, 'S5', 'rms', on='meta'))
    while len(sizes) > 1 and needed(sizes[0]) > torch.cuda.mem_get_info()[0]:
        del sizes[0]
    model = make_gpt(sizes[0], 'S5', 'rms')
    n = count(model)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    # reads and writes per weight. in one pass p, g, m (and v) are read, p, m (and v) written; loop and
    # foreach do m = mu m: 2, m += g: 3, p = (1 - lr wd) p: 2, p -= lr m: 3; AdamW foreach: eight times 2 to 4
    accesses = {'copy': 2, 'SGDW loop': 10, 'SGDW foreach': 10, 'SGDW compiled': 5, 'torch SGD fused': 5,
                'AdamW foreach': 20, 'AdamW fused': 7}
    opts = (sgdw(model, foreach=False), sgdw(model), sgdw(model, compile=True),
            torch.optim.SGD(param_groups(model, 1e-4), lr=1e-3, momentum=0.9, fused=True),
            adamw(model, foreach=True), adamw(model, fused=True))
    a, b = torch.ones(2, n, device=env.device)
    arms, rows = dict(zip(accesses, (partial(a.copy_, b), *(opt.step for opt in opts)))), []
    seconds = take_turns(arms, 6 * repeats)  # short ones
    for name, k in accesses.items():
        row = times(name, seconds)
        speed = 4 * k * n / row['ms'] / 1e6
        rows.append({**row, 'accesses': k, 'GB': 4 * k * n / 1e9, 'GB/s': speed,
                     'of the copy': speed / rows[0]['GB/s'] if rows else 1.0})
    table(f'Optimizer step: {n:,} parameters, float32, {6 * repeats} turns. Shares above 1 are right: small '
          'tensors come from the cache, and a copy on a CPU reads what it overwrites, too', rows)
    compare(seconds, 'SGDW compiled', 'AdamW fused', 0.75)
    compare(seconds, 'SGDW compiled', 'SGDW foreach', 0.6)
    compare(seconds, 'SGDW foreach', 'AdamW fused')
    compare(seconds, 'SGDW foreach', 'AdamW foreach')


def step():
    side, (X, Y), rows = 8192 if gpu else 2048, tokens(B, T), []
    work = {f'a @ b, {d}': (0, 2 * side ** 3) for d in dtypes}  # tokens and FLOPs of each arm
    arms = {f'a @ b, {d}': partial(torch.matmul,
                                   *torch.randn(2, side, side, device=env.device).to(getattr(torch, d)))
            for d in dtypes}
    ways = ('', ', compiled') if env.compile else ('',)
    for network, (setting, norm) in NETWORKS.items():
        model = make_gpt(size, setting, norm)
        c, opt = model.config, OPTIMIZERS['mSGDW'](model)
        # as in train_gpt.py
        flops = 6 * (count(model) - model.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * T
        for way in ways:
            run = torch.compile(model) if way else model
            for d in dtypes:
                arms[f'{network}, {d}{way}'] = partial(update, opt, d, gpt_loss, run, X, Y)
                work[f'{network}, {d}{way}'] = B * T, B * T * flops
    seconds = take_turns(arms)
    for name, (n_tokens, flops) in work.items():
        row, limit = times(name, seconds), f'a @ b, {name.split(", ")[1]}'
        speed, best = (f / times(a, seconds)['ms'] / 1e9 for a, f in ((name, flops), (limit, work[limit][1])))
        rows.append({**row, 'tokens/s': 1e3 * n_tokens / row['ms'] if n_tokens else '', 'TFLOP/s': speed,
                     'of a @ b': speed / best})
    table(f'Training step: {count(model):,} parameters, {B} x {T} tokens, mSGDW, clip 1.0. a and b: {side}^2',
          rows)
    for way in ways:
        for d in dtypes:
            for base in ('S1 rms', 'GPT-2'):
                compare(seconds, f'L-DNT, {d}{way}', f'{base}, {d}{way}', 1.03 if way else 1.12)
    if not env.compile:
        print('\nNot measured: compiled training steps (--compile=True; a CPU compiles for minutes)')


def vision():
    # ViT-L, ViT-S
    shape = dict(n_layer=24, n_head=16, n_embd=1024) if gpu else dict(n_layer=12, n_head=6, n_embd=384)
    if size == 'tiny':
        shape = dict(n_layer=4, n_head=3, n_embd=96, image_size=32, patch_size=4)  # config/vdnt_cifar10.py
    arms = {}
    for name, setting, norm in (('ViT', 'S1', 'layer'), ('V-DNT', 'S5', 'rms')):
        with torch.device(env.device):
            model = ViT(ViTConfig(**SETTINGS[setting], norm=norm, **shape))
            X, Y = torch.randn(image_B, 3, *[model.config.image_size] * 2), torch.randint(1000, (image_B,))
        run = torch.compile(model) if env.compile else model
        arms[name] = partial(update, OPTIMIZERS['mSGDW'](model), env.dtype, vit_loss, run, X, Y)
    seconds, c = take_turns(arms), model.config
    table(f'Vision step: {count(model):,} parameters, {image_B} images of {c.image_size}^2 pixels, patches '
          f'of {c.patch_size}^2, {env.dtype}, mSGDW, clip 1.0, compile {env.compile}',
          [{**times(a, seconds), 'images/s': image_B / statistics.median(seconds[a])} for a in arms])
    compare(seconds, 'V-DNT', 'ViT')


def loader():
    """Pictures per second of one core, by process time; the limit is plain Pillow."""
    if not os.path.exists(os.path.join(images, 'train_offsets.npy')):
        return print(f'\nNot measured: the loader (--images={images} holds no JPEGs of prepare_imagenet.py)')
    from PIL import Image  # the other sections need no pictures

    from support.augment import BICUBIC, to_tensor, train_view
    offsets = np.load(os.path.join(images, 'train_offsets.npy'))
    with open(os.path.join(images, 'train_jpeg.bin'), 'rb') as f:
        jpegs = [f.read(end - begin) for begin, end in zip(offsets, offsets[1:101])]
    torch.set_num_threads(1)  # as in a worker process of a DataLoader

    def decode(jpeg):
        return Image.open(io.BytesIO(jpeg)).convert('RGB')

    def limit(jpeg, rng):
        image = decode(jpeg)
        side = min(image.size)
        return image.crop((0, 0, side, side)).resize((224, 224), BICUBIC)
    ways = {'decode': lambda jpeg, rng: decode(jpeg), 'decode, crop, resize (the limit)': limit,
            'our loader without RandAugment':
                lambda jpeg, rng: to_tensor(train_view(decode(jpeg), rng, 224, magnitude=0)),
            'our loader with RandAugment': lambda jpeg, rng: to_tensor(train_view(decode(jpeg), rng, 224))}
    speeds = {name: [] for name in ways}
    for turn in range(repeats):
        for name, read in ways.items():
            begin = time.process_time()
            for i, jpeg in enumerate(jpegs):
                read(jpeg, np.random.default_rng((turn, i)))
            speeds[name].append(len(jpegs) / (time.process_time() - begin))
    middle = {name: statistics.median(of_way) for name, of_way in speeds.items()}
    table(f'Loader: {len(jpegs)} pictures', [
        {'what': name, 'pictures per second and core': middle[name], 'from': min(of_way), 'to': max(of_way),
         'of the limit': middle[name] / middle['decode, crop, resize (the limit)'],
         f'cores for 8 GPUs at {gpu_speed} pictures/s each': math.ceil(8 * gpu_speed / middle[name])}
        for name, of_way in speeds.items()])


def peer():
    """
    GPT-2 by nanoGPT's model.py, optimizer and iteration, and by ours: the same weights and batch. Theirs runs
    in a process of its own (experiments.peer): start has settled how this one keeps its memory.
    """
    if not nanogpt:
        return print('\nNot measured: nanoGPT (--nanogpt=PATH of a checkout)')
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'weights.pt')
        keys = dict(path=nanogpt, shape=dumps(SIZES[size]), batch=B, length=T, device=env.device, seed=seed,
                    file=file)
        child = subprocess.Popen([sys.executable, '-m', 'experiments.peer',
                                  *(f'--{k}={v}' for k, v in keys.items())],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # noqa: E731
        answer = lambda: child.stdout.readline() or fail(f'nanoGPT ended with exit code {child.wait()}.')
        losses, said = [float(answer())], torch.load(file, map_location=env.device)

    def theirs(way):
        print(way, file=child.stdin, flush=True)
        answer()

    (ours, more), (weights, X, Y) = (make_gpt(size, *NETWORKS['GPT-2']) for _ in range(2)), said.values()
    with torch.no_grad():
        # in the same order
        for w, *copies in zip(weights, ours.parameters(), more.parameters(), strict=True):
            for p in copies:
                p.copy_(w)
        losses.append(gpt_loss(ours, X, Y).item())
    del weights, said
    if abs(losses[0] - losses[1]) > 1e-3:
        fail(f'From the same weights, nanoGPT has the loss {losses[0]} and ours is {losses[1]}. They are not '
             'the same network.')
    arms = {'nanoGPT, float32, AdamW': partial(theirs, 'float32'),
            'ours, float32, AdamW': partial(update, adamw(ours, fused=True), 'float32', gpt_loss, ours, X, Y),
            f'ours, {env.dtype}, mSGDW': partial(update, OPTIMIZERS['mSGDW'](more), env.dtype, gpt_loss,
                                                 torch.compile(more) if env.compile else more, X, Y)}
    shipped = 'nanoGPT, float32, AdamW'  # on a CPU it has no autocast, and its README says --compile=False
    if gpu:
        shipped = 'nanoGPT, bfloat16, AdamW, compiled'
        arms[shipped] = partial(theirs, 'bfloat16 compiled')
    seconds = take_turns(arms)
    child.communicate()  # its input ends, and so does it
    git = subprocess.run(['git', '-C', nanogpt, 'log', '-1', '--format=%h of %cs'], capture_output=True,
                         text=True)
    table(f'GPT-2 beside nanoGPT ({git.stdout.strip() or "no git"}): {count(ours):,} parameters, {B} x {T} '
          'tokens, forward, backward, clip 1.0, step; from the same weights, with a first loss of '
          f'{losses[0]:.5f} and {losses[1]:.5f}',
          [{**times(a, seconds), 'tokens/s': B * T / statistics.median(seconds[a])} for a in arms])
    compare(seconds, 'ours, float32, AdamW', 'nanoGPT, float32, AdamW', 0.95)
    compare(seconds, f'ours, {env.dtype}, mSGDW', shipped, 0.5)

# -----------------------------------------------------------------------------

try:
    if peak_of:
        print(peak(peak_of.split(',')[0], int(peak_of.split(',')[1])))
        raise SystemExit(0)
    cpuinfo = Path('/proc/cpuinfo').read_text() if os.path.exists('/proc/cpuinfo') else ''
    cpu = re.search(r'model name\s*: (.*)', cpuinfo)
    machine = torch.cuda.get_device_name() if gpu else cpu[1] if cpu else platform.machine()
    header = (f'{machine}, {env.device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, '
              f'{" and ".join(dtypes)}, {repeats} turns, {datetime.date.today()}')
    print(header, flush=True)
    # memory goes first: on Linux a process begins with the peak of the one that starts it. then what takes
    # two processes, for this one keeps all that it was ever given
    for name, measure in zip(sections, (memory, peer, optimizer, step, vision, loader), strict=True):
        if name in only.split(','):
            measure()
        torch.compiler.reset()  # it keeps a few programs for each function, not dozens
        if gpu:
            torch.cuda.empty_cache()
except RuntimeError as e:
    explain(e, 'that does not fit into memory: use a smaller size or smaller batches')
if ratios:
    table('Ratios of times', ratios)
if json:
    replace_text(json, dumps({'machine': header, 'config': config, 'tables': tables}, indent=1))
