"""
The paper's theorems, propositions and equations as small experiments: what each says, what autograd measures
on the modules of model.py, and whether the two agree. results/theory.md says what the numbers mean.

    python -m experiments.propositions        a table over widths and a verdict for each; half a minute

Letters are the paper's: X is (d, n), a column for each token; vec stacks columns; dy/dx has a row for each
entry of y; (x) is the Kronecker product. The code's x (B, T, C) is X^T: in memory it is vec(X).

A verdict needs the columns that begin with = to be right, and those that begin with != to be wrong. A number
there is an error, |measured - said| / |said|, and right below 1e-10. A mean is right within four standard
errors. Gains are random: a wrong formula may be right at 1.
"""

import copy
import math
import re
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad, jacrev

from configurator import configure
from experiments.evidence import print_table
from model import FFN, GPT, SETTINGS, Attention, GPTConfig, RMSNorm
from support.console import fail

seed = 1337  # of each statement, which draws its own numbers
widths = '16,64,256'  # with commas

T = 4  # tokens where a whole Jacobian of attention is compared, the paper's n

# -----------------------------------------------------------------------------
# tools

randn, eye = partial(torch.randn, dtype=torch.float64), partial(torch.eye, dtype=torch.float64)

def matrices(d, *heights):
    """Random matrices (h, d) that keep the size of what they multiply."""
    return [randn(h, d) / math.sqrt(d) for h in heights]

def rms_norm(d):
    """model.py's RMSNorm with random gains; the paper leaves eps out."""
    norm = RMSNorm(d, 0.0).double()
    nn.init.normal_(norm.weight)
    return norm

def jacobian(f, x):
    """df(x)/dx as a matrix; for x (B, T, C) it is the paper's dvec(Y)/dvec(X)."""
    return jacrev(lambda v: f(v.view(x.shape)).flatten())(x.flatten())

def error(measured, said):
    return ((measured - said).norm() / said.norm()).item()  # Frobenius norms

def mean(samples):
    return samples.double().mean().item()

def agrees(samples, said):
    """Whether the mean of samples - said is 0 within four standard errors; 1e-12 is for rounding."""
    difference = samples - said
    return abs(mean(difference)) <= 4 * difference.std().item() / math.sqrt(len(difference)) + 1e-12

def kron(a, b):
    return torch.kron(a.contiguous(), b.contiguous())  # torch's own takes no transposed views

def times_commutation(B, d, n):
    """B C with the commutation matrix C of (d, n), C vec(M) = vec(M^T): B's columns in another order."""
    return B.view(-1, d, n).transpose(1, 2).reshape(-1, d * n)

def projector(v):
    """I - v v^T / |v|^2."""
    return eye(len(v)) - v.outer(v) / (v @ v)

def norm_jacobian(norm, z):
    """sqrt(d) / |z| diag(gamma) (I - z z^T / |z|_2^2)."""
    return math.sqrt(len(z)) / z.norm() * norm.weight.diag() @ projector(z)

# -----------------------------------------------------------------------------
# section 2: random vectors and RMSNorm

KINDS = ('normal', 'rare')

def isotropic(kind, d):
    """Samples of a vector in R^d with E x x^T = I. 'rare': seven times of ten it lies on the first axis."""
    n = 10_000
    x = randn(n, d)
    if kind == 'rare':
        first = randn(n, 1).sign() / math.sqrt(0.7) * eye(d)[0]
        x[:, 0] = 0
        x = torch.where(torch.rand(n, 1) < 0.3, x / math.sqrt(0.3), first)
    return x

def theorem_1(d):
    """
    x, y isotropic, independent: E |x|_2^2 = d, E <x, y>^2 = d, and |x|_2 ~ sqrt(d) 'with high probability':
    near, how often |x| is within 10 % of sqrt(d).
    """
    for kind in KINDS:
        x, y = isotropic(kind, d), isotropic(kind, d)
        size, product = x.square().sum(1) / d, (x * y).sum(1).square() / d
        near = (size.sqrt() - 1).abs() < 0.1
        yield {'x': kind, 'E <x, x> / d': mean(size), 'E <x, y>^2 / d': mean(product),
               '= both': agrees(size, 1) and agrees(product, 1), 'near': mean(near)}

def theorem_2(d):
    """x / |x|_2 and y / |y|_2 of theorem 1 'tend to be almost orthogonal': d E cos^2 = 1."""
    for kind, said in (('normal', '= 1'), ('rare', '!= 1')):
        cos = F.cosine_similarity(isotropic(kind, d), isotropic(kind, d))
        yield {'x': kind, 'd E cos^2': mean(d * cos.square()), said: agrees(d * cos.square(), 1),
               'aligned': mean(cos.abs() > 0.99)}

# -----------------------------------------------------------------------------
# section 3.2: InputNorm, PreNorm, MidNorm, PostNorm, QKNorm

def small_gpt(d, **flags):
    return GPT(GPTConfig(**flags, norm='rms', tied=False, n_layer=4, n_head=2, n_embd=d, block_size=16,
                         vocab_size=64, flash=False)).double()

@torch.no_grad()
def size_over_sum(blocks, x):
    """The mean over the tokens of |x^L|^2 / (|x^0|^2 + |f(x^0)|^2 + ... + |f(x^{L-1})|^2)."""
    squares = x.square().sum(-1)
    for block in blocks:
        whole = block(x)
        z = block.mid_norm(block.attn(block.pre_norm(x)))
        x, squares = x + z, squares + z.square().sum(-1)
        z = block.ffn_mid_norm(block.ffn(block.ffn_pre_norm(x)))
        x, squares = x + z, squares + z.square().sum(-1)
        assert torch.equal(x, whole), 'the block does more than add its branches'
    return (x.square().sum(-1) / squares).mean()

def equation_3(d):
    """
    |x^{l+1}|_2 ~ sqrt(|x^0|_2^2 + |f(x^0)|_2^2 + ... + |f(x^l)|_2^2), as cos^2 = 1 / d for each two terms:
    r = |x^L|^2 / (the sum of squares) has E r = 1. Against it: one f for all layers.
    """
    for setting in ('S1', 'S5'):
        samples = []
        for _ in range(20):
            blocks, x = small_gpt(d, **SETTINGS[setting]).blocks, randn(1, 16, d)
            samples.append((size_over_sum(blocks, x), size_over_sum([blocks[0]] * 4, x)))
        r, shared = torch.tensor(samples).T
        yield {'setting': setting, 'E r': mean(r), '= 1': agrees(r, 1),
               'E r, one f for all layers': mean(shared), '!= 1': agrees(shared, 1)}

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

def proposition_1(d):
    """
    'If the norm of x^0 is very large, it will lead to gradient vanishing problem in all subsequent layers,
    provided that InputNorm is not used': gradients go with |x^0|^-1. Measured is that exponent between
    1e3 sqrt(d) and 1e4 sqrt(d).
    """
    without = {**SETTINGS['S5'], 'input_norm': False}
    for setting, flags in {**SETTINGS, 'S5 without': without}.items():
        model = small_gpt(d, **flags)
        large, huge = (matrix_gradients(model, scale) for scale in (1e3, 1e4))
        alive = huge > 0  # without a norm before it the softmax has nothing left in float64
        exponents = (huge / large)[alive].log10()
        said = 0 if flags['input_norm'] else -1
        normed = flags['ffn_pre_norm'] or flags['mid_norm']
        # 8 branches of a thousandth of x^0 may move exponents by log10(1.008) = 0.003
        agree = (exponents - said).abs().max().item() < 0.01
        yield {'setting': setting, 'least exponent': exponents.min().item(),
               'largest exponent': exponents.max().item(),
               '= with PreNorm or MidNorm' if normed else '!= with neither': agree}

def logits(X, W_q, W_k):
    """P / sqrt(d_q), P = X^T W_q^T W_k X."""
    return (W_q @ X).T @ W_k @ X / math.sqrt(len(W_q))

def attention_module(W_q, W_k, W_v):
    """
    The paper's Y^T = (W_v X A)^T, A = softmax(P / sqrt(d_q)) down the columns, by model.py's Attention with
    one head, no mask and W_o = I. What everybody calls queries, and model.py too, are the paper's keys.
    """
    attn = Attention(GPTConfig(n_embd=len(W_q), n_head=1, qk_norm=False, flash=False)).double()
    attn.causal = False
    with torch.no_grad():
        attn.c_attn.weight.copy_(torch.cat((W_k, W_q, W_v)))
        attn.c_proj.weight.copy_(eye(len(W_q)))
    return attn

def softmax_jacobian(A):
    """J = blockdiag(diag(A_:,1) - A_:,1 A_:,1^T, ..., diag(A_:,n) - A_:,n A_:,n^T)."""
    return torch.block_diag(*(a.diag() - a.outer(a) for a in A.T))

def attention_jacobian(X, W_q, W_k, W_v, A, J):
    """The right side of equation 5."""
    return kron(A.T, W_v) + kron(eye(T), W_v @ X) @ J / math.sqrt(len(W_q)) @ (
        times_commutation(kron(X.T @ W_k.T @ W_q, eye(T)), *X.shape) + kron(eye(T), X.T @ W_q.T @ W_k))

def equation_5(d):
    """
    dvec(Y)/dvec(X) = (A^T (x) W_v)
                    + (I_n (x) W_v X) J / sqrt(d_q) ((X^T W_k^T W_q (x) I_n) C + (I_n (x) X^T W_q^T W_k)),
    C the commutation matrix. J takes A by columns, so the softmax runs down those of P = Q^T K. Against it:
    W_q and W_k by model.py's names.
    """
    X, (W_q, W_k, W_v) = randn(d, T), matrices(d, d, d, d)
    A = logits(X, W_q, W_k).softmax(0)
    said = attention_jacobian(X, W_q, W_k, W_v, A, softmax_jacobian(A))
    yield {'=': error(jacobian(attention_module(W_q, W_k, W_v), X.T[None]), said),
           '!= names of model.py': error(jacobian(attention_module(W_k, W_q, W_v), X.T[None]), said)}

def proposition_2(d):
    """
    'If X' = g * X', PreNorm first, 'then we have dvec(Y)/dvec(X) = dvec(Y')/dvec(X').' The chain rule has
    dvec(Y')/dvec(X') = dvec(Y)/dvec(X) (diag(g) (x) I)^-1.
    """
    attn, norm = attention_module(*matrices(d, d, d, d)), rms_norm(d)
    x, g = randn(1, T, d), randn(T).exp()
    gx, over_g = g[:, None] * x, kron((1 / g).diag(), eye(d))

    def y(x):
        return attn(norm(x))
    yield {'!= wrt X, as printed': error(jacobian(y, gx), jacobian(y, x)),
           '= wrt PreNorm(X)': error(jacobian(attn, norm(gx)), jacobian(attn, norm(x))),
           '= wrt X, over g': error(jacobian(y, gx), jacobian(y, x) @ over_g)}

def random_ffn(d, kind='normal'):
    """model.py's FFN with some kind of weights. 'spectrum 1/i': with a few large singular values."""
    ffn = FFN(GPTConfig(n_embd=d)).double()
    for w in (ffn.c_fc.weight.data, ffn.c_proj.weight.data):
        nn.init.xavier_normal_(w)
        if kind == 'signs':
            w.sign_()
        if kind == 'spectrum 1/i':
            u, s, v = torch.linalg.svd(w, full_matrices=False)
            w.copy_(u / torch.arange(1, d + 1) @ v)
    return ffn

def slope(act, h):
    """act'(h); for ReLU it is the paper's indicator 1(h > 0)."""
    return grad(lambda h: act(h).sum())(h)

def ffn_output(ffn, x, act):
    """W_2 act(W_1 x), with ReLU equation 6; model.py's FFN itself has GELU."""
    return ffn.c_proj(act(ffn.c_fc(x)))

def ffn_jacobian(ffn, x, act):
    """W_2 diag(act'(W_1 x)) W_1."""
    return ffn.c_proj.weight @ (slope(act, ffn.c_fc(x))[:, None] * ffn.c_fc.weight)

def equation_7(d):
    """
    dy/dx = sqrt(d) diag(gamma) (I - z z^T / |z|_2^2) W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2 for
    y = RMSNorm(z), with ReLU, as printed; for model.py's GELU its slope takes the place of the indicator.
    """
    ffn, norm, x = random_ffn(d), rms_norm(d), randn(d)

    def compare(f, act):
        said = norm_jacobian(norm, f(x)) @ ffn_jacobian(ffn, x, act)
        return error(jacobian(lambda x: norm(f(x)), x), said)
    yield {'= ReLU': compare(partial(ffn_output, ffn, act=F.relu), F.relu),
           '= GELU, its slope': compare(ffn, F.gelu), '!= GELU, the indicator': compare(ffn, F.relu)}

def proposition_3(d):
    """
    W = W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2: for high-dimensional, random W_1, W_2 and x its
    singular values 'will be only related to the shape of W_1 and W_2, and [...] independent to the
    magnitude'. So the largest |x| sigma is the same for normal entries and for signs. Against it: GELU, and
    a spectrum 1/i.
    """
    def W(ffn, x, act):
        return ffn_jacobian(ffn, x, act) / ffn_output(ffn, x, act).norm()

    def largest(kind):
        ffn, x = random_ffn(d, kind), randn(d)
        return (x.norm() * torch.linalg.matrix_norm(W(ffn, x, F.relu), 2)).item()
    ffn, x = random_ffn(d), randn(d)
    large = copy.deepcopy(ffn)
    large.c_fc.weight.data.mul_(30)
    large.c_proj.weight.data.div_(100)
    normal, signs, falling = (torch.tensor([largest(kind) for _ in range(20)])
                              for kind in ('normal', 'signs', 'spectrum 1/i'))
    yield {'= ReLU, 30 W_1, W_2 / 100': error(W(large, x, F.relu), W(ffn, x, F.relu)),
           '= ReLU, 2 x: half': error(W(ffn, 2 * x, F.relu), W(ffn, x, F.relu) / 2),
           '!= GELU, 30 W_1, W_2 / 100': error(W(large, x, F.gelu), W(ffn, x, F.gelu)),
           'largest sigma': mean(normal), 'signs': mean(signs), '= the same': agrees(normal, signs),
           'spectrum 1/i': mean(falling), '!= the same': agrees(normal, falling)}

def proposition_4(d):
    """
    'If z^{l+1} in Equation 8 is very large, then it will significantly decrease the gradient', as
    dx^{l+1}/dz^{l+1} = sqrt(d) / |z| (I - z z^T / |z|_2^2), x^{l+1} = PostNorm(z^{l+1}).
    """
    plain, norm, z = RMSNorm(d, 0.0).double(), rms_norm(d), randn(d)
    said = norm_jacobian(plain, z)
    yield {'= gains of 1': error(jacobian(plain, z), said),
           '!= other gains': error(jacobian(norm, z), said),
           '= with diag(gamma)': error(jacobian(norm, z), norm_jacobian(norm, z)),
           '= 1000 z: a thousandth': error(jacobian(norm, 1000 * z), jacobian(norm, z) / 1000)}

def equation_11(d):
    """
    P'_ij = q'_i^T k'_j;
    dP'_ij/dx = sqrt(d_h) diag(gamma_q) k'_j^T (I - q'_i q'_i^T / |q'_i|_2^2) W_q / |W_q x_i|_2
              + sqrt(d_h) diag(gamma_k) q'_i^T (I - k'_j k'_j^T / |k'_j|_2^2) W_k / |W_k x_j|_2.
    diag(gamma_q) cannot stand left of the row k'_j^T, so it is read behind it. i = j here. Repaired:
    q = W_q x, as in A.3, in the place of q' in the projector.
    """
    W_q, W_k = matrices(d, d // 2, d // 2)
    q_norm, k_norm, x = rms_norm(d // 2), rms_norm(d // 2), randn(d)
    q, k = W_q @ x, W_k @ x
    measured = jacobian(lambda x: q_norm(W_q @ x) @ k_norm(W_k @ x), x)[0]

    def line(other, norm, W, v):
        return math.sqrt(len(W)) * other @ norm.weight.diag() @ projector(v) @ W / (W @ x).norm()
    printed = line(k_norm(k), q_norm, W_q, q_norm(q)) + line(q_norm(q), k_norm, W_k, k_norm(k))
    repaired = line(k_norm(k), q_norm, W_q, q) + line(q_norm(q), k_norm, W_k, k)
    yield {'!= as printed': error(measured, printed), '= repaired': error(measured, repaired)}

def proposition_5(d):
    """
    'When all W_q, W_k and x are high-dimensional and random, in Equation 11, the gradient term of dP'_ij/dx
    is independent of the magnitudes W_q and W_k.' So the Jacobians of all P'_ij at (100 W_q, W_k / 50) are
    the same. The limit: one row of W_q 100 times as large.
    """
    W_q, W_k = matrices(d, d, d)
    q_norm, k_norm, x = rms_norm(d), rms_norm(d), randn(T, d)

    def J(W_q, W_k):
        return jacobian(lambda x: q_norm(x @ W_q.T) @ k_norm(x @ W_k.T).T, x)
    one_row = W_q.clone()
    one_row[0] *= 100
    yield {'=': error(J(100 * W_q, W_k / 50), J(W_q, W_k)),
           '!= one row of W_q': error(J(one_row, W_k), J(W_q, W_k))}

# -----------------------------------------------------------------------------
# verdicts

SENSE = 'holds in a sense'
STATEMENTS = {
    theorem_1: 'holds', theorem_2: SENSE, equation_3: SENSE, proposition_1: SENSE, equation_5: 'holds',
    proposition_2: SENSE, equation_7: 'holds', proposition_3: SENSE, proposition_4: 'holds',
    equation_11: 'misprint', proposition_5: 'holds'}

def stands(column, value):
    """Whether a cell of a table is as its column says."""
    if column.startswith('!='):
        return not value if isinstance(value, bool) else abs(value) > 0.01
    if column.startswith('='):
        return value if isinstance(value, bool) else abs(value) < 1e-10
    return True

def check(widths, statements=STATEMENTS):
    """Run statements, each from the same seed; returns {name: (verdict, rows)}."""
    results = {}
    for statement in statements:
        name = statement.__name__.replace('_', ' ').capitalize()
        torch.manual_seed(seed)
        rows = [{'d': d, **row} for d in widths for row in statement(d)]
        verdict = STATEMENTS[statement]
        if not all(stands(*cell) for row in rows for cell in row.items()):
            verdict = 'does not hold'
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = []
        for row in rows:
            cells = (row.get(column, '') for column in columns)
            lines.append([f'{v:.3g}' if isinstance(v, float) else v for v in cells])
        print_table(f'{name}: {verdict}', columns, lines)
        results[name] = verdict, rows
    return results

if __name__ == '__main__':
    configure(globals())
    even = r'([468]|[1-9]\d*[02468])'  # two heads, and more than one direction in each
    if not re.fullmatch(f'{even}(,{even})*', widths):
        fail(f'widths={widths} is not a list of even numbers from 4 on. Use --widths=16,64.')
    results = check([int(d) for d in widths.split(',')])
    verdicts = [[name, verdict] for name, (verdict, _) in results.items()]
    print_table('verdicts', ['statement', 'verdict'], verdicts)
