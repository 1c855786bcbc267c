"""
Momentum without a buffer: can the gradient's memory hold the momentum?

    python -m experiments.bufferless                                              a small GPT on a CPU, minutes
    python -m experiments.bufferless --n_layer=48 --n_embd=1536 --n_head=24 --device=cuda --processes=1

Where nothing clips, .grad can be the momentum: after the step it is scaled by mu in place of being freed, and the next
backward adds its gradient to it (m = mu m + g). DDP averages mu m + g_r over its processes, which is mu m + mean g. It
saves SGDW's state, 4 bytes a weight, and pays in backward, which then adds to memory in place of handing its gradient
over. Each cell is a process of its own: seconds for a training step (median) and the peak of its memory above what it
had before the model (the CPU's is read from Linux). Weights after the last step are compared.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from configurator import configure, fail
from model import GPT, GPTConfig
from sgdw import SGDW
from training import param_groups

n_layer = 4
n_head = 4
n_embd = 256
block_size = 128  # tokens in a sequence
batches = '1,8'  # sequences a forward: where the weights are most of the memory, and where the activations are
processes = 2  # of DDP, for the lower half of the table; 1: leave it out
steps = 4
device = 'cpu'  # or cuda
way = ''  # what a child process runs: sgdw or bufferless
case = ''  # and its sequences, accumulation and file for the weights
configure(globals())


@torch.no_grad()
def bufferless_step(groups, lr, mu):
    """w = (1 - lr wd) w - lr m, and .grad, which is m, becomes mu m: what the next backward adds to."""
    for group in groups:
        params = [p for p in group['params'] if p.grad is not None]
        torch._foreach_mul_(params, 1 - lr * group['weight_decay'])
        torch._foreach_add_(params, [p.grad for p in params], alpha=-lr)
        torch._foreach_mul_([p.grad for p in params], mu)


resident = []


def watch():
    """Bytes of memory that no file backs, every 2 ms: ru_maxrss would count torch's own code."""
    while True:
        with open('/proc/self/statm') as f:
            _, pages, shared, *_ = map(int, f.read().split())
        resident.append((pages - shared) * os.sysconf('SC_PAGE_SIZE'))
        time.sleep(0.002)


def child():
    B, accum, path = case.split(',')
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1:
        dist.init_process_group('gloo' if device == 'cpu' else 'nccl')
    where = torch.device(device, int(os.environ.get('LOCAL_RANK', 0))) if device == 'cuda' else torch.device(device)
    threading.Thread(target=watch, daemon=True).start()
    torch.manual_seed(0)
    raw = model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)).to(where)
    if world > 1:
        model = DDP(raw, device_ids=[where] if device == 'cuda' else None, gradient_as_bucket_view=True)
    groups, times, lr, mu = param_groups(raw, 0.1), [], 0.05, 0.9
    opt = SGDW(groups, lr=lr, momentum=mu)
    data = torch.Generator().manual_seed(int(os.environ.get('RANK', 0)))
    for _ in range(steps):
        start = time.perf_counter()
        for i in range(int(accum)):
            idx = torch.randint(50304, (int(B), block_size), generator=data).to(where)
            model.require_backward_grad_sync = i == int(accum) - 1
            (model(idx, idx)[1] / int(accum)).backward()
        if way == 'sgdw':
            opt.step()
            opt.zero_grad(set_to_none=world == 1)
        else:
            bufferless_step(groups, lr, mu)
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == 'cuda' else max(resident) - resident[0]
    if int(os.environ.get('RANK', 0)) == 0:
        torch.save(raw.state_dict(), path)
        n = sum(p.numel() for p in raw.parameters())
        print(json.dumps({'s': statistics.median(times[1:]), 'peak': peak, 'weights': 4 * n}))
    if world > 1:
        dist.destroy_process_group()


def measure(way, B, accum, world, path):
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={world}'] if world > 1 else []
    keys = [f'--{k}={globals()[k]}' for k in ('n_layer', 'n_head', 'n_embd', 'block_size', 'steps', 'device')]
    done = subprocess.run([sys.executable, *launch, '-m', 'experiments.bufferless', *keys, f'--way={way}',
                           f'--case={B},{accum},{path}'], capture_output=True, text=True)
    if done.returncode:
        fail(f'{way} with {B} sequences, accumulation {accum}, {world} processes failed: {done.stderr[-500:]}')
    return json.loads(done.stdout.splitlines()[-1])


def main():
    print('| processes | sequences x accumulation | SGDW: s, peak | bufferless: s, peak | time | peak saved | '
          'of the weights | weights differ by |\n|---|---|---|---|---|---|---|---|')
    cases = [(world, B, accum) for world in sorted({1, processes}) for B in batches.split(',') for accum in (1, 4)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, way) for way in ('sgdw', 'bufferless')]
        wins = []
        for world, B, accum in cases:
            a, b = (measure(os.path.basename(path), B, accum, world, path) for path in paths)
            x, y = (torch.load(path, weights_only=True) for path in paths)
            off = max(((x[k] - y[k]).abs().max() / x[k].abs().max()).item() for k in x)
            cells = [f'{c["s"]:.3f}, {c["peak"] / 1e6:,.0f} MB' for c in (a, b)]
            saved = a['peak'] - b['peak']
            wins += [f'{world} x {B} x {accum}'] * (saved > a['weights'] / 2)
            print(f'| {world} | {B} x {accum} | {cells[0]} | {cells[1]} | {b["s"] / a["s"]:.2f} | '
                  f'{saved / 1e6:,.0f} MB | {saved / a["weights"]:.0%} | {off:.0e} |', flush=True)
    print(f'\nMore than half a buffer is saved in {len(wins)} of {len(cases)} cases: {", ".join(wins) or "none"}.')


if __name__ == '__main__':
    child() if way else main()
