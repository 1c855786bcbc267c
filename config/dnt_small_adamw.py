# L-DNT-Small (124.4M parameters) with AdamW: tables 3 and 5 of the paper.
# the paper's validation loss on OpenWebText after 200K updates (table 1): 2.863. not run here.
#
#   torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small_adamw.py
#
# 480 sequences x 1024 = 491,520 tokens per update; x 200,000 = 98.3B tokens, 10.9 times the 9.04B of OpenWebText.
# on 8 GPUs: 60 sequences each = 4 x 15. memory per GPU: about 17 GB (estimate, not measured;
# halve micro_batch_size where it does not fit: the result does not depend on it).
# betas: (0.9, 0.95), tables and prose agree for language.

out_dir = 'out/dnt_small_adamw'
dataset = 'openwebtext'

setting = 'S5'
norm = 'rms'
bias = False
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0

global_batch_size = 480
micro_batch_size = 16
optimizer = 'adamw'
learning_rate = 6e-4
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
