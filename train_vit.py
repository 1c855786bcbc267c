"""
Train a ViT or a V-DNT on the images that prepare_imagenet.py leaves: the twin of train_gpt.py.

    python train_vit.py config/vdnt_cifar10.py                                   # a CPU, a Mac or one GPU
    torchrun --standalone --nproc_per_node=8 train_vit.py config/vdnt_large.py   # one machine with 8 GPUs
    python train_vit.py config/vdnt_cifar10.py --init_from=resume                # continue a stopped run
    python train_vit.py --init_from=out/vdnt_cifar10 --predict=photo.jpg         # its five likeliest classes

Read this file from top to bottom: config, start, data, model, optimizer, schedule, evaluate, loop. support/
holds what protects a run: checks of files and values, devices, checkpoints. A run writes to out_dir:
config.json, log.jsonl (one object per line), ckpt.pt (the latest state), best.pt (the highest top-1 on val).
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from configurator import configure
from model import ViT, ViTConfig
from support import augment
from support.checkpoint import Run, begin, continue_vit, load_optimizer, make_network
from support.checks import check_images, check_vit, name_norms, network_args, split_batch
from support.distributed import agree, all_sum, catch_signals, leave, start, stop_asked
from support.images import Images, predict_files
from support.nfnet import BatchNormStatistics, NFNet, NFNetConfig
from support.normfree import clip_units, gradient_units
from support.optim import make_optimizer, name_optimizer, rehearse
from support.report import Report, progress

# -----------------------------------------------------------------------------
# config: the paper's V-DNT-Large with mSGDW. 'here:' marks a choice on which the paper is silent
out_dir = 'out/vit'  # config.json, log.jsonl and the checkpoints of this run
init_from = 'scratch'  # 'scratch', 'resume' (the run in out_dir), or weights: a file, a folder, a Hub id
overwrite = False  # True: throw away the run that out_dir holds
eval_only = False  # True: print loss, top-1 and top-5 of eval_split and leave; nothing is written
eval_split = 'val'  # what eval_only reads: val, or test where the data set has one
predict = ''  # a picture file or a folder of them: print their five likeliest classes and leave
eval_interval = 1251  # iterations between evaluations (1251: an epoch of ImageNet), 0: only at the end
ckpt_interval = 1251  # iterations between saves of ckpt.pt, 0: only at the end or when stopped
keep_interval = 0  # iterations between checkpoints that stay (ckpt_000500.pt), 0: none
log_interval = 10  # iterations between lines on the console and in log.jsonl
# data and augmentation
dataset = 'imagenet'  # a folder under data/, or a path
global_batch_size = 1024  # images per update, over all processes (table 4)
micro_batch_size = 64  # upper bound of images per process and forward; the accumulation follows
num_workers = -1  # processes that read JPEGs for each training process; -1: its share of the cores
image_size = 224  # table 4. JPEGs are cropped to it, smaller arrays are resized to it
crop_scale = 0.08  # here: least area of the random crop of a JPEG, timm's; its shape 3/4 to 4/3, bicubic
shift = 4  # arrays in place of a crop: by at most so many pixels each way, the border reflected
randaugment = 9.0  # magnitude (table 4: 9, 0.5), 0: none; only for JPEGs
mixup = 0.8  # parameter of its Beta distribution (table 4), 0: none
cutmix = 1.0  # parameter of its Beta distribution (table 4), 0: none. here: with both, each half of the time
label_smoothing = 0.1  # table 4 (its random erasing of 0 and its EMA, 'no', have no key here)
# model
arch = 'vit'  # 'vit' (ViT, V-DNT) or 'nfnet' (NFNet-F0; of the keys below it takes dropout and drop_path)
batch_norm = False  # nfnet: with batch normalization put back
setting = 'S5'  # which norms: S1 (ViT, pre-norm), S2, S3, S4, S5 (DNT), PostLN, PeriLN, OLMo2, NoNorm
norm = 'rms'  # 'rms', 'layer' or 'dyt'
input_norm = 'auto'  # True or False; auto: as the setting says. this and the next six override single norms
pre_norm = 'auto'  # before attention
ffn_pre_norm = 'auto'  # before the FFN
mid_norm = 'auto'  # after W_o and after W_2, before the residual sum
qk_norm = 'auto'  # on queries and keys, per head
post_norm = 'auto'  # after each residual sum
final_norm = 'auto'  # before the head
patch_size = 16  # pixels
n_layer = 24  # depth
n_head = 16  # attention heads
n_embd = 1024  # width
bias = True  # biases in linear layers and LayerNorm
qkv_bias = True  # False: none on q, k and v
dropout = 0.0  # here: none
drop_path = 0.1  # table 4: 0.1 for Large, 0.5 for Huge. here: of the last block, linear from 0 (as in timm)
flash = True  # False: attention written out, to read
recompute_blocks = False  # True: saves memory, backward runs each block again: a third more work
weight_standardization = 'none'  # 'ffn': W_1 and W_2, 'all': W_q, W_k, W_v and W_o too (second report)
weight_gain = True  # a gain for each standardized unit of W_o, W_1, W_2
init = 'xavier'  # truncated (table 4), or 'torch' (PyTorch's default), or 'tfixup' (second report)
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay), 'muon'
learning_rate = 0.5  # peak (table 4)
min_lr = 1e-8  # where the cosine ends (table 4)
embed_lr = 0.0  # peak for patch embedding, class token, positions, min_lr in the same ratio; 0: learning_rate
embed_optimizer = 'auto'  # for these: 'auto' (as optimizer), 'adamw', 'rownorm' (mSGDW, each row scaled)
embed_weight_decay = -1.0  # for these; -1: weight_decay
epochs = 150.0  # table 4. Each image once per epoch; images left over when the batches are full are skipped
max_iters = 0  # updates, in place of epochs; 0: all epochs
warmup_epochs = 60.0  # table 4. here: linear, then a cosine from the peak (as in nanoGPT, not as in timm)
weight_decay = 2e-4  # on matrices (table 4); not on biases, gains, class token and positions
momentum = 0.9  # sgdw, sgd (table 4)
beta1 = 0.9  # adamw (table 4)
beta2 = 0.99  # adamw (table 4; the paper's prose says 0.95)
grad_clip = 0.0  # upper bound of the gradient's norm, 0: none (table 4)
agc = 0.0  # adaptive gradient clipping in place of grad_clip: its lambda (NFNet: 0.01), 0: none
# system
seed = 1337  # initial weights, order of the images and their augmentation
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast) or float32; auto: by device and width (support/distributed.py)
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
compile_optimizer = False  # True: sgdw's step as one compiled pass too
deterministic = False  # True: the same bits in every run on CUDA too, slower
config = configure(globals())

# -----------------------------------------------------------------------------
# start: processes, device, precision, and the checkpoint that init_from names
check_vit(config)
env = start(device, dtype, compile, seed, deterministic, n_embd)
signals = catch_signals(env)
torch.backends.cudnn.benchmark = arch == 'nfnet' and not deterministic  # cuDNN tries its convolutions once
mixes = mixup > 0 or cutmix > 0
micro, accum = split_batch(global_batch_size, micro_batch_size, env.world_size, 2 if mixes else 1)
run_start = begin(config, env)
globals().update(config)  # weights of another run bring their network along: n_layer, patch_size, ...

# -----------------------------------------------------------------------------
# data: {train,val,test}_labels.npy with _images.npy (small pictures) or _jpeg.bin and _offsets.npy
data = Images(dataset, config, env, run_start.checkpoint['data'] if predict else None)
if not predict:
    data.open(*[eval_split] if eval_only else ['train', 'val'])
iters_per_epoch, total_iters, warmup_iters = check_images(config, data)
mean, std = (torch.tensor(data.meta[k], device=env.device) for k in ('mean', 'std'))
std.clamp_(min=1 / 255)  # a channel may be constant
beside = env.device_type == 'cuda'  # copy while the GPU works. MPS may read freed memory (pytorch#189690)


@lru_cache(1)
def epoch_order(epoch):
    return np.random.default_rng((seed, 0, epoch)).permutation(data.size('train'))


@lru_cache(1)
def epoch_offsets(epoch):
    return augment.small_offsets(np.random.default_rng((seed, 1, epoch)), data.size('train'), shift)


def train_batches(start_iter):
    """
    Micro batches of this process: (images, labels, labels of the mixing partners, lam). The view of a sample
    depends on (seed, epoch, index) alone; which samples an iteration has and how they mix depends on (seed,
    iteration) alone.
    """
    def keys():
        for i in range(start_iter, total_iters + 1):  # one more, because the loop reads ahead
            epoch, place = divmod(i, iters_per_epoch)
            for step in range(accum):
                first = place * global_batch_size + (env.rank * accum + step) * micro
                yield [(epoch, index) for index in epoch_order(epoch)[first:first + micro]]

    def small():
        pictures, labels = data.splits['train']
        for batch in keys():
            index, epoch = torch.tensor([index for _, index in batch]), batch[0][0]
            images = pictures[index.to(pictures.device, non_blocking=beside)].permute(0, 3, 1, 2)
            yield augment.pad_crop_flip(images, epoch_offsets(epoch)[index]), labels[index]

    for n, (images, labels) in enumerate(small() if data.arrays else data.jpegs('train', keys())):
        images, labels = (t.to(env.device, non_blocking=beside) for t in (images, labels))
        rng = np.random.default_rng((seed, 2, start_iter + n // accum))  # one draw for the whole global batch
        images = augment.normalize(data.resized(images), mean, std)
        partners, lam = labels, 1.0
        if mixes:
            images, partners, lam = augment.mix(images, labels, rng, mixup, cutmix)
        yield images, labels, partners, lam


def eval_batches(split):
    """(images, labels) of this process's share of a split, every image once."""
    mine = range(env.rank, data.size(split), env.world_size)
    chunks = [list(mine[i:i + micro]) for i in range(0, len(mine), micro)]

    def small():
        pictures, labels = data.splits[split]
        for chunk in chunks:
            yield pictures[torch.tensor(chunk).to(pictures.device)].permute(0, 3, 1, 2), labels[chunk]

    keys = [[(None, index) for index in chunk] for chunk in chunks]
    for images, labels in small() if data.arrays else data.jpegs(split, keys):
        images, labels = (t.to(env.device, non_blocking=beside) for t in (images, labels))
        yield augment.normalize(data.resized(images), mean, std), labels

# -----------------------------------------------------------------------------
# model: raw_model is evaluated and saved; model is the same network, wrapped for training
Network, NetworkConfig = (ViT, ViTConfig) if arch == 'vit' else (NFNet, NFNetConfig)
model_args = network_args(NetworkConfig, config) | {'n_classes': len(data.meta['classes'])}
continue_vit(run_start, NetworkConfig, config, model_args, data.meta, total_iters)
raw_model = make_network(Network, NetworkConfig, model_args, run_start, env)  # ViT(ViTConfig(**model_args))
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
# optimizer: matrices decay; biases, gains, class token and positions do not
opt = make_optimizer(raw_model, config)
load_optimizer(opt, run_start, env)


def get_lr(iter_num):
    """Linear warmup, then a cosine from the peak at warmup_iters to min_lr at total_iters."""
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    progress = min(1.0, (iter_num - warmup_iters) / max(1, total_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)

# -----------------------------------------------------------------------------
# evaluate

@torch.no_grad()
def evaluate(split='val'):
    """(loss in nats, top-1, top-5) over every image of a split; None if a signal to stop came."""
    sums = [0.0] * 4
    raw_model.eval()
    for images, labels in progress(eval_batches(split), f'{data.size(split):,} images', env):
        if signals:
            break
        with env.autocast:
            logits = raw_model(images).float()
        hits = logits.topk(min(5, logits.size(1))).indices == labels[:, None]  # (B, 5), the likeliest first
        loss = F.cross_entropy(logits, labels, reduction='sum')
        numbers = loss.item(), hits[:, 0].sum().item(), hits.sum().item(), len(labels)
        sums = [a + b for a, b in zip(sums, numbers)]
    raw_model.train()
    *sums, seen, stops = all_sum([*sums, len(signals)], env)
    return None if stops else [a / seen for a in sums]


if predict:
    predict_files(predict, raw_model, data, mean, std)
    leave(0, env)
if eval_only:
    val_loss, top1, top5 = evaluate(eval_split)
    env.say(f'{eval_split} loss {val_loss:.4f} | top-1 {top1:.4f} | top-5 {top5:.4f} | '
            f'{data.size(eval_split):,} images')
    leave(0, env)

# -----------------------------------------------------------------------------
# loop
start_iter, best_top1 = run_start.iter, run_start.best if run_start.resume else -1.0
what = f'setting {name_norms(setting, model_args)}' if arch == 'vit' else arch
env.say(f'{n_params / 1e6:.2f}M parameters, {what}, {name_optimizer(config)} | '
        f'{data.size("train"):,} training images of {len(data.meta["classes"])} classes, '
        f'{iters_per_epoch} updates an epoch of {global_batch_size} = '
        f'{env.world_size} processes x {accum} x {micro} | '
        f'{env.device}, {env.dtype}, compile {env.compile} | {out_dir}')
statistics = BatchNormStatistics(raw_model)
batches = train_batches(start_iter)
X, Y, partners, lam = next(batches)
rehearse(lambda: augment.mixed_loss(model(X), Y, partners, lam, label_smoothing), opt, start_iter, env,
         f'{micro} images of {image_size} x {image_size}')
statistics.restore()
run = Run(config, env, start_iter, signals)
report = Report(run, env, total_iters, eval_interval, 'images', global_batch_size, None, iters_per_epoch)


def due(interval):
    return interval and iter_num % interval == 0


def save(latest, better):
    names = ['best.pt'] * better + [f'ckpt_{iter_num:06d}.pt'] * bool(latest and due(keep_interval))
    names += ['ckpt.pt'] * bool(latest)  # the last one: a run resumes from it, and the others are there then
    if names:
        run.save(names, model=raw_model.state_dict() | statistics.saved, optimizer=opt.state_dict(),
                 iter=iter_num, best_top1=best_top1, model_args=model_args, data=data.meta, config=config)


lr = 0.0
for iter_num in range(start_iter, total_iters + 1):  # the last turn evaluates and saves the final weights
    last, better, interrupted = iter_num == total_iters, False, False
    statistics.keep()  # a checkpoint has the weights before this update, so it has their statistics too
    if (last or due(eval_interval)) and not (run.evaluated and iter_num == start_iter):
        with report.evaluating():
            result = evaluate()
        interrupted = result is None
        if not interrupted:
            val_loss, top1, top5 = result
            run.stop_if_not_finite(iter_num, lr, validation_loss=val_loss)
            better = top1 > best_top1 and iter_num > 0
            best_top1 = top1 if better else best_top1
            report.val(iter_num, better, loss=val_loss, top1=top1, top5=top5)
    if last and not interrupted:
        save(iter_num > start_iter, better)
        break
    if interrupted and iter_num == start_iter:
        run.leave_stopped(iter_num)

    lr = get_lr(iter_num)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if dropout > 0 or drop_path > 0:  # the masks depend on (seed, iter_num, rank) alone, as in train_gpt.py
        torch.manual_seed(int(np.random.SeedSequence((seed, iter_num, env.rank)).generate_state(1)[0]))

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last one
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # DDP reads it in forward too
        with env.autocast:
            loss = augment.mixed_loss(model(X), Y, partners, lam, label_smoothing) / accum
        loss.backward()
        loss_sum += loss.detach()
        if stop_asked(signals, env):
            break
        with report.waiting():
            X, Y, partners, lam = next(batches, (X, Y, partners, lam))  # read while the device works

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
