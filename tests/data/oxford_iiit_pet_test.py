"""Tests of unet_jax/data/oxford_iiit_pet.py; nothing here needs a network."""

import fcntl
import functools
import hashlib
import http.server
import io
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from tensorflow_datasets.core.download import checksums

from tests import folders
from tests.data import helpers
from tests.refusals import cases, message_of
from unet_jax.data import oxford_iiit_pet, sources

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_LAYOUT = (
  'images/NAME.jpg, annotations/trimaps/NAME.png, annotations/trainval.txt, '
  'annotations/test.txt'
)
_SIZE = (8, 8)
# Upstream re-encodes Abyssinian_5, Egyptian_Mau_139 and beagle_116.
_LISTS = {
  'trainval': [
    'Abyssinian_1 1 1 1',
    'Abyssinian_5 1 1 1',
    'beagle_116 5 2 4',
    'yorkshire_terrier_7 37 2 25',
  ],
  'test': ['Egyptian_Mau_139 12 1 6', 'pug_2 26 2 17'],
}
# The order in which TFDS's own builder writes these names.
_ORDER = {
  'train': [
    'Abyssinian_1',
    'yorkshire_terrier_7',
    'beagle_116',
    'Abyssinian_5',
  ],
  'test': ['Egyptian_Mau_139', 'pug_2'],
}
_LIST_OF = {'train': 'trainval', 'test': 'test'}
# Of the image that is a GIF.
_FLAT = np.full((*_SIZE, 3), (200, 40, 90), np.uint8)
# SHA-256 of the pixels that Pillow decodes from the records that TFDS's own
# builder, with TensorFlow 2.21, makes of these two files.
_BY_TENSORFLOW = {
  'Abyssinian_5': (
    '7bca9d3d422ad3a58f12889d042be9d3ee9654d157e34753db13f2c81852b3b6'
  ),
  'beagle_116': (
    'efdc59c8054dee54b8fd537efbeeeede78829486a64282a56d55dc650dd38662'
  ),
}


def _pixels(seed: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (*_SIZE, 4), np.uint8)


def _decode(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


def _make_archive(folder: pathlib.Path) -> pathlib.Path:
  """Writes a tiny set in the layout of the archives."""
  for sub in ('images', 'annotations/trimaps', 'annotations/xmls'):
    (folder / sub).mkdir(parents=True)
  for name, lines in _LISTS.items():
    text = ''.join(line + '\n' for line in lines)
    (folder / f'annotations/{name}.txt').write_text(text)
  names = [line.split()[0] for lines in _LISTS.values() for line in lines]
  for seed, name in enumerate(names):
    image = _pixels(seed)
    if name == 'Abyssinian_5':
      data = folders.encode(image)
    elif name == 'Egyptian_Mau_139':
      data = folders.encode(_FLAT, 'GIF')
    else:
      options = {'subsampling': 0, 'comment': b'pet'}
      data = folders.encode(image[..., :3], 'JPEG', **options)
    (folder / f'images/{name}.jpg').write_bytes(data)
    mask = folders.encode(image[..., 3] % 3 + 1)
    (folder / f'annotations/trimaps/{name}.png').write_bytes(mask)
  (folder / 'annotations/xmls/Abyssinian_1.xml').write_text(
    '<annotation><size><width>8</width><height>16</height></size><object>'
    '<bndbox><xmin>2</xmin><ymin>4</ymin><xmax>6</xmax><ymax>12</ymax>'
    '</bndbox></object></annotation>'
  )
  return folder


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path, monkeypatch):
  # TFDS leaves an empty folder for each builder that finds no records.
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setenv('TMPDIR', str(tmp_path))


@pytest.fixture
def archive(tmp_path):
  return _make_archive(tmp_path / 'pets')


@pytest.fixture
def prepare(archive, tmp_path):
  """Prepares the archive, as it is by then."""
  cache = str(tmp_path / 'cache')
  return lambda: oxford_iiit_pet.prepare(str(archive), cache)


def _read(builder, split: str) -> list[dict]:
  """The records of a split, with its image files as they are."""
  skip = tfds.decode.SkipDecoding()
  decoders = {'image': skip, 'segmentation_mask': skip}
  return list(builder.as_data_source(split, decoders=decoders))


def _names(records) -> list[str]:
  names = [record['file_name'].decode() for record in records]
  assert all(name.endswith('.jpg') for name in names)
  return [name.removesuffix('.jpg') for name in names]


def _check_records(builder, folder: pathlib.Path, order, split: str) -> None:
  """Compares a split with the files, all but the images made anew."""
  records = _read(builder, split)
  assert _names(records)[: len(order)] == order
  by_name = dict(zip(_names(records), records, strict=True))
  lines = folder / f'annotations/{_LIST_OF[split]}.txt'
  lines = [line.split() for line in lines.read_text().splitlines()]
  assert sorted(by_name) == sorted(name for name, *_ in lines)
  for name, label, species, _ in lines:
    record = by_name[name]
    mask = folder / f'annotations/trimaps/{name}.png'
    assert record['segmentation_mask'] == mask.read_bytes()
    assert record['label'] == int(label) - 1
    assert record['species'] == int(species) - 1
    box = _head_box(folder / f'annotations/xmls/{name}.xml')
    assert_array_equal(record['head_bbox'], np.float32(box))
    if name not in ('Abyssinian_5', 'Egyptian_Mau_139', 'beagle_116'):
      image = folder / f'images/{name}.jpg'
      assert record['image'] == image.read_bytes()


def _head_box(path: pathlib.Path) -> list[float]:
  if not path.exists():
    return [0, 0, 0, 0]
  root = ElementTree.parse(path).getroot()
  number = lambda place: float(root.find(place).text)
  return [
    number(f'object/bndbox/{axis}{end}') / number(f'size/{side}')
    for end in ('min', 'max')
    for axis, side in (('y', 'height'), ('x', 'width'))
  ]


def test_local_records_equal_the_files(archive, prepare):
  before = oxford_iiit_pet.upstream._CORRUPT_SAMPLES
  builder = prepare()
  assert builder.info.full_name == 'oxford_iiit_pet/4.0.0'
  assert 'Oxford-IIIT pet dataset' in builder.info.description
  for split, order in _ORDER.items():
    _check_records(builder, archive, order, split)
  box = _read(builder, 'train')[0]['head_bbox']
  assert_array_equal(box, [0.25, 0.25, 0.75, 0.75])
  # Upstream keeps its list.
  assert oxford_iiit_pet.upstream._CORRUPT_SAMPLES is before
  assert len(before) == 12


def test_corrupt_samples_equal_those_of_tensorflow(prepare):
  builder = prepare()
  records = [r for split in _ORDER for r in _read(builder, split)]
  images = dict(zip(_names(records), [r['image'] for r in records]))
  for name, expected in _BY_TENSORFLOW.items():
    array = _decode(images[name])
    assert array.shape == (*_SIZE, 3)
    assert _digest(array) == expected
    image = Image.open(io.BytesIO(images[name]))
    assert image.format == 'JPEG'
    assert image.info['dpi'] == (300, 300)
    assert 'comment' not in image.info
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
  # TensorFlow refuses a GIF here; upstream's lists name none.
  gif = _decode(images['Egyptian_Mau_139'])
  assert_allclose(gif, _FLAT, atol=3)


def test_a_palette_loses_its_alpha(archive, prepare):
  image = Image.new('P', _SIZE, 1)
  image.putpalette([0, 0, 0, 200, 40, 90])
  path = archive / 'images/Abyssinian_5.jpg'
  image.save(path, 'PNG', transparency=bytes([9, 99]))
  array = _decode(_read(prepare(), 'train')[3]['image'])
  assert_allclose(array, _FLAT, atol=3)


def test_a_corrupt_sample_that_is_no_image_is_left_to_the_reader(
  archive, prepare
):
  (archive / 'images/Abyssinian_5.jpg').write_bytes(b'no image')
  assert _read(prepare(), 'train')[3]['image'] == b'no image'


def test_checksums_are_those_of_upstream():
  urls = oxford_iiit_pet.Builder.url_infos
  base = 'https://thor.robots.ox.ac.uk/~vgg/data/pets'
  assert {url: info.size for url, info in urls.items()} == {
    f'{base}/images.tar.gz': 791918971,
    f'{base}/annotations.tar.gz': 19173078,
  }


def test_prepared_once(archive, prepare, tmp_path, monkeypatch, capfd):
  first = prepare()
  assert capfd.readouterr().out == ''  # TFDS prints; ours logs.
  monkeypatch.setattr(oxford_iiit_pet.Builder, 'download_and_prepare', None)
  archive = f'{archive}/images/..'
  second = oxford_iiit_pet.prepare(archive, str(tmp_path / 'cache'))
  assert second.data_dir == first.data_dir
  assert _names(_read(second, 'test')) == _ORDER['test']


def _change(path: pathlib.Path, change):
  """Changes a file, but not its time."""
  times = path.stat()
  change(path)
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _swap(archive):
  """Sizes and times stay, files change their names."""
  for sub, suffix in (('images', 'jpg'), ('annotations/trimaps', 'png')):
    path = archive / f'{sub}/pug_2.{suffix}'
    path.rename(path.with_stem('pug_3'))
  rename = lambda p: p.write_text(p.read_text().replace('pug_2', 'pug_3'))
  _change(archive / 'annotations/test.txt', rename)


_CHANGES = {
  'time': lambda a: os.utime(a / 'annotations/trimaps/pug_2.png', ns=(0, 0)),
  'size': lambda a: _change(
    a / 'images/pug_2.jpg', lambda p: p.write_bytes(p.read_bytes() + b'\0')
  ),
  'names': _swap,
  'list': lambda a: (a / 'annotations/test.txt').write_text(_LISTS['test'][0]),
  'box': lambda a: (a / 'annotations/xmls/Abyssinian_1.xml').unlink(),
}


@pytest.mark.parametrize('change', _CHANGES)
def test_a_changed_folder_is_another_set(archive, change):
  first = oxford_iiit_pet._fingerprint(archive)
  _CHANGES[change](archive)
  assert oxford_iiit_pet._fingerprint(archive) != first


def test_a_changed_folder_is_prepared_anew(archive, prepare, tmp_path):
  first = prepare()
  _swap(archive)
  second = prepare()
  assert second.data_dir != first.data_dir
  for builder in (first, second):
    path = pathlib.Path(builder.data_dir)
    assert path.parents[2] == tmp_path / 'cache/tfds_local'


def test_another_folder_with_the_same_files_is_another_set(tmp_path):
  fingerprints = set()
  for name in ('one', 'other'):
    folder = _make_archive(tmp_path / name)
    for path in folder.rglob('*.*'):
      os.utime(path, ns=(0, 0))
    fingerprints.add(oxford_iiit_pet._fingerprint(folder))
  assert len(fingerprints) == 2


def test_leftovers_of_a_killed_run_are_removed(prepare):
  target = pathlib.Path(prepare().data_dir)
  whole = sorted(path.name for path in target.iterdir())
  # As after a kill: such a folder, and a target without the file that marks it
  # as whole.
  leftover = target.parent / 'incomplete.ABC123_4.0.0'
  leftover.mkdir()
  (leftover / 'bucket').write_bytes(b'half')
  (target / 'dataset_info.json').unlink()
  builder = prepare()
  assert [path.name for path in target.parent.iterdir()] == ['4.0.0']
  assert sorted(path.name for path in target.iterdir()) == whole
  assert _names(_read(builder, 'train')) == _ORDER['train']


def test_a_second_run_waits_and_takes_what_the_first_made(
  archive, prepare, tmp_path, caplog, monkeypatch
):
  caplog.set_level(logging.INFO, 'unet_jax')
  first = oxford_iiit_pet.prepare(str(archive), str(tmp_path / 'first'))
  monkeypatch.setattr(oxford_iiit_pet.Builder, 'download_and_prepare', None)
  root = tmp_path / 'cache/tfds_local' / first.data_dir_root.name
  root.mkdir(parents=True)
  message = 'preparing Oxford-IIIT Pet: waiting for another run that does it'
  builders = []
  second = threading.Thread(target=lambda: builders.append(prepare()))
  with open(root / 'oxford_iiit_pet.lock', 'w') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    second.start()
    end = time.monotonic() + 30
    while message not in caplog.messages and time.monotonic() < end:
      time.sleep(0.01)
    assert message in caplog.messages
    shutil.copytree(
      first.data_dir_root / 'oxford_iiit_pet', root / 'oxford_iiit_pet'
    )
  second.join()
  assert _names(_read(builders[0], 'train')) == _ORDER['train']


_NOT_A_LINE = (
  'is not "NAME CLASS SPECIES BREED" with CLASS in 1..37 and SPECIES 1 or 2; '
  'fix or remove the line'
)
# A command that spoils the folder, and the message.
_SPOILED = f"""\
mv ../pets ../moved
  --config.data.dir=ROOT: no such folder; give one in the layout of the
  Oxford-IIIT Pet archives ({_LAYOUT})
rm -r annotations/trimaps annotations/trainval.txt
  --config.data.dir=ROOT: has no annotations/trimaps/, annotations/trainval.txt;
  extract images.tar.gz and annotations.tar.gz of
  https://thor.robots.ox.ac.uk/~vgg/data/pets there, or arrange the files alike
  ({_LAYOUT})
: > annotations/test.txt
  ROOT/annotations/test.txt: is empty; list the images of this split, one line
  "NAME CLASS SPECIES BREED" each
rm images/beagle_116.jpg images/Abyssinian_5.jpg
  ROOT/annotations/trainval.txt names Abyssinian_5.jpg, which is not in
  ROOT/images; 2 of its 4 are missing like this, add them or remove them from
  the list
rm annotations/trimaps/pug_2.png
  ROOT/annotations/test.txt names pug_2.png, which is not in
  ROOT/annotations/trimaps; 1 of its 2 are missing like this, add them or remove
  them from the list
echo pug_2 38 2 1 >> annotations/test.txt
  ROOT/annotations/test.txt:3: 'pug_2 38 2 1' {_NOT_A_LINE}
echo >> annotations/test.txt
  ROOT/annotations/test.txt:3: '' {_NOT_A_LINE}
echo pug_2 26 2 17 >> annotations/test.txt
  ROOT/annotations/test.txt: names pug_2 twice; remove one line
cd annotations/xmls; sed -i.old s/.xmax.6/'<xmax>9'/ Abyssinian_1.xml
  ROOT/annotations/xmls/Abyssinian_1.xml: holds no head box that can be read
  (BBox coordinates should be between 0 and 1. Got BBox(ymin=0.25, xmin=0.25,
  ymax=0.75, xmax=1.125).); fix or remove it
"""


@pytest.mark.parametrize('command, message', cases(_SPOILED))
def test_a_bad_folder_ends_in_one_line(
  archive, prepare, tmp_path, command, message
):
  subprocess.run(command, shell=True, cwd=archive, check=True)
  assert message_of(prepare) == message.replace('ROOT', str(archive))
  assert not (tmp_path / 'cache').exists()


def test_a_cache_that_cannot_be_written(archive, prepare, tmp_path):
  (tmp_path / 'cache').write_text('a file')
  root = f'{tmp_path}/cache/tfds_local/{oxford_iiit_pet._fingerprint(archive)}'
  assert message_of(prepare) == (
    f"cannot prepare Oxford-IIIT Pet ([Errno 20] Not a directory: '{root}'); "
    f'fix this, or replace the cache folder {tmp_path}/cache with '
    '--config.data.cache_dir=DIR'
  )


@pytest.fixture
def server(archive, tmp_path, monkeypatch):
  """Serves the archive's two parts as upstream's server does; its URL."""
  folder = tmp_path / 'server'
  folder.mkdir()
  for name, mode in (('images', 'w:gz'), ('annotations', 'w')):
    with tarfile.open(folder / f'{name}.tar.gz', mode) as tar:
      tar.add(archive / name, name)

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      del args

  server = http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), functools.partial(Handler, directory=folder)
  )
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  url = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  monkeypatch.setattr(oxford_iiit_pet.upstream, '_BASE_URL', url)
  infos = {
    f'{url}/{path.name}': checksums.compute_url_info(path)
    for path in folder.iterdir()
  }
  monkeypatch.setattr(oxford_iiit_pet.Builder, 'url_infos', infos)
  yield server
  _stop(server, folder)
  thread.join()


def test_download(archive, server, tmp_path):
  cache = tmp_path / 'cache'
  builder = oxford_iiit_pet.prepare('', str(cache))
  target = cache / 'tfds/oxford_iiit_pet/4.0.0'
  assert builder.data_dir == str(target)
  for split, order in _ORDER.items():
    _check_records(builder, archive, order, split)
  # The archives are kept, but not a second time as files.
  downloads = cache / 'tfds/downloads/oxford_iiit_pet'
  suffixes = sorted(''.join(path.suffixes[-2:]) for path in downloads.iterdir())
  assert len(suffixes) == 4 and not (downloads / 'extracted').exists()
  # They are not downloaded again, even if a killed run left its leftovers.
  _stop(server, archive)
  (target / 'dataset_info.json').unlink()
  (downloads / 'extracted').mkdir()
  (downloads / 'x.tar.gz.tmp.0123').mkdir()
  builder = oxford_iiit_pet.prepare('', str(cache))
  assert _names(_read(builder, 'train')) == _ORDER['train']
  assert len(list(downloads.iterdir())) == 4
  # The local set does not take its place, nor the reverse.
  local = oxford_iiit_pet.prepare(str(archive), str(cache))
  assert pathlib.Path(local.data_dir).parents[2] == cache / 'tfds_local'
  assert 'tensorflow' not in sys.modules


def _stop(server, folder):
  del folder
  server.shutdown()
  server.server_close()


# {reason of the message: change of the server and its folder}
_FAULTS = {
  'ConnectionError': _stop,
  'HTTPError 404': lambda _, folder: (folder / 'images.tar.gz').unlink(),
  'NonMatchingChecksumError': lambda _, folder: _change(
    folder / 'images.tar.gz', lambda p: p.write_bytes(p.read_bytes() + b'more')
  ),
}


@pytest.mark.parametrize('reason', _FAULTS)
def test_download_that_fails(server, tmp_path, reason):
  _FAULTS[reason](server, tmp_path / 'server')
  cache = tmp_path / 'cache'
  url = oxford_iiit_pet.upstream._BASE_URL
  assert message_of(oxford_iiit_pet.prepare, '', str(cache)) == (
    f'cannot download {url}/images.tar.gz and {url}/annotations.tar.gz '
    f'({reason}); try again, or name a local copy in the layout of the '
    f'archives ({_LAYOUT}) with --config.data.dir=DIR'
  )
  assert not list((cache / 'tfds/oxford_iiit_pet').iterdir())


def test_no_download_without_checksums(server, tmp_path, monkeypatch):
  del server
  monkeypatch.setattr(oxford_iiit_pet.Builder, 'url_infos', None)
  with pytest.raises(ValueError, match='Missing checksums url: http://127'):
    oxford_iiit_pet.prepare('', str(tmp_path / 'cache'))


def test_folds_of_the_train_split(archive, tmp_path):
  config = helpers.make_config(
    source='tfds',
    dir=str(archive),
    cache_dir=str(tmp_path / 'cache'),
    num_folds=2,
    fold=1,
    holdout='last',
  )
  names = {}
  for split in ('train', 'auto', 'test'):
    source = sources.make_source(config, split)
    shown = [source[i]['name'] for i in range(len(source))]
    names[source.split] = [name.removesuffix('.jpg') for name in shown]
  assert names == {
    'train': _ORDER['train'][:2],
    'fold_1': _ORDER['train'][2:],
    'test': _ORDER['test'],
  }


def test_tensorflow_is_not_imported(archive, tmp_path):
  # A stand-in, so that libraries that look for TensorFlow find it.
  (tmp_path / 'tensorflow.py').write_text('')
  code = f"""if True:
    import sys
    import importlib.util
    assert importlib.util.find_spec('tensorflow')
    from unet_jax.data import oxford_iiit_pet
    builder = oxford_iiit_pet.prepare({str(archive)!r}, {str(tmp_path)!r})
    records = list(builder.as_data_source('train'))
    print(len(records), records[0]['image'].shape, 'tensorflow' in sys.modules)
  """
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{_ROOT}'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (result.returncode, result.stdout) == (0, '4 (8, 8, 3) False\n'), (
    result.stderr
  )


def test_real_files(shared_data, tmp_path):
  folder = shared_data('oxford_pets_600')
  builder = oxford_iiit_pet.prepare(str(folder), str(tmp_path))
  # The first names, as TFDS's own builder writes them.
  for split, count, order in (
    ('train', 300, ['Bengal_149', 'Bengal_182', 'american_bulldog_182']),
    ('test', 298, ['american_bulldog_5', 'Bengal_49', 'Abyssinian_33']),
  ):
    _check_records(builder, folder, order, split)
    assert len(_read(builder, split)) == count
  # The one corrupt sample in these lists, a PNG: the pixels that TFDS's own
  # builder makes with TensorFlow 2.21.
  records = _read(builder, 'test')
  image = records[_names(records).index('Abyssinian_5')]['image']
  assert _digest(_decode(image)) == (
    '48a0dd47b2c80a5ecc41aa60abb90d82c3177b397c7bec60667731751bd428e5'
  )
