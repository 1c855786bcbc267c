"""
SGDW: momentum SGD with decoupled weight decay (the paper's mSGDW). This file stands alone: you can copy it.

    optimizer = SGDW([{'params': matrices, 'weight_decay': 1e-4}, {'params': gains}], lr=0.5, momentum=0.9)

Its rates are far above AdamW's: 0.1 to 1 in the paper (tables 4 and 5), 0.05 to 0.4 in the small runs here.
Papers: DNT, arXiv:2507.17501, section 2; decoupled decay, arXiv:1711.05101. License: MIT, see LICENSE.
"""
import functools

import torch

compiled = functools.cache(torch.compile)  # called once, because each call of torch.compile keeps memory


def normalize_rows(m):
    """Each row divided by its RMS + 0.1 x the RMS of m. Below an RMS of 1e-15 the result fades to 0."""
    m = m.to(torch.promote_types(m.dtype, torch.float32))
    squares = m.square().mean(-1 if m.dim() < 4 else tuple(range(1, m.dim())), keepdim=True)
    return m / (squares.sqrt() + 0.1 * squares.mean().sqrt()).clamp_min(1e-15)


def sgdw(params, grads, buffers, lr, mu, wd, nesterov, rownorm):
    """The definition, one tensor at a time."""
    for p, g, m in zip(params, grads, buffers):
        if mu != 0:
            m.mul_(mu).add_(g)
            g = g.add(m, alpha=mu) if nesterov else m
        g = normalize_rows(g) if rownorm else g
        p.mul_(1 - lr * wd).add_(g, alpha=-lr)


def sgdw_foreach(params, grads, buffers, lr, mu, wd, nesterov, rownorm):
    """The same arithmetic, all tensors in a handful of calls."""
    if mu != 0:
        torch._foreach_mul_(buffers, mu)
        torch._foreach_add_(buffers, grads)
        grads = torch._foreach_add(grads, buffers, alpha=mu) if nesterov else buffers
    grads = [normalize_rows(g) for g in grads] if rownorm else grads
    if wd != 0:
        torch._foreach_mul_(params, 1 - lr * wd)
    torch._foreach_add_(params, grads, alpha=-lr)


def one_pass(params, grads, buffers, lr, decay, mu, nesterov, rownorm):
    """The same for torch.compile, which fuses it into one loop, in the dtype of lr and decay = 1 - lr wd."""
    p, g, m = ([x.to(lr.dtype) for x in part] for part in (params, grads, buffers))
    if mu != 0:
        m = torch._foreach_add(torch._foreach_mul(m, mu), g)
        g = torch._foreach_add(g, torch._foreach_mul(m, mu)) if nesterov else m
    g = [normalize_rows(x) for x in g] if rownorm else g
    # The copies come last, m after p: on a GPU, a later use of m would read memory that its copy has changed.
    torch._foreach_copy_(params, torch._foreach_sub(torch._foreach_mul(p, decay), torch._foreach_mul(g, lr)))
    if mu != 0:
        torch._foreach_copy_(buffers, m)


def sgdw_compiled(params, grads, buffers, lr, mu, wd, nesterov, rownorm):
    kind = {'dtype': torch.promote_types(params[0].dtype, torch.float32), 'device': params[0].device}
    rates = torch.full((), lr, **kind), torch.full((), 1 - lr * wd, **kind)  # tensors: new rates, same code
    compiled(one_pass, dynamic=False, fullgraph=True)(params, grads, buffers, *rates, mu, nesterov, rownorm)


class SGDW(torch.optim.Optimizer):
    """
    For each parameter w with gradient g:
        m = mu m + g                    heavy ball: no (1 - mu) before g, and m = 0 at the start
        w = (1 - lr wd) w - lr m        the decay is multiplied by lr and never enters m
    With nesterov, the step has g + mu m for m. With rownorm, each row of the step, not of m, is scaled:
        w_row = (1 - lr wd) w_row - lr m_row / (rms(m_row) + 0.1 rms(m))
    A row is a vector along the last axis or a filter of a convolution. It suits embeddings: rare tokens have
    small gradients (Kunstner et al., arXiv:2402.19449). Related: Adam-mini 2406.16793, SCALE 2506.16659.
    torch.optim.SGD does the same, bit for bit, at wd = 0; otherwise it adds wd w to g (coupled decay).

    params: tensors or groups; a group may set all options but compile. lr: a float or one-element tensor. lr,
    momentum (mu), weight_decay (wd): at least 0, else ValueError. foreach: False updates tensors one by one,
    None or True all of a dtype and device together, to the same bits (in bfloat16 to rounding). compile: True
    makes one compiled pass on tensors of >= 2**15 weights, equal to rounding: five memory accesses a weight,
    the fewest possible (foreach ten, AdamW seven). New lists compile again; step() raises torch's error where
    that fails or after eight programs. State: one 'momentum_buffer' per tensor, none at momentum 0.
    """
    def __init__(self, params, lr: float | torch.Tensor, momentum: float = 0.9, weight_decay: float = 0.0,
                 nesterov=False, foreach: bool | None = None, compile=False, rownorm=False):
        for name, value in (('lr', lr), ('momentum', momentum), ('weight_decay', weight_decay)):
            if not float(value) >= 0:  # nan fails too
                raise ValueError(f'{name} must be at least 0, got {value}')
        if nesterov and momentum == 0:
            raise ValueError('nesterov needs momentum > 0')
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
                                      foreach=foreach, rownorm=rownorm))
        self.compile = compile  # not in the groups: it depends on the machine, so checkpoints do not hold it

    def __getstate__(self):  # for copies and pickles
        return {**super().__getstate__(), 'compile': self.compile}

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:  # what earlier versions or torch.optim.SGD have saved may lack these
            group.update({'nesterov': False, 'foreach': None, 'rownorm': False, **group})

    @torch.no_grad()
    def step(self, closure=None):
        """Updates each parameter that has a gradient. closure, if given, first computes the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            kinds, lr, mu = {}, float(group['lr']), group['momentum']
            for p in (p for p in group['params'] if p.grad is not None):
                g = p.grad.data  # so that torch.compile does not see DDP's buckets, which change
                if g.is_sparse or p.is_complex():
                    raise RuntimeError('SGDW does not support sparse gradients or complex parameters')
                if mu != 0 and self.state[p].get('momentum_buffer') is None:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)  # not g: a step may be skipped
                m = self.state[p]['momentum_buffer'] if mu != 0 else g  # at momentum 0 nobody reads it
                kind = p.device, p.dtype, g.dtype, self.compile and p.numel() >= 2**15
                for part, x in zip(kinds.setdefault(kind, ([], [], [])), (p, g, m)):
                    part.append(x)
            for (*_, fuse), lists in kinds.items():
                update = sgdw_compiled if fuse else sgdw if group['foreach'] is False else sgdw_foreach
                update(*lists, lr, mu, group['weight_decay'], group['nesterov'], group['rownorm'])
        return loss
