"""torch.compile: SGDW's compiled pass against its definition, and whole runs against runs without it."""

import os
import warnings

import pytest
import torch

import sgdw
from sgdw import SGDW
from tests.common import assert_same_run, killed_and_resumed, rows, runs_like_one, train

needs_compiler = pytest.mark.skipif(
    not any(os.access(os.path.join(d, 'g++'), os.X_OK) for d in os.environ['PATH'].split(':')),
    reason='torch.compile on a CPU needs a C++ compiler')


def one_pass_and_definition(dtypes, momentum, nesterov):
    """Parameters after four steps, compiled and by the loop; two groups, one late, and a skipped gradient."""
    results = []
    for way in ({'compile': True}, {'foreach': False}):
        g = torch.Generator().manual_seed(2)
        params = [torch.randn(shape, generator=g).to(d) for d in dtypes
                  for shape in ((250, 150), (), (33000,), (7,))]
        # not in order
        params = [p.requires_grad_() for p in params + [torch.randn(250, 150, generator=g).t()]]
        opt = SGDW(params[:2], lr=0.5, momentum=momentum, weight_decay=0.1, nesterov=nesterov, **way)
        opt.add_param_group({'params': params[2:], 'weight_decay': 0.0})
        for step in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
            params[step].grad = None
            for group in opt.param_groups:
                group['lr'] = 0.5 / (step + 1)
            before = [p.grad if p.grad is None else p.grad.clone() for p in params]
            opt.step()
            # gradients are only read
            assert all(b is None or torch.equal(p.grad, b) for p, b in zip(params, before))
            if step == 1:  # what one way saved, the other goes on with
                state = opt.state_dict()
                assert 'compile' not in state['param_groups'][0]
                opt = SGDW([{'params': params[:2]}, {'params': params[2:]}], lr=9.0, compile='foreach' in way)
                opt.load_state_dict(state)
                opt.compile = 'compile' in way
        results.append(params)
    for a, b in zip(*results):
        # fp32 and fp64 to a few roundings; bfloat16 rounds weight and momentum once a step here, twice in the
        # loop
        eps = torch.finfo(a.dtype).eps * (4 if a.dtype != torch.bfloat16 else 16)
        torch.testing.assert_close(a, b, atol=eps * b.abs().max().item(), rtol=eps)


@pytest.mark.parametrize('momentum,nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_sgdw_in_one_pass_is_the_definition(monkeypatch, momentum, nesterov):
    monkeypatch.setattr(sgdw, 'compiled', {'cpu': sgdw.one_pass})  # its arithmetic, without the compiler
    one_pass_and_definition((torch.float32, torch.float64, torch.bfloat16), momentum, nesterov)


@pytest.mark.slow
@needs_compiler
def test_sgdw_compiled_is_the_definition(monkeypatch):
    monkeypatch.setattr(sgdw, 'compiled', {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    one_pass_and_definition((torch.float32,), 0.9, False)
    # three lists of large tensors (one of each group, and one where a gradient is missing) and four rates:
    # three programs
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 3
    assert not torch._dynamo.utils.counters['graph_break']
    # autograd sees that the weights are others
    p = torch.randn(2**15, requires_grad=True)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    SGDW([p], lr=0.1, compile=True).step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_sgdw_compiled_as_for_a_gpu(tmp_path, monkeypatch, dtype, nesterov):
    """
    Where Inductor fuses lists (on GPUs), what is copied is written before other readers of it come: a copy of
    m in front of its use would be a step of another algorithm. Here its code for that is made on a CPU.
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
    lists = [[torch.randn(4096).to(dtype) for _ in range(2)] for _ in range(3)]
    copies = [[x.clone() for x in part] for part in lists]
    numbers = torch.tensor(0.1), torch.tensor(0.99), 0.9
    torch.compile(sgdw.program, dynamic=False)(*lists, *numbers, nesterov)
    sgdw.one_pass(*copies, *numbers, nesterov)
    torch._dynamo.reset()
    for a, b in zip(sum(lists, []), sum(copies, [])):
        torch.testing.assert_close(a, b, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=0)


@pytest.mark.slow
@needs_compiler
def test_sgdw_stays_right_behind_the_limit_of_programs(monkeypatch):
    monkeypatch.setattr(sgdw, 'compiled', {})
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for n in range(10):
            params = [[torch.full((2**15 + n,), 1.0, requires_grad=True)] for _ in range(2)]
            for (p,), way in zip(params, ({'compile': True}, {})):
                opt = SGDW([p], lr=0.1, weight_decay=0.5, **way)
                for _ in range(2):
                    p.grad = torch.ones_like(p)
                    opt.step()
            torch.testing.assert_close(*params)
    assert sum('SGDW goes on without torch.compile' in str(w.message) for w in caught) == 1
    torch._dynamo.reset()


def test_sgdw_makes_its_step_once_where_torch_compile_is_off(monkeypatch):
    monkeypatch.setattr(sgdw, 'compiled', {})
    with torch._dynamo.config.patch(disable=True), pytest.warns(UserWarning, match='fails here: it is off'):
        one_pass_and_definition((torch.float32,), 0.9, False)


def test_sgdw_goes_on_without_a_compiler(monkeypatch):
    def broken(*args):
        raise torch._dynamo.exc.InternalTorchDynamoError('InvalidCxxCompiler: no working C++ compiler found')
    monkeypatch.setattr(sgdw, 'compiled', {'cpu': broken})
    with pytest.warns(UserWarning,
                      match='SGDW goes on without torch.compile, which fails here: InvalidCxx') as warned:
        one_pass_and_definition((torch.float32,), 0.9, False)
    assert len(warned) == 1


def test_sgdw_makes_no_step_twice_where_memory_ends(monkeypatch):
    """An error that is not the compiler's may come when the momentum is written: nothing goes on."""
    def full(params, grads, buffers, *numbers):
        buffers[0].add_(1)
        raise torch.OutOfMemoryError('out of memory')
    monkeypatch.setattr(sgdw, 'compiled', {'cpu': full})
    p = torch.zeros(2**15, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = SGDW([p], lr=0.1, compile=True)
    with pytest.raises(torch.OutOfMemoryError):
        opt.step()
    assert torch.equal(opt.state[p]['momentum_buffer'], torch.ones_like(p))
    assert not p.any()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('torchrun', [0, 2])
def test_compile_is_the_same_to_rounding(tokens, tmp_path, torchrun):
    size = '--n_embd=128'  # large enough for the optimizer's compiled pass
    train(tokens, tmp_path / 'eager', size)
    train(tokens, tmp_path / 'compiled', size, '--compile=True', '--micro_batch_size=1', torchrun=torchrun)
    for a, b in zip(rows(tmp_path / 'eager'), rows(tmp_path / 'compiled'), strict=True):
        assert abs(a['loss'] - b['loss']) < 1e-4


@pytest.mark.slow
@needs_compiler
def test_options_for_speed_and_memory_keep_the_promises(tokens, tmp_path):
    options = ['--loss_chunk=5', '--recompute_blocks=True', '--n_embd=128']
    runs_like_one(tokens, tmp_path, one=['--n_embd=128'], options=options,
                  two=[*options, '--micro_batch_size=1', '--compile=True'])
    options += ['--compile=True', '--micro_batch_size=2', '--dropout=0.1']
    train(tokens, tmp_path / 'compiled', *options)
    killed_and_resumed(tokens, tmp_path / 'killed', *options)
    assert_same_run(tmp_path / 'compiled', tmp_path / 'killed')
    # and goes on without them: no option is bound to the checkpoint
    train(tokens, tmp_path / 'killed', '--n_embd=128', '--init_from=resume', '--max_iters=22')
