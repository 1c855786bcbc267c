"""
The configuration of a script: its own globals < config files, in order < --key=value, in order.

    python train_gpt.py config/dnt_tiny.py more.py --max_iters=100 --compile=False

A script writes its defaults as plain globals, each with a comment, and then calls configure(globals()).
Their names are the keys. A config file is a Python file that assigns some of them. Wherever it lies, it
may start from one of ours: `from config.dnt_small import *`. It may define helpers too, with one
exception: a bool, a number, a string or a path whose name is not a key is an error, because it is
probably a misspelled key. Names that begin with an underscore are never looked at.

A value must have the type of its default. An int may stand for a float, 1e3 for an int, a Path for a
string. On the command line, a string is taken as typed, with its quotes; any other value is a Python
literal. Nothing is evaluated. --help lists all keys.
"""

import ast
import difflib
import os
import runpy
import sys

from support.console import fail, keep_printing, near_files

# what people who come from nanoGPT will type
RENAMED = {
    'batch_size': 'global_batch_size (sequences or images per update, over all processes) and '
                  'micro_batch_size (an upper bound per process and forward pass)',
    'gradient_accumulation_steps': 'global_batch_size. The accumulation follows from it, from '
                                   'micro_batch_size and from the number of processes',
    'eval_iters': 'eval_tokens. Every evaluation reads the same windows',
    'lr_decay_iters': 'max_iters. The cosine ends where the run ends',
    'decay_lr': 'min_lr. Set it to learning_rate for a constant rate',
    'always_save_checkpoint': 'ckpt_interval',
    'lr': 'learning_rate',
    'wandb_log': 'log.jsonl. Every run writes it, one object per line',
}


replaced = {}  # the keys that the command line states, each with the value that it had before
stated = set()  # the keys that a config file or the command line states


def configure(script, argv=None):
    """
    Override the globals of a script, given as its globals() right after its defaults, from argv (default:
    sys.argv[1:]). Returns all keys with their final values as a dict. A user error ends the program with one
    sentence and exit code 1.
    """
    keep_printing()
    replaced.clear()
    stated.clear()
    defaults = {k: v for k, v in script.items() if not k.startswith('_') and isinstance(v, (int, float, str))}
    config = dict(defaults)
    argv = sys.argv[1:] if argv is None else argv
    for arg in sorted(argv, key=lambda arg: arg.startswith('--')):  # config files first, wherever they stand
        if arg in ('-h', '--help'):
            show_help(script, defaults)
        elif arg.startswith('--'):
            key, equals, text = arg[2:].partition('=')  # split once: a value may hold '=' itself
            if not equals:
                example = 'True' if defaults.get(key) is False else 'VALUE'
                fail(f'{arg} has no value. Write --{key}={example}.')
            value = checked(key, literal(text, defaults.get(key)), defaults, arg)
            replaced.setdefault(key, config[key])
            config[key] = value
            stated.add(key)
        elif arg.endswith('.py'):
            for key, value in read_file(arg).items():
                if key in defaults or isinstance(value, (int, float, str, os.PathLike)):
                    config[key] = checked(key, value, defaults, arg)
                    stated.add(key)
        elif '=' in arg:
            fail(f'{arg} is not an option. Did you mean --{arg.lstrip("-")}?')
        else:
            fail(f'{arg} is neither a config file (*.py) nor --key=value.{near_files(arg + ".py")}')
    script.update(config)
    return config


def read_file(path):
    """The names that a config file leaves, without the private ones."""
    if not os.path.isfile(path):
        fail(f'The config file {path} does not exist.{near_files(path)}')
    try:
        names = runpy.run_path(path)
    except SyntaxError as e:  # e names the file and the line
        fail(f'The config file {path} has a syntax error: {e}')
    except BaseException as e:
        fail(f'The config file {path} raises {type(e).__name__}: {e}')
    return {k: v for k, v in names.items() if not k.startswith('_')}


def literal(text, default):
    """The value of a text from the command line. A default of 'auto' can be overridden by a bool as well."""
    if isinstance(default, str):
        return text == 'True' if default == 'auto' and text in ('True', 'False') else text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def checked(key, value, defaults, where):
    """value as the type of its default, or the end of the program."""
    if key not in defaults:
        if key in RENAMED:
            fail(f'{where}: {key} is not a key here. Use {RENAMED[key]}.')
        near = difflib.get_close_matches(key, defaults, n=3)
        hint = f'Did you mean {" or ".join(near)}?' if near else '--help lists all keys.'
        if not where.startswith('--'):
            hint += (f' If {key} is a helper of this file, call it _{key}. '
                     'Or is this the config of another script?')
        fail(f'{where}: unknown key {key}. {hint}')
    default = defaults[key]
    if isinstance(default, str) and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is type(default) or default == 'auto' and isinstance(value, bool):
        return value
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is int and type(value) is float and value.is_integer():
        return int(value)
    wanted = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string'}[type(default)]
    wanted += ', True or False' * (default == 'auto')
    fail(f'{where}: {key} must be {wanted}, not {value!r}.')


def show_help(script, defaults):
    """Every key with its default and the comment behind it, read from the script's own source."""
    comments = {}
    with open(script['__file__'], encoding='utf-8') as f:
        for line in f:
            key, equals, rest = line.partition(' = ')
            if equals and key in defaults and key not in comments:
                comments[key] = rest.partition('  # ')[2].strip()
    print((script.get('__doc__') or '').strip(), '\n\nkeys, as --key=value or in a config file:\n')
    for key, value in defaults.items():
        print(f'  {key} = {value!r}'.ljust(36), comments.get(key, ''))
    raise SystemExit(0)
