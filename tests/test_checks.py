"""The small functions under the train scripts: schedule, batches, folders, what a run says of itself."""

import ast
import math

import pytest
import torch

from model import GPT, SETTINGS, GPTConfig
from support.checks import name_norms, split_batch
from support.report import flops_per_unit, peak_flops
from support.tokens import data_folder
from tests.common import ROOT


def get_lr(script, learning_rate, min_lr, warmup_iters, max_iters, schedule='cosine'):
    """get_lr of a train script, which cannot be imported, with these numbers."""
    tree = ast.parse((ROOT / script).read_text())
    code = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == 'get_lr']
    names = dict(math=math, learning_rate=learning_rate, min_lr=min_lr, warmup_iters=warmup_iters,
                 max_iters=max_iters, schedule=schedule)
    exec(compile(ast.Module(code, []), script, 'exec'), names)
    return names['get_lr']


@pytest.mark.parametrize('script', ['train_gpt.py', 'train_vit.py'])
def test_schedule(script):
    lr = list(map(get_lr(script, 1.0, 0.1, 10, 110), range(111)))
    assert lr[0] == 1 / 11
    assert lr[9] == 10 / 11
    assert lr[10] == 1.0
    assert abs(lr[60] - 0.55) < 1e-12
    assert lr[110] == 0.1
    assert all(a >= b for a, b in zip(lr[10:], lr[11:]))
    assert get_lr(script, 1.0, 0.0, 0, 10)(0) == 1.0  # no warmup: the peak at once
    assert get_lr(script, 1.0, 0.0, 2000, 2)(1) < 0.001  # a run shorter than its warmup
    # of timm 1.0.31, CosineLRScheduler(t_initial=150, lr_min=0.01, warmup_t=60, warmup_lr_init=0.5 / 61)
    timm = {0: 0.0081967, 30: 0.2540984, 59: 0.4918033, 60: 0.3307092, 75: 0.255, 100: 0.1325, 149: 0.0100537}
    lr = get_lr(script, 0.5, 0.01, 60, 150, 'timm')
    assert {t: round(lr(t), 7) for t in timm} == timm


def test_a_prepared_folder_comes_before_a_raw_one_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ('mytext/a.txt', 'data/mytext/meta.json', 'elsewhere/a/meta.json', 'b/meta.json',
                 'data/b/prepare.py', 'raw/a.txt'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('')
    for dataset, folder in (
            ('mytext', 'data/mytext'), ('./mytext', 'data/./mytext'), ('b', 'b'), ('raw', 'raw'),
            ('elsewhere/a', 'elsewhere/a'), ('no', 'data/no'), ('owner/mytext', 'data/owner/mytext'),
            ('/no/such/mytext', '/no/such/mytext'), ('../no/mytext', 'data/../no/mytext'),
            (str(tmp_path / 'b'), str(tmp_path / 'b'))):
        assert data_folder(dataset) == folder


def test_an_untied_token_embedding_does_no_work():
    size = dict(n_layer=1, n_head=1, n_embd=8, vocab_size=64, block_size=4)
    tied, untied = (GPT(GPTConfig(**size, tied=tied)) for tied in (True, False))
    # the head, W_q to W_o, W_1 and W_2, seven gains; and attention
    assert flops_per_unit(tied) == flops_per_unit(untied) == 6 * (64 * 8 + 12 * 8 * 8 + 7 * 8) + 12 * 8 * 4


@pytest.mark.parametrize('name,tflops', [
    ('NVIDIA H100 80GB HBM3', 989), ('NVIDIA H100 NVL', 835), ('NVIDIA L40S', 362), ('NVIDIA L4', 121),
    ('NVIDIA GeForce RTX 3090 Ti', None), ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None), ('Tesla T4', None)])
def test_a_gpu_has_a_peak_only_where_its_whole_name_is_known(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: name)
    assert peak_flops('cuda') == (tflops and tflops * 1e12)
    assert peak_flops('cpu') is None


def test_norms_and_batches():
    assert name_norms('S5', SETTINGS['S5']) == 'S5'
    assert name_norms('S5', SETTINGS['S5'] | {'mid_norm': False}) == 'S5 with mid_norm=False'
    assert split_batch(480, 16, 8) == (15, 4)
    assert split_batch(480, 30, 16) == (30, 1)
    assert split_batch(2, 16, 1) == (2, 1)
    with pytest.raises(SystemExit, match='size=10 does not divide over 4 processes. Set .* multiple of 4.$'):
        split_batch(10, 16, 4)
