# A tiny L-DNT with mSGDW on the source of Python's standard library, byte by byte: minutes on two CPU cores.
#
#   python prepare_owt.py --dataset=stdlib && python train_gpt.py config/dnt_tiny.py
#
# The embeddings get mSGDW with one scale per row: 1.246 nats per byte, the mean of 16 seeds. Without it
# (config/dnt_tiny_plain.py, the paper's recipe) it is 1.305. Both keep 4 bytes of state per weight.
#
# The four other tiny configs start from this one. All share width, depth, data and iterations. Rates, warmup
# and decay are each arm's best in a search of its own (results/language.md).

out_dir = 'out/dnt_tiny'
dataset = 'stdlib'

setting = 'S5'
norm = 'rms'
bias = False
n_layer = 4
n_head = 2
n_embd = 64
block_size = 128

global_batch_size = 8  # x 128 = 1,024 tokens per update; x 4,500 = 4.6M of 8.7M training tokens
micro_batch_size = 8
optimizer = 'sgdw'
learning_rate = 0.4
embed_optimizer = 'rownorm'
embed_lr = 0.004
embed_weight_decay = 0.1
min_lr = 0.0
weight_decay = 3e-3
momentum = 0.9
beta1 = 0.9  # AdamW
beta2 = 0.95  # AdamW
warmup_iters = 1350
grad_clip = 1.0
max_iters = 4500

eval_interval = 1500
ckpt_interval = 500
log_interval = 50
