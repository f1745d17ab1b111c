"""Inputs of predictions and the files that they get."""

import json
import pathlib
import tracemalloc

import cv2
import numpy as np
import pytest
import scipy.special
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from configs import folder
from unet_jax.config import checks, default
from unet_jax.data import decode, masks, rasters, sources
from unet_jax.prediction import contours, inputs, outputs, overlays
from unet_jax.runtime import errors

_SIZE = (70, 61)
_COLORS = (((0, 0, 0), 0), ((255, 0, 0), 1), ((9, 9, 9), 1), (200, 2))


def _config(predict=None, **data):
  config = default.get_config()
  config.data.update(num_classes=3, num_workers=1)
  config.data.update(data)
  config.predict.update(predict or {})
  return config


def _logits(num_classes: int, seed=0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  small = rng.normal(size=(14, 12, num_classes)).astype(np.float32) * 5
  large = cv2.resize(small, _SIZE[::-1], interpolation=cv2.INTER_CUBIC)
  return large.reshape(*_SIZE, num_classes)


def _raster(config) -> rasters.ArrayRaster:
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (*_SIZE, 3)).astype(np.uint8)
  return rasters.ArrayRaster(image, config.data)


def _open(config, root, source='in/a.png'):
  source = pathlib.Path(source)
  paths = outputs.make_paths(source, root, source.stem, config)
  return outputs.PredictionFiles(_raster(config), paths, config), paths


def _predict(config, logits, root, source='in/a.png', heights=()):
  """Writes bands of these heights, and the rest as one."""
  files, paths = _open(config, root, source)
  for rows in np.split(logits, np.cumsum(heights, dtype=int)):
    files.write(rows)
  files.close()
  return paths


def _everything(kind, **predict):
  predict |= dict(overlay=True, contours=True, probabilities=kind)
  return _config(predict)


def _files(root) -> list[str]:
  files = (p for p in root.rglob('*') if p.is_file())
  return sorted(str(p.relative_to(root)) for p in files)


@pytest.mark.parametrize(
  'table,num_classes,expected',
  [
    ((), 3, [0, 1, 2]),
    ((), 1, [0, 1]),
    (((0, 0), (255, 1)), 1, [0, 255]),
    (((0, 0), (255, 1)), 2, [0, 255]),
    (((255, 0), (0, 1)), 2, [255, 0]),
    (((2, 0), (1, 1), (4, 1), (3, 2), (9, 255)), 3, [2, 1, 3]),
    (((0, 0), (300, 1), (65535, 2)), 3, [0, 300, 65535]),
    (_COLORS, 3, [[0, 0, 0], [255, 0, 0], [200, 200, 200]]),
    ((('others', 1), (0, 0)), 1, [0, 1]),
    (((1, 0), ('others', 1)), 2, [1, 0]),
    (((0, 0), ('others', 1), (1, 2), (300, 1)), 3, [0, 300, 1]),
    (
      (((255, 0, 0), 1), ('others', 0), (9, 2)),
      3,
      [[0, 0, 0], [255, 0, 0], [9, 9, 9]],
    ),
  ],
)
@pytest.mark.parametrize('suffix', ['png', 'tif', 'TIFF'])
def test_masks_are_those_of_data(
  suffix, table, num_classes, expected, tmp_path
):
  config = _config(num_classes=num_classes, mask_values=table)
  logits = _logits(num_classes)
  classes = logits.argmax(-1) if num_classes > 1 else logits[..., 0] > 0
  paths = _predict(config, logits, tmp_path, f'in/a.{suffix}')
  name = 'a.png' if suffix == 'png' else 'a.tif'
  assert _files(tmp_path) == [f'masks/{name}']
  with Image.open(paths.mask) as image:
    stored = np.asarray(image)
  assert_array_equal(stored, np.array(expected)[classes.astype(int)])
  assert stored.dtype == (np.uint16 if np.max(expected) > 255 else np.uint8)
  values = decode.decode_mask(paths.mask.read_bytes(), 'x', config.data).array
  mapped = masks.map_mask(values, table, num_classes, 'x')
  assert_array_equal(mapped, classes)


@pytest.mark.parametrize(
  'table,num_classes,expected',
  [
    ((), 2, 255),
    (((0, 0), (1, 1)), 2, 255),
    (((0, 0), (255, 1)), 2, 254),
    (((0, 0), (255, 1), (254, 2)), 3, 253),
    (((0, 0), (1, 1), (9, 255)), 2, 9),
    (((0, 0), (1, 1), (300, 255)), 2, 300),
    (((0, 0), (1, 1), (-1, 255)), 2, 255),
    ((((0, 0, 0), 0), ((255, 0, 0), 1)), 2, (254, 254, 254)),
    ((((0, 0, 0), 0), ((9, 0, 0), 1), ((1, 2, 3), 255)), 2, (1, 2, 3)),
  ],
)
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_pixels_without_data_have_a_value_of_no_class(
  suffix, table, num_classes, expected, tmp_path
):
  config = _config(num_classes=num_classes, mask_values=table, nodata=(7,))
  raster, logits = _raster(config), _logits(num_classes)
  ignored = np.zeros(_SIZE, bool)
  ignored[8:20, 3:7] = True
  raster.ignored = lambda start, stop: ignored[start:stop]
  paths = outputs.make_paths(pathlib.Path(f'a.{suffix}'), tmp_path, 'a', config)
  files = outputs.PredictionFiles(raster, paths, config)
  for rows in np.split(logits, [5, 12]):
    files.write(rows)
  files.close()
  with Image.open(paths.mask) as image:
    found = np.asarray(image)
  is_value = found == np.array(expected)
  is_value = is_value.all(-1) if found.ndim == 3 else is_value
  assert_array_equal(is_value, ignored)
  if (expected, 255) in table:
    values = decode.decode_mask(paths.mask.read_bytes(), 'x', config.data).array
    mapped = masks.map_mask(values, table, num_classes, 'x')
    assert_array_equal(mapped, np.where(ignored, 255, logits.argmax(-1)))


_RANGE = ': masks are written with values of 0 to {}; choose others'


@pytest.mark.parametrize(
  'table,message',
  [
    (
      ((0, 0), (255, 2)),
      ' has no value for class 1, so its pixels cannot be written; add '
      '(VALUE, 1)',
    ),
    (((0, 0), (-1, 1), (5, 2)), _RANGE.format(65535)),
    ((((0, 0, 0), 0), ((0, 0, 9), 1), (300, 2)), _RANGE.format(255)),
  ],
)
def test_tables_that_cannot_be_inverted(table, message):
  config = _config(source='folder', dir='x', mask_values=table)
  checks.validate(config, 'evaluate')
  with pytest.raises(errors.UserError) as e:
    checks.validate(config, 'predict')
  assert str(e.value) == f'--config.data.mask_values={table}{message}'


@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('kind', ['npz', 'tiff'])
def test_probabilities(kind, num_classes, tmp_path):
  config = _config({'probabilities': kind}, num_classes=num_classes)
  config.data.class_names = ('grün', 'b', 'c')[: max(num_classes, 2)]
  logits = _logits(num_classes)
  logits[0, 0] = 1e4
  paths = _predict(config, logits, tmp_path)
  expected = scipy.special.softmax(logits.astype(float), -1)
  if num_classes == 1:
    foreground = scipy.special.expit(logits.astype(float))
    expected = np.concatenate([1 - foreground, foreground], -1)
  suffix = {'npz': 'npz', 'tiff': 'tif'}[kind]
  assert paths.probabilities == tmp_path / f'probabilities/a.{suffix}'
  if kind == 'npz':
    with np.load(paths.probabilities) as found:
      probabilities = found['probabilities']
      names = found['class_names'].tolist()
    assert names == list(config.data.class_names)
  else:
    with tifffile.TiffFile(paths.probabilities) as tiff:
      probabilities = tiff.asarray()
      description = tiff.pages.first.description
    assert description.startswith('gr\\xfcn, b')
  assert probabilities.dtype == np.float16
  assert_allclose(probabilities, expected, atol=5e-4)


def test_overlay(tmp_path):
  config = _config({'overlay': True})
  paths = _predict(config, _logits(3), tmp_path, heights=(7, 20))
  assert _files(tmp_path) == ['masks/a.png', 'overlays/a.jpg']
  classes = _logits(3).argmax(-1).astype(np.uint8)
  whole = overlays.OverlayFile(tmp_path / 'a.jpg', _raster(config), 3)
  whole.write(classes)
  whole.close()
  expected = (tmp_path / 'a.jpg').read_bytes()
  assert paths.overlay.read_bytes() == expected
  with Image.open(paths.overlay) as image:
    assert image.format == 'JPEG'


def test_contours(tmp_path):
  config = _config({'contours': True})
  paths = _predict(config, _logits(3), tmp_path, heights=(7, 20))
  assert _files(tmp_path) == ['contours/a.geojson', 'masks/a.png']
  classes = _logits(3).argmax(-1).astype(np.uint8)
  likely = scipy.special.softmax(_logits(3), -1).max(-1)
  likely = np.rint(likely * 255).astype(np.uint8)
  names = ('class_0', 'class_1', 'class_2')
  expected = list(contours.features(classes, likely, names))
  found = json.loads(paths.contours.read_text('utf-8'))['features']
  assert [f['geometry'] for f in found] == [f['geometry'] for f in expected]
  for one, other in zip(found, expected):
    assert one['properties'] == pytest.approx(other['properties'], abs=2e-3)
  assert sum(f['properties']['area'] for f in found) == np.sum(classes > 0)


def _contents(paths) -> list:
  mask = np.asarray(Image.open(paths.mask))
  if paths.probabilities.suffix == '.npz':
    with np.load(paths.probabilities) as found:
      probabilities = found['probabilities']
  else:
    probabilities = tifffile.imread(paths.probabilities)
  pictures = [p.read_bytes() for p in (paths.overlay, paths.contours)]
  return [mask.tobytes(), probabilities.tobytes(), *pictures]


@pytest.mark.parametrize('kind', ['npz', 'tiff'])
def test_bands_of_any_height_give_the_same(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(overlays, '_LARGEST', 25)
  config = _everything(kind)
  suffix = {'npz': 'png', 'tiff': 'tif'}[kind]
  logits = _logits(3)
  whole = _predict(config, logits, tmp_path / 'whole', f'a.{suffix}')
  for seed in range(5):
    heights = np.random.default_rng(seed).integers(1, 23, 3)
    root = tmp_path / str(seed)
    bands = _predict(config, logits, root, f'a.{suffix}', heights)
    assert _contents(bands) == _contents(whole)


@pytest.mark.parametrize('rows', [0, 30, 70])
@pytest.mark.parametrize('kind', ['npz', 'tiff'])
def test_errors_leave_nothing(kind, rows, tmp_path):
  config = _everything(kind)
  files, _ = _open(config, tmp_path)
  if rows:
    files.write(_logits(3)[:rows])
  assert len(_files(tmp_path)) == 4
  files.abort()
  assert not _files(tmp_path)


def test_rows_that_are_missing_or_too_many(tmp_path):
  files, _ = _open(_config({'probabilities': 'npz'}), tmp_path)
  logits = _logits(3)
  files.write(logits[:20])
  for rows, error in (
    (logits[20:, :9], '70 rows of 9 pixels; expected 70 of 61'),
    (logits[19:], '71 rows of 61 pixels; expected 70 of 61'),
  ):
    with pytest.raises(ValueError, match=error):
      files.write(rows)
  with pytest.raises(ValueError, match='20 of 70 rows were written'):
    files.close()
  assert not _files(tmp_path)


def test_memory_of_large_images(tmp_path):
  config = _config({'probabilities': 'tiff', 'overlay': True})
  height, width = 1024, 5000
  source = tmp_path / 'a.tif'
  image = np.zeros((height, width), np.uint8)
  tifffile.imwrite(source, image, tile=(128, 128), compression='zlib')
  band = np.zeros((32, width, 3), np.float32)
  band[..., 1] = np.arange(width) % 7 > 3
  paths = outputs.make_paths(source, tmp_path, 'a', config)
  tracemalloc.start()
  try:
    with rasters.open_image(source, config.data) as raster:
      files = outputs.PredictionFiles(raster, paths, config)
      for _ in range(0, height, 32):
        files.write(band)
      files.close()
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  # 61 MB of float32 logits; a row of float16 tiles takes 8 MB, the image's
  # tiles 4 MB, a band's logits 2 MB, the picture 5 MB.
  assert peak < 25e6


def _touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (4, 4)).save(path, 'PNG')


def test_paths(tmp_path):
  config = _everything('tiff')
  out = outputs.output_folder(config, str(tmp_path / 'run'), [])
  assert out == tmp_path / 'run/predictions'
  for suffix, mask in (('png', 'b.png'), ('jpg', 'b.png'), ('TIFF', 'b.tif')):
    paths = outputs.make_paths(pathlib.Path(f'x.{suffix}'), out, 'b', config)
    assert paths == outputs.Paths(
      out / f'masks/{mask}',
      out / 'probabilities/b.tif',
      out / 'overlays/b.jpg',
      out / 'contours/b.geojson',
    )
  config.predict.update(output=str(tmp_path / 'here'), overlay=False)
  out = outputs.output_folder(config, 'run', [])
  paths = outputs.make_paths(pathlib.Path('b.png'), out, 'b', config)
  assert paths.mask == tmp_path / 'here/masks/b.png' and not paths.overlay


def test_files_of_a_name(tmp_path):
  assert not outputs.found(tmp_path)
  paths = _predict(_everything('npz'), _logits(3), tmp_path)
  _touch(tmp_path, 'masks/aa.png', 'masks/.a.png', 'masks/a.txt')
  found = outputs.found(tmp_path)
  assert found.keys() == {'a', 'aa'}
  assert sorted(found['a']) == paths.files(1) and len(found['a']) == 4
  config = _config({'overlay': True})
  args = pathlib.Path('a.gif'), tmp_path, 'a', config, 2
  names = ['masks/a.tif'] + [f'overlays/a.page_000{i}.jpg' for i in '12']
  assert outputs.make_paths(*args).files(2) == [tmp_path / n for n in names]
  assert outputs.without_page('b.page_0012') == 'b'
  assert outputs.without_page('b.page_x') == 'b.page_x'


@pytest.mark.parametrize(
  'given,output,images',
  [
    ('set', 'set', 'set/images'),
    ('set/images', 'set', 'set/images'),
    ('set/images', 'set/images', 'set/images'),
    ('set/images/a.png', 'set/masks/..', 'set/images'),
    ('set/masks', 'set', 'set/masks'),
  ],
)
def test_output_among_the_images(given, output, images, tmp_path):
  _touch(tmp_path, 'set/images/a.png', 'set/masks/a.png')
  places = {'input': f'{tmp_path}/{given}', 'output': f'{tmp_path}/{output}'}
  config = _config(places)
  found = inputs.find(config.predict.input)
  with pytest.raises(errors.UserError) as e:
    outputs.output_folder(config, 'run', found)
  assert str(e.value) == (
    f'--config.predict.output={tmp_path}/{output}: would mix with the images '
    f'in {tmp_path}/{images}; choose another folder, such as '
    f'--config.predict.output={tmp_path}/{output}/predictions'
  )


def test_output_is_a_folder_of_pairs(tmp_path):
  config = folder.get_config()
  config.data.update(dir=str(tmp_path), mask_values=((0, 0), (255, 1)))
  config.data.val_fraction = 0.5
  for stem in 'ab':
    _predict(config, _logits(2, ord(stem)), tmp_path, f'{stem}.png')
    image = _raster(config).read(0, _SIZE[0])
    _touch(tmp_path, f'images/{stem}.png')
    Image.fromarray(image).save(tmp_path / f'images/{stem}.png')
  example = sources.make_source(config, 'train')[0]
  mask, table = example['mask'], config.data.mask_values
  mapped = masks.map_mask(mask, table, 2, example['mask_name'])
  assert_array_equal(mapped, _logits(2, ord('a')).argmax(-1))
