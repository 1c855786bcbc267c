"""The paper's statements: experiments/propositions.py."""

import contextlib
import io
import re

import numpy as np
import pytest
import torch

import experiments.propositions as props
from tests.common import ROOT
from tests.test_studies import experiment


def quietly(*statements):
    """{name: (verdict, rows)} at the width 16."""
    with contextlib.redirect_stdout(io.StringIO()):
        return props.check([16], [getattr(props, name) for name in statements])


def test_every_statement_has_its_verdict():
    results = quietly(*(statement.__name__ for statement in props.STATEMENTS))
    for statement, (name, (verdict, rows)) in zip(props.STATEMENTS, results.items(), strict=True):
        assert verdict == props.STATEMENTS[statement], name
        assert any(column.startswith('=') for row in rows for column in row), name  # something decides


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

    def f(v):
        return attention(v.reshape((4, props.T), order='F')).flatten(order='F')
    torch_x, *W = map(torch.from_numpy, (X, W_q, W_k, W_v))
    A = props.logits(torch_x, *W[:2]).softmax(0)
    said = props.attention_jacobian(torch_x, *W, A, props.softmax_jacobian(A)).numpy()
    x, h = X.flatten(order='F'), 1e-6  # central differences: nothing in common with autograd
    differences = np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=1)
    assert abs(said - differences).max() < 1e-7
    ours = props.attention_module(*W)(torch_x.T[None])[0].T
    assert abs(attention(X) - ours.detach().numpy()).max() < 1e-14


@pytest.mark.parametrize('name,mistake,statements', [
    ('slope', lambda act, h: torch.ones_like(h), ['equation_7']),
    ('times_commutation', lambda B, d, n: B, ['equation_5']),
    ('softmax_jacobian', lambda A: torch.block_diag(*(a.diag() for a in A.T)), ['equation_5']),
    ('projector', lambda v: props.eye(len(v)), ['proposition_4', 'equation_11']),
    # uncentred, so neither isotropic nor orthogonal
    ('isotropic', lambda kind, d: props.randn(10_000, d) + 0.3, ['theorem_1', 'theorem_2'])])
def test_a_wrong_equation_is_found_out(monkeypatch, name, mistake, statements):
    """A check that cannot fail says nothing: each of these puts one mistake into what is said."""
    monkeypatch.setattr(props, name, mistake)
    assert {verdict for verdict, _ in quietly(*statements).values()} == {'does not hold'}


@pytest.mark.slow
def test_the_command_gives_the_verdicts_of_the_page():
    said = experiment('propositions', '--widths=64')
    page = (ROOT / 'results/theory.md').read_text(encoding='utf-8')
    rows = re.findall(r'(?m)^\| ((?:Theorem|Equation|Proposition) \d+ \| [\w ]+) \|', page)
    assert rows == re.findall(r'(?m)^\| (\w+ \d+ \| [\w ]+) \|$', said)
