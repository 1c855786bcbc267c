"""A mistake gets one sentence, and nothing is lost by it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import common
from tests.common import final, gpt_line, one_after_the_other, vit_line, write_images, write_tokens

# A line has the arguments and words of the message. {new}: an out_dir of its own instead of that of the
# finished run {run}; {tmp}: a folder with what is broken; {text}, {tokens}: a run and a data set of text
TEXT_MISTAKES = """
--n_embd=1048576 --n_head=1 --vocab_size=4294967295 {new} | does not fit into memory
--n_layer=1001 {new} | Set --n_layer to a number from 1 to 1000.
--dropout=1.5 {new} | dropout=1.5 is out of range. Set --dropout to a number of at least 0 and below 1.
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
--optimizer=adam {new} | optimizer=adam is unknown
--mid_norm=maybe {new} | Set --mid_norm to one of auto, True, False.
--device=tpu {new} | device=tpu is unknown
--dtype=float16 {new} | dtype=float16 is unknown
--learning_rate=1e999 {new} | Set --learning_rate to a number of at least 0.
config/vdnt_cifar10.py {new} | Or is this the config of another script?
--embed_optimizer=adamw {new} | needs a learning rate of its own. Set --embed_lr
--embed_lr=1 --learning_rate=0 --min_lr=0 {new} | which is 0. Set --learning_rate
--init_from=resume --embed_lr=1 | has its optimizer state in other groups
--init_from=resume --n_layer=3 --bias=True | was made with n_layer=2, now it is 3; bias=False, now it is True
--init_from=resume --seed=2 | was made with seed=1337
--init_from=resume --setting=S1 | was made with input_norm=True
--init_from=resume --max_iters=10 | is at iteration 20, past the 10 of this run. Raise max_iters.
| has a run already. Continue it with --init_from=resume, replace it with --overwrite=True
--eval_only=True {new} | eval_only needs weights. Use --init_from
--dataset={tmp}/half_an_id {new} | is not a valid meta.json for text data
--init_from=resume --dataset={tmp}/other_source | was made with source=test, now it is x
--init_from={run}/best.pt --overwrite=True | is in the out_dir that would be overwritten
--init_from={tmp}/lacking.pt {new} | does not have the weights of this model
--init_from={tmp}/garbage.pt {new} | is not a complete checkpoint of this project
--init_from={tmp}/foreign.pt {new} | it has no config, data, iter
--init_from=absent.pt {new} | Cannot read the checkpoint
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
--dataset={tmp}/float_labels {new} | is empty, or its arrays have the wrong type or shape.
--dataset={tmp}/flat_images {new} | is empty, or its arrays have the wrong type or shape.
--dataset={tmp}/empty_labels {new} | cannot be read (No data left in file). Prepare
--dataset={tmp}/no_deviation {new} | is not a valid meta.json for pictures
--dataset={tmp}/no_offsets {new} | is incomplete
--init_from=resume --dataset={tmp}/other_seed | was made with seed=None, now it is 1
--batch_norm=True {new} | batch_norm only works with --arch=nfnet
--epochs=0 {new} | Set --epochs or --max_iters.
--init_from={text}/ckpt.pt --predict=a.jpg {new} | is not a checkpoint of train_vit.py
--randaugment=9 {new} | randaugment=9.0 only works with JPEGs
--randaugment=11 {new} | Set --randaugment to a number from 0 to 10.
--interpolation=random {new} | interpolation=random only works with JPEGs
--schedule=linear {new} | Set --schedule to one of cosine, timm.
--nesterov=True --momentum=0 {new} | Use --momentum=0.9 or --nesterov=False.
--global_batch_size=24 {new} | has 23 training images, fewer than global_batch_size=24
--global_batch_size=3 {new} | does not divide over 1 processes in pairs, which mixup and cutmix need. Set
--micro_batch_size=1 {new} | Set --micro_batch_size to at least 2.
--agc=0.1 {new} | agc=0.1 and grad_clip=1.0 both clip the gradient. Use --grad_clip=0 or --agc=0.
--n_head=3 {new} | does not divide into n_head=3 heads
--init_from=resume --epochs=1 | is at iteration 15, past the 5 of this run
--predict=a.jpg {new} | predict needs weights
--init_from=resume --predict=a.jpg | a.jpg cannot be read as a picture
--init_from=resume --eval_only=True --eval_split=train2 | has no train2 split, only train, val, test. Choose
--learning_rate=1e30 --grad_clip=0 {new} | Try a lower learning_rate
""".strip().splitlines()
# what is wrong with the data set of that name: the contents of a file, or a key of meta.json
BAD_TOKENS = {
    'no_train': {'train.bin': None}, 'big_ids': {'train.bin': b'xx' * 3000}, 'torn_meta': {'meta.json': b'{'},
    'pickled': {'meta.json': None, 'meta.pkl': b'x'}, 'too_long': {'train_tokens': 2999},
    'half_an_id': {'vocab_size': 257.5}, 'other_source': {'source': 'x'}}
# what is wrong with the data set of that name: the layout, and arrays, bytes or keys of meta.json
BAD_IMAGES = {
    'no_val': dict(val_labels=None, meta={'val_images': None}),
    'many_classes': dict(train_labels=np.arange(23)),
    'torn_images': dict(val_images=b'\x93NUMPY'),
    'one_less': dict(meta={'train_images': 24}),
    'cut_jpegs': dict(layout='jpeg', train_jpeg=b'cut'),
    'one_mean': dict(meta={'mean': 0.5}),
    'seven_classes': dict(meta={'classes': list('abcdefg')}),
    'other_classes': dict(meta={'classes': list('abcxef')}),
    'deep_labels': dict(val_labels=np.zeros((7, 1), np.int64)),
    'float_labels': dict(train_labels=np.zeros(23)),
    'flat_images': dict(val_images=np.zeros((7, 8, 8), np.uint8)),
    'empty_labels': dict(val_labels=b''),
    'no_deviation': dict(meta={'std': [-1, 0, 0]}),
    'no_offsets': dict(layout='jpeg', val_offsets=np.zeros(8, np.int64)),
    'other_seed': dict(meta={'seed': 1})}


def write_or_remove(path, content):
    path.unlink() if content is None else path.write_bytes(content)


def write_bad_images(folder, layout='arrays', meta={}, **files):
    write_images(folder, layout, 12 if layout == 'jpeg' else 8)
    for name, content in files.items():
        path = next(p for p in folder.iterdir() if p.stem == name)
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            write_or_remove(path, content)
    meta = json.loads((folder / 'meta.json').read_text()) | meta
    (folder / 'meta.json').write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope='module')
def mistakes(straight, tokens, seen, arrays, tmp_path_factory):
    """What each line ended with, and whether the finished runs kept their files."""
    text, vision = tmp_path_factory.mktemp('text'), tmp_path_factory.mktemp('vision')
    for name, change in BAD_TOKENS.items():
        folder = write_tokens(text / name, **{key: value for key, value in change.items() if '.' not in key})
        for file, content in change.items():
            if '.' in file:
                write_or_remove(folder / file, content)
    for name, change in BAD_IMAGES.items():
        write_bad_images(vision / name, **change)
    whole = final(straight)
    positions = {k: v for k, v in whole['model'].items() if 'wpe' in k}
    torch.save({**whole, 'model': positions}, text / 'lacking.pt')
    torch.save({'state_dict': {}}, text / 'foreign.pt')
    (text / 'garbage.pt').write_bytes((straight / 'ckpt.pt').read_bytes()[:5000])
    (text / 'file').write_text('')

    def words(line, tmp, run):
        return line.partition('| ')[0].format(tmp=tmp, run=run, text=straight, tokens=tokens, arrays=arrays,
                                              new=f'--out_dir={tmp}/new').split()

    def run_text():
        return one_after_the_other([gpt_line(tokens, straight, '--dropout=0.1', *words(line, text, straight))
                                    for line in TEXT_MISTAKES])

    def run_vision():
        return one_after_the_other([vit_line(arrays, seen, *words(line, vision, seen))
                                    for line in VISION_MISTAKES])

    before = contents(straight), contents(seen)
    text_ends, vision_ends = common.in_parallel([run_text, run_vision])
    codes = [str(code) for code, _ in text_ends + vision_ends]
    return SimpleNamespace(codes=dict(zip(TEXT_MISTAKES + VISION_MISTAKES, codes, strict=True)),
                           lost_nothing=before == (contents(straight), contents(seen)))


@pytest.mark.parametrize('line', TEXT_MISTAKES + VISION_MISTAKES)
def test_mistakes_get_one_sentence(mistakes, line):
    message = mistakes.codes[line]
    assert line.partition('| ')[2] in message
    assert '\n' not in message


def test_a_mistake_loses_nothing(mistakes):
    assert mistakes.lost_nothing


def test_a_mistake_as_people_meet_it(tokens, tmp_path):
    _, err = common.finish(common.python(*gpt_line(tokens, tmp_path, '--n_layer=1001')), 1)
    assert 'Set --n_layer to a number from 1 to 1000.' in err
    assert len(err.strip().splitlines()) == 1, err
