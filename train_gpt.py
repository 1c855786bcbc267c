"""
Train a GPT-2 or an L-DNT on memmapped tokens.

    python train_gpt.py config/dnt_tiny.py                                       one process: CPU, Mac or one GPU
    torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small.py    one machine with 8 GPUs
    python train_gpt.py config/dnt_tiny.py --learning_rate=0.3 --out_dir=out/x   any key, on the command line
    python train_gpt.py config/dnt_tiny.py --init_from=resume                    go on where a run was stopped

This file is read from top to bottom: config, processes, data, model, optimizer, evaluate, loop. A run leaves in out_dir
config.json, log.jsonl (one object a line), ckpt.pt (the latest state) and best.pt (the lowest validation loss).
"""

import json
import os
import time
from dataclasses import asdict, fields
from functools import partial

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

import training
from configurator import configure, fail
from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# config: the paper's L-DNT-Small with mSGDW (tables 3 and 5)
out_dir = 'out/gpt'  # config.json, log.jsonl and the checkpoints of this run
init_from = 'scratch'  # 'scratch', 'resume' (what out_dir holds, if anything), or the weights of a file or GPT-2 folder
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
setting = 'S5'  # which norms: S1 (pre-norm GPT-2), S2, S3, S4, S5 (DNT), PostLN, NoNorm
norm = 'rms'  # 'rms' or 'layer'
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
flash = True  # False: attention written out by hand
recompute_blocks = False  # True: backward runs each block again in place of keeping it all: a third more work
weight_standardization = 'none'  # 'ffn': W_1 and W_2, 'all': W_q, W_k, W_v and W_o too (second report)
weight_gain = True  # a gain for each standardized unit of W_o, W_1, W_2
init = 'xavier'  # or 'torch' (PyTorch's default), or 'tfixup' (second report)
vocab_size = 0  # 0: the data set's, rounded up to a multiple of 64
loss_chunk = 0  # tokens whose logits are held at once, 0: all. saves memory, costs the head's forward pass again
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay)
learning_rate = 1.0  # peak
min_lr = 6e-5  # where the cosine ends
embed_lr = 0.0  # peak for wte, wpe and an untied head, min_lr in the same ratio; 0: learning_rate
embed_optimizer = 'auto'  # 'adamw': AdamW for these and optimizer for the rest
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
dtype = 'auto'  # bfloat16 (autocast) or float32; auto: bfloat16 where the device has it in hardware
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
deterministic = False  # True: the same bits in every run on CUDA too, slower
config = configure(globals())

# -----------------------------------------------------------------------------
# processes
training.check_config(config)
training.check_range(config, 1, 2**20, 'block_size')
training.check_range(config, 1, 2**40, 'max_iters')
training.check_range(config, 0, 2**32 - 1, 'vocab_size', 'loss_chunk')
training.check_range(config, 0, float('inf'), 'eval_tokens', 'warmup_iters')
env = training.start(device, dtype, compile, seed, deterministic)
micro, accum = training.split_batch(global_batch_size, micro_batch_size, env.world_size)
say = partial(print, flush=True) if env.master else lambda *args: None

training.refuse_to_overwrite(out_dir, init_from, overwrite, eval_only)

# -----------------------------------------------------------------------------
# data: train.bin and val.bin of token ids, one document after another, and meta.json
data_dir = training.data_folder(dataset)


def read_meta():
    """meta.json, checked against the two .bin files; nanoGPT's gpt2 folders, which have none, are taken as they are."""
    meta = {'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16'}
    path = os.path.join(data_dir, 'meta.json')
    if not os.path.isdir(data_dir):
        fail(f'there is no data set in {data_dir}: make it with python prepare_owt.py --dataset={dataset}')
    if os.path.exists(path):
        try:
            with open(path, encoding='utf-8') as f:
                meta = dict(json.load(f))
            counts = [meta[k] for k in ('vocab_size', 'train_tokens', 'val_tokens')]
            known = meta['dtype'] in ('uint16', 'uint32') and meta['tokenizer'] in ('byte', 'gpt2') \
                and all(type(n) is int and n > 0 for n in counts)
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            fail(f'{path} is broken or of another kind of data set: prepare the text again, with --overwrite=True')
    elif os.path.exists(os.path.join(data_dir, 'meta.pkl')):
        fail(f'{data_dir} has a meta.pkl of nanoGPT (pickles are not opened here): prepare the text with prepare_owt.py')
    for split in ('train', 'val'):
        path, width = os.path.join(data_dir, f'{split}.bin'), np.dtype(meta['dtype']).itemsize
        if not os.path.exists(path):
            fail(f'{path} does not exist: python prepare_owt.py makes it')
        size, count = os.path.getsize(path), meta.setdefault(f'{split}_tokens', os.path.getsize(path) // width)
        if size != count * width:
            fail(f'{path} has {size} bytes, not {width} for each of {count} tokens: it was cut short or meta.json is of '
                 'another set; prepare the data set again')
        if count < block_size + 1:
            fail(f'{path} has {count} tokens, too few for block_size={block_size}: use a smaller block_size or more text')
    return meta


def read_windows(split, offsets):
    """Inputs and targets (len(offsets), block_size) that start at those tokens of a split, on the device."""
    # a new memmap each time: one that lives on counts every page it ever read as memory of this process
    data = np.memmap(os.path.join(data_dir, f'{split}.bin'), dtype=np.dtype(meta['dtype']).newbyteorder('<'), mode='r')
    rows = np.stack([data[i:i + block_size + 1] for i in offsets]).astype(np.int64)
    if rows.max() >= model_config.vocab_size:
        fail(f'{split}.bin holds the id {rows.max()}, past the vocabulary of {model_config.vocab_size}: the data set and '
             'its meta.json, or the checkpoint, do not belong together', any_rank=True)
    rows = torch.from_numpy(rows)
    rows = rows.pin_memory().to(env.device, non_blocking=True) if env.device_type == 'cuda' else rows.to(env.device)
    return rows[:, :-1], rows[:, 1:]


def get_batch(iter_num, micro_step):
    """One micro batch of this process. The batch of an iteration depends on (seed, iter_num) and the position alone."""
    last = meta['train_tokens'] - block_size - 1
    offsets = np.random.default_rng((seed, iter_num)).integers(0, last, size=global_batch_size, endpoint=True)
    first = (env.rank * accum + micro_step) * micro
    return read_windows('train', offsets[first:first + micro])


meta = read_meta()
if warmup_iters >= max_iters and not eval_only:
    say(f'the warmup ({warmup_iters} updates) is as long as the run ({max_iters}): the rate does not reach its peak')

# -----------------------------------------------------------------------------
# model
norms = training.resolve_norms(config)
model_args = {f.name: config[f.name] for f in fields(GPTConfig)} | norms
model_args['vocab_size'] = vocab_size or -(-meta['vocab_size'] // 64) * 64
if model_args['vocab_size'] < meta['vocab_size']:
    fail(f'vocab_size={vocab_size} is less than the {meta["vocab_size"]} of {data_dir}: leave it at 0')

start_iter, best_val_loss, checkpoint = 0, float('inf'), None
ckpt_path = training.latest_checkpoint(out_dir)
if init_from == 'resume' and not ckpt_path:
    say(f'{out_dir} has no checkpoint yet: starting at iteration 0')
elif init_from != 'scratch':
    resume = init_from == 'resume'
    path = ckpt_path if resume else init_from
    checkpoint = training.load_gpt2(path) if os.path.isdir(path) else training.load_checkpoint(path)
    if not vocab_size:
        model_args['vocab_size'] = max(checkpoint['model_args'].get('vocab_size', 0), meta['vocab_size'])
    free = {'dropout', 'flash', 'init', 'loss_chunk', 'recompute_blocks'} | (set() if resume else {'block_size'})
    same = [k for k in model_args if k not in free]
    training.refuse_changes(path, asdict(GPTConfig()) | checkpoint['model_args'], model_args, same)
    training.refuse_changes(path, checkpoint['data'], meta, ['tokenizer'])
    if resume and not eval_only:
        training.refuse_changes(path, checkpoint['data'], meta, ['source', 'train_tokens', 'val_tokens', 'vocab_size'],
                                training.OTHER_DATA)
        training.refuse_changes(path, checkpoint['config'], config, ['seed', 'global_batch_size', 'optimizer'])
        start_iter, best_val_loss = checkpoint['iter'], checkpoint['best_val_loss']
        if start_iter > max_iters:
            fail(f'{path} is at iteration {start_iter}, past max_iters={max_iters}: raise max_iters')
        say(f'{path}: iteration {start_iter}')
        training.tell_changes(checkpoint['config'], config, say)
    else:
        positions = checkpoint['model']['wpe.weight']
        if len(positions) < block_size:
            fail(f'{path} knows {len(positions)} positions, fewer than block_size={block_size}: use a smaller one')
        checkpoint['model']['wpe.weight'] = positions[:block_size]
        say(f'weights of {path}' + ', with a fresh optimizer' * (not eval_only))
model_config = GPTConfig(**model_args)
try:
    raw_model = GPT(model_config).to(env.device)
except (RuntimeError, MemoryError) as e:  # what torch says when memory is short, and when a size overflows
    fail(f'a model of {n_layer} layers, width {n_embd} and vocabulary {model_args["vocab_size"]} does not fit into memory '
         f'({training.first_line(e)})', any_rank=True)
if checkpoint:
    try:
        raw_model.load_state_dict(checkpoint['model'])
    except RuntimeError as e:
        fail(f'{path} does not hold the weights of this model ({" ".join(str(e).split())[:200]}): use another file')
elif eval_only:
    fail('eval_only needs weights: --init_from=resume where out_dir holds a checkpoint, or --init_from=FILE')
opt = training.make_optimizer(raw_model, optimizer, learning_rate, weight_decay, momentum, beta1, beta2, embed_lr,
                              embed_optimizer, env.compile)
if start_iter:
    training.load_optimizer(opt, checkpoint['optimizer'])
checkpoint = None  # free the memory
training.same_everywhere(start_iter, out_dir, env)
params = [p for p in raw_model.parameters() if p.requires_grad]
n_params = sum(p.numel() for p in params)
units = training.gradient_units(raw_model) if agc else []

# model is what trains; raw_model is what is evaluated and saved
model = ddp = raw_model
if env.world_size > 1:
    model = ddp = DDP(raw_model, device_ids=[env.device] if env.device_type == 'cuda' else None,
                      gradient_as_bucket_view=True)
if env.compile:
    model = torch.compile(model)

# -----------------------------------------------------------------------------
# evaluate, save: functions of what stands above, and of where the loop below is (iter_num, lr, saved_iter)

@torch.no_grad()
def evaluate():
    """Mean loss in nats per token over the same windows of val.bin each time; None if a signal to stop came."""
    count = (meta['val_tokens'] - 1) // block_size  # whole windows, side by side
    wanted = min(count, max(1, eval_tokens // block_size)) if eval_tokens else count
    mine = (np.arange(wanted) * count // wanted * block_size)[env.rank::env.world_size]
    loss_sum, seen = 0.0, 0
    raw_model.eval()
    for i in range(0, len(mine), micro):
        if signals:
            break
        X, Y = read_windows('val', mine[i:i + micro])
        with env.autocast:
            loss = raw_model(X, Y)[1]
        loss_sum, seen = loss_sum + loss.item() * len(X), seen + len(X)
    raw_model.train()
    loss_sum, seen, stops = training.all_sum([loss_sum, seen, len(signals)], env)
    return None if stops else loss_sum / seen


def save(name):
    path = os.path.join(out_dir, name)
    training.on_master(lambda: training.save_checkpoint(path, {
        'model': raw_model.state_dict(), 'optimizer': opt.state_dict(), 'iter': iter_num,
        'best_val_loss': best_val_loss, 'model_args': model_args, 'data': meta, 'config': config}), env)


def stop_if_not_finite(what, *numbers):
    training.stop_if_not_finite(what, numbers, iter_num, lr, saved_iter, out_dir)


signals = training.catch_signals()
if eval_only:
    val_loss = evaluate()
    if val_loss is not None:
        say(f'val loss {val_loss} nats per token')
    training.leave(0 if val_loss is not None else 128 + (signals or [15])[0], env)

# one micro batch before anything is written or thrown away: memory is there, and the compiler works
X, Y = get_batch(start_iter, 0)
try:
    room = torch.empty(0 if start_iter else training.state_size(opt), device=env.device)  # for what the first step makes
    with env.autocast:
        model(X, Y)[1].backward()
    del room
except RuntimeError as e:
    training.explain(e, f'{micro} sequences of {block_size} tokens do not fit into memory: use a smaller micro_batch_size')
opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets

opened = training.on_master(lambda: training.open_out_dir(
    out_dir, config, env, start_iter, overwrite, init_from == 'resume'), env)
log, evaluated = opened or (lambda row: None, False)
evaluated = training.all_sum([int(evaluated)], env)[0] > 0
tokens_per_iter = global_batch_size * block_size
# forward and backward: 6 FLOPs per weight and 12 L C T for attention, per token (PaLM, arXiv:2204.02311, appendix B)
flops_per_token = 6 * (n_params - raw_model.wpe.weight.numel()) + 12 * n_layer * n_embd * block_size
peak = training.peak_flops(env.device_type)
say(f'{n_params / 1e6:.2f}M parameters, setting {training.name_norms(setting, norms)}, {optimizer} | '
    f'{meta["train_tokens"]:,} training tokens, {tokens_per_iter:,} per update = {env.world_size} processes x {accum} x {micro} x {block_size} | '
    f'{env.device}, {env.dtype}, compile {env.compile} | {out_dir}')

# -----------------------------------------------------------------------------
# loop
saved_iter, lr, t0, timed = start_iter, 0.0, time.time(), 0
for iter_num in range(start_iter, max_iters + 1):  # the last turn evaluates and saves the final weights
    last, interrupted = iter_num == max_iters, False
    names = ['ckpt.pt'] + [f'ckpt_{iter_num:06d}.pt'] * bool(keep_interval and iter_num % keep_interval == 0)

    due = eval_interval and iter_num % eval_interval == 0
    if (due or last) and not (evaluated and iter_num == start_iter):
        pause = time.time()
        val_loss = evaluate()
        interrupted = val_loss is None
        if not interrupted:
            stop_if_not_finite(f'validation loss {val_loss}', val_loss)
            better, best_val_loss = val_loss < best_val_loss, min(val_loss, best_val_loss)
            log({'iter': iter_num, 'split': 'val', 'loss': val_loss, 'tokens': iter_num * tokens_per_iter})
            say(f'val  {iter_num:6d}/{max_iters} | loss {val_loss:.4f}' + ' | best so far' * better)
            if better and iter_num > 0:
                save('best.pt')
        t0 += time.time() - pause
    if last and not interrupted:
        for name in names if iter_num > start_iter else ():
            save(name)
        break

    lr = training.lr_at(iter_num, learning_rate, min_lr, warmup_iters, max_iters)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if dropout > 0:  # repeats and resumes exactly: the masks of an iteration depend on (seed, iter_num, rank) alone
        torch.manual_seed(int(np.random.SeedSequence((seed, iter_num, env.rank)).generate_state(1)[0]))

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last of them
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # read in forward too, so it is set before
        with env.autocast:
            loss = model(X, Y)[1] / accum
        loss.backward()
        loss_sum += loss.detach()
        # the next micro batch is read while the device works
        X, Y = get_batch(*divmod(iter_num * accum + micro_step + 1, accum))

    # what all processes must agree on before the step: the loss, and whether somebody is to stop
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    loss_mean, stops = training.all_sum([loss_sum.item() / env.world_size, len(signals)], env)
    norm_value = grad_norm.item()
    stop_if_not_finite(f'loss {loss_mean}, gradient norm {norm_value}', loss_mean, norm_value)

    # weights are saved once their own loss and gradient were seen to be finite: nothing bad is saved
    if iter_num > start_iter and (stops or len(names) > 1 or ckpt_interval and iter_num % ckpt_interval == 0):
        for name in names:
            save(name)
        saved_iter = iter_num
    if stops:
        say(f'stopped by a signal at iteration {iter_num}; --init_from=resume goes on from there')
        training.leave(128 + (signals or [15])[0], env)

    if agc:
        clipped = training.clip_units(units, agc)
    elif grad_clip:
        torch.nn.utils.clip_grads_with_norm_(params, grad_clip, grad_norm)
    opt.step()
    opt.zero_grad(set_to_none=env.world_size == 1)

    timed += 1
    if log_interval and iter_num % log_interval == 0:
        dt, t0, timed = (time.time() - t0) / timed, time.time(), 0
        speed = tokens_per_iter / dt
        row = {'iter': iter_num, 'split': 'train', 'loss': loss_mean, 'lr': lr, 'grad_norm': norm_value,
               'tokens': (iter_num + 1) * tokens_per_iter, 'tokens_per_s': round(speed, 1)}
        line = (f'iter {iter_num:6d}/{max_iters} | loss {loss_mean:.4f} | lr {lr:.2e} | norm {norm_value:.3f} | '
                f'{speed:,.0f} tok/s | {training.duration((max_iters - iter_num - 1) * dt)} left')
        if agc:
            row['agc_share'] = round(clipped.item(), 4)
        if peak:
            row['mfu'] = round(speed * flops_per_token / (peak * env.world_size), 4)
            line += f' | mfu {row["mfu"]:.1%}'
        log(row)
        say(line)

training.leave(0, env)
