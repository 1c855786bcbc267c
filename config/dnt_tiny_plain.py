# A tiny L-DNT with plain mSGDW, the paper's recipe, on the source of Python's standard library: minutes on
# two CPU cores. Its loss is 1.305 nats per byte, the mean of 16 seeds. With one scale per row of the
# embeddings (config/dnt_tiny.py) it is 1.246.
# python prepare_owt.py --dataset=stdlib && python train_gpt.py config/dnt_tiny_plain.py
from config.dnt_tiny import *

out_dir = 'out/dnt_tiny_plain'
global_batch_size = 8
optimizer = 'sgdw'
embed_optimizer, embed_lr, embed_weight_decay = 'auto', 0.0, -1.0
learning_rate = 0.4
weight_decay = 3e-3
warmup_iters = 1350
