# L-DNT-Small (124.4M parameters) with AdamW. The paper's validation loss (table 1): 2.863. Not run here.
# torchrun --standalone --nproc_per_node=8 train_gpt.py config/dnt_small_adamw.py
from config.dnt_small import *

out_dir = 'out/dnt_small_adamw'
global_batch_size = 480
optimizer = 'adamw'  # peak memory per GPU: 17.4 GB
learning_rate = 6e-4
weight_decay = 0.1
warmup_iters = 2000
