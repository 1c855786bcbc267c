"""
Train a GPT-2 or an L-DNT on memmapped tokens.

    python train_gpt.py config/dnt_tiny.py                                       # a CPU, a Mac or one GPU
    torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small.py    # one machine with 8 GPUs
    python train_gpt.py config/dnt_tiny.py --learning_rate=0.3 --out_dir=out/x   # any key on the command line
    python train_gpt.py config/dnt_tiny.py --init_from=resume                    # continue a stopped run

Read this file from top to bottom: config, start, data, model, optimizer, schedule, evaluate, loop. support/
holds what protects a run. It writes config.json, log.jsonl, ckpt.pt (the latest state), best.pt to out_dir.
"""

import math

from configurator import configure  # isort: skip (before torch, see support/__init__.py)
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from model import GPT, GPTConfig
from sgdw import SGDW
from support import resume
from support.checks import check_gpt, network_args, split_batch, warn_of_warmup
from support.distributed import agree, all_sum, catch_signals, choose_dtype, leave, start, stop_asked
from support.normfree import clip_units, gradient_units
from support.optim import check_optimizer, other_optimizer, rehearse
from support.report import Report, introduce, progress
from support.run import Run, seed_masks
from support.tokens import Tokens

# -----------------------------------------------------------------------------
# config: the paper's L-DNT-Small with mSGDW (tables 3 and 5)
out_dir = 'out/gpt'  # config.json, log.jsonl and the checkpoints of this run
init_from = 'scratch'  # 'scratch', 'resume' (the run in out_dir), or weights: a file, a folder, a Hub id
overwrite = False  # True: throw away the run that out_dir holds
eval_only = False  # True: print the validation loss and leave; nothing is written
eval_interval = 1000  # iterations between evaluations, 0: only at the end
eval_tokens = 0  # validation tokens per evaluation, spread evenly over the split; 0: all
ckpt_interval = 1000  # iterations between saves of ckpt.pt, 0: only at the end or when stopped
keep_interval = 0  # iterations between checkpoints that are kept (ckpt_000500.pt); 0: none
log_interval = 10  # iterations between lines on the console and in log.jsonl
# data
dataset = 'openwebtext'  # a folder under data/, or a path
global_batch_size = 480  # sequences per update, over all processes
micro_batch_size = 16  # most sequences per forward pass; gradients accumulate up to global_batch_size
block_size = 1024  # context length in tokens
# model
setting = 'S5'  # which norms: S1 (pre-norm GPT-2), S2, S3, S4, S5 (DNT), PostLN, PeriLN, OLMo2, NoNorm
norm = 'rms'  # 'rms', 'layer' or 'dyt'
input_norm = 'auto'  # auto: as the setting says; True or False switches this norm. The next six alike
pre_norm = 'auto'  # before attention
ffn_pre_norm = 'auto'  # before the FFN
mid_norm = 'auto'  # after W_o and after W_2, before the residual sum
qk_norm = 'auto'  # on queries and keys, per head
post_norm = 'auto'  # after each residual sum
final_norm = 'auto'  # before the head
n_layer = 12  # depth
n_head = 12  # attention heads
n_embd = 768  # width
bias = False  # biases in linear layers and LayerNorm
qkv_bias = True  # False: no bias on q, k and v, even where bias is True
dropout = 0.0  # 0.0 for pretraining; try 0.1 for fine-tuning
tied = True  # the head is the token embedding
flash = True  # False: attention written out in matrix products, slower, for reading
recompute_blocks = False  # True: backward runs each block again. Saves memory, costs a third more work
weight_standardization = 'none'  # 'none', 'ffn' (W_1, W_2) or 'all' (attention too): docs/normalizer-free.md
weight_gain = True  # True: each standardized row of W_o, W_1 and W_2 has a gain
init = 'xavier'  # 'xavier', 'torch' (PyTorch's default) or 'tfixup' (docs/normalizer-free.md)
vocab_size = 0  # 0: the data set's, rounded up to a multiple of 64
loss_chunk = 0  # logits for this many tokens at a time, 0: all. Saves memory; the head runs forward twice
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay), 'muon'
learning_rate = 1.0  # peak
min_lr = 6e-5  # where the cosine ends
embed_lr = 0.0  # peak rate of wte, wpe and an untied head (min_lr is scaled alike); 0: learning_rate
embed_optimizer = 'auto'  # of the embeddings: 'auto' (as optimizer), 'adamw', 'rownorm' (mSGDW by rows)
embed_weight_decay = -1.0  # of the embeddings; -1: weight_decay
warmup_iters = 0  # linear warmup
schedule = 'cosine'  # 'cosine' starts after the warmup; 'timm' at update 0, so the warmup hides its beginning
max_iters = 200000  # updates
weight_decay = 1e-4  # on matrices and embeddings; not on biases and gains
momentum = 0.9  # of sgdw, sgd and muon
nesterov = False  # sgdw, sgd: the paper's heavy ball; True: Nesterov's step, as timm makes 'sgdw'
beta1 = 0.9  # of adamw
beta2 = 0.95  # of adamw
grad_clip = 1.0  # upper bound of the gradient's norm, 0: none
agc = 0.0  # lambda of adaptive gradient clipping (NFNet: 0.01), which needs grad_clip=0; 0: off
# system
seed = 1337  # initial weights and data order
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast), float32, auto: bfloat16 if the hardware has it (CPU: n_embd >= 256)
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
deterministic = False  # True: identical results on CUDA too, but slower
config = configure(globals())

# -----------------------------------------------------------------------------
# start: processes, device, precision, and the checkpoint that init_from names
check_gpt(config)
env = start(device, compile, seed, deterministic)
signals = catch_signals(env)
micro, accum = split_batch(global_batch_size, micro_batch_size, env.world_size)
checkpoint = resume.find(config, env)  # empty where init_from is 'scratch'
config |= resume.network_of(checkpoint, config)  # its network overrides config: n_layer, block_size, ...
globals().update(config)
env.dtype, env.autocast = choose_dtype(dtype, env.device_type, n_embd)

# -----------------------------------------------------------------------------
# data: train.bin and val.bin hold token ids, one document after another
data = Tokens(dataset, block_size, env, vocab_size)


def train_batches(first_iter):
    """Micro batches of this process. All processes draw the same offsets, from (seed, iter_num)."""
    for iter_num in range(first_iter, max_iters + 2):  # the loop ends at max_iters but reads ahead
        rng = np.random.default_rng((seed, iter_num))
        offsets = rng.integers(0, data.train_tokens - block_size, size=global_batch_size)
        for step in range(accum):
            first = (env.rank * accum + step) * micro
            yield data.windows('train', offsets[first:first + micro])  # inputs, targets: (micro, block_size)


def eval_batches(split):
    """Micro batches of this process's share of a split: windows spread evenly, the same each time."""
    windows = (data.meta[f'{split}_tokens'] - 1) // block_size  # side by side
    wanted = min(windows, max(1, eval_tokens // block_size)) if eval_tokens else windows
    mine = (np.arange(wanted) * windows // wanted * block_size)[env.rank::env.world_size]
    for first in range(0, len(mine), micro):
        yield data.windows(split, mine[first:first + micro])

# -----------------------------------------------------------------------------
# model: raw_model is evaluated and saved; model is the same network, wrapped for training
model_args = network_args(GPTConfig, config) | {'vocab_size': data.vocab_size}
resume.check(checkpoint, config, model_args, data.meta, max_iters, env)
raw_model = resume.make_network(GPT, GPTConfig, model_args, env)  # a GPT on the device
resume.load_weights(raw_model, checkpoint, data.meta, env)
params = [p for p in raw_model.parameters() if p.requires_grad]
units = gradient_units(raw_model) if agc else []

model = ddp = raw_model
if env.world_size > 1:
    model = ddp = DDP(raw_model, gradient_as_bucket_view=True, bucket_cap_mb=100 if env.compile else 25)
if env.compile:
    model = torch.compile(model)

# -----------------------------------------------------------------------------
# optimizer: matrices and embeddings decay, biases and gains do not
check_optimizer(config, raw_model)
decay, no_decay, embeddings = [], [], []
for name, p in raw_model.named_parameters():  # a tied head is listed once, as wte
    if embed_lr and name in ('wte.weight', 'wpe.weight', 'lm_head.weight'):
        embeddings.append(p)
    elif p.dim() >= 2:
        decay.append(p)
    else:
        no_decay.append(p)
groups = [{'params': decay, 'weight_decay': weight_decay, 'lr_scale': 1.0},
          {'params': no_decay, 'weight_decay': 0.0, 'lr_scale': 1.0}]
if embed_lr:  # the loop sets group['lr'] = get_lr(iter_num) * group['lr_scale']
    groups.append({'params': embeddings, 'lr_scale': embed_lr / learning_rate,
                   'weight_decay': weight_decay if embed_weight_decay < 0 else embed_weight_decay,
                   'rownorm': embed_optimizer == 'rownorm'})
if optimizer == 'sgdw' and embed_optimizer in ('auto', 'rownorm'):
    opt = SGDW(groups, learning_rate, momentum, nesterov=nesterov)  # m = mu m + g; w -= lr (m + wd w)
elif optimizer == 'adamw' and embed_optimizer in ('auto', 'adamw'):
    opt = torch.optim.AdamW(groups, learning_rate, (beta1, beta2), fused=True)
else:  # sgd, muon, or another optimizer for the embeddings
    opt = other_optimizer(raw_model, groups[:2], groups[2:], config)
resume.load_optimizer(opt, checkpoint)  # where the run resumes: the momentum of its last step

# -----------------------------------------------------------------------------
# schedule

def get_lr(iter_num):
    """Linear warmup, then a cosine from the peak at warmup_iters to min_lr at max_iters."""
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    first = 0 if schedule == 'timm' else warmup_iters  # timm's cosine begins under the warmup
    progress = min(1.0, (iter_num - first) / max(1, max_iters - first))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)

# -----------------------------------------------------------------------------
# evaluate

@torch.no_grad()
def evaluate(split='val'):
    """Mean loss in nats per token; None if a signal to stop came."""
    loss_sum, seen = 0.0, 0
    raw_model.eval()
    for X, Y in progress(eval_batches(split), split, signals, env):
        with env.autocast:
            loss = raw_model(X, Y)[1]
        loss_sum += loss.item() * len(X)
        seen += len(X)
    raw_model.train()
    loss_sum, seen, stops = all_sum([loss_sum, seen, len(signals)], env)
    return None if stops else loss_sum / seen


if eval_only:
    env.say(f'val loss {evaluate():.4f} nats per token')
    leave(0, env)

# -----------------------------------------------------------------------------
# loop
introduce(config, env, raw_model, model_args, micro, accum,
          f'{data.train_tokens:,} training tokens, {global_batch_size * block_size:,} per update')
warn_of_warmup(warmup_iters, max_iters, env)
first_iter, best_val_loss = checkpoint.iter, checkpoint.best('best_val_loss', math.inf)
del checkpoint  # its memory is free now
batches = train_batches(first_iter)
X, Y = next(batches)
rehearse(lambda: model(X, Y)[1], raw_model, opt, first_iter, env, f'{micro} sequences of {block_size} tokens')
run = Run(config, env, signals, first_iter, raw_model, opt)
report = Report(run, env, max_iters, eval_interval, 'tokens', global_batch_size * block_size, raw_model)


def due(interval):
    return interval and iter_num % interval == 0


def save(name):
    run.save(name, model=raw_model.state_dict(), optimizer=opt.state_dict(), iter=iter_num,
             best_val_loss=best_val_loss, model_args=model_args, data=data.meta, config=dict(config))


for iter_num in range(first_iter, max_iters + 1):  # the last turn evaluates and saves, and makes no step
    last = iter_num == max_iters
    lr = get_lr(iter_num)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if last or due(eval_interval):
        val_loss = report.timed(evaluate)
        if val_loss is not None:  # no signal to stop came
            run.stop_if_not_finite(iter_num, lr, validation_loss=val_loss)
            better = val_loss < best_val_loss and iter_num > 0
            report.val(iter_num, better, loss=val_loss)
            if better:
                best_val_loss = val_loss
                save('best.pt')

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last one
    seed_masks(seed, iter_num, env.rank)  # dropout: a rerun or resumed run has the same masks
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # DDP reads it in forward too
        with env.autocast:
            loss = model(X, Y)[1] / accum
        loss.backward()
        loss_sum += loss.detach()
        if stop_asked(signals, env):
            break
        X, Y = report.wait_for(batches)  # read while the device works

    # share loss, norm and stops. Behind the finite check, the weights of this loss may be saved
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    mean_loss, mean_norm, stops = agree(loss_sum, grad_norm, signals, env)
    run.stop_if_not_finite(iter_num, lr, loss=mean_loss, gradient_norm=mean_norm)
    if iter_num > first_iter and (last or stops or due(ckpt_interval) or due(keep_interval)):
        if due(keep_interval):
            save(f'ckpt_{iter_num:06d}.pt')
        save('ckpt.pt')  # the state before the step: a resumed run repeats this update
    if stops:
        run.leave_stopped(iter_num)
    if last:
        break

    if agc:
        clipped = clip_units(units, agc)
    elif grad_clip:
        torch.nn.utils.clip_grads_with_norm_(params, grad_clip, grad_norm)
    opt.step()
    opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
    if due(log_interval):
        report.train(iter_num, mean_loss, lr, mean_norm, clipped if agc else None)

leave(0, env)
