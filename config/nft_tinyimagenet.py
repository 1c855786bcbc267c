# ViT-S of the second report (normalizer-free transformers) on Tiny ImageNet: its table 2, learning rates 0.01, 0.05 and
# 0.1, each row a flag or two away (results/README.md).
# the report's best test accuracy of this row (Pre-LN): 43.58 at learning rate 0.1. not run here.
#
#   python prepare_imagenet.py --dataset=zh-plus/tiny-imagenet --val_from_train=10000 --out_dir=data/tiny-imagenet
#   python train_vit.py config/nft_tinyimagenet.py --setting=NoNorm --init=tfixup --out_dir=out/nft
#
# report: momentum SGD 0.9 with torch's coupled decay (our reading: it says 'stochastic gradient descent'), batch 256,
# 100 epochs, random crop and flip. it gives neither schedule nor patch size: here a cosine to 0 without warmup, and 8
# pixels.

out_dir = 'out/nft_tinyimagenet'
dataset = 'tiny-imagenet'

setting = 'S1'
norm = 'layer'
bias = True
qkv_bias = False
n_layer = 12
n_head = 6
n_embd = 384
image_size = 64
patch_size = 8
drop_path = 0.0

randaugment = 0.0
mixup = 0.0
cutmix = 0.0
shift = 4
label_smoothing = 0.0

global_batch_size = 256
micro_batch_size = 64
optimizer = 'sgd'
learning_rate = 0.01
min_lr = 0.0
weight_decay = 2e-5
momentum = 0.9
epochs = 100.0
warmup_epochs = 0.0
grad_clip = 0.0

eval_interval = 351
ckpt_interval = 351
log_interval = 50
