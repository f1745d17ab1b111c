"""What an error advises is done here: it helps, or leads to the next mistake.

Advice is read out of the message, as a user reads it. Followed to its end, it
comes to a config that is taken, or to a message that advises nothing to type,
and never to one that was there before.
"""

import contextlib
import io
import re
import types

import cv2
import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import folders, runs, tiny
from tests.config import checks_test
from tests.refusals import cases
from unet_jax.config import checks, default, fields, values
from unet_jax.data import image_levels, prepare, sources, windows
from unet_jax.inspection import findings, scan
from unet_jax.prediction import inputs, outputs
from unet_jax.runtime import errors
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import checkpoint

_FLAG = (
  r'--config\.(?P<field>[a-z_0-9.]+)='
  r"(?P<value>'[^']+'|\"[^\"]+\"|[^\s;),]+(?:,[^\s;),]+)*)"
)
_SUBJECT = re.compile(r'--config\.(?P<field>[a-z_0-9.]+)(?:=|:| )')
# What is advised for the field that the message begins with.
_OF_SUBJECT = (
  r'did you mean (?P<value>[^?]+)\?',
  r'not one of (?P<value>\w+)',
  r'set it to (?P<value>\(\)|\w+)',
  r'nearest that are: (?P<value>\d+)',
  r"write '(?P<value>[^']+)'",
  r', or (?P<value>\(\)) for',
  r'such as (?P<value>\S+)$',
  r'at most (?P<value>\d+)',
  r'must be at least (?P<value>-?[\d.]+)(?! and below|, and)',
  r'; use (?P<value>\w+)',
  r'; take (?P<value>\d+) or more',
)
# Other fields, without their --config.
_OF_OTHERS = (
  r'needs (?P<field>[a-z_0-9]+\.[a-z_0-9.]+)=(?P<value>\w+)',
  r'; set (?P<field>[a-z_]+\.[a-z_]+)$',
)


def _advice(message: str, instead: dict[str, str]) -> dict[str, str]:
  """{'section.field': text} of what a message says to type."""
  for word, text in instead.items():
    message = re.sub(rf'\b{word}\b', text, message)
  subject = _SUBJECT.match(message)
  rest = message[subject.end() :] if subject else message
  size = re.search(r'use at least (\d+) pixels|that do are (\d+)', rest)
  if size:
    return {'data.image_size': '{0},{0}'.format(size[1] or size[2])}
  drawn = re.findall(r'(data\.num_\w+) (?:must be )?(\d+)', rest)
  if drawn:
    return dict(drawn)
  found = re.search(rf'{_FLAG}(?: {_FLAG.replace("<", "<next_")})?', rest)
  if found:
    flags = {found['field']: found['value']}
    if found['next_field']:  # One is of no use without the other.
      flags[found['next_field']] = found['next_value']
    return {name: text.strip('\':"') for name, text in flags.items()}
  for pattern in _OF_SUBJECT if subject else ():
    found = re.search(pattern, rest)
    if found:
      return {subject['field']: found['value']}
  for pattern in _OF_OTHERS:
    found = re.search(pattern, rest)
    if found:
      return {found['field']: found.groupdict().get('value') or '5'}
  return {}


def _follow(config, run, instead=types.MappingProxyType({})) -> list[str]:
  """Runs, does what the error advises, and again; returns the messages."""
  messages = []
  while True:
    try:
      run(config)
    except errors.UserError as e:
      message = str(e)
      assert '\n' not in message
      assert message not in messages, f'it leads back: {messages}'
      messages.append(message)
    else:
      return [*messages, '']
    advice = _advice(message, instead)
    if not advice:
      return messages
    read = {name: values.parse(name, text) for name, text in advice.items()}
    values.update(config, read)


_CASES = [text for text, _ in cases(checks_test._REFUSED)]


@pytest.mark.parametrize('text', _CASES)
def test_fields_that_do_not_go_together(text):
  config = checks_test._config(text)
  messages = _follow(config, checks.validate, {'DIR': '/d'})
  # Flags and names that are given are right.
  if 'did you mean' in messages[0] or re.search(_FLAG, messages[0][9:]):
    assert messages[-1] == ''


def test_most_advice_can_be_typed():
  """A pattern here that finds nothing would pass everything."""
  ends = [
    _follow(checks_test._config(text), checks.validate, {'DIR': '/d'})[-1]
    for text in _CASES
  ]
  assert ends.count('') > len(ends) / 3


def test_lowest_values():
  for field, least in fields.AT_LEAST.items():
    config = default.get_config()
    with config.ignore_type():
      config.update_from_flattened_dict({field: type(least)(least - 1)})
    assert _follow(config, checks.validate)[-1] == '', field


def _prepare(config):
  """What a start does before it trains."""
  checks.validate(config)
  mesh_lib.make_mesh(config)
  for split in (config.data.train_split, config.data.eval_split):
    dataset = prepare.prepare(config, split)
    if config.data.resize == 'patch' and split == config.data.train_split:
      windows.Draws(dataset, config)
    for i in range(len(dataset)):
      dataset[i]


def _folder(tmp_path, change=None, **data):
  """Eight pairs, changed, and their config."""
  pairs = folders.make_pairs(8)
  for stem, pair in pairs.items() if change else ():
    if change is not _BROKEN or stem == '03':
      pairs[stem] = change(*pair)
  folders.write_pairs(tmp_path / 'data', pairs)
  config = folders.make_config(tmp_path / 'data', cache='memory', batch_size=8)
  config.data.update(**data)
  config.model.depth = 2
  return config


_SCALED = lambda image, mask: (image, mask * np.uint8(255))
_COLOURED = lambda image, mask: (
  image,
  np.stack([200 * mask, 50 * mask, 0 * mask], -1).astype(np.uint8),
)
_deep = lambda factor, dtype: (
  lambda image, mask: (
    _tiff((image[..., 0] * factor).astype(dtype)),
    mask,
  )
)


def _no_data(image, mask):
  image = (image[..., 0] / np.float32(50)).astype(np.float32)
  image[:6, :5] = -9999
  return _tiff(image), mask


def _logarithm(image):
  with np.errstate(divide='ignore'):
    return _tiff(np.log(image[..., 0] // 9 / np.float32(28)))


def _alpha(*values):
  """A mask that is drawn in colours, with values below what is transparent."""

  def change(image, mask):
    rgb = np.where(mask[..., None] > 0, np.uint8([255, 0, 0]), values[0])
    alpha = np.where(mask > 0, 255, values[1])
    return image, np.dstack([rgb, alpha]).astype(np.uint8)

  return change


def _transparent_image(image, mask):
  alpha = np.full(mask.shape, 255, np.uint8)
  alpha[:5] = 0
  return np.dstack([image, alpha]), mask


def _smoothed(image, mask):
  """A disc whose border lies between pixels."""
  large = np.zeros((80, 96), np.uint8)
  cv2.circle(large, (45, 41), 27, 255, -1)
  small = Image.fromarray(large).resize(
    mask.shape[::-1], Image.Resampling.BILINEAR
  )
  return image, np.asarray(small)


def _tiff(pixels, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, pixels, **options)
  return file.getvalue()


_BROKEN = lambda image, mask: (folders.encode(image)[:300], mask)

# What is wrong with a folder or its config, and how many messages it takes.
_FOLDERS = {
  'a mask of 0 and 255': (_SCALED, {}),
  'a mask of colours': (_COLOURED, {}),
  'a mask of three values': (
    lambda image, mask: (image, np.where(image[..., 0] > 150, 3, mask)),
    {'num_classes': 2},
  ),
  'a mask that numbers objects': (
    lambda image, mask: (image, (mask * np.arange(1, 49)).astype(np.uint8)),
    {},
  ),
  'a mask that was smoothed': (_smoothed, {}),
  'a mask that was smoothed, and a table': (
    _smoothed,
    {'mask_values': ((0, 0), (255, 1))},
  ),
  'a mask of integers below 0': (
    lambda image, mask: (image, _tiff(mask.astype(np.int16) - 1)),
    {},
  ),
  'a mask with a transparent background': (_alpha(255, 0), {}),
  'a mask with a transparent background, and a table': (
    _alpha(7, 0),
    {'mask_values': (((255, 0, 0), 1), ('others', 0))},
  ),
  'a mask with alpha that says nothing': (
    lambda image, mask: (image, np.dstack([mask, mask, mask, 0 * mask + 9])),
    {},
  ),
  'images with alpha': (_transparent_image, {}),
  'floats': (_deep(0.1, np.float32), {}),
  'integers with a sign': (_deep(100, np.int16), {}),
  'values that stand for no data': (_no_data, {}),
  'values that are not finite': (
    lambda image, mask: (_logarithm(image), mask),
    {},
  ),
  'pages': (
    lambda image, mask: (
      _tiff(np.stack([image] * 2), photometric='rgb'),
      _tiff(np.stack([mask] * 2), photometric='minisblack'),
    ),
    {},
  ),
  'bands': (
    lambda image, mask: (
      _tiff(
        np.dstack([image, image[..., :2]]),
        photometric='minisblack',
        planarconfig='contig',
      ),
      mask,
    ),
    {},
  ),
  'a file that is broken': (_BROKEN, {}),
  'a file that is broken, and no cache': (_BROKEN, {'cache': 'none'}),
  'no folder': (None, {'dir': ''}),
  'a cache that cannot be': (None, {'cache': 'disk', 'cache_dir': '/dev/null'}),
  'more folds than images': (None, {'num_folds': 9}),
  'windows without a cache': (None, {'resize': 'patch', 'cache': 'none'}),
  'classes without windows': (None, {'sample_classes': ('class_1',)}),
  'a batch for no devices': (None, {'batch_size': 7}),
}


# Masks that come out as those that were changed.
_SAME_MASKS = (
  'a mask of 0 and 255',
  'a mask of colours',
  'a mask that numbers objects',
  'a mask with a transparent background',
  'a mask with a transparent background, and a table',
  'a mask with alpha that says nothing',
)


def _range_of(config):
  """What --mode=inspect puts in its place."""
  source = sources.make_source(config, 'train')
  measured, _ = scan.scan(source, config)
  return image_levels.range_text([m.levels for m in measured if m.levels])


@pytest.mark.parametrize('name', _FOLDERS)
def test_folders(name, tmp_path):
  change, data = _FOLDERS[name]
  config = _folder(tmp_path, change, **data)
  instead = {'DIR': str(tmp_path / 'data'), 'CLASS': '1'}
  instead['LOW,HIGH'] = _range_of(config) if change is not None else ''
  messages = _follow(config, _prepare, instead)
  assert len(messages) > 1 or len(jax.devices()) == 1
  assert messages[-1] == ''
  if name in _SAME_MASKS:
    right = _folder(tmp_path / 'right')
    got, expected = (
      prepare.prepare(c, 'train').stats.class_pixels for c in (config, right)
    )
    np.testing.assert_array_equal(got, expected)


def test_names_that_differ_by_a_rule(tmp_path):
  for i in range(8):
    image, mask = folders.make_pair(i)
    for name, array in ((f'{i}.png', image), (f'{i}_x7.png', mask)):
      tmp_path.joinpath(name).write_bytes(folders.encode(array))
  config = folders.make_config(tmp_path, cache='memory', batch_size=8)
  messages = _follow(config, _prepare)
  assert len(messages) == 2 and messages[-1] == ''


def _tagged(image, mask):
  pixels = image[..., 0].copy()
  pixels[:7] = 0
  # GDAL's tag of the value that is no data.
  return _tiff(pixels, extratags=[(42113, 's', 0, '0', True)]), mask


_WARNINGS = {
  'lost levels': _deep(8, np.uint16),
  'constant image': _deep(4, np.uint16),
  'lost levels, no data': _tagged,
  'EXIF rotation': lambda image, mask: (
    folders.encode(image, exif=_TURNED),
    folders.encode(mask, exif=_TURNED),
  ),
}
_TURNED = Image.Exif()
_TURNED[0x0112] = 3


@pytest.mark.parametrize('name', _WARNINGS)
def test_warnings_of_data(name, tmp_path, caplog):
  """Done as they say, they are gone, in a training and an inspection."""
  config = _folder(tmp_path, _WARNINGS[name])

  def lines():
    caplog.clear()
    prepare.prepare(config, 'train')
    source = sources.make_source(config, 'train')
    found = findings.find({'train': scan.scan(source, config)[0]}, config)
    logged = [r.getMessage() for r in caplog.records]
    return [line for line in logged if line.startswith('train: ')] + [
      f.message for f in found if f.kind == name.split(',')[0]
    ]

  before = lines()
  assert before
  for line in before:
    flags = _advice(line, {})
    assert flags and 'data.skip_checks' not in flags
    values.update(config, {f: values.parse(f, t) for f, t in flags.items()})
  assert lines() == []


def test_windows_around_no_pixel(tmp_path):
  config = _folder(tmp_path, resize='patch')
  for i in range(8):
    image, mask = folders.make_pair(i)
    folders.write_pairs(tmp_path / 'data', {f'{i:02}': (image, 0 * mask)})
  messages = _follow(config, _prepare)
  assert len(messages) == 2 and messages[-1] == ''


def test_predictions_beside_their_images(tmp_path):
  config = _folder(tmp_path)
  config.predict.output = str(tmp_path / 'data')

  def plan(config):
    images = inputs.find(config.predict.input)
    outputs.output_folder(config, str(tmp_path / 'run'), images)

  messages = _follow(config, plan, {'PATH': str(tmp_path / 'data')})
  assert len(messages) == 3 and messages[-1] == ''


def test_steps_that_are_not_there(tmp_path):
  config = tiny.make_config()
  runs.save(tmp_path / 'run', config, steps=(1,))
  config.checkpoint.update(which='best')

  def restored(config):
    with contextlib.closing(
      checkpoint.Checkpoints(str(tmp_path / 'run'), config, read_only=True)
    ) as checkpoints:
      checkpoints.select(config.checkpoint.which, config.checkpoint.step)

  assert _follow(config, restored)[-1] == ''
