# ViT-Large/16 (304.3M parameters) with AdamW. The paper's top-1 on ImageNet (table 1): 81.7. Not run here.
# torchrun --standalone --nproc_per_node=8 train_vit.py config/vit_large.py
from config.vdnt_large import *

out_dir = 'out/vit_large'
setting, norm = 'S1', 'layer'
global_batch_size = 1024
optimizer = 'adamw'
learning_rate = 1e-3
weight_decay = 0.1
warmup_epochs = 60.0
