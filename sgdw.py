"""
SGDW: momentum SGD with decoupled weight decay (the paper's mSGDW). This file stands alone: you can copy it.

    optimizer = SGDW([{'params': matrices, 'weight_decay': 1e-4}, {'params': gains}], lr=0.1, momentum=0.9)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

Its rates are far above AdamW's: 0.1 to 1 in the paper (tables 4 and 5), 0.05 to 0.8 in our small runs. With
rownorm they are like AdamW's. Language runs clip the gradient's norm to 1, as above.
Papers: DNT, arXiv:2507.17501, section 2; decoupled decay, arXiv:1711.05101. License: MIT.
"""
import torch


def normalize_rows(m):
    """Divide each row by its RMS + 0.1 x the RMS of m. Below an RMS of 1e-15 the result fades to 0."""
    m = m.to(torch.promote_types(m.dtype, torch.float32))
    row = -1 if m.dim() < 4 else tuple(range(1, m.dim()))  # the last axis, or a whole filter
    squares = m.square().mean(row, keepdim=True)
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
    """The same arithmetic for a list of tensors, with few calls of torch."""
    if mu != 0:
        torch._foreach_mul_(buffers, mu)
        torch._foreach_add_(buffers, grads)
        grads = torch._foreach_add(grads, buffers, alpha=mu) if nesterov else buffers
    grads = [normalize_rows(g) for g in grads] if rownorm else grads
    if wd != 0:
        torch._foreach_mul_(params, 1 - lr * wd)
    torch._foreach_add_(params, grads, alpha=-lr)


class SGDW(torch.optim.Optimizer):
    """
    For each parameter w with gradient g:
        m = mu m + g                    heavy ball: g has no factor (1 - mu), and m starts at 0
        w = (1 - lr wd) w - lr m        the decay is multiplied by lr and never enters m
    With nesterov, the step uses g + mu m in place of m. With rownorm, the step (not m) is scaled row by row:
        w_row = (1 - lr wd) w_row - lr m_row / (rms(m_row) + 0.1 rms(m))
    A row is a vector along the last axis; of a tensor with four axes or more, it is one filter of a
    convolution. rownorm suits embeddings, because rare tokens have small gradients (arXiv:2402.19449). Give
    them a group of their own, with a rate like AdamW's (0.004 in config/dnt_tiny.py). Related: Adam-mini
    2406.16793, SCALE 2506.16659.
    Without decay, torch.optim.SGD gives the same bits. With decay, it adds wd w to g (coupled decay).

    params: tensors or groups; a group may set every option. lr: a number or a tensor with one element. lr,
    momentum (mu) and weight_decay (wd) must be at least 0. foreach: False updates tensors one by one, None or
    True all of a dtype and device together. Both give the same bits, in half precision the same to rounding.
    State: one 'momentum_buffer' per tensor, none at momentum 0. Keep weights in float32: in bfloat16, a decay
    of lr wd below 0.002 is lost to rounding. torch.compile the model, not the step: it reads lr as a number.
    """
    def __init__(self, params, lr: float | torch.Tensor, momentum: float = 0.9, weight_decay: float = 0.0,
                 nesterov=False, foreach: bool | None = None, rownorm=False):
        for name, value in (('lr', lr), ('momentum', momentum), ('weight_decay', weight_decay)):
            if not float(value) >= 0:  # nan fails too
                raise ValueError(f'{name} must be at least 0, got {value}')
        if nesterov and momentum == 0:
            raise ValueError('nesterov needs momentum > 0')
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
                                      foreach=foreach, rownorm=rownorm))

    def __setstate__(self, state):
        super().__setstate__(state)
        self.__dict__.pop('compile', None)  # an option of earlier versions, in their pickles
        for group in self.param_groups:
            if group.get('maximize') or group.get('dampening'):
                raise ValueError('SGDW has neither maximize nor dampening, which this state has')
            # a state of earlier versions or of torch.optim.SGD may lack these
            group.update({'nesterov': False, 'foreach': None, 'rownorm': False, **self.defaults, **group})

    @torch.no_grad()
    def step(self, closure=None):
        """Update each parameter that has a gradient. closure, if given, first computes the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, mu = float(group['lr']), group['momentum']
            kinds = {}  # (device, dtype, dtype of the gradient): parameters, gradients, momenta
            for p in group['params']:
                if p.grad is None:
                    continue
                if p.grad.is_sparse or p.is_complex():
                    raise RuntimeError('SGDW does not support sparse gradients or complex parameters')
                if mu != 0 and self.state[p].get('momentum_buffer') is None:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                m = self.state[p]['momentum_buffer'] if mu != 0 else p.grad  # at momentum 0 nobody reads m
                lists = kinds.setdefault((p.device, p.dtype, p.grad.dtype), ([], [], []))
                for part, tensor in zip(lists, (p, p.grad, m)):
                    part.append(tensor)
            update = sgdw if group['foreach'] is False else sgdw_foreach
            for lists in kinds.values():
                update(*lists, lr, mu, group['weight_decay'], group['nesterov'], group['rownorm'])
        return loss
