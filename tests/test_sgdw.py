"""SGDW beyond its equations in test_model.py: rows, the compiled pass, copies, saved states, odd tensors."""

import copy
import functools
import os
import pickle

import numpy as np
import pytest
import torch

import sgdw
from sgdw import SGDW

needs_compiler = pytest.mark.skipif(
    not any(os.access(os.path.join(d, 'g++'), os.X_OK) for d in os.environ['PATH'].split(':')),
    reason='torch.compile on a CPU needs a C++ compiler')
MOMENTA = [(0.0, False), (0.9, False), (0.9, True)]
SHAPES = {'table': (5, 3), 'positions': (1, 4, 3), 'filters': (2, 3, 2, 2), 'gain': (6,), 'number': ()}


def tensors(shapes, generator, dtype=torch.float32):
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def steps(opt, params, count=4, seed=0):
    """Updates with the gradients of a seed."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()


def rows_of(shape):
    """The shape (rows, weights of a row), spelled out."""
    return {(5, 3): (5, 3), (1, 4, 3): (4, 3), (2, 3, 2, 2): (2, 12), (6,): (1, 6), (): (1, 1)}[shape]


# -----------------------------------------------------------------------------
# rownorm


@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('momentum,nesterov', MOMENTA)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_rownorm_is_its_equation(shape, momentum, nesterov, foreach):
    lr, wd = 0.3, 0.2
    p, = tensors([shape], torch.Generator().manual_seed(1), torch.float64)
    w, m = p.detach().numpy().reshape(rows_of(shape)).copy(), np.zeros(rows_of(shape))
    opt = SGDW([p], lr, momentum, wd, nesterov, foreach, rownorm=True)
    rng = np.random.default_rng(0)
    for _ in range(4):
        g = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3)
        p.grad = torch.tensor(g)
        opt.step()
        g = g.reshape(w.shape)
        m = momentum * m + g
        step = g + momentum * m if nesterov else m
        whole = np.sqrt((step ** 2).mean())
        for i, row in enumerate(step):
            w[i] = (1 - lr * wd) * w[i] - lr * row / (np.sqrt((row ** 2).mean()) + 0.1 * whole)
    np.testing.assert_allclose(p.detach().numpy().reshape(w.shape), w, rtol=1e-12)
    if momentum:  # the momentum has no scale in it
        np.testing.assert_allclose(opt.state[p]['momentum_buffer'].numpy().reshape(m.shape), m, rtol=1e-12)


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
    size = 1 / 1.1
    for _ in range(1200):
        before = p.detach().clone()
        opt.step()
        step = (before - p.detach()).abs().max().item()
        assert step <= size * (1 + 1e-3)
    assert step == 0


@pytest.mark.parametrize('foreach', [False, True])
def test_rownorm_belongs_to_a_group(foreach):
    """A group without rownorm makes the plain step. With it, the size of the gradient has no effect."""
    g = torch.Generator().manual_seed(3)
    plain, table = tensors([(4, 3), (5, 3)], g)
    opt = SGDW([{'params': [plain]}, {'params': [table], 'rownorm': True}], lr=0.1, foreach=foreach)
    start = [p.detach().clone() for p in (plain, table)]
    plain.grad, table.grad = torch.full((4, 3), 5.0), torch.full((5, 3), 1e-4)
    opt.step()
    torch.testing.assert_close(plain.detach(), start[0] - 0.5)
    torch.testing.assert_close(table.detach(), start[1] - 0.1 / 1.1)


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_loop_and_foreach_give_the_same_bits(dtype, rownorm, nesterov):
    results = []
    for foreach in (False, None, True):
        params = tensors(SHAPES.values(), torch.Generator().manual_seed(2), dtype)
        opt = SGDW(params, 0.3, 0.9, 0.1, nesterov, foreach, rownorm=rownorm)
        steps(opt, params)
        results.append(params + [opt.state[p]['momentum_buffer'] for p in params])
    for loop, default, foreach in zip(*results):
        assert torch.equal(loop, default)
        assert torch.equal(loop, foreach)

# -----------------------------------------------------------------------------
# the compiled pass


def compiled_and_loop(dtypes, momentum, nesterov, rownorm):
    """Parameters after four steps of compile=True and of the loop: two groups, one gradient missing."""
    results = []
    for way in ({'compile': True}, {'foreach': False}):
        g = torch.Generator().manual_seed(2)
        params = [p for d in dtypes for p in tensors([(250, 150), (), (33000,), (7,)], g, d)]
        params.append(torch.randn(250, 150, generator=g).t().requires_grad_())  # not contiguous
        opt = SGDW(params[:2], 0.5, momentum, 0.1, nesterov, rownorm=rownorm, **way)
        opt.add_param_group({'params': params[2:], 'weight_decay': 0.0})
        for step in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
            params[step].grad = None
            for group in opt.param_groups:
                group['lr'] = 0.5 / (step + 1)
            before = [p.grad if p.grad is None else p.grad.clone() for p in params]
            opt.step()
            for p, grad in zip(params, before):  # gradients are only read
                assert p.grad is grad or torch.equal(p.grad, grad)
            if step == 1:  # the loop continues what the compiled pass has saved, and the other way round
                state = opt.state_dict()
                opt = SGDW([{'params': params[:2]}, {'params': params[2:]}], lr=9.0, compile='foreach' in way)
                opt.load_state_dict(state)
                opt.compile = 'compile' in way
        results.append(params)
    for a, b in zip(*results):
        # float32 and float64 to a few roundings; bfloat16 is rounded once a step here, twice in the loop
        eps = torch.finfo(a.dtype).eps * (16 if a.dtype == torch.bfloat16 else 8)
        torch.testing.assert_close(a, b, atol=eps * b.abs().max().item(), rtol=eps)


@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('momentum,nesterov', MOMENTA)
def test_the_one_pass_is_the_definition(monkeypatch, momentum, nesterov, rownorm):
    monkeypatch.setattr(sgdw, 'compiled', lambda f, **options: f)  # its arithmetic, without the compiler
    compiled_and_loop((torch.float32, torch.float64, torch.bfloat16), momentum, nesterov, rownorm)


def count_graphs(monkeypatch):
    """The step captures the whole pass but generates no code. The returned list grows with each program."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    monkeypatch.setattr(sgdw, 'compiled', functools.cache(functools.partial(torch.compile, backend=backend)))
    torch._dynamo.reset()
    return graphs


def test_a_new_rate_is_no_new_program_and_a_new_list_is(monkeypatch):
    graphs = count_graphs(monkeypatch)
    params = tensors([(2**15,), (2**15,), (3,)], torch.Generator().manual_seed(0))
    opt = SGDW([{'params': params, 'weight_decay': 0.1}], lr=0.5, compile=True)
    for lr in (0.5, 0.25, torch.tensor(0.125)):
        opt.param_groups[0]['lr'] = lr
        steps(opt, params, 1)
    assert len(graphs) == 1
    wrappers = len(torch._dynamo.eval_frame.cached_backends)
    opt.step()
    assert len(torch._dynamo.eval_frame.cached_backends) == wrappers  # nothing that grows with the steps
    params[0].grad = None
    opt.step()
    assert len(graphs) == 2


def test_behind_the_limit_of_programs_the_step_raises(monkeypatch):
    count_graphs(monkeypatch)
    with torch._dynamo.config.patch(recompile_limit=1):
        for n, fails in ((0, False), (1, True)):
            p = torch.ones(2**15 + n, requires_grad=True)
            p.grad = torch.ones_like(p)
            opt = SGDW([p], lr=0.5, compile=True)
            if fails:
                with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
                    opt.step()
            else:
                opt.step()
            assert torch.equal(p.detach(), torch.full_like(p, 1.0 if fails else 0.5))


@pytest.mark.slow
def test_where_torch_compile_fails_the_step_raises(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))  # no earlier run's program is found
    torch._dynamo.reset()
    p = torch.ones(2**15, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = SGDW([p], lr=0.5, compile=True)
    with torch._inductor.config.patch({'cpp.cxx': ('no-such-compiler',), 'fx_graph_cache': False}):
        with pytest.raises(Exception, match='no-such-compiler|[Cc]ompiler'):
            opt.step()
    assert torch.equal(p.detach(), torch.ones(2**15))  # nothing was written
    assert not opt.state[p]['momentum_buffer'].any()
    torch._dynamo.reset()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_compiled_is_the_definition(dtype, rownorm):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled_and_loop((dtype,), 0.9, False, rownorm)
    # float32: the large tensors of the first group, of the second, of the second without a gradient.
    # bfloat16: the first group, and two dtypes in the second. Four rates add no program.
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 3
    assert not torch._dynamo.utils.counters['graph_break']


@pytest.mark.slow
@needs_compiler
def test_autograd_sees_the_compiled_update():
    p = torch.randn(2**15, requires_grad=True)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    SGDW([p], lr=0.1, compile=True).step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_compiled_as_for_a_gpu(tmp_path, monkeypatch, dtype, nesterov, rownorm):
    """
    Where Inductor fuses lists (on GPUs), it writes what is copied before other readers of it come. So a
    copy of m before its last use would be another algorithm. Here a CPU generates the code for such lists.
    """
    from torch._inductor.codegen.common import BackendFeature
    from torch._inductor.graph import GraphLowering
    real = GraphLowering.has_feature
    monkeypatch.setattr(GraphLowering, 'has_feature', lambda self, device, feature:
                        feature == BackendFeature.FOREACH or real(self, device, feature))
    monkeypatch.setattr(GraphLowering, 'register_operation_list', lambda self, operations: '')
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))  # nothing made for a CPU is found
    torch._dynamo.reset()
    torch.manual_seed(0)
    lists = [[torch.randn(64, 64).to(dtype) for _ in range(2)] for _ in range(3)]
    copies = [[x.clone() for x in part] for part in lists]
    hyper = 0.1, 0.1, 0.9, nesterov, rownorm
    sgdw.sgdw_compiled(*lists, *hyper)
    sgdw.sgdw(*copies, *hyper)
    torch._dynamo.reset()
    for a, b in zip(sum(lists, []), sum(copies, [])):
        torch.testing.assert_close(a, b, atol=3e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)

# -----------------------------------------------------------------------------
# copies, pickles, saved states


@pytest.mark.parametrize('again', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
                         ids=['deepcopy', 'pickle'])
def test_copies_keep_everything(again):
    params = tensors([(3, 2), (2,)], torch.Generator().manual_seed(0))
    opt = SGDW(params, 0.1, 0.9, 0.2, nesterov=True, compile=True, rownorm=True)
    steps(opt, params)
    other = again(opt)
    public = [{k for k in vars(o) if not k.startswith('_')} for o in (opt, other)]
    assert public[0] == public[1]
    assert other.compile is True
    assert 'compile' not in opt.state_dict()['param_groups'][0]
    theirs = other.param_groups[0]['params']
    steps(opt, params, seed=1)
    steps(other, theirs, seed=1)
    for a, b in zip(params, theirs):
        assert a is not b
        assert torch.equal(a, b)


@pytest.mark.parametrize('missing', ['nesterov', 'foreach', 'rownorm'])
def test_a_state_without_newer_keys_loads(missing):
    results = []
    for drop in (False, True):
        params = tensors([(3, 2), (2,)], torch.Generator().manual_seed(0))
        opt = SGDW(params, 0.1, weight_decay=0.1)
        steps(opt, params)
        state = opt.state_dict()
        if drop:
            del state['param_groups'][0][missing]
        opt = SGDW(params, lr=9.0)
        opt.load_state_dict(state)
        steps(opt, params, seed=1)
        results.append(params)
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_a_state_of_torch_sgd_continues(momentum):
    params, theirs = (tensors([(3, 2), (2,)], torch.Generator().manual_seed(0)) for _ in range(2))
    opt = torch.optim.SGD(theirs, 0.1, momentum, foreach=False)
    steps(opt, theirs)
    state = copy.deepcopy(opt.state_dict())
    for of_one in state['state'].values():
        of_one.setdefault('momentum_buffer', None)  # as older versions of torch have it at momentum 0
    for p, other in zip(params, theirs):
        p.data.copy_(other.data)
    ours = SGDW(params, lr=9.0)
    ours.load_state_dict(state)
    steps(ours, params, seed=1)
    steps(opt, theirs, seed=1)
    for a, b in zip(params, theirs):
        assert torch.equal(a, b)

# -----------------------------------------------------------------------------
# what torch's own tests ask of an optimizer


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


def test_a_group_comes_late_and_has_its_own_numbers():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    opt = SGDW([a], lr=0.5)
    opt.add_param_group({'params': [b], 'lr': 0.25, 'weight_decay': 1.0})
    for p in (a, b):
        p.grad = torch.ones_like(p)
    opt.step()
    assert a.tolist() == [0.5, 0.5]
    assert b.tolist() == [0.5, 0.5]  # 0.75 * 1 - 0.25


@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('way', [{'foreach': False}, {'foreach': True}, {'compile': True}], ids=str)
def test_empty_tensors_and_single_numbers(way, rownorm):
    params = [torch.ones(shape, requires_grad=True) for shape in ((), (0,), (0, 3), (3, 0), (2, 0, 1, 1))]
    opt = SGDW(params, lr=0.5, rownorm=rownorm, **way)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    assert params[0].item() == pytest.approx(1 - 0.5 / 1.1 if rownorm else 0.5)
    assert [p.numel() for p in params[1:]] == [0, 0, 0, 0]


@pytest.mark.parametrize('foreach', [False, True])
def test_a_tensor_as_rate_follows_a_scheduler(foreach):
    results = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        params = tensors([(3, 2)], torch.Generator().manual_seed(0))
        opt = SGDW(params, lr, foreach=foreach)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        for seed in range(3):
            steps(opt, params, 1, seed)
            scheduler.step()
        assert float(opt.param_groups[0]['lr']) == 0.0625
        results.append(params[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize('rownorm', [False, True])
@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_to_their_rounding(dtype, foreach, rownorm):
    results = []
    for kind in (dtype, torch.float64):
        params = [p.detach().to(kind).requires_grad_()
                  for p in tensors([(4, 3), (5,)], torch.Generator().manual_seed(0), dtype)]
        opt = SGDW(params, 0.1, 0.5, 0.1, foreach=foreach, rownorm=rownorm)
        steps(opt, params, 3)
        results.append(params)
        assert opt.state[params[0]]['momentum_buffer'].dtype == kind
    for a, b in zip(*results):
        torch.testing.assert_close(a.double(), b, atol=16 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize('momentum,nesterov', MOMENTA)
@pytest.mark.parametrize('way', ['loop', 'foreach', pytest.param(
    'compiled', marks=[needs_compiler, pytest.mark.slow])])
def test_gradients_that_stay_are_views_into_a_bucket(way, momentum, nesterov):
    """DDP keeps gradients as views into its buckets, and zero_grad(set_to_none=False) fills them with 0."""
    shapes, rng = [(256, 128), (64,)], torch.Generator().manual_seed(1)
    new, kept = (tensors(shapes, torch.Generator().manual_seed(0)) for _ in range(2))
    bucket = torch.zeros(sum(p.numel() for p in kept))
    for p, part in zip(kept, bucket.split([p.numel() for p in kept])):
        p.grad = part.view_as(p)
    options = dict(foreach=way == 'foreach', compile=way == 'compiled', nesterov=nesterov)
    opts = [SGDW(params, 0.1, momentum, 0.01, **options) for params in (new, kept)]
    for _ in range(3):
        for p, q in zip(new, kept):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad += p.grad
        before = bucket.clone()
        for opt in opts:
            opt.step()
        assert torch.equal(bucket, before)  # the step only reads gradients
        assert all(torch.equal(p, q) for p, q in zip(new, kept))
        opts[1].zero_grad(set_to_none=False)
        assert not bucket.any()


def test_a_gradient_of_another_dtype():
    p, q = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    if not hasattr(p, 'grad_dtype'):
        pytest.skip('this torch keeps gradients in the dtype of the parameter')
    p.grad_dtype = torch.float32
    p.grad, q.grad = torch.full((3,), 0.5), torch.full((3,), 0.25, dtype=torch.bfloat16)
    SGDW([p, q], lr=1.0).step()
    assert p.tolist() == [0.5] * 3
    assert q.tolist() == [0.75] * 3


@pytest.mark.parametrize('option', ['maximize', 'capturable', 'differentiable', 'fused', 'dampening'])
def test_options_of_other_optimizers_are_a_type_error(option):
    with pytest.raises(TypeError, match=option):
        SGDW([torch.zeros(1, requires_grad=True)], 0.1, **{option: True})


@pytest.mark.parametrize('kwargs,error,text', [
    ({'lr': -1.0}, ValueError, 'lr must be at least 0, got -1.0'),
    ({'lr': float('nan')}, ValueError, 'lr must be at least 0, got nan'),
    ({'lr': torch.tensor(-1.0)}, ValueError, 'lr must be at least 0'),
    ({'lr': torch.ones(2)}, ValueError, 'one element'),
    ({'lr': 1.0, 'momentum': -0.1}, ValueError, 'momentum must be at least 0, got -0.1'),
    ({'lr': 1.0, 'weight_decay': -1}, ValueError, 'weight_decay must be at least 0, got -1'),
    ({'lr': 1.0, 'momentum': 0.0, 'nesterov': True}, ValueError, 'nesterov needs momentum'),
], ids=lambda x: str(x) if isinstance(x, dict) else '')
def test_numbers_out_of_range_are_refused(kwargs, error, text):
    with pytest.raises(error, match=text):
        SGDW([torch.zeros(3, requires_grad=True)], **kwargs)


@pytest.mark.parametrize('way', [{'foreach': False}, {'foreach': True}, {'compile': True}], ids=str)
@pytest.mark.parametrize('kind', ['sparse', 'complex'])
def test_sparse_gradients_and_complex_parameters_are_refused(kind, way):
    p = torch.ones(4, 2, dtype=torch.complex64 if kind == 'complex' else torch.float32, requires_grad=True)
    p.grad = torch.ones_like(p).to_sparse() if kind == 'sparse' else torch.ones_like(p)
    with pytest.raises(RuntimeError, match=f'does not support .*{kind}'):
        SGDW([p], 0.1, **way).step()
    assert torch.equal(p.detach(), torch.ones_like(p))
