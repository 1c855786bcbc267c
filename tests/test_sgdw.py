"""SGDW beyond its equations in test_model.py: rows, copies, saved states, odd tensors, errors."""

import copy
import pickle

import numpy as np
import pytest
import torch

from sgdw import SGDW

MOMENTA = [(0.0, False), (0.9, False), (0.9, True)]
ROWS = {(5, 3): (5, 3), (1, 4, 3): (4, 3), (2, 3, 2, 2): (2, 12), (6,): (1, 6), (): (1, 1)}  # shape: its rows


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


def assert_equal(a, b):
    torch.testing.assert_close(list(a), list(b), rtol=0, atol=0)


@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('momentum,nesterov', MOMENTA)
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
        for i, p in enumerate(params + plain):
            g = rng.normal(size=w[i].shape) * 10.0 ** rng.integers(-3, 3)
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
    for p, x, y in zip(params + plain, w, m):
        np.testing.assert_allclose(p.detach().numpy().reshape(x.shape), x, rtol=1e-12)
        if momentum:  # the momentum has no scale in it
            np.testing.assert_allclose(opt.state[p]['momentum_buffer'].reshape(y.shape), y, rtol=1e-12)


@pytest.mark.parametrize('foreach', [False, True])
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
    """To the same bits; in half precision both are float64's result to its rounding."""
    results = []
    for foreach in (False, None, True, 'float64'):
        params = tensors(ROWS, dtype=dtype)
        if foreach == 'float64':
            params, foreach = [p.detach().double().requires_grad_() for p in params], False
        opt = SGDW(params, 0.1, 0.5, 0.1, nesterov, foreach, rownorm=rownorm)
        g = torch.Generator().manual_seed(0)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(dtype).to(p.dtype)
            opt.step()
        results.append([p.detach() for p in params] + [opt.state[p]['momentum_buffer'] for p in params])
        assert all(x.dtype == params[0].dtype for x in results[-1])
    loop, default, foreach, exact = results
    assert_equal(default, foreach)
    if dtype in (torch.float32, torch.float64):
        assert_equal(loop, foreach)
    for result in (loop, foreach):
        for x, y in zip(result, exact):
            torch.testing.assert_close(x.double(), y, atol=32 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize('momentum,nesterov', MOMENTA)
@pytest.mark.parametrize('foreach', [False, True])
def test_gradients_that_stay_are_views_into_a_bucket(foreach, momentum, nesterov):
    """DDP keeps gradients as views into its buckets, and zero_grad(set_to_none=False) fills them with 0."""
    new, kept = (tensors([(8, 4), (6,)]) for _ in range(2))
    bucket, rng = torch.zeros(38), torch.Generator().manual_seed(1)
    for p, part in zip(kept, bucket.split([32, 6])):
        p.grad = part.view_as(p)
    opts = [SGDW(params, 0.1, momentum, 0.01, nesterov, foreach) for params in (new, kept)]
    for _ in range(3):
        for p, q in zip(new, kept):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad += p.grad
        before = bucket.clone()
        for opt in opts:
            opt.step()
        assert torch.equal(bucket, before)  # the step only reads gradients
        assert_equal(new, kept)
        opts[1].zero_grad(set_to_none=False)
        assert not bucket.any()


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_keep_everything(copied):
    params = tensors([(3, 2), (2,)])
    opt = SGDW(params, 0.1, 0.9, 0.2, nesterov=True, rownorm=True)
    opt.step()
    assert not opt.state  # nothing has a gradient yet
    steps(opt, params)
    other = copied(opt)
    theirs = other.param_groups[0]['params']
    assert all(a is not b for a, b in zip(params, theirs))
    steps(opt, params, seed=1)
    steps(other, theirs, seed=1)
    assert_equal(params, theirs)
    opt.__setstate__({**opt.__getstate__(), 'compile': True})  # as in pickles of earlier versions
    assert not hasattr(opt, 'compile')


@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('kind', ['nesterov', 'foreach', 'rownorm', 'compile', 'torch'])
def test_states_of_earlier_versions_and_of_torch_sgd_continue(tmp_path, kind, momentum):
    """From disk: without one of the newer keys, with an older one, or torch's, which may have None."""
    params, plain = (tensors([(3, 2), (2,)]) for _ in range(2))
    opt = (torch.optim.SGD if kind == 'torch' else SGDW)(params, 0.1, momentum)
    steps(opt, params)
    state = opt.state_dict()
    if kind == 'compile':
        state['param_groups'][0]['compile'] = True
    elif kind != 'torch':
        del state['param_groups'][0][kind]
    elif momentum == 0:
        state['state'] = {i: {'momentum_buffer': None} for i in range(2)}
    torch.save(state, tmp_path / 'state.pt')
    opt = SGDW(params, lr=9.0)
    opt.load_state_dict(torch.load(tmp_path / 'state.pt', weights_only=True))
    steps(opt, params, seed=1)
    straight = SGDW(plain, 0.1, momentum)
    for seed in (0, 1):
        steps(straight, plain, seed=seed)
    assert_equal(params, plain)
    if momentum == 0:  # which may be switched on later
        opt.param_groups[0]['momentum'] = 0.9
        steps(opt, params)


def test_closure_runs_with_gradients_and_its_loss_comes_back():
    p = torch.tensor([3.0], requires_grad=True)
    opt = SGDW([p], lr=0.5, momentum=0.0)

    def closure():
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss
    assert opt.step(closure).item() == 9.0
    assert p.item() == 0.0  # 3 - 0.5 * 6


@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('foreach', [False, True])
def test_odd_tensors(foreach, rownorm):
    """Empty ones, single numbers, a transposed one, and a gradient of another dtype."""
    params = [torch.ones(shape, requires_grad=True) for shape in ((), (0,), (0, 3), (3, 0), (2, 0, 1, 1))]
    params.append(torch.ones(3, 2).t().requires_grad_())
    half = [torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    if hasattr(half[0], 'grad_dtype'):  # older torch keeps gradients in the dtype of the parameter
        half[0].grad_dtype = torch.float32
    groups = [{'params': params}, {'params': half, 'rownorm': False}]
    opt = SGDW(groups, 0.5, rownorm=rownorm, foreach=foreach)
    for p in params:
        p.grad = torch.ones_like(p)
    half[0].grad = torch.full((3,), 0.5, dtype=getattr(half[0], 'grad_dtype', torch.bfloat16))
    half[1].grad = torch.full((3,), 0.25, dtype=torch.bfloat16)
    opt.step()
    expected = pytest.approx(1 - 0.5 / 1.1 if rownorm else 0.5)
    assert params[0].item() == expected
    assert params[-1].flatten().tolist() == [expected] * 6
    assert [p.tolist() for p in half] == [[0.75] * 3, [0.875] * 3]


def test_a_tensor_as_rate_follows_a_scheduler():
    results = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        params = tensors([(3, 2)])
        opt = SGDW(params, lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        for seed in range(3):
            steps(opt, params, 1, seed)
            scheduler.step()
        assert float(opt.param_groups[0]['lr']) == 0.0625
        results += params
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize('options,error,text', [
    ({'lr': -1.0}, ValueError, 'lr must be at least 0, got -1.0'),
    ({'lr': float('nan')}, ValueError, 'lr must be at least 0, got nan'),
    ({'lr': torch.tensor(-1.0)}, ValueError, 'lr must be at least 0'),
    ({'lr': torch.ones(2)}, ValueError, 'one element'),
    ({'momentum': -0.1}, ValueError, 'momentum must be at least 0, got -0.1'),
    ({'weight_decay': -1}, ValueError, 'weight_decay must be at least 0, got -1'),
    ({'momentum': 0.0, 'nesterov': True}, ValueError, 'nesterov needs momentum'),
    *(({name: True}, TypeError, name) for name in (  # options of others, and one of earlier versions
        'maximize', 'capturable', 'differentiable', 'fused', 'dampening', 'compile'))])
def test_options_that_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        SGDW([torch.zeros(3, requires_grad=True)], **{'lr': 1.0, **options})


@pytest.mark.parametrize('kind', ['sparse', 'complex'])
def test_sparse_gradients_and_complex_parameters_are_refused(kind):
    p = torch.ones(4, 2, dtype=torch.complex64 if kind == 'complex' else torch.float32, requires_grad=True)
    p.grad = torch.ones_like(p).to_sparse() if kind == 'sparse' else torch.ones_like(p)
    with pytest.raises(RuntimeError, match=f'does not support .*{kind}'):
        SGDW([p], 0.1).step()
    assert torch.equal(p.detach(), torch.ones_like(p))


def test_a_state_of_torch_keeps_our_options_or_is_refused():
    p = torch.ones(4, 2, requires_grad=True)
    ours = SGDW([p], 0.1, rownorm=True)
    ours.load_state_dict(torch.optim.SGD([p], 0.1, momentum=0.9).state_dict())
    assert ours.param_groups[0]['rownorm']
    with pytest.raises(ValueError, match='neither maximize nor dampening'):
        ours.load_state_dict(torch.optim.SGD([p], 0.1, momentum=0.9, maximize=True).state_dict())
