# A tiny L-DNT with AdamW on the source of Python's standard library: minutes on two CPU cores.
# python prepare_owt.py --dataset=stdlib && python train_gpt.py config/dnt_tiny_adamw.py
from config.dnt_tiny import *

out_dir = 'out/dnt_tiny_adamw'
global_batch_size = 8
optimizer = 'adamw'
embed_optimizer, embed_lr, embed_weight_decay = 'auto', 0.0, -1.0
learning_rate = 0.008
weight_decay = 0.1
warmup_iters = 1350
