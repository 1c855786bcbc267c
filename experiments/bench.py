"""
How fast, and how near to what this machine can do: nanoGPT, optimizer, training step.

    python -m experiments.bench                                   under five minutes on two quiet CPU cores
    python -m experiments.bench --only=optimizer,step --repeats=9
    python -m experiments.bench --nanogpt=path/to/nanoGPT         GPT-2 beside a checkout of nanoGPT, too

What is compared takes turns, after a turn to warm up. Times are medians over the turns, 'from' the fastest
'to' the slowest; a ratio is the median of each turn's ratio, and the last table has them all.
"""

import datetime
import io
import math
import os
import platform
import runpy
import statistics
import time
from contextlib import redirect_stdout
from functools import partial

import torch

from configurator import configure
from experiments.costs import count
from experiments.evidence import print_table
from model import GPT, SETTINGS, GPTConfig
from sgdw import SGDW
from support.console import check_choice, check_range, fail
from support.distributed import choose_dtype, explain, start

only = 'nanogpt,optimizer,step'  # sections
sections = only.split(',')
repeats = 4  # turns
size = '124M'  # 124M, 774M, 1438M (table 3) or tiny
micro_batch_size = 0  # sequences of a step, 0: 16 on a GPU, else 2
block_size = 0  # tokens of each, 0: 1024 on a GPU, else 256
nanogpt = ''  # the path of a checkout of nanoGPT
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # float32, bfloat16; auto: float32, and bfloat16 too where the device has it in hardware
compile = 'auto'  # True: steps with torch.compile, too; auto: on a GPU, for a CPU compiles for minutes
config = configure(globals())

SIZES = {'124M': dict(n_layer=12, n_head=12, n_embd=768), '774M': dict(n_layer=36, n_head=20, n_embd=1280),
         '1438M': dict(n_layer=48, n_head=24, n_embd=1536),
         'tiny': dict(n_layer=4, n_head=2, n_embd=64, block_size=128, vocab_size=320)}  # config/dnt_tiny.py
SEED = 1337  # of weights and batches
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
    env = start(device, compile, SEED, deterministic=False)
env.dtype, _ = choose_dtype(dtype, env.device_type, 1024)
gpu = env.device_type == 'cuda'
dtypes = ['float32', 'bfloat16'] if dtype == 'auto' and env.dtype == 'bfloat16' else [env.dtype]
B, T = micro_batch_size or (16 if gpu else 2), block_size or min(longest, 1024 if gpu else 256)

# -----------------------------------------------------------------------------
# tools

ratios = []

def take_turns(arms, turns=repeats):
    """Seconds of every turn: {name: function} gives {name: list}."""
    seconds = {name: [] for name in arms}
    for _ in range(1 + turns):
        for name, run in arms.items():
            begin = time.perf_counter()
            run()
            if env.device_type != 'cpu':
                getattr(torch, env.device_type).synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: of[1:] for name, of in seconds.items()}  # the first call compiles and makes states

def spread(what, values):
    """Columns of a table: the median of the values, the least and the largest."""
    return {what: statistics.median(values), 'from': min(values), 'to': max(values)}

def times(name, seconds):
    return {'what': name, **spread('ms', [1e3 * s for s in seconds[name]])}

def compare(seconds, a, b, target=''):
    """Keep a's time in units of b's for the last table. target: what it is meant to be at most."""
    r = [x / y for x, y in zip(seconds[a], seconds[b])]
    ratios.append({'time of': a, 'in units of': b, **spread('ratio', r), 'aim at most': target})

def said(value):
    if not isinstance(value, float):
        return value
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'

def table(title, rows):
    """Print rows, dicts of the same keys."""
    print_table(title, list(rows[0]), [map(said, row.values()) for row in rows])

def make_gpt(size, setting, norm):
    with torch.device(env.device):
        return GPT(GPTConfig(**SETTINGS[setting], **SIZES[size], norm=norm))

def sgdw(model, foreach=None):
    return SGDW(model.parameters(), lr=1e-3, weight_decay=1e-4, foreach=foreach)

def adamw(model, fused=True):
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused,
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
    fused_sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    # each with its reads and writes per weight: in one pass p, g, m (and v) are read, p, m (and v) written;
    # loop and foreach do m = mu m: 2, m += g: 3, p = (1 - lr wd) p: 2, p -= lr m: 3; AdamW foreach: eight
    # times 2 to 4
    arms = {'copy': (partial(a.copy_, b), 2), 'SGDW loop': (sgdw(model, foreach=False).step, 10),
            'SGDW foreach': (sgdw(model).step, 10), 'torch SGD fused': (fused_sgd.step, 5),
            'AdamW foreach': (adamw(model, fused=False).step, 20), 'AdamW fused': (adamw(model).step, 7)}
    turns = 6 * repeats  # short ones
    seconds, rows = take_turns({name: run for name, (run, _) in arms.items()}, turns), []
    for name, (_, accesses) in arms.items():
        row = times(name, seconds)
        speed = 4 * accesses * n / row['ms'] / 1e6
        copy = rows[0]['GB/s'] if rows else speed
        rows.append({**row, 'accesses': accesses, 'GB/s': speed, 'of the copy': speed / copy})
    table(f'Optimizer step: {n:,} parameters, float32, {turns} turns. Shares above 1 are right: small '
          'tensors come from the cache, and a copy on a CPU reads what it overwrites, too', rows)
    compare(seconds, 'SGDW foreach', 'AdamW fused')
    compare(seconds, 'SGDW foreach', 'AdamW foreach')

def step():
    X, Y = torch.randint(vocab, (2, B, T), device=env.device)
    side = 8192 if gpu else 2048
    ways = ('', ', compiled') if env.compile else ('',)
    arms, work, limits, rows = {}, {}, {}, []  # work: tokens and FLOPs of each arm
    for d in dtypes:
        a, b = torch.randn(2, side, side, device=env.device).to(getattr(torch, d))
        arms[f'a @ b, {d}'], work[f'a @ b, {d}'] = partial(torch.matmul, a, b), (0, 2 * side ** 3)
    for network, (setting, norm) in NETWORKS.items():
        model = make_gpt(size, setting, norm)
        opt, c = sgdw(model), model.config
        flops = 6 * (count(model) - model.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * T
        for way in ways:
            run = torch.compile(model) if way else model
            for d in dtypes:
                arms[f'{network}, {d}{way}'] = partial(update, opt, d, run, X, Y)
                work[f'{network}, {d}{way}'] = B * T, B * T * flops
    seconds = take_turns(arms)
    for name, (tokens, flops) in work.items():
        row, d = times(name, seconds), name.split(', ')[1]
        speed = flops / row['ms'] / 1e9
        limits.setdefault(d, speed)  # a @ b comes first
        rows.append({**row, 'tokens/s': 1e3 * tokens / row['ms'] if tokens else '', 'TFLOP/s': speed,
                     'of a @ b': speed / limits[d]})
    table(f'Training step: {count(model):,} parameters, {B} x {T} tokens, mSGDW, clip 1.0. a and b: {side}^2',
          rows)
    for way in ways:
        for d in dtypes:
            for base in ('S1 rms', 'GPT-2'):
                compare(seconds, f'L-DNT, {d}{way}', f'{base}, {d}{way}', 1.03 if way else 1.12)

def peer():
    """GPT-2 by nanoGPT's model.py, optimizer and iteration, and by ours: the same weights and batch."""
    if not nanogpt:
        return print('\nNot measured: nanoGPT (--nanogpt=PATH of a checkout)')
    names = runpy.run_path(f'{nanogpt}/model.py')
    with redirect_stdout(io.StringIO()):
        theirs = names['GPT'](names['GPTConfig'](bias=False, **SIZES[size])).to(env.device)  # bias as there
        their_opt = theirs.configure_optimizers(0.1, 1e-4, (0.9, 0.95), env.device_type)
    ours, more = (make_gpt(size, *NETWORKS['GPT-2']) for _ in range(2))
    X, Y = torch.randint(vocab, (2, B, T), device=env.device)
    with torch.no_grad():
        for model in (ours, more):
            for p, w in zip(model.parameters(), theirs.parameters(), strict=True):  # in the same order
                p.copy_(w)
        their_loss, our_loss = theirs(X, Y)[1].item(), ours(X, Y)[1].item()
    if abs(their_loss - our_loss) > 1e-3:
        fail(f'From the same weights, nanoGPT has the loss {their_loss} and ours is {our_loss}. They are not '
             'the same network.')

    def their_update(dtype, model):
        """What its train.py does with one micro batch."""
        with torch.autocast(env.device_type, torch.bfloat16, enabled=dtype == 'bfloat16'):
            loss = model(X, Y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        their_opt.step()
        their_opt.zero_grad(set_to_none=True)
        loss.item()  # for its log
    run = torch.compile(more) if env.compile else more
    shipped = base = 'nanoGPT, float32, AdamW'  # on a CPU it has no autocast and is not compiled
    arms = {base: partial(their_update, 'float32', theirs),
            'ours, float32, AdamW': partial(update, adamw(ours), 'float32', ours, X, Y),
            f'ours, {env.dtype}, mSGDW': partial(update, sgdw(more), env.dtype, run, X, Y)}
    if gpu:
        shipped = 'nanoGPT, bfloat16, AdamW, compiled'
        arms[shipped] = partial(their_update, 'bfloat16', torch.compile(theirs))
    seconds = take_turns(arms)
    table(f'GPT-2 beside nanoGPT: {count(ours):,} parameters, {B} x {T} tokens, forward, backward, clip 1.0, '
          f'step; from the same weights, with a first loss of {their_loss:.5f} and {our_loss:.5f}',
          [{**times(a, seconds), 'tokens/s': B * T / statistics.median(seconds[a])} for a in arms])
    compare(seconds, 'ours, float32, AdamW', base, 0.95)
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
    for name, measure in zip(sections, (peer, optimizer, step), strict=True):
        if name in only.split(','):
            measure()
        torch.compiler.reset()  # it keeps a few programs for each function, not dozens
        if gpu:
            torch.cuda.empty_cache()
except RuntimeError as e:
    explain(e, 'that does not fit into memory: use a smaller size or smaller batches')
if ratios:
    table('Ratios of times', ratios)
