"""Masks that were resized smoothly are said to be, and the advice helps."""

import ast
import logging
import re

import cv2
import numpy as np
from PIL import Image

from tests import folders
from tests.inspection import measured
from unet_jax.data import masks, prepare
from unet_jax.inspection import suggest


def _pair(seed, *values, smooth=True):
  """Two discs whose borders lie between pixels."""
  rng = np.random.default_rng(seed)
  mask = np.full((144, 160), values[0], np.uint8)
  for i, value in enumerate((values[1], values[-1])):
    centre = (40 + 75 * i + int(rng.integers(9)), 60 + int(rng.integers(20)))
    cv2.circle(mask, centre, 28 + int(rng.integers(8)), int(value), -1)
  kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
  small = np.asarray(Image.fromarray(mask).resize((64, 58), kind))
  right = mask[::2, ::2][:58, :64]
  noise = rng.integers(0, 30, (58, 64, 3))
  return (noise + 200 * (right != values[0])[..., None]).astype(np.uint8), small


def _pairs(count, *values, **options):
  return {f'{i:02}': _pair(i, *values, **options) for i in range(count)}


def _flags(message):
  """The table and the number of classes that a message prints."""
  table = re.search('mask_values="([^"]*)"', message)
  number = re.search(r'num_classes=(\d+)', message)
  return table and ast.literal_eval(table[1]), number and int(number[1])


def test_a_class_that_was_not_drawn(tmp_path):
  """1 lies along the borders of 0 and 2."""
  folders.write_pairs(tmp_path, _pairs(10, 0, 2))
  found = measured.find(tmp_path, num_classes=3, val_fraction=0.1)
  finding = found['smoothed masks']
  assert finding.level == 'warning' and len(finding.names) > 6
  assert 'values (1) here and there between two others' in finding.message
  assert '--config.data.skip_checks=smoothed' in finding.message
  table, number = _flags(finding.message)
  assert table == ((0, 0), (2, 1), ('others', 'nearest')) and number == 2
  # Which is right, and then there is nothing more to say.
  found = measured.find(tmp_path, mask_values=table, val_fraction=0.1)
  assert 'smoothed masks' not in found and 'unknown values' not in found
  image, mask = _pair(0, 0, 2)
  got = masks.map_mask(mask, table, 2, 'm')
  right = _pair(0, 0, 2, smooth=False)[1] == 2
  assert np.mean(got == right) > 0.99


def test_a_class_that_was_drawn_elsewhere(tmp_path):
  pairs = _pairs(10, 0, 2) | {f'a{i}': _pair(i, 0, 1, 2) for i in range(4)}
  folders.write_pairs(tmp_path, pairs)
  found = measured.find(tmp_path, num_classes=3, val_fraction=0.1)
  message = found['smoothed masks'].message
  assert 'no table undoes it' in message and 'mask_values=' not in message


def test_right_masks_have_no_such_finding(tmp_path):
  folders.write_pairs(tmp_path, _pairs(8, 0, 1, 2, smooth=False))
  found = measured.find(tmp_path, num_classes=3, val_fraction=0.1)
  assert 'smoothed masks' not in found


def test_values_off_the_table_get_the_values_of_all_masks(tmp_path):
  """The first mask has two of three; the table that is printed has all."""
  pairs = _pairs(6, 0, 100) | {f'{i:02}': _pair(i, 0, 50, 100) for i in (6, 7)}
  folders.write_pairs(tmp_path, pairs)
  found = measured.find(tmp_path, val_fraction=0.1)['unknown values']
  table, number = _flags(found.message)
  assert table == ((0, 0), (50, 1), (100, 2), ('others', 'nearest'))
  assert number == 3
  found = measured.find(
    tmp_path, mask_values=table, val_fraction=0.1, num_classes=3
  )
  assert 'unknown values' not in found
  # It is also what is suggested.
  splits, config = measured.measure(tmp_path, val_fraction=0.1)
  suggestions = suggest.suggest(splits, (), config)
  values = {s.field: s.value for s in suggestions}
  assert values['data.mask_values'] == table
  assert values['data.num_classes'] == 3


def test_a_training_says_so(tmp_path, caplog):
  folders.write_pairs(tmp_path, _pairs(9, 0, 2))
  caplog.set_level(logging.WARNING)
  config = folders.make_config(tmp_path, cache='memory', val_fraction=0.1)
  config.data.num_classes = 3
  prepare.prepare(config, 'train')
  (line,) = [r.getMessage() for r in caplog.records if 'smooth' in r.message]
  assert line.endswith('--mode=inspect looks at all')
  assert 'mask_values' not in line
