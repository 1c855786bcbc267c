# ViT-Large/16 (304.3M parameters) with mSGDW. The paper's top-1 on ImageNet (table 1): 78.2. Not run here.
# torchrun --standalone --nproc_per_node=8 train_vit.py config/vit_large_sgdw.py
from config.vdnt_large import *

out_dir = 'out/vit_large_sgdw'
setting, norm = 'S1', 'layer'
global_batch_size = 1024
optimizer = 'sgdw'
learning_rate = 0.5
weight_decay = 2e-4
warmup_epochs = 60.0
