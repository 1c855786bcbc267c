"""
The optimizers that the train scripts do not show, what they refuse, and the trial pass.
"""

import gc
from collections.abc import Callable

import torch
import torch.nn as nn

from sgdw import SGDW
from support.console import check_choice, fail
from support.distributed import explain

# the optimizers by name, each made from parameter groups and a config. A new one is one more entry
OPTIMIZERS = {
    'sgdw': lambda groups, c: SGDW(groups, c['learning_rate'], c['momentum'], nesterov=c['nesterov']),
    'adamw': lambda groups, c: torch.optim.AdamW(
        groups, c['learning_rate'], (c['beta1'], c['beta2']), fused=True),
    'sgd': lambda groups, c: torch.optim.SGD(
        groups, c['learning_rate'], c['momentum'], nesterov=c['nesterov']),
    'muon': lambda groups, c: torch.optim.Muon(  # its steps are as large as AdamW's
        groups, c['learning_rate'], momentum=c['momentum'], adjust_lr_fn='match_rms_adamw'),
}

# the modules and tensors that embed_lr applies to: tables by token, patch or position. An untied lm_head is a
# table by token too. The head of a ViT is not an embedding: it has a row per class
EMBEDDINGS = ('wte', 'wpe', 'lm_head', 'patch_embed', 'cls_token', 'pos_embed')


def check_optimizer(config: dict, model: nn.Module) -> None:
    """The keys of the optimizer."""
    name, embed_name, embed_lr = config['optimizer'], config['embed_optimizer'], config['embed_lr']
    check_choice(config, OPTIMIZERS, 'optimizer')
    check_choice(config, ('auto', 'adamw', 'rownorm'), 'embed_optimizer')
    if embed_name not in ('auto', name) and not embed_lr:
        fail(f'embed_optimizer={embed_name} needs a learning rate of its own. Set --embed_lr.')
    if config['embed_weight_decay'] >= 0 and not embed_lr:
        fail(f'embed_weight_decay={config["embed_weight_decay"]:g} needs a learning rate for the embeddings. '
             'Set --embed_lr.')
    if embed_lr and not config['learning_rate']:
        fail(f'embed_lr={embed_lr:g} follows the schedule of learning_rate, which is 0. Set --learning_rate.')
    if embed_lr and not any(hasattr(model, embedding) for embedding in EMBEDDINGS):
        fail(f'embed_lr={embed_lr:g} is set, but this network has no embeddings. Use --embed_lr=0.')
    if name == 'muon' and not hasattr(model, 'blocks'):
        fail(f'optimizer={name} only works with the matrices of a transformer, and this network has '
             'none. Set --optimizer to sgdw, adamw or sgd.')


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
        for opt, opt_state in zip(self.optimizers, state['optimizers'], strict=True):
            opt.load_state_dict(opt_state)


def other_optimizer(model: nn.Module, groups: list[dict], embed_groups: list[dict],
                    config: dict) -> torch.optim.Optimizer | Hybrid:
    """Another entry of OPTIMIZERS, or several in one where the embeddings have an optimizer of their own."""
    name, embed_name = config['optimizer'], config['embed_optimizer']
    if embed_name == 'rownorm':
        embed_name = 'sgdw'  # whose group has rownorm=True
    if embed_name in ('auto', name):
        groups, embed_groups = groups + embed_groups, []
    optimizers = []
    if name == 'muon':  # for the matrices of the blocks; AdamW updates the rest
        matrices, groups = split_for_muon(model, groups)
        optimizers.append(OPTIMIZERS['muon'](matrices, config))
        name = 'adamw'
    optimizers.append(OPTIMIZERS[name](groups, config))
    if embed_groups:
        optimizers.append(OPTIMIZERS[embed_name](embed_groups, config))
    return optimizers[0] if len(optimizers) == 1 else Hybrid(*optimizers)


def split_for_muon(model, groups):
    """The matrices of the blocks as a group, and what is left of the groups."""
    inside = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    matrices = [p for p in groups[0]['params'] if id(p) in inside]
    rest = []
    for group in groups:
        params = [p for p in group['params'] if id(p) not in inside]
        rest.append(group | {'params': params})
    return [groups[0] | {'params': matrices}], rest


def name_optimizer(config: dict) -> str:
    """The optimizer in words, for the line that a run begins with."""
    if config['embed_optimizer'] == 'auto':
        return config['optimizer']
    return f'{config["optimizer"]} ({config["embed_optimizer"]} for embeddings)'


def state_size(opt: torch.optim.Optimizer | Hybrid) -> int:
    """How many numbers an optimizer keeps: AdamW two moments per weight, the others one momentum or none."""
    size = 0
    for group in opt.param_groups:
        moments = 2 if 'betas' in group else int(group.get('momentum', 0) > 0)
        size += moments * sum(p.numel() for p in group['params'])
    return size


def rehearse(loss: Callable[[], torch.Tensor], model: nn.Module, opt: torch.optim.Optimizer | Hybrid,
             first_iter: int, env, batch: str) -> None:
    """
    One forward and backward pass before anything is written. Too little memory or a compiler that fails ends
    the program with one sentence. batch: what one pass takes, in words, for that sentence.
    """
    buffers = {name: b.clone() for name, b in model.named_buffers()}  # statistics of batch normalization
    try:
        room = torch.empty(0 if first_iter else state_size(opt), device=env.device)  # for the first step
        with env.autocast:
            loss().backward()
        del room
    except RuntimeError as e:
        explain(e, f'{batch} do not fit into memory. Use a smaller --micro_batch_size.')
    opt.zero_grad(set_to_none=env.world_size == 1)  # DDP keeps gradients as views into its buckets
    gc.collect()
    gc.freeze()  # what exists now stays to the end, so later collections need not look at it
    for name, b in model.named_buffers():
        b.copy_(buffers[name])
