"""Row norm and Muon as arms of a comparison, and the protocol and statistics of experiments/evidence.py."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import arms, evidence
from experiments.arms import AXES
from experiments.evidence import key
from experiments.stack import CPU, read_config, train_stack
from model import GPT, SETTINGS, GPTConfig
from support.tokens import Tokens
from test_model import tiny
from tests.common import ROOT, make_optimizer, table_of, write_tokens
from tests.test_optim import take_steps

CONFIG = dict(optimizer='sgdw', learning_rate=0.3, weight_decay=0.02, momentum=0.9, beta1=0.9, beta2=0.95,
              embed_lr=0.0, embed_optimizer='auto', embed_weight_decay=-1.0, nesterov=False)
ROWNORM = dict(embed_optimizer='rownorm', embed_lr=0.006, embed_weight_decay=0.1)


@pytest.mark.parametrize('optimizer', ['sgdw', 'adamw', 'muon'])
def test_rownorm_is_for_the_embeddings_and_resumes(optimizer):
    def steps(model, numbers, state=None, **more):
        opt = make_optimizer(model, {**CONFIG, 'optimizer': optimizer, **more})
        if state:
            opt.load_state_dict(state)
        take_steps(model, opt, numbers)
        return opt, {k: v.clone() for k, v in model.state_dict().items()}

    model = tiny(tied=False)
    opt, half = steps(model, range(3), **ROWNORM)
    normed = [g for g in opt.param_groups if g.get('rownorm') and g['params']]
    assert [(g['weight_decay'], g['lr_scale']) for g in normed] == [(0.1, 0.006 / 0.3)]
    resumed = steps(model, range(3, 6), opt.state_dict(), **ROWNORM)[1]
    whole = steps(tiny(tied=False), range(6), **ROWNORM)[1]
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    plain = steps(tiny(tied=False), range(3))[1]
    assert [k for k in half if not torch.equal(half[k], plain[k])] == \
        ['wte.weight', 'wpe.weight', 'lm_head.weight']


def test_muon_has_the_matrices_of_the_blocks():
    model = tiny()
    muon, adamw = make_optimizer(model, {**CONFIG, 'optimizer': 'muon'}).optimizers
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    mine, others = ([id(p) for g in o.param_groups for p in g['params']] for o in (muon, adamw))
    assert set(mine) == {id(p) for n, p in model.named_parameters() if n[:6] == 'blocks' and p.dim() == 2}
    assert sorted(mine + others) == sorted(map(id, model.parameters()))

# -----------------------------------------------------------------------------
# statistics


def test_a_row_behind_one_that_a_kill_cut_short_counts(tmp_path):
    path, run = tmp_path / 'log.jsonl', {'variant': 'a', 'seed': 1}
    path.write_text('{"run": {"var')
    for seed in (1, 2):
        evidence.note(path, {'run': {**run, 'seed': seed}, 'ended': 'finished'}, {})
    assert [row['run']['seed'] for row in evidence.read_rows(path)] == [1, 2]
    assert path.read_bytes().count(b'\n') == 3


def test_intervals_p_values_and_verdicts():
    # by hand: deviation sqrt(2.5), 2.7764 of the table for 4 degrees, over sqrt(5)
    mean, half = evidence.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and abs(half - 1.96324) < 1e-4
    assert evidence.interval([1.0])[1] == math.inf
    # of runs that diverged, on either side of a difference, nothing can be said
    assert evidence.interval([-math.inf, 0.1, math.nan]) == (math.inf, math.inf)
    assert evidence.verdict(math.inf, math.inf) == 'open' and evidence.p_value(math.nan, 2) == 1
    for freedom, t in {1: 12.7062, 4: 2.7764, 15: 2.1314, 47: 2.0117}.items():  # from a table
        assert abs(evidence.t95(freedom) - t) < 1e-4
    # closed forms for one and two degrees
    for t in (0.3, 2.0, 40.0):
        assert evidence.p_value(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-9)
        assert evidence.p_value(-t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-9)
    # Holm's own steps: 4 * 0.01, 3 * 0.02, then not below what came before
    assert evidence.holm([0.02, 0.01, 0.5, 0.021]) == pytest.approx([0.06, 0.04, 0.5, 0.06])

    for mean, half, said in ((0.004, 0.010, 'matches'), (-0.008, 0.002, 'matches'),
                             (0.008, 0.002, 'worse, by less than the margin'),
                             (0.000, 0.040, 'open'),  # no difference is seen, and none is excluded
                             (-0.030, 0.020, 'better'), (0.030, 0.020, 'worse'), (0.030, 0.010, 'fails')):
        assert evidence.verdict(mean, half) == said

# -----------------------------------------------------------------------------
# the protocol


def arm(network, optimizer, iters=4500, seeds=range(1, 3), **more):
    return arms.Arm(network, optimizer, arms.point(iters), seeds, **more)


def play(loss, *of_question):
    """What the runner does with arms, with loss(run) in place of training."""
    done, order = {}, []
    while todo := evidence.needed(of_question, done):
        done[key(todo[0])] = {'run': todo[0], 'val_loss': loss(todo[0])}
        order.append(todo[0])
    return done, order


def bowl(run):
    """Lowest at a rate of 0.8, embeddings 0.016, warmup 0.5 and decay 0.03; a seed shifts all of it."""
    off = 0.03 * math.log2(run['learning_rate'] / 0.8) ** 2 + 0.02 * math.log2(run['embed_lr'] / 0.016) ** 2
    off += 0.5 * (run['warmup_iters'] / run['max_iters'] - 0.5) ** 2
    return 1.2 + off + 0.02 * math.log10(run['weight_decay'] / 0.03) ** 2 + run['seed'] / 1e4


@pytest.mark.parametrize('stages', [arms.TWO, arms.RACE])
def test_a_search_finds_the_best_and_its_seeds_never_score(stages):
    ours = arm('L-DNT', 'mSGDW + row norm', seeds=range(1, 9), stages=stages)
    done, order = play(bowl, ours)
    runs, at, tried = evidence.search(ours, done)
    assert not runs and at[:3] == (0.8, 0.016, 0.5)
    assert order[-8:] == [{**ours.run(at), 'seed': seed} for seed in range(1, 9)]
    assert {run['seed'] for run in order[:-8]} == set(range(101, 101 + stages[-1]))
    assert all(to in tried for to in ours.beside(at))  # both neighbours of the best on every axis
    assert evidence.search(ours, dict(reversed(done.items())))[:2] == ([], at)  # in whatever order runs end


def test_a_search_returns_the_best_of_all_it_has_tried(monkeypatch):
    """A neighbour of a setting that lost is the best: the search goes there, and on to its neighbours."""
    ours = arm('L-DNT', 'AdamW + row norm')
    lost, best = (0.002, 0.008, 0.3, 0.3), (0.002, 0.016, 0.3, 0.3)
    losses = {ours.start: 1.25, lost: 1.27, best: 1.21}
    done = {key(run): {'run': run, 'val_loss': loss} for setting, loss in losses.items()
            for run in evidence.next_stage(ours, [setting], 0)}
    runs, found, tried = evidence.search(ours, done)
    assert found == best and tried.keys() == losses.keys()
    assert runs == evidence.next_stage(ours, [to for to in ours.beside(best) if to != lost], 0)
    monkeypatch.setattr(evidence, 'POINTS', 3)  # at its limit a search ends
    assert evidence.search(ours, done)[:2] == ([], best)
    assert evidence.needed([ours], done) == evidence.scoring(ours, best)


def test_a_race_drops_what_is_far_behind():
    ours = arm('L-DNT', 'mSGDW', searched=AXES[:1], stages=arms.RACE)
    far = {0.4: 0.0, 0.2: 0.015, 0.8: 0.025}  # above the best; a mean over two seeds may lie 0.02 above it
    order = play(lambda run: 1.2 + far[run['learning_rate']], ours)[1]
    count = {rate: sum(run['learning_rate'] == rate for run in order) for rate in far}
    assert count == {0.4: 8 + 2, 0.2: 4, 0.8: 2}

    def lucky(run):  # 0.4 is the best of two seeds, and 0.2 of eight
        if run['learning_rate'] == 0.2:
            return 1.221
        return 1.2 if run['seed'] < 103 and run['learning_rate'] == 0.4 else 1.23

    done = play(lucky, ours)[0]
    assert evidence.search(ours, done)[1][0] == 0.2
    # while tried settings still race, nothing is scored
    assert len(evidence.scored(ours, done)) == 2
    assert evidence.scored(ours, {k: row for k, row in done.items() if row['run']['seed'] != 108}) == {}


def test_the_runner_trains_what_is_missing_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, trained = Path(evidence.RESULTS), []

    def train(run, study):
        trained.append(key(run))
        return {'run': run, 'iter': run['max_iters'], 'ended': 'finished', 'val_loss': bowl(run)}

    two = [arm(network, 'mSGDW + row norm', 100, searched=AXES[:1]) for network in ('L-DNT', 'GPT-2')]

    def study():
        evidence.run_study('evidence', lambda done: evidence.needed(two, done), evidence.read(log), train)
        return evidence.read_rows(log)

    first = study()
    assert len(trained) == len(set(trained)) == len(first)
    log.write_text(''.join(log.read_text().splitlines(keepends=True)[:-3]))  # as after a kill
    assert sorted(row['val_loss'] for row in study()) == sorted(row['val_loss'] for row in first)
    assert len(trained) == len(first) + 3

# -----------------------------------------------------------------------------
# stacks, loss by frequency


@pytest.fixture
def text(tmp_path):
    """A small prepared text."""
    return str(write_tokens(tmp_path / 'text', 400, 400))


def of_text(network, optimizer, text, seeds=(), **more):
    at = arms.point(6, 32, text, n_layer=1, block_size=16, global_batch_size=3)
    return arms.Arm(network, optimizer, at, seeds, **more)


@pytest.mark.parametrize('network,optimizers', [
    ('L-DNT', [name for name in arms.OPTIMIZERS if name != 'Muon']), ('GPT-2', ['AdamW'])])
def test_a_stack_trains_its_runs_as_they_train_alone(network, optimizers, text):
    arms_of_text = [of_text(network, optimizer, text) for optimizer in optimizers]
    runs = [{**ours.run(ours.start), 'seed': seed} for seed in (2, 1) for ours in arms_of_text]
    bins = evidence.parts_by_frequency(text, 320, bins=4)
    for run, (loss, of_bins) in zip(runs, train_stack(runs, 'cpu', bins)):
        losses, targets = train_alone(run, text)
        assert loss == pytest.approx(losses.mean(), abs=2e-5), run['variant']
        of_frequency = [losses[bins[targets] == part].mean() for part in range(4)]
        assert of_bins == pytest.approx(of_frequency, abs=6e-5), run['variant']
    with pytest.raises(SystemExit, match='A stack does not know tied'):
        train_stack([{**runs[0], 'tied': False}], 'cpu')


def train_alone(run, text):
    """The run as train_gpt.py does it: the loss of each token, and the tokens."""
    c = {**CONFIG, **read_config(run['config']), **run}
    data, T = Tokens(text, c['block_size'], CPU), c['block_size']
    torch.manual_seed(c['seed'])
    model = GPT(GPTConfig(**{k: c[k] for k in ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'norm')},
                          vocab_size=320, **SETTINGS[c['setting']]))
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
    x, y = data.windows('val', range(0, 384, T))
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(x, y)[0].transpose(1, 2), y, reduction='none')
    return losses.double().numpy(), y.numpy()


def test_stacks_are_run_until_a_question_is_scored_by_frequency(text, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, 'RESULTS', str(tmp_path / 'log.jsonl'))
    monkeypatch.setattr(evidence, 'BY_FREQUENCY', text)
    ours = of_text('L-DNT', 'mSGDW', text, seeds=(1, 2), searched=AXES[:1])
    evidence.run_stacks([ours], {})
    done = evidence.read(evidence.RESULTS)
    assert evidence.needed([ours], done) == []
    assert [len(row['by_frequency']) for row in evidence.scored(ours, done).values()] == [10, 10]
    # 0 makes up half of the training text, 1 a quarter, 2 and 3 an eighth each: in quarters 0 fills the first
    quarters = write_tokens(tmp_path / 'quarters', 16, 33, vocab=4)
    np.array([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2, '<u2').tofile(quarters / 'train.bin')
    assert evidence.parts_by_frequency(str(quarters), 4, bins=4).tolist() == [0, 2, 3, 3]


def test_tables_of_what_has_finished(monkeypatch, capsys):
    two = [arm('L-DNT', optimizer, 100, range(1, 6), searched=AXES[:1]) for optimizer in ('mSGDW', 'AdamW')]
    best = {0.4: 1.23, 0.004: 1.2}
    done = play(lambda run: best.get(run['learning_rate'], 1.3) + run['seed'] / 1000, *two)[0]

    def said(done):
        evidence.print_question('headline', done)
        return table_of(capsys.readouterr().out)[0]

    question = lambda: two
    question.__doc__ = 'Which?'
    monkeypatch.setitem(arms.QUESTIONS, 'headline', question)
    setting = ['L-DNT mSGDW', '0.4', '0', '0.3', '0.003', '3', '0']
    assert said(done) == [*setting, '5', '1.2330 ± 0.0020']
    part = {k: row for k, row in done.items() if k != key(evidence.scoring(two[0], two[0].start)[-1])}
    assert said(part) == [*setting, '4 of 5', '']  # some seeds are a state and no result
    claim = arms.matches('', 'headline', 'L-DNT', ('mSGDW', 'AdamW'))
    assert [len(of) for of in evidence.losses_of(claim, {'evidence': part}).values()] == [0, 5]
    better = evidence.next_stage(two[0], two[0].beside(two[0].start)[:1], 0)
    done |= {key(run): {'run': run, 'val_loss': 1.1} for run in better}
    assert said(done)[-2] == 'to be scored again'


def test_no_arm_is_scored_at_a_setting_that_lost():
    """In the committed log, by other code: the search means of all settings that an arm could have."""
    own = ('seed', 'learning_rate', 'embed_lr', 'warmup_iters', 'weight_decay')
    done = evidence.read(ROOT / evidence.RESULTS)
    for ours in [ours for question in arms.QUESTIONS.values() for ours in question()]:
        scored = [row['run'] for row in evidence.scored(ours, done).values()]
        losses = {}
        for row in done.values() if scored else ():
            run = row['run']
            fixed = run.items() - {(k, run[k]) for k in own if k in run}
            if run['seed'] in (101, 102) and fixed <= scored[0].items() and ours.setting(run):
                losses.setdefault(tuple(run[k] for k in own[1:]), []).append(row['val_loss'])
        means = {setting: np.mean(of) for setting, of in losses.items() if len(of) == 2}
        if scored:
            assert len(means) == len(evidence.tries(ours, done)), ours.name
            best = min(means, key=means.get)
            assert ours.stages == arms.RACE or best == tuple(scored[0][k] for k in own[1:]), ours.name
