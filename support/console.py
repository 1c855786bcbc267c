"""
What a person sees: one plain sentence at the end of a failed run, near names, values out of range, help,
streams that break.
"""

import difflib
import glob
import math
import os
import sys
import textwrap
import time
from collections.abc import Collection


def unknown_key(key, keys, renamed, in_file):
    """Why key is not one of keys, and what to write instead."""
    if key in renamed:
        return f'{key} is not a key here. {renamed[key]}'
    near = difflib.get_close_matches(key, keys, n=3)
    hint = f'Did you mean {" or ".join(near)}?' if near else '--help lists all keys.'
    if in_file:
        hint += (f' If {key} is a helper of this file, call it _{key}. '
                 'Or is this the config of another script?')
    return f'unknown key {key}. {hint}'


def show_help(script, defaults):
    """Print every key with its default and the comment behind it in the script's source, and leave."""
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


def near_files(path):
    """' Did you mean ...?' with the config file of the nearest name, in the folder of path or in ours."""
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ours = os.path.relpath(os.path.join(project, 'config'))
    files = {os.path.basename(f)[:-3]: f for folder in (ours, os.path.dirname(path))
             for f in glob.glob(os.path.join(glob.escape(folder), '*.py'))}
    near = difflib.get_close_matches(os.path.basename(path)[:-3], files, n=1)
    return f' Did you mean {files[near[0]]}?' if near else ''


class Unbroken:
    """A text stream that shows what it can, and leads nowhere once its reader or its disk ends."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a closed pipe or terminal, a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def keep_printing():
    """Printing must not end a script: not a character that the terminal lacks, and not a closed pipe."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if hasattr(stream, 'reconfigure') and not isinstance(stream, Unbroken):
            stream.reconfigure(errors='backslashreplace')
            setattr(sys, name, Unbroken(stream))


def reason(error):
    """The message of an error in one line."""
    said = str(getattr(error, 'strerror', None) or error).strip().split('\n')[0]
    return textwrap.shorten(said, 200, placeholder=' ...') or type(error).__name__


def fail(message, any_rank=False):
    """
    End with exit code 1 and one sentence. Under torchrun, only one process per machine prints it; the
    others wait a little, because torchrun ends all processes as soon as one has failed. any_rank: only
    some ranks know of the error, so each of them prints it.
    """
    rank, local_rank = os.environ.get('RANK', '0'), os.environ.get('LOCAL_RANK', '0')
    if local_rank != '0' and 'TORCHELASTIC_RUN_ID' in os.environ and not any_rank:
        time.sleep(3)
        raise SystemExit(1)
    raise SystemExit(message if rank == '0' else f'rank {rank}: {message}')


def check_range(config: dict, low: float, high: float, *keys: str) -> None:
    """Each of the keys must be finite and from low to high."""
    for key in keys:
        if not (low <= config[key] <= high and config[key] < math.inf):  # this refuses nan too
            wanted = f'from {low} to {high}' if high < math.inf else f'of at least {low}'
            fail(f'{key}={config[key]} is out of range. Set --{key} to a number {wanted}.')


def check_choice(config: dict, values: Collection, *keys: str) -> None:
    """Each of the keys must have one of the values."""
    for key in keys:
        if config[key] not in values:
            fail(f'{key}={config[key]} is unknown. Set --{key} to one of {", ".join(map(str, values))}.')
