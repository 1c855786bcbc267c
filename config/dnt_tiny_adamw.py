# a tiny L-DNT with AdamW on the source of Python's standard library, byte by byte: minutes on two CPU cores.
#
#   python prepare_owt.py --dataset=stdlib && python train_gpt.py config/dnt_tiny_adamw.py
#
# 8 sequences x 128 = 1,024 tokens per update; x 4,500 = 4.6M of 8.7M training tokens. the four tiny configs share
# width, depth, data and iterations; learning rate and warmup are each arm's best of one grid (results/README.md).

out_dir = 'out/dnt_tiny_adamw'
dataset = 'stdlib'

setting = 'S5'
norm = 'rms'
bias = False
n_layer = 4
n_head = 2
n_embd = 64
block_size = 128

global_batch_size = 8
micro_batch_size = 8
optimizer = 'adamw'
learning_rate = 0.016
min_lr = 0.0
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
warmup_iters = 2250
grad_clip = 1.0
max_iters = 4500

eval_interval = 1500
ckpt_interval = 500
log_interval = 50

dtype = 'float32'  # on a CPU, casts to bfloat16 cost more than such small matrices win
