"""
nanoGPT's training step as it ships, for experiments.bench: in a process of its own, without our settings.

    python -m experiments.peer --path=PATH_OF_NANOGPT --shape='{"n_layer": 2}' --file=FILE

Writes weights and a batch of random ids to FILE and prints its loss. Then, for each line of its input
(float32, bfloat16 or bfloat16 compiled), it makes an update and prints 'done'.
"""

import importlib.util
import json
import os
import sys
from contextlib import redirect_stdout

import torch

from configurator import configure

path = ''  # a checkout of nanoGPT
shape = '{}'  # its GPTConfig as JSON
batch = 2  # sequences
length = 256  # tokens of each
device = 'cpu'  # cpu, cuda, cuda:N
seed = 1337  # of weights and batch
file = ''  # where weights and batch go

if __name__ == '__main__':
    configure(globals())
    spec = importlib.util.spec_from_file_location('nanogpt_model', os.path.join(path, 'model.py'))
    module = sys.modules['nanogpt_model'] = importlib.util.module_from_spec(spec)
    device_type = device.split(':')[0]
    torch.manual_seed(seed)
    if device_type == 'cuda':
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision('high')  # tf32 on a GPU, as in its train.py
    with redirect_stdout(sys.stderr):
        spec.loader.exec_module(module)
        model = module.GPT(module.GPTConfig(bias=False, **json.loads(shape))).to(device)  # bias as there
        opt = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device_type)
    X, Y = torch.randint(model.config.vocab_size, (2, batch, length), device=device).unbind(0)
    torch.save({'weights': [p.data for p in model.parameters()], 'X': X, 'Y': Y}, file)
    with torch.no_grad():
        print(model(X, Y)[1].item(), flush=True)
    compiled = torch.compile(model)  # at its first call
    for line in sys.stdin:  # what its train.py does with one micro batch
        forward = compiled if 'compiled' in line else model
        with torch.autocast(device_type, torch.bfloat16, enabled='bfloat16' in line):
            loss = forward(X, Y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        loss.item()  # for its log
        if device_type != 'cpu':
            getattr(torch, device_type).synchronize()
        print('done', flush=True)
