"""Writing a data set: a folder for one run alone, processes that work in order, files put in place last."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from support.console import fail, reason


@contextmanager
def signals_held():
    """Signals to stop do nothing meanwhile. Yields a list of those that come."""
    came, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def workplace(out, files, overwrite):
    """A new folder in out, for this run alone. Refused are a second run into out, and a data set in it."""
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)  # it ends with the process, however that ends
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f'Another run writes to {out}. Wait until it ends, or use another --out_dir.')
        there = [file for file in files if (out / file).exists()]
        if there and not overwrite:
            fail(f'{out} already holds a data set ({", ".join(there)}). Use --overwrite=True to replace it, '
                 'or --out_dir=... to write elsewhere.')
        for folder in out.glob('.prepare_tmp_*'):  # of a run that was killed
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(prefix='.prepare_tmp_', dir=out) as tmp:
            yield Path(tmp)
    finally:
        os.close(lock)
        if new and not any(out.iterdir()):
            out.rmdir()


def put_in_place(tmp, out, files):
    """Replaces the files of out by those of tmp. The last one completes the set, and no signal stops it."""
    made = [file for file in files if (tmp / file).exists()]
    for file in made:
        with open(tmp / file, 'rb') as f:
            os.fsync(f.fileno())
    with signals_held():
        for file in reversed(files):
            (out / file).unlink(missing_ok=True)
        for file in made:
            os.replace(tmp / file, out / file)


def count_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def in_order(jobs, work, workers):
    """(job without its last part, work(its last part)) for each job, in their order"""
    pending = deque()
    window = 4 * workers  # no more jobs than this are in memory
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        with signals_held() as came:  # Python would lose an exception while it forks
            pool.submit(os.getpid)  # the first job forks all workers
        if came:
            raise KeyboardInterrupt
        for job in jobs:
            pending.append((job[:-1], pool.submit(work, job[-1])))
            if len(pending) == window:
                job, result = pending.popleft()
                yield job, result.result()
        for job, result in pending:
            yield job, result.result()


def start_worker():
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all processes
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()  # when it is killed, nobody else ends its workers
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def run(main, config):
    """main(config), with one sentence for what ends it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)  # ends like Ctrl-C, so it leaves nothing
    try:
        main(config)
    except (BrokenProcessPool, MemoryError):
        fail('A worker process was killed or memory is short. Use a lower --num_proc, or smaller files.')
    except OSError as error:
        where = f' ({error.filename})' if error.filename else ''
        fail(f'{reason(error)}{where}. Fix that and run the same command again. --out_dir and HF_HOME choose '
             'another disk.')
    except KeyboardInterrupt:
        sys.exit('Stopped. Nothing half-written is left; the same command starts again.')
