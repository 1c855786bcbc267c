"""
The paper's theorems 1 and 2, propositions 1 to 5 and equations 3, 5, 7, 11 to 17 as small experiments, in its
order: what each says, what autograd measures on the modules of model.py, and whether the two agree.

    python -m experiments.propositions                tables over widths, a verdict each; half a minute
    python -m experiments.propositions --json=FILE    writes verdicts and numbers to a file, too

Letters are the paper's: X is (d, n), a column for each token; vec stacks columns; dy/dx has a row for each
entry of y (numerator layout); (x) is the Kronecker product. The code's x (B, T, C) is X^T: in memory it is
vec(X).

An identity holds when the error |measured - said| / |said| is below 1e-10 (float64 leaves 1e-16 to 1e-14). A
mean over samples agrees when it lies within four standard errors. What fails to the letter may hold in
another sense, or with a misprint repaired; then both numbers are given. Gains are random where they matter:
with gains of 1 many a wrong formula is right.
"""

import math
import os
from json import dump

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad, jacrev

from configurator import configure
from model import FFN, GPT, SETTINGS, Attention, Block, GPTConfig, RMSNorm
from support.console import fail

json = ''  # a file for verdicts and numbers
seed = 1337  # of each statement, which draws its own numbers

WIDTHS = (16, 64, 256)
T = 4  # tokens where a whole Jacobian of attention is compared, the paper's n

# -----------------------------------------------------------------------------
# tools

def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def matrices(d, *heights):
    """Random matrices (h, d) that keep the size of what they multiply."""
    return [randn(h, d) / math.sqrt(d) for h in heights]


def rms_norm(d, eps=0.0):
    """model.py's RMSNorm with random gains; eps is 0 where the paper leaves it out."""
    norm = RMSNorm(d, eps).double()
    nn.init.normal_(norm.weight)
    return norm


def jacobian(f, x):
    """df(x)/dx as a matrix: for x (B, T, C) the paper's dvec(Y)/dvec(X)."""
    return jacrev(lambda v: f(v.view(x.shape)).flatten())(x.flatten())


def error(measured, said):
    """|measured - said| / |said|, Frobenius norms."""
    return ((measured - said).norm() / said.norm()).item()


def exact(*errors):
    return max(errors) < 1e-10


def mean_se(samples):
    """Mean and standard error of independent samples."""
    return samples.mean().item(), samples.std().item() / math.sqrt(samples.numel())


def agrees(samples, said):
    mean, se = mean_se(samples)
    return abs(mean - said) <= 4 * se + 1e-12 * said  # the last: some statistics vary by rounding alone


def vec(M):
    """Columns stacked."""
    return M.T.flatten()


def kron(a, b):
    return torch.kron(a.contiguous(), b.contiguous())  # torch's own takes no transposed views


def times_commutation(B, d, n):
    """B C with the commutation matrix C of (d, n), C vec(M) = vec(M^T): B's columns in another order."""
    return B.view(-1, d, n).transpose(1, 2).reshape(-1, d * n)


def show(rows):
    """Print a list of dicts as a table; returns the smallest and the largest value of each column."""
    print('| ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * len(rows[0]))
    for row in rows:
        print('| ' + ' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()) + ' |')
    return [{key: end(row[key] for row in rows) for key in rows[0]} for end in (min, max)]


def verdict(name, text, rows, holds=False, sense=False, misprint=False):
    """
    The line on a statement. holds: to the letter; sense, misprint: as the text says or repairs it; if none of
    them is true it does not hold, though the text expects it to.
    """
    text = ' '.join(text.split())
    kind = ('holds' if holds else 'holds in the sense that' if sense else
            'misprint' if misprint else 'does not hold')
    print(f'{name}: {kind}{"" if kind.endswith("that") else ":"} {text}')
    return {'statement': name, 'verdict': kind, 'text': text, 'rows': rows}

# -----------------------------------------------------------------------------
# section 2: random vectors and RMSNorm

KINDS = ('normal', 'signs', 'sphere', 'two sizes', 'rare')


def isotropic(kind, d, n=10_000):
    """n samples of a vector in R^d with E x x^T = I."""
    if kind == 'normal':
        return randn(n, d)
    if kind == 'signs':
        return randn(n, d).sign()
    if kind == 'sphere':
        return math.sqrt(d) * F.normalize(randn(n, d))
    if kind == 'two sizes':  # a normal vector, made short or long
        return randn(n, d) * torch.where(torch.rand(n, 1) < 0.5, 0.1, 1.9).sqrt()
    # 'rare': seven times of ten on the first axis; else anywhere but there, and longer
    x, first = randn(n, d) / math.sqrt(0.3), randn(n, 1).sign() / math.sqrt(0.7) * eye(d)[0]
    x[:, 0] = 0
    return torch.where(torch.rand(n, 1) < 0.3, x, first)


def share(condition):
    return condition.double().mean().item()


def theorem_1(widths=WIDTHS):
    """
    x, y isotropic, independent: E |x|_2^2 = d, E <x, y>^2 = d. The text adds |x|_2 ~ sqrt(d) and <x, y> ~
    sqrt(d) 'with high probability'. Measured: both means over 10,000 pairs of five kinds of isotropic
    vectors; how often |x| is within 10 % of sqrt(d), and how often |<x, y>| is below a tenth of sqrt(d).
    """
    rows, agree = [], []
    for d in widths:
        for kind in KINDS:
            x, y = isotropic(kind, d), isotropic(kind, d)
            size, dot = x.square().sum(1) / d, (x * y).sum(1) / math.sqrt(d)
            agree += [agrees(size, 1), agrees(dot.square(), 1)]
            rows.append({'d': d, 'x': kind, 'E <x, x> / d': mean_se(size)[0], '+-': mean_se(size)[1],
                         'E <x, y>^2 / d': mean_se(dot.square())[0], '+- ': mean_se(dot.square())[1],
                         'near': share((size.sqrt() - 1).abs() < 0.1), 'small': share(dot.abs() < 0.1)})
    show(rows)
    last = {row['x']: row for row in rows}  # those of the largest d
    return verdict('Theorem 1', f"""{sum(agree)} of {len(agree)} means are d within four standard errors.
        "With high probability" takes more: |x| is within 10 % of sqrt(d) for {last["normal"]["near"]:.0%} of
        normal vectors at d = {d}, for {last["two sizes"]["near"]:.0%} of those of two sizes; and <x, y> is
        below a tenth of sqrt(d) for {last["normal"]["small"]:.0%} of normal pairs, at every d""", rows,
                   holds=all(agree))


def theorem_2(widths=WIDTHS):
    """
    xb = x / |x|_2, yb = y / |y|_2 for the x and y of theorem 1: 'the independent and isotropic random vectors
    xb and yb tend to be almost orthogonal', cos ~ 1 / sqrt(d). Measured: d E cos^2, said to be 1, for the
    same kinds.
    """
    rows, agree = [], {kind: [] for kind in KINDS}
    for d in widths:
        for kind in KINDS:
            cos = F.cosine_similarity(isotropic(kind, d), isotropic(kind, d))
            agree[kind].append(agrees(cos.square() * d, 1))
            mean, se = mean_se(cos.square() * d)
            rows.append({'d': d, 'x': kind, 'd E cos^2': mean, '+-': se, 'aligned': share(cos.abs() > 0.99)})
    show(rows)
    *usual, rare = (all(agree[kind]) for kind in KINDS)
    return verdict('Theorem 2', f"""the directions are isotropic, E xb xb^T = I / d: then d E cos^2 is 1
        within four standard errors ({", ".join(KINDS[:-1])}). It does not follow from x being isotropic:
        {rows[-1]["aligned"]:.0%} of the rare pairs have |cos| = 1 at d = {d}""", rows,
                   holds=all(usual) and rare, sense=all(usual))


def rms_norm_jacobian(widths=WIDTHS):
    """
    RMSN(x) = gamma * sqrt(d) x / sqrt(|x|_2^2 + eps);
    dRMSN(x)/dx = sqrt(d) / sqrt(|x|_2^2 + eps) diag(gamma) (I - x x^T / (|x|_2^2 + eps)).
    Measured: model.py's RMSNorm, which has torch's eps, inside the mean of squares: the paper's is d times
    that.
    """
    def said(x, gamma, eps):
        size = x @ x + eps
        return math.sqrt(len(x)) / size.sqrt() * gamma.diag() @ (eye(len(x)) - x.outer(x) / size)
    rows = []
    for d in widths:
        for eps in (1e-6, 0.1):
            x, norm = randn(d), rms_norm(d, eps)
            rows.append({'d': d, 'eps': eps, 'error': error(jacobian(norm, x), said(x, norm.weight, d * eps)),
                         'eps taken for the same': error(jacobian(norm, x), said(x, norm.weight, eps))})
    worst = show(rows)[1]
    return verdict('RMSNorm Jacobian', f"""error {worst["error"]:.0e}, with an eps d times as large as torch's
        (taken for the same: {worst["eps taken for the same"]:.0%} off at eps 0.1)""", rows,
                   holds=exact(worst['error']))

# -----------------------------------------------------------------------------
# section 3.2.1: InputNorm

def small_gpt(setting, d, **flags):
    return GPT(GPTConfig(**{**SETTINGS[setting], **flags}, norm='rms', tied=False, n_layer=4, n_head=2,
                         n_embd=d, block_size=16, vocab_size=64, flash=False)).double()


def residual_stream(blocks, x):
    """x^L, and the terms that it is the sum of: x^0 and the output of each branch."""
    terms, out = [x], x
    for block in blocks:
        terms.append(block.mid_norm(block.attn(block.pre_norm(x))))
        x = x + terms[-1]
        terms.append(block.ffn_mid_norm(block.ffn(block.ffn_pre_norm(x))))
        x = x + terms[-1]
        out = block(out)
    assert torch.equal(x, out), 'the blocks do more than add their branches'
    return x, torch.stack(terms)


@torch.no_grad()
def equation_3(widths=WIDTHS):
    """
    |x^{l+1}|_2 ~ sqrt(|x^0|_2^2 + |f(x^0)|_2^2 + ... + |f(x^l)|_2^2), for the terms are almost orthogonal.
    Measured: r = |x^L|^2 / (the sum of squares) in 20 networks of 4 blocks at initialization. Almost
    orthogonal is cos^2 = 1 / d for each two terms, so E r = 1, E (r - 1)^2 = 2 (1 - sum p^2) / d, p the
    terms' shares of the sum. Against it: one f for all layers, as the paper's f without an index reads, and
    weights that make f(x) = -x.
    """
    rows, agree = [], []
    for setting in ('S1', 'S5'):
        for d in widths:
            samples = []
            for _ in range(20):
                blocks, x0 = list(small_gpt(setting, d).blocks), randn(1, 16, d)
                for layers in (blocks, blocks[:1] * 4):
                    x, terms = residual_stream(layers, x0)
                    squares = terms.square().sum(-1)
                    p, r = squares / squares.sum(0), x.square().sum(-1) / squares.sum(0)
                    samples += [r.mean(), (r - 1).square().mean(), 2 * (1 - p.square().sum(0)).mean() / d]
            r, spread, said, r_shared, *_ = torch.stack(samples).view(20, 6).T
            agree += [agrees(r, 1), agrees(spread / said, 1)]
            rows.append({'setting': setting, 'd': d, 'E r': mean_se(r)[0], '+-': mean_se(r)[1],
                         'rms of r - 1': spread.mean().sqrt().item(), 'said': said.mean().sqrt().item(),
                         'E r, one f for all layers': r_shared.mean().item()})
    show(rows)
    ffn, x = FFN(GPTConfig(n_embd=d)).double(), randn(d)
    nn.init.zeros_(ffn.c_fc.weight)[:2 * d] = torch.cat((eye(d), -eye(d)))
    nn.init.zeros_(ffn.c_proj.weight)[:, :2 * d] = torch.cat((-eye(d), eye(d)), 1)
    negated = (x + relu_ffn(ffn, x)).norm()  # relu(x) - relu(-x) is x
    rms = ', '.join(f'{row["rms of r - 1"]:.3f} at d = {row["d"]}' for row in rows if row['setting'] == 'S5')
    return verdict('Equation 3', f"""each branch has random weights of its own: E r = 1 and rms of r - 1 {rms}
        (S5), as said, like 1 / sqrt(d). With one f for all layers E r =
        {rows[-1]["E r, one f for all layers"]:.1f}; with weights that make f(x) = -x |x + f(x)| =
        {negated:.0f}""", rows, sense=all(agree))


def matrix_gradients(model, scale):
    """Gradient norms of the blocks' matrices, W_q, W_k, W_v apart, for an x^0 of the size scale * sqrt(d)."""
    with torch.no_grad():
        for table in (model.wte.weight, model.wpe.weight):  # x^0, before any InputNorm, is their sum
            table.mul_(scale / math.sqrt(2) / table.std())
    idx = torch.arange(64).view(4, 16) * 7 % 64
    model.zero_grad()
    model(idx, (idx + 1) % 64)[1].backward()
    return torch.stack([part.norm() for name, p in model.blocks.named_parameters() if p.dim() == 2
                        for part in p.grad.chunk(3 if 'c_attn' in name else 1)])


def proposition_1(widths=WIDTHS):
    """
    'If the norm of x^0 is very large, it will lead to gradient vanishing problem in all subsequent layers,
    provided that InputNorm is not used': by the RMSNorm Jacobian gradients go with |x^0|^-1. Remark 1: if it
    is very small, they may explode. Measured: the exponent of |x^0| between 1e3 sqrt(d) and 1e4 sqrt(d),
    least and largest over all matrices of 4 blocks; the gradients at sqrt(d) / 100 over those at sqrt(d). S2
    and S3 differ by InputNorm alone; NoNorm and PostLN are networks without InputNorm, too. 'S5 without' has
    none either, and no PreNorm before the FFN, but a MidNorm behind it.
    """
    rows, ends = [], ('least exponent', 'largest exponent')
    for setting in ('S1', 'S2', 'S3', 'S5 without', 'S5', 'PostLN', 'NoNorm'):
        for d in widths:
            flags = {'input_norm': False} if 'without' in setting else {}
            model = small_gpt(setting.split()[0], d, **flags)
            small, one, large, huge = (matrix_gradients(model, scale) for scale in (0.01, 1, 1e3, 1e4))
            alive = huge > 0  # without a norm before it the softmax has nothing left in float64
            slope = (huge / large)[alive].log10()
            rows.append({'setting': setting, 'd': d, ends[0]: slope.min().item(), ends[1]: slope.max().item(),
                         'gradients of 0': (~alive).sum().item(), 'small / one': (small / one).max().item()})
    show(rows)

    def near(said, *settings):  # 8 branches of a thousandth of x^0 may move exponents by log10(1.008) = 0.003
        return all(abs(row[end] - said) < 0.01 for row in rows if row['setting'] in settings for end in ends)
    (*_, s2), (*_, s3), (*_, post), (*_, none) = (
        [[row[end] for end in ends] for row in rows if row['setting'] == setting]
        for setting in ('S2', 'S3', 'PostLN', 'NoNorm'))
    return verdict('Proposition 1', f"""each branch has a PreNorm or a MidNorm: exponents {s2[0]:.4f} to
        {s2[1]:.4f} without InputNorm (S2, d = {d}), 0 within {max(map(abs, s3)):.0e} with it (S3). With
        PostNorm alone or no norm gradients do not vanish in all layers (largest exponent {abs(post[1]):.2f}
        and {none[1]:.2f})""", rows, holds=near(-1, 'S1', 'S2', 'S5 without', 'PostLN', 'NoNorm'),
                   sense=near(-1, 'S1', 'S2', 'S5 without') and near(0, 'S3', 'S5'))

# -----------------------------------------------------------------------------
# section 3.2.2: PreNorm

def logits(X, W_q, W_k):
    """P / sqrt(d_q), P = X^T W_q^T W_k X."""
    return (W_q @ X).T @ W_k @ X / math.sqrt(len(W_q))


def column_softmax(P, causal=False):
    """A = softmax(P) down the columns: column j is what token j takes from each i, from i <= j if causal."""
    return P.masked_fill(torch.ones(T, T).tril(-1).bool() & causal, -math.inf).softmax(0)


def self_attention(x, W_q, W_k, W_v):
    """Y = W_v X A, A = softmax(P / sqrt(d_q)); x = X^T in, Y^T out."""
    X = x[0].T
    return (W_v @ X @ column_softmax(logits(X, W_q, W_k))).T


def attention_module(W_q, W_k, W_v, causal=False, qk_norm=False):
    """model.py's Attention with one head, these matrices and W_o = I, so that it gives the paper's Y^T."""
    attn = Attention(GPTConfig(n_embd=len(W_q), n_head=1, qk_norm=qk_norm, flash=False)).double()
    attn.causal = causal
    with torch.no_grad():
        attn.c_attn.weight.copy_(torch.cat((W_q, W_k, W_v)))
        attn.c_proj.weight.copy_(eye(len(W_q)))
    return attn


def softmax_jacobian(A):
    """J = blockdiag(diag(A_:,1) - A_:,1 A_:,1^T, ..., diag(A_:,n) - A_:,n A_:,n^T)."""
    return torch.block_diag(*(a.diag() - a.outer(a) for a in A.T))


def attention_jacobian(X, W_q, W_k, W_v, A, J):
    """The right side of equation 5; with J = I that of equation 12."""
    return kron(A.T, W_v) + kron(eye(T), W_v @ X) @ J / math.sqrt(len(W_q)) @ (
        times_commutation(kron(X.T @ W_k.T @ W_q, eye(T)), *X.shape) + kron(eye(T), X.T @ W_q.T @ W_k))


def equation_5(widths=WIDTHS):
    """
    dvec(Y)/dvec(X) = (A^T (x) W_v)
                    + (I_n (x) W_v X) J / sqrt(d_q) ((X^T W_k^T W_q (x) I_n) C + (I_n (x) X^T W_q^T W_k)),
    J = blockdiag(diag(A_:,1) - A_:,1 A_:,1^T, ...), C the 'communication' (commutation) matrix. Measured: the
    paper's function, with W_q, W_k, W_v of different heights, and model.py's Attention, causal or not. J
    takes A by columns, so softmax runs down the columns of P = Q^T K, and the token that asks is the one
    behind W_k: model.py's W_q and W_k, and everybody's, are the paper's W_k and W_q.
    """
    rows = []
    for d in widths:
        X = randn(d, T)

        def compare(f, W, causal=False):
            A = column_softmax(logits(X, *W[:2]), causal)
            return error(jacobian(f, X.T[None]), attention_jacobian(X, *W, A, softmax_jacobian(A)))
        narrow, (W_q, W_k, W_v) = matrices(d, d // 2, d // 2, d // 4), matrices(d, d, d, d)
        rows.append({
            'd': d, 'the function': compare(lambda x: self_attention(x, *narrow), narrow),
            'Attention, names exchanged': compare(attention_module(W_k, W_q, W_v), (W_q, W_k, W_v)),
            'and causal': compare(attention_module(W_k, W_q, W_v, causal=True), (W_q, W_k, W_v), causal=True),
            'not exchanged': compare(attention_module(W_q, W_k, W_v), (W_q, W_k, W_v))})
    _, *errors, same_names = show(rows)[1].values()
    return verdict('Equation 5', f"""error {max(errors):.0e}, masked or not. With the softmax down the columns
        of P, as J has it, W_q makes the keys and W_k the queries, the reverse of model.py's names (taken for
        the same: error {same_names:.1f})""", rows, holds=exact(*errors))


def proposition_2(widths=WIDTHS):
    """
    'If X' = g * X with each column in x'_i having a magnitude g_i, [...] Y = Self-Attention(X) and Y' =
    Self-Attention(X')', PreNorm first (equation 4): 'then we have dvec(Y)/dvec(X) = dvec(Y')/dvec(X').'
    Measured: attn(pre_norm(x)) of model.py's Block, 2 heads, causal, random gains, at x and at g x. The chain
    rule has dvec(Y')/dvec(X') = dvec(Y)/dvec(X) (diag(g) (x) I)^-1 and, remark 2, equal gradients of the
    weights.
    """
    rows = []
    for d in widths:
        block = Block(GPTConfig(**SETTINGS['S1'], norm='rms', n_embd=d, n_head=2, flash=False)).double()
        attn, norm = block.attn, rms_norm(d)
        block.pre_norm = norm
        x, g = randn(1, T, d), randn(T).exp()
        gx, over_g = g[:, None] * x, kron((1 / g).diag(), eye(d))

        def y(x):
            return block.attn(block.pre_norm(x))

        def weight_gradient(x):
            return torch.autograd.grad(y(x).sin().sum(), attn.c_attn.weight)[0]
        row = {'d': d, 'Y': error(y(gx), y(x)), 'wrt X, as printed': error(jacobian(y, gx), jacobian(y, x)),
               'wrt PreNorm(X)': error(jacobian(attn, norm(gx)), jacobian(attn, norm(x))),
               'wrt X, over g': error(jacobian(y, gx), jacobian(y, x) @ over_g),
               'weights': error(weight_gradient(gx), weight_gradient(x))}
        norm.eps = 1e-6
        rows.append({**row, 'wrt X, over g, eps 1e-6': error(jacobian(y, gx), jacobian(y, x) @ over_g)})
    least, worst = show(rows)
    _, same, printed, inner, divided, weights, with_eps = worst.values()
    return verdict('Proposition 2', f"""the derivative with respect to PreNorm(X) is equal (error
        {inner:.0e}), and so are Y ({same:.0e}) and the gradients of the weights ({weights:.0e}). That with
        respect to X, as printed, is not (error {least["wrt X, as printed"]:.1f} to {printed:.1f}): for token
        i it is divided by g_i (error {divided:.0e}; {with_eps:.0e} with the model's eps)""", rows,
                   holds=exact(printed), sense=exact(same, inner, divided, weights))

# -----------------------------------------------------------------------------
# section 3.2.3: MidNorm

def relu_ffn(ffn, x):
    """W_2 ReLU(W_1 x), equation 6, with the weights of model.py's FFN, which itself has GELU."""
    return ffn.c_proj(F.relu(ffn.c_fc(x)))


def gelu_ffn(ffn, x):
    return ffn(x)


def relu_slope(h):
    return (h > 0).double()


def gelu_slope(h):
    return grad(lambda h: F.gelu(h).sum())(h)


def ffn_jacobian(ffn, x, slope):
    """W_2 diag(slope(W_1 x)) W_1; the paper's slope is ReLU's, 1(W_1 x > 0)."""
    return ffn.c_proj.weight @ (slope(ffn.c_fc(x))[:, None] * ffn.c_fc.weight)


def random_ffn(d, a=1.0, b=1.0):
    """model.py's FFN with random a W_1 and b W_2."""
    ffn = FFN(GPTConfig(n_embd=d)).double()
    nn.init.xavier_normal_(ffn.c_fc.weight, gain=a)
    nn.init.xavier_normal_(ffn.c_proj.weight, gain=b)
    return ffn


def equation_7(widths=WIDTHS):
    """
    dy/dx = sqrt(d) diag(gamma) (I - z z^T / |z|_2^2) W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2.
    Measured: y = RMSNorm(z) behind the FFN's weights with ReLU, as printed; and behind model.py's own FFN,
    where GELU's slope has to take the place of the indicator.
    """
    rows = []
    for d in widths:
        ffn, norm, x = random_ffn(d), rms_norm(d), randn(d)

        def compare(act, slope):
            z = act(ffn, x)
            midnorm = math.sqrt(d) * norm.weight.diag() @ (eye(d) - z.outer(z) / (z @ z))
            said = midnorm @ ffn_jacobian(ffn, x, slope) / z.norm()
            return error(jacobian(lambda x: norm(act(ffn, x)), x), said)
        row = {'d': d, 'ReLU': compare(relu_ffn, relu_slope),
               'GELU, its slope': compare(gelu_ffn, gelu_slope),
               'GELU, the indicator': compare(gelu_ffn, relu_slope)}
        norm.eps = 1e-6
        rows.append({**row, 'ReLU, eps 1e-6': compare(relu_ffn, relu_slope)})
    _, relu, gelu, indicator, with_eps = show(rows)[1].values()
    return verdict('Equation 7', f"""error {relu:.0e} ({with_eps:.0e} with the model's eps, which it leaves
        out). The model's GELU needs its own slope for the indicator: error {gelu:.0e} with it,
        {indicator:.1f} without""", rows, holds=exact(relu))


def product_edge(rho):
    """
    The limit of the largest singular value of G_2 G_1 / sqrt(m d), G_1 (m, d) and G_2 (d, m) of independent
    entries of variance 1, m = rho d. By free probability the squared singular values of G_2 G_1 / d have the
    S-transform (1 + rho s)^-2 and end at the least (1 + s) (1 + rho s)^2 / s over s > 0; 27 / 4 for rho = 1.
    """
    s = (math.sqrt(rho ** 2 + 8 * rho) - rho) / (4 * rho)  # there 2 rho s^2 + rho s = 1
    return math.sqrt((1 + s) * (1 + rho * s) ** 2 / s / rho)


def hostile_input(ffn, x):
    """An x with a small |W_2 ReLU(W_1 x)| / |x|, by gradient descent."""
    x = x.clone().requires_grad_()
    opt = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        opt.zero_grad()
        (relu_ffn(ffn, x).norm() / x.norm()).log().backward()
        opt.step()
    return x.detach()


def weights_and_input(kind, d):
    """An FFN with some kind of weights, and an x."""
    ffn, x = random_ffn(d), randn(d)
    for w in (ffn.c_fc.weight.data, ffn.c_proj.weight.data):
        if kind == 'uniform':
            w.uniform_(-1, 1)
        if kind == 'signs':
            w.sign_()
        if kind == 'spectrum 1/i':  # a few large singular values
            u, s, v = torch.linalg.svd(w, full_matrices=False)
            w.copy_(u / torch.arange(1, d + 1) @ v)
    return ffn, hostile_input(ffn, x) if kind == 'x searched' else x


def proposition_3(widths=WIDTHS):
    """
    W = W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2: for high-dimensional, random W_1, W_2 and x its
    singular values 'will be only related to the shape of W_1 and W_2, and [...] independent to the magnitude'
    of them. Measured, magnitude: W of (a W_1, b W_2) against W of (W_1, W_2), with ReLU and GELU; and W at 2
    x. Shape: half of the 4 d rows of W_1 are alive, so |x| sigma should tend to product_edge(2), the largest,
    and 1, the rms, whatever the weights' distribution. Against it: a spectrum 1/i, and an x searched to make
    |z| small.
    """
    def W(act, slope, x, a=1.0, b=1.0):
        torch.manual_seed(seed)  # the same weights each time
        ffn = random_ffn(len(x), a, b)
        return ffn_jacobian(ffn, x, slope) / act(ffn, x).norm()
    magnitude, relu, gelu = [], (relu_ffn, relu_slope), (gelu_ffn, gelu_slope)
    for d in widths:
        x = randn(d)
        magnitude.append({'d': d, 'ReLU, 30 W_1, W_2 / 100': error(W(*relu, x, 30, 0.01), W(*relu, x)),
                          'ReLU, 2 x: half': error(W(*relu, 2 * x), W(*relu, x) / 2),
                          'GELU, W_2 / 100': error(W(*gelu, x, 1, 0.01), W(*gelu, x)),
                          'GELU, 30 W_1': error(W(*gelu, x, 30), W(*gelu, x))})
    _, scaled, halved, _, gelu_error = show(magnitude)[1].values()

    edge, rows, agree, distributions = product_edge(2.0), [], [], ('normal', 'uniform', 'signs')
    for d in widths:
        for kind in (*distributions, 'spectrum 1/i', 'x searched'):
            samples = []
            for _ in range(5 if kind == 'x searched' else 20):
                ffn, x = weights_and_input(kind, d)
                with torch.no_grad():
                    sigma = torch.linalg.svdvals(ffn_jacobian(ffn, x, relu_slope)) / relu_ffn(ffn, x).norm()
                samples.append(x.norm() * torch.stack((sigma[0], sigma.square().mean().sqrt())))
            (largest, largest_se), (rms, rms_se) = map(mean_se, torch.stack(samples).T)
            rows.append({'d': d, 'weights': kind, 'largest sigma': largest, '+-': largest_se, 'limit': edge,
                         'rms sigma': rms, '+- ': rms_se, 'limit ': 1.0})
            if kind in distributions:  # the edge of a spectrum is reached like d^(-2/3), its mean like 1 / d
                agree += [abs(largest / edge - 1) <= d ** (-2 / 3) + 4 * largest_se / edge,
                          abs(rms - 1) <= 1 / d + 4 * rms_se]
    print()
    show(rows)
    largest = {(row['weights'], row['d']): (row['largest sigma'], row['+-']) for row in rows}
    normal = ', '.join('{:.2f} +- {:.2f} at {}'.format(*largest['normal', d], d) for d in widths)
    return verdict('Proposition 3', f"""sigma |x| is meant: sigma is divided by |x|, too. The magnitudes of
        W_1 and W_2 drop out with ReLU (error {scaled:.0e}), at any d, for any weights; with GELU that of W_1
        does not (error {gelu_error:.1f} at 30 W_1). Shape alone: for random weights the largest sigma |x|
        tends to {edge:.3f} (normal: {normal}), but not for a spectrum 1/i
        ({"{:.0f} +- {:.0f}".format(*largest["spectrum 1/i", d])}) or a searched x
        ({"{:.0f} +- {:.0f}".format(*largest["x searched", d])})""", magnitude + rows,
                   sense=exact(scaled, halved) and all(agree))

# -----------------------------------------------------------------------------
# section 3.2.4: PostNorm

def proposition_4(widths=WIDTHS):
    """
    'If z^{l+1} in Equation 8 is very large, then it will significantly decrease the gradient', as
    dx^{l+1}/dz^{l+1} = sqrt(d) / |z| (I - z z^T / |z|_2^2), x^{l+1} = PostNorm(z^{l+1}), z^{l+1} = x^l +
    f(x^l). Measured: the FFN sub-block of model.py's Block. The Jacobian with gains of 1 and others, at z and
    at 1000 z. Then what the text concludes, that gradients vanish when the weights are large: |dx^{l+1}/dx^l|
    and |dL/dW_2| at 1000 W_2 over those at W_2, with GELU and ReLU; and |dx^{l+1}/dx^l| at 1000 x.
    """
    rows = []
    for d in widths:
        block = Block(GPTConfig(**SETTINGS['PostLN'], norm='rms', n_embd=d, n_head=2)).double()
        block.init_weights(nn.init.xavier_normal_, 1.0)
        ffn, norm, x = block.ffn, block.ffn_post_norm, randn(d)
        norm.eps = 0.0

        def gradients(act, x):
            dx = jacobian(lambda x: norm(x + act(ffn, x)), x).norm()
            dw, = torch.autograd.grad(norm(x + act(ffn, x)).sin().sum(), ffn.c_proj.weight)
            return torch.stack((dx, dw.norm())).detach()
        relu, relu_x, gelu = gradients(relu_ffn, x), gradients(relu_ffn, 1000 * x), gradients(gelu_ffn, x)
        z = x + ffn(x).detach()
        ffn.c_proj.weight.data.mul_(1000)
        (relu_dx, relu_dw), (gelu_dx, gelu_dw) = gradients(relu_ffn, x) / relu, gradients(gelu_ffn, x) / gelu

        said = math.sqrt(d) / z.norm() * (eye(d) - z.outer(z) / (z @ z))
        ones = error(jacobian(norm, z), said)
        nn.init.normal_(norm.weight)
        rows.append({'d': d, 'gains 1': ones, 'other gains': error(jacobian(norm, z), said),
                     'with diag(gamma)': error(jacobian(norm, z), norm.weight.diag() @ said),
                     '1000 z: a thousandth': error(jacobian(norm, 1000 * z), jacobian(norm, z) / 1000),
                     '1000 W_2: dx/dx, GELU': gelu_dx.item(), 'ReLU': relu_dx.item(),
                     'dL/dW_2, GELU': gelu_dw.item(), 'ReLU ': relu_dw.item(),
                     '1000 x: dx/dx, ReLU': (relu_x[0] / relu[0]).item()})
    least, worst = show(rows)
    _, ones, _, gain, thousandth, *_ = worst.values()
    return verdict('Proposition 4', f"""dL/dz is divided by |z|, whatever comes from above ({thousandth:.0e}
        off); the Jacobian lacks diag(gamma) (error {gain:.0e} with it, {least["other gains"]:.1f} without;
        {ones:.0e} at gains of 1). But that large weights make gradients vanish holds for the weights (dL/dW_2
        times {gelu_dw:.4f} at 1000 W_2) and not for x^l (dx^(l+1)/dx^l times {gelu_dx:.2f})""", rows,
                   holds=exact(ones, gain, thousandth))

# -----------------------------------------------------------------------------
# section 3.2.5: QKNorm

def equation_11(widths=WIDTHS):
    """
    P'_ij = q'_i^T k'_j;
    dP'_ij/dx = sqrt(d_h) diag(gamma_q) k'_j^T (I - q'_i q'_i^T / |q'_i|_2^2) W_q / |W_q x_i|_2
              + sqrt(d_h) diag(gamma_k) q'_i^T (I - k'_j k'_j^T / |k'_j|_2^2) W_k / |W_k x_j|_2.
    diag(gamma_q), (d_h, d_h), cannot stand left of the row k'_j^T. Measured: model.py's RMSNorm, random
    gains, against four readings: diag(gamma) before the projector, that is between it and k'^T, or behind it;
    in the projector q' as printed, or q = W_q x as in appendix A.3. For i = j the sum is the derivative; for
    i != j its first line is that with respect to x_i, its second that with respect to x_j.
    """
    rows = []
    for d in widths:
        W_q, W_k = matrices(d, d // 2, d // 2)
        q_norm, k_norm, x, x_j = rms_norm(d // 2), rms_norm(d // 2), randn(d), randn(d)

        def line(other, norm, W, x, normed, behind):
            v = norm(W @ x) if normed else W @ x
            gamma, projector = norm.weight.diag(), eye(len(W)) - v.outer(v) / (v @ v)
            middle = projector @ gamma if behind else gamma @ projector
            return math.sqrt(len(W)) * other @ middle @ W / (W @ x).norm()

        def lines(x_i, x_j, *reading):
            q, k = q_norm(W_q @ x_i), k_norm(W_k @ x_j)
            return torch.stack((line(k, q_norm, W_q, x_i, *reading), line(q, k_norm, W_k, x_j, *reading)))

        def P(x_i, x_j):
            return q_norm(W_q @ x_i) @ k_norm(W_k @ x_j)

        def errors(normed, behind):
            return error(jacobian(lambda x: P(x, x), x)[0], lines(x, x, normed, behind).sum(0))
        pair = torch.stack((x, x_j))
        apart = error(jacobian(lambda pair: P(*pair), pair)[0], lines(*pair, False, False).flatten())
        row = {'d': d, "q', before": errors(True, False), "q', behind": errors(True, True),
               'q, behind': errors(False, True), 'q, before': errors(False, False),
               'q, before, i != j': apart}
        for norm in (q_norm, k_norm):
            nn.init.ones_(norm.weight)
        rows.append({**row, "q', gains of 1": errors(True, False)})
    least, worst = show(rows)
    (_, *wrong, _, _, _), (_, before, behind, _, right, apart, ones) = least.values(), worst.values()
    return verdict('Equation 11', f"""as printed the shapes do not fit and q' is in the projector: error
        {wrong[0]:.2f} to {before:.2f} with diag(gamma) before the projector, {wrong[1]:.2f} to {behind:.2f}
        behind it; with k'^T diag(gamma_q) (I - q q^T / |q|^2), q = W_q x as in A.3, error {right:.0e}. At
        gains of 1 it is right with q', too ({ones:.0e})""", rows,
                   misprint=exact(right, apart, ones) and min(wrong) > 1e-3)


def proposition_5(widths=WIDTHS):
    """
    'When all W_q, W_k and x are high-dimensional and random, in Equation 11, the gradient term of dP'_ij/dx
    is independent of the magnitudes W_q and W_k.' Measured: model.py's Attention with QKNorm, 2 heads,
    causal, random gains: the Jacobians of P' = Q'^T K' and of Y at (100 W_q, W_k / 50) against those at (W_q,
    W_k). The limits: 2 x; the model's eps, and weights of a thousandth; one row of W_q 100 times as large.
    And without QKNorm.
    """
    rows = []
    for d in widths:
        attn = Attention(GPTConfig(**SETTINGS['S5'], n_embd=d, n_head=2, flash=False)).double()
        attn.q_norm, attn.k_norm = rms_norm(d // 2), rms_norm(d // 2)
        (W_q, W_k, W_v), x = matrices(d, d, d, d), randn(1, T, d)

        def heads(x):
            return [v.view(T, 2, d // 2).transpose(0, 1) for v in attn.c_attn(x).chunk(3, -1)]  # (H, T, D)

        def normed(x):
            q, k, _ = heads(x)
            return attn.q_norm(q) @ attn.k_norm(k).mT

        def bare(x):
            q, k, _ = heads(x)
            return q @ k.mT

        def J(f, a=1.0, b=1.0, x=x, eps=0.0):
            attn.c_attn.weight.data.copy_(torch.cat((a * W_q, b * W_k, W_v)))
            attn.q_norm.eps = attn.k_norm.eps = eps
            return jacobian(f, x)
        one_row = torch.ones(d, 1, dtype=torch.float64).index_fill(0, torch.tensor(0), 100.0)
        rows.append({'d': d, "dP'/dx": error(J(normed, 100, 0.02), J(normed)),
                     'dY/dX': error(J(attn, 100, 0.02), J(attn)),
                     '2 x: half': error(J(normed, x=2 * x), J(normed) / 2),
                     'eps 1e-6': error(J(normed, eps=1e-6), J(normed)),
                     'and weights / 1000': error(J(normed, 1e-3, 1e-3, eps=1e-6), J(normed)),
                     'one row of W_q': error(J(normed, one_row), J(normed)),
                     'no QKNorm: times 2': error(J(bare, 100, 0.02), 2 * J(bare))})
    _, logit, whole, _, eps, tiny, one, without = show(rows)[1].values()
    return verdict('Proposition 5', f"""error {logit:.0e}, {whole:.0e} for dY/dX, at any d, for any weights.
        Its limits: eps ({eps:.0e} at 1e-6; {tiny:.1f} if the weights are a thousandth), factors that differ
        within a head (one row of W_q times 100: {one:.1f}), and |x|, by which it is divided. Without QKNorm
        it has both factors ({without:.0e} off)""", rows, holds=exact(logit, whole))

# -----------------------------------------------------------------------------
# appendix A

def equation_12(widths=WIDTHS):
    """
    Linear attention, A = P / sqrt(d_q): dvec(Y)/dvec(X) = (A^T (x) W_v)
                    + (I_n (x) W_v X) / sqrt(d_q) ((X^T W_k^T W_q (x) I_n) C + (I_n (x) X^T W_q^T W_k)),
    its singular values 'magnified second-orderly by the norm of each column in X'. Measured: the error; the
    Jacobian at 1000 X, said to be 1e6 times as large; and the largest singular value there with softmax.
    """
    rows = []
    for d in widths:
        X, (W_q, W_k, W_v) = randn(d, T), matrices(d, d // 2, d // 2, d // 4)

        def linear(x):
            return (W_v @ x[0].T @ logits(x[0].T, W_q, W_k)).T

        def largest(x):
            return torch.linalg.matrix_norm(jacobian(lambda x: self_attention(x, W_q, W_k, W_v), x), 2)
        x, said = X.T[None], attention_jacobian(X, W_q, W_k, W_v, logits(X, W_q, W_k), eye(T * T))
        rows.append({'d': d, 'error': error(jacobian(linear, x), said),
                     '1000 X: 1e6 times': error(jacobian(linear, 1000 * x), 1e6 * said),
                     '1000 X with softmax: times': (largest(1000 * x) / largest(x)).item()})
    _, right, second_order, softmax = show(rows)[1].values()
    return verdict('Equation 12', f"""error {right:.0e}; at 1000 X 1e6 times as large ({second_order:.0e}
        off). With softmax instead J goes to 0 as the logits grow: the largest singular value at 1000 X is at
        most {softmax:.2f} times that at X""", rows, holds=exact(right, second_order))


def equations_13_14_15(widths=WIDTHS):
    """
    dL/dvec(W_q) = dL/dvec(Y) (I_n (x) W_v X) J / sqrt(d_q) ((W_k X)^T (x) X^T) C           (13)
    dL/dvec(W_k) = dL/dvec(Y) (I_n (x) W_v X) J / sqrt(d_q) (X^T (x) (W_q X)^T)             (14)
    dL/dvec(W_v) = dL/dvec(Y) ((A^T X^T) (x) I)                                             (15)
    Measured: L = sum sin(Y) for the paper's function, W_q, W_k, W_v of different heights, and for model.py's
    Attention (names exchanged, see equation 5). Half the widths: the matrix of equation 15 has n d^3 entries.
    """
    rows = []
    for d in (width // 2 for width in widths):
        X, row = randn(d, T), {'d': d}
        for where, heights in (('', (d // 2, d // 2, d // 4)), (', Attention', (d, d, d))):
            W = W_q, W_k, W_v = matrices(d, *heights)
            if where:
                attn = attention_module(W_k, W_q, W_v)
                attn(X.T[None]).sin().sum().backward()
                k, q, v = attn.c_attn.weight.grad.chunk(3)
            else:
                q, k, v = grad(lambda W: self_attention(X.T[None], *W).sin().sum())(W)
            A = column_softmax(logits(X, W_q, W_k))
            dL_dY = vec((W_v @ X @ A).cos())
            dL_dP = dL_dY @ kron(eye(T), W_v @ X) @ softmax_jacobian(A) / math.sqrt(len(W_q))
            said = {13: dL_dP @ times_commutation(kron((W_k @ X).T, X.T), *W_q.shape),
                    14: dL_dP @ kron(X.T, (W_q @ X).T), 15: dL_dY @ kron(A.T @ X.T, eye(len(W_v)))}
            row |= {f'{i}{where}': error(vec(dW), said[i]) for i, dW in zip(said, (q, k, v))}
        rows.append(row)
    worst = show(rows)[1]
    return [verdict(f'Equation {i}', f"""error {worst[i]:.0e} for the paper's function,
        {worst[f"{i}, Attention"]:.0e} for model.py's Attention""", rows,
                    holds=exact(worst[i], worst[f'{i}, Attention'])) for i in ('13', '14', '15')]


def equation_16(widths=WIDTHS):
    """
    W (m, n), x of i.i.d. entries, mean 0, variances sigma_W^2 and sigma_x^2; W_1 = W / |y|, y = W x:
    sigma_1(W_1) ~ (sqrt(m) + sqrt(n)) sigma_W / sqrt(m n sigma_W sigma_x)       [middle]
                 = (sqrt(m) + sqrt(n)) / sqrt(m n sigma_x).                      [right]
    A few lines before, the proof has |y| ~ sqrt(m n) sigma_W sigma_x, which leads to
                   (sqrt(m) + sqrt(n)) / (sqrt(m n) sigma_x).                    [repaired]
    Measured at sigma_W = 0.5, sigma_x = 3: how far the mean sigma_1(W_1) is from each, and E |y|^2 / (m n
    sigma_W^2 sigma_x^2) = 1. Against it: entries without a fourth moment (Student's t, 3 degrees).
    """
    sigma_W, sigma_x, rows, agree = 0.5, 3.0, [], []
    entries = {'normal': randn, 'signs': lambda m, n: randn(m, n).sign(),
               'Student': lambda m, n: randn(m, n) / sum(randn(m, n).square() for _ in range(3)).sqrt()}
    for n in (*widths, 2 * widths[-1]):
        for m, kind in ((n, 'normal'), (2 * n, 'normal'), (n, 'signs'), (n, 'Student')):
            samples = []
            for _ in range(min(400, 12_800 // n)):
                W, x = sigma_W * entries[kind](m, n), sigma_x * randn(n)
                largest, y2 = torch.linalg.eigvalsh(W.T @ W)[-1].sqrt(), (W @ x).square().sum()
                samples.append(torch.stack((largest / y2.sqrt(), y2 / (m * n * sigma_W ** 2 * sigma_x ** 2))))
            (mean, se), (size, size_se) = map(mean_se, torch.stack(samples).T)
            roots = math.sqrt(m) + math.sqrt(n)
            repaired = mean / (roots / (math.sqrt(m * n) * sigma_x)) - 1
            rows.append({'m': m, 'n': n, 'entries': kind, 'sigma_1(W_1)': mean,
                         'middle off': mean / (roots * sigma_W / math.sqrt(m * n * sigma_W * sigma_x)) - 1,
                         'right off': mean / (roots / math.sqrt(m * n * sigma_x)) - 1,
                         'repaired off': repaired, '+-': se / mean, 'E <y, y>': size, '+- ': size_se})
            if kind != 'Student':  # the edge of a spectrum is reached like n^(-2/3)
                agree += [abs(repaired) <= n ** (-2 / 3) + 4 * se / mean, abs(size - 1) <= 4 * size_se]
    show(rows)
    square = [row for row in rows if row['entries'] == 'normal' and row['m'] == row['n']]
    heavy = [row['repaired off'] for row in rows if row['entries'] == 'Student']
    middle, right = square[-1]['middle off'], square[-1]['right off']
    repaired = ', '.join(f'{row["repaired off"]:+.1%} at {row["n"]}' for row in square)
    return verdict('Equation 16', f"""as printed error {middle:+.0%} (middle; sigma_W does not cancel in it)
        and {right:+.0%} (right; sigma_x under the root) at m = n = {n}; with |y| ~ sqrt(m n) sigma_W sigma_x,
        where sigma_W cancels, (sqrt(m) + sqrt(n)) / (sqrt(m n) sigma_x) has error {repaired}. Entries need a
        fourth moment: Student's t {heavy[0]:+.0%} at {widths[0]}, {heavy[-1]:+.0%} at {n}""", rows,
                   misprint=all(agree) and min(abs(middle), abs(right)) > 0.1)


def equation_17(widths=WIDTHS):
    """
    dvec(Y)/dvec(X) = (A'^T (x) W_v) + (I_n (x) W_v X) J / sqrt(d_h)
                      ((K'^T (x) I) C_dN J_Q^Q' (I (x) W_q) + (I (x) Q'^T) J_K^K' (I (x) W_k)),
    J_Q^Q' = blockdiag(dq'_i/dq_i), dq'_i/dq_i = sqrt(d_h) / |q_i| diag(gamma_q) (I - q_i q_i^T / |q_i|_2^2).
    Measured: model.py's Attention with QKNorm, random gains, causal or not (names exchanged, see equation 5).
    A.3 also prints J_Q^Q' as dvec(Q')/dvec(Q'), which would be I, and calls it 'relatively independent to the
    magnitude of Q': J_Q^Q' at 2 Q.
    """
    rows = []
    for d in widths:
        X, (W_q, W_k, W_v), q_norm, k_norm = randn(d, T), matrices(d, d, d, d), rms_norm(d), rms_norm(d)
        Q, K = q_norm((W_q @ X).T).T, k_norm((W_k @ X).T).T  # Q', K'

        def norm_jacobian(norm, Q):
            return torch.block_diag(*(
                math.sqrt(d) / q.norm() * norm.weight.diag() @ (eye(d) - q.outer(q) / (q @ q)) for q in Q.T))

        def compare(J_Q, J_K, causal=False):
            attn = attention_module(W_k, W_q, W_v, causal, qk_norm=True)
            attn.q_norm, attn.k_norm = k_norm, q_norm
            A = column_softmax(Q.T @ K / math.sqrt(d), causal)
            dP_dX = (times_commutation(kron(K.T, eye(T)), d, T) @ J_Q @ kron(eye(T), W_q)
                     + kron(eye(T), Q.T) @ J_K @ kron(eye(T), W_k))
            return error(jacobian(attn, X.T[None]), kron(A.T, W_v)
                         + kron(eye(T), W_v @ X) @ softmax_jacobian(A) / math.sqrt(d) @ dP_dX)
        J_Q, J_K = norm_jacobian(q_norm, W_q @ X), norm_jacobian(k_norm, W_k @ X)
        rows.append({'d': d, 'error': compare(J_Q, J_K), 'causal': compare(J_Q, J_K, causal=True),
                     "J_Q^Q' = I": compare(eye(T * d), eye(T * d)),
                     "J_Q^Q' at 2 Q: half": error(norm_jacobian(q_norm, 2 * W_q @ X), J_Q / 2)})
    _, right, causal, identity, halved = show(rows)[1].values()
    return verdict('Equation 17', f"""error {max(right, causal):.0e}, masked or not, with J_Q^Q' =
        blockdiag(dq'_i/dq_i); dvec(Q')/dvec(Q'), printed for it too, is I (error {identity:.1f}). J_Q^Q' is
        not independent of the magnitude of Q: at 2 Q it is half ({halved:.0e} off)""", rows,
                   holds=exact(right, causal))

# -----------------------------------------------------------------------------

STATEMENTS = (theorem_1, theorem_2, rms_norm_jacobian, equation_3, proposition_1, equation_5, proposition_2,
              equation_7, proposition_3, proposition_4, equation_11, proposition_5, equation_12,
              equations_13_14_15, equation_16, equation_17)


def check(statements=STATEMENTS, widths=WIDTHS):
    """Run statements, each from the same seed; returns their verdicts."""
    results = []
    for statement in statements:
        torch.manual_seed(seed)
        result = statement(widths)
        results += result if isinstance(result, list) else [result]
        print(flush=True)
    return results


if __name__ == '__main__':
    configure(globals())
    if not os.path.isdir(os.path.dirname(json) or '.'):
        fail(f'There is no folder {os.path.dirname(json)} for --json={json}.')
    results = check()
    show([{'statement': result['statement'], 'verdict': result['verdict']} for result in results])
    if json:
        with open(json + '.tmp', 'w', encoding='utf-8') as f:
            dump({'seed': seed, 'torch': torch.__version__, 'results': results}, f, indent=1)
        os.replace(json + '.tmp', json)
