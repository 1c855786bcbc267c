"""Folders: who owns an out_dir, which of its files a run takes, and what their names mean."""

import fcntl
import signal
import time
from types import SimpleNamespace

import pytest

from configurator import Config
from support import resume
from support.console import fail
from support.distributed import join_torchrun
from support.run import lock
from tests.common import assert_refused, final, finish, gpt_line, rows, script, train

ENV = SimpleNamespace(world_size=1, master=True, device_type='cpu', say=print)


@pytest.mark.slow
@pytest.mark.parametrize('torchrun', [0, 2])
def test_a_live_out_dir_is_refused_and_a_killed_one_is_free(tokens, tmp_path, torchrun):
    out = tmp_path / 'out'
    line = gpt_line(tokens, out, '--max_iters=1000000', '--eval_interval=0', '--keep_interval=5')
    first = script(*line, torchrun=torchrun)
    while not (out / 'ckpt.pt').exists() and first.poll() is None:
        time.sleep(0.05)
    for extra in ('--init_from=resume', '--overwrite=True'):
        _, said = finish(script(*line, extra, torchrun=torchrun), 1)
        assert f'{out} is in use by another run. Wait for it, stop it or choose another --out_dir.' in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    last = final(out)['iter'] + 2
    train(tokens, out, '--init_from=resume', f'--max_iters={last}', '--eval_interval=0', torchrun=torchrun)
    assert [row['iter'] for row in rows(out) if row['split'] == 'train'] == list(range(last))


def test_a_disk_without_locks(tmp_path, monkeypatch, capsys):
    def without_locks(*_):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(fcntl, 'lockf', without_locks)
    lock(str(tmp_path)).close()
    assert 'is on a disk without locks (No locks available)' in capsys.readouterr().out


def test_a_context_is_shortened_only_where_the_run_says_so():
    saved = resume.Checkpoint('a.pt', {'model_args': {'block_size': 2048}, 'config': {}})
    config = Config({'block_size': 1024})
    assert resume.network_of(saved, config)['block_size'] == 2048
    config.stated = {'block_size'}
    assert resume.network_of(saved, config)['block_size'] == 1024


MISSING = ('but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Start several processes with '
           'torchrun. For a single process, run "unset RANK LOCAL_RANK WORLD_SIZE" first.')


@pytest.mark.parametrize('there,words', [
    ({'WORLD_SIZE': '2'}, MISSING), ({'LOCAL_RANK': '1'}, None)])
def test_a_process_is_alone_or_of_torchrun(monkeypatch, there, words):
    monkeypatch.setattr('sys.argv', ['train_gpt.py', '-v'])
    for key, value in there.items():
        monkeypatch.setenv(key, value)
    if words:
        with pytest.raises(SystemExit, match=words):
            join_torchrun()
    else:
        assert join_torchrun() == (0, 1, 0)
    assert_refused(lambda: fail('a sentence'), 'a sentence')  # torchrun's variables change no sentence


def test_weights_in_the_out_dir_that_would_be_overwritten_are_found_behind_links(tmp_path):
    target, folder = tmp_path / 'target', tmp_path / 'folder'
    for path in (target, folder):
        path.mkdir()
    (target / 'best.pt').write_text('weights')
    (tmp_path / 'link').symlink_to(target)
    (folder / 'best.pt').symlink_to(target / 'best.pt')
    config = Config(out_dir=f'{tmp_path}/link', overwrite=True, eval_only=False)
    for name in ('target', 'folder', 'link/best.pt'):
        config['init_from'] = f'{tmp_path}/{name}'
        assert_refused(lambda: resume.find(config, ENV), f'{name} is in the out_dir that would be overwr')
    config |= {'init_from': 'scratch', 'out_dir': str(target)}
    (target / 'model.safetensors').touch()
    assert_refused(lambda: resume.find(config, ENV), 'holds exported weights, and a run would replace their')
    config['out_dir'] = '.'
    assert resume.find(config, ENV).state is None


def test_which_checkpoint_of_a_folder(tmp_path):
    assert resume.find_checkpoint(str(tmp_path)) == str(tmp_path)
    for name in ('ckpt_000500.pt', 'ckpt_999999.pt', 'ckpt_1000000.pt', 'ckpt.pt', 'best.pt'):
        (tmp_path / name).touch()
        assert resume.find_checkpoint(str(tmp_path)) == str(tmp_path / name)  # weights: the best
        if name != 'best.pt':
            assert resume.latest_checkpoint(tmp_path) == str(tmp_path / name)
    assert resume.latest_checkpoint(tmp_path) == str(tmp_path / 'ckpt.pt')
