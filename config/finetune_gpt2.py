# GPT-2 (124M parameters) fine-tuned on a text of your own, with AdamW. Not run here.
#
#   python prepare_owt.py --dataset=mytext.txt
#   python train_gpt.py config/finetune_gpt2.py --dataset=mytext
#   python sample.py --out_dir=out/finetune_gpt2 --prompt='Once'
#
# The weights come from the Hugging Face Hub, and the network with them: no key of the model is stated
# here. --init_from=gpt2-medium, gpt2-large, gpt2-xl, any GPT-2 of the Hub (OWNER/NAME) and a folder with
# config.json and model.safetensors work in the same way, and --block_size=256 needs less memory. The
# text must be prepared with the tokenizer gpt2, the default of prepare_owt.py.

out_dir = 'out/finetune_gpt2'
init_from = 'gpt2'
dataset = 'mytext'

dropout = 0.1  # a small text is read many times
global_batch_size = 32
micro_batch_size = 4
optimizer = 'adamw'
learning_rate = 3e-5
min_lr = 3e-6
weight_decay = 0.1
warmup_iters = 100
max_iters = 2000
grad_clip = 1.0

eval_interval = 200
ckpt_interval = 200
log_interval = 10
