# GPT2-Small (124.4M parameters) with mSGDW: tables 3 and 5 of the paper.
# the paper's validation loss on OpenWebText after 200K updates (table 1): 2.906. not run here.
#
#   torchrun --standalone --nproc_per_node=8 train_gpt.py config/gpt2_small_sgdw.py
#
# 480 sequences x 1024 = 491,520 tokens per update; x 200,000 = 98.3B tokens, 10.9 times the 9.04B of OpenWebText.
# on 8 GPUs: 60 sequences each = 4 x 15. memory per GPU: about 16 GB (estimate, not measured;
# halve micro_batch_size where it does not fit: the result does not depend on it).
# warmup: table 5 says 0 for mSGDW, section B's prose says 2000 steps for all language models; the table stands.
# min_lr: 6e-5 for all optimizers in table 5, so here the rate falls by a factor of 17,000.

out_dir = 'out/gpt2_small_sgdw'
dataset = 'openwebtext'

setting = 'S1'
norm = 'layer'
bias = False
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0

global_batch_size = 480
micro_batch_size = 16
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
