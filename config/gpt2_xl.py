# GPT2-XL (1437.9M parameters) with AdamW: tables 3 and 5 of the paper.
# the paper's validation loss on OpenWebText after 200K updates (table 1): 2.435. not run here.
#
#   torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train_gpt.py config/gpt2_xl.py
#
# 512 sequences x 1024 = 524,288 tokens per update; x 200,000 = 104.9B tokens, 11.6 times the 9.04B of OpenWebText.
# on 32 GPUs: 16 sequences each = 4 x 4. memory per GPU: about 37 GB (estimate, not measured;
# halve micro_batch_size where it does not fit: the result does not depend on it).
# 'XL' is the paper's width 1536, depth 48, 24 heads, not OpenAI's 1558M (width 1600, 25 heads).
# learning rate: table 5's, smaller than L-DNT's 6e-4 at this size.
# betas: (0.9, 0.95), tables and prose agree for language.

out_dir = 'out/gpt2_xl'
dataset = 'openwebtext'

setting = 'S1'
norm = 'layer'
bias = False
n_layer = 48
n_head = 24
n_embd = 1536
block_size = 1024
dropout = 0.0

global_batch_size = 512
micro_batch_size = 4
optimizer = 'adamw'
learning_rate = 1.5e-4
min_lr = 6e-5
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
warmup_iters = 2000
grad_clip = 1.0
max_iters = 200000

eval_interval = 1000
ckpt_interval = 1000
log_interval = 10
