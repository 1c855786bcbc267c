# A ViT-Tiny/16 of timm (5.7M parameters) fine-tuned on CIFAR-10 at 224 pixels, with mSGDW. Not run here.
#
#   python prepare_imagenet.py --dataset=cifar10 --val_from_train=5000
#   python train_vit.py config/finetune_vit.py
#   python train_vit.py config/finetune_vit.py --init_from=resume --predict=photo.jpg
#
# The weights come from the Hugging Face Hub, and the network with them: no key of the model is stated
# here. Any plain ViT of timm works (vit_small, vit_base, vit_large), and so does a safetensors file of
# one. The pictures are resized to the image_size of the weights; with --image_size=160 to another, and
# the positions are interpolated. The head starts at zero. The pixels are normalized with the mean and
# std of the data set; the patch embedding takes over what is different from timm's.
#
# The recipe is that of the ViT paper (arXiv:2010.11929, appendix B.1.1): momentum SGD without decay, a
# cosine, gradients clipped at 1. Its batch is 512, and its rate is chosen from 0.001 to 0.03.

out_dir = 'out/finetune_vit'
init_from = 'timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k'
dataset = 'cifar10'

drop_path = 0.0
shift = 4
randaugment = 0.0
mixup = 0.0
cutmix = 0.0
label_smoothing = 0.0

global_batch_size = 128
micro_batch_size = 64
optimizer = 'sgdw'
learning_rate = 0.01
min_lr = 0.0
weight_decay = 0.0
momentum = 0.9
epochs = 5.0
warmup_epochs = 0.5
grad_clip = 1.0

eval_interval = 351
ckpt_interval = 351
log_interval = 10
