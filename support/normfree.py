"""
The second report, "Normalizer-free Transformers": train without normalization by weight standardization, T-Fixup's
initialization and adaptive gradient clipping. model.py knows nothing of it; build() applies it to a finished network.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

KEYS = ('init', 'weight_standardization', 'weight_gain')  # keys of the train scripts that belong to the network

# -----------------------------------------------------------------------------
# weight standardization

def standardize(w: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """
    Weight standardization, equation 1 of the report. Each output unit's fan-in weights w[i], N of them, become
    (w[i] - mean) / (sqrt(N) std), so that the unit keeps the variance of independent inputs. w (units, ...) and the
    result have one shape. N std^2 below eps counts as eps, as in NFNet (Brock et al., arXiv:2102.06171).
    """
    flat = w.flatten(1)  # (units, N)
    var, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    return ((flat - mean) * (var * flat.size(1)).clamp(min=eps).rsqrt()).view_as(w)


class WSLinear(nn.Linear):
    """A linear layer that multiplies by standardize(weight) * gain, one gain per output unit."""

    def forward(self, x):
        return F.linear(x, standardize(self.weight) * self.gain[:, None], self.bias)


def standardize_weights(model: nn.Module, which: str, gain: bool = True) -> None:
    """
    Make the linear layers of every block of a GPT or ViT standardize their weights, in place. which: 'ffn' (W_1 and
    W_2) or 'all' (W_q, W_k, W_v and W_o too). gain: learn one gain per unit of W_o, W_1 and W_2; W_q, W_k and W_v have
    none (this gives the report's count of 21.34M parameters).
    """
    for block in model.blocks:
        attention = (block.attn.c_attn, block.attn.c_proj) if which == 'all' else ()
        for linear in (*attention, block.ffn.c_fc, block.ffn.c_proj):
            linear.__class__ = WSLinear  # the parameters, their order and their initial values stay
            ones = torch.ones(linear.out_features)  # a vector, so it does not decay
            if gain and linear is not block.attn.c_attn:
                linear.gain = nn.Parameter(ones)
            else:
                linear.register_buffer('gain', ones, persistent=False)

# -----------------------------------------------------------------------------
# initialization, and the network as a config or a checkpoint describes it

def tfixup(n_layer: int, n_embd: int) -> dict:
    """
    init_scale and embed_std of T-Fixup: 0.67 N^-1/4 and d^-1/2 (9 N)^-1/4 for N blocks of width d (section 3.1 of the
    report; we read its N(0, d^-1/2) as a standard deviation, as T-Fixup does). T-Fixup itself (Huang et al., ICML 2020)
    scales W_v, W_o and the FFN of an encoder only. The report scales the whole attention block, and so do we.
    """
    return {'init_scale': 0.67 * n_layer ** -0.25, 'embed_std': n_embd ** -0.5 * (9 * n_layer) ** -0.25}


def build(network: type, config: type, args: dict) -> nn.Module:
    """
    network(config(**args)). args is the model_args of a checkpoint, so it may also hold KEYS: init='tfixup',
    weight_standardization ('none', 'ffn' or 'all') and weight_gain.
    """
    given, args = args, {k: v for k, v in args.items() if k not in KEYS[1:]}
    fixup = args.get('init') == 'tfixup'
    if fixup:
        args |= {'init': 'xavier', **tfixup(args['n_layer'], args['n_embd'])}
    model = network(config(**args))
    if fixup and hasattr(model, 'patch_embed'):  # this matrix makes the embedding of a picture, so it counts as one
        nn.init.normal_(model.patch_embed.weight, std=args['embed_std'])
    if given.get('weight_standardization', 'none') != 'none':
        standardize_weights(model, given['weight_standardization'], given.get('weight_gain', True))
    return model

# -----------------------------------------------------------------------------
# adaptive gradient clipping

def gradient_units(model):
    """
    Every trainable tensor with the shape (units, weights of a unit) for clip_units(): a row of a matrix, a filter, a
    position; a bias or gain is one unit, the stacked bias of q, k and v three. The head is left out, as in NFNets, and
    with it a tied embedding.
    """
    head = {id(p) for p in (model.lm_head if hasattr(model, 'lm_head') else model.head).parameters()}
    units = []
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in head:
            rows = 3 if name.endswith('c_attn.bias') else 1 if p.dim() < 2 else p[..., 0].numel() if p.dim() == 3 else len(p)
            units.append((p, (rows, p.numel() // rows)))
    return units


@torch.no_grad()
def clip_units(units, limit, eps=1e-3):
    """
    Adaptive gradient clipping (equation 3 of the second report; Brock et al., arXiv:2102.06171, section 4): scales the
    gradient g of each unit w to norm limit * max(|w|, eps) where it is larger. Returns the share of units that were
    clipped, a tensor on the device: nothing here waits for it.
    """
    units = [(p, shape) for p, shape in units if p.grad is not None]
    grads = [p.grad.view(shape) for p, shape in units]
    most = [torch.linalg.vector_norm(p.view(shape), dim=1, keepdim=True) for p, shape in units]
    norms = [torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads]
    torch._foreach_clamp_min_(most, eps)
    torch._foreach_mul_(most, limit)
    torch._foreach_div_(most, norms)  # inf where the gradient is 0
    torch._foreach_clamp_max_(most, 1.0)
    torch._foreach_mul_(grads, most)
    return (torch.cat(most) < 1).float().mean()
