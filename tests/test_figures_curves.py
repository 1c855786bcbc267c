"""experiments/figures.py and the map of the studies: curves of any run, one look for each arm, --help."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(p.stem for p in (ROOT / 'experiments').glob('*.py') if p.stem != 'configurator')


@pytest.fixture
def functions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return runpy.run_path(str(ROOT / 'experiments/figures.py'))


def table_of(said):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in said.splitlines()
            if line.startswith('|')][2:]


def write_run(out_dir, train, val, cut=False, **changes):
    """config.json and log.jsonl; train and val are {iteration: loss}. cut: the last line is half written."""
    config = {'setting': 'S5', 'norm': 'rms', 'optimizer': 'sgdw', 'learning_rate': 0.1, 'seed': 1,
              'out_dir': out_dir, 'block_size': 8, **changes}
    os.makedirs(out_dir)
    Path(out_dir, 'config.json').write_text(json.dumps(config))
    rows = [{'iter': i, 'split': 'val', 'loss': v, 'top1': 1 / v} for i, v in val.items()]
    rows += [{'iter': i, 'split': 'train', 'loss': v, 'lr': 1} for i, v in train.items()]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    Path(out_dir, 'log.jsonl').write_text(text + '{"iter": 99999, "split": "tr' * cut)


def drawn(ax, width):
    """(x, y) of the lines of a width: 1.2 is training, 3 validation."""
    return [line.get_xydata() for line in ax.lines if line.get_linewidth() == width]


def test_curves_of_a_run_that_goes_on(figures):
    steep = {i: 1 + 9 / (1 + i / 10) for i in range(0, 1000)}
    write_run('out/a', steep, {i: steep[i] + 0.1 for i in range(0, 1000, 100)}, cut=True)
    said = figures('curves', '--runs=out/a')
    ax = plt.gcf().axes[0]
    (train,), (val,) = drawn(ax, 1.2), drawn(ax, 3)
    assert len(train) == 1000 and val.tolist() == [[i, steep[i] + 0.1] for i in range(0, 1000, 100)]
    assert abs(train[500:990, 1] - [steep[i] for i in range(500, 990)]).max() < 0.01  # smoothed, not moved
    assert ax.get_ylabel() == 'loss (nats per token)' and 0 < ax.get_xlim()[0] < 0.02 * 999
    low, high = ax.get_ylim()
    # the steep start leaves the picture
    assert low < min(steep.values()) and steep[200] < high < 2.5 < steep[10]
    assert table_of(said) == [['L-DNT mSGDW', '1', '999', f'{val[-1, 1]:.4f}']]
    legend = [t.get_text() for t in plt.gcf().legends[0].get_texts()]
    assert legend == [f'L-DNT mSGDW\n{val[-1, 1]:.4f}', 'training', 'validation']
    assert ax.get_legend() is None and os.listdir('figures') == ['curves.png']


def test_curves_draw_what_is_there(figures):
    write_run('out/begun', {0: 5.0}, {0: 5.5}, cut=True)  # has just begun
    write_run('out/no_val', {i: 5 - i / 100 for i in range(0, 100, 10)}, {}, optimizer='adamw')
    write_run('out/no_train', {}, {0: 5.0, 50: 3.0, 100: 2.0}, setting='S1', norm='layer')
    for name, last in (('begun', '5.5000'), ('no_val', 'training 4.1000'), ('no_train', '2.0000')):
        assert table_of(figures('curves', f'--runs=out/{name}'))[0][-1] == last
    assert [row[0] for row in table_of(figures('curves', '--runs=out/begun,out/no_val,out/no_train'))] == \
        ['L-DNT mSGDW', 'L-DNT AdamW', 'GPT-2 mSGDW']
    said = figures('curves', '--runs=out/no_train', '--key=top1', '--out=figures/top.svg')
    assert table_of(said)[0][-1] == '50.0000' and Path('figures/top.svg').exists() and b'<dc:date>' not in \
        Path('figures/top.svg').read_bytes()
    with pytest.raises(SystemExit, match='has no rows with top5'):
        figures('curves', '--runs=out/no_train', '--key=top5')


def test_one_colour_for_each_network_and_one_line_for_each_optimizer(functions):
    names = [f'{network} {optimizer}' for network in ('GPT-2', 'L-DNT')
             for optimizer in ('AdamW', 'AdamW + row norm', 'mSGDW', 'mSGDW + row norm', 'hybrid', 'Muon',
                               'Muon + row norm')]
    found = dict(zip(names, functions['styles'](names)))
    assert len({s['color'] for s in found.values()}) == 2 and len({str(s['linestyle'])
                                                                   for s in found.values()}) == 7
    assert len({s['marker'] for s in found.values()}) == 7
    alone = functions['styles'](['L-DNT mSGDW'])[0]
    # whatever else is in the picture
    assert found['L-DNT mSGDW'] == alone == functions['styles'](['V-DNT mSGDW'])[0]
    assert functions['styles'](['S1 AdamW'])[0] == found['GPT-2 AdamW']
    same = functions['styles'](['L-DNT mSGDW, learning_rate 0.1', 'L-DNT mSGDW, learning_rate 0.2',
                                'L-DNT mSGDW, c'])
    assert len({s['color'] for s in same}) == 3 and found['GPT-2 mSGDW']['color'] not in {s['color']
                                                                                          for s in same}
    variants = list(runpy.run_path(str(ROOT / 'experiments/reproduce.py'))['VARIANTS'])
    stability = dict(zip(variants, functions['styles'](variants)))
    weights = [name for name in variants if 'init' not in name]
    assert len({s['color'] for s in stability.values()}) == 9
    # two pictures, the same colours
    assert functions['styles'](weights) == [stability[name] for name in weights]


def test_seeds_have_dots_a_mean_and_an_interval(figures, functions):
    assert functions['interval']([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.3027 / 3 ** 0.5))
    assert functions['interval']([1.0]) == (1.0, float('inf'))
    _, eleven = functions['interval'](list(range(11)))
    # t of 10 degrees of freedom
    assert eleven == pytest.approx(2.228 * np.std(range(11), ddof=1) / 11 ** 0.5, rel=1e-3)
    os.makedirs('results')
    rows = [{'run': {'variant': name, 'config': 'x', 'seed': seed}, 'ended': 'finished', 'val_loss': loss
             + seed / 10}
            for name, loss in (('L-DNT mSGDW', 2.0), ('GPT-2 mSGDW', 3.0)) for seed in (1, 2, 3)]
    Path('results/arms.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    table = table_of(figures('seeds', '--study=arms'))
    assert table == [['GPT-2 mSGDW', '3', '3.2000 ± 0.1000', '0.2484'],
                     ['L-DNT mSGDW', '3', '2.2000 ± 0.1000', '0.2484']]
    ax = plt.gcf().axes[0]
    dots = [line.get_xydata().round(6).tolist() for line in ax.lines if line.get_marker() == 'o']
    assert dots == [[[3.1, 0], [3.2, 0], [3.3, 0]], [[2.1, 1], [2.2, 1], [2.3, 1]]]
    ends = [np.round(c.get_segments()[0], 4).tolist() for c in ax.collections]
    assert ends == [[[2.9516, 0], [3.4484, 0]], [[1.9516, 1], [2.4484, 1]]]
    assert Path('figures/arms.png').exists()
    extra = [{'run': {'variant': 'L-DNT mSGDW', 'config': 'x', 'seed': seed, **more}, 'ended': 'finished',
              'val_loss': 0.0}
             for seed, more in ((101, {}), (1, {'n_embd': 64}))]  # a seed of the search, and another width
    Path('results/arms.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows + extra))
    assert table_of(figures('seeds', '--study=arms')) == table
    assert table_of(figures('seeds', '--study=arms', '--where=n_embd=64,seed=1')) == [['L-DNT mSGDW', '1',
                                                                                       '0.0000', '']]
    with pytest.raises(SystemExit, match='has no run with n_embd=65'):
        figures('seeds', '--study=arms', '--where=n_embd=65')


def test_gradients_are_drawn_from_what_was_measured(figures, functions):
    os.makedirs('results')
    levels = functions['LEVELS']
    rows = [{'run': run, 'iter': at, 'weight': weight, 'kurtosis': i + at, 'ratio': 5.0, 'hill': 10.0 - i,
             'above': [0.5 / at / (i + 1)] * len(levels)} for run in ('GPT-2 AdamW', 'L-DNT mSGDW')
            for at in (10, 20)
            for i, weight in enumerate(functions['WEIGHTS'])]
    Path('results/gradients.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert table_of(figures('gradients'))[:2] == [['GPT-2 AdamW', '10', '10.0 to 15.0', '5.0 to 5.0',
                                                   '5.0 to 10.0'],
                                                  ['GPT-2 AdamW', '20', '20.0 to 25.0', '5.0 to 5.0',
                                                   '5.0 to 10.0']]
    first, last = plt.gcf().axes
    assert [line.get_ydata()[0] for line in first.lines[1:]] == [0.025] * 2  # the last iteration, W_q
    assert [line.get_ydata()[0] for line in last.lines[1:]] == [0.025 / 6] * 2  # and W_2
    assert [t.get_text() for t in plt.gcf().legends[0].get_texts()] == ['normal distribution', 'GPT-2 AdamW',
                                                                        'L-DNT mSGDW']


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
    names = [name for name in STUDIES if name != 'vocabulary']  # tiktoken may not be here
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
    studies = runpy.run_path(str(ROOT / 'experiments/reproduce.py'))['STUDIES']
    commands = [row.split('|')[2] for row in text.splitlines() if 'experiments.reproduce ' in row]
    named = {word for command in commands for word in re.findall(r'reproduce (\w+)|`(\w+)`', command)
             for word in word if word}
    assert named == set(studies) - {'law_fifth'}
    for link in re.findall(r'\]\(([^)]+)\)', text):
        path, _, anchor = link.partition('#')
        target = ROOT / 'experiments' / path
        assert target.exists(), link
        if anchor:
            heads = re.findall(r'(?m)^#+ (.*)$', target.read_text(encoding='utf-8'))
            assert anchor in [re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads], link


def test_bench_counts_the_pictures_that_the_loader_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    jpegs = []
    for i in range(3):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)).save(file, 'JPEG')
        jpegs.append(file.getvalue())
    (tmp_path / 'train_jpeg.bin').write_bytes(b''.join(jpegs))
    np.save(tmp_path / 'train_offsets.npy', np.cumsum([0, *map(len, jpegs)]))
    monkeypatch.setattr(sys, 'argv', ['bench', '--only=loader', '--repeats=2', f'--images={tmp_path}',
                                      '--gpu_speed=1000', '--device=cpu'])
    threads = torch.get_num_threads()
    runpy.run_path(str(ROOT / 'experiments/bench.py'), run_name='__main__')
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert 'Loader: 3 pictures' in said and 'cores for 8 GPUs at 1000 pictures/s each' in said
    rows = {row[0]: [float(cell.replace(',', '')) for cell in row[1:]] for row in table_of(said)}
    assert len(rows) == 4
    for speed, slowest, fastest, share, cores in rows.values():
        assert 0 < slowest <= speed <= fastest and cores >= 1
        assert share == pytest.approx(speed / rows['decode, crop, resize (the limit)'][0], rel=0.02)
        assert 8000 / speed == pytest.approx(cores, abs=1.01 + 0.01 * cores)
    assert rows['decode'][0] > rows['our loader with RandAugment'][0]
