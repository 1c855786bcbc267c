# L-DNT-XL (1438.0M parameters) with AdamW. The paper's validation loss (table 1): 2.396. Not run here.
# torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \
#     train_gpt.py config/dnt_xl_adamw.py
from config.dnt_small import *

out_dir = 'out/dnt_xl_adamw'
n_layer, n_head, n_embd = 48, 24, 1536
global_batch_size = 512  # x 1024 = 524,288 tokens per update; in all 104.9B tokens, 11.6 times OpenWebText
micro_batch_size = 4  # 32 GPUs: 16 sequences each = 4 x 4; peak memory per GPU: 40.7 GB
optimizer = 'adamw'
learning_rate = 6e-4
weight_decay = 0.1
warmup_iters = 2000
