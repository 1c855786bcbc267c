"""The results pages and the README: their tables, numbers and verdicts are what the committed logs say."""

import json
import re
import statistics

import pytest

from experiments import arms, evidence
from tests.common import ROOT
from tests.test_studies import experiment

PAGES = {path.name: path.read_text(encoding='utf-8') for path in (ROOT / 'results').glob('*.md')}
LINES = {line.strip() for page in PAGES.values() for line in page.splitlines()}
LOGS = {study: evidence.read(ROOT / f'results/{study}.jsonl') for study in ('evidence', *arms.STUDIES)}
CLAIMS = evidence.judged(LOGS)


def printed(*command):
    return [line for line in experiment(*command).splitlines() if line.startswith('|')]


def test_tables_and_every_interval_in_the_text_are_printed_by_their_commands(tmp_path, monkeypatch):
    """A number with ±, in the pages of the protocol and in the README, has its like in a printed table."""
    monkeypatch.chdir(ROOT)
    tables = printed('evidence', '--table=True')
    tables += printed('figures', 'frequency', f'--out={tmp_path}/picture.png')
    assert len(tables) > 150
    assert [line for line in tables if line not in LINES] == []
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
    a, b, c, d = ([of_arm[seed] for seed in range(1, 17)] for of_arm in of)
    values = [w - x - y + z for w, x, y, z in zip(a, b, c, d, strict=True)]
    claim, = (claim for claim in CLAIMS if claim['words'].startswith('plain: the gap is smaller on L-DNT'))
    half = 2.13145 * statistics.stdev(values) / 4  # the t of 15 degrees
    assert claim['mean'] == pytest.approx(statistics.fmean(values))
    assert (claim['seeds'], claim['half']) == (16, pytest.approx(half, rel=1e-4))


@pytest.mark.slow
def test_the_forest_has_every_claim(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = printed('figures', 'forest', f'--out={tmp_path}/forest.png')
    assert len(rows) == 2 + len(CLAIMS)


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


def test_links_lead_somewhere_and_figures_are_shown():
    shown, folders = set(), ('.', 'docs', 'results', 'experiments')
    for path in (path for folder in folders for path in (ROOT / folder).glob('*.md')):
        text = path.read_text(encoding='utf-8')
        shown |= set(re.findall(r'figures/(\w+\.(?:png|svg))', text))
        for link, anchor in re.findall(r'\]\((?!https:)([^)#]*)#?([^)]*)\)', text):
            target = path.parent / link if link else path
            assert target.exists(), f'{path}: {link}'
            if anchor:
                heads = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8'))
                anchors = [re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads]
                assert anchor in anchors, f'{path}: {link}#{anchor}'
    assert shown == {path.name for path in (ROOT / 'figures').iterdir()}
