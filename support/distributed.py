"""
Processes, device and precision: how a run starts, how its processes agree, and how they leave together.
"""

import atexit
import ctypes
import functools
import os
import re
import signal
import sys
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.utils._triton import has_triton

from configurator import fail


def start(device, dtype, compile, seed, deterministic):
    """
    Join the other processes (under torchrun) and settle device, precision and compile; 'auto' picks. Returns a
    namespace: rank, world_size, master, device, device_type, dtype (a name), autocast (a context), compile (a bool), say
    (print on rank 0).
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
    say = functools.partial(print, flush=True) if rank == 0 else lambda *args: None
    return SimpleNamespace(rank=rank, world_size=world_size, master=rank == 0, device=device, device_type=device_type,
                           dtype=dtype, autocast=autocast, compile=compile, say=say)


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


def agree(loss_sum, grad_norm, signals, env):
    """(mean loss over the processes, gradient norm, number of signals to stop), by one transfer from the device."""
    numbers = torch.stack((loss_sum, grad_norm.to(loss_sum.dtype)))
    if env.world_size == 1:
        return *numbers.tolist(), len(signals)
    numbers = torch.cat((numbers.double(), torch.tensor([len(signals)], dtype=torch.float64, device=env.device)))
    dist.all_reduce(numbers)
    loss, norm, stops = numbers.tolist()  # every process has the same norm: DDP has averaged the gradients
    return loss / env.world_size, norm / env.world_size, stops


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


def first_line(e):
    return (str(e).splitlines() or [type(e).__name__])[0][:200]


def explain(e, too_large):
    """What went wrong in the first forward and backward pass, in a sentence, where it is the compiler or memory."""
    if type(e).__module__.startswith('torch._'):  # dynamo's and inductor's
        fail(f'torch.compile fails here ({first_line(e)}): use --compile=False', any_rank=True)
    if isinstance(e, torch.OutOfMemoryError) or 'allocate' in str(e):
        fail(too_large, any_rank=True)
    raise e
