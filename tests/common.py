"""What several tests share: the scripts run as people run them, on tiny data that is made here."""

import atexit
import contextlib
import gc
import io
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgdw import SGDW
from support import optim

ROOT = Path(__file__).resolve().parent.parent

SIZE = ['--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=8', '--global_batch_size=4',
        '--max_iters=20', '--log_interval=1', '--eval_interval=5', '--ckpt_interval=5', '--device=cpu',
        '--learning_rate=0.1', '--warmup_iters=2', '--dtype=float32', '--compile=False']


def python(*argv, cwd=ROOT, torchrun=0, env=None, **kwargs):
    """Starts Python, or as many of them as torchrun says."""
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={torchrun}']
    line = [sys.executable, *(launch if torchrun else []), *map(str, argv)]
    return subprocess.Popen(line, cwd=cwd, env=os.environ | (env or {}),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8', **kwargs)


def finish(process, code=0):
    """What a process said until its end, on stdout and on stderr."""
    out, err = process.communicate(timeout=900)
    if process.returncode != code:  # an assert would cut short what was said
        pytest.fail(f'{process.args} ended with {process.returncode}\n{out}\n{err}')
    return out, err


def assert_refused(action, *words):
    """It ends with one sentence that has these words."""
    with pytest.raises(SystemExit) as stop:
        action()
    assert '\n' not in stop.value.code
    for word in words:
        assert word in stop.value.code


# a start of Python with torch takes most of a short run's time, so a server forks processes that have it
FORKS = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
FORKS.set_forkserver_preload(['tests.common', 'torch._dynamo', 'torch.nn.parallel', 'support.augment',
                              'support.images', 'support.nfnet', 'support.report', 'support.resume'])
FORKING = threading.Lock()


def in_child(action, said, environ):
    """action() in a new process, with this environment and its output in two files."""
    for number, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(f'{said}.{name}', os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environ)
    multiprocessing.set_start_method(None, force=True)  # the default, as in a script
    atexit._clear()  # what the server would do at its own end
    gc.freeze()  # what it has loaded is no garbage: to collect it took 0.4 s of a run's 1.0
    try:
        action()
    finally:
        atexit._run_exitfuncs()


class Forked:
    """action() in a new process, or in as many as torchrun says, with what tests need of subprocess.Popen."""

    def __init__(self, action, torchrun=0):
        self.args, self.folder, self.processes = action, tempfile.TemporaryDirectory(), []
        with socket.create_server(('127.0.0.1', 0)) as free:
            together = {'WORLD_SIZE': str(torchrun), 'TORCHELASTIC_RUN_ID': 'x', 'MASTER_ADDR': '127.0.0.1',
                        'MASTER_PORT': str(free.getsockname()[1])}
        for rank in map(str, range(torchrun or 1)):
            said, environ = f'{self.folder.name}/{rank}', dict(os.environ)
            if torchrun:
                environ |= together | {'RANK': rank, 'LOCAL_RANK': rank}
            self.processes.append(FORKS.Process(target=in_child, args=(action, said, environ)))
            with FORKING, contextlib.chdir(ROOT):
                self.processes[-1].start()

    def poll(self):
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else max(codes, key=abs)

    def said(self, name):
        """What all processes have said so far, on out or on err."""
        files = sorted(Path(self.folder.name).glob(f'*.{name}'))
        return ''.join(file.read_bytes().decode('utf-8', 'replace') for file in files)

    def communicate(self, timeout=None):
        for process in self.processes:
            process.join(timeout)
            process.kill()
            process.join()
        self.returncode = self.poll()
        return self.said('out'), self.said('err')

    def send_signal(self, number):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.kill(process.pid, number)


def run(argv, before=None):
    if before:
        before()
    sys.argv = [str(word) for word in argv]
    runpy.run_path(sys.argv[0], run_name='__main__')


def script(*argv, before=None, torchrun=0):
    """A script of ours that runs, behind before()."""
    return Forked(partial(run, argv, before), torchrun)


def run_in_turn(lines):
    for argv in lines:
        out, code = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(out):
                run(argv)
        except SystemExit as e:
            code = e.code
        print(json.dumps([code, out.getvalue()]))


def one_after_the_other(lines):
    """(what it ended with, what it printed) for each of the command lines, all run by one process."""
    return [tuple(json.loads(line)) for line in finish(Forked(partial(run_in_turn, lines)))[0].splitlines()]


def in_parallel(jobs):
    """Results of functions without arguments, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: job(), jobs))


def write_tokens(folder, n_train=3000, n_val=400, vocab=257, seed=0, **meta):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    meta = {'tokenizer': 'byte', 'vocab_size': vocab, 'dtype': 'uint16', 'train_tokens': n_train,
            'val_tokens': n_val, 'source': 'test', **meta}
    for split, n in (('train', n_train), ('val', n_val)):
        (rng.integers(0, 40, n) ** 2 % vocab).astype(meta['dtype']).tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps(meta))
    return folder


def gpt_line(tokens, out, *extra):
    return ['train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', *extra]


def train(tokens, out, *extra, code=0, torchrun=0):
    """Runs train_gpt.py to its end; returns what it said."""
    return finish(script(*gpt_line(tokens, out, *extra), torchrun=torchrun), code)


def make_optimizer(model, config):
    """The optimizer that the section of a train script makes."""
    source = (ROOT / ('train_gpt.py' if hasattr(model, 'wte') else 'train_vit.py')).read_text()
    section = source[source.index('check_optimizer(config'):source.index('resume.load_optimizer')]
    names = {**config, 'config': config, 'raw_model': model, 'torch': torch, 'SGDW': SGDW,
             'check_optimizer': optim.check_optimizer, 'other_optimizer': optim.other_optimizer}
    exec(section, names)
    return names['opt']


def rows(out):
    """The log without times and speeds."""
    lines = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith('_per_s') and k != 'data_wait'} for row in lines]


def final(out, name='ckpt.pt'):
    return torch.load(out / name, weights_only=True)


def assert_same_run(a, b):
    assert rows(a) == rows(b)
    for name in ('ckpt.pt', 'best.pt'):
        x, y = final(a, name), final(b, name)
        assert x['iter'] == y['iter']
        assert all(torch.equal(x['model'][k], y['model'][k]) for k in y['model'])


def killed_and_resumed(line, out, last):
    """Kills the run of a command line once it has a checkpoint, and lets it go on to iteration last."""
    for _ in range(5):  # until the signal came before the end
        process = script(*line, '--overwrite=True', '--ckpt_interval=1')
        while not (out / 'ckpt.pt').exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if final(out)['iter'] < last:
            break
        (out / 'ckpt.pt').unlink()
    assert 0 < final(out)['iter'] < last
    with open(out / 'log.jsonl', 'a') as f:
        f.write('{"iter": 19, "split": "tr')  # and a line that the kill cut short
    finish(script(*line, '--init_from=resume'))
    assert final(out)['iter'] == last


def runs_like_one(tokens, folder, **jobs):
    """Logs of runs by name, two processes for two...; each has the losses of the run one, to rounding."""
    in_parallel([lambda n=n: train(tokens, folder / n, *jobs[n], torchrun=2 if n.startswith('two') else 0)
                 for n in jobs])
    runs = {n: rows(folder / n) for n in jobs}
    losses = {n: {r['iter']: r['loss'] for r in log if r['split'] == 'train'} for n, log in runs.items()}
    assert len(set(losses['one'].values())) == 20
    for each in losses.values():
        assert each == pytest.approx(losses['one'], abs=1e-5)
    return runs


gpt2_is_here = pytest.mark.skipif(
    not Path(os.environ.get('TIKTOKEN_CACHE_DIR', ''), '0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4').is_file(),
    reason="gpt2's file is not here and there is no network: set TIKTOKEN_CACHE_DIR to where it is")

TEXTS = ['one two', '', 'na\u00efve \u4e2d\u6587 \U0001f600\r\nnew line', 'x<|endoftext|>y'] + [
    f'document {i} ' * (i % 7 + 1) for i in range(196)]

NOBODY = 'http://127.0.0.1:9'  # nothing listens there


def prepared(folder):
    """-> the documents of train and val as they are decoded from the bins, and the meta file"""
    meta = json.loads((folder / 'meta.json').read_text())
    documents = []
    for split in ('train', 'val'):
        ids = np.fromfile(folder / f'{split}.bin', meta['dtype'])
        ends = np.flatnonzero(ids == meta['vocab_size'] - 1)
        assert len(ids) == meta[f'{split}_tokens']
        assert len(ends) == meta[f'{split}_documents']
        assert ends[-1] == len(ids) - 1
        starts = np.r_[0, ends[:-1] + 1]
        documents.append([bytes(ids[a:b].astype(np.uint8)).decode() for a, b in zip(starts, ends)])
    assert not list(folder.glob('*.tmp'))
    return *documents, meta


def nanogpt_split(texts):
    order = np.random.default_rng(2357).permutation(len(texts))
    cut = -(-len(texts) * 5 // 10_000)
    return [texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]]


def parquet(*texts, **columns):
    """The bytes of a table of texts, or of these columns"""
    import pyarrow as pa
    import pyarrow.parquet
    file = io.BytesIO()
    pa.parquet.write_table(pa.table(columns or {'text': list(texts)}), file)
    return file.getvalue()


def stream(*seed):
    return np.random.default_rng(seed)


def noise_picture(w, h, seed=0):
    return Image.fromarray(stream(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def smooth_picture(w, h, seed=0):
    """A picture that survives JPEG: a few random colours, enlarged."""
    return noise_picture(4, 4, seed).resize((w, h), Image.Resampling.BICUBIC)


IMAGE_DEFAULTS = dict(dataset='', val='', val_labels='', out_dir='', val_from_train=0, val_fraction=0.0,
                      seed=0, resize_short=256, quality=95, image_column='', label_column='', num_proc=1,
                      overwrite=False)


def load_images(out, split):
    """-> pictures (arrays, or JPEG bytes), labels, meta"""
    meta = json.loads((out / 'meta.json').read_text())
    labels = np.load(out / f'{split}_labels.npy')
    if meta['layout'] == 'arrays':
        images = np.load(out / f'{split}_images.npy', mmap_mode='r')
        assert images.dtype == np.uint8 and images.shape[3:] == (3,)
    else:
        offsets, blob = np.load(out / f'{split}_offsets.npy'), (out / f'{split}_jpeg.bin').read_bytes()
        assert offsets.dtype == np.int64
        assert offsets[0] == 0 and offsets[-1] == len(blob) and (np.diff(offsets) > 0).all()
        images = [blob[a:b] for a, b in zip(offsets, offsets[1:])]
    assert labels.dtype == np.int64
    assert len(images) == len(labels) == meta[f'{split}_images']
    return images, labels, meta


def image_table(path, rows, image='image', label='label', names=None, **columns):
    """A parquet file as the Hub stores pictures; the names of classes go into the metadata of `datasets`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    cells = []
    for picture, _ in rows:
        f = io.BytesIO()
        picture.save(f, 'PNG')
        cells.append({'bytes': f.getvalue(), 'path': None})
    data = pa.table({image: cells, label: [y for _, y in rows], **columns})
    if names:
        info = {'info': {'features': {image: {'_type': 'Image'},
                                      label: {'names': names, '_type': 'ClassLabel'}}}}
        data = data.replace_schema_metadata({'huggingface': json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, path, row_group_size=50)


VIT = ['--image_size=8', '--patch_size=4', '--n_layer=2', '--n_head=2', '--n_embd=16', '--epochs=3',
       '--global_batch_size=4', '--warmup_epochs=0.5', '--learning_rate=0.1', '--grad_clip=1',
       '--log_interval=1', '--eval_interval=3', '--ckpt_interval=2', '--device=cpu', '--dtype=float32',
       '--compile=False', '--num_workers=0']


def write_images(folder, layout='arrays', size=8, flat=False, **counts):
    """A data set as prepare_imagenet.py leaves it; flat: pictures of one colour, which no crop changes."""
    folder.mkdir(parents=True, exist_ok=True)
    counts, rng = counts or {'train': 23, 'val': 7, 'test': 5}, np.random.default_rng(0)
    for split, n in counts.items():
        pictures = rng.integers(0, 256, (n, 1, 1, 3) if flat else (n, size, size, 3), dtype=np.uint8)
        pictures = np.broadcast_to(pictures, (n, size, size, 3))
        np.save(folder / f'{split}_labels.npy', np.arange(n) % 6)
        if layout == 'arrays':
            np.save(folder / f'{split}_images.npy', pictures)
            continue
        blobs = []
        for picture in pictures:
            f = io.BytesIO()
            Image.fromarray(picture).save(f, 'JPEG')
            blobs.append(f.getvalue())
        (folder / f'{split}_jpeg.bin').write_bytes(b''.join(blobs))
        np.save(folder / f'{split}_offsets.npy', np.cumsum([0] + [len(b) for b in blobs]))
    (folder / 'meta.json').write_text(json.dumps(dict(
        classes=list('abcdef'), mean=[0.5, 0.5, 0.5], std=[0.3, 0.3, 0.3], layout=layout, source='test',
        **{f'{split}_images': n for split, n in counts.items()})))
    return folder


def vit_line(data, out, *extra):
    recipe = ['--randaugment=0'] * (json.loads((data / 'meta.json').read_text())['layout'] == 'arrays')
    return ['train_vit.py', *VIT, *recipe, f'--dataset={data}', f'--out_dir={out}', *extra]


def train_vit(data, out, *extra, code=0, torchrun=0):
    return finish(script(*vit_line(data, out, *extra), torchrun=torchrun), code)


def table_of(said):
    """The rows of a Markdown table, without its head."""
    rows = [line.strip('|').split('|') for line in said.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row] for row in rows[2:]]
