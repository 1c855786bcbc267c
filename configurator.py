"""
The configuration of a script: its own globals < config files, in order < --key=value, in order.

    python train_gpt.py config/dnt_tiny.py more.py --max_iters=100 --compile=False

A script writes its defaults as plain globals, each with a comment, and then calls configure(globals()).
Their names are the keys. A config file is a Python file that assigns some of them. It may start from one of
ours (`from config.dnt_small import *`), and it may define helpers. But a bool, number, string or path whose
name is not a key is an error, unless it begins with an underscore: it is probably a misspelled key.
"""

import ast
import os
import runpy
import sys

from support.console import fail, keep_printing, near_files, show_help, unknown_key

RENAMED = {  # what people will type who come from nanoGPT, or from an earlier version
    'batch_size': 'Use global_batch_size (per update, over all processes) and micro_batch_size (per forward '
                  'pass of one process).',
    'gradient_accumulation_steps': 'Use global_batch_size and micro_batch_size. It follows from them.',
    'eval_iters': 'Use eval_tokens. Every evaluation reads the same windows.',
    'lr_decay_iters': 'Use max_iters. The cosine ends where the run ends.',
    'decay_lr': 'Use min_lr. Set it to learning_rate for a constant rate.',
    'always_save_checkpoint': 'Use ckpt_interval.',
    'lr': 'Use learning_rate.',
    **dict.fromkeys(('wandb_log', 'wandb_project'),
                    'Use log.jsonl. Every run writes it, one object per line.'),
    'compile_optimizer': 'It is gone, because it saved less than 1 % of an update. Leave it out.',
}


class Config(dict):
    """
    The final value of each key. stated: the keys that a config file or the command line states. replaced:
    the keys that the command line states, with the values that they had before.
    """
    stated, replaced = frozenset(), {}  # of a script that states nothing


def configure(script, argv=None):
    """
    Override the globals of a script (its globals() right after its defaults) from argv (default: that of the
    process). Returns a Config. A user error ends the program with one sentence and exit code 1.
    """
    keep_printing()
    defaults = {k: v for k, v in script.items() if not k.startswith('_') and isinstance(v, (int, float, str))}
    config, stated, replaced = Config(defaults), set(), {}
    argv = sys.argv[1:] if argv is None else argv
    for arg in sorted(argv, key=lambda arg: arg.startswith('--')):  # config files first, wherever they stand
        if arg in ('-h', '--help'):
            show_help(script, defaults)
        elif arg.startswith('--') and '=' in arg:
            key, _, text = arg[2:].partition('=')  # split once: a value may hold '=' itself
            value = checked(key, literal(text, defaults.get(key)), defaults, arg)
            replaced.setdefault(key, config[key])
            stated.add(key)
            config[key] = value
        elif arg.endswith('.py'):
            for key, value in read_file(arg).items():
                if key in defaults or isinstance(value, (int, float, str, os.PathLike)):
                    config[key] = checked(key, value, defaults, arg)
                    stated.add(key)
        elif arg.startswith('--'):
            fail(f'{arg} has no value. Write {arg}=VALUE.')
        elif '=' in arg:
            fail(f'{arg} is not an option. Did you mean --{arg.lstrip("-")}?')
        else:
            fail(f'{arg} is neither a config file (*.py) nor --key=value.{near_files(arg + ".py")}')
    config.stated, config.replaced = stated, replaced
    script.update(config)
    return config


def read_file(path):
    """The names that a config file leaves, without the private ones."""
    if not os.path.isfile(path):
        fail(f'The config file {path} does not exist.{near_files(path)}')
    try:
        names = runpy.run_path(path)
    except BaseException as e:  # a SyntaxError names the file and the line
        fail(f'The config file {path} raises {type(e).__name__}: {e}')
    return {k: v for k, v in names.items() if not k.startswith('_')}


def literal(text, default):
    """The value of a text from the command line: a string as it is typed, anything else as a literal."""
    if isinstance(default, str) and not (default == 'auto' and text in ('True', 'False')):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def checked(key, value, defaults, where):
    """value as the type of its default: an int may stand for a float, 1e3 for an int, a Path for a string."""
    if key not in defaults:
        fail(f'{where}: {unknown_key(key, defaults, RENAMED, in_file=not where.startswith("--"))}')
    kind = type(defaults[key])
    if isinstance(value, os.PathLike) or (isinstance(value, str) and key != 'prompt'):
        value = os.path.expanduser(value)  # a shell does not see the ~ of --key=~/x
    if type(value) is kind or (defaults[key] == 'auto' and isinstance(value, bool)):
        return value
    if (kind, type(value)) == (float, int) or (kind is int and type(value) is float and value.is_integer()):
        return kind(value)
    wanted = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}[kind]
    if defaults[key] == 'auto':
        wanted += ', True or False'
    fail(f'{where}: {key} must be {wanted}, not {value!r}.')
