# GPT2-Small (124.4M parameters) with AdamW. The paper's validation loss (table 1): 2.867. Not run here.
# torchrun --standalone --nproc_per_node=8 train_gpt.py config/gpt2_small.py
from config.dnt_small import *

out_dir = 'out/gpt2_small'
setting, norm = 'S1', 'layer'
global_batch_size = 480
optimizer = 'adamw'  # peak memory per GPU: 16.8 GB
learning_rate = 6e-4
weight_decay = 0.1
warmup_iters = 2000
