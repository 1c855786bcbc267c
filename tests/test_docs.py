"""README.md, CONTRIBUTING.md and docs/: what they show is what happens, and what they name exists."""

import contextlib
import io
import re
import shlex

import pytest
import torch
from torch.distributed.run import get_args_parser

from tests.common import ROOT, finish, in_parallel, script

PAGES = ['README.md', 'CONTRIBUTING.md'] + [f'docs/{path.name}' for path in sorted(ROOT.glob('docs/*.md'))]
DOCS = {page: (ROOT / page).read_text(encoding='utf-8') for page in PAGES}
WALK = DOCS['docs/walkthrough.md']
each_page = pytest.mark.parametrize('page', DOCS)


def fenced(text):
    """(tag, content) of each fenced block."""
    return re.findall(r'(?ms)^```(\w*)\n(.*?)^```$', text)


def prose(text):
    return re.sub(r'(?ms)^```.*?^```$', '', text)


def sections(text):
    return re.split(r'(?m)^(?=## )', text)


@pytest.fixture
def clean_torch(monkeypatch):
    """Snippets set the default dtype and the seed, and read files at the root."""
    monkeypatch.chdir(ROOT)
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)


@each_page
def test_code_runs_and_prints_the_text_below_it(page, clean_torch):
    shown = 0
    for section in sections(DOCS[page]):  # the blocks of a section continue each other
        names, printed = {'__name__': '__main__'}, io.StringIO()
        torch.set_default_dtype(torch.float32)
        runs = re.search(r'(?m)^import torch$', section)  # the sample of a run is in Python too
        for tag, body in fenced(section) if runs else ():
            if tag == 'python':
                with contextlib.redirect_stdout(printed):
                    exec(compile(body, f'{page}: {section.splitlines()[0]}', 'exec'), names)
            elif tag == 'text':
                assert printed.getvalue() == body
                printed, shown = io.StringIO(), shown + 1
        assert not printed.getvalue(), 'nothing below the last block'
    assert shown == sum(tag == 'text' for tag, _ in fenced(DOCS[page]))
    assert shown >= 10 or page != 'docs/walkthrough.md'


def test_quotes_are_verbatim():
    """A block with the tag py quotes the file that was named last, in the file's order."""
    for match in re.finditer(r'(?ms)^```py\n(.*?)^```$', WALK):
        name = re.findall(r'`(\w+\.py)`', WALK[:match.start()])[-1]
        lines, at = [line.strip() for line in (ROOT / name).read_text().splitlines()], 0
        for line in filter(None, map(str.strip, match[1].splitlines())):
            assert line in lines[at:], f'{name} has no such line after line {at}: {line}'
            at = lines.index(line, at) + 1


def keys(script):
    """The names that a script assigns at its top level before it calls configure(globals())."""
    source = (ROOT / script).read_text(encoding='utf-8')
    return set(re.findall(r'(?m)^([a-z]\w*) = ', source.partition('configure(globals()')[0])) | {'help'}


def commands(text):
    """The commands of a page, each as its words, without comments. Shell functions are written out."""
    shell = [body for tag, body in fenced(text) if tag in ('sh', 'bash')]
    shell += re.findall(r'(?m)^    (python .*)$', prose(text))
    shell += re.findall(r'`((?:python3?|torchrun) [^`]+)`', prose(text))
    shell = '\n'.join(shell).replace('\\\n', ' ')
    for name, meaning in re.findall(r'(?m)^(\w+)\(\) \{ (.*) "\$@"; \}$', shell):
        shell = re.sub(rf'(?m)^{name}\(\).*$', '', shell)
        shell = re.sub(rf'(?m)^{name}\b', meaning, shell)
    parts = re.split(r'&&|;|\||\n', re.sub(r'(?m)(^|\s)#.*', '', shell))
    return [words for words in map(shlex.split, parts) if words]


def script_of(words):
    """The script that a command starts, and the words behind it; (None, []) if it is none of ours."""
    for i, word in enumerate(words):
        if word == '-m' and re.match(r'(experiments|support|tests)\.', words[i + 1]):
            return words[i + 1].replace('.', '/') + '.py', words[i + 2:]
        if word.endswith('.py') and i and not words[i - 1].startswith('config/'):
            return word, words[i + 1:]
    return None, []


def example(name):
    """A name that stands for one of the reader's, as in path/to/pictures and config/NAME.py."""
    return name.startswith('path/to') or bool(re.search(r'[A-Z]{4}|[$*<]', name))


def test_commands_name_scripts_configs_and_keys_that_exist():
    scripts = set()
    for name, rest in [script_of(words) for text in DOCS.values() for words in commands(text)]:
        if not name:
            continue
        assert (ROOT / name).is_file(), name
        scripts.add(name)
        for word in rest:
            if word.startswith('--'):
                assert word[2:].partition('=')[0] in keys(name), f'{name} has no {word}'
            elif word.endswith('.py'):
                assert example(word) or (ROOT / word).is_file(), f'{word} of {name}'
    assert {'train_gpt.py', 'train_vit.py', 'prepare_owt.py', 'sample.py'} <= scripts


@each_page
def test_names_exist_and_numbers_are_in_the_results(page):
    text, scripts = prose(DOCS[page]), [*ROOT.glob('*.py'), *ROOT.glob('experiments/*.py')]
    known = {'signal', *vars(get_args_parser().parse_args(['x.py']))}  # of Slurm and of torchrun
    known = known.union(*(keys(path.relative_to(ROOT)) for path in scripts))
    for key in re.findall(r'`--(\w+)=[^`]*`', text):
        assert key in known, f'--{key}'
    for name in re.findall(r'`([\w/.]*\w\.(?:py|md))`', text):
        assert example(name) or (ROOT / name).is_file() or list(ROOT.glob(f'*/{name}')), name
    for name in re.findall(r'`((?:dnt|gpt2|vit|vdnt|nft|nfnet)_\w+)`', text):
        assert (ROOT / f'config/{name}.py').is_file(), name
    if page == 'docs/paper.md':
        return  # its numbers are choices, of the paper, of its sources and ours, and no results
    # three decimals or more: of results/, of the page's own blocks, of a config or of model.py
    sources = [*ROOT.glob('results/*.md'), *ROOT.glob('config/*.py'), ROOT / 'model.py']
    there = [path.read_text(encoding='utf-8') for path in sources] + [body for _, body in fenced(DOCS[page])]
    there = [float(x) for x in re.findall(r'\d+\.\d+', '\n'.join(there))]
    for number in re.findall(r'(?<![\w.:/])\d\.\d{3,}(?![\d.])', text):
        assert any(f'{x:.{len(number) - 2}f}' == number for x in there), number


def test_pages_are_short_and_the_walkthrough_fits_a_projector():
    longest = {'README.md': 900, 'docs/paper.md': 1000, 'docs/walkthrough.md': 3500}
    for page, text in DOCS.items():  # words as `wc -w` counts them, code and tables too
        assert len(text.split()) <= longest.get(page, 1200), page
    assert max(map(len, WALK.splitlines())) <= 110


@pytest.mark.slow
def test_exercises_run_as_printed(tokens, tmp_path):
    tiny = ['--max_iters=4', '--warmup_iters=2', '--n_layer=1', '--n_embd=16', '--block_size=8',
            '--keep_interval=2', f'--dataset={tokens}']
    lines = {}
    for name, rest in map(script_of, commands(WALK)):
        if name == 'train_gpt.py':
            rest = [word.replace('=out/', f'={tmp_path}/') for word in rest]
            run = next(word for word in rest if word.startswith('--out_dir='))
            lines.setdefault(run, []).append([name, *rest, *tiny])
    in_parallel([lambda turns=turns: [finish(script(*line)) for line in turns] for turns in lines.values()])
    names = {}
    exec(next(body for _, body in fenced(WALK) if 'def weights' in body), names)
    before, after = (names['weights'](tmp_path / 'e9', 'ffn.c_fc.weight', file)
                     for file in ('ckpt_000002.pt', 'ckpt.pt'))
    assert 0 < torch.cosine_similarity(before, after).acos() < 3.2
