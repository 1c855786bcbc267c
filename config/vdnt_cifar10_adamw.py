# a tiny V-DNT with AdamW on CIFAR-10: minutes on two CPU cores.
#
#   python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000 && python train_vit.py config/vdnt_cifar10_adamw.py
#   python train_vit.py config/vdnt_cifar10_adamw.py --init_from=resume --eval_only=True --eval_split=test
#
# 45,000 training images, 5,000 held out to choose by, the set's own 10,000 test images to be read once. the four CIFAR-10
# configs share all but norms and optimizer; each arm has its best learning rate of a short grid, or half of
# that where it is better at full length (results/README.md).
# so few epochs leave mixup, cutmix and drop path out; a gradient of norm 1 at most is worth a higher rate in all four.

out_dir = 'out/vdnt_cifar10_adamw'
dataset = 'cifar10'

setting = 'S5'
norm = 'rms'
bias = True
n_layer = 4
n_head = 3
n_embd = 96
image_size = 32
patch_size = 4
drop_path = 0.0

randaugment = 0.0
mixup = 0.0
cutmix = 0.0
shift = 2
label_smoothing = 0.1

global_batch_size = 32
micro_batch_size = 32
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.99
epochs = 6.0
warmup_epochs = 1.0
grad_clip = 1.0

eval_interval = 1406
ckpt_interval = 703
log_interval = 50

dtype = 'float32'  # on a CPU, casts to bfloat16 cost more than such small matrices win
