# The ViT-S of the second report (normalizer-free transformers) on CIFAR-10: its table 1. Each row of the
# table is one or two flags away (results/normfree.md). 21.33M parameters with LayerNorm, 21.31M without,
# 21.34M standardized with gains. The report's best validation accuracy of this row (Pre-LN): 72.96 at
# learning rate 0.01. Not run here in full.
#
#   python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000
#   python train_vit.py config/nft_cifar10.py --setting=NoNorm --init=tfixup --out_dir=out/nft
#
# The report: 'stochastic gradient descent', batch 64, 100 epochs, random crop and flip, 45,000 training
# and 5,000 validation images. It names no schedule.

out_dir = 'out/nft_cifar10'
dataset = 'cifar10'

setting = 'S1'
norm = 'layer'
bias = True
qkv_bias = False
n_layer = 12
n_head = 6
n_embd = 384
image_size = 32
patch_size = 4
drop_path = 0.0

randaugment = 0.0
mixup = 0.0
cutmix = 0.0
shift = 4
label_smoothing = 0.0

global_batch_size = 64
micro_batch_size = 64
optimizer = 'sgd'  # momentum 0.9; our reading: torch's coupled decay
learning_rate = 0.01
min_lr = 0.0  # our choice: a cosine to 0 without warmup. --min_lr=0.01 gives a constant rate
weight_decay = 2e-5
momentum = 0.9
epochs = 100.0
warmup_epochs = 0.0
grad_clip = 0.0

eval_interval = 703
ckpt_interval = 703
log_interval = 50
