# NFNet-F0 (68.44M parameters) on CIFAR-10 with adaptive gradient clipping (AGC): the second report's
# table 1. The report's validation accuracy: 90.46; 90.08 with --agc=0; 91.42 with --agc=0
# --batch_norm=True. Not run here in full (results/normfree.md).
#
#   python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000
#   python train_vit.py config/nfnet_cifar10.py
#
# The report: learning rate 0.025, batch 64, 100 epochs, momentum SGD 0.9, decay 2e-5, random crop and
# flip. It gives no schedule, image size or AGC lambda. The code that it names uses a constant rate
# (--min_lr=0.025), 192 x 192 pixels, --agc=0.1 and Nesterov momentum.

out_dir = 'out/nfnet_cifar10'
dataset = 'cifar10'

arch = 'nfnet'
image_size = 32  # our choice: CIFAR-10 as it is
patch_size = 4
drop_path = 0.25
dropout = 0.2

randaugment = 0.0
mixup = 0.0
cutmix = 0.0
shift = 4
label_smoothing = 0.0

global_batch_size = 64
micro_batch_size = 64
optimizer = 'sgd'  # our reading: torch's coupled decay
learning_rate = 0.025
min_lr = 0.0  # our choice: a cosine to 0 without warmup
weight_decay = 2e-5
momentum = 0.9
epochs = 100.0
warmup_epochs = 0.0
grad_clip = 0.0
agc = 0.01  # our choice: NFNet's lambda

eval_interval = 703
ckpt_interval = 703
log_interval = 50
