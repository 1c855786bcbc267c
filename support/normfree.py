"""
The second report, "Normalizer-free Transformers": training without normalization, by weight standardization,
the initialization of T-Fixup and adaptive gradient clipping. model.py knows nothing of it. build() adds
the first two to a network.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

KEYS = ('init', 'weight_standardization', 'weight_gain')  # keys of the scripts that describe the network

# -----------------------------------------------------------------------------
# weight standardization

def standardize(w: torch.Tensor) -> torch.Tensor:
    """
    Weight standardization, equation 1 of the report. The N weights w[i] of each output unit become
    (w[i] - mean) / (sqrt(N) std), so that the unit keeps the variance of independent inputs. w and the result
    are (units, ...). N std^2 below 1e-4 counts as 1e-4, as in NFNet (Brock et al., arXiv:2102.06171).
    """
    flat = w.flatten(1)  # (units, N)
    var, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    return ((flat - mean) * (var * flat.size(1)).clamp(min=1e-4).rsqrt()).view_as(w)


class WSLinear(nn.Linear):
    """A linear layer with the weight standardize(weight) * gain, one gain per output unit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, standardize(self.weight) * self.gain[:, None], self.bias)


def standardize_weights(model: nn.Module, which: str, gain: bool = True) -> None:
    """
    Make the linear layers of every block of a GPT or ViT standardize their weights, in place. which: 'ffn'
    (W_1 and W_2) or 'all' (W_q, W_k, W_v and W_o too). gain: learn one gain per unit of W_o, W_1 and W_2.
    """
    for block in model.blocks:
        layers = [block.ffn.c_fc, block.ffn.c_proj]
        if which == 'all':
            layers += [block.attn.c_attn, block.attn.c_proj]
        for linear in layers:
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
    init_scale and embed_std of T-Fixup (Huang et al., ICML 2020): 0.67 N^-1/4 and d^-1/2 (9 N)^-1/4 for N
    blocks of width d (section 3.1 of the report; docs/normalizer-free.md has our readings).
    """
    return {'init_scale': 0.67 * n_layer ** -0.25, 'embed_std': n_embd ** -0.5 * (9 * n_layer) ** -0.25}


def build(network: type, config: type, args: dict) -> nn.Module:
    """
    network(config(**args)) with the second report's changes. args is the model_args of a checkpoint. It may
    also hold KEYS: init='tfixup', weight_standardization ('none', 'ffn' or 'all') and weight_gain.
    """
    standardization = args.get('weight_standardization', 'none')
    gain = args.get('weight_gain', True)
    fixup = args.get('init') == 'tfixup'
    args = {key: value for key, value in args.items() if key not in ('weight_standardization', 'weight_gain')}
    if fixup:
        args |= {'init': 'xavier', **tfixup(args['n_layer'], args['n_embd'])}
    model = network(config(**args))
    if fixup and hasattr(model, 'patch_embed'):  # an embedding too
        nn.init.normal_(model.patch_embed.weight, std=args['embed_std'])
    if standardization != 'none':
        standardize_weights(model, standardization, gain)
    return model

# -----------------------------------------------------------------------------
# adaptive gradient clipping

def gradient_units(model: nn.Module) -> list[tuple[nn.Parameter, tuple[int, int]]]:
    """
    Every trainable tensor with the shape (units, weights per unit) for clip_units(). A unit is a row of a
    matrix, a filter or a position. A bias or gain is one unit; the stacked bias of q, k and v is three. We
    leave out the head, as NFNets do, and with it a tied embedding.
    """
    head = model.lm_head if hasattr(model, 'lm_head') else model.head
    left_out = {id(p) for p in head.parameters()}
    units = []
    for name, p in model.named_parameters():
        if not p.requires_grad or id(p) in left_out:
            continue
        if name.endswith('c_attn.bias'):
            rows = 3
        elif p.dim() < 2:
            rows = 1
        elif p.dim() == 3:  # positions
            rows = p[..., 0].numel()
        else:
            rows = len(p)
        units.append((p, (rows, p.numel() // rows)))
    return units


@torch.no_grad()
def clip_units(units: list[tuple[nn.Parameter, tuple[int, int]]], limit: float) -> torch.Tensor:
    """
    Adaptive gradient clipping (equation 3 of the report; Brock et al., arXiv:2102.06171, section 4), in
    place: the gradient of each unit w gets at most the norm limit * max(|w|, 1e-3). Returns the share of
    clipped units as a scalar on the device, so that the host does not wait for it.
    """
    units = [(p, shape) for p, shape in units if p.grad is not None]
    grads = [p.grad.view(shape) for p, shape in units]
    factors = [torch.linalg.vector_norm(p.view(shape), dim=1, keepdim=True) for p, shape in units]
    norms = [torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads]
    torch._foreach_clamp_min_(factors, 1e-3)
    torch._foreach_mul_(factors, limit)
    torch._foreach_div_(factors, norms)  # inf where the gradient is 0
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(grads, factors)
    return (torch.cat(factors) < 1).float().mean()
