"""
Parameter groups, and the optimizers by name.
"""

import torch
import torch.nn as nn

from configurator import fail
from sgdw import SGDW
from support.distributed import explain

# name: the optimizer of some parameter groups, from the keys of a config. A new one is a line here
OPTIMIZERS = {
    'sgdw': lambda groups, c: SGDW(groups, c['learning_rate'], c['momentum'], compile=c['compile_optimizer']),
    'adamw': lambda groups, c: torch.optim.AdamW(groups, c['learning_rate'], (c['beta1'], c['beta2']), fused=True),
    'sgd': lambda groups, c: torch.optim.SGD(groups, c['learning_rate'], c['momentum']),
    'muon': lambda groups, c: torch.optim.Muon(groups, c['learning_rate'], momentum=c['momentum'],
                                               adjust_lr_fn='match_rms_adamw'),  # steps as large as AdamW's
}
# for embeddings only: mSGDW with one scale per row (sgdw.py)
ROWNORM = {'rownorm': lambda groups, c: SGDW([{**group, 'rownorm': True} for group in groups], c['learning_rate'],
                                             c['momentum'], compile=c['compile_optimizer'])}
MATRICES_ONLY = {'muon'}  # AdamW updates all but the matrices of the blocks

# the modules and tensors that embed_lr is for: tables by token, patch and position. An untied lm_head is one more
# table by token; the head of a ViT, with a row for each class, is not
EMBEDDINGS = ('wte', 'wpe', 'lm_head', 'patch_embed', 'cls_token', 'pos_embed')


def param_groups(model: nn.Module, weight_decay: float, embed_scale: float = 0.0,
                 embed_weight_decay: float = -1.0) -> list[dict]:
    """
    Two groups that hold every trainable tensor once: matrices and embeddings decay; biases, gains and what
    model.no_weight_decay() names do not. With an embed_scale, the embeddings are two more groups of this kind, with
    their own embed_weight_decay where that is not negative. The loop sets the rate of a group to lr_scale times that
    of the schedule.
    """
    exempt = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    embed_decay = weight_decay if embed_weight_decay < 0 else embed_weight_decay
    groups = {(embed, decays): {'params': [], 'lr_scale': embed_scale if embed else 1.0,
                                'weight_decay': decays * (embed_decay if embed else weight_decay)}
              for embed in ((False, True) if embed_scale else (False,)) for decays in (True, False)}
    for n, p in model.named_parameters():  # a tied tensor comes once
        if p.requires_grad:
            embed = embed_scale > 0 and n.split('.')[0] in EMBEDDINGS
            groups[embed, p.dim() >= 2 and n not in exempt]['params'].append(p)
    return list(groups.values())


class Hybrid:
    """Two optimizers, each with parameters of its own, used as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self):
        return [group for opt in self.optimizers for group in opt.param_groups]

    def step(self):
        for opt in self.optimizers:
            opt.step()

    def zero_grad(self, set_to_none=True):
        for opt in self.optimizers:
            opt.zero_grad(set_to_none)

    def state_dict(self):
        return {'optimizers': [opt.state_dict() for opt in self.optimizers]}

    def load_state_dict(self, state):
        for opt, of_one in zip(self.optimizers, state['optimizers'], strict=True):
            opt.load_state_dict(of_one)


def make_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer | Hybrid:
    """
    The optimizer that the keys of a train script describe. optimizer: a name in OPTIMIZERS. embed_lr: the peak rate of
    the embeddings; 0: learning_rate. embed_optimizer: 'adamw' or 'rownorm' for the embeddings, whatever the rest has;
    'auto': the same. embed_weight_decay: -1: weight_decay.
    """
    name, embed_name, lr, embed_lr, embed_decay = (config[key] for key in (
        'optimizer', 'embed_optimizer', 'learning_rate', 'embed_lr', 'embed_weight_decay'))
    hybrid = embed_name not in ('auto', name)
    if name not in OPTIMIZERS:
        fail(f'optimizer={name} is unknown. Use {", ".join(OPTIMIZERS)}.')
    if embed_name not in ('auto', 'adamw', 'rownorm'):
        fail(f'embed_optimizer={embed_name} is unknown. Use auto (the same as optimizer), adamw or rownorm.')
    if hybrid and not embed_lr:
        fail(f'embed_optimizer={embed_name} needs a learning rate of its own. Set --embed_lr.')
    if embed_decay >= 0 and not embed_lr:
        fail(f'embed_weight_decay={embed_decay:g} needs a learning rate for the embeddings. Set --embed_lr.')
    if embed_lr and not lr:
        fail(f'embed_lr={embed_lr:g} follows the schedule of learning_rate, which is 0. Set --learning_rate.')
    groups = param_groups(model, config['weight_decay'], embed_lr / lr if embed_lr else 0.0, embed_decay)
    if embed_lr and not any(group['params'] for group in groups[2:]):
        fail(f'embed_lr={embed_lr:g}, but this network has no embeddings. Leave it at 0.')
    parts = [(name, groups[:2]), (embed_name, groups[2:])] if hybrid else [(name, groups)]
    if name in MATRICES_ONLY:
        ids = {id(p) for n, p in model.named_parameters() if p.dim() == 2 and n.split('.')[0] == 'blocks'}
        if not ids:
            fail(f'optimizer={name} is for the matrices of a transformer, and this network has none.')
        of = [[{**group, 'params': [p for p in group['params'] if (id(p) in ids) == inside]} for group in parts[0][1]]
              for inside in (True, False)]
        parts[:1] = [(name, of[0][:1]), ('adamw', of[1])]
    made = [(OPTIMIZERS | ROWNORM)[kind](part, config) for kind, part in parts]
    return made[0] if len(made) == 1 else Hybrid(*made)


def state_size(opt):
    """How many numbers an optimizer keeps: AdamW two moments a weight, the others a momentum."""
    return sum(p.numel() * (2 if 'betas' in group else group['momentum'] > 0)
               for group in opt.param_groups for p in group['params'])


def rehearse(loss, opt, start_iter, env, batch):
    """
    One forward and backward pass before anything is written or thrown away: it shows that memory is there and that the
    compiler works. loss: a function of no arguments. batch: what one pass takes, in words.
    """
    try:
        room = torch.empty(0 if start_iter else state_size(opt), device=env.device)  # the first step will need it
        with env.autocast:
            loss().backward()
        del room
    except RuntimeError as e:
        explain(e, f'{batch} do not fit into memory: use a smaller micro_batch_size')
    opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
