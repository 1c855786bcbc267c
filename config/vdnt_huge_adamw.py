# V-DNT-Huge/14 (632.0M parameters) with AdamW. The paper's top-1 on ImageNet (table 1): 81.9. Not run here.
# torchrun --standalone --nproc_per_node=8 train_vit.py config/vdnt_huge_adamw.py
from config.vdnt_large import *

out_dir = 'out/vdnt_huge_adamw'
n_layer, n_head, n_embd, patch_size = 32, 16, 1280, 14
drop_path = 0.5
global_batch_size = 1024
micro_batch_size = 64  # 8 GPUs: 128 images each = 2 x 64
optimizer = 'adamw'
learning_rate = 1e-3
weight_decay = 0.1
warmup_epochs = 60.0
