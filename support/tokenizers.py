"""Text -> ids, by tiktoken or as bytes."""

import re
from functools import partial

import numpy as np

from support.console import fail
from support.writing import said

VOCAB = {'gpt2': 50257, 'byte': 257}  # end-of-text is the last id of both
LONG = 500_000                        # from so many white spaces in a row on, a text is encoded in pieces
# such a row in front of something else. tiktoken's white space lacks four characters of Python's
SPACES = r'(?<![^\S\x1c-\x1f])[^\S\x1c-\x1f]{%d,}(?=[\S\x1c-\x1f])'


def open_tokenizer(name):
    """A function that makes ids of a text."""
    if name == 'byte':
        return encode_bytes
    if name == 'gpt2':
        return partial(encode_gpt2, open_gpt2())
    fail(f'unknown tokenizer {name!r}. Use --tokenizer=gpt2 or --tokenizer=byte.')


def open_gpt2():
    import tiktoken
    try:
        return tiktoken.get_encoding('r50k_base')  # gpt2's ids in one file, not two
    except Exception as error:
        fail(f'The file of the gpt2 tokenizer cannot be fetched ({said(error)}). Put r50k_base.tiktoken into '
             'a folder as 0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 and set TIKTOKEN_CACHE_DIR to it, or '
             'prepare the text with --tokenizer=byte.')


def encode_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


def encode_gpt2(encoding, text):
    """
    The ids of tiktoken, where '<|endoftext|>' in a text is text. It fails at a million white spaces in front
    of something else, of which its pattern takes all but the last as one piece. A cut there changes no piece.
    """
    pieces, start = [], 0
    if len(text) > LONG:
        for spaces in re.finditer(SPACES % LONG, text):
            pieces.append(encoding.encode_to_numpy(text[start:spaces.end() - 1], disallowed_special=()))
            start = spaces.end() - 1
    pieces.append(encoding.encode_to_numpy(text[start:], disallowed_special=()))
    return np.concatenate(pieces)
