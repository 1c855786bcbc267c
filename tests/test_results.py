"""The results pages and the README: their tables, numbers and verdicts are what the committed logs say."""

import contextlib
import io
import json
import re
import runpy
import statistics
import sys

import pytest

from experiments import arms, evidence
from tests.common import ROOT

PAGES = {path.name: path.read_text(encoding='utf-8') for path in (ROOT / 'results').glob('*.md')}
LINES = {line.strip() for page in PAGES.values() for line in page.splitlines()}
LOGS = {study: evidence.read(ROOT / f'results/{study}.jsonl') for study in ('evidence', *arms.STUDIES)}
CLAIMS = evidence.judged(LOGS)


def printed(command):
    module, *rest = command.split()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(ROOT)
        patch.setattr(sys, 'argv', [module, *rest])
        runpy.run_path(str(ROOT / f'experiments/{module}.py'), run_name='__main__')
    return [line for line in said.getvalue().splitlines() if line.startswith('|')]


def test_tables_and_every_interval_in_the_text_are_printed_by_their_commands(tmp_path):
    """A number with ±, in the pages of the protocol and in the README, has its like in a printed table."""
    tables = printed('evidence --table=True') + printed(f'figures frequency --out={tmp_path}/picture.png')
    assert len(tables) > 150
    assert [line for line in tables if line.strip() not in LINES] == []
    pair = re.compile(r'([-+]?\d+\.(\d+)) ± (\d+\.\d+)')
    known = [(abs(float(a)), float(b)) for line in tables for a, _, b in pair.findall(line)]
    texts = {name: PAGES[name] for name in ('README.md', 'language.md', 'ablation.md', 'images.md')}
    texts['the README'] = (ROOT / 'README.md').read_text(encoding='utf-8')
    for name, text in texts.items():
        prose = '\n'.join(line for line in text.splitlines() if not line.startswith('|'))
        for a, digits, b in pair.findall(prose):
            near = 0.51 * 10.0 ** -len(digits)
            assert any(abs(abs(float(a)) - mean) <= near and abs(float(b) - half) <= near
                       for mean, half in known), f'{name}: {a} ± {b}'


def test_claims_are_what_the_log_says_by_other_code():
    rows = [json.loads(line) for line in open(ROOT / evidence.RESULTS)]

    def losses(variant, **values):
        return {row['run']['seed']: row['val_loss'] for row in rows if row['run']['variant'] == variant
                and values.items() <= row['run'].items() and row['run']['seed'] < 17}

    long = {'max_iters': 4500}
    of = [losses('L-DNT mSGDW', **long, learning_rate=0.4, warmup_iters=1350, weight_decay=0.003),
          losses('L-DNT AdamW', **long, learning_rate=0.008, warmup_iters=1350, weight_decay=0.1),
          losses('GPT-2 mSGDW', **long, learning_rate=0.4, warmup_iters=3150, weight_decay=0.0003),
          losses('GPT-2 AdamW', **long, learning_rate=0.008, warmup_iters=2250, weight_decay=0.1)]
    assert [len(losses) for losses in of] == 4 * [16]
    a, b, c, d = ([losses[seed] for seed in range(1, 17)] for losses in of)
    for words, values in (('plain: mSGDW matches AdamW on L-DNT', [x - y for x, y in zip(a, b)]),
                          ('plain: the gap is smaller on L-DNT than on GPT-2',
                           [w - x - y + z for w, x, y, z in zip(a, b, c, d)])):
        claim, = (claim for claim in CLAIMS if claim['words'] == words)
        half = 2.13145 * statistics.stdev(values) / 4  # the t of 15 degrees
        assert (claim['seeds'], claim['mean'], claim['half']) == (
            16, pytest.approx(statistics.fmean(values)), pytest.approx(half, rel=1e-4))


@pytest.mark.slow
def test_the_forest_has_every_claim(tmp_path):
    rows = [line.split(' | ') for line in printed(f'figures forest --out={tmp_path}/forest.png')[2:]]
    assert [(words.strip('| '), verdict) for words, verdict, _ in rows] == \
        [(claim['words'], claim['verdict']) for claim in CLAIMS]


def test_the_answer_says_what_is_open_and_no_more_than_the_headline():
    for head, verdict in (('Open', 'open'), ('To be scored', 'to be scored')):
        wanted = sorted(claim['words'] for claim in CLAIMS if claim['verdict'] == verdict)
        section = re.search(rf'(?ms)^## {head}\n(.*?)(^## |\Z)', PAGES['README.md'])
        assert sorted(re.findall(r'(?m)^- (.*)$', section[1] if section else '')) == wanted
    headline, = (claim for claim in CLAIMS if claim['words'] == 'row norm: mSGDW matches AdamW on L-DNT')
    for text in (PAGES['README.md'], (ROOT / 'README.md').read_text(encoding='utf-8')):
        said = 'not established' in ' '.join(text.replace('*', '').split())
        assert said == (headline['verdict'] == 'to be scored')


def test_gpu_and_cpu_agree():
    cpu = evidence.read(ROOT / 'results/evidence_cpu.jsonl')
    apart = [abs(row['val_loss'] - LOGS['evidence'][k]['val_loss']) for k, row in cpu.items()
             if k in LOGS['evidence']]
    assert len(apart) > 5
    assert f'differs by at most {max(apart):.3f}' in PAGES['language.md']


def links_of(folder, text):
    """The links of a page that lead nowhere: no such file, or no such heading in it."""
    for link in re.findall(r'\]\((?!https:)([^)#]*#?[^)]*)\)', text):
        path, _, anchor = link.partition('#')
        target = ROOT / folder / path
        heads = []
        if path and target.is_file() and anchor:
            heads = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8'))
        elif anchor:
            heads = re.findall(r'(?m)^#+ (.*)$', text)
        anchors = [re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads]
        if (path and not target.exists()) or (anchor and anchor not in anchors):
            yield link


def test_links_lead_somewhere_and_figures_are_shown():
    pages = [*PAGES.items(), ('the map', (ROOT / 'experiments/README.md').read_text(encoding='utf-8'))]
    for name, page in pages:
        assert not list(links_of('experiments' if name == 'the map' else 'results', page)), name
    text = ''.join(p.read_text(encoding='utf-8') for folder in ('.', 'docs', 'results')
                   for p in (ROOT / folder).glob('*.md'))
    shown = set(re.findall(r'figures/(\w+\.(?:png|svg))', text))
    assert shown == {p.name for p in (ROOT / 'figures').iterdir()}
