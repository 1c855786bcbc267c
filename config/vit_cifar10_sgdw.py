# A tiny ViT with mSGDW on CIFAR-10: minutes on two CPU cores. vdnt_cifar10.py says how to prepare the data.
# python train_vit.py config/vit_cifar10_sgdw.py
from config.vdnt_cifar10 import *

out_dir = 'out/vit_cifar10_sgdw'
setting, norm = 'S1', 'layer'
global_batch_size = 32
optimizer = 'sgdw'
learning_rate = 0.05
weight_decay = 1e-3
warmup_epochs = 1.0
