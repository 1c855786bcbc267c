"""
What a run reports: the lines on the console, the rows of log.jsonl, speed and the time left.
"""

import re
import sys
import time
from contextlib import contextmanager

import torch
from tqdm import tqdm

# dense bf16 peaks in TFLOP/s from the makers' data sheets (not the sparse figures, which are twice as high)
PEAK_TFLOPS = (('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200 NVL', 835), ('H200', 989),
               ('H800 PCIe', 756), ('H800', 989), ('GH200', 989), ('B200', 2250), ('A100', 312),
               ('A800', 312), ('L40S', 362), ('L4', 121), ('RTX 4090 D', 147), ('RTX 4090', 165),
               ('RTX 3090', 71))


def peak_flops(device_type):
    """Dense bf16 peak of this GPU in FLOP/s, None where it is not known: then no MFU is shown."""
    name = torch.cuda.get_device_name() if device_type == 'cuda' else ''
    for gpu, tflops in PEAK_TFLOPS:
        if re.search(rf'\b{gpu}\b', name):  # whole words: 'L4' is not the L40S
            return tflops * 1e12
    return None


def duration(seconds):
    """3725.0 -> '1h02m'"""
    m, s = divmod(int(seconds), 60)
    h, m = divmod(m, 60)
    return f'{h}h{m:02d}m' if h else f'{m}m{s:02d}s' if m else f'{s}s'


class Report:
    """
    The lines and rows of a run. unit: 'tokens' or 'images', per_iter of them per update. flops:
    floating-point operations for each, None where unknown. Speeds leave out the time for evaluations; the
    time left includes it.
    """

    def __init__(self, run, env, max_iters, eval_interval, unit, per_iter, flops=None, iters_per_epoch=None):
        self.run, self.env, self.max_iters, self.eval_interval = run, env, max_iters, eval_interval
        self.unit, self.per_iter, self.iters_per_epoch = unit, per_iter, iters_per_epoch
        self.peak, self.flops, self.eval_seconds = peak_flops(env.device_type), flops, 0.0
        self.restart()

    def restart(self):
        self.t0, self.updates, self.waited = time.time(), 0, 0.0

    @contextmanager
    def evaluating(self):
        begin = time.time()
        yield
        self.eval_seconds = time.time() - begin
        self.t0 += self.eval_seconds

    @contextmanager
    def waiting(self):
        """Time that the loop waits for data."""
        begin = time.time()
        yield
        self.waited += time.time() - begin

    def val(self, iter_num, better, **metrics):
        self.run.log(iter=iter_num, split='val', **metrics, **{self.unit: iter_num * self.per_iter})
        line = [f'{name.replace("top", "top-")} {value:.4f}' for name, value in metrics.items()]
        self.env.say(f'val  {iter_num:6d}/{self.max_iters} | ' + ' | '.join(line + ['best so far'] * better))

    def train(self, iter_num, loss, lr, grad_norm, **more):
        """Log the update of iter_num. more: further numbers for the log."""
        dt = (time.time() - self.t0) / self.updates
        speed, row, line = self.per_iter / dt, {}, [f'iter {iter_num:6d}/{self.max_iters}']
        if self.iters_per_epoch:
            line.append(f'epoch {iter_num / self.iters_per_epoch:.2f}')
        line += [f'loss {loss:.4f}', f'lr {lr:.2e}', f'norm {grad_norm:.3f}']
        line.append(f'{speed:,.0f} {"tok" if self.unit == "tokens" else "img"}/s')
        if self.unit == 'images':
            row['data_wait'] = round(self.waited / (dt * self.updates), 4)
            line.append(f'{row["data_wait"]:.0%} waiting for data')
        every = self.eval_interval or self.max_iters
        evaluations = -(-self.max_iters // every) - iter_num // every
        left = (self.max_iters - iter_num - 1) * dt + evaluations * self.eval_seconds
        line.append(f'{duration(left)} left')
        if self.peak and self.flops:
            row['mfu'] = round(speed * self.flops / (self.peak * self.env.world_size), 4)
            line.append(f'mfu {row["mfu"]:.1%}')
        self.run.log(iter=iter_num, split='train', loss=loss, lr=lr, grad_norm=grad_norm,
                     **{self.unit: (iter_num + 1) * self.per_iter, f'{self.unit}_per_s': round(speed, 1)},
                     **row, **{name: round(value, 4) for name, value in more.items()})
        self.env.say(' | '.join(line))
        self.restart()


def progress(items, what, env):
    """
    The items of an evaluation. One that takes longer than a second says what it reads, and a terminal shows a
    bar.
    """
    begin, told = time.time(), False
    for item in tqdm(items, f'evaluating on {what}', delay=1, leave=False,
                     disable=not (env.master and sys.stderr.isatty())):
        if not told and time.time() > begin + 1:
            told = True
            if not sys.stderr.isatty():
                env.say(f'evaluating on {what}')
        yield item
