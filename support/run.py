"""
The out_dir of a run: config.json, log.jsonl, saving checkpoints, stopping. Nothing is ever half written: we
write beside a file, then rename.
"""

import fcntl
import json
import math
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from support.console import fail, reason
from support.distributed import leave, on_master

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
        message = cannot_write(path, e)
        if os.path.exists(path):
            message += f' The last good one, {path}, is untouched.'
        fail(message)


def cannot_write(path, e):
    return f'Cannot write {path} ({reason(e)}). Free some space, then resume with --init_from=resume.'


def our_files(out_dir):
    """The files of a run in out_dir, the log last."""
    files = os.listdir(out_dir) if os.path.isdir(out_dir) else []
    return sorted(f for f in files if re.fullmatch(r'config\.json|log\.jsonl|(best|ckpt|ckpt_\d+)\.pt', f))


def lock(out_dir):
    """
    The open file out_dir/run.lock with the kernel's lock on it. The file stays, but the lock ends with this
    process however it ends. Ends the program where another run has it.
    """
    path = os.path.join(out_dir, 'run.lock')
    file = open(path, 'a')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would pass to workers that we fork
    except (BlockingIOError, PermissionError):  # systems differ
        fail(f'{out_dir} is in use by another run. Wait for it, stop it or choose another --out_dir. If its '
             f'machine has crashed, delete {path}.')
    except OSError as e:
        print(f'{out_dir} is on a disk without locks ({e.strerror}). Start no second run in it.')
    return file


def git_commit():
    try:
        return subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10,
                              cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''

# -----------------------------------------------------------------------------
# a run that writes

def seed_masks(seed, iter_num, rank):
    """The masks of dropout and drop path depend on (seed, iter_num, rank) alone."""
    torch.manual_seed(int(np.random.SeedSequence((seed, iter_num, rank)).generate_state(1)[0]))


class Run:
    """
    The out_dir of this run, opened on every rank: config.json is written, what is to be overwritten is gone,
    and the log is cut where the run starts. saved_iter: the iteration of the last good checkpoint, 0 where
    there is none.
    """

    def __init__(self, config, env, signals, start_iter, model, opt):
        self.out_dir, self.env, self.signals = config['out_dir'], env, signals
        self.start_iter = self.saved_iter = start_iter
        self.log_path = os.path.join(self.out_dir, 'log.jsonl')
        self.written = {}  # the iteration of each checkpoint that this process has written
        self.keep_statistics(model, opt)
        on_master(lambda: self.open(config), env)
        env.saves = True  # from here on, a signal to stop saves first

    def open(self, config):
        try:
            os.makedirs(self.out_dir, exist_ok=True)
            self.lock = lock(self.out_dir)
            if config['overwrite'] and config['init_from'] != 'resume':
                for f in our_files(self.out_dir):
                    os.remove(os.path.join(self.out_dir, f))
        except OSError as e:
            fail(f'Cannot use out_dir={self.out_dir} ({e.strerror}). Name another folder with --out_dir.')
        gpu = torch.cuda.get_device_name() if self.env.device_type == 'cuda' else ''
        versions = {'torch': torch.__version__, 'cudnn': torch.backends.cudnn.version(), 'git': git_commit(),
                    'gpu': gpu, 'allocator': os.environ.get('PYTORCH_CUDA_ALLOC_CONF', ''),
                    'world_size': self.env.world_size}
        self.replace_text('config.json', json.dumps({**config, **versions}, indent=2))
        self.replace_text('log.jsonl', ''.join(self.rows_before_start()))

    def replace_text(self, name, text):
        path = os.path.join(self.out_dir, name)
        replace_file(path, lambda tmp: Path(tmp).write_text(text, encoding='utf-8'))

    def rows_before_start(self):
        """The lines of the log before start_iter. Later rows come again."""
        if not os.path.exists(self.log_path):
            return []
        rows = []
        with open(self.log_path, encoding='utf-8', errors='replace') as f:
            for line in f:
                try:
                    if json.loads(line)['iter'] < self.start_iter:
                        rows.append(line.rstrip('\n') + '\n')
                except (ValueError, KeyError, TypeError):
                    continue  # cut short
        return rows

    def keep_statistics(self, model, opt):
        """
        A checkpoint holds the weights after the last step, so it needs the running statistics of batch
        normalization after that step too. Every forward pass changes them, so we copy them after each step.
        """
        buffers = {k: v for k, v in model.named_buffers() if 'running_' in k or 'num_batches' in k}
        self.statistics = {}

        def copy(*_):
            self.statistics = {k: v.clone() for k, v in buffers.items()}

        copy()
        if buffers:
            opt.register_step_post_hook(copy)

    def log(self, **row):
        """Append a row to log.jsonl."""
        if self.env.master:
            try:
                with open(self.log_path, 'a', encoding='utf-8') as f:
                    f.write(json.dumps(row) + '\n')
            except OSError as e:
                fail(cannot_write(self.log_path, e))

    def save(self, name, **state):
        """
        Write a plain dict of tensors and Python values, which torch.load(weights_only=True) opens. Several
        names for one iteration are links to one file where the file system has links.
        """
        state['model'] = state['model'] | self.statistics
        path = os.path.join(self.out_dir, name)
        same = [other for other, at in self.written.items() if at == state['iter']]

        def write(tmp):
            if os.path.exists(tmp):  # of a run that was killed
                os.remove(tmp)
            if same:
                with suppress(OSError):  # a file system without links
                    os.link(same[0], tmp)
                    return
            torch.save(state, tmp)

        on_master(lambda: replace_file(path, write), self.env)
        self.written[path] = state['iter']
        if name == 'ckpt.pt':
            self.saved_iter = state['iter']

    def stop_if_not_finite(self, iter_num, lr, **numbers):
        """
        End with one sentence where a number is not finite. All processes have the same numbers, so all stop.
        """
        if all(map(math.isfinite, numbers.values())):
            return
        found = ', '.join(f'{name.replace("_", " ")} {value}' for name, value in numbers.items())
        good = 'No checkpoint was saved.'
        if self.saved_iter:
            good = f'The last good checkpoint is that of iteration {self.saved_iter} in {self.out_dir}.'
        fail(f'iteration {iter_num}: {found} at learning rate {lr:.3g}, so no step was made. {good} Try a '
             'lower learning_rate, a longer warmup, grad_clip=1.0 or --flash=False.')

    def leave_stopped(self, iter_num):
        """Say what a run that a signal stopped has saved, and leave."""
        saved = 'No update was made, so nothing was saved.'
        if self.saved_iter:
            saved = (f'The checkpoint of iteration {self.saved_iter} is in {self.out_dir}. Run the same '
                     'command with --init_from=resume to continue.')
        self.env.say(f'Stopped by a signal at iteration {iter_num}. {saved}')
        leave(128 + (self.signals or [15])[0], self.env)
