# ViT-Huge/14 (632.0M parameters) with mSGDW. The paper's top-1 on ImageNet (table 1): 73.5. Not run here.
# torchrun --standalone --nproc_per_node=8 train_vit.py config/vit_huge_sgdw.py
from config.vdnt_large import *

out_dir = 'out/vit_huge_sgdw'
setting, norm = 'S1', 'layer'
n_layer, n_head, n_embd, patch_size = 32, 16, 1280, 14
drop_path = 0.5
global_batch_size = 1024
micro_batch_size = 64  # 8 GPUs: 128 images each = 2 x 64
optimizer = 'sgdw'
learning_rate = 0.1
weight_decay = 1e-3
warmup_epochs = 60.0
