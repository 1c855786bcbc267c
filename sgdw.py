"""
SGDW: momentum SGD with decoupled weight decay, the paper's mSGDW. This file stands alone: copy it where you need it.

Paper: "DNT: a Deeply Normalized Transformer that can be trained by Momentum SGD", arXiv:2507.17501, section 2;
decoupled decay: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
"""

import torch


class SGDW(torch.optim.Optimizer):
    """
    For each parameter w with gradient g:

        m = mu m + g                      momentum, heavy ball: no (1 - mu) before g, and m = 0 at the start
        w = (1 - lr wd) w - lr m          decay is multiplied by lr and never enters m

    With nesterov the step is lr (g + mu m). At weight_decay = 0 this is torch.optim.SGD to the last bit; otherwise
    torch.optim.SGD is another algorithm: it adds wd w to g, so the decay goes through the momentum (coupled decay).
    An optimizer with m = mu m + (1 - mu) g needs a learning rate 1 / (1 - mu) times as large.

    params: tensors or groups (dicts) of them; lr: float or one-element tensor; momentum, weight_decay: floats >= 0.
    foreach: None or True updates all tensors of one dtype and device together, False one after the other, with the
    same numbers (for bfloat16 parameters to rounding: there torch rounds mu itself). The state is one buffer per
    tensor ('momentum_buffer'), and none at momentum 0. p.grad is only read.
    """

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0, nesterov=False, foreach=None):
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError(f'a tensor lr must have one element, got {lr.numel()}')
        for name, value in (('lr', lr), ('momentum', momentum), ('weight_decay', weight_decay)):
            if not value >= 0:  # nan fails too
                raise ValueError(f'{name} must be at least 0, got {value}')
        if nesterov and momentum == 0:
            raise ValueError('nesterov needs momentum > 0')
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
                                      foreach=foreach))

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. closure, if given, recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, buffers = [], [], []
            for p in group['params']:
                if p.grad is None:
                    continue
                if p.grad.is_sparse or p.is_complex():
                    kind = 'sparse gradients' if p.grad.is_sparse else 'complex parameters'
                    raise RuntimeError(f'SGDW does not support {kind} (shape {tuple(p.shape)})')
                if group['momentum'] != 0 and 'momentum_buffer' not in self.state[p]:
                    # zeros, not a copy of g: the same first step, and nothing to go wrong when it is skipped
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                params.append(p)
                grads.append(p.grad)
                buffers.append(self.state[p]['momentum_buffer'] if group['momentum'] != 0 else None)
            hyper = dict(lr=float(group['lr']), mu=group['momentum'], wd=group['weight_decay'],
                         nesterov=group['nesterov'])
            if group['foreach'] is False:
                sgdw(params, grads, buffers, **hyper)
            else:
                sgdw_foreach(params, grads, buffers, **hyper)
        return loss


def sgdw(params, grads, buffers, lr, mu, wd, nesterov):
    """The definition, one tensor at a time."""
    for p, g, m in zip(params, grads, buffers):
        if mu != 0:
            m.mul_(mu).add_(g)
            g = g.add(m, alpha=mu) if nesterov else m
        p.mul_(1 - lr * wd).add_(g, alpha=-lr)


def sgdw_foreach(params, grads, buffers, lr, mu, wd, nesterov):
    """The same arithmetic, all tensors of one dtype and device in a handful of calls."""
    kinds = {}
    for p, g, m in zip(params, grads, buffers):
        for part, tensor in zip(kinds.setdefault((p.device, p.dtype, g.dtype), ([], [], [])), (p, g, m)):
            part.append(tensor)
    for p, g, m in kinds.values():
        if mu != 0:
            torch._foreach_mul_(m, mu)
            torch._foreach_add_(m, g)
            g = torch._foreach_add(g, m, alpha=mu) if nesterov else m
        if wd != 0:
            torch._foreach_mul_(p, 1 - lr * wd)
        torch._foreach_add_(p, g, alpha=-lr)
