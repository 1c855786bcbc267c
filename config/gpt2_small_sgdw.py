# GPT2-Small (124.4M parameters) with mSGDW. The paper's validation loss (table 1): 2.906. Not run here.
# torchrun --standalone --nproc_per_node=8 train_gpt.py config/gpt2_small_sgdw.py
from config.dnt_small import *

out_dir = 'out/gpt2_small_sgdw'
setting, norm = 'S1', 'layer'
global_batch_size = 480
optimizer = 'sgdw'  # peak memory per GPU: 16.3 GB
learning_rate = 1.0
weight_decay = 1e-4
warmup_iters = 0
