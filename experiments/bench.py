"""
How fast, and how near to what this machine can do: nanoGPT, optimizer, training step, loader.

    python -m experiments.bench                                   under five minutes on two quiet CPU cores
    python -m experiments.bench --only=optimizer,step --repeats=9
    python -m experiments.bench --nanogpt=path/to/nanoGPT         GPT-2 beside a checkout of nanoGPT, too
    python -m experiments.bench --only=loader --images=FOLDER     how many cores read pictures for 8 GPUs

The things that are compared take turns, after a turn to warm up, so that the noise of a machine hits all of
them. Times are medians over the turns, 'from' the fastest 'to' the slowest; a ratio is the median of each
turn's ratio, and the last table has them all.
"""

import datetime
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import torch

from configurator import configure
from experiments.costs import count
from experiments.evidence import print_rows
from model import GPT, SETTINGS, GPTConfig
from sgdw import SGDW
from support.checks import check_choice, check_range
from support.console import fail
from support.distributed import explain, start
from support.optim import param_groups

only = 'nanogpt,optimizer,step,loader'  # sections
sections = only.split(',')
repeats = 4  # turns
size = '124M'  # 124M, 774M, 1438M (table 3) or tiny
micro_batch_size = 0  # sequences of a step, 0: 16 on a GPU, else 2
block_size = 0  # tokens of each, 0: 1024 on a GPU, else 256
images = 'data/imagenet'  # JPEGs for the loader, prepared by prepare_imagenet.py
nanogpt = ''  # the path of a checkout of nanoGPT
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # float32, bfloat16; auto: float32, and bfloat16 too where the device has it in hardware
compile = 'auto'  # True: steps with torch.compile, too; auto: on a GPU, for a CPU compiles for minutes
config = configure(globals())

SIZES = {'124M': dict(n_layer=12, n_head=12, n_embd=768), '774M': dict(n_layer=36, n_head=20, n_embd=1280),
         '1438M': dict(n_layer=48, n_head=24, n_embd=1536),
         'tiny': dict(n_layer=4, n_head=2, n_embd=64, block_size=128, vocab_size=320)}  # config/dnt_tiny.py
SEED = 1337  # of weights and batches
GPU_SPEED = 1100  # pictures per second that one H200 trains V-DNT-Large on
NETWORKS = {'GPT-2': ('S1', 'layer'), 'S1 rms': ('S1', 'rms'), 'L-DNT': ('S5', 'rms')}

check_range(config, 1, 1000, 'repeats')
check_range(config, 0, 2**20, 'micro_batch_size', 'block_size')
check_choice(config, SIZES, 'size')
longest, vocab = GPTConfig(**SIZES[size]).block_size, GPTConfig(**SIZES[size]).vocab_size
if block_size > longest:
    fail(f'block_size={block_size} is more than the {longest} positions of size={size}.')
if not set(only.split(',')) <= set(sections):
    fail(f'--only={only} has an unknown section. Use some of {",".join(sections)}.')
if nanogpt and not os.path.exists(f'{nanogpt}/model.py'):
    fail(f'--nanogpt={nanogpt} has no model.py. Give the path of a checkout of nanoGPT.')

with redirect_stdout(io.StringIO()):  # a word on training without compile
    env = start(device, dtype, compile, SEED, deterministic=False)
gpu = env.device_type == 'cuda'
dtypes = ['float32', 'bfloat16'] if dtype == 'auto' and env.dtype == 'bfloat16' else [env.dtype]
B, T = micro_batch_size or (16 if gpu else 2), block_size or min(longest, 1024 if gpu else 256)

# -----------------------------------------------------------------------------
# tools

ratios = []

def clock(run):
    """Seconds that run() takes."""
    begin = time.perf_counter()
    run()
    if env.device_type != 'cpu':
        getattr(torch, env.device_type).synchronize()
    return time.perf_counter() - begin

def take_turns(arms, turns=repeats):
    """Seconds of every turn: {name: function} gives {name: list}."""
    for run in arms.values():  # the first call compiles, and makes the optimizer's state
        clock(run)
    seconds = {name: [] for name in arms}
    for _ in range(turns):
        for name, run in arms.items():
            seconds[name].append(clock(run))
    return seconds

def times(name, seconds):
    """The first columns of a table, in milliseconds."""
    ms = [1e3 * s for s in seconds[name]]
    return {'what': name, 'ms': statistics.median(ms), 'from': min(ms), 'to': max(ms)}

def compare(seconds, a, b, target=None):
    """Keep a's time in units of b's for the last table. target: what it is meant to be at most."""
    r = [x / y for x, y in zip(seconds[a], seconds[b])]
    ratios.append({'time of': a, 'in units of': b, 'ratio': statistics.median(r),
                   'from': min(r), 'to': max(r), 'aim at most': target or ''})

def table(title, rows):
    """Print rows, dicts of the same keys."""
    def said(value):
        if isinstance(value, float):
            return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'
        return value
    print_rows(title, list(rows[0]), [map(said, row.values()) for row in rows])

def make_gpt(size, setting, norm, on=env.device):
    with torch.device(on):
        return GPT(GPTConfig(**SETTINGS[setting], **SIZES[size], norm=norm))

def sgdw(model, foreach=None):
    return SGDW(param_groups(model, 1e-4), lr=1e-3, momentum=0.9, foreach=foreach)

def adamw(model, fused=True):
    return torch.optim.AdamW(param_groups(model, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=fused,
                             foreach=not fused)

def update(opt, dtype, model, X, Y):
    """What train_gpt.py does for an update of one micro batch."""
    with torch.autocast(env.device_type, torch.bfloat16, enabled=dtype == 'bfloat16'):
        loss = model(X, Y)[1]
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

def optimizer():
    model = make_gpt(size, 'S5', 'rms')
    n = count(model)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    a, b = torch.ones(2, n, device=env.device)
    fused_sgd = torch.optim.SGD(param_groups(model, 1e-4), lr=1e-3, momentum=0.9, fused=True)
    # each with its reads and writes per weight: in one pass p, g, m (and v) are read, p, m (and v) written;
    # loop and foreach do m = mu m: 2, m += g: 3, p = (1 - lr wd) p: 2, p -= lr m: 3; AdamW foreach: eight
    # times 2 to 4
    arms = {'copy': (partial(a.copy_, b), 2), 'SGDW loop': (sgdw(model, foreach=False).step, 10),
            'SGDW foreach': (sgdw(model).step, 10), 'torch SGD fused': (fused_sgd.step, 5),
            'AdamW foreach': (adamw(model, fused=False).step, 20), 'AdamW fused': (adamw(model).step, 7)}
    seconds, rows = take_turns({name: run for name, (run, _) in arms.items()}, 6 * repeats), []  # short ones
    for name, (_, accesses) in arms.items():
        row = times(name, seconds)
        speed = 4 * accesses * n / row['ms'] / 1e6
        rows.append({**row, 'accesses': accesses, 'GB/s': speed,
                     'of the copy': speed / rows[0]['GB/s'] if rows else 1.0})
    table(f'Optimizer step: {n:,} parameters, float32, {6 * repeats} turns. Shares above 1 are right: small '
          'tensors come from the cache, and a copy on a CPU reads what it overwrites, too', rows)
    compare(seconds, 'SGDW foreach', 'AdamW fused')
    compare(seconds, 'SGDW foreach', 'AdamW foreach')

def step():
    X, Y = torch.randint(vocab, (2, B, T), device=env.device)
    side = 8192 if gpu else 2048
    arms, work = {}, {}  # work: tokens and FLOPs of each arm
    for d in dtypes:
        a, b = torch.randn(2, side, side, device=env.device).to(getattr(torch, d))
        arms[f'a @ b, {d}'], work[f'a @ b, {d}'] = partial(torch.matmul, a, b), (0, 2 * side ** 3)
    ways = ('', ', compiled') if env.compile else ('',)
    for network, (setting, norm) in NETWORKS.items():
        model = make_gpt(size, setting, norm)
        c, opt = model.config, sgdw(model)
        # as in train_gpt.py
        flops = 6 * (count(model) - model.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * T
        for way in ways:
            run = torch.compile(model) if way else model
            for d in dtypes:
                arms[f'{network}, {d}{way}'] = partial(update, opt, d, run, X, Y)
                work[f'{network}, {d}{way}'] = B * T, B * T * flops
    seconds, best, rows = take_turns(arms), {}, []
    for name, (n_tokens, flops) in work.items():
        row = times(name, seconds)
        speed = flops / row['ms'] / 1e9
        best.setdefault(name.split(', ')[1], speed)  # a @ b comes first
        rows.append({**row, 'tokens/s': 1e3 * n_tokens / row['ms'] if n_tokens else '', 'TFLOP/s': speed,
                     'of a @ b': speed / best[name.split(', ')[1]]})
    table(f'Training step: {count(model):,} parameters, {B} x {T} tokens, mSGDW, clip 1.0. a and b: {side}^2',
          rows)
    for way in ways:
        for d in dtypes:
            for base in ('S1 rms', 'GPT-2'):
                compare(seconds, f'L-DNT, {d}{way}', f'{base}, {d}{way}', 1.03 if way else 1.12)

def loader():
    """Pictures per second of one core, by process time; the limit is plain Pillow."""
    if not os.path.exists(f'{images}/train_offsets.npy'):
        return print(f'\nNot measured: the loader (--images={images} holds no JPEGs of prepare_imagenet.py)')
    from PIL import Image  # the other sections need no pictures

    from support.augment import BICUBIC, to_tensor, train_view
    offsets = np.load(f'{images}/train_offsets.npy')
    with open(f'{images}/train_jpeg.bin', 'rb') as f:
        jpegs = [f.read(end - begin) for begin, end in zip(offsets, offsets[1:101])]
    torch.set_num_threads(1)  # as in a worker process of a DataLoader

    def limit(image, rng):
        side = min(image.size)
        return image.crop((0, 0, side, side)).resize((224, 224), BICUBIC)

    def ours(image, rng, **more):
        return to_tensor(train_view(image, rng, 224, **more))
    ways = {'decode, crop, resize (the limit)': limit,
            'our loader without RandAugment': partial(ours, magnitude=0), 'our loader with RandAugment': ours}
    speeds = {name: [] for name in ways}
    for turn in range(repeats):
        for name, view in ways.items():
            begin = time.process_time()
            for i, jpeg in enumerate(jpegs):
                view(Image.open(io.BytesIO(jpeg)).convert('RGB'), np.random.default_rng((turn, i)))
            speeds[name].append(len(jpegs) / max(1e-3, time.process_time() - begin))
    cores, rows = f'cores for 8 GPUs at {GPU_SPEED} pictures/s each', []
    for name, of_way in speeds.items():
        middle = statistics.median(of_way)
        rows.append({'what': name, 'pictures per second and core': middle, 'from': min(of_way),
                     'to': max(of_way), cores: math.ceil(8 * GPU_SPEED / middle)})
    table(f'Loader: {len(jpegs)} pictures', rows)

def peer():
    """
    GPT-2 by nanoGPT's model.py, optimizer and iteration, and by ours: the same weights and batch. Theirs runs
    in a process of its own (experiments.peer): start has settled how this one keeps its memory.
    """
    if not nanogpt:
        return print('\nNot measured: nanoGPT (--nanogpt=PATH of a checkout)')

    def answer():
        return child.stdout.readline() or fail(f'nanoGPT ended with exit code {child.wait()}.')

    def theirs(way):
        print(way, file=child.stdin, flush=True)
        answer()
    with tempfile.TemporaryDirectory() as folder:
        keys = dict(path=nanogpt, shape=json.dumps(SIZES[size]), batch=B, length=T, device=env.device,
                    seed=SEED, file=os.path.join(folder, 'weights.pt'))
        line = [sys.executable, '-m', 'experiments.peer', *(f'--{k}={v}' for k, v in keys.items())]
        child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        their_loss, said = float(answer()), torch.load(keys['file'], map_location=env.device)
    ours, more = (make_gpt(size, *NETWORKS['GPT-2']) for _ in range(2))
    X, Y = said['X'], said['Y']
    with torch.no_grad():
        for model in (ours, more):
            for p, w in zip(model.parameters(), said['weights'], strict=True):  # in the same order
                p.copy_(w)
        our_loss = ours(X, Y)[1].item()
    if abs(their_loss - our_loss) > 1e-3:
        fail(f'From the same weights, nanoGPT has the loss {their_loss} and ours is {our_loss}. They are not '
             'the same network.')
    run = torch.compile(more) if env.compile else more
    arms = {'nanoGPT, float32, AdamW': partial(theirs, 'float32'),
            'ours, float32, AdamW': partial(update, adamw(ours), 'float32', ours, X, Y),
            f'ours, {env.dtype}, mSGDW': partial(update, sgdw(more), env.dtype, run, X, Y)}
    shipped = 'nanoGPT, float32, AdamW'  # on a CPU it has no autocast, and its README says --compile=False
    if gpu:
        shipped = 'nanoGPT, bfloat16, AdamW, compiled'
        arms[shipped] = partial(theirs, 'bfloat16 compiled')
    seconds = take_turns(arms)
    child.communicate()  # its input ends, and so does it
    table(f'GPT-2 beside nanoGPT: {count(ours):,} parameters, {B} x {T} tokens, forward, backward, clip 1.0, '
          f'step; from the same weights, with a first loss of {their_loss:.5f} and {our_loss:.5f}',
          [{**times(a, seconds), 'tokens/s': B * T / statistics.median(seconds[a])} for a in arms])
    compare(seconds, 'ours, float32, AdamW', 'nanoGPT, float32, AdamW', 0.95)
    compare(seconds, f'ours, {env.dtype}, mSGDW', shipped, 0.5)

# -----------------------------------------------------------------------------

machine = platform.machine()
if gpu:
    machine = torch.cuda.get_device_name()
elif os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo', encoding='utf-8') as f:
        machine = dict(line.split('\t: ') for line in f if '\t: ' in line).get('model name', machine).strip()
try:
    print(f'{machine}, {env.device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, '
          f'{" and ".join(dtypes)}, {repeats} turns, {datetime.date.today()}', flush=True)
    # nanoGPT takes two processes, and this one keeps all the memory that it was ever given, so it goes first
    for name, measure in zip(sections, (peer, optimizer, step, loader), strict=True):
        if name in only.split(','):
            measure()
        torch.compiler.reset()  # it keeps a few programs for each function, not dozens
        if gpu:
            torch.cuda.empty_cache()
except RuntimeError as e:
    explain(e, 'that does not fit into memory: use a smaller size or smaller batches')
if ratios:
    table('Ratios of times', ratios)
