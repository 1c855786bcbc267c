"""Folders: who owns an out_dir, which of its files a run takes, and what their names mean."""

import errno
import os
import platform
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from configurator import Config, configure
from support import report, resume, run
from support.distributed import join_torchrun
from tests.common import SIZE, final, finish, python, rows, train
from tests.test_pretrained import assert_refused

ENV = SimpleNamespace(world_size=1, master=True, device_type='cpu', say=print)


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_live_out_dir_is_refused_and_a_killed_one_is_free(tokens, tmp_path, torchrun):
    """On a disk without hard links, as those that machines share."""
    out, lock = tmp_path / 'out', tmp_path / 'out/run.lock'
    (tmp_path / 'sitecustomize.py').write_text(
        'import os\ndef link(*_):\n    raise OSError(95, "Operation not supported")\nos.link = link')
    line = ['train_gpt.py', *SIZE, f'--dataset={tokens}', f'--out_dir={out}', '--max_iters=1000000',
            '--eval_interval=0', '--keep_interval=5']

    def start(*extra):
        return python(*line, *extra, torchrun=torchrun, env={'PYTHONPATH': str(tmp_path)})

    first = start()
    while not (out / 'ckpt.pt').exists() and first.poll() is None:
        time.sleep(0.05)
    owner = lock.read_text()
    for extra in ('--init_from=resume', '--overwrite=True'):
        _, said = finish(start(extra), 1)
        assert f'{out} is in use by {owner}. Wait for it, stop it or choose another --out_dir.' in said
    assert owner.endswith(f' on {platform.node()}')
    os.kill(int(owner.split()[1]), signal.SIGKILL)
    first.communicate()
    assert lock.read_text() == owner
    last = final(out)['iter'] + 2
    train(tokens, out, '--init_from=resume', f'--max_iters={last}', '--eval_interval=0', torchrun=torchrun)
    assert not lock.exists()
    assert [row['iter'] for row in rows(out) if row['split'] == 'train'] == list(range(last))


def test_a_lock_that_its_owner_removes_meanwhile_and_a_disk_without_locks(tmp_path, monkeypatch, capsys):
    path, calls = tmp_path / 'run.lock', []

    def lockf(*_):
        calls.append(path.read_text())
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(run.fcntl, 'lockf', lockf)
    with run.lock(str(tmp_path)) as file:
        assert os.path.samestat(path.stat(), os.fstat(file.fileno()))
    assert path.read_text() == f'process {os.getpid()} on {platform.node()}'
    assert len(calls) == 2
    for number, words in ((errno.ENOLCK, ''), (errno.EAGAIN, f'is in use by {path.read_text()}.')):
        def lockf(*_):
            raise OSError(number, os.strerror(number))
        monkeypatch.setattr(run.fcntl, 'lockf', lockf)
        if words:
            assert_refused(lambda: run.lock(str(tmp_path)), words)
        else:
            run.lock(str(tmp_path)).close()
            assert 'is on a disk without locks' in capsys.readouterr().out


@pytest.mark.parametrize('there,words', [
    ({'SLURM_NTASKS': '2'}, '"srun --ntasks=1 torchrun --standalone --nproc_per_node=2 train_gpt.py -v"'),
    ({'SLURM_NTASKS': '2', 'SLURM_PROCID': '1'}, None),  # one task says it
    ({'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_TASKS': '1'}, 'alone'),
    ({'SLURM_NTASKS': '2', 'RANK': '0', 'WORLD_SIZE': '1'}, 'alone')])
def test_several_tasks_of_slurm_need_torchrun(monkeypatch, there, words):
    monkeypatch.setattr('sys.argv', ['train_gpt.py', '-v'])
    for key, value in there.items():
        monkeypatch.setenv(key, value)
    if words == 'alone':
        assert join_torchrun() == (0, 1, 0)
    elif words:
        assert_refused(join_torchrun, 'Slurm starts 2 tasks without torchrun', words)
    else:
        with pytest.raises(SystemExit) as stop:
            join_torchrun()
        assert stop.value.code == 1


def test_weights_in_the_out_dir_that_would_be_overwritten_are_found_behind_links(tmp_path):
    target, folder = tmp_path / 'target', tmp_path / 'folder'
    for path in (target, folder):
        path.mkdir()
    (target / 'best.pt').write_text('weights')
    (tmp_path / 'link').symlink_to(target)
    (tmp_path / 'link.pt').symlink_to(target / 'best.pt')
    (folder / 'best.pt').symlink_to(target / 'best.pt')
    for name in ('target', 'link', 'link.pt', 'folder', 'link/best.pt'):
        config = Config(init_from=f'{tmp_path}/{name}', out_dir=str(target), overwrite=True, eval_only=False)
        assert_refused(lambda: resume.find(config, ENV), f'{name} is in the out_dir that would be overwr')
    config = Config(init_from='scratch', out_dir=str(target), overwrite=True, eval_only=False)
    (target / 'model.safetensors').touch()
    assert_refused(lambda: resume.find(config, ENV), 'holds exported weights, and a run would replace their')
    config['out_dir'] = '.'
    assert resume.find(config, ENV).state is None


def test_the_latest_checkpoint_is_that_of_the_highest_iteration(tmp_path):
    for name in ('ckpt_000500.pt', 'ckpt_999999.pt', 'ckpt_1000000.pt', 'best.pt'):
        (tmp_path / name).touch()
    assert resume.latest_checkpoint(tmp_path) == str(tmp_path / 'ckpt_1000000.pt')
    (tmp_path / 'ckpt.pt').touch()
    assert resume.latest_checkpoint(tmp_path) == str(tmp_path / 'ckpt.pt')


def test_a_clock_that_stands_still_ends_no_run(monkeypatch):
    monkeypatch.setattr(report.time, 'time', lambda: 1.0)
    logged = SimpleNamespace(start_iter=0, log=lambda **row: rows.append(row))
    rows = []
    model = SimpleNamespace()
    report.Report(logged, ENV, 10, 5, 'tokens', 100, model).train(0, 1.0, 0.1, 1.0, None)
    assert rows[0]['data_wait'] == 0


def test_a_tilde_is_the_home_folder_in_every_key_but_the_prompt(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text('from pathlib import Path\ndataset = Path("~/text")\nexport = "~/e"')
    script = dict.fromkeys(('out_dir', 'init_from', 'export', 'predict', 'dataset', 'prompt', 'rest'), '')
    config = configure(script, [f'{tmp_path}/mine.py', '--out_dir=~/out', '--init_from=~', '--predict=a/~',
                                '--prompt=~/x'])
    home = str(Path.home())
    assert config == {'out_dir': f'{home}/out', 'init_from': home, 'export': f'{home}/e', 'predict': 'a/~',
                      'dataset': f'{home}/text', 'prompt': '~/x', 'rest': ''}
