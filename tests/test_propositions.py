"""The paper's statements: experiments/propositions.py."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import experiments.propositions as props
from tests.common import finish, python

SENSE = ('Theorem 2', 'Equation 3', 'Proposition 1', 'Proposition 2', 'Proposition 3')
VERDICTS = {**dict.fromkeys(props.STATEMENTS, 'holds'), **dict.fromkeys(SENSE, 'holds in a sense'),
            'Equation 11': 'misprint', 'Equation 16': 'misprint'}
t = torch.from_numpy


def quietly(*names):
    """{name: (verdict, rows)} at the width 16, and what was printed on the way."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        return props.check(names, widths=(16,)), said.getvalue()


def np_jacobian(f, x, h=1e-6):
    """Central differences of f in each entry of the vector x: nothing in common with autograd."""
    return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=1)


def test_every_statement_has_its_table_and_its_verdict():
    results, printed = quietly(*props.STATEMENTS)
    assert len(results) == 15
    assert {name: verdict for name, (verdict, _) in results.items()} == VERDICTS
    for name, (verdict, rows) in results.items():
        assert f'{name}: {verdict}\n' in printed
        assert any(column.startswith('=') for row in rows for column in row), name  # something decides
    # what sigma_W = 0.5 and sigma_x = 3 make of the three: 0.5 / sqrt(1.5) and 1 / sqrt(3) against 1 / 3
    row = results['Equation 16'][1][0]
    middle, right, repaired = (1 + row[key] for key in ('!= middle off', '!= right off', 'repaired off'))
    assert math.isclose(middle / repaired, (1 / 3) / (0.5 / math.sqrt(1.5)), rel_tol=1e-9)
    assert math.isclose(right / repaired, (1 / 3) / (1 / math.sqrt(3)), rel_tol=1e-9)


def test_the_norm_jacobian_against_the_equation_and_against_differences():
    rng = np.random.default_rng(0)
    x, gamma, eps = rng.normal(size=6), rng.normal(size=6), 0.3  # torch's eps: 6 of them are the paper's
    norm = props.rms_norm(6, eps)
    norm.weight.data.copy_(t(gamma))
    size = x @ x + 6 * eps
    said = math.sqrt(6 / size) * np.diag(gamma) @ (np.eye(6) - np.outer(x, x) / size)
    assert abs(props.jacobian(norm, t(x)).detach().numpy() - said).max() < 1e-14
    assert abs(np_jacobian(lambda x: gamma * x / np.sqrt((x ** 2).mean() + eps), x) - said).max() < 1e-8


def test_vec_and_kronecker_conventions():
    M, A, B = (np.random.default_rng(i).normal(size=shape)
               for i, shape in enumerate([(3, 4), (2, 3), (4, 5)]))
    np.testing.assert_allclose(props.kron(t(B).T, t(A)) @ props.vec(t(M)), (A @ M @ B).flatten(order='F'),
                               atol=1e-14)
    C = props.times_commutation(torch.eye(12, dtype=torch.float64), 3, 4).numpy()
    assert np.array_equal(C @ M.flatten(order='F'), M.T.flatten(order='F'))


def test_the_attention_jacobian_against_differences():
    # the paper's function in NumPy, column by column: token j takes softmax_i(q_i . k_j) of each v_i
    rng = np.random.default_rng(1)
    X, W_q, W_k, W_v = (rng.normal(size=shape) for shape in ((4, props.T), (4, 4), (4, 4), (4, 4)))

    def attention(X):
        Y = np.zeros((4, props.T))
        for j in range(props.T):
            e = np.exp([(W_q @ X[:, i]) @ (W_k @ X[:, j]) / 2 for i in range(props.T)])
            Y[:, j] = W_v @ X @ (e / e.sum())
        return Y
    torch_x, *W = map(t, (X, W_q, W_k, W_v))
    A = props.logits(torch_x, *W[:2]).softmax(0)
    said = props.attention_jacobian(torch_x, *W, A, props.softmax_jacobian(A)).numpy()
    vec_to_vec = np_jacobian(lambda v: attention(v.reshape((4, props.T), order='F')).flatten(order='F'),
                             X.flatten(order='F'))
    assert abs(said - vec_to_vec).max() < 1e-7
    ours = props.attention_module(*W)(torch_x.T[None])[0].T
    assert abs(attention(X) - ours.detach().numpy()).max() < 1e-14


def test_the_repaired_equation_11_against_differences():
    # k'^T diag(gamma_q) (I - q q^T / |q|^2) W_q sqrt(d_h) / |q| and its mirror image, in NumPy
    rng = np.random.default_rng(2)
    x, W_q, W_k, gamma_q, gamma_k = (rng.normal(size=shape) for shape in (6, (3, 6), (3, 6), 3, 3))

    def normed(W, gamma, x):
        return math.sqrt(3) * gamma * (W @ x) / np.linalg.norm(W @ x)

    def line(other, W, gamma):
        q = W @ x
        return math.sqrt(3) * (other * gamma) @ (np.eye(3) - np.outer(q, q) / (q @ q)) @ W / np.linalg.norm(q)
    said = line(normed(W_k, gamma_k, x), W_q, gamma_q) + line(normed(W_q, gamma_q, x), W_k, gamma_k)
    measured = np_jacobian(lambda x: np.array([normed(W_q, gamma_q, x) @ normed(W_k, gamma_k, x)]), x)[0]
    assert abs(measured - said).max() < 1e-7


def test_random_vectors_are_isotropic_and_slopes_are_the_known_ones():
    torch.manual_seed(0)
    for kind in props.KINDS:
        x = props.isotropic(kind, 4, n=200_000)
        assert abs(x.T @ x / len(x) - torch.eye(4)).max() < 0.03, kind  # standard errors are below 0.007
    z = torch.tensor([-1.3, 0.0, 0.4], dtype=torch.float64)
    phi = [0.5 * (1 + math.erf(v / math.sqrt(2))) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
           for v in z]
    np.testing.assert_allclose(props.slope(F.gelu, z), phi, atol=1e-14)
    assert props.slope(F.relu, z).tolist() == [0, 0, 1]


@pytest.mark.parametrize('name,mistake,statements', [
    ('slope', lambda act, h: torch.ones_like(h), ['Equation 7']),
    ('times_commutation', lambda B, d, n: B, ['Equation 5', 'Equations 13, 14, 15', 'Equation 17']),
    ('softmax_jacobian', lambda A: torch.block_diag(*(a.diag() for a in A.T)), ['Equation 5']),
    ('projector', lambda v: props.eye(len(v)), ['Proposition 4', 'Equation 11']),
    # uncentred, so neither isotropic nor orthogonal
    ('isotropic', lambda kind, d: props.randn(10_000, d) + 0.3, ['Theorem 1', 'Theorem 2'])],
    ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_equation_is_found_out(monkeypatch, name, mistake, statements):
    """A check that cannot fail says nothing: each of these puts one mistake into what is said."""
    monkeypatch.setattr(props, name, mistake)
    for statement in statements:
        assert quietly(statement)[0][statement][0] == 'does not hold', statement


@pytest.mark.slow
def test_propositions_as_a_command():
    out, _ = finish(python('-m', 'experiments.propositions'))
    for name, verdict in VERDICTS.items():
        assert f'\n| {name} | {verdict} |\n' in out  # the closing table
