"""Data sets and weights from the Hugging Face Hub: as much of one as a download needs, on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from support.pretrained import find_weights
from support.resume import load_checkpoint
from tests import common
from tests.common import NOBODY, TEXTS, load_images, nanogpt_split, one_after_the_other, parquet, prepared
from tests.test_pretrained import assert_refused, write_gpt2, write_timm


class Hub(BaseHTTPRequestHandler):
    """
    server.sets: {'owner/name' or 'owner/name@revision': {path: bytes} or an HTTP status}; .broken: paths of
    which only half is sent
    """
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', half=False, **headers):
        self.send_response(status)
        for key, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[:len(body) // 2] if half else body)
        self.close_connection = half

    def do_GET(self):
        sent = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        url = urlsplit(self.path)
        words = [unquote(word) for word in url.path.strip('/').split('/')]
        api = words[0] == 'api'
        at = api + 1 if api or words[0] == 'datasets' else 0  # the address of a model's file has no 'models'
        name, rest = '/'.join(words[at:at + 2]), words[at + 2:]
        commits = {f'{r:0>40}'.replace('/', '-'): r for r in ('main', 'refs/convert/parquet', 'refs/pr/18')}
        asked = [pair for pair in commits.items() if rest[1:] and rest[1] in pair]
        commit, revision = (asked or list(commits.items()))[0]
        files = self.server.sets.get(name if revision == 'main' else f'{name}@{revision}', 404)
        if isinstance(files, int):
            code = {401: 'GatedRepo', 403: 'GatedRepo', 404: 'RepoNotFound'}.get(files, '')
            return self.answer(files, b'{}', X_Error_Code=code)
        if not api:  # name/resolve/revision/path
            path = '/'.join(rest[2:])
            if path not in files:
                return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
            body, status, headers = files[path], 200, {}
            if wanted := self.headers.get('Range'):
                start, _, end = wanted[len('bytes='):].partition('-')
                end = min(int(end or len(body)), len(body) - 1)
                headers['Content_Range'] = f'bytes {start}-{end}/{len(body)}'
                body, status = body[int(start):end + 1], 206
            return self.answer(status, body, half=path in self.server.broken and self.command == 'GET',
                               ETag=f'"{hashlib.sha1(files[path]).hexdigest()}"', X_Repo_Commit=commit,
                               **headers)

        def entry(path):
            oid = hashlib.sha1(files[path]).hexdigest()
            return {'type': 'file', 'path': path, 'size': len(files[path]), 'oid': oid}

        if rest[:1] == ['tree']:
            head = ''.join(f'{word}/' for word in rest[2:])
            below = [path for path in files if path.startswith(head)]
            if not below:
                return self.answer(404, b'{}', X_Error_Code='EntryNotFound')
            deep = 'recursive=true' in url.query.lower()
            folders = {head + path[len(head):].split('/')[0] for path in below if '/' in path[len(head):]}
            body = [entry(path) for path in below if deep or '/' not in path[len(head):]]
            body += [{'type': 'directory', 'path': folder, 'size': 0, 'oid': 'b' * 40} for folder in folders]
        elif rest[:1] == ['paths-info']:
            body = [entry(path) for path in files if path in unquote(sent.decode())]
        else:
            body = {'id': name, 'sha': commit, 'siblings': [{'rfilename': path} for path in files],
                    'tags': []}
        self.answer(200, json.dumps(body).encode(), Content_Type='application/json')

    do_HEAD = do_POST = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.daemon_threads = True
    server.sets, server.broken = {}, set()
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_all(monkeypatch, folder, url, *lines, script='prepare_owt.py'):
    """(the sentence of a refusal, what is printed) of command lines. They write to folder/0, folder/1, ..."""
    monkeypatch.setenv('HF_ENDPOINT', url)
    monkeypatch.setenv('HF_HOME', str(folder / 'home'))
    flags = ['--tokenizer=byte'] if script == 'prepare_owt.py' else []
    return one_after_the_other([[script, '--num_proc=1', f'--out_dir={folder}/{i}', *flags, *line.split()]
                                for i, line in enumerate(lines)])


CARD = b"""---
configs:
- {config_name: one, data_files: a/*.parquet}
- {config_name: two, data_files: [{split: train, path: b/t.parquet}, {split: validation, path: b/v.parquet}]}
---
"""


@pytest.mark.slow
def test_prepare_from_the_hub(tmp_path, hub, monkeypatch):
    hub.sets['me/plain'] = {'data/train-00000-of-00002.parquet': parquet(*TEXTS[:90]),
                            'data/train-00001-of-00002.parquet': parquet(*TEXTS[90:])}
    hub.sets['me/parts'] = {'README.md': CARD, 'a/x.parquet': parquet(*TEXTS[:20]),
                            'b/t.parquet': parquet(*TEXTS[20:100]), 'b/v.parquet': parquet(*TEXTS[100:])}
    hub.sets['me/bytes'] = {'train.parquet': parquet(*[text.encode() for text in TEXTS])}
    # openwebtext: no copy with too few rows is taken
    owner = 'Skylion007/openwebtext'
    hub.sets[f'{owner}@refs/convert/parquet'] = {'plain_text/partial-train/0.parquet': parquet(*TEXTS[:199])}
    hub.sets[f'{owner}@refs/pr/18'] = {'data/train-00000-of-00093.parquet': parquet(*TEXTS[:50])}
    hub.sets['dylanebert/openwebtext'] = {'plain_text/train-00000-of-00080.parquet': parquet(*TEXTS)}
    *_, (own, _), (sentence, said) = run_all(
        monkeypatch, tmp_path, hub.url, '--dataset=me/plain', '--dataset=me/bytes', '--dataset=me/parts:two',
        '--dataset=me/plain --max_docs=100', '--max_docs=30', '--dataset=me/parts:two --val_fraction=0.1', '')
    assert own == 'me/parts:two has a validation split of its own. Leave --val_fraction out.'
    whole, of_bytes, parts, few, openwebtext = (prepared(tmp_path / str(i)) for i in range(5))
    assert whole[2]['source'] == 'me/plain'
    assert whole[:2] == of_bytes[:2] == nanogpt_split(TEXTS)
    assert parts[:2] == (TEXTS[20:100], TEXTS[100:])
    assert few[:2] == nanogpt_split(TEXTS[:100])
    assert openwebtext[:2] == nanogpt_split(TEXTS[:30])
    assert openwebtext[2]['source'] == f'{owner}@refs/pr/18'
    assert f'{owner}@refs/convert/parquet has 199 rows, not 8,013,769. So this copy' in said
    assert f'{owner}@refs/pr/18 has 50 rows' in said
    assert 'dylanebert/openwebtext has 200 rows' in said
    assert sentence.endswith('or name a copy as --dataset=dylanebert/openwebtext.')


LOG_IN = ' is not on the Hub, or it is gated or private, and no file or folder here has that name. Check'
COLUMN = ("me/column has no text under 'text'. Set --text_column to one of its columns of text (content: "
          'string).')
REFUSED = {  # the dataset: what its sentence begins with
    'me/a401': f'me/a401{LOG_IN}', 'me/a403': f'me/a403{LOG_IN}', 'me/a404': f'me/a404{LOG_IN}',
    'me/a500': 'me/a500 cannot be reached on the Hub (', 'me/half': 'me/half cannot be reached on the Hub (',
    'me/column': COLUMN, 'me/column --max_docs=10': COLUMN,
    'me/script': 'me/script cannot be read (', 'me/two': 'me/two cannot be read (Config name is missing.',
    'me/two:three': "me/two:three cannot be read (BuilderConfig 'three' not found.",
    'me/test': 'me/test has no split train but test. Download it and use --dataset=FOLDER.'}


@pytest.mark.slow
def test_prepare_says_why_the_hub_refuses(tmp_path, hub, monkeypatch):
    hub.sets |= {'me/a401': 401, 'me/a403': 403, 'me/a404': 404, 'me/a500': 500,
                 'me/script': {'script.py': b'', 'README.md': b'hello'},
                 'me/column': {'data/train.parquet': parquet(content=TEXTS)},
                 'me/two': {'README.md': CARD, 'a/x.parquet': parquet('a'), 'b/t.parquet': parquet('b')},
                 'me/test': {'data/test.parquet': parquet(*TEXTS)},
                 'me/half': {'data/train-half.parquet': parquet(*TEXTS * 99)}}
    hub.broken.add('data/train-half.parquet')
    ended = run_all(monkeypatch, tmp_path, hub.url, *(f'--dataset={dataset}' for dataset in REFUSED))
    for begin, (sentence, _) in zip(REFUSED.values(), ended):
        assert sentence.startswith(begin)
    assert {path.name for path in tmp_path.iterdir()} == {'home'}


@pytest.mark.slow
def test_prepare_says_that_there_is_no_network(tmp_path, monkeypatch):
    sentence, _ = run_all(monkeypatch, tmp_path, NOBODY, '--dataset=me/any')[0]
    assert ' cannot be reached on the Hub (' in sentence
    assert sentence.endswith('Check the spelling and the network, and run the same command again.')


@pytest.mark.slow
def test_pictures_from_the_hub(tmp_path, hub, monkeypatch):
    for split, n in (('train', 6), ('test', 2)):
        pictures = [(common.noise_picture(4, 4, i), i % 2) for i in range(n)]
        common.image_table(tmp_path / f'hub/{split}.parquet', pictures, 'img', names=['a', 'b'])
    hub.sets |= {'uoft-cs/cifar10': {p.name: p.read_bytes() for p in (tmp_path / 'hub').iterdir()},
                 'ILSVRC/imagenet-1k': 403}
    datasets = [f'--dataset={name}' for name in ('cifar10', 'imagenet-1k', 'nobody/nothing')]
    cifar, gated, nothing = run_all(monkeypatch, tmp_path, hub.url, *datasets, script='prepare_imagenet.py')
    assert 'Downloading uoft-cs/cifar10 to ' in cifar[1]
    assert 'test split is stored as val_*' in cifar[1]
    assert load_images(tmp_path / '0', 'train')[1].tolist() == [0, 1, 0, 1, 0, 1]
    assert len(load_images(tmp_path / '0', 'val')[1]) == 2
    assert gated[0].startswith(f'ILSVRC/imagenet-1k{LOG_IN}')
    assert nothing[0].startswith(f'nobody/nothing{LOG_IN}')


# -----------------------------------------------------------------------------
# weights

def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetch_weights(name, url, folder, monkeypatch, offline=False):
    """load_checkpoint() of a name from a Hub at that address, called in a folder; the cache is in it too."""
    constants = pytest.importorskip('huggingface_hub.constants')
    template = '/'.join((url, '{repo_id}/resolve/{revision}/{filename}'))
    for key, value in (('ENDPOINT', url), ('HUGGINGFACE_CO_URL_TEMPLATE', template),
                       ('HF_HUB_OFFLINE', offline), ('HF_HUB_CACHE', str(folder / 'cache'))):
        monkeypatch.setattr(constants, key, value)
    monkeypatch.chdir(folder)
    return load_checkpoint(find_weights(name))


@pytest.mark.slow
def test_weights_from_the_hub(tmp_path, hub, monkeypatch):
    for name, keys in (('me/tiny', {}), ('openai-community/gpt2', {'n_positions': 8}),
                       ('me/parts', {'shards': 3})):
        write_gpt2(tmp_path / name, **keys)
    write_timm(tmp_path / 'timm/vit_x.tag')
    away = tmp_path / 'away'  # where none of these folders lies
    away.mkdir()
    names = {'me/tiny': 'me/tiny', 'gpt2': 'openai-community/gpt2', 'me/parts': 'me/parts',
             'timm/vit_x.tag': 'timm/vit_x.tag'}
    for name, repo in names.items():
        hub.sets[repo] = files_of(tmp_path / repo) | {'pytorch_model.bin': b'a pickle', 'README.md': b'hello'}
        expected = load_checkpoint(str(tmp_path / repo))
        for url, offline in ((hub.url, False), (NOBODY, False), (NOBODY, True)):  # then the cache has it
            got = fetch_weights(name, url, away, monkeypatch, offline)
            assert got['model_args'] == expected['model_args']
            assert got['model'].keys() == expected['model'].keys()
            assert all((got['model'][k] == t).all() for k, t in expected['model'].items())
    cached = {path.name for path in away.rglob('snapshots/*/*')}
    assert 'config.json' in cached
    assert not cached & {'pytorch_model.bin', 'README.md'}


@pytest.mark.slow
def test_the_hub_refuses_weights_in_one_sentence(tmp_path, hub, monkeypatch):
    write_gpt2(tmp_path / 'whole', n_embd=64)
    write_gpt2(tmp_path / 'parts', shards=2)
    write_gpt2(tmp_path / 'own', files={'vocab.json': {'a': 0, 'b': 1}})
    whole, parts, own = (files_of(tmp_path / name) for name in ('whole', 'parts', 'own'))
    hub.sets |= {'me/a401': 401, 'me/a500': 500, 'me/half': whole, 'me/own': own,
                 'me/pickle': {'config.json': whole['config.json'], 'pytorch_model.bin': b''},
                 'me/lost': {k: v for k, v in parts.items() if k != 'model-00002-of-00002.safetensors'}}
    for name, *words in (
            ('me/a401', 'me/a401 is gated', 'Accept its terms', 'hf auth login'),
            ('me/a404', 'me/a404 is not a file or folder here', 'not on the Hugging Face Hub', 'spelling'),
            ('me/a500', 'me/a500', 'the Hugging Face Hub answers HTTP 500'),
            ('me/pickle', 'me--pickle', 'nor weights of GPT-2 or a ViT', 'not a pickle'),
            ('me/lost', 'me--lost', 'cannot be read (', 'model-00002-of-00002.safetensors'),
            ('me/own', 'me--own', "has its own tokenizer (vocab.json differs from GPT-2's)"),
            ('me/absent.pt', 'Cannot read the checkpoint me/absent.pt')):
        assert_refused(lambda: fetch_weights(name, hub.url, tmp_path, monkeypatch), *words)
    hub.broken.add('model.safetensors')
    assert_refused(lambda: fetch_weights('me/half', hub.url, tmp_path, monkeypatch),
                   'download of me/half broke off', 'same line')


@pytest.mark.slow
def test_without_a_network_weights_say_where_a_folder_would_be_found(tmp_path, monkeypatch):
    assert_refused(lambda: fetch_weights('gpt2', NOBODY, tmp_path, monkeypatch),
                   'gpt2 is not a file or folder here', 'the Hugging Face Hub cannot be reached',
                   f'put config.json and model.safetensors into {tmp_path}/gpt2.')
    write_gpt2(tmp_path / 'gpt2', n_positions=13)  # as it says
    assert fetch_weights('gpt2', NOBODY, tmp_path, monkeypatch)['model_args']['block_size'] == 13
