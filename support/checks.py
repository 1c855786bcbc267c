"""
The values of a config: their ranges, the norms of a setting, and how the batch divides.
"""

import math
import sys
from dataclasses import fields

from configurator import fail, replaced
from model import NORMS, SETTINGS
from support.normfree import KEYS


def check_range(config, low, high, *keys):
    """Ends with one sentence where a key is not a number from low to high."""
    for key in keys:
        if not (low <= config[key] <= high and config[key] < math.inf):  # nan is neither
            fail(f'{key}={config[key]} is out of range: use {low} ' + (f'to {high}' if high < math.inf else 'or more'))


def check_share(config, *keys):
    for key in keys:
        if not 0 <= config[key] < 1:
            fail(f'{key}={config[key]} is out of range: use 0 or more, less than 1')


def check_config(config):
    """Ends with one sentence where a key that both scripts have is out of range."""
    check_range(config, 1, 2**20, 'micro_batch_size', 'global_batch_size', 'n_embd')
    check_range(config, 1, 1000, 'n_layer', 'n_head')
    check_range(config, 0, 2**32 - 1, 'seed')
    check_range(config, 0, math.inf, 'eval_interval', 'ckpt_interval', 'keep_interval', 'log_interval', 'learning_rate',
                'min_lr', 'embed_lr', 'weight_decay', 'grad_clip', 'agc')
    check_range(config, -1, math.inf, 'embed_weight_decay')
    check_share(config, 'dropout', 'momentum', 'beta1', 'beta2')
    if config['min_lr'] > config['learning_rate'] and not (config['eval_only'] or config.get('predict')):
        lr = config['learning_rate']
        fail(f'min_lr={config["min_lr"]:g} is above learning_rate={lr:g}, so the rate would rise instead of fall. '
             f'Use --min_lr={lr / 10:g}, or --min_lr={lr:g} for a constant rate.')
    if config['agc'] and config['grad_clip']:
        fail(f'agc={config["agc"]} and grad_clip={config["grad_clip"]} are two ways to clip: set one of them to 0')


def resolve_norms(config):
    """The seven norm flags of a config: the row of its setting, where a flag is 'auto'."""
    setting = config['setting']
    if setting not in SETTINGS:
        fail(f'setting={setting} is unknown: use one of {", ".join(SETTINGS)}')
    if config['norm'] not in ('rms', 'layer'):
        fail(f'norm={config["norm"]} is unknown: use rms or layer')
    for key in NORMS:
        if config[key] not in ('auto', True, False):
            fail(f'{key}={config[key]} is not one of auto, True, False')
    for key, values in (('weight_standardization', ('none', 'ffn', 'all')), ('init', ('xavier', 'torch', 'tfixup'))):
        if config[key] not in values:
            fail(f'{key}={config[key]} is unknown: use {" or ".join(values)}')
    if config['n_embd'] % config['n_head']:
        fail(f'n_embd={config["n_embd"]} does not divide into n_head={config["n_head"]} heads')
    return {key: SETTINGS[setting][key] if config[key] == 'auto' else config[key] for key in NORMS}


def name_norms(setting, norms):
    """'S5', or 'S5 with mid_norm=False' where a flag of norms overrides its row."""
    other = [f'{key}={norms[key]}' for key in NORMS if norms[key] != SETTINGS[setting][key]]
    return setting + (f' with {", ".join(other)}' if other else '')


def network_args(network_config, config):
    """The keys of a config that describe the network, with its norms resolved: the model_args of a checkpoint."""
    args = {f.name: config[f.name] for f in fields(network_config) if f.name in config}
    if 'pre_norm' in args:  # a transformer, not NFNet
        args |= {key: config[key] for key in KEYS} | resolve_norms(config)
    return args


def check_gpt(config):
    """Ends with one sentence where a key of train_gpt.py is out of range."""
    check_config(config)
    check_range(config, 1, 2**20, 'block_size')
    check_range(config, 1, 2**40, 'max_iters')
    check_range(config, 0, 2**32 - 1, 'vocab_size', 'loss_chunk')
    check_range(config, 0, math.inf, 'eval_tokens', 'warmup_iters')


def check_vit(config):
    """Ends with one sentence where a key of train_vit.py is out of range."""
    check_config(config)
    check_range(config, 1, 2**14, 'image_size', 'patch_size')
    check_range(config, -1, 1024, 'num_workers')
    check_range(config, 0, 10, 'randaugment')
    check_range(config, 0, max(4, config['image_size'] - 1), 'shift')
    check_range(config, 0.0001, 1, 'crop_scale')
    check_range(config, 0, math.inf, 'max_iters', 'epochs', 'warmup_epochs', 'mixup', 'cutmix')
    check_share(config, 'drop_path', 'label_smoothing')
    arch = config['arch']
    if arch not in ('vit', 'nfnet'):
        fail(f'arch={arch} is unknown: use vit or nfnet')
    if arch == 'vit' and config['batch_norm']:
        fail('batch_norm only works with --arch=nfnet. For a ViT, choose the norms with --setting.')
    if config['num_workers'] > 0 and sys.platform != 'linux':  # without fork, a worker would run the script again
        fail(f'num_workers={config["num_workers"]} needs Linux: use 0')
    if not (config['epochs'] or config['max_iters']):
        fail('epochs=0 and max_iters=0: set one of them')


def check_images(config, data):
    """(updates per epoch, updates in all, updates of warmup); the first two are 0 where nothing is trained."""
    iters_per_epoch = total_iters = 0
    if config['arch'] == 'vit' and config['image_size'] % config['patch_size']:
        fail(f'patch_size={config["patch_size"]} does not divide image_size={config["image_size"]}')
    if 'train' in data.splits:
        global_batch_size, images = config['global_batch_size'], data.size('train')
        iters_per_epoch = images // global_batch_size
        if not iters_per_epoch:
            fail(f'{data.folder} has {images} training images, fewer than global_batch_size={global_batch_size}: use a '
                 'smaller one')
        total_iters = config['max_iters'] or max(1, round(config['epochs'] * iters_per_epoch))
        if config['randaugment'] and data.arrays:
            fail(f'randaugment={config["randaugment"]} is for JPEGs, {data.folder} holds small pictures: use '
                 '--randaugment=0')
    warmup_iters = round(config['warmup_epochs'] * iters_per_epoch)
    planned = replaced.get('max_iters', config['max_iters']) or replaced.get('epochs', config['epochs']) * iters_per_epoch
    warn_of_warmup(warmup_iters, total_iters, planned, data.env, iters_per_epoch)
    return iters_per_epoch, total_iters, warmup_iters


def warn_of_warmup(warmup_iters, max_iters, planned, env, iters_per_epoch=0):
    """
    Say so where the rate never reaches its peak, with the flag that keeps the config's share of warmup. planned: the
    updates that the config had before the command line changed them.
    """
    if not 0 < max_iters <= warmup_iters:
        return
    iters = max_iters * (warmup_iters / planned if planned > warmup_iters else 0.1)
    flag = f'warmup_epochs={iters / iters_per_epoch:.2g}' if iters_per_epoch else f'warmup_iters={round(iters)}'
    env.say(f'The warmup ({warmup_iters} updates) is as long as the run ({max_iters}), so the learning rate does not '
            f'reach its peak. Use --{flag}.')


def split_batch(global_batch_size, micro_batch_size, world_size, multiple=1):
    """
    (samples per forward, forwards per update) of one process: the largest divisor that micro_batch_size allows. The
    samples per forward are a multiple of 2 where they are mixed in pairs.
    """
    if global_batch_size % (world_size * multiple):
        fail(f'global_batch_size={global_batch_size} does not divide over {world_size} processes'
             + ' in pairs, which mixup and cutmix need' * (multiple > 1) + ': use a multiple')
    if micro_batch_size < multiple:
        fail(f'micro_batch_size={micro_batch_size} is too small: mixup and cutmix need pairs')
    per_process = global_batch_size // world_size
    micro = max(n for n in range(multiple, min(micro_batch_size, per_process) + 1, multiple) if per_process % n == 0)
    return micro, per_process // micro
