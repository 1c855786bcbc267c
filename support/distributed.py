"""
Processes, device and precision: how a run starts, how its processes agree, how signals stop it, and how all
processes leave together.
"""

import atexit
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from contextlib import nullcontext, suppress
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.utils._triton import has_triton

from support.console import fail, reason

TORCHRUN = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')


def start(device: str, compile: bool | str, seed: int, deterministic: bool) -> SimpleNamespace:
    """
    Join the other processes (under torchrun) and settle device and compile, where 'auto' chooses. Returns a
    namespace: rank, world_size, master (rank 0), device, device_type, compile (a bool), saves (whether a run
    has begun), say (print on rank 0). choose_dtype() says what its dtype and autocast are.
    """
    rank, world_size, local_rank = join_torchrun()
    if rank:  # one warning, not one for each process. torch.compile logs its own
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
    device = choose_device(str(device), world_size, local_rank)
    device_type = device.split(':')[0]
    if compile not in ('auto', True, False):
        fail(f'compile={compile} is unknown. Use auto, True or False.')
    if compile == 'auto':
        compile = device_type == 'cuda' and has_triton()
        if rank == 0 and device_type == 'cuda' and not compile:
            print('compile is off, because Triton is missing or does not support this GPU')

    if device_type == 'cpu' and sys.platform == 'linux':
        # glibc returns the memory of large tensors to the kernel, which clears it again for the next step: a
        # seventh of a step at 124M. M_MMAP_MAX (-4) and M_TRIM_THRESHOLD (-1, malloc.h) make it keep what it
        # has
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):  # musl has none
            libc.mallopt(-4, 0)  # no tensor gets a mapping of its own
            libc.mallopt(-1, -1)  # and the heap never shrinks
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision('high')  # what stays in fp32 uses tf32 on GPUs that have it
    torch.manual_seed(seed)
    if world_size > 1:
        # an hour: nobody dies waiting for a long evaluation or a slow disk
        dist.init_process_group('nccl' if device_type == 'cuda' else 'gloo', timeout=timedelta(hours=1),
                                device_id=torch.device(device) if device_type == 'cuda' else None)
    return SimpleNamespace(rank=rank, world_size=world_size, master=rank == 0, device=device,
                           device_type=device_type, compile=compile, saves=False,
                           say=print if rank == 0 else lambda *args: None)


def join_torchrun():
    """(rank, world_size, local_rank) as torchrun sets them, or those of a single process."""
    values = {name: os.environ.get(name) for name in TORCHRUN}
    if values['WORLD_SIZE'] in (None, '1') and values['RANK'] in (None, '0'):
        return 0, 1, 0
    missing = [name for name, value in values.items() if not value]
    if missing:
        fail(f'The environment has some variables of torchrun (WORLD_SIZE={values["WORLD_SIZE"]}), but not '
             f'{", ".join(missing)}. Start several processes with torchrun. For a single process, run "unset '
             'RANK LOCAL_RANK WORLD_SIZE" first.')
    return tuple(int(values[name]) for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'))


def choose_device(device, world_size, local_rank):
    if device == 'auto':
        device = 'cpu'
        if torch.cuda.is_available():
            device = 'cuda'
        elif torch.backends.mps.is_available():
            device = 'mps'
    if not re.fullmatch(r'cpu|mps|cuda(:\d+)?', device):
        fail(f'device={device} is unknown. Use auto, cpu, cuda, cuda:N or mps.')
    if device.startswith('cuda'):
        if not torch.cuda.is_available():
            fail(f'device={device}, but torch {torch.__version__} finds no CUDA GPU. Use --device=auto.')
        if device == 'cuda' or world_size > 1:
            device = f'cuda:{local_rank}'
        count = torch.cuda.device_count()
        if int(device.split(':')[1]) >= count:
            fail(f'device={device} does not exist (GPUs on this machine: {count}). Use --device=cuda, with '
                 'at most one process per GPU.', any_rank=True)
        torch.cuda.set_device(device)
    elif device == 'mps' and (world_size > 1 or not torch.backends.mps.is_available()):
        fail('device=mps requires a Mac with Metal and a single process. Use --device=auto without '
             'torchrun.')
    return device


def choose_dtype(dtype: str, device_type: str, n_embd: int) -> tuple:
    """
    (float32 or bfloat16, the context that computes in it). 'auto' is bfloat16 where the device has it in
    hardware, on a CPU from a width (n_embd) of 256 on.
    """
    if device_type == 'cuda':
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # on a Mac, fp32 is the safe choice; --dtype=bfloat16 is there to try. On a CPU, small matrices gain
        # less than the casts cost
        avx512, amx = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
        bf16 = device_type == 'cpu' and n_embd >= 256 and (avx512() or amx())
    if dtype == 'auto':
        dtype = 'bfloat16' if bf16 else 'float32'
    if dtype not in ('float32', 'bfloat16'):
        fail(f'dtype={dtype} is unknown. Use auto, float32 or bfloat16.')
    if dtype == 'bfloat16' and device_type == 'cuda' and not bf16:
        fail(f'dtype=bfloat16 is not supported on this GPU ({torch.cuda.get_device_name()}). '
             'Use --dtype=float32.', any_rank=True)
    autocast = torch.autocast(device_type, torch.bfloat16) if dtype == 'bfloat16' else nullcontext()
    return dtype, autocast

# -----------------------------------------------------------------------------
# signals

STOP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
STOPPING = 'Stopping after this micro batch. Press Ctrl-C again to quit without saving.'


def catch_signals(env) -> list[int]:
    """
    A list that gets the number of a SIGINT (Ctrl-C), SIGTERM or SIGHUP. The process says at once that it will
    stop; a second signal ends it without saving. While there is nothing to save (env.saves is False: the
    script reads data, compiles or only evaluates), the first signal ends it.

    A thread listens, because Python's own handlers wait until the main thread returns from C++, and a
    backward pass on a CPU can take minutes.
    """
    caught, (read, write) = [], os.pipe()
    under_torchrun, first = 'TORCHELASTIC_RUN_ID' in os.environ, 0.0

    def tell(line):
        if env.master:
            with suppress(OSError):  # nobody reads any more
                os.write(2, f'\n{line}\n'.encode())

    def listen():
        nonlocal first
        while True:
            number = os.read(read, 1)[0]
            if number not in STOP:  # SIGCHLD, which the DataLoader handles
                continue
            if env.saves and not caught:
                first = time.time()
                caught.append(number)
                tell(STOPPING)
            # Slurm sends a signal to all processes, and torchrun passes its own on to us
            elif caught and under_torchrun and time.time() - first < 3:
                continue
            else:
                tell('Quit without saving.' if caught else 'Stopped by a signal. Nothing was saved.')
                os._exit(128 + number)

    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # a process that we fork must not write into our pipe
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    for number in STOP:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, frame: None)
    threading.Thread(target=listen, daemon=True).start()
    return caught


def stop_asked(signals, env):
    """
    Whether all processes should stop now. On several GPUs it is False until the end of an update, because
    asking costs a wait for the device; one update is short there.
    """
    if env.world_size == 1:
        return len(signals) > 0
    return env.device_type != 'cuda' and all_sum([len(signals)], env)[0] > 0

# -----------------------------------------------------------------------------
# agreement between processes

def all_sum(values: list, env) -> list:
    """A list of numbers summed over all processes."""
    if env.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=env.device)
    dist.all_reduce(total)
    return total.tolist()


def agree(loss_sum, grad_norm, signals, env):
    """
    (mean loss over the processes, gradient norm, number of signals to stop). It takes one transfer from the
    device.
    """
    numbers = torch.stack((loss_sum, grad_norm.to(loss_sum.dtype)))
    if env.world_size == 1:
        return *numbers.tolist(), len(signals)
    asked = torch.tensor([len(signals)], dtype=torch.float64, device=env.device)
    numbers = torch.cat((numbers.double(), asked))
    dist.all_reduce(numbers)
    # every process has the same norm, because DDP averages the gradients
    loss, norm, stops = numbers.tolist()
    return loss / env.world_size, norm / env.world_size, stops


def on_master(action, env):
    """
    Call action() on rank 0 and return its result, or None on other ranks. If it ends the program on rank 0,
    all processes leave.
    """
    result = ended = None
    if env.master:
        try:
            result = action()
        except SystemExit as e:
            ended = e
    if all_sum([ended is not None], env)[0]:
        raise ended or SystemExit(1)
    return result


def leave(code: int, env):
    """End all processes together, with this exit code."""
    if env.world_size > 1:
        dist.barrier()  # nobody goes while rank 0 still writes, because torchrun would end it
        dist.destroy_process_group()
        # DDP still holds the group. A thread of gloo that frees a tensor while Python shuts down aborts the
        # process (pytorch#190489), so we run what is registered for the exit and skip Python's own shutdown
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def explain(e, too_large):
    """Say in one sentence what failed in the first forward and backward pass: the compiler, or memory."""
    if type(e).__module__.startswith('torch._'):  # dynamo and inductor
        fail(f'torch.compile fails here ({reason(e)}). Use --compile=False.', any_rank=True)
    if isinstance(e, torch.OutOfMemoryError) or 'allocate' in str(e):
        fail(too_large, any_rank=True)
    raise e
