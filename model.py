"""
The networks: GPT-2 and L-DNT in one class, ViT and V-DNT in another. Every norm is a flag.

Paper: "DNT: a Deeply Normalized Transformer that can be trained by Momentum SGD", arXiv:2507.17501.
One block, norms by position (figure 3). A norm that is off is an nn.Identity, so forward has no branches:

    x = input_norm(wte(idx) + wpe(pos))
    x = post_norm(x + mid_norm(attention(pre_norm(x))))      attention normalizes q and k when qk_norm
    x = post_norm(x + mid_norm(ffn(ffn_pre_norm(x))))        mid and post: one norm each per sub-block
    logits = lm_head(final_norm(x))

Letters in shapes: B batch, T time (tokens), C channels (n_embd), H heads, D = C / H, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

NORMS = ('input_norm', 'pre_norm', 'ffn_pre_norm', 'mid_norm', 'qk_norm', 'post_norm', 'final_norm')


def norm_flags(*row):
    return {name: bool(flag) for name, flag in zip(NORMS, row)}


# Which norm sits where. S1 to S5: figure 7 and section 4.4 of the paper
SETTINGS = {
    #                    input  pre  ffn_pre  mid  qk  post  final
    'S1':     norm_flags(    0,   1,       1,   0,  0,    0,     1),  # GPT-2, ViT: pre-norm
    'S2':     norm_flags(    0,   1,       1,   0,  1,    0,     1),
    'S3':     norm_flags(    1,   1,       1,   0,  1,    0,     1),
    'S4':     norm_flags(    1,   1,       1,   1,  1,    0,     1),
    'S5':     norm_flags(    1,   1,       0,   1,  1,    0,     1),  # the DNT default
    'PostLN': norm_flags(    0,   0,       0,   0,  0,    1,     0),  # Vaswani et al., arXiv:1706.03762
    'PeriLN': norm_flags(    0,   1,       1,   1,  0,    0,     1),  # arXiv:2502.02732
    'OLMo2':  norm_flags(    0,   0,       0,   1,  1,    0,     1),  # arXiv:2501.00656, see Attention
    'NoNorm': norm_flags(    0,   0,       0,   0,  0,    0,     0),
}

# -----------------------------------------------------------------------------
# norms

class RMSNorm(nn.Module):
    """
    gamma * x / sqrt(mean(x^2) + eps) over the last axis, as in torch. The paper adds its eps to the sum of
    the squares, gamma * sqrt(d) x / sqrt(|x|^2 + eps). At rows of RMS 1e-3, ours halves |y|^2; the paper's
    does not.
    """

    def __init__(self, ndim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.eps = eps

    def forward(self, x):
        # autocast treats rms_norm differently on CPU, on CUDA before torch 2.12 and after it. Without
        # autocast, and with the gain in x's dtype, it is the same everywhere: x's dtype in and out, fp32
        # inside
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last axis, without beta if bias is False."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):  # as in RMSNorm
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)


class DyT(nn.Module):
    """Dynamic tanh, gamma * tanh(alpha * x) + beta, in place of a norm (arXiv:2503.10622)."""

    def __init__(self, ndim):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([0.5]))  # (1,), not (): then bfloat16 inputs become float32
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim))

    def forward(self, x):
        return (self.weight * torch.tanh(self.alpha * x) + self.bias).to(x.dtype)


def make_norm(config, on, ndim):
    """The norm of config.norm over ndim channels where the flag is on, an identity where it is off."""
    if not on:
        return nn.Identity()
    if config.norm == 'dyt':
        return DyT(ndim)
    eps = {} if config.norm_eps is None else {'eps': config.norm_eps}
    return RMSNorm(ndim, **eps) if config.norm == 'rms' else LayerNorm(ndim, bias=config.bias, **eps)

# -----------------------------------------------------------------------------
# the block

class Attention(nn.Module):
    """
    softmax(q k^T / sqrt(D)) v per head, causal or not. qk_norm normalizes q and k over the D channels of each
    head (equations 9, 10). OLMo 2 normalizes them over the full width C.
    """

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f'n_embd={config.n_embd} does not divide into n_head={config.n_head} heads')
        C = config.n_embd
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.causal = config.causal
        self.flash = config.flash
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias and config.qkv_bias)  # W_q, W_k and W_v, stacked
        self.c_proj = nn.Linear(C, C, bias=config.bias)  # W_o
        # one gain for the queries of all heads, one for the keys. The logit keeps its 1/sqrt(D)
        self.q_norm = make_norm(config, config.qk_norm, C // config.n_head)
        self.k_norm = make_norm(config, config.qk_norm, C // config.n_head)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)  # each (B, T, H, D)
        q = self.q_norm(q).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(k).transpose(1, 2)
        v = v.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if x.device.type == 'mps':  # attention may read transposed inputs wrongly there (pytorch#181133)
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        else:  # the same, written out
            att = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, H, T, T)
            if self.causal:
                future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
                att = att.masked_fill(future, float('-inf'))
            y = F.dropout(att.softmax(-1), dropout) @ v  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class FFN(nn.Module):
    """W_2 gelu(W_1 x), four times as wide inside."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.approximate = 'none' if config.gelu == 'exact' else 'tanh'
        self.c_fc = nn.Linear(C, 4 * C, bias=config.bias)  # W_1
        self.c_proj = nn.Linear(4 * C, C, bias=config.bias)  # W_2
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drop samples with probability p, divide the others by 1 - p."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        shape = (x.size(0),) + (1,) * (x.dim() - 1)  # (B, 1, ...)
        keep = torch.rand(shape, device=x.device) >= self.p
        return x * keep.to(x.dtype) / (1 - self.p)


class Block(nn.Module):
    """
    Attention and FFN, each with its norms and its residual connection (figures 2 and 3). config: a GPTConfig
    or a ViTConfig. InputNorm and the last norm belong to the network, which also calls init_weights().
    """

    def __init__(self, config, drop_path=0.0):
        super().__init__()
        C = config.n_embd
        self.pre_norm = make_norm(config, config.pre_norm, C)
        self.attn = Attention(config)
        self.mid_norm = make_norm(config, config.mid_norm, C)
        self.post_norm = make_norm(config, config.post_norm, C)
        self.ffn_pre_norm = make_norm(config, config.ffn_pre_norm, C)
        self.ffn = FFN(config)
        self.ffn_mid_norm = make_norm(config, config.mid_norm, C)
        self.ffn_post_norm = make_norm(config, config.post_norm, C)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x):
        x = self.post_norm(x + self.drop_path(self.mid_norm(self.attn(self.pre_norm(x)))))
        x = self.ffn_post_norm(x + self.drop_path(self.ffn_mid_norm(self.ffn(self.ffn_pre_norm(x)))))
        return x

    @torch.no_grad()
    def init_weights(self, init, scale):
        """Fill each matrix by init, times scale. W_q, W_k and W_v count as three matrices. Biases are 0."""
        for linear in (self.attn.c_attn, self.attn.c_proj, self.ffn.c_fc, self.ffn.c_proj):
            n_matrices = 3 if linear is self.attn.c_attn else 1
            for w in linear.weight.chunk(n_matrices):  # views of the weight
                init(w).mul_(scale)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)


def torch_default_(w):
    """PyTorch's own for linear layers: uniform within 1 / sqrt(fan_in), deviation 1 / sqrt(3 fan_in)."""
    return nn.init.kaiming_uniform_(w, a=math.sqrt(5))


@dataclass
class NetworkConfig:
    """The fields that GPT and ViT share: the size and the norms of setting S5."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False  # in the linear layers of the blocks and in LayerNorm
    qkv_bias: bool = True  # False: no bias on q, k and v, even where bias is True
    norm: str = 'rms'  # 'rms', 'layer' or 'dyt'
    norm_eps: float | None = None  # None: 1e-6 for RMSNorm, 1e-5 for LayerNorm
    gelu: str = 'exact'  # or 'tanh', its approximation, with which OpenAI trained GPT-2
    init: str = 'xavier'  # or 'torch': PyTorch's default for linear layers
    init_scale: float = 1.0  # multiplies the initial matrices of the blocks
    embed_std: float | None = None  # initial deviation of the embeddings. None: see GPT and ViT
    flash: bool = True  # False: attention written out, to read and to test against
    recompute_blocks: bool = False  # True: keep only the inputs of blocks; backward runs each block again
    input_norm: bool = True
    pre_norm: bool = True
    ffn_pre_norm: bool = False
    mid_norm: bool = True
    qk_norm: bool = True
    post_norm: bool = False
    final_norm: bool = True

    def __post_init__(self):
        choices = {'norm': ('rms', 'layer', 'dyt'), 'gelu': ('exact', 'tanh'), 'init': ('xavier', 'torch')}
        for key, values in choices.items():
            value = getattr(self, key)
            if value not in values:
                raise ValueError(f'{key}={value!r} is unknown. Use {" or ".join(map(repr, values))}.')

# -----------------------------------------------------------------------------
# language

@dataclass
class GPTConfig(NetworkConfig):
    """L-DNT-Small by default (setting S5). GPTConfig(**SETTINGS['S1'], norm='layer') is GPT-2."""
    block_size: int = 1024  # longest context, in tokens
    vocab_size: int = 50304  # GPT-2's 50257, padded to a multiple of 64 for speed
    tied: bool = True  # the head is the token embedding, as in GPT-2
    loss_chunk: int = 0  # tokens whose logits the loss holds at once; 0: all
    causal = True  # not a field: a GPT is always causal


class GPT(nn.Module):
    """
    GPT-2 and L-DNT. forward(idx, targets) gives (logits, loss): ids (B, T) to logits (B, T, V) and the mean
    cross entropy in nats per token (None without targets). With targets, the logits take no gradient; with
    loss_chunk, they are None. Raises ValueError where T > block_size.

    paper: equation 2 has InputNorm after the embedding; figure 3 shows no position and no norm before the
    head. here: the position is added before InputNorm, and final_norm stays, as in GPT-2.

    Standard deviation of each weight at the start (table 5: 'Xavier'):

        | weight               | shape   | std                  | at C = 768 |
        |----------------------|---------|----------------------|------------|
        | W_q, W_k, W_v (each) | (C, C)  | sqrt(2 / (C + C))    | 0.0361     |
        | W_o                  | (C, C)  | sqrt(2 / (C + C))    | 0.0361     |
        | W_1, W_2             | (4C, C) | sqrt(2 / (C + 4C))   | 0.0228     |
        | wte, untied lm_head  | (V, C)  | 0.02                 | 0.02       |
        | wpe                  | (T, C)  | 0.02                 | 0.02       |
        | biases 0, gains 1    |         |                      |            |

    paper: Xavier for all. here: W_q, W_k and W_v are three matrices to Xavier, though they are stored as one
    (that would give 0.0255). Embeddings are lookup tables without a fan-in: Xavier would give wte 0.0063 and
    wpe 0.033, and after InputNorm the network would see 97 % position. With GPT-2's 0.02, each has half.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.input_norm = make_norm(config, config.input_norm, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = make_norm(config, config.final_norm, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        config = self.config
        init = torch_default_ if config.init == 'torch' else nn.init.xavier_normal_
        std = 0.02 if config.embed_std is None else config.embed_std
        for block in self.blocks:
            block.init_weights(init, config.init_scale)
        nn.init.normal_(self.wte.weight, std=std)
        nn.init.normal_(self.wpe.weight, std=std)
        if not config.tied:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    def features(self, idx: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) to what the head reads, (B, T, C)."""
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f'{T} tokens do not fit into block_size = {self.config.block_size}')
        pos = torch.arange(T, device=idx.device)
        x = self.dropout(self.input_norm(self.wte(idx) + self.wpe(pos)))  # (B, T, C)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.config.recompute_blocks else block(x)
        return self.final_norm(x)

    def chunked_loss(self, x, targets):
        """The loss of x (N, C) and targets (N,) by chunks. Backward computes their logits again."""
        def loss(x, targets):
            return F.cross_entropy(self.lm_head(x).float(), targets, reduction='sum')
        size, total = self.config.loss_chunk, 0
        for chunk in zip(x.split(size), targets.split(size)):
            total = total + checkpoint(loss, *chunk, use_reentrant=False)
        return total / (targets >= 0).sum()

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None):
        if targets is not None and self.config.loss_chunk:
            return None, self.chunked_loss(self.features(idx).flatten(0, 1), targets.flatten())
        logits = self.lm_head(self.features(idx))  # (B, T, V)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.float().view(-1, logits.size(-1)), targets.reshape(-1))
        return logits.detach(), loss  # otherwise a compiled backward makes a gradient of zeros for the logits

    @torch.no_grad()
    def generate(self, idx: torch.Tensor, max_new_tokens: int, temperature: float = 1.0,
                 top_k: int | None = None, n_tokens: int | None = None) -> torch.Tensor:
        """
        Continue idx (B, T) by max_new_tokens sampled ids; returns all ids. temperature 0 takes the likeliest
        id. top_k samples among that many. n_tokens: only ids below it (a padded vocabulary has unused ids).
        """
        for _ in range(max_new_tokens):
            x = self.features(idx[:, -self.config.block_size:])
            logits = self.lm_head(x[:, -1]).float()[:, :n_tokens] / (temperature or 1.0)  # (B, V)
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.size(-1))).values[:, [-1]]
                logits = logits.masked_fill(logits < kth, float('-inf'))
            likeliest = logits.argmax(-1, keepdim=True)
            drawn = torch.multinomial(logits.softmax(-1), num_samples=1) if temperature else likeliest
            idx = torch.cat((idx, drawn), dim=1)
        return idx

# -----------------------------------------------------------------------------
# vision

@dataclass
class ViTConfig(NetworkConfig):
    """V-DNT-Large by default (setting S5). ViTConfig(**SETTINGS['S1'], norm='layer') is ViT-L/16."""
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    bias: bool = True  # in the blocks and in LayerNorm; patch embedding and head always have one
    image_size: int = 224
    patch_size: int = 16
    n_classes: int = 1000
    drop_path: float = 0.0  # of the last block; it grows linearly from 0 in the first, as in timm
    causal = False  # not a field: every patch sees all others


def truncated_xavier_(w):
    """
    Table 4 says 'Truncated Xavier' and no more. here: a normal distribution, cut at two of its deviations and
    widened so that the rest has Xavier's, sqrt(2 / (fan_in + fan_out)).
    """
    std = math.sqrt(2 / (w[0].numel() + w.size(0))) / 0.87962566  # the deviation of N(0, 1) within [-2, 2]
    return nn.init.trunc_normal_(w, std=std, a=-2 * std, b=2 * std)


class ViT(nn.Module):
    """
    ViT and V-DNT (Dosovitskiy et al., arXiv:2010.11929): images (B, 3, image_size, image_size) to logits
    (B, n_classes). Class token, learned positions, InputNorm, the blocks of GPT without the causal mask, the
    head on the class token. timm's ViT has LayerNorm eps 1e-6, ours 1e-5 (norm_eps).

    Matrices start as truncated Xavier, biases at 0. Class token and positions have the deviation 0.02, with
    InputNorm 0.5: InputNorm gives all tokens one length, so short ones would get huge gradients.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f'patch_size={config.patch_size} does not divide image_size={config.image_size}')
        self.config = config
        C = config.n_embd
        n = (config.image_size // config.patch_size) ** 2  # patches
        self.patch_embed = nn.Conv2d(3, C, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + n, C))
        self.input_norm = make_norm(config, config.input_norm, C)
        self.dropout = nn.Dropout(config.dropout)
        rates = [config.drop_path * i / max(1, config.n_layer - 1) for i in range(config.n_layer)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.final_norm = make_norm(config, config.final_norm, C)
        self.head = nn.Linear(C, config.n_classes)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        config = self.config
        init = torch_default_ if config.init == 'torch' else truncated_xavier_
        for block in self.blocks:
            block.init_weights(init, config.init_scale)
        for layer in (self.patch_embed, self.head):
            init(layer.weight)
            nn.init.zeros_(layer.bias)
        std = 0.5 if config.input_norm else 0.02
        if config.embed_std is not None:
            std = config.embed_std
        nn.init.normal_(self.cls_token, std=std)
        nn.init.normal_(self.pos_embed, std=std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, n, C), patches row by row
        cls_token = self.cls_token.expand(x.size(0), -1, -1).to(x.dtype)
        x = torch.cat((cls_token, x), dim=1)  # (B, T, C), T = 1 + n
        x = self.dropout(self.input_norm(x + self.pos_embed))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.config.recompute_blocks else block(x)
        return self.head(self.final_norm(x[:, 0]))  # (B, n_classes)
