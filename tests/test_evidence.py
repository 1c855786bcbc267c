"""Row norm and Muon as arms of a comparison, and the protocol and statistics of experiments/evidence.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import evidence, reproduce
from experiments.lag import CPU
from experiments.searches import key, read_config
from experiments.stack import train_stack
from model import GPT, SETTINGS, GPTConfig, ViT, ViTConfig
from support.optim import make_optimizer, state_size
from support.tokens import Tokens
from test_model import tiny
from tests.common import ROOT
from tests.test_optim import take_steps

CONFIG = dict(optimizer='sgdw', learning_rate=0.3, weight_decay=0.02, momentum=0.9, beta1=0.9, beta2=0.95,
              embed_lr=0.0, embed_optimizer='auto', embed_weight_decay=-1.0, compile_optimizer=False)
ROWNORM = dict(embed_optimizer='rownorm', embed_lr=0.006, embed_weight_decay=0.1)


def make(model, optimizer='sgdw', **more):
    return make_optimizer(model, {**CONFIG, 'optimizer': optimizer, **more})


def steps(model, opt, numbers):
    take_steps(model, opt, numbers)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize('optimizer', ['sgdw', 'adamw', 'muon'])
def test_rownorm_is_for_the_tables_and_the_rest_is_as_without(optimizer):
    a, b = tiny(tied=False), tiny(tied=False)
    b.load_state_dict(a.state_dict())
    opt = make(a, optimizer, **ROWNORM)
    normed = [g for g in opt.param_groups if g.get('rownorm')]
    assert {id(p) for g in normed for p in g['params']} == {id(x.weight) for x in (a.wte, a.wpe, a.lm_head)}
    assert [(g['weight_decay'], g['lr_scale']) for g in normed if g['params']] == [(0.1, 0.006 / 0.3)]
    ours, plain = steps(a, opt, range(3)), steps(b, make(b, optimizer), range(3))
    assert [k for k in ours if not torch.equal(ours[k], plain[k])] == \
        ['wte.weight', 'wpe.weight', 'lm_head.weight']


def test_rownorm_keeps_four_bytes_a_weight():
    model = tiny().float()
    opt = make(model, **ROWNORM)
    steps(model, opt, [0])
    state = [x for o in opt.optimizers for s in o.state.values() for x in s.values()]
    weights = sum(p.numel() for p in model.parameters())
    assert sum(x.numel() * x.element_size() for x in state) == 4 * weights == 4 * state_size(opt)


@pytest.mark.parametrize('optimizer', ['sgdw', 'adamw', 'muon'])
def test_rownorm_resumes(optimizer):
    model = tiny()
    begin = {k: v.clone() for k, v in model.state_dict().items()}
    whole = steps(model, make(model, optimizer, **ROWNORM), range(6))
    model.load_state_dict(begin)
    opt = make(model, optimizer, **ROWNORM)
    steps(model, opt, range(3))
    state = opt.state_dict()
    opt = make(model, optimizer, **ROWNORM)
    opt.load_state_dict(state)
    resumed = steps(model, opt, range(3, 6))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_rownorm_on_pictures():
    model = ViT(ViTConfig(**SETTINGS['S5'], n_layer=1, n_head=2, n_embd=16, image_size=8, patch_size=4,
                          n_classes=3))
    opt = make(model, **ROWNORM)
    before = model.pos_embed.detach().clone()
    steps(model, opt, [0])
    # patch matrix and its bias, class token, positions
    assert sum(len(g['params']) for g in opt.param_groups if g.get('rownorm')) == 4
    size = (model.pos_embed - before)[0].square().mean(1).sqrt()
    # no decay: a step of 0.006 / 1.1 for each row
    assert len(size) == 5
    assert ((0.004 < size) & (size < 0.006)).all()


def test_muon_has_the_matrices_of_the_blocks():
    model = tiny()
    opt = make(model, 'muon')
    muon, adamw = opt.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    mine, others = ({id(p) for g in o.param_groups for p in g['params']} for o in opt.optimizers)
    assert mine == {id(p) for n, p in model.named_parameters() if n.startswith('blocks.') and p.dim() == 2}
    assert mine.isdisjoint(others)
    assert mine | others == {id(p) for p in model.parameters()}
    # an orthogonal step, of AdamW's usual size (0.2 for each weight), whatever the gradient's is
    w = next(p for g in muon.param_groups for p in g['params'])
    before = w.detach().clone()
    steps(model, opt, [0])
    assert 0.1 < ((w.detach() - before * (1 - 0.3 * 0.02)) / 0.3).square().mean().sqrt() < 0.3

# -----------------------------------------------------------------------------
# statistics


def test_interval_is_that_of_the_t_distribution():
    # by hand: deviation sqrt(2.5), 2.7764 of the table for 4 degrees, over sqrt(5)
    mean, half = reproduce.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and abs(half - 1.96324) < 1e-4
    assert reproduce.interval([1.0])[1] == math.inf
    # the table against the distribution: 95 % of its density lie within
    for n, t in enumerate(reproduce.T95, 1):
        x = np.linspace(0, t, 200001)
        factor = math.gamma((n + 1) / 2) / math.gamma(n / 2) / math.sqrt(n * math.pi)
        density = factor * (1 + x**2 / n) ** (-(n + 1) / 2)
        assert abs(2 * np.trapezoid(density, x) - 0.95) < 1e-5


def test_verdict():
    assert reproduce.verdict(0.004, 0.010) == 'matches'
    assert reproduce.verdict(0.008, 0.002) == 'matches'  # seen, and too small to matter
    assert reproduce.verdict(0.000, 0.040) == 'open'  # no difference is seen, and none is excluded
    assert reproduce.verdict(-0.030, 0.020) == 'better'
    assert reproduce.verdict(0.030, 0.020) == 'worse'


def test_differences_are_taken_seed_by_seed():
    a, b = {1: 1.30, 2: 1.20, 3: 1.10}, {3: 1.09, 2: 1.19, 1: 1.29, 4: 9.0}  # seeds differ more than arms
    assert reproduce.difference(a, b) == '+0.0100 ± 0.0000, matches'
    assert reproduce.difference(a, {7: 1.0}) == ''
    assert reproduce.difference({1: math.inf, 2: 1.0}, {1: 1.0, 2: 1.0}) == ''  # a run that diverged


# -----------------------------------------------------------------------------
# the protocol


def play(loss, *arms):
    """What the runner does with arms, with loss(run) in place of training."""
    done, order = {}, []
    while todo := evidence.needed(arms, done):
        done[key(todo[0])] = {'run': todo[0], 'val_loss': loss(todo[0])}
        order.append(todo[0])
    return done, order


def bowl(run):
    """Lowest at a rate of 0.8, embeddings 0.016, warmup 0.5 and decay 0.03; a seed shifts all of it."""
    off = 0.03 * math.log2(run['learning_rate'] / 0.8) ** 2 + 0.02 * math.log2(run['embed_lr'] / 0.016) ** 2
    off += 0.5 * (run['warmup_iters'] / run['max_iters'] - 0.5) ** 2
    return 1.2 + off + 0.02 * math.log10(run['weight_decay'] / 0.03) ** 2 + run['seed'] / 1e4


@pytest.mark.parametrize('stages', [evidence.TWO, evidence.RACE])
def test_a_search_finds_the_best_and_its_seeds_never_score(stages):
    arm = evidence.Arm('L-DNT', 'mSGDW + row norm', evidence.point(4500), range(1, 9), stages=stages)
    done, order = play(bowl, arm)
    runs, at, tried = arm.search(done)
    best = arm.run(at)
    assert not runs
    assert (best['learning_rate'], best['embed_lr'], best['warmup_iters']) == (0.8, 0.016, 2250)
    assert [run['seed'] for run in order[-8:]] == list(range(1, 9))
    assert all({k: v for k, v in run.items() if k != 'seed'} == best for run in order[-8:])
    assert {run['seed'] for run in order[:-8]} == set(range(101, 101 + stages[-1]))
    # every run of the search is counted, and both neighbours of the best were tried on every axis
    assert sum(map(len, tried.values())) == len(order) - 8
    assert len(tried[at]) == stages[-1]
    assert len(arm.beside(at)) == 8 and all(to in tried for to in arm.beside(at))
    # in whatever order the runs end
    assert arm.search(dict(reversed(done.items())))[:2] == ([], at)


def test_a_search_returns_the_best_of_all_it_has_tried(monkeypatch):
    """A neighbour of a setting that lost is the best: the search goes there, and on to its neighbours."""
    arm = evidence.Arm('L-DNT', 'AdamW + row norm', evidence.point(4500), range(1, 3))
    a, b, c, d = arm.start
    lost, best = (a - 1, b + 1, c - 1, d + 1), (a - 1, b + 2, c - 1, d + 1)
    table = {arm.start: 1.25, lost: 1.27, best: 1.21}
    done = {key(run): {'run': run, 'val_loss': loss} for setting, loss in table.items()
            for run in arm.stage([setting], 0)}
    runs, found, tried = arm.search(done)
    assert found == best and tried.keys() == table.keys()
    near = [to for to in arm.beside(best) if to != lost]
    assert [key(run) for run in runs] == [key(run) for run in arm.stage(near, 0)]
    assert arm.scored(done) == {}
    for run in runs:
        done[key(run)] = {'run': run, 'val_loss': 1.3}
    assert arm.search(done)[:2] == ([], best)
    assert [{k: v for k, v in run.items() if k != 'seed'} for run in evidence.needed([arm], done)] == \
        2 * [arm.run(best)]
    # at the limit a search ends, and says which neighbours it has not tried
    monkeypatch.setattr(evidence, 'POINTS', 5)
    assert len(arm.search({k: done[k] for k in list(done)[:6]})[0]) == 2 * 2


def test_a_race_drops_what_is_far_behind():
    arm = evidence.Arm('L-DNT', 'mSGDW', evidence.point(4500), range(1, 3), ('learning_rate',),
                       stages=evidence.RACE)
    far = {0.4: 0.0, 0.2: 0.015, 0.8: 0.025}  # above the best; a mean over two seeds may lie 0.02 above it
    done, order = play(lambda run: 1.2 + far[run['learning_rate']], arm)
    count = {rate: sum(run['learning_rate'] == rate for run in order) for rate in far}
    assert count == {0.4: 8 + 2, 0.2: 4, 0.8: 2}
    # the best of two seeds may have been lucky: it is compared by its eight
    def lucky(run):
        if run['learning_rate'] == 0.2:
            return 1.221
        return 1.2 if run['seed'] < 103 and run['learning_rate'] == 0.4 else 1.23

    done, _ = play(lucky, arm)
    assert arm.values[0][arm.search(done)[1][0]] == 0.2


def test_no_arm_is_scored_at_a_setting_that_lost():
    done = evidence.read(ROOT / evidence.RESULTS)
    for name, question in evidence.QUESTIONS.items():
        for arm in question():
            losses = {}
            for row in done.values():
                run = {k: v for k, v in row['run'].items() if k != 'seed'}
                if row['run']['seed'] in (101, 102) and arm.run(arm.start).keys() == run.keys():
                    losses.setdefault(key(run), []).append(row['val_loss'])
            for row in arm.scored(done).values():
                at = {k: v for k, v in row['run'].items() if k != 'seed'}
                tried = arm.search(done)[2]
                means = [np.mean(losses[key(arm.run(to))]) for to in tried]
                if arm.stages == evidence.TWO:
                    assert np.mean(losses[key(at)]) == min(means), (name, at)


def test_a_question_scores_when_all_its_arms_have_been_searched():
    arms = [evidence.Arm('L-DNT', optimizer, evidence.point(4500), range(1, 4), ('learning_rate',))
            for optimizer in ('mSGDW', 'AdamW')]
    order = play(lambda run: 1.2, *arms)[1]
    seeds = [run['seed'] for run in order]
    assert seeds[-6:] == [1, 1, 2, 2, 3, 3]
    assert set(seeds[:-6]) == {101, 102}


def test_every_arm_of_every_question_is_a_run_of_its_own():
    for name, question in evidence.QUESTIONS.items():
        arms = [evidence.needed([arm], {})[0] for arm in question()]
        assert len({key(run) for run in arms}) == len(arms), name


def test_the_runner_trains_what_is_missing_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'results').mkdir()
    trained = []

    def train(run, study):
        trained.append(key(run))
        return {'run': run, 'iter': run['max_iters'], 'ended': 'finished', 'val_loss': bowl(run)}

    arms = [evidence.Arm(network, 'mSGDW + row norm', evidence.point(100), range(1, 4), ('learning_rate',))
            for network in ('L-DNT', 'GPT-2')]

    def study():
        reproduce.run_study('evidence', lambda done: evidence.needed(arms, done),
                            reproduce.read(evidence.RESULTS), train)

    study()
    assert len(trained) == len(set(trained)) == len(Path(evidence.RESULTS).read_text().splitlines())
    lines = Path(evidence.RESULTS).read_text().splitlines(keepends=True)
    Path(evidence.RESULTS).write_text(''.join(lines[:-5]))  # as after a kill
    before = len(trained)
    study()
    assert len(trained) == before + 5
    again, first = (sorted(json.loads(line)['val_loss'] for line in of)
                    for of in (Path(evidence.RESULTS).read_text().splitlines(), lines))
    assert again == first


@pytest.fixture
def text(tmp_path):
    """A small prepared text."""
    ids = torch.randint(97, 113, (400,), generator=torch.Generator().manual_seed(0)).numpy().astype('<u2')
    for split in ('train', 'val'):
        ids.tofile(tmp_path / f'{split}.bin')
    meta = {'tokenizer': 'byte', 'vocab_size': 257, 'dtype': 'uint16', 'train_tokens': 400, 'val_tokens': 400}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    return str(tmp_path)


@pytest.mark.parametrize('network', ['L-DNT', 'GPT-2'])
def test_a_stack_trains_its_runs_as_they_train_alone(network, text):
    size = {'n_layer': 1, 'block_size': 16, 'global_batch_size': 3}
    arms = [evidence.Arm(network, optimizer, evidence.point(6, 32, text, **size), ())
            for optimizer in evidence.OPTIMIZERS]
    runs = [{**arm.run(arm.start), 'seed': seed} for seed in (2, 1) for arm in arms]
    bins = evidence.parts_by_frequency(text, 320, bins=4)
    for run, (loss, of_bins) in zip(runs, train_stack(runs, 'cpu', bins)):
        alone, of_frequency = train_alone(run, text)
        rounding = 1e-3 if 'Muon' in run['variant'] else 2e-5  # Muon works in bfloat16
        assert loss == pytest.approx(alone, abs=rounding), run['variant']
        assert of_bins == pytest.approx(of_frequency, abs=3 * rounding), run['variant']


def test_a_stack_refuses_what_it_would_ignore(text):
    arm = evidence.Arm('L-DNT', 'mSGDW', evidence.point(6, 32, text, tied=False), ())
    with pytest.raises(SystemExit, match='A stack does not know tied'):
        train_stack([{**arm.run(arm.start), 'seed': 1}], 'cpu')


def train_alone(run, text):
    """The run as train_gpt.py does it: its loss, and that by frequency."""
    c = {**CONFIG, **read_config(run['config']), **run}
    data, T = Tokens(text, c['block_size'], CPU), c['block_size']
    torch.manual_seed(c['seed'])
    args = {k: c[k] for k in ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'norm')}
    args |= {'vocab_size': 320, **SETTINGS[c['setting']]}
    model = GPT(GPTConfig(**args))
    opt = make_optimizer(model, c)
    for i in range(c['max_iters']):
        peak, warm = c['learning_rate'], c['warmup_iters']
        progress = (i - warm) / (c['max_iters'] - warm)
        lr = peak * (i + 1) / (warm + 1) if i < warm else 0.5 * peak * (1 + math.cos(math.pi * progress))
        for group in opt.param_groups:
            group['lr'] = lr * group['lr_scale']
        rng = np.random.default_rng((c['seed'], i))
        offsets = rng.integers(0, 400 - T - 1, c['global_batch_size'], endpoint=True)
        model(*data.windows('train', offsets))[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c['grad_clip'])
        opt.step()
        opt.zero_grad()
    with torch.no_grad():
        loss = model(*data.windows('val', range(0, 384, T)))[1].item()
    checkpoint = {'model': model.state_dict(), 'model_args': args, 'config': c}
    return loss, evidence.by_frequency(checkpoint, text, bins=4)


def test_loss_by_frequency_is_the_loss_of_its_tokens(tmp_path):
    # 0 makes up half of the training text, 1 a quarter, 2 and 3 an eighth each: in quarters 0 fills the first
    np.array([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2, '<u2').tofile(tmp_path / 'train.bin')
    ids = torch.randint(4, (33,), generator=torch.Generator().manual_seed(0))
    ids.numpy().astype('<u2').tofile(tmp_path / 'val.bin')
    meta = {'tokenizer': 'byte', 'vocab_size': 4, 'dtype': 'uint16', 'train_tokens': 16, 'val_tokens': 33}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    model = tiny(block_size=8).float()
    checkpoint = {'model': model.state_dict(), 'model_args': vars(model.config), 'config': {'block_size': 8}}
    ours = evidence.by_frequency(checkpoint, str(tmp_path), bins=4)
    x, y = ids[:32].view(4, 8), ids[1:].view(4, 8)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(x, y)[0].transpose(1, 2), y, reduction='none')
    for part, tokens in ((0, [0]), (2, [1]), (3, [2, 3])):
        assert abs(ours[part] - losses[torch.isin(y, torch.tensor(tokens))].mean().item()) < 1e-4
    assert ours[1] == 0  # no token begins there


def test_tables_of_what_has_finished(monkeypatch, capsys):
    arms = [evidence.Arm('L-DNT', optimizer, evidence.point(100), range(1, 6))
            for optimizer in ('mSGDW', 'AdamW')]
    done = {}
    for arm, shift in zip(arms, (0.03, 0.0)):
        done |= play(lambda run, shift=shift: 1.2 + shift + run['seed'] / 1000, arm)[0]
    monkeypatch.setitem(evidence.QUESTIONS, 'headline', lambda: arms)
    evidence.print_table('headline', done)
    lines = capsys.readouterr().out.splitlines()
    head, row = ([cell.strip() for cell in line.split('|')] for line in (lines[-4], lines[-2]))
    cells = dict(zip(head, row))
    assert {k: cells[k] for k in ('arm', 'rate', 'warmup', 'settings tried', 'seeds scored', 'minus AdamW',
                                  'val_loss, 95 % interval')} == {
        'arm': 'L-DNT mSGDW', 'rate': '0.4', 'warmup': '0.3', 'settings tried': '7', 'seeds scored': '5 of 5',
        'minus AdamW': '+0.0300 ± 0.0000, worse', 'val_loss, 95 % interval': '1.2330 ± 0.0020'}
    evidence.print_table('headline', {k: row for k, row in list(done.items())[:4]})
    assert '| searching |' in capsys.readouterr().out
