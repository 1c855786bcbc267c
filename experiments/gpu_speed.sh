#!/bin/bash
# Not run yet. Four minutes on one GPU of 80 GB: what torch 2.11 loses, which micro batch is best, and how much
# memory it takes. Run it from the top folder:
#
#     bash experiments/gpu_speed.sh [PYTHON_WITH_TORCH_2.13] 2>&1 | tee gpu_speed.txt
#
# Torch 2.11 is said to fuse RMSNorm's backward too much (pytorch pull request 179494). Aims: L-DNT at most 1.03 of
# GPT-2's compiled step; 45 % MFU at 124M, 50 % at 774M and 1438M.
bench='-m experiments.bench --device=cuda --only=step --dtype=bfloat16 --repeats=5'

echo '(a) the compiled step of GPT-2, S1 and L-DNT'
python $bench
TORCHINDUCTOR_MIX_ORDER_REDUCTION=0 python $bench
[ -n "$1" ] && "$1" $bench

echo '(b, c) random tokens: tokens/s and MFU of the last line, and the peak of memory'
mkdir -p data/random
python - <<'END'
import json
import numpy as np
for split, n in (('train', 4_000_000), ('val', 20_000)):
    np.random.default_rng(0).integers(0, 50257, n).astype('<u2').tofile(f'data/random/{split}.bin')
json.dump({'tokenizer': 'gpt2', 'vocab_size': 50257, 'dtype': 'uint16', 'train_tokens': 4_000_000,
           'val_tokens': 20_000, 'source': 'random'}, open('data/random/meta.json', 'w'))
END
train() {  # config, sequences of an update, upper bound of a micro batch
    echo "$1: global_batch_size $2, micro_batch_size $3"
    python - "config/$1.py" --global_batch_size="$2" --micro_batch_size="$3" --dataset=random --max_iters=30 \
        --eval_interval=0 --ckpt_interval=0 --overwrite=True --out_dir=out/gpu_speed <<'END' | tail -4
import atexit
import runpy
import torch
atexit.register(lambda: print(f'peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB'))
runpy.run_path('train_gpt.py', run_name='__main__')
END
}
for micro in 16 32; do train dnt_small 60 $micro; done  # 4 x 15, 2 x 30; logits of 60 pass 2^31 elements
for micro in 8 16; do train dnt_large 16 $micro; done
for micro in 4 8 16; do train dnt_xl 16 $micro; done
