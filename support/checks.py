"""
Checks of the values in a config, the norms of a setting, and the division of a batch. A wrong value ends the
program with one sentence that says what to do.
"""

import math
import sys
from dataclasses import fields

from model import NORMS, SETTINGS
from support.console import check_choice, check_range, fail
from support.normfree import KEYS

BELOW_1 = 0.999999  # the largest share, and the longest memory of an optimizer


def reads_only(config: dict) -> bool:
    """Whether this run only evaluates or predicts, so that it writes nothing."""
    return config['eval_only'] or bool(config.get('predict'))


def check_config(config: dict) -> None:
    """The keys that both train scripts have."""
    check_range(config, 1, 2**20, 'micro_batch_size', 'global_batch_size', 'n_embd')
    check_range(config, 1, 1000, 'n_layer', 'n_head')
    check_range(config, 0, 2**32 - 1, 'seed')
    check_range(config, 0, math.inf, 'eval_interval', 'ckpt_interval', 'keep_interval', 'log_interval',
                'learning_rate', 'min_lr', 'embed_lr', 'weight_decay', 'grad_clip', 'agc')
    check_range(config, -1, math.inf, 'embed_weight_decay')
    check_range(config, 0, BELOW_1, 'dropout', 'momentum', 'beta1', 'beta2')
    check_choice(config, ('cosine', 'timm'), 'schedule')
    if config['nesterov'] and not config['momentum']:
        fail('nesterov=True needs a momentum above 0. Use --momentum=0.9 or --nesterov=False.')
    if config['min_lr'] > config['learning_rate'] and not reads_only(config):
        lr = config['learning_rate']
        fail(f'min_lr={config["min_lr"]:g} is above learning_rate={lr:g}, so the rate would rise instead of '
             f'fall. Use --min_lr={lr / 10:g}, or --min_lr={lr:g} for a constant rate.')
    if config['agc'] and config['grad_clip']:
        fail(f'agc={config["agc"]} and grad_clip={config["grad_clip"]} both clip the gradient. '
             'Use --grad_clip=0 or --agc=0.')


def resolve_norms(config: dict) -> dict[str, bool]:
    """The seven norm flags of a config. A flag that is 'auto' has the value of its setting."""
    check_choice(config, SETTINGS, 'setting')
    check_choice(config, ('rms', 'layer', 'dyt'), 'norm')
    check_choice(config, ('auto', True, False), *NORMS)
    check_choice(config, ('none', 'ffn', 'all'), 'weight_standardization')
    check_choice(config, ('xavier', 'torch', 'tfixup'), 'init')
    if config['n_embd'] % config['n_head']:
        fail(f'n_embd={config["n_embd"]} does not divide into n_head={config["n_head"]} heads. '
             'Change --n_embd or --n_head.')
    row = SETTINGS[config['setting']]
    return {key: row[key] if config[key] == 'auto' else config[key] for key in NORMS}


def name_norms(setting: str, norms: dict[str, bool]) -> str:
    """'S5', or for example 'S5 with mid_norm=False' where norms differ from the setting."""
    other = [f'{key}={norms[key]}' for key in NORMS if norms[key] != SETTINGS[setting][key]]
    if not other:
        return setting
    return f'{setting} with {", ".join(other)}'


def network_args(network_config: type, config: dict) -> dict:
    """The model_args of a checkpoint: the keys of a config that describe the network, with resolved norms."""
    args = {f.name: config[f.name] for f in fields(network_config) if f.name in config}
    if 'pre_norm' in args:  # a transformer, not NFNet
        args |= {key: config[key] for key in KEYS} | resolve_norms(config)
    return args


def check_gpt(config: dict) -> None:
    """The keys of train_gpt.py."""
    check_config(config)
    check_range(config, 1, 2**20, 'block_size')
    check_range(config, 1, 2**40, 'max_iters')
    check_range(config, 0, 2**32 - 1, 'vocab_size', 'loss_chunk')
    check_range(config, 0, math.inf, 'eval_tokens', 'warmup_iters')


def check_vit(config: dict) -> None:
    """The keys of train_vit.py."""
    check_config(config)
    check_range(config, 1, 2**14, 'image_size', 'patch_size')
    check_range(config, -1, 1024, 'num_workers')
    check_range(config, 1, 100, 'aug_repeats')
    check_choice(config, ('bicubic', 'random'), 'interpolation')
    check_range(config, 0, 10, 'randaugment')
    check_range(config, 0, max(4, config['image_size'] - 1), 'shift')
    check_range(config, 0.0001, 1, 'crop_scale')
    check_range(config, 0, math.inf, 'max_iters', 'epochs', 'warmup_epochs', 'mixup', 'cutmix')
    check_range(config, 0, BELOW_1, 'drop_path', 'label_smoothing')
    check_choice(config, ('vit', 'nfnet'), 'arch')
    check_choice(config, ('train', 'val', 'test'), 'eval_split')
    if config['arch'] == 'vit' and config['batch_norm']:
        fail('batch_norm only works with --arch=nfnet. For a ViT, choose the norms with --setting.')
    if config['num_workers'] > 0 and sys.platform != 'linux':  # without fork, workers rerun the script
        fail(f'num_workers={config["num_workers"]} requires Linux. Use --num_workers=0.')
    if not (config['epochs'] or config['max_iters']):
        fail('epochs=0 and max_iters=0 leave nothing to train. Set --epochs or --max_iters.')


def check_images(config: dict, data) -> None:
    """The keys of train_vit.py against the data set, an Images of support/images.py."""
    if config['arch'] == 'vit' and config['image_size'] % config['patch_size']:
        fail(f'patch_size={config["patch_size"]} does not divide image_size={config["image_size"]}. '
             'Change --patch_size or --image_size.')
    if reads_only(config):
        return
    images, batch = data.size('train'), config['global_batch_size']
    if images < batch:
        fail(f'{data.folder} has {images} training images, fewer than global_batch_size={batch}. Use a '
             'smaller --global_batch_size.')
    for key, off in (('randaugment', 0), ('interpolation', 'bicubic')):
        if config[key] != off and data.arrays:
            fail(f'{key}={config[key]} only works with JPEGs, and {data.folder} holds small pictures as '
                 f'arrays. Use --{key}={off}.')


def warn_of_warmup(warmup_iters: int, max_iters: int, env, iters_per_epoch: int = 0) -> None:
    """Warn where the rate never reaches its peak, and print the flag for a warmup of a tenth of the run."""
    if 0 < max_iters <= warmup_iters:
        flag = f'warmup_iters={max_iters // 10}'
        if iters_per_epoch:
            flag = f'warmup_epochs={max_iters / iters_per_epoch / 10:.2g}'
        env.say(f'The warmup ({warmup_iters} updates) is not shorter than the run ({max_iters}), so the '
                f'learning rate does not reach its peak. Use --{flag}.')


def split_batch(global_batch_size: int, micro_batch_size: int, world_size: int,
                multiple: int = 1) -> tuple[int, int]:
    """
    (samples per forward pass, forward passes per update) of one process, with as many samples as
    micro_batch_size allows. multiple: 2 where samples are mixed in pairs, so that a pass has whole pairs.
    """
    if global_batch_size % (world_size * multiple):
        over = f'{world_size} processes'
        if multiple > 1:
            over += ' in pairs, which mixup and cutmix need'
        fail(f'global_batch_size={global_batch_size} does not divide over {over}. Set --global_batch_size to '
             f'a multiple of {world_size * multiple}.')
    if micro_batch_size < multiple:
        fail(f'micro_batch_size={micro_batch_size} is too small, because mixup and cutmix need pairs. '
             f'Set --micro_batch_size to at least {multiple}.')
    per_process = global_batch_size // world_size
    sizes = range(multiple, min(micro_batch_size, per_process) + 1, multiple)
    micro = max(n for n in sizes if per_process % n == 0)
    return micro, per_process // micro
