"""
The paper's theorems 1 and 2, propositions 1 to 5 and equations 3, 5, 7, 11 to 17 as small experiments: what
each says, what autograd measures on the modules of model.py, and whether the two agree.

    python -m experiments.propositions        a table over widths and a verdict for each; half a minute

Letters are the paper's: X is (d, n), a column for each token; vec stacks columns; dy/dx has a row for each
entry of y (numerator layout); (x) is the Kronecker product. The code's x (B, T, C) is X^T: in memory it is
vec(X). A number without a name is the error |measured - said| / |said|.

Each statement yields the rows of its table. STATEMENTS says which columns have to be right and which wrong:
an identity is right below 1e-10 (float64 leaves 1e-16 to 1e-14), a mean within four standard errors of what
is said. Gains are random: with gains of 1 many a wrong formula is right. results/theory.md says in words what
the numbers mean.
"""

import math
from collections import namedtuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import grad, jacrev

from configurator import configure
from model import FFN, GPT, SETTINGS, Attention, Block, GPTConfig, RMSNorm

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
    return ((measured - said).norm() / said.norm()).item()  # Frobenius norms


def mean_se(samples):
    """Mean and standard error of independent samples."""
    return samples.mean().item(), samples.std().item() / math.sqrt(samples.numel())


def agrees(samples, said):
    mean, se = mean_se(samples)
    return abs(mean - said) <= 4 * se + 1e-12 * said  # the last: some statistics vary by rounding alone


def vec(M):
    return M.T.flatten()


def kron(a, b):
    return torch.kron(a.contiguous(), b.contiguous())  # torch's own takes no transposed views


def times_commutation(B, d, n):
    """B C with the commutation matrix C of (d, n), C vec(M) = vec(M^T): B's columns in another order."""
    return B.view(-1, d, n).transpose(1, 2).reshape(-1, d * n)


def projector(v):
    """I - v v^T / |v|^2."""
    return eye(len(v)) - v.outer(v) / (v @ v)

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


def theorem_1(widths):
    """
    x, y isotropic, independent: E |x|_2^2 = d, E <x, y>^2 = d, and |x|_2 ~ sqrt(d) 'with high probability':
    near, how often |x| is within 10 % of sqrt(d).
    """
    for d in widths:
        for kind in KINDS:
            x, y = isotropic(kind, d), isotropic(kind, d)
            size, dot = x.square().sum(1) / d, (x * y).sum(1) / math.sqrt(d)
            yield {'d': d, 'x': kind, 'E <x, x> / d': mean_se(size)[0], '+-': mean_se(size)[1],
                   'E <x, y>^2 / d': mean_se(dot.square())[0], '+- ': mean_se(dot.square())[1],
                   'means as said': agrees(size, 1) and agrees(dot.square(), 1),
                   'near': ((size.sqrt() - 1).abs() < 0.1).double().mean().item()}


def theorem_2(widths):
    """
    xb = x / |x|_2, yb = y / |y|_2 for the x and y of theorem 1 'tend to be almost orthogonal': d E cos^2 = 1.
    """
    for d in widths:
        for kind in KINDS:
            cos = F.cosine_similarity(isotropic(kind, d), isotropic(kind, d))
            mean, se = mean_se(cos.square() * d)
            said = 'x isotropic only' if kind == 'rare' else 'xb isotropic'
            yield {'d': d, 'x': kind, 'd E cos^2': mean, '+-': se, said: agrees(cos.square() * d, 1),
                   'aligned': (cos.abs() > 0.99).double().mean().item()}


def rms_norm_jacobian(widths):
    """
    dRMSN(x)/dx = sqrt(d) / sqrt(|x|_2^2 + eps) diag(gamma) (I - x x^T / (|x|_2^2 + eps)),
    where eps is d times torch's.
    """
    for d in widths:
        for eps in (1e-6, 0.1):
            x, norm = randn(d), rms_norm(d, eps)
            row = {'d': d, 'eps': eps}
            for name, eps_said in (('error', d * eps), ('eps taken for the same', eps)):
                size = x @ x + eps_said
                said = math.sqrt(d) / size.sqrt() * norm.weight.diag() @ (eye(d) - x.outer(x) / size)
                row[name] = error(jacobian(norm, x), said)
            yield row

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
def sums_of_branches(setting, d):
    """
    Of a network, and of one with the same f in all layers: means of r, of (r - 1)^2 and of what is said of
    that, 2 (1 - sum p^2) / d, p the terms' shares of the sum.
    """
    blocks, x0, found = list(small_gpt(setting, d).blocks), randn(1, 16, d), []
    for layers in (blocks, blocks[:1] * 4):
        x, terms = residual_stream(layers, x0)
        squares = terms.square().sum(-1)
        p, r = squares / squares.sum(0), x.square().sum(-1) / squares.sum(0)
        found += [r.mean(), (r - 1).square().mean(), 2 * (1 - p.square().sum(0)).mean() / d]
    return torch.stack(found)


def equation_3(widths):
    """
    |x^{l+1}|_2 ~ sqrt(|x^0|_2^2 + |f(x^0)|_2^2 + ... + |f(x^l)|_2^2), as cos^2 = 1 / d for each two terms:
    r = |x^L|^2 / (the sum of squares) has E r = 1. Against it: one f for all layers, and an f(x) of -x.
    """
    for setting in ('S1', 'S5'):
        for d in widths:
            r, spread, said, shared, *_ = torch.stack([sums_of_branches(setting, d) for _ in range(20)]).T
            yield {'setting': setting, 'd': d, 'E r': mean_se(r)[0], '+-': mean_se(r)[1],
                   'rms of r - 1': spread.mean().sqrt().item(), 'said': said.mean().sqrt().item(),
                   'both as said': agrees(r, 1) and agrees(spread / said, 1),
                   'E r, one f for all layers': shared.mean().item()}
    ffn, x = FFN(GPTConfig(n_embd=d)).double(), randn(d)
    nn.init.zeros_(ffn.c_fc.weight).data[:2 * d] = torch.cat((eye(d), -eye(d)))
    nn.init.zeros_(ffn.c_proj.weight).data[:, :2 * d] = torch.cat((-eye(d), eye(d)), 1)
    z = relu_ffn(ffn, x)  # relu(x) - relu(-x) is x
    yield {'setting': 'f(x) = -x', 'd': d, 'E r': ((x + z).square().sum() / (x @ x + z @ z)).item()}


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


def proposition_1(widths):
    """
    'If the norm of x^0 is very large, it will lead to gradient vanishing problem in all subsequent layers,
    provided that InputNorm is not used': gradients go with |x^0|^-1. Measured: that exponent between 1e3
    sqrt(d) and 1e4 sqrt(d) for all matrices of 4 blocks. 'S5 without' has no InputNorm.
    """
    for setting in ('S1', 'S2', 'S3', 'S5 without', 'S5', 'PostLN', 'NoNorm'):
        for d in widths:
            flags = {'input_norm': False} if 'without' in setting else {}
            model = small_gpt(setting.split()[0], d, **flags)
            large, huge = (matrix_gradients(model, scale) for scale in (1e3, 1e4))
            alive = huge > 0  # without a norm before it the softmax has nothing left in float64
            slope = (huge / large)[alive].log10()
            said = 0 if setting in ('S3', 'S5') else -1
            where = 'without both' if setting in ('PostLN', 'NoNorm') else 'with PreNorm or MidNorm'
            # 8 branches of a thousandth of x^0 may move exponents by log10(1.008) = 0.003
            yield {'setting': setting, 'd': d, 'least exponent': slope.min().item(),
                   'largest exponent': slope.max().item(), where: (slope - said).abs().max().item() < 0.01}

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


def equation_5(widths):
    """
    dvec(Y)/dvec(X) = (A^T (x) W_v)
                    + (I_n (x) W_v X) J / sqrt(d_q) ((X^T W_k^T W_q (x) I_n) C + (I_n (x) X^T W_q^T W_k)),
    J = blockdiag(diag(A_:,1) - A_:,1 A_:,1^T, ...), C the commutation matrix. J takes A by columns, so the
    softmax runs down those of P = Q^T K: model.py's W_q and W_k, as everybody's, are its W_k and W_q.
    """
    for d in widths:
        X = randn(d, T)

        def compare(f, W, causal=False):
            A = column_softmax(logits(X, *W[:2]), causal)
            return error(jacobian(f, X.T[None]), attention_jacobian(X, *W, A, softmax_jacobian(A)))
        narrow, W = matrices(d, d // 2, d // 2, d // 4), matrices(d, d, d, d)
        W_q, W_k, W_v = W
        yield {'d': d, 'the function': compare(lambda x: self_attention(x, *narrow), narrow),
               'Attention, names exchanged': compare(attention_module(W_k, W_q, W_v), W),
               'and causal': compare(attention_module(W_k, W_q, W_v, causal=True), W, causal=True),
               'not exchanged': compare(attention_module(*W), W)}


def proposition_2(widths):
    """
    'If X' = g * X', PreNorm first, 'then we have dvec(Y)/dvec(X) = dvec(Y')/dvec(X').' The chain rule has
    dvec(Y')/dvec(X') = dvec(Y)/dvec(X) (diag(g) (x) I)^-1 and, remark 2, equal gradients of the weights.
    """
    for d in widths:
        block = Block(GPTConfig(**SETTINGS['S1'], norm='rms', n_embd=d, n_head=2, flash=False)).double()
        attn, norm = block.attn, rms_norm(d)
        x, g = randn(1, T, d), randn(T).exp()
        gx, over_g = g[:, None] * x, kron((1 / g).diag(), eye(d))

        def y(x):
            return attn(norm(x))

        def weight_gradient(x):
            return torch.autograd.grad(y(x).sin().sum(), attn.c_attn.weight)[0]
        yield {'d': d, 'Y': error(y(gx), y(x)), 'wrt X, as printed': error(jacobian(y, gx), jacobian(y, x)),
               'wrt PreNorm(X)': error(jacobian(attn, norm(gx)), jacobian(attn, norm(x))),
               'wrt X, over g': error(jacobian(y, gx), jacobian(y, x) @ over_g),
               'weights': error(weight_gradient(gx), weight_gradient(x))}

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


def equation_7(widths):
    """
    dy/dx = sqrt(d) diag(gamma) (I - z z^T / |z|_2^2) W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2 for
    y = RMSNorm(z), with ReLU, as printed; for model.py's GELU its slope takes the place of the indicator.
    """
    for d in widths:
        ffn, norm, x = random_ffn(d), rms_norm(d), randn(d)

        def compare(act, slope):
            z = act(ffn, x)
            said = math.sqrt(d) * norm.weight.diag() @ projector(z) @ ffn_jacobian(ffn, x, slope) / z.norm()
            return error(jacobian(lambda x: norm(act(ffn, x)), x), said)
        yield {'d': d, 'ReLU': compare(relu_ffn, relu_slope),
               'GELU, its slope': compare(gelu_ffn, gelu_slope),
               'GELU, the indicator': compare(gelu_ffn, relu_slope)}


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


def proposition_3(widths):
    """
    W = W_2 diag(1(W_1 x > 0)) W_1 / |W_2 ReLU(W_1 x)|_2: for high-dimensional, random W_1, W_2 and x its
    singular values 'will be only related to the shape of W_1 and W_2, and [...] independent to the
    magnitude'. Half of the 4 d rows of W_1 are alive, so the largest |x| sigma should tend to
    product_edge(2), their rms to 1. Against it: a spectrum 1/i, and an x searched to make |z| small.
    """
    def W(act, slope, x, a=1.0, b=1.0):
        torch.manual_seed(seed)  # the same weights each time
        ffn = random_ffn(len(x), a, b)
        return ffn_jacobian(ffn, x, slope) / act(ffn, x).norm()
    relu, gelu = (relu_ffn, relu_slope), (gelu_ffn, gelu_slope)
    for d in widths:
        x = randn(d)
        yield {'d': d, 'ReLU, 30 W_1, W_2 / 100': error(W(*relu, x, 30, 0.01), W(*relu, x)),
               'ReLU, 2 x: half': error(W(*relu, 2 * x), W(*relu, x) / 2),
               'GELU, W_2 / 100': error(W(*gelu, x, 1, 0.01), W(*gelu, x)),
               'GELU, 30 W_1': error(W(*gelu, x, 30), W(*gelu, x))}
    edge = product_edge(2.0)
    for d in widths:
        for kind in ('normal', 'uniform', 'signs', 'spectrum 1/i', 'x searched'):
            samples = []
            for _ in range(5 if kind == 'x searched' else 20):
                ffn, x = weights_and_input(kind, d)
                with torch.no_grad():
                    sigma = torch.linalg.svdvals(ffn_jacobian(ffn, x, relu_slope)) / relu_ffn(ffn, x).norm()
                samples.append(x.norm() * torch.stack((sigma[0], sigma.square().mean().sqrt())))
            (largest, largest_se), (rms, rms_se) = map(mean_se, torch.stack(samples).T)
            # the edge of a spectrum is reached like d^(-2/3), its mean like 1 / d
            near = abs(largest / edge - 1) <= d ** (-2 / 3) + 4 * largest_se / edge \
                and abs(rms - 1) <= 1 / d + 4 * rms_se
            row = {'d': d, 'weights': kind, 'largest sigma |x|': largest, '+-': largest_se, 'limit': edge,
                   'rms sigma |x|': rms, '+- ': rms_se}
            yield row | ({'from the shape': near} if kind in ('normal', 'uniform', 'signs') else {})

# -----------------------------------------------------------------------------
# section 3.2.4: PostNorm

def proposition_4(widths):
    """
    'If z^{l+1} in Equation 8 is very large, then it will significantly decrease the gradient', as
    dx^{l+1}/dz^{l+1} = sqrt(d) / |z| (I - z z^T / |z|_2^2), x^{l+1} = PostNorm(z^{l+1}), z^{l+1} = x^l +
    f(x^l), f an FFN. At 1000 W_2: what becomes of |dx^{l+1}/dx^l| and |dL/dW_2|.
    """
    for d in widths:
        block = Block(GPTConfig(**SETTINGS['PostLN'], norm='rms', n_embd=d, n_head=2)).double()
        block.init_weights(nn.init.xavier_normal_, 1.0)
        ffn, norm, x = block.ffn, block.ffn_post_norm, randn(d)
        norm.eps = 0.0

        def gradients():
            dx = jacobian(lambda x: norm(x + ffn(x)), x).norm()
            dw, = torch.autograd.grad(norm(x + ffn(x)).sin().sum(), ffn.c_proj.weight)
            return torch.stack((dx, dw.norm())).detach()
        before, z = gradients(), x + ffn(x).detach()
        ffn.c_proj.weight.data.mul_(1000)
        dx, dw = (gradients() / before).tolist()
        said = math.sqrt(d) / z.norm() * projector(z)
        row = {'d': d, '1000 W_2: dx/dx': dx, 'dL/dW_2': dw, 'gains 1': error(jacobian(norm, z), said)}
        nn.init.normal_(norm.weight)
        yield {**row, 'other gains': error(jacobian(norm, z), said),
               'with diag(gamma)': error(jacobian(norm, z), norm.weight.diag() @ said),
               '1000 z: a thousandth': error(jacobian(norm, 1000 * z), jacobian(norm, z) / 1000)}

# -----------------------------------------------------------------------------
# section 3.2.5: QKNorm

def equation_11(widths):
    """
    P'_ij = q'_i^T k'_j;
    dP'_ij/dx = sqrt(d_h) diag(gamma_q) k'_j^T (I - q'_i q'_i^T / |q'_i|_2^2) W_q / |W_q x_i|_2
              + sqrt(d_h) diag(gamma_k) q'_i^T (I - k'_j k'_j^T / |k'_j|_2^2) W_k / |W_k x_j|_2.
    diag(gamma_q) cannot stand left of the row k'_j^T. Readings: diag(gamma) before the projector or behind;
    in the projector q' as printed, or q = W_q x as in A.3. i = j here.
    """
    for d in widths:
        W_q, W_k = matrices(d, d // 2, d // 2)
        q_norm, k_norm, x = rms_norm(d // 2), rms_norm(d // 2), randn(d)

        def line(other, norm, W, normed, behind):
            v, gamma = norm(W @ x) if normed else W @ x, norm.weight.diag()
            middle = projector(v) @ gamma if behind else gamma @ projector(v)
            return math.sqrt(len(W)) * other @ middle @ W / (W @ x).norm()

        def errors(*reading):
            q, k = q_norm(W_q @ x), k_norm(W_k @ x)
            said = line(k, q_norm, W_q, *reading) + line(q, k_norm, W_k, *reading)
            return error(jacobian(lambda x: q_norm(W_q @ x) @ k_norm(W_k @ x), x)[0], said)
        row = {'d': d, "q', before": errors(True, False), "q', behind": errors(True, True),
               'q, behind': errors(False, True), 'q, before': errors(False, False)}
        for norm in (q_norm, k_norm):
            nn.init.ones_(norm.weight)
        yield {**row, "q', gains of 1": errors(True, False)}


def proposition_5(widths):
    """
    'When all W_q, W_k and x are high-dimensional and random, in Equation 11, the gradient term of dP'_ij/dx
    is independent of the magnitudes W_q and W_k.' So the Jacobians at (100 W_q, W_k / 50) are the same.
    The limits: the model's eps and weights of a thousandth; one row of W_q 100 times as large.
    """
    for d in widths:
        attn = Attention(GPTConfig(**SETTINGS['S5'], n_embd=d, n_head=2, flash=False)).double()
        attn.q_norm, attn.k_norm = rms_norm(d // 2), rms_norm(d // 2)
        (W_q, W_k, W_v), x = matrices(d, d, d, d), randn(1, T, d)

        def P(x):
            q, k, _ = (v.view(T, 2, d // 2).transpose(0, 1) for v in attn.c_attn(x).chunk(3, -1))  # (H, T, D)
            return attn.q_norm(q) @ attn.k_norm(k).mT

        def J(f, a=1.0, b=1.0, eps=0.0):
            attn.c_attn.weight.data.copy_(torch.cat((a * W_q, b * W_k, W_v)))
            attn.q_norm.eps = attn.k_norm.eps = eps
            return jacobian(f, x)
        one_row = torch.ones(d, 1, dtype=torch.float64).index_fill(0, torch.tensor(0), 100.0)
        yield {'d': d, "dP'/dx": error(J(P, 100, 0.02), J(P)), 'dY/dX': error(J(attn, 100, 0.02), J(attn)),
               'eps, weights / 1000': error(J(P, 1e-3, 1e-3, eps=1e-6), J(P)),
               'one row of W_q': error(J(P, one_row), J(P))}

# -----------------------------------------------------------------------------
# appendix A

def equation_12(widths):
    """
    Linear attention, A = P / sqrt(d_q): equation 5 with J = I, 'magnified second-orderly by the norm of each
    column in X', so at 1000 X 1e6 times as large. And the largest singular value there with softmax.
    """
    for d in widths:
        X, (W_q, W_k, W_v) = randn(d, T), matrices(d, d // 2, d // 2, d // 4)

        def linear(x):
            return (W_v @ x[0].T @ logits(x[0].T, W_q, W_k)).T

        def largest(x):
            return torch.linalg.matrix_norm(jacobian(lambda x: self_attention(x, W_q, W_k, W_v), x), 2)
        x, said = X.T[None], attention_jacobian(X, W_q, W_k, W_v, logits(X, W_q, W_k), eye(T * T))
        yield {'d': d, 'error': error(jacobian(linear, x), said),
               '1000 X: 1e6 times': error(jacobian(linear, 1000 * x), 1e6 * said),
               '1000 X with softmax: times': (largest(1000 * x) / largest(x)).item()}


def equations_13_14_15(widths):
    """
    dL/dvec(W_q) = dL/dvec(Y) (I_n (x) W_v X) J / sqrt(d_q) ((W_k X)^T (x) X^T) C           (13)
    dL/dvec(W_k) = dL/dvec(Y) (I_n (x) W_v X) J / sqrt(d_q) (X^T (x) (W_q X)^T)             (14)
    dL/dvec(W_v) = dL/dvec(Y) ((A^T X^T) (x) I)                                             (15)
    L = sum sin(Y), for the paper's function and for model.py's Attention (names exchanged, see equation 5).
    Half the widths: the matrix of equation 15 has n d^3 entries.
    """
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
        yield row


def equation_16(widths):
    """
    W (m, n), x of i.i.d. entries, mean 0, variances sigma_W^2 and sigma_x^2; W_1 = W / |y|, y = W x:
    sigma_1(W_1) ~ (sqrt(m) + sqrt(n)) sigma_W / sqrt(m n sigma_W sigma_x)       [middle]
                 = (sqrt(m) + sqrt(n)) / sqrt(m n sigma_x).                      [right]
    A few lines before, the proof has |y| ~ sqrt(m n) sigma_W sigma_x, which leads to
                   (sqrt(m) + sqrt(n)) / (sqrt(m n) sigma_x).                    [repaired]
    Against it: entries without a fourth moment (Student's t, 3 degrees).
    """
    sigma_W, sigma_x = 0.5, 3.0
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
            off = mean / (roots / (math.sqrt(m * n) * sigma_x)) - 1
            row = {'m': m, 'n': n, 'entries': kind, 'sigma_1(W_1)': mean, 'repaired off': off,
                   '+-': se / mean, 'E <y, y>': size, '+- ': size_se}
            if kind != 'Student':  # the edge of a spectrum is reached like n^(-2/3)
                row |= {'middle off': mean / (roots * sigma_W / math.sqrt(m * n * sigma_W * sigma_x)) - 1,
                        'right off': mean / (roots / math.sqrt(m * n * sigma_x)) - 1,
                        'both as said': abs(off) <= n ** (-2 / 3) + 4 * se / mean
                        and abs(size - 1) <= 4 * size_se}
            yield row


def equation_17(widths):
    """
    dvec(Y)/dvec(X) = (A'^T (x) W_v) + (I_n (x) W_v X) J / sqrt(d_h)
                      ((K'^T (x) I) C_dN J_Q^Q' (I (x) W_q) + (I (x) Q'^T) J_K^K' (I (x) W_k)),
    J_Q^Q' = blockdiag(dq'_i/dq_i), dq'_i/dq_i = sqrt(d_h) / |q_i| diag(gamma_q) (I - q_i q_i^T / |q_i|_2^2).
    A.3 also prints J_Q^Q' as dvec(Q')/dvec(Q'), which would be I, and calls it 'relatively independent to the
    magnitude of Q': J_Q^Q' at 2 Q.
    """
    for d in widths:
        X, (W_q, W_k, W_v), q_norm, k_norm = randn(d, T), matrices(d, d, d, d), rms_norm(d), rms_norm(d)
        Q, K = q_norm((W_q @ X).T).T, k_norm((W_k @ X).T).T  # Q', K'

        def norm_jacobian(norm, Q):
            gamma = math.sqrt(d) * norm.weight.diag()
            return torch.block_diag(*(gamma / q.norm() @ projector(q) for q in Q.T))

        def compare(J_Q, J_K, causal=False):
            attn = attention_module(W_k, W_q, W_v, causal, qk_norm=True)
            attn.q_norm, attn.k_norm = k_norm, q_norm
            A = column_softmax(Q.T @ K / math.sqrt(d), causal)
            dP_dX = (times_commutation(kron(K.T, eye(T)), d, T) @ J_Q @ kron(eye(T), W_q)
                     + kron(eye(T), Q.T) @ J_K @ kron(eye(T), W_k))
            return error(jacobian(attn, X.T[None]), kron(A.T, W_v)
                         + kron(eye(T), W_v @ X) @ softmax_jacobian(A) / math.sqrt(d) @ dP_dX)
        J_Q, J_K = norm_jacobian(q_norm, W_q @ X), norm_jacobian(k_norm, W_k @ X)
        yield {'d': d, 'error': compare(J_Q, J_K), 'causal': compare(J_Q, J_K, causal=True),
               "J_Q^Q' = I": compare(eye(T * d), eye(T * d)),
               "J_Q^Q' at 2 Q: half": error(norm_jacobian(q_norm, 2 * W_q @ X), J_Q / 2)}

# -----------------------------------------------------------------------------
# verdicts

HOLDS, SENSE, MISPRINT = 'holds', 'holds in a sense', 'misprint'
Statement = namedtuple('Statement', 'name rows verdict right wrong', defaults=[()])
STATEMENTS = (  # right, wrong: columns that have to be so for the verdict to stand
    Statement('Theorem 1', theorem_1, HOLDS, ['means as said']),
    Statement('Theorem 2', theorem_2, SENSE, ['xb isotropic'], ['x isotropic only']),
    Statement('RMSNorm Jacobian', rms_norm_jacobian, HOLDS, ['error']),
    Statement('Equation 3', equation_3, SENSE, ['both as said']),
    Statement('Proposition 1', proposition_1, SENSE, ['with PreNorm or MidNorm'], ['without both']),
    Statement('Equation 5', equation_5, HOLDS, ['the function', 'Attention, names exchanged', 'and causal'],
              ['not exchanged']),
    Statement('Proposition 2', proposition_2, SENSE, ['Y', 'wrt PreNorm(X)', 'wrt X, over g', 'weights'],
              ['wrt X, as printed']),
    Statement('Equation 7', equation_7, HOLDS, ['ReLU', 'GELU, its slope'], ['GELU, the indicator']),
    Statement('Proposition 3', proposition_3, SENSE,
              ['ReLU, 30 W_1, W_2 / 100', 'ReLU, 2 x: half', 'from the shape'], ['GELU, 30 W_1']),
    Statement('Proposition 4', proposition_4, HOLDS, ['gains 1', 'with diag(gamma)', '1000 z: a thousandth'],
              ['other gains']),
    Statement('Equation 11', equation_11, MISPRINT, ['q, before', "q', gains of 1"],
              ["q', before", "q', behind", 'q, behind']),
    Statement('Proposition 5', proposition_5, HOLDS, ["dP'/dx", 'dY/dX'], ['one row of W_q']),
    Statement('Equation 12', equation_12, HOLDS, ['error', '1000 X: 1e6 times']),
    Statement('Equations 13, 14, 15', equations_13_14_15, HOLDS,
              ['13', '14', '15', '13, Attention', '14, Attention', '15, Attention']),
    Statement('Equation 16', equation_16, MISPRINT, ['both as said'], ['middle off', 'right off']),
    Statement('Equation 17', equation_17, HOLDS, ['error', 'causal'], ["J_Q^Q' = I"]),
)


def show(rows):
    """Print a list of dicts as a table, with the columns of all of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print('| ' + ' | '.join(columns) + ' |\n|' + '---|' * len(columns))
    for row in rows:
        cells = (row.get(column, '') for column in columns)
        print('| ' + ' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in cells) + ' |')


def is_right(value):
    return value if isinstance(value, bool) else abs(value) < 1e-10


def is_wrong(value):
    return not value if isinstance(value, bool) else abs(value) > 0.01


def check(statements=STATEMENTS, widths=WIDTHS):
    """Run statements, each from the same seed; returns {name: (verdict, rows)}."""
    results = {}
    for name, measure, verdict, right, wrong in statements:
        torch.manual_seed(seed)
        rows = list(measure(widths))
        show(rows)
        stands = all(is_right(row[column]) for column in right for row in rows if column in row) \
            and all(is_wrong(row[column]) for column in wrong for row in rows if column in row)
        results[name] = verdict if stands else 'does not hold', rows
        print(f'{name}: {results[name][0]}\n', flush=True)
    return results


if __name__ == '__main__':
    configure(globals())
    results = check()
    show([{'statement': name, 'verdict': verdict} for name, (verdict, _) in results.items()])
