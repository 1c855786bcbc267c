"""
Parameter groups, and the optimizers by name.
"""

import torch
import torch.nn as nn

from configurator import fail
from sgdw import SGDW
from support.distributed import explain

# top-level modules and tensors that embed_lr is for: tables by token, patch and position. an untied head is one more
# table by token; the head of a ViT, one row for each class, is none
EMBEDDINGS = ('wte', 'wpe', 'lm_head', 'patch_embed', 'cls_token', 'pos_embed')


def param_groups(model, weight_decay, embed_scale=0.0):
    """
    Two groups that hold every trainable tensor once: matrices and embeddings decay; biases, gains and what
    model.no_weight_decay() names do not. With an embed_scale the embeddings are two more groups of this kind. The loop
    sets a group's rate to lr_scale times that of the schedule.
    """
    exempt = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    groups = {(embed, decays): {'params': [], 'weight_decay': weight_decay if decays else 0.0,
                                'lr_scale': embed_scale if embed else 1.0}
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
    The optimizer that the keys of a train script describe. optimizer: 'sgdw' (the paper's mSGDW), 'adamw', or 'sgd'
    (torch's, with coupled weight decay). embed_lr: the peak rate of the embeddings; 0: learning_rate.
    embed_optimizer='adamw' gives them AdamW whatever the rest has; 'auto' gives them the same.
    """
    optimizer, embed_optimizer = config['optimizer'], config['embed_optimizer']
    learning_rate, embed_lr = config['learning_rate'], config['embed_lr']
    hybrid = embed_optimizer == 'adamw' != optimizer
    if embed_optimizer not in ('auto', 'adamw'):
        fail(f'embed_optimizer={embed_optimizer} is unknown: use auto (as optimizer) or adamw')
    if hybrid and not embed_lr:
        fail(f'embed_optimizer=adamw needs an embed_lr: {learning_rate:g}, a rate for {optimizer}, is none for adamw')
    if embed_lr and not learning_rate:
        fail(f'embed_lr={embed_lr:g} follows the schedule of learning_rate, which is 0: give it a rate')
    groups = param_groups(model, config['weight_decay'], embed_lr / learning_rate if embed_lr else 0.0)
    if embed_lr and not any(group['params'] for group in groups[2:]):
        fail(f'embed_lr={embed_lr:g}, but this network has no embeddings: leave it at 0')
    if hybrid:
        return Hybrid(one_optimizer(optimizer, groups[:2], config), one_optimizer('adamw', groups[2:], config))
    return one_optimizer(optimizer, groups, config)


def one_optimizer(name, groups, config):
    lr, momentum = config['learning_rate'], config['momentum']
    if name == 'sgdw':
        return SGDW(groups, lr=lr, momentum=momentum, compile=config['compile_optimizer'])
    if name == 'adamw':
        return torch.optim.AdamW(groups, lr=lr, betas=(config['beta1'], config['beta2']), fused=True)
    if name == 'sgd':
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    fail(f'optimizer={name} is unknown: use sgdw, adamw or sgd')


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
