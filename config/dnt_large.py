# L-DNT-Large (773.6M parameters) with mSGDW. The paper's validation loss (table 1): 2.503. Not run here.
# torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \
#     train_gpt.py config/dnt_large.py
from config.dnt_small import *

out_dir = 'out/dnt_large'
n_layer, n_head, n_embd = 36, 20, 1280
global_batch_size = 512  # x 1024 = 524,288 tokens per update; in all 104.9B tokens, 11.6 times OpenWebText
micro_batch_size = 8  # 16 GPUs: 32 sequences each = 4 x 8; peak memory per GPU: 31.2 GB
optimizer = 'sgdw'
learning_rate = 1.0
weight_decay = 1e-4
warmup_iters = 0
