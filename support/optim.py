"""
Parameter groups, and the optimizers by name.
"""

from collections.abc import Callable

import torch
import torch.nn as nn

from sgdw import SGDW
from support.console import fail
from support.distributed import explain

# the optimizers by name, each made from parameter groups and a config. A new one is one more entry
OPTIMIZERS = {
    'sgdw': lambda groups, c: SGDW(groups, c['learning_rate'], c['momentum']),
    'adamw': lambda groups, c: torch.optim.AdamW(
        groups, c['learning_rate'], (c['beta1'], c['beta2']), fused=True),
    'sgd': lambda groups, c: torch.optim.SGD(groups, c['learning_rate'], c['momentum']),
    'muon': lambda groups, c: torch.optim.Muon(  # its steps are as large as AdamW's
        groups, c['learning_rate'], momentum=c['momentum'], adjust_lr_fn='match_rms_adamw'),
}
# for embeddings only: mSGDW with one scale per row (sgdw.py)
ROWNORM = {'rownorm': lambda groups, c: OPTIMIZERS['sgdw']([{**g, 'rownorm': True} for g in groups], c)}
MATRICES_ONLY = {'muon'}  # used for the matrices of the blocks; AdamW updates the rest

# the modules and tensors that embed_lr applies to: tables by token, patch or position. An untied lm_head is a
# table by token too. The head of a ViT is not an embedding: it has a row per class
EMBEDDINGS = ('wte', 'wpe', 'lm_head', 'patch_embed', 'cls_token', 'pos_embed')


def param_groups(model: nn.Module, weight_decay: float, embed_scale: float = 0.0,
                 embed_weight_decay: float = -1.0) -> list[dict]:
    """
    Two groups that hold every trainable tensor once. Matrices and embeddings decay. Biases, gains and the
    names in model.no_weight_decay() do not. With an embed_scale above 0, the embeddings are two more such
    groups, with an lr_scale of embed_scale and, unless it is negative, embed_weight_decay. The training loop
    sets the rate of a group to lr_scale times that of the schedule.
    """
    exempt = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    embed_decay = weight_decay if embed_weight_decay < 0 else embed_weight_decay
    groups = {(embed, decays): {'params': [], 'lr_scale': embed_scale if embed else 1.0,
                                'weight_decay': decays * (embed_decay if embed else weight_decay)}
              for embed in ((False, True) if embed_scale else (False,)) for decays in (True, False)}
    for n, p in model.named_parameters():  # lists a tied tensor once
        if p.requires_grad:
            embed = embed_scale > 0 and n.split('.')[0] in EMBEDDINGS
            groups[embed, p.dim() >= 2 and n not in exempt]['params'].append(p)
    return list(groups.values())


class Hybrid:
    """Several optimizers, each with its own parameters, used as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for opt in self.optimizers for group in opt.param_groups]

    def step(self) -> None:
        for opt in self.optimizers:
            opt.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for opt in self.optimizers:
            opt.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {'optimizers': [opt.state_dict() for opt in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        for opt, of_one in zip(self.optimizers, state['optimizers'], strict=True):
            opt.load_state_dict(of_one)


def make_optimizer(model: nn.Module, config: dict) -> torch.optim.Optimizer | Hybrid:
    """
    The optimizer that the keys of a train script describe. optimizer: a name in OPTIMIZERS. embed_lr: the
    peak rate of the embeddings (0: learning_rate). embed_optimizer: 'adamw' or 'rownorm' for the embeddings
    ('auto': the same as optimizer). embed_weight_decay: the decay of the embeddings (-1: weight_decay).
    """
    name, embed_name, lr, embed_lr, embed_decay = (config[key] for key in (
        'optimizer', 'embed_optimizer', 'learning_rate', 'embed_lr', 'embed_weight_decay'))
    hybrid = embed_name not in ('auto', name)
    if name not in OPTIMIZERS:
        fail(f'optimizer={name} is unknown. Set --optimizer to one of {", ".join(OPTIMIZERS)}.')
    if embed_name not in ('auto', 'adamw', 'rownorm'):
        fail(f'embed_optimizer={embed_name} is unknown. '
             'Set --embed_optimizer to auto (the same as optimizer), adamw or rownorm.')
    if hybrid and not embed_lr:
        fail(f'embed_optimizer={embed_name} needs a learning rate of its own. Set --embed_lr.')
    if embed_decay >= 0 and not embed_lr:
        fail(f'embed_weight_decay={embed_decay:g} needs a learning rate for the embeddings. Set --embed_lr.')
    if embed_lr and not lr:
        fail(f'embed_lr={embed_lr:g} follows the schedule of learning_rate, which is 0. Set --learning_rate.')
    groups = param_groups(model, config['weight_decay'], embed_lr / lr if embed_lr else 0.0, embed_decay)
    if embed_lr and not any(group['params'] for group in groups[2:]):
        fail(f'embed_lr={embed_lr:g} is set, but this network has no embeddings. Use --embed_lr=0.')
    parts = [(name, groups[:2]), (embed_name, groups[2:])] if hybrid else [(name, groups)]
    if name in MATRICES_ONLY:
        ids = {id(p) for n, p in model.named_parameters() if p.dim() == 2 and n.split('.')[0] == 'blocks'}
        if not ids:
            fail(f'optimizer={name} only works with the matrices of a transformer, and this network has '
                 'none. Set --optimizer to sgdw, adamw or sgd.')
        inside, outside = ([{**group, 'params': [p for p in group['params'] if (id(p) in ids) == wanted]}
                            for group in parts[0][1]] for wanted in (True, False))
        parts[:1] = [(name, inside[:1]), ('adamw', outside)]
    made = [(OPTIMIZERS | ROWNORM)[kind](part, config) for kind, part in parts]
    return made[0] if len(made) == 1 else Hybrid(*made)


def name_optimizer(config: dict) -> str:
    """The optimizer in words, for the line that a run begins with."""
    of_embeddings = config['embed_optimizer']
    return config['optimizer'] + f' ({of_embeddings} for embeddings)' * (of_embeddings != 'auto')


def state_size(opt: torch.optim.Optimizer | Hybrid) -> int:
    """How many numbers an optimizer keeps: AdamW two moments per weight, the others one momentum or none."""
    return sum(p.numel() * (2 if 'betas' in group else group.get('momentum', 0) > 0)
               for group in opt.param_groups for p in group['params'])


def rehearse(loss: Callable[[], torch.Tensor], opt: torch.optim.Optimizer | Hybrid, start_iter: int, env,
             batch: str) -> None:
    """
    One forward and backward pass before anything is written. Too little memory or a compiler that fails ends
    the program with one sentence. batch: what one pass takes, in words, for that sentence.
    """
    try:
        room = torch.empty(0 if start_iter else state_size(opt), device=env.device)  # for the first step
        with env.autocast:
            loss().backward()
        del room
    except RuntimeError as e:
        explain(e, f'{batch} do not fit into memory. Use a smaller --micro_batch_size.')
    opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
