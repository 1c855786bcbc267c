"""Curves of any run, and the map of the studies: what each says of itself, and how it is run."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from experiments import arms
from experiments.figures import name_run
from model import NORMS
from tests.common import ROOT, table_of

STUDIES = sorted(p.stem for p in (ROOT / 'experiments').glob('*.py')
                 if p.stem not in ('__init__', 'configurator'))
BASE = {'setting': 'S5', 'norm': 'rms', 'optimizer': 'sgdw', 'seed': 1} | dict.fromkeys(NORMS, 'auto')


def write_run(out_dir, train, val, cut=False, **changes):
    """config.json and log.jsonl; train and val are {iteration: loss}. cut: the last line is half written."""
    os.makedirs(out_dir)
    Path(out_dir, 'config.json').write_text(json.dumps({**BASE, 'out_dir': out_dir, **changes}))
    rows = [{'iter': i, 'split': 'val', 'loss': v, 'top1': 1 / v} for i, v in val.items()]
    rows += [{'iter': i, 'split': 'train', 'loss': v, 'lr': 1} for i, v in train.items()]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    Path(out_dir, 'log.jsonl').write_text(text + '{"iter": 99999, "split": "tr' * cut)


def test_curves_of_runs_that_go_on(figures):
    steep = {i: 1 + 9 / (1 + i / 10) for i in range(1000)}
    write_run('out/a', steep, {i: steep[i] + 0.1 for i in range(0, 1000, 100)}, cut=True)
    write_run('out/begun', {0: 5.0}, {}, optimizer='adamw', cut=True)  # has just begun
    said = figures('curves', '--runs=out/a,out/begun')
    ax = plt.gcf().axes[0]
    train, val = (line.get_xydata() for line in ax.lines[:2])
    assert len(train) == 1000 and val.tolist() == [[i, steep[i] + 0.1] for i in range(0, 1000, 100)]
    assert abs(train[500:990, 1] - [steep[i] for i in range(500, 990)]).max() < 0.01  # smoothed, not moved
    assert ax.get_ylabel() == 'loss (nats)'
    assert table_of(said) == [['L-DNT mSGDW', 'out/a', '999', f'{val[-1, 1]:.4f}'],
                              ['L-DNT AdamW', 'out/begun', '0', '']]
    assert os.listdir('figures') == ['curves.png']

    said = figures('curves', '--runs=out/a', '--key=top1', '--out=figures/top.svg')
    assert table_of(said)[0][-1] == f'{1 / val[-1, 1]:.4f}'
    assert b'<dc:date>' not in Path('figures/top.svg').read_bytes()
    figures('curves', '--runs=out/a')
    low, high = plt.gcf().axes[0].get_ylim()
    assert low < min(steep.values()) and high < 2.5 < steep[10]  # the start leaves the picture


def test_names_tell_runs_apart():
    changes = [{}, {'setting': 'S3'}, {'norm': 'layer'}, {'mid_norm': False}, {'arch': 'nfnet'},
               {'image_size': 8, 'optimizer': 'sgd'}, {'optimizer': 'muon'}, {'embed_optimizer': 'adamw'},
               {'embed_optimizer': 'rownorm'}]
    assert [name_run({**BASE, **change}) for change in changes] == [
        'L-DNT mSGDW', 'S3 mSGDW', 'S5 mSGDW', 'L-DNT mid_norm False mSGDW', 'NFNet mSGDW', 'V-DNT SGD',
        'L-DNT Muon', 'L-DNT hybrid', 'L-DNT mSGDW + row norm']


def test_every_committed_figure_is_shown_somewhere():
    pages = ''.join(p.read_text(encoding='utf-8') for folder in ('.', 'docs', 'results')
                    for p in (ROOT / folder).glob('*.md'))
    assert [p.name for p in (ROOT / 'figures').iterdir() if f'figures/{p.name}' not in pages] == []
    shown = set(re.findall(r'figures/(\w+\.(?:png|svg))', pages))
    assert shown and [name for name in shown if not (ROOT / 'figures' / name).exists()] == []


@pytest.mark.parametrize('name', STUDIES)
def test_every_study_has_help(name, monkeypatch, capsys):
    if name == 'vocabulary':
        pytest.importorskip('tiktoken')
    monkeypatch.syspath_prepend(str(ROOT))
    for flag in ('--help', '-h'):
        monkeypatch.setattr(sys, 'argv', [name, flag])
        try:
            runpy.run_path(str(ROOT / f'experiments/{name}.py'), run_name='__main__')
        except SystemExit as end:
            assert end.code == 0
        assert 'python -m experiments.' in capsys.readouterr().out


WITHOUT_PATH = '''
import runpy, sys
from pathlib import Path
sys.path[0] = 'experiments'
for name in sys.argv[1:]:
    sys.argv[0] = f'experiments/{name}.py'
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        print(end.code)
'''


@pytest.mark.slow
def test_a_study_that_is_run_as_a_file_says_how_to_run_it():
    # arms and stack are parts of a study; tiktoken, which vocabulary needs, may not be here
    names = [name for name in STUDIES if name not in ('arms', 'stack', 'vocabulary')]
    said = subprocess.run([sys.executable, '-c', WITHOUT_PATH, *names], cwd=ROOT, capture_output=True,
                          text=True)
    assert said.stdout.splitlines() == [
        f'Run this from the top folder of the repository, as a module: python -m experiments.{name}'
        for name in names], \
        said.stderr[-500:]


def test_the_map_names_every_study_and_what_it_names_is_there(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    text = (ROOT / 'experiments/README.md').read_text(encoding='utf-8')
    assert [name for name in STUDIES if not re.search(rf'experiments\.{name}\b|`{name}\.py`', text)] == []
    for name in re.findall(r'experiments\.(\w+)', text):
        assert name in STUDIES
    for name in (*arms.QUESTIONS, *arms.STUDIES):
        assert re.search(rf'[=`]{name}`', text), name
    for link in re.findall(r'\]\(([^)]+)\)', text):
        path, _, anchor = link.partition('#')
        target = ROOT / 'experiments' / path
        assert target.exists(), link
        if anchor:
            heads = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8'))
            assert anchor in [re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads], link
