"""
SGDW: momentum SGD with decoupled weight decay, the paper's mSGDW. This file stands alone: copy it where you need it.

    decay = [p for p in model.parameters() if p.dim() >= 2]  # matrices and embeddings, not biases and gains
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = SGDW([{'params': decay, 'weight_decay': 1e-4}, {'params': rest}], lr=0.5, momentum=0.9)
    ...
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as the paper's language runs do
    optimizer.step()

Its rates are far above AdamW's: 0.1 to 1 in the paper (tables 4 and 5), 0.05 to 0.4 in the small runs here (config/).

Paper: "DNT: a Deeply Normalized Transformer that can be trained by Momentum SGD", arXiv:2507.17501, section 2;
decoupled decay: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101. License: MIT, see LICENSE.
"""

import warnings

import torch


def sgdw(params, grads, buffers, lr, mu, wd, nesterov):
    """The definition, one tensor at a time."""
    for p, g, m in zip(params, grads, buffers):
        if mu != 0:
            m.mul_(mu).add_(g)
            g = g.add(m, alpha=mu) if nesterov else m
        p.mul_(1 - lr * wd).add_(g, alpha=-lr)


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
    same numbers (for bfloat16 parameters to rounding: there torch rounds mu itself).
    compile: True makes the step one compiled pass over w, g and m, in place of foreach, equal to rounding: five
    memory accesses a weight, the least there is (foreach ten, AdamW seven); small tensors on a CPU stay with foreach.
    A step with a new set of gradients, or another momentum, waits for torch.compile (124M on a CPU: 17 seconds, later
    runs find it in a cache); behind eight such programs it is foreach again, with a warning.
    The state is one buffer per tensor ('momentum_buffer'), and none at momentum 0, the same on all three ways.
    p.grad is only read.
    """

    compile = False  # no key of the groups: it is about this machine, so it stays out of checkpoints (and of copies)

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0, nesterov=False, foreach=None, compile=False):
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError(f'a tensor lr must have one element, got {lr.numel()}')
        for name, value in (('lr', lr), ('momentum', momentum), ('weight_decay', weight_decay)):
            if not value >= 0:  # nan fails too
                raise ValueError(f'{name} must be at least 0, got {value}')
        if nesterov and momentum == 0:
            raise ValueError('nesterov needs momentum > 0')
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
                                      foreach=foreach))
        self.compile = compile

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. closure, if given, recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, buffers, mu = [], [], [], group['momentum']
            for p in group['params']:
                g = m = p.grad  # without momentum the gradient stands in for its buffer, which nobody reads
                if g is None:
                    continue
                if g.is_sparse or p.is_complex():
                    kind = 'sparse gradients' if g.is_sparse else 'complex parameters'
                    raise RuntimeError(f'SGDW does not support {kind} (shape {tuple(p.shape)})')
                if mu != 0:
                    state = self.state[p]
                    if 'momentum_buffer' not in state:
                        # zeros, not a copy of g: the same first step, and nothing to go wrong when it is skipped
                        state['momentum_buffer'] = torch.zeros_like(p)
                    m = state['momentum_buffer']
                params.append(p)
                grads.append(g)
                buffers.append(m)
            hyper = dict(lr=float(group['lr']), mu=mu, wd=group['weight_decay'], nesterov=group['nesterov'])
            update = sgdw_compiled if self.compile else sgdw if group['foreach'] is False else sgdw_foreach
            for kind in by_kind(params, grads, buffers):
                update(*kind, **hyper)
        return loss


def by_kind(params, grads, buffers):
    """The three lists apart, by device and dtypes."""
    kinds = {}
    for p, g, m in zip(params, grads, buffers):
        for part, tensor in zip(kinds.setdefault((p.device, p.dtype, g.dtype), ([], [], [])), (p, g, m)):
            part.append(tensor)
    return kinds.values()


def sgdw_foreach(params, grads, buffers, lr, mu, wd, nesterov):
    """The same arithmetic, all tensors in a handful of calls."""
    if mu != 0:
        torch._foreach_mul_(buffers, mu)
        torch._foreach_add_(buffers, grads)
        grads = torch._foreach_add(grads, buffers, alpha=mu) if nesterov else buffers
    if wd != 0:
        torch._foreach_mul_(params, 1 - lr * wd)
    torch._foreach_add_(params, grads, alpha=-lr)


def one_pass(params, grads, buffers, lr, decay, mu, nesterov):
    """
    The same for torch.compile, which fuses it into one loop that reads p, g and m and writes p and m. lr and decay =
    1 - lr wd are 0-dim tensors, so that a new rate is no new program; all is computed in their dtype. What is copied comes
    last, m behind p: on a GPU a later use of m would find the memory it was copied to.
    """
    p, g = [x.to(lr.dtype) for x in params], [x.to(lr.dtype) for x in grads]
    if mu != 0:
        m = torch._foreach_add(torch._foreach_mul([x.to(lr.dtype) for x in buffers], mu), g)
        g = torch._foreach_add(g, torch._foreach_mul(m, mu)) if nesterov else m
    torch._foreach_copy_(params, torch._foreach_sub(torch._foreach_mul(p, decay), torch._foreach_mul(g, lr)))
    if mu != 0:
        torch._foreach_copy_(buffers, m)


class NotCompiled(Exception):
    pass


def program(*args):
    if not torch.compiler.is_compiling():  # torch may run it as it stands, without fusing a thing
        raise NotCompiled('it is off, or was asked for more than eight programs')
    one_pass(*args)


compiled = {}  # device type: the compiled program, None where torch.compile fails


def sgdw_compiled(params, grads, buffers, lr, mu, wd, nesterov):
    """one_pass, compiled, one program for the whole list; foreach, after a warning, where there is no compiler."""
    device, hyper = params[0].device, dict(lr=lr, mu=mu, wd=wd, nesterov=nesterov)
    if device.type == 'cpu':  # a tensor is a loop for the C++ compiler; small ones stay in the cache and gain nothing
        small, large = [], []
        for x in zip(params, grads, buffers):
            (small if x[0].numel() < 2**15 else large).append(x)
        if small:
            sgdw_foreach(*zip(*small), **hyper)
        if not large:
            return
        params, grads, buffers = map(list, zip(*large))
    try:
        if device.type not in compiled:
            compiled[device.type] = torch.compile(program, dynamic=False)
        if compiled[device.type]:
            kind = dict(dtype=torch.promote_types(params[0].dtype, torch.float32), device=device)
            rate, decay = torch.full((), lr, **kind), torch.full((), 1 - lr * wd, **kind)
            # .data, or torch.compile looks at what a gradient is a view of, too: DDP's buckets, which change
            compiled[device.type](params, [g.data for g in grads], buffers, rate, decay, mu, nesterov)
            return
        why = None
    except Exception as e:
        if device.type in compiled and not (isinstance(e, NotCompiled) or type(e).__module__.startswith('torch._')):
            raise  # not of the compiler, which fails before anything is written: memory, a GPU's errors
        compiled[device.type], why = None, (str(e).splitlines() or [type(e)])[0]
    sgdw_foreach(params, grads, buffers, **hyper)
    if why:
        warnings.warn(f'SGDW goes on without torch.compile, which fails here: {why}')
