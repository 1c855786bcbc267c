"""
What both train scripts need and neither explains: processes and device, schedule, parameter groups, checkpoints, log.
Plain functions: the two loops stay in the scripts.
"""

import atexit
import ctypes
import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.utils._triton import has_triton

from configurator import fail
from model import NORMS, SETTINGS
from sgdw import SGDW

# -----------------------------------------------------------------------------
# processes, device, precision

def start(device, dtype, compile, seed, deterministic):
    """
    Join the other processes (under torchrun) and settle device, precision and compile; 'auto' picks. Returns a
    namespace: rank, world_size, master, device, device_type, dtype (a name), autocast (a context), compile (a bool).
    """
    rank, world_size, local_rank = (int(os.environ.get(k, d)) for k, d in
                                    (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    device, dtype = str(device), str(dtype)
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if not re.fullmatch(r'cpu|mps|cuda(:\d+)?', device):
        fail(f'device={device} is unknown: use auto, cpu, cuda, cuda:N or mps')
    device_type = device.split(':')[0]
    if device_type == 'cuda':
        if not torch.cuda.is_available():
            fail(f'device={device}, but torch {torch.__version__} finds no CUDA GPU here: use --device=auto')
        if device == 'cuda' or world_size > 1:
            device = f'cuda:{local_rank}'
        count = torch.cuda.device_count()
        if int(device.split(':')[1]) >= count:
            fail(f'device={device}, but this machine has {count} GPUs: start at most so many processes', any_rank=True)
        torch.cuda.set_device(device)
    elif device_type == 'mps' and (world_size > 1 or not torch.backends.mps.is_available()):
        fail('device=mps needs a Mac with Metal and a single process: use --device=auto, without torchrun')

    if device_type == 'cuda':
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # on a Mac fp32 is the safe choice; --dtype=bfloat16 is there to try
        bf16 = device_type == 'cpu' and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if dtype == 'auto':
        dtype = 'bfloat16' if bf16 else 'float32'
    if dtype not in ('float32', 'bfloat16'):
        fail(f'dtype={dtype} is not one of auto, float32, bfloat16 (float16 is left out on purpose)')
    if dtype == 'bfloat16' and device_type == 'cuda' and not bf16:
        fail(f'dtype=bfloat16, but {torch.cuda.get_device_name()} has no bfloat16: use --dtype=float32', any_rank=True)
    if compile not in ('auto', True, False):
        fail(f'compile={compile} is not one of auto, True, False')
    if compile == 'auto':
        compile = device_type == 'cuda' and has_triton()
        if rank == 0 and device_type == 'cuda' and not compile:
            print('compile is off: Triton is missing or does not support this GPU', flush=True)

    if device_type == 'cpu' and sys.platform == 'linux':
        # glibc gives the memory of large tensors back to the kernel, which clears it again for the next step: a seventh
        # of a step at 124M. M_MMAP_MAX (-4) and M_TRIM_THRESHOLD (-1, malloc.h) make it keep what it has
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):  # musl has none
            libc.mallopt(-4, 0)  # no tensor gets a mapping of its own
            libc.mallopt(-1, -1)  # and the heap never shrinks
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision('high')  # what stays in fp32 uses tf32 on GPUs that have it
    torch.manual_seed(seed)
    if world_size > 1:
        # an hour: nobody dies waiting for a long evaluation or a slow disk
        dist.init_process_group('nccl' if device_type == 'cuda' else 'gloo', timeout=timedelta(hours=1),
                                device_id=torch.device(device) if device_type == 'cuda' else None)
    autocast = torch.autocast(device_type, torch.bfloat16) if dtype == 'bfloat16' else nullcontext()
    return SimpleNamespace(rank=rank, world_size=world_size, master=rank == 0, device=device,
                           device_type=device_type, dtype=dtype, autocast=autocast, compile=compile)


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
    check_share(config, 'dropout', 'momentum', 'beta1', 'beta2')
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
    """'S5', or 'S5 with mid_norm=False' where a flag overrides its row."""
    other = [f'{key}={on}' for key, on in norms.items() if on != SETTINGS[setting][key]]
    return setting + (f' with {", ".join(other)}' if other else '')


def data_folder(dataset):
    """Where a data set was prepared: data/NAME or the folder of that path, of which the raw texts or pictures may be another."""
    folders = [os.path.join('data', dataset), dataset]
    if os.path.dirname(dataset):  # a path comes before a name
        folders.reverse()
    for folder in folders:
        if any(os.path.exists(os.path.join(folder, file)) for file in ('meta.json', 'train.bin')):
            return folder
    return dataset if os.path.isdir(dataset) else folders[0]


def catch_signals():
    """A list that SIGINT (Ctrl-C) and SIGTERM append their number to, instead of ending the process."""
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: caught.append(n))
    return caught


def all_sum(values, env):
    """A list of numbers summed over all processes."""
    if env.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=env.device)
    dist.all_reduce(total)
    return total.tolist()


def on_master(action, env):
    """What action() returns on rank 0, None elsewhere; where it ends the program there, all processes leave."""
    result = ended = None
    if env.master:
        try:
            result = action()
        except SystemExit as e:
            ended = e
    if all_sum([ended is not None], env)[0]:
        raise ended or SystemExit(1)
    return result


def leave(code, env):
    if env.world_size > 1:
        dist.barrier()  # nobody goes while rank 0 still writes: torchrun would end it
        dist.destroy_process_group()
        # DDP still holds the group, and a thread of gloo's that lets go of a tensor while Python takes itself down aborts
        # the process (pytorch#190489): so what is registered to run at exit runs, and Python is not taken down
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def same_everywhere(start_iter, out_dir, env):
    """Ends with one sentence where the processes do not start at one iteration."""
    total, squares = all_sum([start_iter, start_iter**2], env)
    if squares * env.world_size != total**2:
        fail(f'the processes found different checkpoints in {out_dir}: it must lie on a disk that all machines share')


def first_line(e):
    return (str(e).splitlines() or [type(e).__name__])[0][:200]


def explain(e, too_large):
    """What went wrong in the first forward and backward pass, in a sentence, where it is the compiler or memory."""
    if type(e).__module__.startswith('torch._'):  # dynamo's and inductor's
        fail(f'torch.compile fails here ({first_line(e)}): use --compile=False', any_rank=True)
    if isinstance(e, torch.OutOfMemoryError) or 'allocate' in str(e):
        fail(too_large, any_rank=True)
    raise e


def stop_if_not_finite(what, numbers, iter_num, lr, saved_iter, out_dir):
    """Ends with one sentence where a number is not finite. All processes have the same numbers, so all stop."""
    if not all(map(math.isfinite, numbers)):
        good = f'that of iteration {saved_iter} in {out_dir}' if saved_iter else 'none'
        fail(f'iteration {iter_num}: {what} at learning rate {lr:.3g}, so no step was made. The last good checkpoint is '
             f'{good}. Try a lower learning_rate, a longer warmup, grad_clip=1.0 or --flash=False')


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

# -----------------------------------------------------------------------------
# schedule and optimizer

def lr_at(iter_num, learning_rate, min_lr, warmup_iters, max_iters):
    """nanoGPT's schedule: linear warmup, then a cosine from the peak at warmup_iters to min_lr at max_iters."""
    if iter_num < warmup_iters:
        return learning_rate * (iter_num + 1) / (warmup_iters + 1)
    progress = min(1.0, (iter_num - warmup_iters) / max(1, max_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (learning_rate - min_lr)


# top-level modules and tensors that embed_lr is for: tables by token, patch and position. an untied head is one more
# table by token; the head of a ViT, one row for each class, is none
EMBEDDINGS = ('wte', 'wpe', 'lm_head', 'patch_embed', 'cls_token', 'pos_embed')


def param_groups(model, weight_decay, embed_scale=0.0):
    """
    Two groups that hold every trainable tensor once: matrices and embeddings decay; biases, gains and what
    model.no_weight_decay() names do not. With an embed_scale the embeddings are two more groups of this kind. The loop
    sets a group's rate to lr_scale times that of the schedule.
    """
    exempt = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    groups = {(embed, decays): {'params': [], 'weight_decay': weight_decay if decays else 0.0,
                                'lr_scale': embed_scale if embed else 1.0}
              for embed in ((False, True) if embed_scale else (False,)) for decays in (True, False)}
    for n, p in model.named_parameters():  # a tied tensor comes once
        if p.requires_grad:
            embed = embed_scale > 0 and n.split('.')[0] in EMBEDDINGS
            groups[embed, p.dim() >= 2 and n not in exempt]['params'].append(p)
    return list(groups.values())


class Hybrid:
    """Two optimizers, each with parameters of its own, used as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self):
        return [group for opt in self.optimizers for group in opt.param_groups]

    def step(self):
        for opt in self.optimizers:
            opt.step()

    def zero_grad(self, set_to_none=True):
        for opt in self.optimizers:
            opt.zero_grad(set_to_none)

    def state_dict(self):
        return {'optimizers': [opt.state_dict() for opt in self.optimizers]}

    def load_state_dict(self, state):
        for opt, of_one in zip(self.optimizers, state['optimizers'], strict=True):
            opt.load_state_dict(of_one)


def make_optimizer(model, optimizer, learning_rate, weight_decay, momentum, beta1, beta2, embed_lr=0.0,
                   embed_optimizer='auto', compile=False):
    """
    'sgdw' (the paper's mSGDW), 'adamw', or 'sgd': torch's, whose weight decay is coupled. embed_lr is the peak rate of
    the embeddings, 0: learning_rate. embed_optimizer='adamw' gives them AdamW whatever the rest has, 'auto' the same.
    compile: the step of 'sgdw' as one compiled pass.
    """
    hybrid = embed_optimizer == 'adamw' != optimizer
    if embed_optimizer not in ('auto', 'adamw'):
        fail(f'embed_optimizer={embed_optimizer} is unknown: use auto (as optimizer) or adamw')
    if hybrid and not embed_lr:
        fail(f'embed_optimizer=adamw needs an embed_lr: {learning_rate:g}, a rate for {optimizer}, is none for adamw')
    if embed_lr and not learning_rate:
        fail(f'embed_lr={embed_lr:g} follows the schedule of learning_rate, which is 0: give it a rate')
    groups = param_groups(model, weight_decay, embed_lr / learning_rate if embed_lr else 0.0)
    if embed_lr and not any(group['params'] for group in groups[2:]):
        fail(f'embed_lr={embed_lr:g}, but this network has no embeddings: leave it at 0')
    numbers = learning_rate, momentum, beta1, beta2, compile
    if hybrid:
        return Hybrid(one_optimizer(groups[:2], optimizer, *numbers), one_optimizer(groups[2:], 'adamw', *numbers))
    return one_optimizer(groups, optimizer, *numbers)


def one_optimizer(groups, optimizer, learning_rate, momentum, beta1, beta2, compile):
    if optimizer == 'sgdw':
        return SGDW(groups, lr=learning_rate, momentum=momentum, compile=compile)
    if optimizer == 'adamw':
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)
    if optimizer == 'sgd':
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    fail(f'optimizer={optimizer} is unknown: use sgdw, adamw or sgd')


def state_size(opt):
    """How many numbers an optimizer keeps: AdamW two moments a weight, the others a momentum."""
    return sum(p.numel() * (2 if 'betas' in group else group['momentum'] > 0)
               for group in opt.param_groups for p in group['params'])


def gradient_units(model):
    """
    Every trainable tensor with the shape (units, weights of a unit) for clip_units(): a row of a matrix, a filter, a
    position; a bias or gain is one unit, the stacked bias of q, k and v three. The head is left out, as in NFNets, and
    with it a tied embedding.
    """
    head = {id(p) for p in (model.lm_head if hasattr(model, 'lm_head') else model.head).parameters()}
    units = []
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in head:
            rows = 3 if name.endswith('c_attn.bias') else 1 if p.dim() < 2 else p[..., 0].numel() if p.dim() == 3 else len(p)
            units.append((p, (rows, p.numel() // rows)))
    return units


@torch.no_grad()
def clip_units(units, limit, eps=1e-3):
    """
    Adaptive gradient clipping (equation 3 of the second report; Brock et al., arXiv:2102.06171, section 4): scales the
    gradient g of each unit w to norm limit * max(|w|, eps) where it is larger. Returns the share of units that were
    clipped, a tensor on the device: nothing here waits for it.
    """
    units = [(p, shape) for p, shape in units if p.grad is not None]
    grads = [p.grad.view(shape) for p, shape in units]
    most = [torch.linalg.vector_norm(p.view(shape), dim=1, keepdim=True) for p, shape in units]
    norms = [torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads]
    torch._foreach_clamp_min_(most, eps)
    torch._foreach_mul_(most, limit)
    torch._foreach_div_(most, norms)  # inf where the gradient is 0
    torch._foreach_clamp_max_(most, 1.0)
    torch._foreach_mul_(grads, most)
    return (torch.cat(most) < 1).float().mean()


def load_optimizer(opt, state):
    """The momentum is the checkpoint's, the numbers (rates, decay) are those of the config."""
    flags = [{k: v for k, v in group.items() if k != 'params'} for group in opt.param_groups]
    try:
        opt.load_state_dict(state)
    except (KeyError, ValueError):
        fail('the checkpoint has its optimizer state in other groups: give the embed_optimizer of that run, and an '
             'embed_lr of 0 only if its was')
    for group, values in zip(opt.param_groups, flags):
        group.update(values)

# -----------------------------------------------------------------------------
# speed

# dense bf16 peaks in TFLOP/s from the makers' data sheets (not the sparse figures, which are twice as high)
PEAK_TFLOPS = (('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H200 NVL', 835), ('H200', 989),
               ('H800 PCIe', 756), ('H800', 989), ('GH200', 989), ('B200', 2250), ('A100', 312), ('A800', 312),
               ('L40S', 362), ('L4', 121), ('RTX 4090 D', 147), ('RTX 4090', 165), ('RTX 3090', 71))


def peak_flops(device_type):
    """Dense bf16 peak of this GPU in FLOP/s, None where it is not known: then no MFU is shown."""
    name = torch.cuda.get_device_name() if device_type == 'cuda' else ''
    for gpu, tflops in PEAK_TFLOPS:
        if re.search(rf'\b{gpu}\b', name):  # whole words: 'L4' is not the L40S
            return tflops * 1e12
    return None


def duration(seconds):
    """3725.0 -> '1h02m'"""
    m, s = divmod(int(seconds), 60)
    h, m = divmod(m, 60)
    return f'{h}h{m:02d}m' if h else f'{m}m{s:02d}s' if m else f'{s}s'

# -----------------------------------------------------------------------------
# out_dir: config.json, log.jsonl, checkpoints. nothing is ever half written: write beside it, then rename

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


def open_out_dir(out_dir, config, env, start_iter, overwrite, resume):
    """
    Make out_dir, clear what is to be overwritten, write config.json, and cut the log where the run starts. Returns the
    function that appends a row to log.jsonl, and whether the log has the evaluation of start_iter already.
    """
    path = os.path.join(out_dir, 'log.jsonl')
    try:
        os.makedirs(out_dir, exist_ok=True)
        for f in our_files(out_dir) if overwrite and not resume else ():
            os.remove(os.path.join(out_dir, f))
    except OSError as e:
        fail(f'cannot use out_dir={out_dir}: {e.strerror}')
    try:
        git = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10,
                             cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        git = ''
    gpu = torch.cuda.get_device_name() if env.device_type == 'cuda' else ''
    replace_text(os.path.join(out_dir, 'config.json'), json.dumps(
        {**config, 'torch': torch.__version__, 'git': git, 'gpu': gpu, 'world_size': env.world_size}, indent=2))
    # what lies past the checkpoint comes again; a line that a kill cut short goes too
    kept, evaluated = [], False
    for line in (open(path, encoding='utf-8', errors='replace') if os.path.exists(path) else ()):
        try:
            row = json.loads(line)
            at_start = row['split'] == 'val' and row['iter'] == start_iter
            if row['iter'] < start_iter or at_start:
                kept.append(line.rstrip('\n') + '\n')
                evaluated |= at_start
        except (ValueError, KeyError, TypeError):
            continue
    replace_text(path, ''.join(kept))

    def log(row):
        try:
            with open(path, 'a', encoding='utf-8') as f:
                f.write(json.dumps(row) + '\n')
        except OSError as e:
            fail(f'cannot write {path} ({e.strerror}): mend that, then --init_from=resume')
    return log, evaluated


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


def save_checkpoint(path, checkpoint):
    """A plain dict of tensors and Python values, which torch.load(weights_only=True) opens."""
    replace_file(path, lambda tmp: torch.save(checkpoint, tmp))


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


OTHER_DATA = 'give the data set of that run, or start anew from its weights (--init_from=FILE, another --out_dir)'


def refuse_changes(path, then, now, keys, mend='give the config of that run'):
    """Ends with one sentence where a key of the checkpoint at path has another value now."""
    changed = [f'{key}={then.get(key)}, now it is {now.get(key)}' for key in keys if then.get(key) != now.get(key)]
    if changed:
        fail(f'{path} was made with {"; ".join(changed)}: {mend}')


def tell_changes(then, now, say):
    """A run that goes on with other numbers says so: config.json will hold the new ones."""
    changed = [f'{key} {then[key]} -> {now[key]}' for key in now if key in then and then[key] != now[key] and key not in (
        'init_from', 'out_dir', 'overwrite', 'eval_only', 'eval_split', 'predict')]
    if changed:
        say('not as in the checkpoint: ' + ', '.join(changed))


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
