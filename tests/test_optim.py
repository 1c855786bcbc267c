"""What decays, what is an embedding, and the optimizers by name."""

import numpy as np
import pytest
import torch

from model import ViT, ViTConfig
from sgdw import SGDW
from support.nfnet import NFNet, NFNetConfig
from support.optim import OPTIMIZERS, Hybrid, name_optimizer, state_size
from support.resume import Checkpoint, load_optimizer
from test_model import tiny, weights
from tests.common import assert_refused, make_optimizer

CONFIG = dict(optimizer='sgdw', learning_rate=0.3, weight_decay=0.1, momentum=0.9, beta1=0.9, beta2=0.95,
              embed_lr=0.0, embed_optimizer='auto', embed_weight_decay=-1.0, nesterov=False)


def test_nesterov_is_the_step_of_timms_factory():
    """The steps of create_optimizer_v2(params, 'sgdw') of timm 1.0.31."""
    model, config = tiny(), CONFIG | dict(nesterov=True)
    opt, weight = make_optimizer(model, config), model.wte.weight
    weight.data.fill_(1.0)
    for g, wanted in ((1.0, 0.4), (-2.0, 1.285), (3.0, -0.19625)):
        weight.grad = torch.full_like(weight, g)
        opt.step()
        assert weight.flatten()[0].item() == pytest.approx(wanted)


NFNET = NFNetConfig(n_classes=10, widths=(4, 8, 8, 8), depths=(1, 1, 1, 1), group_size=2)
VIT = ViTConfig(image_size=8, patch_size=4, n_layer=1, n_head=2, n_embd=16)


@pytest.mark.parametrize('make,embeddings', [
    (lambda: tiny(norm='layer', bias=True), {'wte.weight', 'wpe.weight'}),
    (lambda: tiny(norm='dyt', tied=False), {'wte.weight', 'wpe.weight', 'lm_head.weight'}),
    (lambda: ViT(VIT), {'patch_embed.weight', 'patch_embed.bias', 'cls_token', 'pos_embed'}),
    (lambda: NFNet(NFNET), None)])
def test_what_decays_and_what_has_the_rate_of_embeddings(make, embeddings):
    """Each tensor once; matrices and filters decay; biases, gains, class token and positions do not."""
    model = make()
    names = {id(p): name for name, p in model.named_parameters()}
    for embed_lr in (0.0, 0.15):
        config = CONFIG | dict(embed_lr=embed_lr)
        if embed_lr and not embeddings:
            assert_refused(lambda: make_optimizer(model, config),
                           'this network has no embeddings. Use --embed_lr=0.')
            continue
        groups = make_optimizer(model, config).param_groups
        found = [(names[id(p)], group['weight_decay'], group['lr_scale'])
                 for group in groups for p in group['params']]
        expected = []
        for name in names.values():
            decay = 0.1 if name.endswith('.weight') and 'norm' not in name else 0.0
            expected.append((name, decay, 0.5 if embed_lr and name in embeddings else 1.0))
        assert sorted(found) == sorted(expected)
    assert_refused(lambda: make_optimizer(model, CONFIG | dict(embed_optimizer='sgdw')),
                   'Set --embed_optimizer to one of auto, adamw, rownorm.')


def take_steps(model, opt, steps):
    """Updates with a series of gradients, at falling rates."""
    for i in steps:
        rng = torch.Generator().manual_seed(i)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=rng)
        for group in opt.param_groups:
            group['lr'] = 0.3 / (1 + i) * group['lr_scale']
        opt.step()
        opt.zero_grad()


def several_steps(make, steps=range(6), model=None):
    """-> the optimizer that make(model) is, and the weights after updates with a series of gradients"""
    model = model or tiny()
    opt = make(model)
    take_steps(model, opt, steps)
    return opt, weights(model)


def ours(optimizer, **embed):
    return lambda model: make_optimizer(model, CONFIG | dict(optimizer=optimizer, **embed))


HYBRID = ours('sgdw', embed_lr=0.02, embed_optimizer='adamw')


def test_embedding_optimizer_against_two_optimizers():
    def two(model):  # what a hybrid is, by hand
        embeds = [model.wte.weight, model.wpe.weight]
        rest = [p for p in model.parameters() if all(p is not e for e in embeds)]
        kinds = (([p for p in rest if p.dim() > 1], 0.1), ([p for p in rest if p.dim() < 2], 0.0))
        sgdw = SGDW([{'params': p, 'weight_decay': d, 'lr_scale': 1.0} for p, d in kinds], lr=1, momentum=0.9)
        groups = [{'params': embeds, 'lr_scale': 0.02 / 0.3}]
        return Hybrid(sgdw, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1))

    a, b = (several_steps(make)[1] for make in (HYBRID, two))
    assert all(np.abs(a[k] - b[k]).max() < 1e-12 for k in a)
    # at one rate it is what it was, and a tenth for the embeddings moves them alone
    for optimizer in ('sgdw', 'adamw', 'sgd'):
        plain, same, slow = (several_steps(ours(optimizer, **embed))[1]
                             for embed in ({}, dict(embed_lr=0.3), dict(embed_lr=0.03)))
        assert all((plain[k] == same[k]).all() for k in plain)
        moved = [k for k in plain if (plain[k] != slow[k]).any()]
        assert moved == [k for k in plain if k.split('.')[0] in ('wte', 'wpe', 'lm_head')]


def test_optimizers_go_on_from_a_checkpoint_of_the_same_groups():
    def load_state(opt, state):  # as a run at iteration 3 resumes
        load_optimizer(opt, Checkpoint('ckpt.pt', {'iter': 3, 'optimizer': state}, resumes=True))

    for make in (HYBRID, ours('sgdw'), ours('adamw', embed_lr=0.1)):
        whole, model = several_steps(make)[1], tiny()
        state, again = several_steps(make, range(3), model)[0].state_dict(), make(model)
        for group in state.get('param_groups', ()):  # made before there was an lr_scale
            del group['lr_scale']
        load_state(again, state)
        resumed = several_steps(lambda model: again, range(3, 6), model)[1]
        assert all((whole[k] == resumed[k]).all() for k in whole)
    for make, other in ((HYBRID, ours('sgdw')), (ours('sgdw'), HYBRID),
                        (ours('sgdw'), ours('sgdw', embed_lr=0.1))):
        assert_refused(lambda: load_state(make(tiny()), other(tiny()).state_dict()),
                       'has its optimizer state in other groups')


def test_room_for_the_state_is_what_the_optimizers_make():
    for kwargs in (dict(optimizer='adamw'), dict(optimizer='sgd'), dict(momentum=0.0),
                   dict(embed_lr=0.01, embed_optimizer='adamw')):
        model = tiny()
        opt = make_optimizer(model, CONFIG | kwargs)
        take_steps(model, opt, [0])
        states = [s for o in getattr(opt, 'optimizers', [opt]) for s in o.state.values()]
        assert state_size(opt) == sum(x.numel() for s in states for x in s.values()
                                      if torch.is_tensor(x) and x.dim())


def test_an_optimizer_is_one_more_entry(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, 'adagrad', lambda groups, c: torch.optim.Adagrad(groups, lr=0.1))
    opt, _ = several_steps(ours('adagrad'), [0])
    assert type(opt) is torch.optim.Adagrad and state_size(opt) == 0  # no momentum that we know of
    for embed_optimizer, name in (('auto', 'adagrad'), ('rownorm', 'adagrad (rownorm for embeddings)')):
        assert name_optimizer({'optimizer': 'adagrad', 'embed_optimizer': embed_optimizer}) == name
