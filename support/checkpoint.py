"""
out_dir: config.json, log.jsonl and the checkpoints of a run, and the rules by which a run continues from a checkpoint.
Nothing is ever half written: write beside it, then rename.
"""

import json
import math
import os
import re
import subprocess
from dataclasses import asdict
from types import SimpleNamespace

import torch

from configurator import fail
from model import SETTINGS
from support import normfree
from support.distributed import all_sum, first_line, on_master


def replace_file(path, write):
    """write(temporary path), flush to disk, rename to path; a failure leaves what was at path untouched."""
    tmp = f'{path}.tmp'
    try:
        write(tmp)
        with open(tmp, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch.save says RuntimeError when the disk is full
        if os.path.exists(tmp):
            os.remove(tmp)
        kept = f'; the last good one, {path}, is untouched' if os.path.exists(path) else ''
        why = getattr(e, 'strerror', None) or first_line(e)
        fail(f'cannot write {path} ({why}){kept}: mend that, then --init_from=resume')


def replace_text(path, text):
    def write(tmp):
        with open(tmp, 'w', encoding='utf-8') as f:
            f.write(text)
    replace_file(path, write)


def our_files(out_dir):
    """The files of a run in out_dir, the log last."""
    files = os.listdir(out_dir) if os.path.isdir(out_dir) else []
    return sorted(f for f in files if re.fullmatch(r'config\.json|log\.jsonl|(best|ckpt|ckpt_\d+)\.pt', f))


def refuse_to_overwrite(out_dir, init_from, overwrite, reads_only):
    if our_files(out_dir) and init_from != 'resume' and not overwrite and not reads_only:
        fail(f'{out_dir} holds a run: go on with it (--init_from=resume), replace it (--overwrite=True) or choose another '
             '--out_dir')
    if overwrite and os.path.dirname(os.path.abspath(init_from)) == os.path.abspath(out_dir):
        fail(f'{init_from} lies in the out_dir that is to be overwritten: choose another --out_dir')


def latest_checkpoint(out_dir):
    """Path of ckpt.pt, or of the last kept one where that is gone, or None."""
    there = [f for f in our_files(out_dir) if f.startswith('ckpt')]  # ckpt.pt sorts first, the kept ones follow
    return os.path.join(out_dir, 'ckpt.pt' if 'ckpt.pt' in there else there[-1]) if there else None


class Run:
    """
    The out_dir of this run, opened on every rank: config.json is written, what is to be overwritten is gone, and the log
    is cut where the run starts. evaluated: the log has the evaluation of start_iter already. saved_iter: the iteration
    of the last good checkpoint, 0 where there is none.
    """

    def __init__(self, config, env, start_iter):
        self.out_dir, self.env, self.saved_iter = config['out_dir'], env, start_iter
        self.path = os.path.join(self.out_dir, 'log.jsonl')
        evaluated = on_master(lambda: self.open(config, start_iter), env)
        self.evaluated = all_sum([int(evaluated or 0)], env)[0] > 0

    def open(self, config, start_iter):
        try:
            os.makedirs(self.out_dir, exist_ok=True)
            for f in our_files(self.out_dir) if config['overwrite'] and config['init_from'] != 'resume' else ():
                os.remove(os.path.join(self.out_dir, f))
        except OSError as e:
            fail(f'cannot use out_dir={self.out_dir}: {e.strerror}')
        gpu = torch.cuda.get_device_name() if self.env.device_type == 'cuda' else ''
        replace_text(os.path.join(self.out_dir, 'config.json'), json.dumps(
            {**config, 'torch': torch.__version__, 'git': git_commit(), 'gpu': gpu, 'world_size': self.env.world_size},
            indent=2))
        # what lies past the checkpoint comes again; a line that a kill cut short goes too
        kept, evaluated = [], False
        for line in open(self.path, encoding='utf-8', errors='replace') if os.path.exists(self.path) else ():
            try:
                row = json.loads(line)
                at_start = row['split'] == 'val' and row['iter'] == start_iter
                if row['iter'] < start_iter or at_start:
                    kept.append(line.rstrip('\n') + '\n')
                    evaluated |= at_start
            except (ValueError, KeyError, TypeError):
                continue
        replace_text(self.path, ''.join(kept))
        return evaluated

    def log(self, **row):
        """Append a row to log.jsonl."""
        if self.env.master:
            try:
                with open(self.path, 'a', encoding='utf-8') as f:
                    f.write(json.dumps(row) + '\n')
            except OSError as e:
                fail(f'cannot write {self.path} ({e.strerror}): mend that, then --init_from=resume')

    def save(self, names, **state):
        """Write a plain dict of tensors and Python values, which torch.load(weights_only=True) opens, to each name."""
        for name in names:
            path = os.path.join(self.out_dir, name)
            on_master(lambda: replace_file(path, lambda tmp: torch.save(state, tmp)), self.env)
        if 'ckpt.pt' in names:
            self.saved_iter = state['iter']

    def stop_if_not_finite(self, iter_num, lr, **numbers):
        """Ends with one sentence where a number is not finite. All processes have the same numbers, so all stop."""
        if not all(map(math.isfinite, numbers.values())):
            what = ', '.join(f'{name.replace("_", " ")} {value}' for name, value in numbers.items())
            good = f'that of iteration {self.saved_iter} in {self.out_dir}' if self.saved_iter else 'none'
            fail(f'iteration {iter_num}: {what} at learning rate {lr:.3g}, so no step was made. The last good checkpoint '
                 f'is {good}. Try a lower learning_rate, a longer warmup, grad_clip=1.0 or --flash=False')


def git_commit():
    try:
        return subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10,
                              cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''


def load_checkpoint(path):
    """The dict of a checkpoint file, on the CPU; ends with one sentence where the file is not one."""
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        missing = {'model', 'optimizer', 'iter', 'config', 'model_args', 'data'} - set(checkpoint)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
        fail(f'cannot read the checkpoint {path} ({e.strerror}): give a file that a train script saved')
    except Exception as e:  # a zip that is cut short, a pickle of classes, a file of something else
        fail(f'{path} is not a whole checkpoint of this project ({type(e).__name__}): use another file')
    if missing:
        fail(f'{path} is not a checkpoint of this project: it has no {", ".join(sorted(missing))}')
    return checkpoint


def begin(config: dict, env) -> SimpleNamespace:
    """
    Where this run begins: path and checkpoint (a dict; None from scratch) that init_from names, resume (it continues
    that run), iter, best (its best metric) and say. The weights are not loaded yet: see continue_gpt and continue_vit.
    """
    out_dir, init_from, only_reads = config['out_dir'], config['init_from'], reads_only(config)
    refuse_to_overwrite(out_dir, init_from, config['overwrite'], only_reads)
    path = latest_checkpoint(out_dir) if init_from == 'resume' else None if init_from == 'scratch' else init_from
    if init_from == 'resume' and not path:
        env.say(f'{out_dir} has no checkpoint yet: starting at iteration 0')
    if only_reads and not path:
        fail('eval_only and predict need weights: --init_from=resume where out_dir holds a checkpoint, or '
             '--init_from=FILE')
    checkpoint = path and (load_gpt2(path) if os.path.isdir(path) else load_checkpoint(path))
    return SimpleNamespace(path=path, checkpoint=checkpoint, resume=init_from == 'resume' and not only_reads, say=env.say,
                           iter=0, best=None)


def reads_only(config):
    return config['eval_only'] or bool(config.get('predict'))


# what may differ between a checkpoint and the network that takes its weights
FREE = {'dropout', 'drop_path', 'flash', 'init', 'loss_chunk', 'recompute_blocks'}


def continue_gpt(start, network, config, model_args, meta):
    """Check the checkpoint of start against this run, tell what changes, and fit vocabulary and positions to each other."""
    checkpoint, path, block_size = start.checkpoint, start.path, config['block_size']
    model_args['vocab_size'] = config['vocab_size'] or -(-meta['vocab_size'] // 64) * 64
    if checkpoint and not config['vocab_size']:
        model_args['vocab_size'] = max(checkpoint['model_args'].get('vocab_size', 0), meta['vocab_size'])
    if model_args['vocab_size'] < meta['vocab_size']:
        fail(f'vocab_size={config["vocab_size"]} is less than the {meta["vocab_size"]} of the data set: leave it at 0')
    if not checkpoint:
        return
    free = FREE | (set() if config['init_from'] == 'resume' else {'block_size'})
    refuse_changes(path, asdict(network()) | checkpoint['model_args'], model_args, [k for k in model_args if k not in free])
    refuse_changes(path, checkpoint['data'], meta, ['tokenizer'])
    continue_run(start, config, meta, ['source', 'train_tokens', 'val_tokens', 'vocab_size'], config['max_iters'],
                 'best_val_loss')
    positions = checkpoint['model']['wpe.weight']
    if len(positions) < block_size:
        fail(f'{path} knows {len(positions)} positions, fewer than block_size={block_size}: use a smaller one')
    checkpoint['model']['wpe.weight'] = positions[:block_size]


def continue_vit(start, network, config, model_args, meta, total_iters):
    """Check the checkpoint of start against this run, and tell what changes."""
    checkpoint, path = start.checkpoint, start.path
    if not checkpoint:
        return
    refuse_changes(path, checkpoint['config'], config, ['arch'])
    refuse_changes(path, asdict(network()) | checkpoint['model_args'], model_args, [k for k in model_args if k not in FREE])
    for i, (then, now) in enumerate(zip(checkpoint['data']['classes'], meta['classes'])):
        if then != now:
            fail(f'{path} was trained on other classes: its class {i} is {then!r}, that of the data set is {now!r}')
    continue_run(start, config, meta, ['source', 'layout', 'train_images', 'val_images', 'mean', 'std', 'val_from_train',
                                       'seed'], total_iters, 'best_top1')


def continue_run(start, config, meta, data_keys, total_iters, best):
    """Set iter and best of a run that resumes; another run takes the weights alone."""
    checkpoint, path = start.checkpoint, start.path
    if not start.resume:
        start.say(f'weights of {path}' + ', with a fresh optimizer' * (not reads_only(config)))
        return
    refuse_changes(path, checkpoint['data'], meta, data_keys,
                   'give the data set of that run, or start anew from its weights (--init_from=FILE, another --out_dir)')
    refuse_changes(path, checkpoint['config'], config, ['seed', 'global_batch_size', 'optimizer'])
    start.iter, start.best = checkpoint['iter'], checkpoint[best]
    if start.iter > total_iters:
        fail(f'{path} is at iteration {start.iter}, past the {total_iters} of this run: raise max_iters'
             + ' or epochs' * ('epochs' in config))
    start.say(f'{path}: iteration {start.iter}')
    changed = [f'{key} {checkpoint["config"][key]} -> {config[key]}' for key in config
               if checkpoint['config'].get(key, config[key]) != config[key] and key not in (
                   'init_from', 'out_dir', 'overwrite', 'eval_only', 'eval_split', 'predict')]
    if changed:  # config.json will hold the new values
        start.say('not as in the checkpoint: ' + ', '.join(changed))


def refuse_changes(path, then, now, keys, remedy='give the config of that run'):
    """Ends with one sentence where a key of the checkpoint at path has another value now."""
    changed = [f'{key}={then.get(key)}, now it is {now.get(key)}' for key in keys if then.get(key) != now.get(key)]
    if changed:
        fail(f'{path} was made with {"; ".join(changed)}: {remedy}')


def make_network(network, config, args, start, env):
    """network(config(**args)) on the device, with the weights of start where it has a checkpoint."""
    try:
        model = normfree.build(network, config, args).to(env.device)
    except (RuntimeError, MemoryError) as e:  # what torch says when memory is short, and when a size overflows
        size = ', '.join(f'{k}={args[k]}' for k in ('n_layer', 'n_embd', 'vocab_size') if k in args)
        fail(f'a model of {size} does not fit into memory ({first_line(e)})', any_rank=True)
    if start.checkpoint:
        try:
            model.load_state_dict(start.checkpoint['model'])
        except RuntimeError as e:
            fail(f'{start.path} does not hold the weights of this model ({" ".join(str(e).split())[:200]}): use another '
                 'file')
    return model


def load_optimizer(opt, start, env):
    """The state of the optimizer, where a run resumes; its numbers (rates, decay) are those of the config."""
    if start.iter:
        flags = [{k: v for k, v in group.items() if k != 'params'} for group in opt.param_groups]
        try:
            opt.load_state_dict(start.checkpoint['optimizer'])
        except (KeyError, ValueError):
            fail('the checkpoint has its optimizer state in other groups: give the embed_optimizer of that run, and an '
                 'embed_lr of 0 only if its was')
        for group, values in zip(opt.param_groups, flags):
            group.update(values)
    start.checkpoint = None  # frees its memory
    total, squares = all_sum([start.iter, start.iter**2], env)
    if squares * env.world_size != total**2:
        fail('the processes found different checkpoints: out_dir must lie on a disk that all machines share')


def load_gpt2(folder):
    """
    GPT-2 weights in a local Hugging Face folder (config.json, model.safetensors) as a checkpoint: setting S1, LayerNorm,
    bias, tied head. Their matrices are stored (in, out), and their GELU is the tanh approximation, ours is exact.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
            hf = json.load(f)
        tensors = load_file(os.path.join(folder, 'model.safetensors'))
        args = dict(n_layer=hf['n_layer'], n_head=hf['n_head'], n_embd=hf['n_embd'], block_size=hf['n_positions'],
                    vocab_size=hf['vocab_size'], norm='layer', bias=True, tied=True, **SETTINGS['S1'])
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        fail(f'{folder} is not a GPT-2 folder with config.json and model.safetensors ({type(e).__name__}: {e})')
    names = {'wte': 'wte', 'wpe': 'wpe', 'ln_f': 'final_norm'}
    for i in range(args['n_layer']):
        names |= {f'h.{i}.{theirs}': f'blocks.{i}.{ours}' for theirs, ours in (
            ('ln_1', 'pre_norm'), ('attn.c_attn', 'attn.c_attn'), ('attn.c_proj', 'attn.c_proj'), ('ln_2', 'ffn_pre_norm'),
            ('mlp.c_fc', 'ffn.c_fc'), ('mlp.c_proj', 'ffn.c_proj'))}
    model = {}
    for key, tensor in tensors.items():
        theirs, _, kind = key.removeprefix('transformer.').rpartition('.')
        if theirs in names:  # the rest are the head, which is tied, and causal masks
            transpose = kind == 'weight' and '.c_' in theirs
            model[f'{names[theirs]}.{kind}'] = tensor.t().contiguous() if transpose else tensor
    model['lm_head.weight'] = model.get('wte.weight')
    missing = {f'{n}.weight' for n in names.values()} - set(model)
    if missing:
        fail(f'{folder}/model.safetensors lacks {min(missing)}: it is not a whole GPT-2')
    return {'model': model, 'model_args': args, 'data': {'tokenizer': 'gpt2'}}
