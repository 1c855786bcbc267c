"""
out_dir: config.json, log.jsonl and the checkpoints of a run, and the rules by which a run begins from a
checkpoint. Nothing is ever half written: we write beside a file, then rename.
"""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import asdict
from types import SimpleNamespace

import torch

from configurator import replaced, stated
from model import NORMS
from support import normfree, pretrained
from support.checks import resolve_norms, warn_of_warmup
from support.console import fail
from support.distributed import all_sum, first_line, leave, on_master

# -----------------------------------------------------------------------------
# files

def replace_file(path, write):
    """write(temporary path), flush to disk, rename to path. A failure leaves what was at path untouched."""
    tmp = f'{path}.tmp'
    try:
        write(tmp)
        with open(tmp, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch.save raises RuntimeError when the disk is full
        if os.path.exists(tmp):
            os.remove(tmp)
        fail(cannot_write(path, e) + f' The last good one, {path}, is untouched.' * os.path.exists(path))


def cannot_write(path, e):
    why = getattr(e, 'strerror', None) or first_line(e)
    folder = os.path.dirname(path) or '.'
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < 2**20 or 'file write failed' in why:
        why = 'No space left on device'
    return f'Cannot write {path} ({why}). Free some space, then resume with --init_from=resume.'


def replace_text(path, text):
    def write(tmp):
        with open(tmp, 'w', encoding='utf-8') as f:
            f.write(text)
    replace_file(path, write)


def our_files(out_dir):
    """The files of a run in out_dir, the log last."""
    files = os.listdir(out_dir) if os.path.isdir(out_dir) else []
    return sorted(f for f in files if re.fullmatch(r'config\.json|log\.jsonl|(best|ckpt|ckpt_\d+)\.pt', f))


def latest_checkpoint(out_dir):
    """Path of ckpt.pt, or of the last kept one where that is gone, or None."""
    found = [f for f in our_files(out_dir) if f.startswith('ckpt')]  # ckpt.pt is first, the kept ones follow
    return os.path.join(out_dir, 'ckpt.pt' if 'ckpt.pt' in found else found[-1]) if found else None


def find_checkpoint(path):
    """
    The checkpoint file of a path. For the folder of a run this is best.pt, or ckpt.pt where it has none. Any
    other path stays as it is.
    """
    best = os.path.join(path, 'best.pt')
    return best if os.path.exists(best) else latest_checkpoint(path) or path


def load_checkpoint(path: str) -> dict:
    """
    The dict of a checkpoint file, on the CPU, not read before it is used. A folder or a safetensors file
    holds weights that other projects made. Ends with one sentence where it is none of these.
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

# -----------------------------------------------------------------------------
# a run that writes

class Run:
    """
    The out_dir of this run, opened on every rank: config.json is written, what is to be overwritten is gone,
    and the log is cut where the run starts. evaluated: the log already has the evaluation of start_iter.
    saved_iter: the iteration of the last good checkpoint, 0 where there is none.
    """

    def __init__(self, config, env, start_iter, signals):
        self.out_dir, self.env, self.signals = config['out_dir'], env, signals
        self.start_iter = self.saved_iter = start_iter
        self.path = os.path.join(self.out_dir, 'log.jsonl')
        evaluated = on_master(lambda: self.open(config), env)
        self.evaluated = all_sum([int(evaluated or 0)], env)[0] > 0
        env.saves = True  # from here on, a signal to stop saves first

    def open(self, config):
        try:
            os.makedirs(self.out_dir, exist_ok=True)
            if config['overwrite'] and config['init_from'] != 'resume':
                for f in our_files(self.out_dir):
                    os.remove(os.path.join(self.out_dir, f))
        except OSError as e:
            fail(f'Cannot use out_dir={self.out_dir} ({e.strerror}).')
        gpu = torch.cuda.get_device_name() if self.env.device_type == 'cuda' else ''
        about = {'torch': torch.__version__, 'git': git_commit(), 'gpu': gpu,
                 'world_size': self.env.world_size}
        replace_text(os.path.join(self.out_dir, 'config.json'), json.dumps({**config, **about}, indent=2))
        # rows past the checkpoint will come again; a line that a kill cut short goes too
        kept, evaluated = [], False
        for line in open(self.path, encoding='utf-8', errors='replace') if os.path.exists(self.path) else ():
            try:
                row = json.loads(line)
                at_start = row['split'] == 'val' and row['iter'] == self.start_iter
                if row['iter'] < self.start_iter or at_start:
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
                fail(cannot_write(self.path, e))

    def save(self, names, **state):
        """
        Write a plain dict of tensors and Python values, which torch.load(weights_only=True) opens, under each
        name. It is written once; the other names are links to it, or copies where the file system has no
        links.
        """
        first = os.path.join(self.out_dir, names[0])

        def link(tmp):
            try:
                os.link(first, tmp)
            except OSError:
                shutil.copyfile(first, tmp)

        def write():
            replace_file(first, lambda tmp: torch.save(state, tmp))
            for name in names[1:]:
                path = os.path.join(self.out_dir, name)
                if os.path.exists(f'{path}.tmp'):  # of a run that was killed
                    os.remove(f'{path}.tmp')
                replace_file(path, link)

        on_master(write, self.env)
        if 'ckpt.pt' in names:
            self.saved_iter = state['iter']

    def stop_if_not_finite(self, iter_num, lr, **numbers):
        """
        End with one sentence where a number is not finite. All processes have the same numbers, so all stop.
        """
        if not all(map(math.isfinite, numbers.values())):
            what = ', '.join(f'{name.replace("_", " ")} {value}' for name, value in numbers.items())
            good = f'The last good checkpoint is that of iteration {self.saved_iter} in {self.out_dir}.' \
                if self.saved_iter else 'No checkpoint was saved.'
            fail(f'iteration {iter_num}: {what} at learning rate {lr:.3g}, so no step was made. {good} Try a '
                 'lower learning_rate, a longer warmup, grad_clip=1.0 or --flash=False.')

    def leave_stopped(self, iter_num):
        """Say what a run that a signal stopped has saved, and leave."""
        if iter_num > self.start_iter:
            saved = (f'{self.out_dir}/ckpt.pt is saved. '
                     'Run the same command with --init_from=resume to continue.')
        elif self.start_iter:
            saved = (f'No update was made, and {self.out_dir}/ckpt.pt is as it was. Run the '
                     'same command with --init_from=resume to continue.')
        else:
            saved = 'No update was made, so nothing was saved.'
        self.env.say(f'Stopped by a signal at iteration {iter_num}. {saved}')
        leave(128 + (self.signals or [15])[0], self.env)


def git_commit():
    try:
        return subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10,
                              cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''

# -----------------------------------------------------------------------------
# where a run begins

def begin(config: dict, env) -> SimpleNamespace:
    """
    Where this run begins: path and checkpoint (a dict; None from scratch) that init_from names, resume
    (whether it continues that run), iter, best (its best metric) and say. The weights are not loaded yet.

    The network comes from the checkpoint: config gets its values. What the command line states must agree
    with them; where a run resumes, what a config file states must agree too.
    """
    out_dir, init_from, only_reads = config['out_dir'], config['init_from'], reads_only(config)
    refuse_to_overwrite(out_dir, init_from, config['overwrite'], only_reads)
    if 'warmup_iters' in config and not only_reads:  # that of pictures depends on the data set
        warn_of_warmup(config['warmup_iters'], config['max_iters'], replaced.get('max_iters', 0), env)
    path = None
    if init_from == 'resume':
        path = latest_checkpoint(out_dir)
        if not path:
            env.say(f'{out_dir} has no checkpoint yet, so the run starts at iteration 0. If you expected '
                    'one, check --out_dir.')
            if not only_reads:  # with the weights that the config file names, if it does
                init_from = replaced.get('init_from', 'resume')
    if init_from not in ('scratch', 'resume'):  # rank 0 downloads, the others find it in the cache
        on_master(lambda: pretrained.find_weights(init_from), env)
        path = find_checkpoint(pretrained.find_weights(init_from))
    if only_reads and not path:
        fail(f'{"eval_only" if config["eval_only"] else "predict"} needs weights. Use '
             '--init_from=FILE_OR_FOLDER, or --init_from=resume where out_dir has a checkpoint.')
    checkpoint = path and load_checkpoint(path)
    resume = init_from == 'resume' and bool(path) and not only_reads
    kind, script = ('classes', 'train_vit.py') if 'arch' in config else ('tokenizer', 'train_gpt.py')
    if checkpoint and kind not in checkpoint['data']:
        fail(f'{path} is not a checkpoint of {script}. Use another file.')
    if checkpoint:
        take_network(config, checkpoint, path, resume)
    return SimpleNamespace(path=path, checkpoint=checkpoint, resume=resume, say=env.say, iter=0, best=None)


def reads_only(config):
    return config['eval_only'] or bool(config.get('predict'))


def refuse_to_overwrite(out_dir, init_from, overwrite, only_reads):
    if our_files(out_dir) and init_from != 'resume' and not overwrite and not only_reads:
        fail(f'{out_dir} has a run already. Continue it with --init_from=resume, replace it with '
             '--overwrite=True, or choose another --out_dir.')
    if overwrite and os.path.abspath(out_dir) in (os.path.abspath(init_from),
                                                  os.path.dirname(os.path.abspath(init_from))):
        fail(f'{init_from} is in the out_dir that would be overwritten. Choose another --out_dir.')


# what may differ between a checkpoint and the network that takes its weights
FREE = {'dropout', 'drop_path', 'flash', 'init', 'loss_chunk', 'recompute_blocks'}


def take_network(config, checkpoint, path, resume):
    """Set the keys of config that describe the network, but for stated ones, to those of the checkpoint."""
    args, then = checkpoint['model_args'], checkpoint.get('config', {})
    network = {'arch': then.get('arch', 'vit')} | args
    network = {k: v for k, v in network.items() if k in config and k not in FREE}
    if resume:  # continue_run compares what is stated
        named = stated.union(NORMS if 'setting' in stated else ())
        config.update((k, then[k]) for k in ['setting', *network] if k in then and k not in named)
        return
    if 'setting' in replaced and 'pre_norm' in args:  # NFNet has no setting
        norms = resolve_norms(config)
        if any(norms[k] != args[k] for k in norms):
            fail(f'{path} was trained with setting={then.get("setting")}, not {config["setting"]}. Leave '
                 '--setting out.')
    if 'image_size' in replaced:  # the positions of a ViT are interpolated
        network.pop('image_size', None)
    length = network.pop('block_size', None)
    if length:  # a shorter context is fine: the last positions are dropped
        if 'block_size' in replaced and config['block_size'] > length:
            fail(f'{path} was trained with block_size={length}. Use --block_size={length} or less.')
        config['block_size'] = min(config['block_size'], length)
    refuse_changes(path, network, config, [k for k in network if k in replaced and config[k] != 'auto'],
                   'Leave out the keys that differ.')
    config.update(network)
    config['setting'] = config['setting'] if 'setting' in replaced else then.get('setting', 'S1')


def continue_gpt(start, network, config, model_args, data):
    """
    Check the checkpoint of start against this run, say what changes, and choose vocabulary and positions.
    """
    checkpoint, path, meta = start.checkpoint, start.path, data.meta
    known = checkpoint['model_args'].get('vocab_size', 0) if checkpoint else -(-meta['vocab_size'] // 64) * 64
    model_args['vocab_size'] = config['vocab_size'] or max(known, meta['vocab_size'])
    if model_args['vocab_size'] < meta['vocab_size']:
        fail(f'vocab_size={model_args["vocab_size"]} is less than the {meta["vocab_size"]} of the data set. '
             'Leave vocab_size at 0, or use another checkpoint or data set.')
    data.vocab_size = model_args['vocab_size']
    if not checkpoint:
        return
    refuse_changes(path, checkpoint['data'], meta, ['tokenizer'])
    continue_run(start, network, config, model_args, meta, ['train_tokens', 'val_tokens', 'vocab_size'],
                 config['max_iters'], 'best_val_loss')
    positions = checkpoint['model'].get('wpe.weight')
    if positions is not None:
        checkpoint['model']['wpe.weight'] = positions[:config['block_size']]


def continue_vit(start, network, config, model_args, meta, total_iters):
    """Check the checkpoint of start against this run, say what changes, fit head, positions and pixels."""
    checkpoint, path = start.checkpoint, start.path
    if not checkpoint:
        return
    refuse_changes(path, checkpoint['config'], config, ['arch'])
    then, now, fixed = checkpoint['data']['classes'], meta['classes'], start.resume or reads_only(config)
    if fixed and not then:
        fail(f'{path} has no head, so it knows no classes. Fine-tune it on a data set first.')
    if then not in (now, pretrained.unnamed_classes(len(now))):
        for i, (a, b) in enumerate(zip(then, now)):
            if a != b and fixed:
                fail(f'{path} was trained on other classes: its class {i} is {a!r}, that of the data set is '
                     f'{b!r}.')
        if not fixed:
            start.say(f'{path} has a head for {len(then)} classes, the data set has {len(now)} others: the '
                      'head starts again at zero')
            pretrained.fresh_head(checkpoint, len(now))
    if not start.resume and 'pos_embed' in checkpoint['model']:
        model, args, patch = checkpoint['model'], checkpoint['model_args'], config['patch_size']
        old, new = args['image_size'] // patch, config['image_size'] // patch
        if old != new:
            start.say(f'the positions of {path} are interpolated from {old} x {old} to {new} x {new} patches')
            model['pos_embed'] = pretrained.resize_positions(model['pos_embed'], new)
        args['image_size'] = config['image_size']
        if any(checkpoint['data'][k] != meta[k] for k in ('mean', 'std')):
            pretrained.take_pixels(model, checkpoint['data'], meta)
    data_keys = ['layout', 'train_images', 'val_images', 'mean', 'std', 'val_from_train', 'seed']
    continue_run(start, network, config, model_args, meta, data_keys, total_iters, 'best_top1')


def continue_run(start, network, config, model_args, meta, data_keys, total_iters, best):
    """Set iter and best of a run that resumes. Any other run takes the weights alone."""
    checkpoint, path = start.checkpoint, start.path
    # fields that are no keys (gelu, norm_eps) come with the weights
    model_args |= {k: v for k, v in checkpoint['model_args'].items() if k not in model_args}
    same = [k for k in model_args if k not in FREE]
    defaults = asdict(network()) | {'weight_standardization': 'none', 'weight_gain': True}
    refuse_changes(path, defaults | checkpoint['model_args'], model_args, same)
    if not start.resume:
        start.say(f'The weights come from {path}.' + ' The optimizer is new.' * (not reads_only(config)))
        return
    remedy = ('Use the data set of the original run, or start a new run from its weights with '
              '--init_from=FILE and another --out_dir.')
    if {'content'} <= checkpoint['data'].keys() & meta.keys():  # the same bytes may come from another path
        if checkpoint['data']['content'] != meta['content']:
            fail(f'{path} was trained on data that this data set does not have. {remedy}')
    else:
        refuse_changes(path, checkpoint['data'], meta, ['source', *data_keys], remedy)
    refuse_changes(path, checkpoint['config'], config, ['seed', 'global_batch_size', 'optimizer'])
    start.iter, start.best = checkpoint['iter'], checkpoint[best]
    if start.iter > total_iters:
        fail(f'{path} is at iteration {start.iter}, past the {total_iters} of this run. Raise max_iters'
             + ' or epochs' * ('epochs' in config) + '.')
    start.say(f'{path}: iteration {start.iter}')
    changed = [f'{key} {checkpoint["config"][key]} -> {config[key]}' for key in config
               if checkpoint['config'].get(key, config[key]) != config[key] and key not in (
                   'init_from', 'out_dir', 'overwrite', 'eval_only', 'eval_split', 'predict')]
    if changed:  # config.json will hold the new values
        start.say('Not as in the checkpoint: ' + ', '.join(changed) + '.')


def refuse_changes(path, then, now, keys, remedy='Use the values of the original run.'):
    """End with one sentence where a key of the checkpoint at path has another value now."""
    changed = [f'{k}={then.get(k)}, now it is {now.get(k)}' for k in keys if then.get(k) != now.get(k)]
    if changed:
        fail(f'{path} was made with {"; ".join(changed)}. {remedy}')


def make_network(network: type, config: type, args: dict, start, env) -> torch.nn.Module:
    """network(config(**args)) on the device, with the weights of start where it has a checkpoint."""
    try:
        model = normfree.build(network, config, args).to(env.device)
    except (RuntimeError, MemoryError) as e:  # torch raises these when memory is short or a size overflows
        size = ', '.join(f'{k}={args[k]}' for k in ('n_layer', 'n_embd', 'vocab_size') if k in args)
        fail(f'A model of {size} does not fit into memory ({first_line(e)}). Use a smaller one.',
             any_rank=True)
    if start.checkpoint:
        try:
            model.load_state_dict(start.checkpoint['model'])
        except RuntimeError as e:
            fail(f'{start.path} does not have the weights of this model ({" ".join(str(e).split())[:200]}). '
                 'Use another file.')
    return model


def load_optimizer(opt, start, env):
    """Load the optimizer's state where a run resumes. Rates and decay are those of the config."""
    if start.iter:
        flags = [{k: v for k, v in group.items() if k != 'params'} for group in opt.param_groups]
        try:
            opt.load_state_dict(start.checkpoint['optimizer'])
        except (KeyError, ValueError):
            fail('The checkpoint has its optimizer state in other groups. Use the embed_optimizer and '
                 'embed_lr of the original run.')
        for group, values in zip(opt.param_groups, flags):
            group.update(values)
    start.checkpoint = None  # frees its memory
    total, squares = all_sum([start.iter, start.iter**2], env)
    if squares * env.world_size != total**2:
        fail('The processes found different checkpoints. out_dir must be on a disk that all machines share.')
