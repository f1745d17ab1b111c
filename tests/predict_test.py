"""Files of predictions from a workdir alone: against the network itself."""

import errno
import json
import logging
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import unet_jax
from tests import program, runs, tiny
from unet_jax import predict
from unet_jax.config import checks, command_line, saved
from unet_jax.data import rasters, stored
from unet_jax.prediction import index, outputs, predictor
from unet_jax.runtime import errors


def _make_config(resize):
  config = tiny.make_config(model={'norm': 'none'})
  config.data.update(resize=resize, num_workers=2)
  config.data.mask_values = ((10, 0), (20, 1), (30, 2))
  return config


def _make_run(path, resize='patch'):
  runs.save(path, _make_config(resize))
  return path


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return _make_run(tmp_path_factory.mktemp('run'))


def _predict(workdir, root, **fields):
  """Predicts the images in root/in to root/out."""
  fields = {k.replace('__', '.'): v for k, v in fields.items()}
  places = {'predict.input': f'{root}/in', 'predict.output': f'{root}/out'}
  config = saved.read(str(workdir), places | fields)
  checks.validate(config, 'predict')
  predict.run(config, str(workdir))


def _written(root) -> set[str]:
  found = {p.name for p in (root / 'out').rglob('*') if p.is_file()}
  return found - {'index.json', '.index.lock', 'legend.png'}


def _images(folder, names=('a.png', 'b.png', 'c.tif'), seed=0):
  """Images of several sizes; returns {name: array}."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  images = {}
  for i, name in enumerate(names):
    image = rng.integers(0, 256, (20 + 9 * i, 33 - 8 * i, 3), np.uint8)
    if name.endswith('.tif'):
      tifffile.imwrite(folder / name, image, tile=(16, 16))
    else:
      Image.fromarray(image).save(folder / name)
    images[name] = image
  return images


def test_masks_probabilities_overlays_and_contours(workdir, tmp_path, capsys):
  images = _images(tmp_path / 'in')
  fields = {'predict.overlay': True, 'predict.contours': True}
  _predict(workdir, tmp_path, predict__probabilities='npz', **fields)
  assert capsys.readouterr().out == f'3 images, 3 new: {tmp_path}/out\n'
  segment = unet_jax.load(workdir)
  for name, image in images.items():
    want = segment(image)
    stem, _, suffix = name.partition('.')
    path = tmp_path / 'out' / 'masks' / name
    mask = tifffile.imread(path) if suffix == 'tif' else cv2.imread(path, -1)
    values = np.array([10, 20, 30])[want.argmax(-1)]
    np.testing.assert_array_equal(mask, values)
    with np.load(tmp_path / f'out/probabilities/{stem}.npz') as found:
      assert found['class_names'].tolist() == ['class_0', 'class_1', 'class_2']
      got = found['probabilities']
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, atol=1e-3)
    with Image.open(tmp_path / f'out/overlays/{stem}.jpg') as overlay:
      assert overlay.size == image.shape[1::-1]
    assert (tmp_path / 'out/overlays/legend.png').is_file()
    path = tmp_path / f'out/contours/{stem}.geojson'
    outlines = json.loads(path.read_text())
    area = sum(f['properties']['area'] for f in outlines['features'])
    assert area == np.count_nonzero(want.argmax(-1))


@pytest.fixture
def lines(monkeypatch):
  """The lines of the log of the index."""
  found = []
  log = logging.getLogger('unet_jax.prediction.index')
  monkeypatch.setattr(
    log, 'info', lambda text, *args: found.append(text % args)
  )
  return found


def test_what_is_done_is_not_done_again(workdir, tmp_path, capsys, lines):
  _images(tmp_path / 'in')
  _predict(workdir, tmp_path)
  first, second, _ = sorted((tmp_path / 'out/masks').iterdir())
  before = second.stat().st_mtime_ns
  first.unlink()
  capsys.readouterr()
  _predict(workdir, tmp_path)
  assert capsys.readouterr().out == f'3 images, 1 new: {tmp_path}/out\n'
  assert first.exists() and second.stat().st_mtime_ns == before
  # Files that were not asked for before are missing for all.
  _predict(workdir, tmp_path, predict__overlay=True)
  assert capsys.readouterr().out == f'3 images, 3 new: {tmp_path}/out\n'
  assert not lines


def test_nothing_is_restored_where_all_is_done(
  workdir, tmp_path, monkeypatch, capsys
):
  restored, restore = [], predict.restore.restore
  monkeypatch.setattr(
    predict.restore, 'restore', lambda *a: restored.append(a) or restore(*a)
  )
  _images(tmp_path / 'in', ['a.png'])
  _predict(workdir, tmp_path)
  shutil.copytree(workdir, tmp_path / 'copy')
  for place in (workdir, tmp_path / 'copy'):
    _predict(place, tmp_path)
  assert len(restored) == 1
  # Indices of older versions do not know the files of checkpoints.
  path = tmp_path / 'out/index.json'
  older = json.loads(path.read_text())
  (network,) = older['networks'].values()
  del network['files']
  path.write_text(json.dumps(older))
  for _ in range(2):
    _predict(workdir, tmp_path)
  assert len(restored) == 2
  assert capsys.readouterr().out.count('1 images, 0 new') == 4


def test_two_patients_with_files_of_the_same_names(workdir, tmp_path, lines):
  images = {}
  for i, patient in enumerate(('p1', 'p2')):
    images[patient] = _images(tmp_path / patient, ('a.png', 'b.png'), seed=i)
    _predict(workdir, tmp_path, predict__input=f'{tmp_path}/{patient}')
  segment, out = unet_jax.load(workdir), tmp_path / 'out/masks'

  def assert_right():
    for patient, prefix in (('p1', ''), ('p2', 'p2__')):
      for name, image in images[patient].items():
        want = np.array([10, 20, 30])[segment(image).argmax(-1)]
        found = cv2.imread(out / f'{prefix}{name}', -1)
        np.testing.assert_array_equal(found, want)

  assert_right()
  assert lines == [
    '2 images have the stems of others, so their files are named by folder or '
    f'suffix too: {tmp_path}/p2/a.png is p2__a, {tmp_path}/p2/b.png is p2__b'
  ]
  # Names stay, whatever is asked for next.
  _predict(workdir, tmp_path, predict__input=f'{tmp_path}/p*/*')
  _predict(workdir, tmp_path, predict__input=f'{tmp_path}/p2')
  assert len(lines) == 1 and len(list(out.iterdir())) == 4
  assert_right()


def test_another_content_is_predicted_again(workdir, tmp_path, capsys, lines):
  _images(tmp_path / 'in')
  _predict(workdir, tmp_path)
  new = _images(tmp_path / 'in', ['a.png'], seed=5)['a.png']
  capsys.readouterr()
  _predict(workdir, tmp_path)
  assert capsys.readouterr().out == f'3 images, 1 new: {tmp_path}/out\n'
  assert lines == ['predicting 1 images again (a): the content changed']
  want = np.array([10, 20, 30])[unet_jax.load(workdir)(new).argmax(-1)]
  found = cv2.imread(tmp_path / 'out/masks/a.png', -1)
  np.testing.assert_array_equal(found, want)
  # The same content elsewhere is the same image.
  (tmp_path / 'in').rename(tmp_path / 'moved')
  _predict(workdir, tmp_path, predict__input=f'{tmp_path}/moved')
  assert capsys.readouterr().out == f'3 images, 0 new: {tmp_path}/out\n'
  _predict(workdir, tmp_path, predict__input=f'{tmp_path}/moved')
  assert capsys.readouterr().out == f'3 images, 0 new: {tmp_path}/out\n'


def test_another_network_or_setting_predicts_again(tmp_path, capsys, lines):
  config = _make_config('patch')
  runs.save(tmp_path / 'run', config, steps=(1, 2))
  _images(tmp_path / 'in', ['a.png', 'b.png'])
  fields = {'checkpoint.step': 1}
  _predict(tmp_path / 'run', tmp_path, **fields, predict__overlay=True)
  _predict(tmp_path / 'run', tmp_path, **fields, data__num_workers=1)
  assert not lines
  # Pictures of another network do not stay.
  _predict(tmp_path / 'run', tmp_path)
  assert _written(tmp_path) == {'a.png', 'b.png'}
  fields = {'inference.overlap': 0.25, 'data.batch_size': 3}
  _predict(tmp_path / 'run', tmp_path, **fields)
  assert capsys.readouterr().out.count(' 2 new') == 3
  again = 'predicting 2 images again (a, b): '
  assert lines == [
    again + 'the checkpoint changed (step 1, now 2); 2 files that are not '
    'asked for now are removed',
    again + 'inference.overlap changed',
  ]


def test_files_that_no_index_knows_are_refused(workdir, tmp_path):
  images = _images(tmp_path / 'in')
  _predict(workdir, tmp_path)
  (tmp_path / 'out/index.json').unlink()
  (tmp_path / 'out/masks/b.png').unlink()
  with pytest.raises(errors.UserError) as e:
    _predict(workdir, tmp_path)
  assert str(e.value) == (
    f'{tmp_path}/out has files of 2 images (a, c), and no index.json says of '
    'which content and checkpoint they are; remove them, or set '
    '--config.predict.output to another folder'
  )
  _predict(workdir, tmp_path, predict__output=f'{tmp_path}/other')
  assert len(list((tmp_path / 'other/masks').iterdir())) == len(images)


def test_a_killed_run_goes_on(workdir, tmp_path, monkeypatch, capsys, lines):
  """Nothing is written to the index after its beginning."""
  _images(tmp_path / 'in')
  with monkeypatch.context() as m:
    m.setattr(index.Index, 'write', lambda self: None)
    _predict(workdir, tmp_path)
  before = (tmp_path / 'out/masks/a.png').read_bytes()
  _predict(workdir, tmp_path)
  assert capsys.readouterr().out.count('3 images, 3 new: ') == 2
  assert lines == ['predicting 3 images again (a, b, c): their run ended early']
  assert (tmp_path / 'out/masks/a.png').read_bytes() == before


def test_broken_images(workdir, tmp_path, capsys):
  _images(tmp_path / 'in')
  (tmp_path / 'in' / 'b.png').write_bytes(b'\x89PNG broken')
  with pytest.raises(errors.UserError, match='b.png cannot be decoded'):
    _predict(workdir, tmp_path)
  # Finished files stay; nothing else is left.
  assert _written(tmp_path) <= {'a.png', 'c.tif'}
  _predict(workdir, tmp_path, data__on_error='skip')
  assert ' new, 1 skipped: ' in capsys.readouterr().out
  assert _written(tmp_path) == {'a.png', 'c.tif'}


@pytest.mark.parametrize('resize', ['patch', 'stretch'])
def test_damaged_rows(resize, tmp_path, capsys):
  """A TIFF that opens well; one of its last tiles is damaged."""
  run = _make_run(tmp_path / 'run', resize)
  _images(tmp_path / 'in', ('a.png', 'c.tif'))
  path = tmp_path / 'in/b.tif'
  image = np.random.default_rng(0).integers(0, 256, (70, 33, 3), np.uint8)
  tifffile.imwrite(path, image, tile=(16, 16), compression='zlib')
  with tifffile.TiffFile(path) as file:
    place = file.pages.first.dataoffsets[-2]
  with open(path, 'r+b') as file:
    file.seek(place)
    file.write(b'damage' * 5)
  with pytest.raises(errors.UserError, match='b.tif cannot be decoded'):
    _predict(run, tmp_path)
  _predict(run, tmp_path, data__on_error='skip')
  assert _written(tmp_path) == {'a.png', 'c.tif'}
  assert '2 images, ' in capsys.readouterr().out


def test_scaled_images_keep_their_size(tmp_path, capsys):
  run = _make_run(tmp_path / 'run', 'stretch')
  images = _images(tmp_path / 'in', ('a.png', 'b.jpg'))
  fields = {'predict.input': f'{tmp_path}/in/*', 'predict.output': ''}
  _predict(run, tmp_path, **fields)
  for name, image in images.items():
    path = run / f'predictions/masks/{name[0]}.png'
    mask = cv2.imread(path, -1)
    assert mask.shape == image.shape[:2]
    assert set(np.unique(mask)) <= {10, 20, 30}


def test_images_of_another_kind_are_said_once_with_what_to_do(tmp_path, caplog):
  caplog.set_level(logging.WARNING)

  def said(what='another size'):
    found = [r.getMessage() for r in caplog.records]
    caplog.clear()
    return [line for line in found if what in line]

  run = tmp_path / 'run'
  runs.save(
    run,
    _make_config('stretch'),
    edges=(20.0, 24.0, 30.0),
    origins=('RGB of 8 bit',),
  )
  names = ('a.png', 'b.png', 'c.tif')  # 20 x 33, 29 x 25 and 38 x 17 pixels.
  _images(tmp_path / 'in', names)
  _predict(run, tmp_path)
  assert not said()
  big = np.zeros((90, 80, 3), np.uint8)
  Image.fromarray(big).save(tmp_path / 'in/map.png')
  _predict(run, tmp_path)
  (line,) = said()
  assert '1 image(s), one of 90 x 80 pixels' in line
  assert 'is 3.5 times as small' in line
  asked = command_line.parse(re.findall(r'--config\S+', line))
  _predict(run, tmp_path, **asked.overrides)
  assert not said()
  segment = unet_jax.load(run)
  for _ in range(2):
    segment(big)
  assert len(said()) == 1
  cells = np.zeros((24, 24), np.uint16)
  for i in range(2):
    tifffile.imwrite(tmp_path / f'in/cells_{i}.tif', cells)
  _predict(run, tmp_path)
  (line,) = said('grey of 16 bit')
  assert line.startswith('2 of 6 image(s) are grey of 16 bit')
  for _ in range(2):
    segment(cells)
  assert len(said('grey of 16 bit')) == 1


def test_large_images_by_rows(workdir, tmp_path, monkeypatch):
  images = _images(tmp_path / 'in', ('a.tif', 'b.tif'))
  monkeypatch.setattr(predictor, '_KEPT', 0)
  _predict(workdir, tmp_path, predict__overlay=True)
  segment = unet_jax.load(workdir)
  for name, image in images.items():
    mask = tifffile.imread(tmp_path / 'out/masks' / name)
    want = np.array([10, 20, 30])[segment(image).argmax(-1)]
    np.testing.assert_array_equal(mask, want)


def test_a_writer_that_fails_leaves_nothing(workdir, tmp_path, monkeypatch):
  _images(tmp_path / 'in')
  write = outputs.PredictionFiles.write

  def fails(self, rows):
    if self._size[0] == 29:
      raise OSError(28, 'No space left on device')
    write(self, rows)

  monkeypatch.setattr(outputs.PredictionFiles, 'write', fails)
  with pytest.raises(OSError, match='No space'):
    _predict(workdir, tmp_path)
  assert _written(tmp_path) <= {'a.png', 'c.tif'}


def test_a_full_disk_is_named_by_the_output(workdir, tmp_path, monkeypatch):
  _images(tmp_path / 'in', ['a.png'])

  def fails(self, rows):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(outputs.PredictionFiles, 'write', fails)
  with pytest.raises(OSError, match='No space') as e:
    _predict(workdir, tmp_path)
  assert str(e.value.filename) == f'{tmp_path}/out'


# The corner and the pixels of a map in UTM zone 33 north.
_GEO = (
  (33550, 12, 3, (0.5, 0.5, 0.0), True),
  (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
  (34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True),
  (34737, 2, 0, 'WGS 84 / UTM zone 33N|', True),
)


@pytest.mark.parametrize('tiled', [False, True])
def test_a_map_keeps_its_place(tiled, workdir, tmp_path):
  (tmp_path / 'in').mkdir()
  image = np.random.default_rng(0).integers(0, 256, (40, 33, 3), np.uint8)
  options = {'tile': (16, 16)} if tiled else {}
  tifffile.imwrite(
    tmp_path / 'in/a.tif',
    image,
    **options,
    extratags=(*_GEO, (42113, 2, 0, '0', True)),
    resolution=(2.5, 4.0),
    resolutionunit=3,
    metadata=None,
  )
  _predict(workdir, tmp_path, predict__probabilities='tiff')
  for folder in ('masks', 'probabilities'):
    with tifffile.TiffFile(tmp_path / f'out/{folder}/a.tif') as tiff:
      tags = tiff.pages.first.tags
      for code, _, _, value, _ in _GEO:
        assert tags[code].value == value
      assert tags['XResolution'].value == (5, 2)
      assert tags['ResolutionUnit'].value == 3
      # The image's 0 is no data, the mask's is a class.
      assert 'GDAL_NODATA' not in tags


def _with_orientation(path, image, orientation):
  """Writes [H, W, 3] as stored, with the tag."""
  if path.suffix == '.tif':
    tag = (274, 3, 1, orientation, True)
    tifffile.imwrite(path, image, extratags=[tag], tile=(16, 16), metadata=None)
    return
  exif = Image.Exif()
  exif[274] = orientation
  Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('mode', ['stored', 'upright'])
def test_images_that_a_viewer_turns(mode, suffix, workdir, tmp_path, caplog):
  (tmp_path / 'in').mkdir()
  blocks = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
  image = blocks.repeat(8, 0).repeat(8, 1)
  for i in range(1, 9):
    _with_orientation(tmp_path / f'in/{i}.{suffix}', image, i)
  fields = {'data.orientation': mode, 'predict.probabilities': 'npz'}
  _predict(workdir, tmp_path, **fields, predict__overlay=True)
  segment = unet_jax.load(workdir)
  for i in range(1, 9):
    seen = stored.turn(image, i if mode == 'upright' else 1)
    want = stored.turn_back(segment(seen), i if mode == 'upright' else 1)
    with np.load(tmp_path / f'out/probabilities/{i}.npz') as found:
      np.testing.assert_allclose(found['probabilities'], want, atol=1e-3)
    # The mask is stored as the image is, and has its tag: a viewer turns both.
    content = (tmp_path / f'out/masks/{i}.{suffix}').read_bytes()
    mask = stored.read(content, 'x')
    assert mask.orientation == i
    values = np.array([10, 20, 30])[want.argmax(-1)]
    np.testing.assert_array_equal(mask.pixels, values)
    # What has no tag is as a viewer shows it.
    with Image.open(tmp_path / f'out/overlays/{i}.jpg') as overlay:
      found = np.asarray(overlay).astype(int)
    plain = stored.turn(image, i)
    assert found.shape == plain.shape
    alike = [
      np.corrcoef(found.ravel(), turned.ravel())[0, 1]
      for turned in (plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1])
    ]
    assert alike[0] > 0.1 + max(alike[1:])
  lines = [r.getMessage() for r in caplog.records if 'viewer' in r.getMessage()]
  assert lines == [] if mode == 'upright' else len(lines) == 1
  if lines:
    assert lines[0].startswith('7 images have a tag by which a viewer turns')


@pytest.mark.parametrize('suffix', ['tif', 'gif'])
def test_pages_are_images(suffix, workdir, tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  pages = np.random.default_rng(0).integers(0, 256, (3, 40, 33), np.uint8)
  if suffix == 'tif':
    tifffile.imwrite(tmp_path / 'in/a.tif', pages, photometric='minisblack')
  else:
    pages = pages // 128 * 255
    first, *rest = map(Image.fromarray, pages)
    first.save(tmp_path / 'in/a.gif', save_all=True, append_images=rest)
  with pytest.raises(errors.UserError, match='a.*holds 3 images'):
    _predict(workdir, tmp_path)
  fields = {'data.pages': 'images', 'predict.overlay': True}
  for new in (1, 0):
    _predict(workdir, tmp_path, **fields)
    out = capsys.readouterr().out
    assert out == f'1 images, {new} new: {tmp_path}/out\n'
  assert _written(tmp_path) == {
    'a.tif', 'a.page_0001.jpg', 'a.page_0002.jpg', 'a.page_0003.jpg'
  }  # fmt: skip
  segment = unet_jax.load(workdir)
  with tifffile.TiffFile(tmp_path / 'out/masks/a.tif') as tiff:
    for image, page in zip(pages, tiff.pages, strict=True):
      want = np.array([10, 20, 30])[segment(image).argmax(-1)]
      np.testing.assert_array_equal(page.asarray(), want)


def test_a_damaged_page_leaves_nothing(workdir, tmp_path, monkeypatch):
  (tmp_path / 'in').mkdir()
  pages = np.zeros((3, 40, 33), np.uint8)
  tifffile.imwrite(tmp_path / 'in/a.tif', pages, photometric='minisblack')
  opened = rasters.open_image

  def fails(path, data, page):
    if page == 1:
      raise errors.DecodeError('page 1 is damaged')
    return opened(path, data, page)

  monkeypatch.setattr(rasters, 'open_image', fails)
  fields = {'data.pages': 'images', 'data.on_error': 'skip'}
  _predict(workdir, tmp_path, **fields, predict__overlay=True)
  assert not _written(tmp_path)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_pixels_without_data(suffix, workdir, tmp_path):
  (tmp_path / 'in').mkdir()
  image = np.random.default_rng(0).integers(0, 256, (40, 33, 4), np.uint8)
  image[..., 3] = 255
  image[:9, 4:20, 3] = 0
  if suffix == 'tif':
    tifffile.imwrite(
      tmp_path / 'in/a.tif', image, tile=(16, 16), extrasamples=[2]
    )
  else:
    Image.fromarray(image).save(tmp_path / 'in/a.png')
  fields = {'data.alpha': 'nodata', 'predict.contours': True}
  _predict(workdir, tmp_path, **fields, predict__probabilities='tiff')
  content = (tmp_path / f'out/masks/a.{suffix}').read_bytes()
  mask = stored.read(content, 'x')
  transparent = image[..., 3] == 0
  np.testing.assert_array_equal(mask.pixels == 255, transparent)
  assert mask.nodata == (255 if suffix == 'tif' else None)
  likely = tifffile.imread(tmp_path / 'out/probabilities/a.tif')
  np.testing.assert_array_equal(np.isnan(likely[..., 0]), transparent)
  outlines = json.loads((tmp_path / 'out/contours/a.geojson').read_text())
  area = sum(f['properties']['area'] for f in outlines['features'])
  assert area == np.count_nonzero((mask.pixels != 10) & ~transparent)


_KINDS = {
  'grey.png': lambda x: x[..., 0],
  'color.png': lambda x: x,
  'opaque.png': lambda x: np.dstack([x, np.full(x.shape[:2], 255, np.uint8)]),
  'bilevel.png': lambda x: x[..., 0] > 99,
  'deep.png': lambda x: x[..., 0].astype(np.uint16) * 200,
  'deep.tif': lambda x: x[..., 0].astype(np.uint16) * 200,
  'deep_color.tif': lambda x: x.astype(np.uint16) * 200,
  'float.tif': lambda x: (x[..., 0] / 255).astype(np.float32),
}


@pytest.mark.parametrize('resize', ['patch', 'stretch'])
def test_load_gives_what_predict_writes(resize, tmp_path):
  """Of each kind of file that a program has as an array."""
  run = _make_run(tmp_path / 'run', resize)
  (tmp_path / 'in').mkdir()
  image = np.random.default_rng(0).integers(0, 256, (40, 33, 3), np.uint8)
  arrays = {name: make(image) for name, make in _KINDS.items()}
  for name, array in arrays.items():
    if name.endswith('.tif'):
      tifffile.imwrite(tmp_path / 'in' / name, array)
    else:
      Image.fromarray(array).save(tmp_path / 'in' / name)
  _predict(run, tmp_path, predict__probabilities='tiff')
  segment = unet_jax.load(run)
  # deep.png and deep.tif have one stem.
  names = {p.name for p in (tmp_path / 'out/probabilities').iterdir()}
  assert {'deep_png.tif', 'deep_tif.tif', 'grey.tif'} < names
  for name, array in arrays.items():
    stem = name.partition('.')[0]
    stem = name.replace('.', '_') if stem == 'deep' else stem
    found = tifffile.imread(tmp_path / f'out/probabilities/{stem}.tif')
    np.testing.assert_array_equal(found, segment(array).astype(np.float16))


@pytest.mark.whole_runs
def test_main(workdir, tmp_path):
  """From the workdir alone: no --config."""
  _images(tmp_path / 'in', ('slice 1.png',))
  out, err = program.run(
    '--mode=predict',
    f'--workdir={workdir}',
    f'--config.predict.input={tmp_path}/in/slice 1.png',
    f'--config.predict.output={tmp_path}/out',
    "--config.inference.flips=('horizontal',)",
    f'--config.data.cache_dir={tmp_path}',
  )
  assert out == f'1 images, 1 new: {tmp_path}/out\n'
  assert (tmp_path / 'out/masks/slice 1.png').exists()
  assert 'averaging 1 network(s), 2 view(s)' in err
  assert "XLA's convolutions" in err
  out, err = program.run(
    '--mode=predict',
    f'--workdir={tmp_path}/none',
    '--config.predict.input=x',
    code=1,
  )
  assert err == (
    f'error: {tmp_path}/none: no such folder; name that of a run\n'
  )
