"""experiments/figures.py and gradients.py."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments import evidence
from experiments import figures as module
from model import GPT, NORMS, SETTINGS, GPTConfig, ViT, ViTConfig
from tests.common import assert_refused, table_of, write_images, write_tokens
from tests.test_studies import experiment

SMALL = dict(n_layer=2, n_head=2, n_embd=16)
BASE = {'setting': 'S5', 'norm': 'rms', 'optimizer': 'sgdw', 'seed': 1, **dict.fromkeys(NORMS, 'auto')}


def write_run(out_dir, log=(), model=None, iters=(10, 30, 50), cut=False, **changes):
    """A run's folder: config.json, log.jsonl and, with a model, checkpoints. cut: half a line at the end."""
    config = {**BASE, 'out_dir': out_dir, 'dataset': 'tokens', 'global_batch_size': 4, 'block_size': 8}
    config |= changes
    os.makedirs(out_dir)
    Path(out_dir, 'config.json').write_text(json.dumps(config))
    text = ''.join(json.dumps(row) + '\n' for row in log)
    Path(out_dir, 'log.jsonl').write_text(text + '{"iter": 99999, "split": "tr' * cut)
    for i in iters if model else ():
        saved = {'model': model.state_dict(), 'iter': i, 'model_args': vars(model.config), 'config': config}
        torch.save({**saved, 'optimizer': {}, 'data': {}}, f'{out_dir}/ckpt_{i:06d}.pt')


def test_curves_of_runs_that_go_on(figures):
    steep = {i: 1 + 9 / (1 + i / 10) for i in range(1000)}
    log = [{'iter': i, 'split': 'val', 'loss': steep[i] + 0.1} for i in range(100, 1000, 100)]
    log += [{'iter': i, 'split': 'train', 'loss': loss} for i, loss in steep.items()]
    write_run('out/a', log, cut=True)
    write_run('out/begun', [{'iter': 0, 'split': 'train', 'loss': 5.0}], optimizer='adamw', cut=True)
    said = figures('curves', '--runs=out/a,out/begun')
    train, val = (line.get_xydata() for line in plt.gcf().axes[0].lines[:2])
    assert len(train) == 1000 and val.tolist() == [[i, steep[i] + 0.1] for i in range(100, 1000, 100)]
    assert abs(train[500:990, 1] - [steep[i] for i in range(500, 990)]).max() < 0.01  # smoothed, not moved
    assert table_of(said) == [['L-DNT mSGDW', 'out/a', '999', f'{val[-1, 1]:.4f}'],
                              ['L-DNT AdamW', 'out/begun', '0', '']]


def test_names_tell_runs_apart_and_styles_tell_names_apart():
    changes = [{}, {'setting': 'S3'}, {'norm': 'layer'}, {'mid_norm': False}, {'arch': 'nfnet'},
               {'image_size': 8, 'optimizer': 'sgd'}, {'embed_optimizer': 'adamw'}]
    assert [module.name_run({**BASE, **change}) for change in changes] == [
        'L-DNT mSGDW', 'S3 mSGDW', 'S5 mSGDW', 'L-DNT mid_norm False mSGDW', 'NFNet mSGDW', 'V-DNT SGD',
        'L-DNT hybrid']
    found = module.styles([f'GPT-2 {name}' for name in module.LINES if name != 'SGD'])
    assert len({(str(style['linestyle']), style['marker']) for style in found}) == len(found)
    same = module.styles(['L-DNT mSGDW in a', 'L-DNT mSGDW in b', 'L-DNT mSGDW in c'])
    assert len({style['color'] for style in same}) == 3

# -----------------------------------------------------------------------------
# arms of the protocol


def arm(network, optimizer, losses, to_come=0):
    """
    An arm of the protocol, scored with seeds 1, 2, ...; to_come: how many have not run. by_frequency: the
    token's loss is the arm's.
    """
    rows = {seed: {'val_loss': loss, 'by_frequency': [0.0, loss, 2 * loss, *[0.0] * 7]}
            for seed, loss in enumerate(losses, 1)}
    point = {'dataset': 'stdlib', 'n_embd': 64, 'max_iters': 1000}
    return SimpleNamespace(network=network, optimizer=optimizer, point=point, name=f'{network} {optimizer}',
                           rows=rows, seeds=range(len(rows) + to_come))


@pytest.fixture
def ask(figures, monkeypatch):
    """ask(arms): what the questions of the protocol have, {question: [arm, ...]}."""
    def command(**arms):
        monkeypatch.setattr(evidence, 'QUESTIONS', {name: lambda of=of: of for name, of in arms.items()})
        monkeypatch.setattr(evidence, 'scored', lambda arm, done: arm.rows)
    return command


def test_arms_have_dots_a_mean_an_interval_and_a_gap(ask, figures):
    ask(headline=[arm('L-DNT', 'mSGDW', [2.0, 2.1, 2.2]), arm('L-DNT', 'AdamW', [1.9, 2.0, 2.4, 9.0]),
                  arm('GPT-2', 'mSGDW', [3.0, 3.1]), arm('L-DNT', 'mSGDW + row norm', [2.0, 2.1], 1)])
    assert table_of(figures('arms')) == [
        ['GPT-2 mSGDW', '2', '3.050 ± 0.635'], ['L-DNT AdamW', '4', '3.825 ± 5.500'],
        ['L-DNT mSGDW', '3', '2.100 ± 0.248'], ['L-DNT mSGDW', '3', '+0.000 ± 0.430']]  # by seed
    assert plt.gcf().axes[0].lines[0].get_xydata().tolist() == [[3.0, 0], [3.1, 0]]
    first = Path('figures/headline.png').read_bytes()
    figures('arms')
    assert Path('figures/headline.png').read_bytes() == first


def test_gap_and_frequency(ask, figures):
    ours = [arm('L-DNT', 'mSGDW', [2.04, 2.08]), arm('L-DNT', 'AdamW', [2.0, 2.0])]
    ask(headline=ours, again=ours,
        pictures=[arm('V-DNT', 'mSGDW', [2.0, 2.0]), arm('V-DNT', 'AdamW', [2.0, 2.0])])
    table = table_of(figures('gap'))  # the paper's points beside ours
    assert [row[3] for row in table] == ['+1.36', '+2.09', '+1.52', '-0.49', '+0.89', '+0.50', '+3.00']
    ask(why=[arm('L-DNT', 'AdamW', [1.0, 1.2]), arm('L-DNT', 'mSGDW', [1.5, 1.7]),
             arm('L-DNT', 'mSGDW + row norm', [0.5, 0.7])])
    assert table_of(figures('frequency')) == [
        ['AdamW', '1.1000', '2.2000'], ['mSGDW minus AdamW', '+0.5000 ± 0.0000', '+1.0000 ± 0.0000'],
        ['mSGDW + row norm minus AdamW', '-0.5000 ± 0.0000', '-1.0000 ± 0.0000']]


def test_sweep_marks_what_diverged_and_settings_are_drawn_as_they_stand(figures):
    os.makedirs('results')
    rows = [('a', 0.1, 0.2), ('a', 1.0, None), ('b', 0.1, None), ('b', 1.0, 0.4)]
    with open('results/decay.jsonl', 'w') as f:
        for variant, lr, top1 in rows:
            end = {'ended': 'diverged'} if top1 is None else {'ended': 'finished', 'top1': top1}
            f.write(json.dumps({'run': {'variant': variant, 'learning_rate': lr}, **end}) + '\n')
    figures('sweep', '--study=decay')
    drawn = [[line.get_xydata().tolist() for line in ax.lines] for ax in plt.gcf().axes]
    assert drawn == [[[[0.1, 20.0]], [[1.0, 40.0]]], [[[1.0, 0]], [[0.1, 1]]]]
    figures('settings', '--out=elsewhere/drawing.svg')
    words = re.findall(r'<!-- (.*?) -->', Path('elsewhere/drawing.svg').read_text())
    assert set(SETTINGS) <= set(words)
    on = {n: sum(row[n] for row in SETTINGS.values()) for n in NORMS}
    assert {w: words.count(w) for w in module.NORM_COLORS} == {
        'InputNorm': on['input_norm'], 'QKNorm': on['qk_norm'], 'FinalNorm': on['final_norm'],
        'PreNorm': on['pre_norm'] + on['ffn_pre_norm'], 'MidNorm': 2 * on['mid_norm'],
        'PostNorm': 2 * on['post_norm']}

# -----------------------------------------------------------------------------
# gradients


def by_hand(weights, losses):
    """Means over the batches: the tail, and shares above twice the RMS and above 1e-3."""
    numbers = []
    for loss in losses:
        gs = [g.double() for g in torch.autograd.grad(loss, weights)]
        scaled = torch.cat([(g / g.square().mean().sqrt()).flatten() for g in gs]).abs()
        sizes = sorted(scaled.tolist())
        larger = (torch.cat([g.flatten() for g in gs]).abs() > 1e-3).double().mean().item()
        numbers.append((sizes[int(0.999 * len(sizes))] / sizes[len(sizes) // 2],
                        (scaled > 10 ** 0.3).double().mean().item(), larger))
    return np.mean(numbers, axis=0)


def test_gradients_of_gpt_and_vit_against_autograd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = np.fromfile(write_tokens(Path('data/tokens'), 500, 100, vocab=32) / 'train.bin', '<u2')
    pictures = write_images(Path('data/pictures'))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SETTINGS['S1'], **SMALL, norm='layer', block_size=8, vocab_size=32))
    vit = ViT(ViTConfig(**SETTINGS['S5'], **SMALL, norm='rms', image_size=8, patch_size=4, n_classes=5))
    write_run('out/gpt', model=gpt, setting='S1', norm='layer')
    write_run('out/vit', model=vit, iters=(7,), image_size=8, dataset='pictures', label_smoothing=0.1,
              eval_only=False, shift=2)
    said = experiment('gradients', '--runs=out/gpt,out/vit', '--batches=2')
    measured = [['GPT-2 mSGDW', '10'], ['GPT-2 mSGDW', '50'], ['V-DNT mSGDW', '7']]
    assert [row[:2] for row in table_of(said)] == measured
    rows = {(row['run'], row['iter'], row['weight']): row
            for row in evidence.read_rows('results/gradients.jsonl')}
    images, labels = (np.load(pictures / f'train_{kind}.npy') for kind in ('images', 'labels'))
    losses = {gpt: [], vit: []}
    for i in range(2):
        starts = np.random.default_rng((1337, i)).integers(0, 500 - 8, 4)
        x = torch.from_numpy(np.stack([tokens[s:s + 9] for s in starts]).astype(np.int64))
        losses[gpt].append(gpt(x[:, :-1], x[:, 1:])[1])
        places = np.random.default_rng((1337, i)).integers(0, len(labels), 4)
        x = (images[places] / 255 - 0.5) / 0.3  # as its meta.json says
        logits = vit(torch.from_numpy(x).permute(0, 3, 1, 2).float())
        losses[vit].append(F.cross_entropy(logits, torch.from_numpy(labels[places]), label_smoothing=0.1))
    for network, layer, row in ((gpt, 'c_fc', rows['GPT-2 mSGDW', 10, 'W_1']),
                                (vit, 'c_proj', rows['V-DNT mSGDW', 7, 'W_2'])):
        weights = [getattr(block.ffn, layer).weight for block in network.blocks]
        found = [row['ratio'], row['above'][8], row['larger'][30]]
        assert np.allclose(found, by_hand(weights, losses[network]), rtol=1e-3)

# -----------------------------------------------------------------------------

MISTAKES = [
    ('', 'No picture is named. Use python -m experiments.figures [curves|arms|forest|gap|frequency|sweep|'),
    ('frequency', 'No arms are scored yet. Run python -m experiments.evidence --question=why.'),
    ('arms --question=no', 'question=no is unknown. Set --question to one of'),
    ('curves', 'There is no run in --runs=: config.json cannot be read. Use --runs=out/a'),
    ('curves --runs=out/val --key=top1', 'out/val/log.jsonl has no rows with top1'),
    ('settings --out=/dev/null/x.png', 'Cannot write /dev/null/x.png'),
    ('gradients --runs=out/val', 'has no checkpoints such as ckpt_000500.pt. Train with --keep_interval')]


@pytest.mark.parametrize('arguments,sentence', MISTAKES)
def test_mistakes_get_a_sentence(figures, arguments, sentence):
    write_run('out/val', [{'iter': 0, 'split': 'val', 'loss': 1.0}])
    command, *args = arguments.split() or ['']
    if command == 'gradients':
        assert_refused(lambda: experiment('gradients', *args), sentence)
    else:
        assert_refused(lambda: figures(*arguments.split()), sentence)
    assert not os.path.exists('figures')
