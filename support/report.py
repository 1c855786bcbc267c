"""
What a run reports: the lines on the console, the rows of log.jsonl, speed and the time left.
"""

import re
import sys
import time

import torch
from tqdm import tqdm

from support.checks import name_norms
from support.optim import name_optimizer

# dense bf16 peaks in TFLOP/s from the makers' data sheets (not the sparse figures, which are twice as high)
PEAK_TFLOPS = (('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200 NVL', 835), ('H200', 989),
               ('H800 PCIe', 756), ('H800', 989), ('GH200', 989), ('B200', 2250), ('A100', 312),
               ('A800', 312), ('L40S', 362), ('L4', 121), ('RTX 4090 D', 147), ('RTX 4090', 165),
               ('RTX 3090', 71))


def peak_flops(device_type):
    """Dense bf16 peak of this GPU in FLOP/s, None where it is not known: then no MFU is shown."""
    name = torch.cuda.get_device_name() if device_type == 'cuda' else ''
    if re.search(r'\b(Ti|Laptop|MIG)\b', name):  # slower or faster than their namesakes
        return None
    for gpu, tflops in PEAK_TFLOPS:
        if re.search(rf'\b{gpu}\b', name):  # whole words: 'L4' is not the L40S
            return tflops * 1e12
    return None


def flops_per_unit(model):
    """
    Floating-point operations for a token, or for an image, in forward and backward (PaLM, arXiv:2204.02311,
    appendix B): 6 per weight and 12 L C T for attention; None for a network without attention. Positions do
    no work, and the head of a ViT works on one token.
    """
    if not hasattr(model, 'blocks'):
        return None
    attention = 12 * model.config.n_layer * model.config.n_embd
    if hasattr(model, 'wte'):
        weights = sum(p.numel() for p in model.parameters()) - model.wpe.weight.numel()
        if not model.config.tied:  # a lookup; a tied one is the head too
            weights -= model.wte.weight.numel()
        return 6 * weights + attention * model.config.block_size
    weights, tokens = sum(p.numel() for p in model.blocks.parameters()), model.pos_embed.size(1)
    return tokens * (6 * weights + attention * tokens)


def introduce(config, env, model, model_args, micro, accum, data):
    """The line that a run begins with. data: its data and its batch, in words."""
    n_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    network = config.get('arch', '')
    if 'pre_norm' in model_args:  # a transformer
        network = f'setting {name_norms(config["setting"], model_args)}'
    env.say(f'{n_params / 1e6:.2f}M parameters, {network}, {name_optimizer(config)} | '
            f'{data} = {env.world_size} processes x {accum} x {micro} | '
            f'{env.device}, {env.dtype}, compile {env.compile} | {config["out_dir"]}')


def duration(seconds):
    """3725.0 -> '1h02m'"""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours}h{minutes:02d}m'
    if minutes:
        return f'{minutes}m{seconds:02d}s'
    return f'{seconds}s'


class Report:
    """
    The lines and rows of a run. unit: 'tokens' or 'images', per_iter of them per update. Speeds leave out the
    time for evaluations; the time left includes it.
    """

    def __init__(self, run, env, max_iters, eval_interval, unit, per_iter, model, iters_per_epoch=None):
        self.run, self.env, self.max_iters, self.eval_interval = run, env, max_iters, eval_interval
        self.unit, self.per_iter, self.iters_per_epoch = unit, per_iter, iters_per_epoch
        self.peak, self.flops, self.eval_seconds = peak_flops(env.device_type), flops_per_unit(model), 0.0
        self.restart(run.start_iter)

    def restart(self, iter_num):
        self.t0, self.first_iter, self.waited = time.time(), iter_num, 0.0

    def timed(self, evaluate):
        """evaluate(), whose time is no time of training."""
        begin = time.time()
        result = evaluate()
        self.eval_seconds = time.time() - begin
        self.t0 += self.eval_seconds
        return result

    def wait_for(self, batches):
        """The next batch. How long the loop waits for it is logged."""
        begin = time.time()
        batch = next(batches)
        self.waited += time.time() - begin
        return batch

    def val(self, iter_num, better, **metrics):
        self.run.log(iter=iter_num, split='val', **metrics, **{self.unit: iter_num * self.per_iter})
        line = [f'val  {iter_num:6d}/{self.max_iters}']
        line += [f'{name.replace("top", "top-")} {value:.4f}' for name, value in metrics.items()]
        if better:
            line.append('best so far')
        self.env.say(' | '.join(line))

    def train(self, iter_num, loss, lr, grad_norm, clipped):
        """Log the update of iter_num. clipped: the share of units that agc has clipped, or None."""
        updates = iter_num + 1 - self.first_iter
        seconds = max(time.time() - self.t0, 0.001)  # some clocks have steps of 16 ms
        speed = self.per_iter * updates / seconds
        row = {'iter': iter_num, 'split': 'train', 'loss': loss, 'lr': lr, 'grad_norm': grad_norm,
               self.unit: (iter_num + 1) * self.per_iter, f'{self.unit}_per_s': round(speed, 1),
               'data_wait': round(self.waited / seconds, 4)}
        line = [f'iter {iter_num:6d}/{self.max_iters}']
        if self.iters_per_epoch:
            line.append(f'epoch {iter_num / self.iters_per_epoch:.2f}')
        line += [f'loss {loss:.4f}', f'lr {lr:.2e}', f'norm {grad_norm:.3f}',
                 f'{speed:,.0f} {self.unit[:3].replace("ima", "img")}/s',
                 f'{row["data_wait"]:.0%} waiting for data',
                 f'{self.time_left(iter_num, seconds / updates)} left']
        if self.peak and self.flops:
            row['mfu'] = round(speed * self.flops / (self.peak * self.env.world_size), 4)
            line.append(f'mfu {row["mfu"]:.1%}')
        if clipped is not None:
            row['agc_share'] = round(clipped.item(), 4)
        self.run.log(**row)
        self.env.say(' | '.join(line))
        self.restart(iter_num + 1)

    def time_left(self, iter_num, seconds_per_update):
        every = self.eval_interval or self.max_iters
        evaluations = -(-self.max_iters // every) - iter_num // every
        updates = self.max_iters - iter_num - 1
        return duration(updates * seconds_per_update + evaluations * self.eval_seconds)


def progress(batches, split, signals, env):
    """The batches of an evaluation, up to a signal to stop. After a second, a terminal shows a bar."""
    terminal = env.master and sys.stderr.isatty()
    for batch in tqdm(batches, f'evaluating on {split}', delay=1, leave=False, disable=not terminal):
        if signals:
            break
        yield batch
