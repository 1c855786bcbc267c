"""Text -> ids, by tiktoken or as bytes."""

from functools import cache

import numpy as np

from support.console import fail, reason

VOCAB = {'gpt2': 50257, 'byte': 257}  # end-of-text is the last id of both


@cache
def open_gpt2():
    import tiktoken
    try:
        return tiktoken.get_encoding('r50k_base')  # gpt2's ids in one file, not two
    except Exception as error:
        fail(f'The file of the gpt2 tokenizer cannot be fetched ({reason(error)}). Put r50k_base.tiktoken '
             'into a folder as 0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 and set TIKTOKEN_CACHE_DIR to it, or '
             'prepare the text with --tokenizer=byte.')


def encode(text, tokenizer):
    """The ids of a text and end-of-text behind them, as they are stored"""
    if tokenizer == 'byte':
        ids = np.frombuffer(text.encode(), np.uint8)
    else:
        gpt2 = open_gpt2()
        try:
            ids = gpt2.encode_to_numpy(text, disallowed_special=())  # '<|endoftext|>' is text
        except BaseException:  # a panic of Rust, at a million white spaces in front of something else
            fail(f'tiktoken cannot encode the document that begins {text[:40]!r}, probably because it has a '
                 'million white spaces in a row. Remove them, or use --tokenizer=byte.')
    stored = np.empty(len(ids) + 1, '<u2' if VOCAB[tokenizer] <= 2**16 else '<u4')
    stored[:-1] = ids
    stored[-1] = VOCAB[tokenizer] - 1
    return stored
