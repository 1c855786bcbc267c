"""Text -> ids, by tiktoken or as bytes."""

import re
from functools import partial

import numpy as np

from support.console import fail
from support.writing import disk_is_full, said

VOCAB = {'gpt2': 50257, 'byte': 257}  # end-of-text is the last id of both
LONG = 500_000                        # from so many white spaces in a row on, a text is encoded in pieces
SPACES = f'[^\\S\x1c-\x1f]{{{LONG},}}'  # in the sense of tiktoken, which lacks four of Python's


def open_tokenizer(name):
    """A function that makes ids of a text."""
    if name == 'byte':
        return encode_bytes
    if name != 'gpt2':
        fail(f'unknown tokenizer {name!r}. Use --tokenizer=gpt2 or --tokenizer=byte.')
    return partial(encode_gpt2, open_gpt2())


def open_gpt2():
    import tiktoken
    try:
        return tiktoken.get_encoding('r50k_base')  # gpt2's ids in one file, not two
    except Exception as error:
        fail(disk_is_full(error) or
             f'The file of the gpt2 tokenizer cannot be downloaded ({said(error)}). Use --tokenizer=byte, or '
             'put r50k_base.tiktoken into a folder as 0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 and set '
             'TIKTOKEN_CACHE_DIR to it.')


def encode_bytes(text):
    return np.frombuffer(text.encode(), np.uint8)


def encode_gpt2(encoding, text):
    """
    The ids of tiktoken, where '<|endoftext|>' in a text is text. Of white space in front of something else,
    its pattern takes all but the last as one piece, and fails if that is a million. At the end of a text it
    takes any number. So we cut the text there, which changes no piece.
    """
    cuts = [0]
    if len(text) > LONG:
        cuts += [m.end() - 1 for m in re.finditer(SPACES, text) if m.end() < len(text)]
    pieces = []
    for a, b in zip(cuts, [*cuts[1:], None]):
        pieces.append(encoding.encode_to_numpy(text[a:b], disallowed_special=()))
    return np.concatenate(pieces)
