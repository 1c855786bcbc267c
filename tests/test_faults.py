"""A mistake gets one sentence, and nothing is lost by it."""

import json

import numpy as np
import pytest
import torch

from tests import common
from tests.common import final, gpt_line, vit_line, write_images, write_tokens

# A line has the arguments and words of the message. {new}: an out_dir of its own instead of that of the
# finished run {run}; {tmp}: a folder with what is broken; {text}, {tokens}: a run and a data set of text
TEXT_MISTAKES = """
--n_embd=1048576 --n_head=1 --vocab_size=4294967295 {new} | does not fit into memory
--dropout=1.5 {new} | dropout=1.5 is out of range. Set --dropout to a number from 0 to 0.999999.
--dataset=nowhere {new} | There is no data set in data/nowhere. Make it with python prepare_owt.py
--dataset={tmp}/no_train {new} | train.bin does not exist
--dataset={tmp}/torn_meta {new} | is not a valid meta.json for text data
--dataset={arrays} {new} | holds pictures. Use train_vit.py
--dataset={tmp}/too_long {new} | has 6000 bytes, not 2 for each of 2999 tokens
--dataset={tmp}/pickled {new} | meta.pkl of nanoGPT
--vocab_size=100 {new} | vocab_size=100 is less than the 257 of
--dataset={tmp}/big_ids {new} | train.bin holds the id 30840, past the vocabulary of 320
--block_size=400 {new} | too few for block_size=400
--setting=none {new} | setting=none is unknown. Set --setting to one of S1
--device=tpu {new} | device=tpu is unknown
--learning_rate=1e999 {new} | Set --learning_rate to a number of at least 0.
config/vdnt_cifar10.py {new} | Or is this the config of another script?
--embed_optimizer=adamw {new} | needs a learning rate of its own. Set --embed_lr
--embed_lr=1 --learning_rate=0 --min_lr=0 {new} | which is 0. Set --learning_rate
--init_from=resume --embed_lr=1 | has its optimizer state in other groups
--init_from=resume --seed=2 | was made with seed=1337
--init_from=resume --setting=S1 | was made with input_norm=True
--init_from=resume --max_iters=10 | is at iteration 20, past the 10 of this run. Raise max_iters.
| has a run already. Continue it with --init_from=resume, replace it with --overwrite=True
--init_from=resume --dataset={tmp}/other_source | was made with source=test, now it is x
--init_from={run}/best.pt --overwrite=True | is in the out_dir that would be overwritten
--init_from={tmp}/lacking.pt {new} | does not have the weights of this model
--init_from={tmp}/garbage.pt {new} | is not a complete checkpoint of this project
--init_from={tmp}/foreign.pt {new} | it has no config, data, iter
--init_from=absent.pt {new} | Cannot read the checkpoint
--init_from= {new} | init_from is empty. Use scratch, resume, or
--out_dir={tmp}/file | Cannot use out_dir=
--learning_rate=1e30 --grad_clip=0 {new} | No checkpoint was saved. Try a lower learning_rate
""".strip().splitlines()
VISION_MISTAKES = """
--patch_size=3 {new} | patch_size=3 does not divide image_size=8
--dataset=nowhere {new} | There is no data set in data/nowhere. Make it with python prepare_imagenet.py
--dataset={tmp}/no_val {new} | The data set is incomplete or has no val split. Prepare the data set again
--dataset={tmp}/many_classes {new} | labels from 0 to 22, but meta.json lists 6 classes (0 to 5)
--dataset={tmp}/torn_images {new} | cannot be read (EOF
--dataset={tmp}/one_less {new} | is incomplete (23 labels, 23 images, but meta.json states 24
--dataset={tmp}/cut_jpegs {new} | is incomplete (23 labels, 24 offsets
--dataset={tmp}/one_mean {new} | is not a valid meta.json for pictures
--dataset={tokens} {new} | holds text. Use train_gpt.py
--init_from=resume --dataset={tmp}/seven_classes | was made with n_classes=6, now it is 7
--init_from={run}/ckpt.pt --dataset={tmp}/other_classes --eval_only=True {new} | its class 3 is 'd', that of
--image_size=4 {new} | are 8 x 8 x 3, but image_size=4 requires
--image_size=16 --shift=8 {new} | shift=8 is too large for pictures of 8 x 8. Set --shift to less
--dataset={tmp}/deep_labels --overwrite=True | is empty, or its arrays have the wrong type or shape.
--batch_norm=True {new} | batch_norm only works with --arch=nfnet
--epochs=0 {new} | Set --epochs or --max_iters.
--init_from={text}/ckpt.pt --predict=a.jpg {new} | is not a checkpoint of train_vit.py
--randaugment=9 {new} | randaugment=9.0 only works with JPEGs
--nesterov=True --momentum=0 {new} | Use --momentum=0.9 or --nesterov=False.
--global_batch_size=24 {new} | has 23 training images, fewer than global_batch_size=24
--global_batch_size=3 {new} | does not divide over 1 processes in pairs, which mixup and cutmix need. Set
--micro_batch_size=1 {new} | Set --micro_batch_size to at least 2.
--agc=0.1 {new} | agc=0.1 and grad_clip=1.0 both clip the gradient. Use --grad_clip=0 or --agc=0.
--predict=a.jpg {new} | eval_only and predict need weights
--init_from=resume --predict=a.jpg | a.jpg has no picture that can be read
--init_from=resume --eval_only=True --eval_split=train2 | Set --eval_split to one of train, val, test.
""".strip().splitlines()
# what is wrong with the data set of that name: files (None: gone) and keys of meta.json
BAD_TOKENS = {
    'no_train': {'train.bin': None}, 'big_ids': {'train.bin': b'xx' * 3000}, 'torn_meta': {'meta.json': b'{'},
    'pickled': {'meta.json': None, 'meta.pkl': b'x'}, 'too_long': {'train_tokens': 2999},
    'other_source': {'source': 'x'}}
BAD_IMAGES = {
    'no_val': {'val_labels.npy': None, 'val_images': None}, 'torn_images': {'val_images.npy': b'\x93NUMPY'},
    'many_classes': {'train_labels.npy': np.arange(23)}, 'one_less': {'train_images': 24},
    'cut_jpegs': {'train_jpeg.bin': b'cut'}, 'one_mean': {'mean': 0.5},
    'seven_classes': {'classes': list('abcdefg')}, 'other_classes': {'classes': list('abcxef')},
    'deep_labels': {'val_labels.npy': np.zeros((7, 1), np.int64)}}


def spoil(folder, change):
    meta = json.loads((folder / 'meta.json').read_text()) | {k: v for k, v in change.items() if '.' not in k}
    (folder / 'meta.json').write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))
    for name, content in change.items():
        if isinstance(content, np.ndarray):
            np.save(folder / name, content)
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif '.' in name:
            (folder / name).unlink()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope='module')
def mistakes(straight, tokens, seen, arrays, tmp_path_factory):
    """What each line ended with; the finished runs keep their files."""
    text, vision = tmp_path_factory.mktemp('text'), tmp_path_factory.mktemp('vision')
    for name, change in BAD_TOKENS.items():
        spoil(write_tokens(text / name), change)
    for name, change in BAD_IMAGES.items():
        spoil(write_images(vision / name, 'jpeg' if 'jpeg' in name else 'arrays'), change)
    whole = final(straight)
    positions = {k: v for k, v in whole['model'].items() if 'wpe' in k}
    torch.save({**whole, 'model': positions}, text / 'lacking.pt')
    torch.save({'state_dict': {}}, text / 'foreign.pt')
    (text / 'garbage.pt').write_bytes((straight / 'ckpt.pt').read_bytes()[:5000])
    (text / 'file').write_text('')

    def ends(lines, start, tmp, run):
        known = dict(tmp=tmp, run=run, text=straight, tokens=tokens, arrays=arrays,
                     new=f'--out_dir={tmp}/new')
        return common.one_after_the_other(
            [[*start, *line.partition('| ')[0].format(**known).split()] for line in lines])

    before = contents(straight), contents(seen)
    ended = common.in_parallel([
        lambda: ends(TEXT_MISTAKES, gpt_line(tokens, straight, '--dropout=0.1'), text, straight),
        lambda: ends(VISION_MISTAKES, vit_line(arrays, seen), vision, seen)])
    assert before == (contents(straight), contents(seen))
    return {line: str(code) for line, (code, _) in zip(TEXT_MISTAKES + VISION_MISTAKES, sum(ended, []))}


@pytest.mark.parametrize('line', TEXT_MISTAKES + VISION_MISTAKES)
def test_mistakes_get_one_sentence(mistakes, line):
    message = mistakes[line]
    assert line.partition('| ')[2] in message
    assert '\n' not in message


def test_a_mistake_as_people_meet_it(tokens, tmp_path):
    _, err = common.finish(common.python(*gpt_line(tokens, tmp_path, '--n_layer=1001')), 1)
    assert 'Set --n_layer to a number from 1 to 1000.' in err
    assert len(err.strip().splitlines()) == 1, err
