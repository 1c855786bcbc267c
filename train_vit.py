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

from configurator import configure  # isort: skip (before torch, see support/__init__.py)
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from model import ViT, ViTConfig
from sgdw import SGDW
from support import augment, resume
from support.checks import check_images, check_vit, network_args, split_batch, warn_of_warmup
from support.distributed import agree, all_sum, catch_signals, choose_dtype, leave, start, stop_asked
from support.images import Images, predict_files
from support.nfnet import NFNet, NFNetConfig, share_statistics
from support.normfree import clip_units, gradient_units
from support.optim import check_optimizer, other_optimizer, rehearse
from support.report import Report, introduce, progress
from support.run import Run, seed_masks

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
keep_interval = 0  # iterations between checkpoints that are kept (ckpt_000500.pt); 0: none
log_interval = 10  # iterations between lines on the console and in log.jsonl
# data and augmentation
dataset = 'imagenet'  # a folder under data/, or a path
global_batch_size = 1024  # images per update, over all processes (table 4)
micro_batch_size = 64  # most images per forward pass; gradients accumulate up to global_batch_size
num_workers = -1  # processes that decode JPEGs, per training process; -1: its share of the cores
image_size = 224  # table 4. JPEGs are cropped to it, smaller arrays are resized to it
crop_scale = 0.08  # here: least area of the random crop of a JPEG, timm's; its shape 3/4 to 4/3
interpolation = 'bicubic'  # here: of a JPEG's crop and RandAugment; 'random': bilinear half of the time
aug_repeats = 1  # here: views of an image in a batch; an epoch then reads 1/aug_repeats of the images
shift = 4  # small pictures: random shift of up to this many pixels, the border reflected
randaugment = 9.0  # magnitude (table 4: 9, deviation 0.5), 0: none. JPEGs only
mixup = 0.8  # parameter of its Beta distribution (table 4), 0: none
cutmix = 1.0  # parameter of its Beta distribution (table 4), 0: none. here: an update has this or mixup
label_smoothing = 0.1  # table 4; it turns random erasing and EMA off, so we have neither
# model
arch = 'vit'  # 'vit' (ViT, V-DNT) or 'nfnet' (NFNet-F0: only batch_norm, dropout, drop_path apply)
batch_norm = False  # nfnet only: True puts batch normalization back
setting = 'S5'  # which norms: S1 (ViT, pre-norm), S2, S3, S4, S5 (DNT), PostLN, PeriLN, OLMo2, NoNorm
norm = 'rms'  # 'rms', 'layer' or 'dyt'
input_norm = 'auto'  # auto: as the setting says; True or False switches this norm. The next six alike
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
qkv_bias = True  # False: no bias on q, k and v, even where bias is True
dropout = 0.0  # here: none
drop_path = 0.1  # table 4: 0.1 for Large, 0.5 for Huge. here: of the last block; it grows linearly from 0
flash = True  # False: attention written out in matrix products, slower, for reading
recompute_blocks = False  # True: backward runs each block again. Saves memory, costs a third more work
weight_standardization = 'none'  # 'none', 'ffn' (W_1, W_2) or 'all' (attention too): docs/normalizer-free.md
weight_gain = True  # True: each standardized row of W_o, W_1 and W_2 has a gain
init = 'xavier'  # 'xavier' (truncated, table 4), 'torch' (PyTorch's) or 'tfixup' (docs/normalizer-free.md)
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay), 'muon'
learning_rate = 0.5  # peak (table 4)
min_lr = 1e-8  # where the cosine ends (table 4)
embed_lr = 0.0  # peak rate of patch embedding, class token, positions (min_lr scaled alike); 0: learning_rate
embed_optimizer = 'auto'  # of the embeddings: 'auto' (as optimizer), 'adamw', 'rownorm' (mSGDW by rows)
embed_weight_decay = -1.0  # of the embeddings; -1: weight_decay
epochs = 150.0  # table 4. An epoch reads each image once and skips those that do not fill a batch
max_iters = 0  # updates; 0: as many as epochs says
warmup_epochs = 60.0  # epochs of linear warmup (table 4)
schedule = 'cosine'  # 'cosine' starts after the warmup; 'timm' at update 0, so the warmup hides its beginning
weight_decay = 2e-4  # on matrices (table 4); not on biases, gains, class token and positions
momentum = 0.9  # of sgdw, sgd and muon (table 4)
nesterov = False  # sgdw, sgd: the paper's heavy ball; True: Nesterov's step, as timm makes 'sgdw'
beta1 = 0.9  # of adamw (table 4)
beta2 = 0.99  # of adamw (table 4; the paper's prose says 0.95)
grad_clip = 0.0  # upper bound of the gradient's norm, 0: none (table 4)
agc = 0.0  # lambda of adaptive gradient clipping (NFNet: 0.01), which needs grad_clip=0; 0: off
# system
seed = 1337  # initial weights, order of the images and their augmentation
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast), float32, auto: bfloat16 if the hardware has it (CPU: n_embd >= 256)
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
deterministic = False  # True: identical results on CUDA too, but slower
config = configure(globals())

# -----------------------------------------------------------------------------
# start: processes, device, precision, and the checkpoint that init_from names
check_vit(config)
env = start(device, compile, seed, deterministic)
signals = catch_signals(env)
mixing = (mixup > 0 or cutmix > 0) and not (eval_only or predict)
micro, accum = split_batch(global_batch_size, micro_batch_size, env.world_size, 2 if mixing else 1)
checkpoint = resume.find(config, env)  # empty where init_from is 'scratch'
config |= resume.network_of(checkpoint, config)  # its network overrides config: n_layer, patch_size, ...
globals().update(config)
env.dtype, env.autocast = choose_dtype(dtype, env.device_type, n_embd)

# -----------------------------------------------------------------------------
# data: {train,val,test}_labels.npy with _images.npy (small pictures) or _jpeg.bin and _offsets.npy
data = Images(dataset, config, env, checkpoint.state['data'] if predict else None)
if not predict:
    data.open(*[eval_split] if eval_only else ['train', 'val'])
check_images(config, data)
iters_per_epoch = data.size('train') // global_batch_size  # images that do not fill a batch are skipped
max_iters = max_iters or max(1, round(epochs * iters_per_epoch))
warmup_iters = round(warmup_epochs * iters_per_epoch)


def train_samples(first_iter):
    """
    Lists of (epoch, index): the images of each micro batch of this process. The order of an epoch depends on
    (seed, epoch) alone, the crop or shift of an image on (seed, epoch, index). More views have more indices.
    """
    shuffled = None
    for iter_num in range(first_iter, max_iters + 2):  # the loop ends at max_iters but reads ahead
        epoch, place = divmod(iter_num, iters_per_epoch)
        if epoch != shuffled:
            order, shuffled = np.random.default_rng((seed, 0, epoch)).permutation(data.size('train')), epoch
        batch = augment.batch_views(order, place * global_batch_size, global_batch_size, aug_repeats)
        for step in range(accum):
            first = (env.rank * accum + step) * micro
            yield [(epoch, index) for index in batch[first:first + micro]]


def train_batches(first_iter):
    """
    Micro batches of this process: images (micro, 3, H, W), and as targets their labels, the labels of the
    images that are mixed in, and the share lam. The mixing depends on (seed, iter_num) alone.
    """
    for n, (images, labels) in enumerate(data.batches('train', train_samples(first_iter))):
        partners, lam = labels, 1.0
        if mixing:
            rng = np.random.default_rng((seed, 2, first_iter + n // accum))  # the same for the whole update
            images, partners, lam = augment.mix(images, labels, rng, mixup, cutmix)
        yield images, (labels, partners, lam)


def eval_batches(split):
    """Micro batches of this process's share of a split: images and labels, every image once."""
    mine = range(env.rank, data.size(split), env.world_size)
    samples = []
    for first in range(0, len(mine), micro):
        samples.append([(None, index) for index in mine[first:first + micro]])
    return data.batches(split, samples)

# -----------------------------------------------------------------------------
# model: raw_model is evaluated and saved; model is the same network, wrapped for training
Network, NetworkConfig = (ViT, ViTConfig) if arch == 'vit' else (NFNet, NFNetConfig)
model_args = network_args(NetworkConfig, config) | {'n_classes': len(data.meta['classes'])}
resume.check(checkpoint, config, model_args, data.meta, max_iters, env)
raw_model = resume.make_network(Network, NetworkConfig, model_args, env)  # a ViT on the device
resume.load_weights(raw_model, checkpoint, data.meta, env)
params = [p for p in raw_model.parameters() if p.requires_grad]
units = gradient_units(raw_model) if agc else []

model = ddp = raw_model
if env.world_size > 1:
    model = ddp = DDP(raw_model, gradient_as_bucket_view=True, bucket_cap_mb=100 if env.compile else 25)
if env.compile:
    model = torch.compile(model)

# -----------------------------------------------------------------------------
# optimizer: matrices decay; biases, gains, class token and positions do not
check_optimizer(config, raw_model)
decay, no_decay, embed_decay, embed_no_decay = [], [], [], []
for name, p in raw_model.named_parameters():
    if embed_lr and name == 'patch_embed.weight':
        embed_decay.append(p)
    elif embed_lr and name in ('patch_embed.bias', 'cls_token', 'pos_embed'):
        embed_no_decay.append(p)
    elif p.dim() >= 2 and name not in ('cls_token', 'pos_embed'):
        decay.append(p)
    else:
        no_decay.append(p)
groups = [{'params': decay, 'weight_decay': weight_decay, 'lr_scale': 1.0},
          {'params': no_decay, 'weight_decay': 0.0, 'lr_scale': 1.0}]
if embed_lr:  # the loop sets group['lr'] = get_lr(iter_num) * group['lr_scale']
    groups.append({'params': embed_decay, 'lr_scale': embed_lr / learning_rate,
                   'weight_decay': weight_decay if embed_weight_decay < 0 else embed_weight_decay,
                   'rownorm': embed_optimizer == 'rownorm'})
    groups.append({**groups[2], 'params': embed_no_decay, 'weight_decay': 0.0})
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
    """Mean loss in nats, top-1 and top-5; three None if a signal to stop came."""
    loss_sum = hits = hits5 = seen = 0
    raw_model.eval()
    share_statistics(raw_model, env)  # what is evaluated is what rank 0 saves
    for X, labels in progress(eval_batches(split), split, signals, env):
        with env.autocast:
            logits = raw_model(X).float()
        loss_sum += F.cross_entropy(logits, labels, reduction='sum').item()
        found = logits.topk(min(5, logits.size(1))).indices == labels[:, None]  # (B, 5), the likeliest first
        hits += found[:, 0].sum().item()
        hits5 += found.sum().item()
        seen += len(X)
    raw_model.train()
    loss_sum, hits, hits5, seen, stops = all_sum([loss_sum, hits, hits5, seen, len(signals)], env)
    return (None, None, None) if stops else (loss_sum / seen, hits / seen, hits5 / seen)


if predict:
    predict_files(predict, raw_model, data)
    leave(0, env)
if eval_only:
    val_loss, top1, top5 = evaluate(eval_split)
    env.say(f'{eval_split} loss {val_loss:.4f} | top-1 {top1:.4f} | top-5 {top5:.4f} | '
            f'{data.size(eval_split):,} images')
    leave(0, env)

# -----------------------------------------------------------------------------
# loop
introduce(config, env, raw_model, model_args, micro, accum, f'{data.size("train"):,} training images, '
          f'{iters_per_epoch} updates per epoch of {global_batch_size}')
warn_of_warmup(warmup_iters, max_iters, env, iters_per_epoch)
first_iter, best_top1 = checkpoint.iter, checkpoint.best('best_top1', -1.0)
del checkpoint  # its memory is free now
batches = train_batches(first_iter)
X, Y = next(batches)
rehearse(lambda: augment.mixed_loss(model(X), *Y, label_smoothing), raw_model, opt, first_iter, env,
         f'{micro} images of {image_size} x {image_size}')
run = Run(config, env, signals, first_iter, raw_model, opt)
report = Report(run, env, max_iters, eval_interval, 'images', global_batch_size, raw_model, iters_per_epoch)


def due(interval):
    return interval and iter_num % interval == 0


def save(name):
    run.save(name, model=raw_model.state_dict(), optimizer=opt.state_dict(), iter=iter_num,
             best_top1=best_top1, model_args=model_args, data=data.meta, config=dict(config))


for iter_num in range(first_iter, max_iters + 1):  # the last turn evaluates and saves, and makes no step
    last = iter_num == max_iters
    lr = get_lr(iter_num)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if last or due(eval_interval):
        val_loss, top1, top5 = report.timed(evaluate)
        if val_loss is not None:  # no signal to stop came
            run.stop_if_not_finite(iter_num, lr, validation_loss=val_loss)
            better = top1 > best_top1 and iter_num > 0
            report.val(iter_num, better, loss=val_loss, top1=top1, top5=top5)
            if better:
                best_top1 = top1
                save('best.pt')

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last one
    seed_masks(seed, iter_num, env.rank)  # dropout: a rerun or resumed run has the same masks
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # DDP reads it in forward too
        with env.autocast:
            loss = augment.mixed_loss(model(X), *Y, label_smoothing) / accum
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
