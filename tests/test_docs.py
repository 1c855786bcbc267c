"""docs/walkthrough.md: what it shows is what happens."""

import ast
import contextlib
import io
import re

import pytest
import torch

from tests.common import ROOT


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def fenced_blocks(text):
    """(tag, what it holds, the line of text above it) of each fenced block."""
    blocks, tag, above = [], None, ''
    for line in text.splitlines():
        if tag is None and line.startswith('```'):
            tag, body = line[3:], []
        elif line == '```':
            blocks.append((tag, ''.join(f'{b}\n' for b in body), above))
            tag = None
        elif tag is not None:
            body.append(line)
        elif line.strip():
            above = line
    return blocks


WALK = fenced_blocks(read('docs/walkthrough.md'))

SNIPPETS = [(code, output[1]) for (tag, code, _), output in zip(WALK, WALK[1:])
            if tag == 'python' and output[0] == 'text']


@pytest.fixture
def clean_torch(monkeypatch):
    """Snippets set the default dtype and the seed, and read files at the root; one thread is best."""
    monkeypatch.chdir(ROOT)
    dtype, state, threads = torch.get_default_dtype(), torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)


def test_walkthrough_snippets_print_what_stands_below_them(clean_torch):
    assert len(SNIPPETS) >= 8
    assert len(SNIPPETS) == sum(tag == 'python' for tag, _, _ in WALK)
    assert len(SNIPPETS) == sum(tag == 'text' for tag, _, _ in WALK)
    for i, (code, output) in enumerate(SNIPPETS):
        torch.set_default_dtype(torch.float32)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f'docs/walkthrough.md, snippet {i}', 'exec'), {'__name__': '__main__'})
        assert printed.getvalue() == output, f'snippet {i}'


def test_walkthrough_quotes_are_verbatim():
    quotes = [(body, above) for tag, body, above in WALK if tag == 'py']
    assert len(quotes) >= 5
    for body, above in quotes:
        name = re.findall(r'`(\w+\.py)`', above)[-1]
        lines = [line.strip() for line in read(name).splitlines()]
        at = 0  # the lines of a quote come in the file's order
        for line in filter(None, map(str.strip, body.splitlines())):
            assert line in lines[at:], f'{name} has no such line after line {at}: {line}'
            at = lines.index(line, at) + 1


def keys(script):
    """The names that a script assigns at its top level before it calls configure(globals())."""
    head = read(script).partition('configure(globals()')[0]
    return set(re.findall(r'(?m)^(\w+) = ', head))


def test_walkthrough_commands_name_what_exists():
    shell = ''.join(body for tag, body, _ in WALK if tag == 'sh')
    name, meaning = re.search(r'(?m)^(\w+)\(\) \{ (.*) "\$@"; \}$', shell).groups()
    commands = [line.replace(name, meaning, 1) if line.startswith(name + ' ') else line
                for line in shell.splitlines() if not line.startswith(name + '()')] + [meaning]
    assert sum(c.startswith(meaning) and '#' in c for c in commands) >= 12
    for command in commands:
        command, _, comment = command.partition('#')
        python, script, *rest = command.split()
        assert python == 'python', command
        assert (ROOT / script).exists(), command
        for word in rest:
            assert word.startswith('--') or (ROOT / word).exists(), f'{word} in {command}'
        for key, value in re.findall(r'--(\w+)=(\S+)', command + comment.replace(',', ' ')):
            assert key in keys(script), f'{script} has no key {key}'
        for path in re.findall(r'config/\w+\.py', comment):
            assert (ROOT / path).exists(), path
    named = [re.findall(r'--out_dir=(\S+)', c) for c in commands]
    # no run is refused because another left its files
    assert len({n[0] for n in named if n}) == sum(map(bool, named))
    for key, value in re.findall(r'`--(\w+)=(\w+)`', read('docs/walkthrough.md')):
        assert key in keys('train_gpt.py'), key


def test_walkthrough_numbers_are_those_of_the_results():
    results = read('results/README.md')
    rows = re.findall(r'(?m)^\| `\w+_tiny.*\|$', read('docs/walkthrough.md'))
    assert len(rows) == 4
    assert all(row in results for row in rows)
    assert '1.7009' in results
    for link in re.findall(r'\]\(\.\./([^)#]+)\)', read('docs/walkthrough.md')):
        assert (ROOT / link).exists(), link


def test_walkthrough_is_readable_in_a_terminal():
    text = read('docs/walkthrough.md')
    assert text.isascii()
    assert 250 <= len(text.splitlines()) <= 400
    assert max(map(len, text.splitlines())) <= 150
    for tag, body, _ in WALK:
        if tag == 'python':
            ast.parse(body)
