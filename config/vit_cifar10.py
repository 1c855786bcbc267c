# A tiny ViT with AdamW on CIFAR-10: minutes on two CPU cores. vdnt_cifar10.py says how to prepare the data.
# python train_vit.py config/vit_cifar10.py
from config.vdnt_cifar10 import *

out_dir = 'out/vit_cifar10'
setting, norm = 'S1', 'layer'
global_batch_size = 32
optimizer = 'adamw'
learning_rate = 1e-3
weight_decay = 0.1
warmup_epochs = 1.0
