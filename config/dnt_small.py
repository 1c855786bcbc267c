# L-DNT-Small (124.4M parameters) with mSGDW: tables 3 and 5 of the paper.
# The paper's validation loss on OpenWebText after 200K updates (table 1): 2.849. Not run here.
#
#   torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small.py
#
# The eleven other configs of table 5 (small, large and xl; dnt_* and gpt2_*) start from this one and
# state what differs.

out_dir = 'out/dnt_small'
dataset = 'openwebtext'

setting = 'S5'
norm = 'rms'
bias = False
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0

# 480 x 1024 = 491,520 tokens per update; x 200,000 = 98.3B tokens, 10.9 times the 9.04B of OpenWebText
global_batch_size = 480
# 8 GPUs: 60 sequences each = 4 x 15. Peak memory per GPU: 16.9 GB, with torch.compile 10.7 GB. This is what
# torch allocates, measured on one H200 with torch 2.11.0; the other configs state it without compile.
# Halve this where it does not fit: the result does not depend on it.
micro_batch_size = 16
optimizer = 'sgdw'
learning_rate = 1.0
min_lr = 6e-5  # table 5 gives this for all optimizers, so with mSGDW the rate falls by a factor of 17,000
weight_decay = 1e-4
momentum = 0.9
beta1 = 0.9  # AdamW's betas: tables and prose agree for language
beta2 = 0.95
warmup_iters = 0  # table 5. The prose (section B) says 2000 for all language models; we follow the table
grad_clip = 1.0
max_iters = 200000

eval_interval = 1000
ckpt_interval = 1000
log_interval = 10
