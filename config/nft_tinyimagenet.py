# The ViT-S of the second report on Tiny ImageNet: its table 2, learning rates 0.01, 0.05 and 0.1.
# The report's best test accuracy of this row (Pre-LN): 43.58 at learning rate 0.1. Not run here.
# python prepare_imagenet.py --dataset=tiny-imagenet --val_from_train=10000
# python train_vit.py config/nft_tinyimagenet.py --setting=NoNorm --init=tfixup --out_dir=out/nft
from config.nft_cifar10 import *

out_dir = 'out/nft_tinyimagenet'
dataset, image_size, patch_size = 'tiny-imagenet', 64, 8  # the report gives no patch size; 8 is our choice
global_batch_size = 256
optimizer = 'sgd'
learning_rate = 0.01
weight_decay = 2e-5
warmup_epochs = 0.0
eval_interval = ckpt_interval = 351
