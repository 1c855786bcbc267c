"""Printing must not end a script: names that the terminal cannot show, a reader that has left (| head)."""

import os
import sys


class Unbroken:
    """A text stream that is flushed at once, and leads nowhere once its reader has left."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def keep_printing():
    for name in ('stdout', 'stderr'):
        getattr(sys, name).reconfigure(errors='backslashreplace')
        setattr(sys, name, Unbroken(getattr(sys, name)))
