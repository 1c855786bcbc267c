"""
What a run reports: the lines on the console, the rows of log.jsonl, speed and the time left.
"""

import re
import time
from contextlib import contextmanager

import torch

# dense bf16 peaks in TFLOP/s from the makers' data sheets (not the sparse figures, which are twice as high)
PEAK_TFLOPS = (('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200 NVL', 835), ('H200', 989),
               ('H800 PCIe', 756), ('H800', 989), ('GH200', 989), ('B200', 2250), ('A100', 312), ('A800', 312),
               ('L40S', 362), ('L4', 121), ('RTX 4090 D', 147), ('RTX 4090', 165), ('RTX 3090', 71))


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
    Speed between two lines, without the time for evaluations. unit: 'tokens' or 'images', per_iter of them an update,
    flops (floating-point operations) for each, None where unknown.
    """

    def __init__(self, run, max_iters, unit, per_iter, flops=None, iters_per_epoch=None):
        self.run, self.env, self.max_iters, self.unit, self.per_iter = run, run.env, max_iters, unit, per_iter
        self.peak, self.flops, self.iters_per_epoch = peak_flops(run.env.device_type), flops, iters_per_epoch
        self.t0, self.updates, self.waited = time.time(), 0, 0.0

    @contextmanager
    def paused(self):
        pause = time.time()
        yield
        self.t0 += time.time() - pause

    @contextmanager
    def waiting(self):
        """Time that the loop waits for data."""
        pause = time.time()
        yield
        self.waited += time.time() - pause

    def val(self, iter_num, better, **metrics):
        self.run.log(iter=iter_num, split='val', **metrics, **{self.unit: iter_num * self.per_iter})
        self.env.say(f'val  {iter_num:6d}/{self.max_iters} | ' + ' | '.join(
            f'{name.replace("top", "top-")} {value:.4f}' for name, value in metrics.items()) + ' | best so far' * better)

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
        line.append(f'{duration((self.max_iters - iter_num - 1) * dt)} left')
        if self.peak and self.flops:
            row['mfu'] = round(speed * self.flops / (self.peak * self.env.world_size), 4)
            line.append(f'mfu {row["mfu"]:.1%}')
        self.run.log(iter=iter_num, split='train', loss=loss, lr=lr, grad_norm=grad_norm,
                     **{self.unit: (iter_num + 1) * self.per_iter, f'{self.unit}_per_s': round(speed, 1)}, **row,
                     **{name: round(value, 4) for name, value in more.items()})
        self.env.say(' | '.join(line))
        self.t0, self.updates, self.waited = time.time(), 0, 0.0
