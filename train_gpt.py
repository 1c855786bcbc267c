"""
Train a GPT-2 or an L-DNT on memmapped tokens.

    python train_gpt.py config/dnt_tiny.py                                       # a CPU, a Mac or one GPU
    torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small.py    # one machine with 8 GPUs
    python train_gpt.py config/dnt_tiny.py --learning_rate=0.3 --out_dir=out/x   # any key on the command line
    python train_gpt.py config/dnt_tiny.py --init_from=resume                    # continue a stopped run

Read this file from top to bottom: config, start, data, model, optimizer, schedule, evaluate, loop. support/
holds what protects a run: checks of files and values, devices, checkpoints. A run writes to out_dir:
config.json, log.jsonl (one object per line), ckpt.pt (the latest state), best.pt (lowest validation loss).
"""

import math

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from configurator import configure
from model import GPT, GPTConfig
from support.checkpoint import Run, begin, continue_gpt, load_optimizer, make_network
from support.checks import check_gpt, name_norms, network_args, split_batch
from support.distributed import agree, all_sum, catch_signals, leave, start, stop_asked
from support.normfree import clip_units, gradient_units
from support.optim import make_optimizer, name_optimizer, rehearse
from support.report import Report, progress
from support.tokens import Tokens

# -----------------------------------------------------------------------------
# config: the paper's L-DNT-Small with mSGDW (tables 3 and 5)
out_dir = 'out/gpt'  # config.json, log.jsonl and the checkpoints of this run
init_from = 'scratch'  # 'scratch', 'resume' (the run in out_dir), or weights: file, folder, gpt2, Hub id
overwrite = False  # True: throw away the run that out_dir holds
eval_only = False  # True: print the validation loss and leave; nothing is written
eval_interval = 1000  # iterations between evaluations, 0: only at the end
eval_tokens = 0  # validation tokens per evaluation, in windows spread evenly; 0: all of them
ckpt_interval = 1000  # iterations between saves of ckpt.pt, 0: only at the end or when stopped
keep_interval = 0  # iterations between checkpoints that stay (ckpt_000500.pt), 0: none
log_interval = 10  # iterations between lines on the console and in log.jsonl
# data
dataset = 'openwebtext'  # a folder under data/, or a path
global_batch_size = 480  # sequences per update, over all processes
micro_batch_size = 16  # upper bound of sequences per process and forward; the accumulation follows
block_size = 1024  # context length in tokens
# model
setting = 'S5'  # which norms: S1 (pre-norm GPT-2), S2, S3, S4, S5 (DNT), PostLN, PeriLN, OLMo2, NoNorm
norm = 'rms'  # 'rms', 'layer' or 'dyt'
input_norm = 'auto'  # True or False; auto: as the setting says. this and the next six override single norms
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
qkv_bias = True  # False: none on q, k and v, whatever bias says
dropout = 0.0  # 0 is good for pretraining
tied = True  # the head is the token embedding
flash = True  # False: attention written out, to read
recompute_blocks = False  # True: saves memory, backward runs each block again: a third more work
weight_standardization = 'none'  # 'ffn': W_1 and W_2, 'all': W_q, W_k, W_v and W_o too (second report)
weight_gain = True  # a gain for each standardized unit of W_o, W_1, W_2
init = 'xavier'  # or 'torch' (PyTorch's default), or 'tfixup' (second report)
vocab_size = 0  # 0: the data set's, rounded up to a multiple of 64
loss_chunk = 0  # tokens whose logits are held at once, 0: all. Saves memory; the head runs forward twice
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay), 'muon'
learning_rate = 1.0  # peak
min_lr = 6e-5  # where the cosine ends
embed_lr = 0.0  # peak for wte, wpe and an untied head, min_lr in the same ratio; 0: learning_rate
embed_optimizer = 'auto'  # for these: 'auto' (as optimizer), 'adamw', 'rownorm' (mSGDW, each row scaled)
embed_weight_decay = -1.0  # for these; -1: weight_decay
warmup_iters = 0  # linear warmup
max_iters = 200000  # updates
weight_decay = 1e-4  # on matrices and embeddings; not on biases and gains
momentum = 0.9  # sgdw, sgd
beta1 = 0.9  # adamw
beta2 = 0.95  # adamw
grad_clip = 1.0  # upper bound of the gradient's norm, 0: none
agc = 0.0  # adaptive gradient clipping in place of grad_clip: its lambda (NFNet: 0.01), 0: none
# system
seed = 1337  # initial weights and data order
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast) or float32; auto: by device and width (support/distributed.py)
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
compile_optimizer = False  # True: sgdw's step as one compiled pass too
deterministic = False  # True: the same bits in every run on CUDA too, slower
config = configure(globals())

# -----------------------------------------------------------------------------
# start: processes, device, precision, and the checkpoint that init_from names
check_gpt(config)
env = start(device, dtype, compile, seed, deterministic, n_embd)
signals = catch_signals(env)
micro, accum = split_batch(global_batch_size, micro_batch_size, env.world_size)
run_start = begin(config, env)
globals().update(config)  # weights of another run bring their network along: n_layer, block_size, ...

# -----------------------------------------------------------------------------
# data: train.bin and val.bin hold token ids, one document after another
data = Tokens(dataset, block_size, env)


def get_batch(iter_num, micro_step):
    """
    One micro batch of this process: inputs and targets, each (micro, block_size). The batch of an iteration
    depends on (seed, iter_num) and the position in it alone.
    """
    last = data.train_tokens - block_size - 1
    offsets = np.random.default_rng((seed, iter_num)).integers(0, last, size=global_batch_size, endpoint=True)
    first = (env.rank * accum + micro_step) * micro
    return data.windows('train', offsets[first:first + micro])

# -----------------------------------------------------------------------------
# model: raw_model is evaluated and saved; model is the same network, wrapped for training
model_args = network_args(GPTConfig, config)
continue_gpt(run_start, GPTConfig, config, model_args, data)
raw_model = make_network(GPT, GPTConfig, model_args, run_start, env)  # GPT(GPTConfig(**model_args))
params = [p for p in raw_model.parameters() if p.requires_grad]
n_params = sum(p.numel() for p in params)
units = gradient_units(raw_model) if agc else []

model = ddp = raw_model
if env.world_size > 1:
    model = ddp = DDP(raw_model, device_ids=[env.device] if env.device_type == 'cuda' else None,
                      gradient_as_bucket_view=True)
if env.compile:
    model = torch.compile(model)

# -----------------------------------------------------------------------------
# optimizer: matrices and embeddings decay, biases and gains do not
opt = make_optimizer(raw_model, config)
load_optimizer(opt, run_start, env)


def get_lr(iter_num):
    """Linear warmup, then a cosine from the peak at warmup_iters to min_lr at max_iters."""
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    progress = min(1.0, (iter_num - warmup_iters) / max(1, max_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)

# -----------------------------------------------------------------------------
# evaluate

@torch.no_grad()
def evaluate():
    """Mean loss in nats per token, over the same windows each time; None if a signal to stop came."""
    count = (data.val_tokens - 1) // block_size  # whole windows, side by side
    wanted = min(count, max(1, eval_tokens // block_size)) if eval_tokens else count
    mine = (np.arange(wanted) * count // wanted * block_size)[env.rank::env.world_size]
    loss_sum, seen = 0.0, 0
    raw_model.eval()
    for i in progress(range(0, len(mine), micro), f'{wanted * block_size:,} tokens', env):
        if signals:
            break
        X, Y = data.windows('val', mine[i:i + micro])
        with env.autocast:
            loss = raw_model(X, Y)[1]
        loss_sum, seen = loss_sum + loss.item() * len(X), seen + len(X)
    raw_model.train()
    loss_sum, seen, stops = all_sum([loss_sum, seen, len(signals)], env)
    return None if stops else loss_sum / seen


if eval_only:
    val_loss = evaluate()
    env.say(f'val loss {val_loss} nats per token')
    leave(0, env)

# -----------------------------------------------------------------------------
# loop
start_iter, best_val_loss = run_start.iter, run_start.best if run_start.resume else math.inf
env.say(f'{n_params / 1e6:.2f}M parameters, setting {name_norms(setting, model_args)}, '
        f'{name_optimizer(config)} | '
        f'{data.train_tokens:,} training tokens, {global_batch_size * block_size:,} per update = '
        f'{env.world_size} processes x {accum} x {micro} x {block_size} | '
        f'{env.device}, {env.dtype}, compile {env.compile} | {out_dir}')
X, Y = get_batch(start_iter, 0)
rehearse(lambda: model(X, Y)[1], opt, start_iter, env, f'{micro} sequences of {block_size} tokens')
run = Run(config, env, start_iter, signals)
# forward and backward per token: 6 FLOPs per weight, 12 L C T for attention (PaLM, arXiv:2204.02311, app. B)
flops_per_token = 6 * (n_params - raw_model.wpe.weight.numel()) + 12 * n_layer * n_embd * block_size
report = Report(run, env, max_iters, eval_interval, 'tokens', global_batch_size * block_size, flops_per_token)


def due(interval):
    return interval and iter_num % interval == 0


def save(latest, better):
    names = ['best.pt'] * better + [f'ckpt_{iter_num:06d}.pt'] * bool(latest and due(keep_interval))
    names += ['ckpt.pt'] * bool(latest)  # the last one: a run resumes from it, and the others are there then
    if names:
        run.save(names, model=raw_model.state_dict(), optimizer=opt.state_dict(), iter=iter_num,
                 best_val_loss=best_val_loss, model_args=model_args, data=data.meta, config=config)


lr = 0.0
for iter_num in range(start_iter, max_iters + 1):  # the last turn evaluates and saves the final weights
    last, better, interrupted = iter_num == max_iters, False, False
    if (last or due(eval_interval)) and not (run.evaluated and iter_num == start_iter):
        with report.evaluating():
            val_loss = evaluate()
        interrupted = val_loss is None
        if not interrupted:
            run.stop_if_not_finite(iter_num, lr, validation_loss=val_loss)
            better = val_loss < best_val_loss and iter_num > 0
            best_val_loss = val_loss if better else best_val_loss
            report.val(iter_num, better, loss=val_loss)
    if last and not interrupted:
        save(iter_num > start_iter, better)
        break
    if interrupted and iter_num == start_iter:
        run.leave_stopped(iter_num)

    lr = get_lr(iter_num)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if dropout > 0:  # the masks depend on (seed, iter_num, rank) alone, so a run repeats and resumes
        torch.manual_seed(int(np.random.SeedSequence((seed, iter_num, env.rank)).generate_state(1)[0]))

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last one
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # DDP reads it in forward too
        with env.autocast:
            loss = model(X, Y)[1] / accum
        loss.backward()
        loss_sum += loss.detach()
        if stop_asked(signals, env):
            break
        X, Y = get_batch(*divmod(iter_num * accum + micro_step + 1, accum))  # read while the device works

    # before the step, all processes agree on the loss and on whether to stop. Weights are saved only here,
    # where their own loss and gradient are known to be finite
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    loss_mean, norm, stops = agree(loss_sum, grad_norm, signals, env)
    run.stop_if_not_finite(iter_num, lr, loss=loss_mean, gradient_norm=norm)
    save(iter_num > start_iter and (stops or due(ckpt_interval) or due(keep_interval)), better)
    if stops:
        run.leave_stopped(iter_num)

    if agc:
        clipped = clip_units(units, agc)
    elif grad_clip:
        torch.nn.utils.clip_grads_with_norm_(params, grad_clip, grad_norm)
    opt.step()
    opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
    report.updates += 1
    if due(log_interval):
        report.train(iter_num, loss_mean, lr, norm, **({'agc_share': clipped.item()} if agc else {}))

leave(0, env)
