"""The experiments: map, help, costs, a smaller vocabulary, studies without a search."""

import contextlib
import io
import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch

from configurator import read_file
from experiments import arms, costs, evidence
from tests.common import ROOT, assert_refused, finish, gpt2_is_here, python, table_of, write_images

STUDIES = sorted(path.stem for path in (ROOT / 'experiments').glob('[a-z]*.py'))


def experiment(name, *args):
    """What python -m experiments.NAME prints; it runs in this process."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, 'argv', [name, *args])
        runpy.run_path(str(ROOT / f'experiments/{name}.py'), run_name='__main__')
    return said.getvalue()


@pytest.mark.parametrize('name', STUDIES)
def test_every_study_has_help(name, monkeypatch, capsys):
    if name == 'vocabulary':
        pytest.importorskip('tiktoken')
    monkeypatch.setattr(sys, 'argv', [name, '--help'])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / f'experiments/{name}.py'), run_name='__main__')
    assert 'python -m experiments.' in capsys.readouterr().out


def test_the_map_names_every_study_and_what_it_names_is_there():
    text = (ROOT / 'experiments/README.md').read_text(encoding='utf-8')
    assert [name for name in STUDIES if not re.search(rf'experiments\.{name}\b|`{name}\.py`', text)] == []
    assert set(re.findall(r'experiments\.(\w+)', text)) <= set(STUDIES)
    for name in (*arms.QUESTIONS, *arms.STUDIES):
        assert re.search(rf'[=`]{name}`', text), name


@pytest.mark.parametrize('study,setting,words', [
    ('costs', '--gpu=H900', 'gpu=H900 is unknown. Set --gpu to one of'),
    ('evidence', '--device=cuda', 'device=cuda, but PyTorch sees no CUDA GPU. Use --device=cpu.'),
    ('propositions', '--widths=16,2', 'widths=16,2 is not a list of even numbers from 4 on. Use')])
def test_studies_refuse_in_words(monkeypatch, study, setting, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert_refused(lambda: experiment(study, setting), words)


@pytest.mark.slow
def test_costs_on_paper_are_the_ones_done_by_hand(monkeypatch):
    monkeypatch.chdir(ROOT)
    out = experiment('costs', '--gpu=A100', '--mfu=0.25')
    row, = (row for row in table_of(out) if row[0] == '`dnt_xl` 1438.0M')
    flops = 6 * (1438.0e6 - 1024 * 1536) + 12 * 48 * 1536 * 1024  # for a token
    assert row[1:5] == ['104.9B tokens', f'{flops / 1e9:.2f}', '23.0 GB', '17.3 GB']
    days = 200_000 * 512 * 1024 * flops / (312e12 * 0.25) / 86400
    assert row[7] == f'{days:.2g}'


def test_optimizer_memory_is_what_table_2_says():
    model = costs.build(read_file(f'{ROOT}/config/dnt_tiny.py'))
    n, tensors = costs.count(model), len(list(model.parameters()))
    assert costs.kept('AdamW', model) == 8 * n + 4 * tensors  # a step counter for each tensor, too
    assert costs.kept('mSGDW', model) == 4 * n
    n_embeddings = model.wte.weight.numel() + model.wpe.weight.numel()
    assert costs.kept('hybrid', model) == 4 * n + 4 * n_embeddings + 4 * 2
    # the paper's 11.5 and 5.7 GB: 8 and 4 bytes for each parameter but the positions, in 10^9 bytes
    model = costs.build(read_file(f'{ROOT}/config/dnt_xl.py'))
    n = costs.count(model) - model.wpe.weight.numel()
    assert n == 1_436_451_840 and (f'{8e-9 * n:.1f}', f'{4e-9 * n:.1f}') == ('11.5', '5.7')


@gpt2_is_here
def test_a_smaller_vocabulary(tmp_path):
    pytest.importorskip('tiktoken')
    from tiktoken_ext.openai_public import r50k_base
    ranks = r50k_base()['mergeable_ranks']
    docs = [f'the internationalization of {i} things\n'.encode() + 'né 日本'.encode() for i in range(30)]
    splits, folder, size = {'train': docs[:25], 'val': docs[25:]}, tmp_path / 'text', 700
    folder.mkdir()
    meta = {'tokenizer': 'byte', 'vocab_size': 257, 'dtype': 'uint16', 'source': 'x'}
    for split, part in splits.items():
        ids = np.array([i for doc in part for i in [*doc, 256]], '<u2')
        ids.tofile(folder / f'{split}.bin')
        meta[f'{split}_tokens'] = len(ids)
    (folder / 'meta.json').write_text(json.dumps(meta))
    experiment('vocabulary', f'--dataset={folder}', '--size=700')
    assert_refused(lambda: experiment('vocabulary', f'--dataset={folder}_700'), 'with --tokenizer=byte')
    assert_refused(lambda: experiment('vocabulary', f'--dataset={folder}', '--size=700'), 'or --out_dir=')
    experiment('vocabulary', f'--dataset={folder}', '--size=700', f'--out_dir={tmp_path}/other')
    assert (tmp_path / 'other/train.bin').read_bytes() == (tmp_path / 'text_700/train.bin').read_bytes()

    def bpe(word):  # merges the pair of the lowest rank until there is none
        parts = [word[i:i + 1] for i in range(len(word))]
        def rank(i):
            return ranks.get(parts[i] + parts[i + 1], size)
        while pairs := {i: rank(i) for i in range(len(parts) - 1) if rank(i) < size - 1}:
            i = min(pairs, key=pairs.get)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [ranks[part] for part in parts]

    back = {rank: token for token, rank in ranks.items()}
    meta = json.loads((tmp_path / 'text_700/meta.json').read_text())
    assert (meta['vocab_size'], meta['val_bytes']) == (size, sum(map(len, docs[25:])))
    begin = bpe(b'the') + bpe(b' internationalization')
    for split, part in splits.items():
        got = np.fromfile(tmp_path / f'text_700/{split}.bin', '<u2').tolist()
        assert meta[f'{split}_tokens'] == len(got)
        assert got.count(size - 1) == meta[f'{split}_documents'] == len(part)
        text = b''.join(b'|' if i == size - 1 else back[i] for i in got)
        assert text == b''.join(doc + b'|' for doc in part)
        assert got[:len(begin)] == begin
    saved = dict.fromkeys(('model', 'optimizer', 'iter', 'config', 'model_args'), 0)
    torch.save({**saved, 'data': meta}, tmp_path / 'ckpt.pt')
    said = finish(python('sample.py', f'--checkpoint={tmp_path}/ckpt.pt', '--device=cpu'), code=1)[1]
    assert 'a part of the gpt2 vocabulary' in said


@pytest.mark.slow
def test_stability_records_what_diverged_and_what_was_clipped(tmp_path, monkeypatch, capsys):
    data = write_images(tmp_path / 'data', train=70, val=7)
    (tmp_path / 'train_vit.py').symlink_to(ROOT / 'train_vit.py')
    (tmp_path / 'config').mkdir()
    text = (ROOT / 'config/nft_cifar10.py').read_text()
    ours = f'dataset = {str(data)!r}\nimage_size = 8\nlog_interval = 1\n'
    (tmp_path / 'config/nft_cifar10.py').write_text(text + ours)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence, 'compile', False)
    first = {run['variant']: {**run, 'n_layer': 1} for run in list(arms.stability())[:len(arms.VARIANTS)]}
    runs = [first['NoNorm + WS + AGC'], {**first['S5'], 'learning_rate': 1e30}]
    evidence.run_study('stability', lambda done: runs, {})
    done = evidence.read('results/stability.jsonl')
    clipped, lost = (done[evidence.key(run)] for run in runs)
    assert lost['ended'] == 'diverged' and 'top1' not in lost
    assert clipped['ended'] == 'finished' and 0 < clipped['agc_share'] <= 1
    capsys.readouterr()
    evidence.print_variants('stability')
    said = capsys.readouterr().out
    assert table_of(said) == [['NoNorm + WS + AGC', f'**{100 * clipped["top1"]:.1f}**', ''],
                              ['*share of units that it clipped*', f'{clipped["agc_share"]:.2f}', '']]
    assert 'Diverged at every rate: S5.' in said
