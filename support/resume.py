"""
A checkpoint: finding it, checking it against this run, fitting its weights and loading them. No function here
changes its arguments, but for a network or an optimizer that is to be loaded.
"""

import math
import os
from dataclasses import asdict, dataclass

import torch

from model import NORMS, GPTConfig, ViTConfig
from support import normfree, pretrained
from support.checks import reads_only
from support.console import fail, reason
from support.distributed import all_sum, on_master
from support.run import lock, our_files

# -----------------------------------------------------------------------------
# finding it

@dataclass
class Checkpoint:
    """
    Where a run begins. state: the dict of a checkpoint file, None from scratch. resumes: whether this run
    continues that one, or takes the weights alone. only_reads: whether it evaluates and trains nothing.
    """
    path: str | None = None
    state: dict | None = None
    resumes: bool = False
    only_reads: bool = False

    @property
    def iter(self):
        return self.state['iter'] if self.resumes else 0

    def best(self, name, default):
        """The best metric of the run that resumes."""
        return self.state[name] if self.resumes else default


def latest_checkpoint(out_dir):
    """Path of ckpt.pt, or of the last kept one where that is gone, or None."""
    found = [f for f in our_files(out_dir) if f.startswith('ckpt')]
    if not found:
        return None
    kept = {int(f[5:-3]): f for f in found if f != 'ckpt.pt'}
    return os.path.join(out_dir, 'ckpt.pt' if 'ckpt.pt' in found else kept[max(kept)])


def find_checkpoint(path):
    """
    The checkpoint file of a path. For the folder of a run this is best.pt, or ckpt.pt where it has none. Any
    other path stays as it is.
    """
    best = os.path.join(path, 'best.pt')
    return best if os.path.exists(best) else latest_checkpoint(path) or path


def load_checkpoint(path: str) -> dict:
    """
    The dict of a checkpoint file, memory-mapped on the CPU. A folder or a safetensors file holds weights that
    other projects made. Ends with one sentence where it is none of these.
    """
    if os.path.isdir(path) or str(path).endswith('.safetensors'):
        return pretrained.load(str(path))
    try:
        mmap = path.isprintable()  # torch cannot map a file whose name is not valid UTF-8
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
        missing = {'model', 'optimizer', 'iter', 'config', 'model_args', 'data'} - set(checkpoint)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        fail(f'Cannot read the checkpoint {path} ({e.strerror}). Use --out_dir or --init_from with '
             'the folder or the checkpoint of a run.')
    except Exception as e:  # a zip that is cut short, a pickle of classes, another kind of file
        fail(f'{path} is not a complete checkpoint of this project ({type(e).__name__}). Use another file.')
    if missing:
        fail(f'{path} is not a checkpoint of this project: it has no {", ".join(sorted(missing))}.')
    return checkpoint


def find(config, env) -> Checkpoint:
    """The checkpoint that init_from names; an empty one from scratch. The weights are not loaded yet."""
    out_dir, init_from = config['out_dir'], config['init_from']
    path, only_reads = None, reads_only(config)
    if not only_reads:
        on_master(lambda: refuse_used_folder(out_dir, init_from, config['overwrite']), env)
    if init_from == 'resume':
        path = latest_checkpoint(out_dir)
        if not path:
            if not only_reads:  # with the weights that the config file names, if it does
                env.say(f'{out_dir} has no checkpoint yet, so the run starts at iteration 0. If you expected '
                        'one, check --out_dir.')
                init_from = config.replaced.get('init_from', 'resume')
    if not init_from:
        fail('init_from is empty. Use scratch, resume, or a file, a folder or a Hub id with weights.')
    if init_from not in ('scratch', 'resume'):  # rank 0 downloads, the others find it in the cache
        on_master(lambda: pretrained.find_weights(init_from), env)
        path = find_checkpoint(pretrained.find_weights(init_from))
        real = os.path.realpath(path)
        if config['overwrite'] and os.path.realpath(out_dir) in (real, os.path.dirname(real)):
            fail(f'{init_from} is in the out_dir that would be overwritten. Choose another --out_dir.')
    if not path:
        if only_reads:
            fail('eval_only and predict need weights. Use --init_from=FILE_OR_FOLDER, or --init_from=resume '
                 'where out_dir has a checkpoint.')
        found = Checkpoint()
    else:
        found = Checkpoint(path, load_checkpoint(path), init_from == 'resume' and not only_reads, only_reads)
        kind, script = ('classes', 'train_vit.py') if 'arch' in config else ('tokenizer', 'train_gpt.py')
        if kind not in found.state['data']:
            fail(f'{path} is not a checkpoint of {script}. Use another file.')
    total = all_sum([found.iter], env)[0]
    if all_sum([total != found.iter * env.world_size], env)[0]:
        fail('The processes found different checkpoints. out_dir must be on a disk that all machines share.')
    return found


def refuse_used_folder(out_dir, init_from, overwrite):
    if our_files(out_dir) and init_from != 'resume' and not overwrite:
        fail(f'{out_dir} has a run already. Continue it with --init_from=resume, replace it with '
             '--overwrite=True, or choose another --out_dir.')
    if os.path.exists(os.path.join(out_dir, 'model.safetensors')):
        fail(f'{out_dir} holds exported weights, and a run would replace their config.json. Choose another '
             '--out_dir.')
    if os.path.exists(os.path.join(out_dir, 'run.lock')):  # Run takes it, after the first pass
        lock(out_dir).close()

# -----------------------------------------------------------------------------
# checking it

# what may differ between a checkpoint and the network that takes its weights
FREE = {'dropout', 'drop_path', 'flash', 'init', 'loss_chunk', 'recompute_blocks'}


def network_of(checkpoint: Checkpoint, config: dict) -> dict:
    """
    The keys that describe the network of a checkpoint, for the config of this run. Left out is what this run
    states: on the command line or, where it resumes, in a config file too. check() compares that.
    """
    if not checkpoint.state:
        return {}
    args, old_config = checkpoint.state['model_args'], checkpoint.state['config']
    network = {'setting': old_config.get('setting', 'S1')} | args
    if 'arch' in config:
        network['arch'] = old_config.get('arch', 'vit')
    stated = set(config.replaced)
    if checkpoint.resumes:
        stated = set(config.stated)
        network |= {k: old_config[k] for k in network if k in old_config}  # what was 'auto' stays so
    elif 'block_size' in args and 'block_size' in config.stated:  # a file may ask for a shorter context
        network['block_size'] = min(args['block_size'], config['block_size'])
    if 'setting' in stated:
        stated.update(NORMS)
    return {k: v for k, v in network.items() if k not in stated | FREE | {'n_classes'}}


def check(checkpoint: Checkpoint, config: dict, model_args: dict, meta: dict, max_iters: int,
          env) -> None:
    """End with one sentence where a checkpoint does not suit this run. Otherwise say what changes."""
    if not checkpoint.state:
        return
    path, state = checkpoint.path, checkpoint.state
    refuse_changes(path, state['data'], meta, ['tokenizer', 'vocab_size'],  # a part of gpt2's has other ids
                   'Use a data set with the ids of the original run.')
    refuse_changes(path, state['config'], config, ['arch'])
    defaults = asdict((ViTConfig if 'classes' in meta else GPTConfig)())
    defaults |= {'weight_standardization': 'none', 'weight_gain': True, 'batch_norm': False}
    old, free = defaults | state['model_args'], set(FREE)
    if not checkpoint.resumes:  # fit_weights() interpolates positions, or leaves out the last ones
        free.add('image_size')
        if model_args.get('block_size', 0) < old.get('block_size', 0):
            free.add('block_size')
    if 'classes' in meta:
        if checkpoint.resumes or checkpoint.only_reads:
            refuse_other_classes(path, state['data']['classes'], meta['classes'])
        else:
            free.add('n_classes')  # fit_weights() starts another head
    refuse_changes(path, old, model_args, [k for k in model_args if k not in free])
    if checkpoint.resumes:
        check_resumed(checkpoint, config, meta, max_iters, env)
    elif checkpoint.only_reads:
        env.say(f'The weights come from {path}.')
    else:
        env.say(f'The weights come from {path}. The optimizer is new.')


def refuse_other_classes(path, old, new):
    if not old:
        fail(f'{path} has no head, so it knows no classes. Fine-tune it on a data set first.')
    if old == pretrained.unnamed_classes(len(new)):
        return
    for i, (a, b) in enumerate(zip(old, new)):
        if a != b:
            fail(f'{path} was trained on other classes: its class {i} is {a!r}, that of the data set is '
                 f'{b!r}.')


def check_resumed(checkpoint, config, meta, max_iters, env):
    """The rules of a run that continues: its data, its batches and its optimizer must be those of before."""
    path, state = checkpoint.path, checkpoint.state
    remedy = ('Use the data set of the original run, or start a new run from its weights with '
              '--init_from=FILE and another --out_dir.')
    if 'content' in state['data'] and 'content' in meta:  # the same bytes may come from another path
        if state['data']['content'] != meta['content']:
            fail(f'{path} was trained on data that this data set does not have. {remedy}')
    else:
        keys = ['source', 'train_tokens', 'val_tokens']
        if 'classes' in meta:
            keys = ['source', 'layout', 'train_images', 'val_images', 'mean', 'std', 'val_from_train', 'seed']
        refuse_changes(path, state['data'], meta, keys, remedy)
    refuse_changes(path, state['config'], config, ['seed', 'global_batch_size', 'optimizer'])
    if checkpoint.iter > max_iters:
        fail(f'{path} is at iteration {checkpoint.iter}, past the {max_iters} of this run. Raise max_iters.')
    env.say(f'{path}: iteration {checkpoint.iter}')
    own = {'init_from', 'out_dir', 'overwrite', 'eval_only', 'eval_split', 'predict'}
    changed = []
    for key, old in state['config'].items():
        if key in config and key not in own and config[key] != old:
            changed.append(f'{key} {old} -> {config[key]}')
    if changed:  # config.json will hold the new values
        env.say('Not as in the checkpoint: ' + ', '.join(changed) + '.')


def refuse_changes(path, old, new, keys, remedy='Use the values of the original run.'):
    """End with one sentence where a key of the checkpoint at path has another value in this run."""
    changed = [f'{k}={old.get(k)}, now it is {new.get(k)}' for k in keys if old.get(k) != new.get(k)]
    if changed:
        fail(f'{path} was made with {"; ".join(changed)}. {remedy}')

# -----------------------------------------------------------------------------
# loading it

def make_network(network: type, config: type, args: dict, env) -> torch.nn.Module:
    """network(config(**args)) on the device."""
    try:
        model = normfree.build(network, config, args).to(env.device)
    except (RuntimeError, MemoryError) as e:  # torch raises these when memory is short or a size overflows
        fail(f'This model does not fit into memory ({reason(e)}). Use a smaller one.', any_rank=True)
    convolutions = not hasattr(model, 'blocks')  # cuDNN tries its algorithms once and takes the fastest
    torch.backends.cudnn.benchmark = convolutions and not torch.are_deterministic_algorithms_enabled()
    return model


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint, meta: dict, env) -> None:
    """The weights of a checkpoint, fitted to the network of this run, and a ViT's to its pixels."""
    if not checkpoint.state:
        return
    weights = checkpoint.state['model']
    if not checkpoint.resumes:
        weights = fit_weights(checkpoint, model, meta, env)
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        fail(f'{checkpoint.path} does not have the weights of this model ({" ".join(str(e).split())[:200]}). '
             'Use another file.')


def fit_weights(checkpoint, model, meta, env):
    """
    The weights with the context, the classes, the picture size and the pixels of this run. An NFNet cannot
    take other pixels over.
    """
    path, old_data = checkpoint.path, checkpoint.state['data']
    weights = dict(checkpoint.state['model'])
    if 'wpe.weight' in weights:
        weights['wpe.weight'] = weights['wpe.weight'][:model.config.block_size]
    if 'classes' in old_data:
        old, new = old_data['classes'], meta['classes']
        if old != new and not checkpoint.only_reads:
            env.say(f'{path} has a head for {len(old)} classes, the data set has {len(new)} others: the head '
                    'starts again at zero')
            for name in ('head.weight', 'head.bias'):
                weights[name] = torch.zeros_like(model.get_parameter(name))  # as in the ViT paper
    other_pixels = 'mean' in old_data and any(old_data[k] != meta[k] for k in ('mean', 'std'))
    if 'pos_embed' in weights:
        patch_size = model.config.patch_size
        old = checkpoint.state['model_args']['image_size'] // patch_size
        new = model.config.image_size // patch_size
        if old != new:
            env.say(f'the positions of {path} are interpolated from {old} x {old} to {new} x {new} patches')
            weights['pos_embed'] = resize_positions(weights['pos_embed'], new)
        if other_pixels:
            w, b = weights['patch_embed.weight'], weights['patch_embed.bias']
            weights['patch_embed.weight'], weights['patch_embed.bias'] = take_pixels(w, b, old_data, meta)
    elif other_pixels:
        env.say(f'{path} was trained on pixels with another mean and deviation, to which an NFNet cannot be '
                'fitted. Train it on, or evaluate it on its own data set.')
    return weights


def resize_positions(positions, grid):
    """The positions (1, 1 + n, C) of a square of patches for one of grid x grid, bicubic, as timm does it."""
    old = math.isqrt(positions.size(1) - 1)
    square = positions[:, 1:].float().view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, C, old, old)
    square = torch.nn.functional.interpolate(square, (grid, grid), mode='bicubic', antialias=True)
    return torch.cat((positions[:, :1].float(), square.flatten(2).transpose(1, 2)), dim=1)


def take_pixels(w, b, then, now):
    """
    Weight and bias of a patch embedding that was trained on pixels with the mean and std of then, for pixels
    with those of now (two meta.json). A linear layer can take over the difference.
    """
    mean, new_mean = (torch.tensor(data['mean']).view(3, 1, 1) for data in (then, now))
    std, new_std = (torch.tensor(data['std']).clamp(min=1 / 255).view(3, 1, 1) for data in (then, now))
    w, b = w.float(), b.float()
    return w * (new_std / std), b + (w * ((new_mean - mean) / std)).sum((1, 2, 3))


def load_optimizer(opt, checkpoint: Checkpoint) -> None:
    """
    Load the state of each weight where a run resumes. Groups, rates and decay are those of this run. Earlier
    versions had other groups without weights, and two SGDW where the embeddings have row norm.
    """
    if not checkpoint.resumes:
        return
    saved = checkpoint.state['optimizer']
    groups, states = [], []
    for part in saved.get('optimizers', [saved]):
        groups += part['param_groups']
        for group in part['param_groups']:
            states += [part['state'].get(i, {}) for i in group['params']]
    if shapes(groups) != shapes(opt.param_groups):
        fail('The checkpoint has its optimizer state in other groups. Use the embed_optimizer and '
             'embed_lr of the original run.')
    for optimizer in getattr(opt, 'optimizers', [opt]):
        new = optimizer.state_dict()
        for group in new['param_groups']:
            for i in group['params']:
                state = states.pop(0)
                if state:  # at momentum 0 there is none
                    new['state'][i] = state
        optimizer.load_state_dict(new)


def shapes(groups):
    """For each group with weights: how many it has, and whether AdamW updates them."""
    return [(len(group['params']), 'betas' in group) for group in groups if group['params']]
