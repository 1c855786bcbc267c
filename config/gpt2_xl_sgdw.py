# GPT2-XL (1437.9M parameters) with mSGDW: tables 3 and 5 of the paper.
# the paper's validation loss on OpenWebText after 200K updates (table 1): 2.472. not run here.
#
#   torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train_gpt.py config/gpt2_xl_sgdw.py
#
# 512 sequences x 1024 = 524,288 tokens per update; x 200,000 = 104.9B tokens, 11.6 times the 9.04B of OpenWebText.
# on 32 GPUs: 16 sequences each = 4 x 4. memory per GPU: about 31 GB (estimate, not measured;
# halve micro_batch_size where it does not fit: the result does not depend on it).
# warmup: table 5 says 0 for mSGDW, section B's prose says 2000 steps for all language models; the table stands.
# min_lr: 6e-5 for all optimizers in table 5, so here the rate falls by a factor of 17,000.
# 'XL' is the paper's width 1536, depth 48, 24 heads, not OpenAI's 1558M (width 1600, 25 heads).

out_dir = 'out/gpt2_xl_sgdw'
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
optimizer = 'sgdw'
learning_rate = 1.0
min_lr = 6e-5
weight_decay = 1e-4
momentum = 0.9
warmup_iters = 0
grad_clip = 1.0
max_iters = 200000

eval_interval = 1000
ckpt_interval = 1000
log_interval = 10
