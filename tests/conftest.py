"""The environment that all tests see, and the runs and data that several of them look at."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys

import pytest

# Of the caller's environment stays what leads to programs, libraries and files; the rest (WORLD_SIZE,
# HF_HUB_OFFLINE, proxies, GIT_DIR, ...) changes no test. This comes before torch is imported, and every
# process that a test starts has it.
KEPT = {'PATH', 'HOME', 'USER', 'LOGNAME', 'TMPDIR', 'LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH', 'PYTHONPATH',
        'PYTHONNOUSERSITE', 'VIRTUAL_ENV', 'CONDA_PREFIX', 'CUDA_VISIBLE_DEVICES', 'CI'}
gpt2 = os.environ.get('TIKTOKEN_CACHE_DIR') or os.environ.get('DATA_GYM_CACHE_DIR')
for name in os.environ.keys() - KEPT:
    if not name.startswith('PYTEST_'):
        del os.environ[name]
if gpt2:
    os.environ['TIKTOKEN_CACHE_DIR'] = os.path.abspath(gpt2)
os.environ |= {'OMP_NUM_THREADS': '1', 'TORCHINDUCTOR_COMPILE_THREADS': '1', 'MPLBACKEND': 'Agg',
               'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_ETAG_TIMEOUT': '2',
               'HF_HUB_DOWNLOAD_TIMEOUT': '2'}
pytest.register_assert_rewrite('tests.common')

from tests.common import ROOT, train, train_vit, write_images, write_tokens


def pytest_sessionfinish():
    for process in multiprocessing.active_children():  # of tests that failed
        process.kill()


@pytest.fixture(scope='session')
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp('tokens'))


@pytest.fixture(scope='session')
def straight(tokens, tmp_path_factory):
    """One uninterrupted run; dropout on, so that its masks must come back too."""
    out = tmp_path_factory.mktemp('straight')
    train(tokens, out, '--dropout=0.1')
    return out


@pytest.fixture(scope='session')
def arrays(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('arrays'))


@pytest.fixture(scope='session')
def jpegs(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('jpegs'), 'jpeg', 12)


@pytest.fixture(scope='session')
def seen(arrays, tmp_path_factory):
    """One uninterrupted run: 3 epochs of 5 updates, with drop path, whose masks must come back too."""
    out = tmp_path_factory.mktemp('seen')
    train_vit(arrays, out)
    return out


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """The command, in tmp_path: figures('sweep', '--study=x') is what it printed; plt.gcf() its picture."""
    import matplotlib.pyplot as plt  # here, because it takes time and few tests draw
    monkeypatch.chdir(tmp_path)

    def command(*args):
        plt.close('all')
        monkeypatch.setattr(sys, 'argv', ['figures', *args])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            runpy.run_path(str(ROOT / 'experiments/figures.py'), run_name='__main__')
        return said.getvalue()
    yield command
    plt.close('all')
