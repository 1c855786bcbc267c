# A tiny GPT-2 with mSGDW on the source of Python's standard library: minutes on two CPU cores.
# python prepare_owt.py --dataset=stdlib && python train_gpt.py config/gpt2_tiny_sgdw.py
from config.dnt_tiny import *

out_dir = 'out/gpt2_tiny_sgdw'
setting, norm = 'S1', 'layer'
global_batch_size = 8
optimizer = 'sgdw'
embed_optimizer, embed_lr, embed_weight_decay = 'auto', 0.0, -1.0
learning_rate = 0.4
weight_decay = 3e-4
warmup_iters = 3150
