# GPT2-XL (1437.9M parameters) with mSGDW. The paper's validation loss (table 1): 2.472. Not run here.
# torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \
#     train_gpt.py config/gpt2_xl_sgdw.py
from config.dnt_small import *

out_dir = 'out/gpt2_xl_sgdw'
setting, norm = 'S1', 'layer'
n_layer, n_head, n_embd = 48, 24, 1536  # the paper's XL; OpenAI's has 1558M parameters (width 1600, 25 heads)
global_batch_size = 512  # x 1024 = 524,288 tokens per update; in all 104.9B tokens, 11.6 times OpenWebText
micro_batch_size = 4  # 32 GPUs: 16 sequences each = 4 x 4; peak memory per GPU: 33.7 GB
optimizer = 'sgdw'
learning_rate = 1.0
weight_decay = 1e-4
warmup_iters = 0
