"""SGDW beyond its equations in test_model.py: rows, copies, saved states, odd tensors, errors."""

import copy
import pickle

import numpy as np
import pytest
import torch

from sgdw import SGDW

ROWS = {(5, 3): (5, 3), (1, 4, 3): (4, 3), (2, 3, 2, 2): (2, 12), (6,): (1, 6), (): (1, 1)}  # shape: its rows
both_ways = pytest.mark.parametrize('foreach', [False, True])


def tensors(shapes, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def steps(opt, params, count=4, seed=0):
    """Updates with the gradients of a seed."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()


@both_ways
@pytest.mark.parametrize('momentum,nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_rownorm_is_its_equation(momentum, nesterov, foreach):
    """Gradients of any size; a group that comes later, with its own numbers, makes the plain step."""
    lr, wd, rng = 0.3, 0.2, np.random.default_rng(0)
    params, plain = tensors(ROWS, dtype=torch.float64), tensors([(4, 3)], 1, torch.float64)
    w = [p.detach().numpy().reshape(rows).copy() for p, rows in zip(params, ROWS.values())]
    w.append(plain[0].detach().numpy().copy())
    m = [np.zeros_like(x) for x in w]
    opt = SGDW(params, lr, momentum, wd, nesterov, foreach, rownorm=True)
    opt.add_param_group({'params': plain, 'rownorm': False, 'lr': 0.7, 'weight_decay': 0.1})
    for _ in range(4):
        grads = [rng.normal(size=x.shape) * 10.0 ** rng.integers(-3, 3) for x in w]
        for i, (p, g) in enumerate(zip(params + plain, grads)):
            p.grad = torch.tensor(g).view(p.shape)
            m[i] = momentum * m[i] + g
            step = g + momentum * m[i] if nesterov else m[i]
            whole = np.sqrt((step ** 2).mean())
            if p is plain[0]:
                w[i] = (1 - 0.7 * 0.1) * w[i] - 0.7 * step
                continue
            for j, row in enumerate(step):
                size = np.sqrt((row ** 2).mean()) + 0.1 * whole
                w[i][j] = (1 - lr * wd) * w[i][j] - lr * row / size
        opt.step()
        for p, g in zip(params + plain, grads):  # DDP keeps gradients: a step only reads them
            assert np.array_equal(p.grad.reshape(g.shape), g)
    for p, x, y in zip(params + plain, w, m):
        np.testing.assert_allclose(p.detach().numpy().reshape(x.shape), x, rtol=1e-12)
        if momentum:  # the momentum has no scale in it
            np.testing.assert_allclose(opt.state[p]['momentum_buffer'].reshape(y.shape), y, rtol=1e-12)


@both_ways
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rownorm_makes_no_step_without_a_gradient(dtype, foreach):
    table, unused = (torch.ones(4, 8, dtype=dtype).requires_grad_() for _ in range(2))
    opt = SGDW([table, unused], lr=1.0, rownorm=True, foreach=foreach)
    for p in (table, unused):
        p.grad = torch.zeros_like(p)
    table.grad[1] = 3e-4  # a row of RMS r in a tensor of RMS r / 2: its step is 1 / (1 + 0.05)
    opt.step()
    assert torch.equal(unused, torch.ones_like(unused))
    assert torch.equal(table[[0, 2, 3]], torch.ones(3, 8, dtype=dtype))
    assert table[1].tolist() == pytest.approx([1 - 1 / 1.05] * 8, abs=torch.finfo(dtype).eps)


def test_rownorm_fades_with_a_gradient_that_has_ended():
    """The momentum of an unused tensor decays. Its squares underflow first; no step may grow from that."""
    p = torch.zeros(2, 4, requires_grad=True)
    opt = SGDW([p], lr=1.0, rownorm=True)
    p.grad = torch.ones_like(p)
    opt.step()
    p.grad = torch.zeros_like(p)
    for _ in range(1200):
        before = p.detach().clone()
        opt.step()
        step = (before - p.detach()).abs().max().item()
        assert step <= (1 + 1e-3) / 1.1
    assert step == 0


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_loop_and_foreach_agree(dtype, rownorm, nesterov):
    """To the same bits; in half precision, to rounding."""
    results = []
    for foreach in (True, None, False):
        params = tensors(ROWS, dtype=dtype)
        opt = SGDW(params, 0.1, 0.5, 0.1, nesterov, foreach, rownorm=rownorm)
        steps(opt, params)
        results.append([p.detach() for p in params] + [opt.state[p]['momentum_buffer'] for p in params])
    eps = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=32 * eps, rtol=0)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('kind', ['copy', 'pickle', 'nesterov', 'foreach', 'rownorm', 'compile', 'torch'])
def test_copies_and_states_of_earlier_versions_and_of_torch_sgd_continue(kind, momentum):
    """Without one of the newer keys, with an older one, or torch's."""
    params, plain = (tensors([(3, 2), (2,)]) for _ in range(2))
    opt = (torch.optim.SGD if kind == 'torch' else SGDW)(params, 0.1, momentum)
    opt.step()
    assert not opt.state  # nothing has a gradient yet
    steps(opt, params)
    if kind in ('copy', 'pickle'):
        opt = copy.deepcopy(opt) if kind == 'copy' else pickle.loads(pickle.dumps(opt))
        params = opt.param_groups[0]['params']
    else:
        state = opt.state_dict()
        if kind == 'compile':
            state['param_groups'][0]['compile'] = True
        elif kind != 'torch':
            del state['param_groups'][0][kind]
        elif momentum == 0:  # as some versions of torch leave it
            state['state'] = {i: {'momentum_buffer': None} for i in range(2)}
        opt = SGDW(params, lr=9.0)
        opt.load_state_dict(state)
    steps(opt, params, seed=1)
    straight = SGDW(plain, 0.1, momentum)
    for seed in (0, 1):
        steps(straight, plain, seed=seed)
    torch.testing.assert_close(params, plain, atol=0, rtol=0)
    opt.param_groups[0]['momentum'] = 0.9  # which may be switched on later
    steps(opt, params)


def test_a_state_of_torch_keeps_our_options_or_is_refused():
    p = torch.ones(4, 2, requires_grad=True)
    ours = SGDW([p], 0.1, rownorm=True)
    ours.load_state_dict(torch.optim.SGD([p], 0.1, momentum=0.9).state_dict())
    assert ours.param_groups[0]['rownorm']
    with pytest.raises(ValueError, match='neither maximize nor dampening'):
        ours.load_state_dict(torch.optim.SGD([p], 0.1, momentum=0.9, maximize=True).state_dict())


@pytest.mark.parametrize('lr', [0.25, torch.tensor(0.25), torch.tensor([0.25])], ids=str)
def test_a_closure_and_a_tensor_as_rate_that_follows_a_scheduler(lr):
    p, results = torch.tensor([3.0], requires_grad=True), []
    opt = SGDW([p], lr, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)

    def closure():
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss
    for _ in range(2):
        results += [opt.step(closure).item(), p.item()]
        scheduler.step()
    assert results == [9.0, 3 - 0.25 * 6, 2.25, 1.5 - 0.125 * 3]


@both_ways
@pytest.mark.parametrize('rownorm', [False, True])
def test_odd_tensors(foreach, rownorm):
    """Empty ones, single numbers and a transposed one."""
    params = [torch.ones(shape, requires_grad=True) for shape in ((), (0,), (0, 3), (3, 0), (2, 0, 1, 1))]
    params.append(torch.ones(3, 2).t().requires_grad_())
    for p in params:
        p.grad = torch.ones_like(p)
    SGDW(params, 0.5, rownorm=rownorm, foreach=foreach).step()
    expected = pytest.approx(1 - 0.5 / 1.1 if rownorm else 0.5)
    assert params[0].item() == expected
    assert params[-1].flatten().tolist() == [expected] * 6


@pytest.mark.parametrize('options,error,text', [
    ({'lr': -1.0}, ValueError, 'lr must be at least 0, got -1.0'),
    ({'lr': torch.ones(2)}, ValueError, 'one element'),
    ({'momentum': -0.1}, ValueError, 'momentum must be at least 0, got -0.1'),
    ({'weight_decay': -1}, ValueError, 'weight_decay must be at least 0, got -1'),
    ({'momentum': 0.0, 'nesterov': True}, ValueError, 'nesterov needs momentum'),
    ({'dampening': 0.1}, TypeError, 'dampening'),  # an option of torch's SGD
    ({'sparse': True}, RuntimeError, 'does not support sparse'),
    ({'complex': True}, RuntimeError, 'does not support .* complex')])
def test_what_is_refused(options, error, text):
    kind = torch.complex64 if options.pop('complex', False) else torch.float32
    p = torch.ones(4, 2, dtype=kind, requires_grad=True)
    p.grad = torch.ones_like(p).to_sparse() if options.pop('sparse', False) else torch.ones_like(p)
    with pytest.raises(error, match=text):
        SGDW([p], **{'lr': 1.0, **options}).step()
    assert torch.equal(p.detach(), torch.ones_like(p))
