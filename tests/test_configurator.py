"""Defaults in the script < config files < --key=value."""

import pytest

from configurator import configure
from tests.common import finish, python


def settle(*argv, tmp_path=None, **files):
    script = {'lr': 0.1, 'n': 3, 'name': 'x', 'on': False, 'mode': 'auto', '_hidden': 1, '__file__': __file__,
              '__doc__': 'A script.', 'configure': configure}
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    argv = [str(tmp_path / a) if a.endswith('.py') else a for a in argv]
    config = configure(script, argv)
    assert all(script[k] == v for k, v in config.items())
    return config


def test_configurator_order_and_types(tmp_path):
    c = settle('a.py', '--lr=3', 'b.py', '--name=p=q', tmp_path=tmp_path,
               a='lr = 1\nn = 2 * 5\n_x = 3\nimport math\n', b='n = 1e1\non = True\n')
    assert c == {'lr': 3.0, 'n': 10, 'name': 'p=q', 'on': True, 'mode': 'auto'}
    assert type(c['lr']) is float
    assert type(c['n']) is int
    c = settle('--lr=-1e-3', '--n=-4', '--name=123', '--mode=True', '--on=True', tmp_path=tmp_path)
    assert c == {'lr': -0.001, 'n': -4, 'name': '123', 'on': True, 'mode': True}
    assert settle('--name=', tmp_path=tmp_path)['name'] == ''
    # a string, not a call
    assert settle('--name=__import__("os")', tmp_path=tmp_path)['name'] == '__import__("os")'


@pytest.mark.parametrize('argument,words', [
    ('--lrr=1', r"--lrr=1: unknown key 'lrr', did you mean lr\?"),
    ('--n=2.5', r'n wants int, got 2.5 \(float\)'),
    ('--n=x', "n wants int, got 'x'"),
    ('--lr=True', 'lr wants float, got True'),
    ('--on=1', 'on wants True or False, got 1'),
    ('mode.py', 'mode wants True, False or auto, got 3'),
    ('--n', '--n has no value: write --n=VALUE'),
    ('n=3', r'did you mean --n=3\?'),
    ('nothing.py', 'nothing.py does not exist'),
    ('--_hidden=2', 'unknown key'),
    ('--batch_size=8', 'replaced by global_batch_size'),
    ('--gradient_accumulation_steps=8', 'replaced by global_batch_size'),
    ('bad.py', 'bad.py, line 2:'),
    ('imports.py', "imports.py fails: ModuleNotFoundError: No module named 'nowhere'"),
    ('typo.py', "typo.py: unknown key 'naem', did you mean name"),
    ('wrong.py', "wrong.py: lr wants float, got '1e-3'")])
def test_configurator_refuses_in_words(tmp_path, argument, words):
    with pytest.raises(SystemExit, match=words):
        settle(argument, tmp_path=tmp_path, bad='n = 1\nn = = 2\n', imports='import nowhere\n',
               typo='naem = "y"\n', wrong='lr = "1e-3"\n', mode='mode = 3\n')


def test_help_lists_every_key_with_its_comment():
    out, _ = finish(python('train_gpt.py', '--help'))
    assert 'warmup_iters = 0' in out
    assert 'linear warmup' in out
    assert "init_from = 'scratch'" in out
    assert out.count('\n  ') >= 45
