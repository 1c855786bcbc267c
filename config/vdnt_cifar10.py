# A tiny V-DNT with mSGDW on CIFAR-10: minutes on two CPU cores.
#
#   python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000
#   python train_vit.py config/vdnt_cifar10.py
#   python train_vit.py config/vdnt_cifar10.py --init_from=resume --eval_only=True --eval_split=test
#
# There are 45,000 training images, 5,000 validation images to choose by, and 10,000 test images to be
# read once. The three other configs start from this one. All four share everything but norms and
# optimizer. The rates were chosen by one seed at half an epoch (results/images.md).

out_dir = 'out/vdnt_cifar10'
dataset = 'cifar10'

setting = 'S5'
norm = 'rms'
bias = True
n_layer = 4
n_head = 3
n_embd = 96
image_size = 32
patch_size = 4
drop_path = 0.0  # so few epochs need neither drop path nor mixup nor cutmix

randaugment = 0.0
mixup = 0.0
cutmix = 0.0
shift = 2
label_smoothing = 0.1

global_batch_size = 32
micro_batch_size = 32
optimizer = 'sgdw'
learning_rate = 0.05
min_lr = 0.0
weight_decay = 1e-3
momentum = 0.9
beta1 = 0.9  # AdamW
beta2 = 0.99  # AdamW
epochs = 6.0
warmup_epochs = 1.0
grad_clip = 1.0  # allows a higher learning rate in all four

eval_interval = 1406
ckpt_interval = 703
log_interval = 50
