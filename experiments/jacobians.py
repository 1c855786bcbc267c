"""
Section 3.1 of the paper: do Jacobians with a wide spread of singular values make heavy-tailed gradients?

    python -m experiments.jacobians                 trains S1 to S5, measures, draws figures/jacobians.png
    python -m experiments.jacobians --table=True    table and figure of results/jacobians.jsonl as it stands

The Jacobian of a block, dvec(Y) / dvec(X) with its residual connections, is exact: autograd in float64, for
`context` tokens. Spread: its largest singular value over the median one. Tail: the 99.9 % quantile of |g|
over the median, each matrix of the block divided by its RMS (normal distribution: 4.9).
"""
import json
import subprocess
import sys

import numpy as np
import torch
from torch.func import jacrev

from configurator import configure
from experiments.evidence import print_table
from experiments.figures import plt, read_rows, save, styles
from experiments.gradients import gradients_of
from experiments.stack import CPU
from model import GPT, GPTConfig
from support.tokens import Tokens

dataset = 'stdlib'  # a folder under data/, or a path
iters = 600  # updates
seeds = 2  # 1, 2, ...: how many
context = 16  # tokens
table = False  # True: nothing is trained or measured
PATH, SETTINGS = 'results/jacobians.jsonl', ('S1', 'S2', 'S3', 'S4', 'S5')

def spread(f, x):
    values = torch.linalg.svdvals(jacrev(lambda v: f(v.view(x.shape)).flatten())(x.flatten()))
    return (values.max() / values.median()).item()

def tail(block):
    sizes = torch.cat([(g / g.square().mean().sqrt()).abs().flatten() for g in gradients_of(block)])
    return (sizes.quantile(0.999) / sizes.median()).item()

def measure(model, data):
    """(spread, tail) of each block: the spread is the mean of two contexts, the tail that of 64 windows."""
    X, Y = data.windows('train', np.random.default_rng(0).integers(0, data.train_tokens - 128, size=64))
    model(X, Y)[1].backward()
    x = model.input_norm(model.wte(X[:2, :context]) + model.wpe.weight[:context]).detach()
    for block in model.blocks:
        yield np.mean([spread(block, one[None]) for one in x]), tail(block)
        x = block(x).detach()

def study(setting, seed):
    """Trains one network; a row for each of its blocks at the start and at the end."""
    out_dir = f'out/jacobians/{setting}_{seed}'
    subprocess.run([sys.executable, 'train_gpt.py', 'config/dnt_tiny_plain.py', f'--setting={setting}',
                    f'--seed={seed}', f'--dataset={dataset}', f'--max_iters={iters}', f'--out_dir={out_dir}',
                    f'--warmup_iters={3 * iters // 10}', '--init_from=resume', '--eval_tokens=16384',
                    '--n_embd=32', '--n_head=1', '--eval_interval=0', '--device=cpu'], check=True)
    saved = torch.load(f'{out_dir}/ckpt.pt', weights_only=True)
    fields = {k: v for k, v in saved['model_args'].items() if k in GPTConfig.__dataclass_fields__}
    for when in (0, iters):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(**{**fields, 'flash': False}))  # as the run began
        if when:
            model.load_state_dict(saved['model'])
        for block, (wide, heavy) in enumerate(measure(model.double(), Tokens(dataset, 128, CPU)), 1):
            yield {'setting': setting, 'seed': seed, 'iter': when, 'block': block,
                   'spread': round(wide, 2), 'tail': round(heavy, 2)}

def draw(rows):
    fig, axes = plt.subplots(1, 2, figsize=(15, 7), sharex=True, sharey=True, layout='constrained')
    cells = {name: [name] for name in SETTINGS}
    for ax, when in zip(axes, (0, max(row['iter'] for row in rows))):
        points = {name: np.array([(row['spread'], row['tail']) for row in rows
                                  if (row['setting'], row['iter']) == (name, when)]) for name in SETTINGS}
        for (name, xy), style in zip(points.items(), styles(SETTINGS)):
            ax.plot(*xy.T, **{**style, 'linestyle': ''}, label=name)
            cells[name] += [f'{np.median(v):.1f} ({v.min():.1f}–{v.max():.1f})' for v in xy.T]
        ranks = np.concatenate([*points.values()]).argsort(0).argsort(0)
        ax.set(title=f'{when} updates, rank correlation {np.corrcoef(ranks.T)[0, 1]:+.2f}', xscale='log',
               xlabel='largest singular value / median', ylabel='99.9 % quantile of |g| / median')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=5)
    print_table(['setting', 'spread at the start', 'tail', 'spread after training', 'tail'], cells.values())
    return fig

if __name__ == '__main__':
    configure(globals())
    if not table:
        rows = [row for n in range(seeds) for setting in SETTINGS for row in study(setting, n + 1)]
        with open(PATH, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(row) + '\n' for row in rows)
    save(draw(read_rows(PATH, 'Run python -m experiments.jacobians first.')), 'jacobians')
