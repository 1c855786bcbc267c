"""
Train a ViT or a V-DNT on the images that prepare_imagenet.py leaves: the twin of train_gpt.py.

    python train_vit.py config/vdnt_cifar10.py                                   one process: CPU, Mac or one GPU
    torchrun --standalone --nproc_per_node=8 train_vit.py config/vdnt_large.py   one machine with 8 GPUs
    python train_vit.py config/vdnt_cifar10.py --init_from=resume                go on where a run was stopped
    python train_vit.py config/vdnt_cifar10.py --init_from=resume --predict=FILE the five likeliest classes of a picture

This file is read from top to bottom: config, processes, data, model, optimizer, evaluate, loop. A run leaves in out_dir
config.json, log.jsonl (one object a line), ckpt.pt (the latest state) and best.pt (the highest top-1 on val).
"""

import io
import json
import os
import sys
import time
from dataclasses import asdict, fields
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

import augment
import training
from configurator import configure, fail
from model import ViT, ViTConfig
from nfnet import NFNet, NFNetConfig

# -----------------------------------------------------------------------------
# config: the paper's V-DNT-Large with mSGDW. 'here:' marks a choice on which the paper is silent
out_dir = 'out/vit'  # config.json, log.jsonl and the checkpoints of this run
init_from = 'scratch'  # 'scratch', 'resume' (what out_dir holds, if anything), or the weights of a checkpoint file
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
num_workers = -1  # processes that read JPEGs for each training process; -1: its share of the cores. arrays need none
image_size = 224  # table 4. JPEGs are cropped to it, arrays have to have it
crop_scale = 0.08  # here: least area of the random crop of a JPEG, timm's; its shape 3/4 to 4/3, bicubic
shift = 4  # arrays in place of a crop: by at most so many pixels each way, the border reflected
randaugment = 9.0  # magnitude (table 4: 9, 0.5), 0: none; only for JPEGs
mixup = 0.8  # parameter of its Beta distribution (table 4), 0: none
cutmix = 1.0  # parameter of its Beta distribution (table 4), 0: none. here: with both, one or the other, half each
label_smoothing = 0.1  # table 4 (its random erasing of 0 and its EMA, 'no', have no key here)
# model
arch = 'vit'  # 'vit' (ViT, V-DNT) or 'nfnet' (NFNet-F0; of the keys below it takes dropout and drop_path)
batch_norm = False  # nfnet: with batch normalization put back
setting = 'S5'  # which norms: S1 (ViT, pre-norm), S2, S3, S4, S5 (DNT), PostLN, NoNorm
norm = 'rms'  # 'rms' or 'layer'
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
drop_path = 0.1  # table 4: 0.1 for Large, 0.5 for Huge. here: of the last block, linear from 0 in the first (timm's)
flash = True  # False: attention written out by hand
recompute_blocks = False  # True: backward runs each block again in place of keeping it all: a third more work
weight_standardization = 'none'  # 'ffn': W_1 and W_2, 'all': W_q, W_k, W_v and W_o too (second report)
weight_gain = True  # a gain for each standardized unit of W_o, W_1, W_2
init = 'xavier'  # truncated (table 4), or 'torch' (PyTorch's default), or 'tfixup' (second report)
# optimizer
optimizer = 'sgdw'  # 'sgdw' (momentum SGD, decoupled decay), 'adamw', 'sgd' (torch's, coupled decay)
learning_rate = 0.5  # peak (table 4)
min_lr = 1e-8  # where the cosine ends (table 4)
embed_lr = 0.0  # peak for patch embedding, class token and positions, min_lr in the same ratio; 0: learning_rate
embed_optimizer = 'auto'  # 'adamw': AdamW for these and optimizer for the rest
epochs = 150.0  # table 4. each image once per epoch; a rest smaller than a batch waits for the next epoch
max_iters = 0  # updates, in place of epochs; 0: all epochs
warmup_epochs = 60.0  # table 4. here: linear, then a cosine from the peak (nanoGPT's; timm's default is another)
weight_decay = 2e-4  # on matrices (table 4); not on biases, gains, class token and positions
momentum = 0.9  # sgdw, sgd (table 4)
beta1 = 0.9  # adamw (table 4)
beta2 = 0.99  # adamw (table 4; the paper's prose says 0.95)
grad_clip = 0.0  # upper bound of the gradient's norm, 0: none (table 4)
agc = 0.0  # adaptive gradient clipping in place of grad_clip: its lambda (NFNet: 0.01), 0: none
# system
seed = 1337  # initial weights, order of the images and their augmentation
device = 'auto'  # auto, cpu, cuda, cuda:N, mps
dtype = 'auto'  # bfloat16 (autocast) or float32; auto: bfloat16 where the device has it in hardware
compile = 'auto'  # torch.compile; auto: on CUDA, where Triton works
deterministic = False  # True: the same bits in every run on CUDA too, slower
config = configure(globals())

# -----------------------------------------------------------------------------
# processes
training.check_config(config)
training.check_range(config, 1, 2**14, 'image_size', 'patch_size')
training.check_range(config, -1, 1024, 'num_workers')
training.check_range(config, 0, 10, 'randaugment')
training.check_range(config, 0, max(4, image_size - 1), 'shift')
training.check_range(config, 0.0001, 1, 'crop_scale')
training.check_range(config, 0, float('inf'), 'max_iters', 'epochs', 'warmup_epochs', 'mixup', 'cutmix')
training.check_share(config, 'drop_path', 'label_smoothing')
if arch not in ('vit', 'nfnet'):
    fail(f'arch={arch} is unknown: use vit or nfnet')
if arch == 'vit' and image_size % patch_size:
    fail(f'patch_size={patch_size} does not divide image_size={image_size}')
if arch == 'vit' and batch_norm:
    fail('batch_norm is of --arch=nfnet: a ViT has the norms of its setting')
if num_workers > 0 and sys.platform != 'linux':  # where processes do not fork, a worker would run this script again
    fail(f'num_workers={num_workers} needs Linux: use 0')
if not (epochs or max_iters):
    fail('epochs=0 and max_iters=0: set one of them')
reads_only = eval_only or bool(predict)
env = training.start(device, dtype, compile, seed, deterministic)
mixes = mixup > 0 or cutmix > 0
micro, accum = training.split_batch(global_batch_size, micro_batch_size, env.world_size, 2 if mixes else 1)
say = partial(print, flush=True) if env.master else lambda *args: None
training.refuse_to_overwrite(out_dir, init_from, overwrite, reads_only)
ckpt_path = training.latest_checkpoint(out_dir)
source = ckpt_path if init_from == 'resume' else init_from if init_from != 'scratch' else None
if init_from == 'resume' and not ckpt_path:
    say(f'{out_dir} has no checkpoint yet: starting at iteration 0')
if reads_only and not source:
    fail('eval_only and predict need weights: --init_from=resume where out_dir holds a checkpoint, or --init_from=FILE')
checkpoint = training.load_checkpoint(source) if source else None
if checkpoint and not ('classes' in checkpoint['data'] and 'best_top1' in checkpoint):
    fail(f'{source} is no checkpoint of train_vit.py: use another file')

# -----------------------------------------------------------------------------
# data: {train,val,test}_labels.npy with _images.npy (small pictures, all of one size) or _jpeg.bin and _offsets.npy
data_dir = training.data_folder(dataset)


def read_meta():
    """meta.json, checked."""
    path = os.path.join(data_dir, 'meta.json')
    if not os.path.isdir(data_dir):
        fail(f'there is no data set in {data_dir}: make it with python prepare_imagenet.py --dataset=NAME_OR_FOLDER '
             f'--out_dir={data_dir}')
    try:
        with open(path, encoding='utf-8') as f:
            meta = dict(json.load(f))
        known = (meta['layout'] in ('arrays', 'jpeg') and isinstance(meta['classes'], list) and len(meta['classes']) > 0
                 and len(meta['mean']) == len(meta['std']) == 3 and all(0 <= v < 1 for v in meta['mean'] + meta['std'])
                 and min(meta['std']) > 0)
    except FileNotFoundError:
        fail(f'{data_dir} has no meta.json: it is no data set of images, or not finished; prepare_imagenet.py makes it')
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        fail(f'{path} is broken or of another kind of data set: prepare the images again, with --overwrite=True')
    return meta


def read_split(split):
    """(pictures, labels) of a split; pictures: uint8 (N, H, W, 3) on the device, or offsets into the .bin file."""
    kind = 'images' if meta['layout'] == 'arrays' else 'offsets'
    try:
        labels = np.load(os.path.join(data_dir, f'{split}_labels.npy'))
        pictures = np.load(os.path.join(data_dir, f'{split}_{kind}.npy'), mmap_mode='c')
        size = os.path.getsize(os.path.join(data_dir, f'{split}_jpeg.bin')) if kind == 'offsets' else 0
    except FileNotFoundError as e:
        fail(f'{e.filename} does not exist: the data set has no {split} split (a folder val/ beside train/, or '
             '--val_from_train=N, gives one), or it is not whole; prepare it again with prepare_imagenet.py')
    except (OSError, ValueError, EOFError) as e:
        fail(f'the {split} split in {data_dir} is broken ({e}): prepare it again')
    kinds = [(array.dtype, array.ndim) for array in (pictures, labels)]
    if kinds != [(np.uint8, 4) if kind == 'images' else (np.int64, 1), (np.int64, 1)] or not len(labels):
        fail(f'the {split} split in {data_dir} is empty, or not as prepare_imagenet.py leaves it: prepare it again')
    count = meta.get(f'{split}_images', len(labels))
    if len(labels) != count or len(pictures) != count + (kind == 'offsets') or kind == 'offsets' and not (
            pictures[0] == 0 and pictures[-1] == size and (np.diff(pictures) > 0).all()):
        fail(f'the {split} split in {data_dir} is not whole ({len(labels)} labels, {len(pictures)} {kind}, meta.json '
             f'says {count} images): prepare it again')
    if labels.min() < 0 or labels.max() >= len(meta['classes']):
        fail(f'{split}_labels.npy has labels from {labels.min()} to {labels.max()}, but meta.json knows '
             f'{len(meta["classes"])} classes (0 to {len(meta["classes"]) - 1}): prepare the data set again')
    if kind == 'images':
        if pictures.shape[1:] != (image_size, image_size, 3):
            fail(f'the pictures of {data_dir} are {pictures.shape[2]} x {pictures.shape[1]} x {pictures.shape[3]}, not '
                 f'image_size={image_size} each way and RGB: set image_size and a patch_size that divides it')
        pictures = torch.from_numpy(pictures)  # on a CPU it stays a memmap, shared by all processes
        pictures = pictures.to(env.device) if env.device_type != 'cpu' else pictures
    return pictures, torch.from_numpy(labels)


class Pictures(torch.utils.data.Dataset):
    """uint8 (3, image_size, image_size) of a split by (epoch, index), augmented; epoch None: the evaluation crop."""

    def __init__(self, split, offsets, labels):
        self.path, self.offsets, self.labels = os.path.join(data_dir, f'{split}_jpeg.bin'), offsets, labels

    def __getitem__(self, key):
        epoch, index = key
        with open(self.path, 'rb') as f:
            f.seek(self.offsets[index])
            blob = f.read(self.offsets[index + 1] - self.offsets[index])
        try:
            image = Image.open(io.BytesIO(blob)).convert('RGB')
        except Exception as e:  # Pillow raises nearly everything on broken files
            raise ValueError(f'picture {index} (from 0) in {self.path} is damaged: prepare the data set again') from e
        if epoch is None:
            image = augment.eval_crop(image, image_size)
        else:
            rng = np.random.default_rng((seed, 1, epoch, index))
            image = augment.train_view(image, rng, image_size, crop_scale, randaugment)
        return augment.to_tensor(image), self.labels[index]


def load_jpegs(split, batches):
    """The batches (lists of keys), decoded ahead by worker processes: (images, labels) in their order."""
    workers = num_workers
    if workers < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        workers = max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1))) if sys.platform == 'linux' else 0
    # in process groups of their own: a signal to all of ours (torchrun's, Ctrl-C) would end them before we have saved
    loader = DataLoader(Pictures(split, *splits[split]), batch_sampler=batches, num_workers=workers,
                        pin_memory=env.device_type == 'cuda', multiprocessing_context='fork' if workers else None,
                        worker_init_fn=lambda _: os.setpgrp())
    try:
        yield from loader
    except ValueError as e:  # a worker's comes with its traceback, the sentence at the end
        fail(str(e).strip().splitlines()[-1].removeprefix('ValueError: '), any_rank=True)


@lru_cache(1)
def epoch_order(epoch):
    return np.random.default_rng((seed, 0, epoch)).permutation(len(splits['train'][1]))


@lru_cache(1)
def epoch_offsets(epoch):
    return augment.small_offsets(np.random.default_rng((seed, 1, epoch)), len(splits['train'][1]), shift)


beside = env.device_type == 'cuda'  # copies beside the work; on MPS they may read memory that is gone (pytorch#189690)


def train_batches(start_iter):
    """
    Micro batches of this process: (images, labels, labels of the mixing partners, lam). What a sample looks like
    depends on (seed, epoch, index) alone, which samples an iteration has and how it mixes them on (seed, iteration).
    """
    def keys():
        for i in range(start_iter, total_iters + 1):  # one more: the loop reads ahead
            epoch, place = divmod(i, iters_per_epoch)
            for step in range(accum):
                first = place * global_batch_size + (env.rank * accum + step) * micro
                yield [(epoch, index) for index in epoch_order(epoch)[first:first + micro]]

    def small():
        pictures, labels = splits['train']
        for batch in keys():
            index, epoch = torch.tensor([index for _, index in batch]), batch[0][0]
            images = pictures[index.to(pictures.device, non_blocking=beside)].permute(0, 3, 1, 2)
            yield augment.pad_crop_flip(images, epoch_offsets(epoch)[index]), labels[index]

    for n, (images, labels) in enumerate(small() if meta['layout'] == 'arrays' else load_jpegs('train', keys())):
        images, labels = (t.to(env.device, non_blocking=beside) for t in (images, labels))
        rng = np.random.default_rng((seed, 2, start_iter + n // accum))  # one draw for the whole global batch
        images = augment.normalize(images, mean, std)
        images, partners, lam = augment.mix(images, labels, rng, mixup, cutmix) if mixes else (images, labels, 1.0)
        yield images, labels, partners, lam


def eval_batches(split):
    """(images, labels) of this process's share of a split, every image once."""
    mine = range(env.rank, len(splits[split][1]), env.world_size)
    chunks = [list(mine[i:i + micro]) for i in range(0, len(mine), micro)]

    def small():
        pictures, labels = splits[split]
        for chunk in chunks:
            yield pictures[torch.tensor(chunk).to(pictures.device)].permute(0, 3, 1, 2), labels[chunk]

    keys = [[(None, index) for index in chunk] for chunk in chunks]
    for images, labels in small() if meta['layout'] == 'arrays' else load_jpegs(split, keys):
        images, labels = (t.to(env.device, non_blocking=beside) for t in (images, labels))
        yield augment.normalize(images, mean, std), labels


meta = checkpoint['data'] if predict else read_meta()
mean, std = (torch.tensor(meta[k], device=env.device) for k in ('mean', 'std'))  # once: such a copy waits for the GPU
there = [split for split in ('train', 'val', 'test') if os.path.exists(os.path.join(data_dir, f'{split}_labels.npy'))]
if eval_only and eval_split not in there:
    fail(f'{data_dir} has no {eval_split} split: it has {", ".join(there)}')
splits = {} if predict else {split: read_split(split) for split in ([eval_split] if eval_only else ['train', 'val'])}
iters_per_epoch = total_iters = 0
if not reads_only:
    iters_per_epoch = len(splits['train'][1]) // global_batch_size
    if not iters_per_epoch:
        fail(f'{data_dir} has {len(splits["train"][1])} training images, fewer than '
             f'global_batch_size={global_batch_size}: use a smaller one')
    total_iters = max_iters or max(1, round(epochs * iters_per_epoch))
    if randaugment and meta['layout'] == 'arrays':
        fail(f'randaugment={randaugment} is for JPEGs, {data_dir} holds small pictures: use --randaugment=0')
warmup_iters = round(warmup_epochs * iters_per_epoch)
if 0 < total_iters <= warmup_iters:
    say(f'the warmup ({warmup_iters} updates) is as long as the run ({total_iters}): the rate does not reach its peak')

# -----------------------------------------------------------------------------
# model
Network, NetworkConfig = (ViT, ViTConfig) if arch == 'vit' else (NFNet, NFNetConfig)
model_args = {f.name: config[f.name] for f in fields(NetworkConfig) if f.name in config}
norms = training.resolve_norms(config) if arch == 'vit' else {}
model_args.update(norms, n_classes=len(meta['classes']))
start_iter, best_top1 = 0, -1.0
if checkpoint:
    resume = init_from == 'resume'
    training.refuse_changes(source, checkpoint['config'], config, ['arch'])
    same = [k for k in model_args if k not in ('dropout', 'drop_path', 'flash', 'init', 'recompute_blocks')]
    training.refuse_changes(source, asdict(NetworkConfig()) | checkpoint['model_args'], model_args, same)
    for i, (then, now) in enumerate(zip(checkpoint['data']['classes'], meta['classes'])):
        if then != now:
            fail(f'{source} was trained on other classes: its class {i} is {then!r}, that of {data_dir} is {now!r}')
    if resume and not reads_only:
        training.refuse_changes(source, checkpoint['data'], meta, [
            'source', 'layout', 'train_images', 'val_images', 'mean', 'std', 'val_from_train', 'seed'],
            training.OTHER_DATA)
        training.refuse_changes(source, checkpoint['config'], config, ['seed', 'global_batch_size', 'optimizer'])
        start_iter, best_top1 = checkpoint['iter'], checkpoint['best_top1']
        if start_iter > total_iters:
            fail(f'{source} is at iteration {start_iter}, past the {total_iters} of this run: raise epochs, max_iters')
        say(f'{source}: iteration {start_iter}')
        training.tell_changes(checkpoint['config'], config, say)
    else:
        say(f'weights of {source}' + ', with a fresh optimizer' * (not reads_only))
try:
    raw_model = Network(NetworkConfig(**model_args)).to(env.device)
except (RuntimeError, MemoryError) as e:  # what torch says when memory is short, and when a size overflows
    fail(f'a model of {n_layer} layers and width {n_embd} does not fit into memory ({training.first_line(e)})',
         any_rank=True)
if checkpoint:
    try:
        raw_model.load_state_dict(checkpoint['model'])
    except RuntimeError as e:
        fail(f'{source} does not hold the weights of this model ({" ".join(str(e).split())[:200]}): use another file')
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
# evaluate, predict, save: functions of what stands above, and of where the loop below is (iter_num, lr, saved_iter, seen)

@torch.no_grad()
def evaluate(split='val'):
    """(loss, top-1, top-5) over every image of a split, loss in nats against the plain label; None after a signal."""
    sums = [0.0] * 4
    raw_model.eval()
    for images, labels in eval_batches(split):
        if signals:
            break
        with env.autocast:
            logits = raw_model(images).float()
        hits = logits.topk(min(5, logits.size(1))).indices == labels[:, None]  # (B, 5), the likeliest first
        loss = F.cross_entropy(logits, labels, reduction='sum')
        sums = [a + b.item() for a, b in zip(sums, (loss, hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels))))]
    raw_model.train()
    *sums, seen, stops = training.all_sum([*sums, len(signals)], env)
    return None if stops else [a / seen for a in sums]


@torch.no_grad()
def predict_files():
    """Prints the five likeliest classes of each picture, with their probabilities."""
    kinds, files = ('.jpg', '.jpeg', '.png', '.webp', '.bmp'), [predict]
    if os.path.isdir(predict):
        files = sorted(p for p in Path(predict).rglob('*') if p.suffix.lower() in kinds)
    if not files:
        fail(f'{predict} holds no pictures ({" ".join(kinds)})')
    raw_model.eval()
    for file in files:
        try:
            image = ImageOps.exif_transpose(Image.open(file)).convert('RGB')
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            fail(f'{file} cannot be read as a picture ({e})')
        # small pictures are evaluated whole, so the photo is made as small
        image = augment.eval_crop(image, image_size) if meta['layout'] == 'jpeg' else \
            ImageOps.fit(image, (image_size, image_size), augment.BICUBIC)
        images = augment.normalize(augment.to_tensor(image)[None].to(env.device), mean, std)
        with env.autocast:
            top = raw_model(images)[0].float().softmax(-1).topk(min(5, len(meta['classes'])))
        say(f'{file}: ' + ', '.join(f'{meta["classes"][i]} {p:.1%}' for p, i in zip(top.values.tolist(), top.indices)))


def statistics():
    """Those of batch normalization: a forward pass changes them, and a checkpoint is of the weights before it."""
    return {k: v.clone() for k, v in raw_model.state_dict().items() if 'running_' in k or 'num_batches' in k}


def save(name):
    path = os.path.join(out_dir, name)
    training.on_master(lambda: training.save_checkpoint(path, {
        'model': raw_model.state_dict() | seen, 'optimizer': opt.state_dict(), 'iter': iter_num,
        'best_top1': best_top1, 'model_args': model_args, 'data': meta, 'config': config}), env)


def stop_if_not_finite(what, *numbers):
    training.stop_if_not_finite(what, numbers, iter_num, lr, saved_iter, out_dir)


if predict:
    predict_files()
    training.leave(0, env)
signals = training.catch_signals()
if eval_only:
    result = evaluate(eval_split)
    if result:
        say(f'{eval_split} loss {result[0]:.4f} | top-1 {result[1]:.4f} | top-5 {result[2]:.4f} | '
            f'{len(splits[eval_split][1]):,} images')
    training.leave(0 if result else 128 + (signals or [15])[0], env)

# one micro batch before anything is written or thrown away: memory is there, and the compiler works
batches = train_batches(start_iter)
X, Y, partners, lam = next(batches)
seen = statistics()
try:
    room = torch.empty(0 if start_iter else training.state_size(opt), device=env.device)  # for what the first step makes
    with env.autocast:
        augment.mixed_loss(model(X), Y, partners, lam, label_smoothing).backward()
    del room
except RuntimeError as e:
    training.explain(e, f'{micro} images of {image_size} x {image_size} do not fit into memory: use a smaller '
                        'micro_batch_size')
opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
raw_model.load_state_dict(seen, strict=False)

opened = training.on_master(lambda: training.open_out_dir(
    out_dir, config, env, start_iter, overwrite, init_from == 'resume'), env)
log, evaluated = opened or (lambda row: None, False)
evaluated = training.all_sum([int(evaluated)], env)[0] > 0
what = f'setting {training.name_norms(setting, norms)}' if arch == 'vit' else arch
say(f'{n_params / 1e6:.2f}M parameters, {what}, {optimizer} | '
    f'{len(splits["train"][1]):,} training images of {len(meta["classes"])} classes, {iters_per_epoch} updates an '
    f'epoch of {global_batch_size} = {env.world_size} processes x {accum} x {micro} | '
    f'{env.device}, {env.dtype}, compile {env.compile} | {out_dir}')

# -----------------------------------------------------------------------------
# loop
saved_iter, lr, t0, timed, waited = start_iter, 0.0, time.time(), 0, 0.0
for iter_num in range(start_iter, total_iters + 1):  # the last turn evaluates and saves the final weights
    last, interrupted, seen = iter_num == total_iters, False, statistics()
    names = ['ckpt.pt'] + [f'ckpt_{iter_num:06d}.pt'] * bool(keep_interval and iter_num % keep_interval == 0)

    due = eval_interval and iter_num % eval_interval == 0
    if (due or last) and not (evaluated and iter_num == start_iter):
        pause = time.time()
        result = evaluate()
        interrupted = result is None
        if not interrupted:
            val_loss, top1, top5 = result
            stop_if_not_finite(f'validation loss {val_loss}', val_loss)
            better = top1 > best_top1 and iter_num > 0
            best_top1 = top1 if better else best_top1
            log({'iter': iter_num, 'split': 'val', 'loss': val_loss, 'top1': top1, 'top5': top5,
                 'images': iter_num * global_batch_size})
            say(f'val  {iter_num:6d}/{total_iters} | loss {val_loss:.4f} | top-1 {top1:.4f} | top-5 {top5:.4f}'
                + ' | best so far' * better)
            if better:
                save('best.pt')
        t0 += time.time() - pause
    if last and not interrupted:
        for name in names if iter_num > start_iter else ():
            save(name)
        break

    lr = training.lr_at(iter_num, learning_rate, min_lr, warmup_iters, total_iters)
    for group in opt.param_groups:
        group['lr'] = lr * group['lr_scale']
    if dropout > 0 or drop_path > 0:  # the masks of an iteration depend on (seed, iter_num, rank) alone
        torch.manual_seed(int(np.random.SeedSequence((seed, iter_num, env.rank)).generate_state(1)[0]))

    # forward and backward over the micro batches of this process; DDP averages the gradients in the last of them
    loss_sum = torch.zeros((), device=env.device)
    for micro_step in range(accum):
        ddp.require_backward_grad_sync = micro_step == accum - 1  # read in forward too, so it is set before
        with env.autocast:
            loss = augment.mixed_loss(model(X), Y, partners, lam, label_smoothing) / accum
        loss.backward()
        loss_sum += loss.detach()
        # the next micro batch is read while the device works
        pause = time.time()
        X, Y, partners, lam = next(batches, (X, Y, partners, lam))
        waited += time.time() - pause

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
        dt, wait = (time.time() - t0) / timed, waited / (time.time() - t0)
        t0, timed, waited = time.time(), 0, 0.0
        speed = global_batch_size / dt
        log({'iter': iter_num, 'split': 'train', 'loss': loss_mean, 'lr': lr, 'grad_norm': norm_value,
             'images': (iter_num + 1) * global_batch_size, 'images_per_s': round(speed, 1), 'data_wait': round(wait, 4),
             **({'agc_share': round(clipped.item(), 4)} if agc else {})})
        say(f'iter {iter_num:6d}/{total_iters} | epoch {iter_num / iters_per_epoch:.2f} | loss {loss_mean:.4f} | '
            f'lr {lr:.2e} | norm {norm_value:.3f} | {speed:,.0f} img/s | {wait:.0%} waiting for data | '
            f'{training.duration((total_iters - iter_num - 1) * dt)} left')

training.leave(0, env)
