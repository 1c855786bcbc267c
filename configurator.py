"""
The configuration of a script: its own globals < config files, in order < --key=value, in order.

    python train_gpt.py config/dnt_tiny.py more.py --max_iters=100 --compile=False

A script writes its defaults as plain globals, each with a comment, and then calls configure(globals()). A config file
is a Python file that assigns some of those names. Files and flags are checked alike: a name must be known and a value
must have its default's type (an int serves as float, 1e3 as int; where the default is 'auto' a bool does too). Values
on the command line are Python literals or strings; nothing there is evaluated. --help lists everything.
"""

import ast
import difflib
import os
import runpy
import sys
import time
import types

# what people who come from nanoGPT will type
RENAMED = {
    'batch_size': 'global_batch_size (sequences or images per update, over all processes) and micro_batch_size '
                  '(an upper bound per process and forward)',
    'gradient_accumulation_steps': 'global_batch_size; the accumulation follows from it, micro_batch_size and the '
                                   'number of processes',
    'eval_iters': 'eval_tokens (validation covers the same windows each time)',
    'lr_decay_iters': 'max_iters (the cosine ends where the run ends)',
    'decay_lr': 'min_lr (equal to learning_rate for a constant rate)',
    'always_save_checkpoint': 'ckpt_interval',
    'lr': 'learning_rate',
    'wandb_log': 'log.jsonl, which every run writes, one object a line',
}


def configure(script, argv=None):
    """
    Override the globals of a script, given as its globals() right after its defaults, from argv (default:
    sys.argv[1:]). Returns all keys with their final values as a dict. A mistake ends the program with one sentence
    and exit code 1.
    """
    defaults = {k: v for k, v in script.items() if not k.startswith('_') and isinstance(v, (bool, int, float, str))}
    config = dict(defaults)
    for arg in sys.argv[1:] if argv is None else argv:
        if arg in ('-h', '--help'):
            show_help(script, defaults)
        elif arg.startswith('--'):
            key, equals, text = arg[2:].partition('=')  # split once: a value may hold '=' itself
            if not equals:
                fail(f'{arg} has no value: write --{key}=VALUE')
            config[key] = checked(key, literal(text), text, defaults, arg)
        elif arg.endswith('.py'):
            for key, value in read_file(arg).items():
                config[key] = checked(key, value, None, defaults, arg)
        else:
            hint = f'did you mean --{arg}?' if '=' in arg else 'write a config file (*.py) or --key=value'
            fail(f'cannot read the argument {arg!r}: {hint}')
    script.update(config)
    return config


def read_file(path):
    """The names that a config file assigns; imported modules, functions and _private names are its own business."""
    if not os.path.isfile(path):
        fail(f'config file {path} does not exist')
    try:
        names = runpy.run_path(path)
    except SyntaxError as e:
        fail(f'config file {path}, line {e.lineno}: {e.msg}')
    except BaseException as e:
        fail(f'config file {path} fails: {type(e).__name__}: {e}')
    own = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    return {k: v for k, v in names.items() if not k.startswith('_') and not isinstance(v, own)}


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def checked(key, value, text, defaults, where):
    """value as the type of its default, or the end of the program. text: as typed, None if from a file."""
    if key not in defaults:
        if key in RENAMED:
            fail(f'{where}: {key} is not a key here, it is replaced by {RENAMED[key]}')
        near = difflib.get_close_matches(key, defaults, n=3)
        near = f', did you mean {" or ".join(near)}?' if near else '; see --help'
        fail(f'{where}: unknown key {key!r}{near}' + ' (or is this the config of another script?)' * (text is None))
    default = defaults[key]
    if default == 'auto' and isinstance(value, (bool, str)):
        return value
    if isinstance(default, str) and (isinstance(value, str) or text is not None):
        return value if isinstance(value, str) else text  # --dataset=123 is a name too
    if type(value) is type(default):
        return value
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is int and type(value) is float and value.is_integer():
        return int(value)
    wanted = 'True, False or auto' if default == 'auto' else 'True or False' if isinstance(default, bool) \
        else type(default).__name__
    fail(f'{where}: {key} wants {wanted}, got {value!r} ({type(value).__name__})')


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


def fail(message, any_rank=False):
    """
    End with exit code 1 and one sentence. Under torchrun one process of each machine says it for all (any_rank: where
    only some know, they say it themselves); the others wait a little, for torchrun ends all when the first one goes.
    """
    rank, local_rank = os.environ.get('RANK', '0'), os.environ.get('LOCAL_RANK', '0')
    if local_rank != '0' and not any_rank:
        time.sleep(3)
        raise SystemExit(1)
    raise SystemExit(message if rank == '0' else f'rank {rank}: {message}')
