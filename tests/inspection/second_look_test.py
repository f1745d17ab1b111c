"""What is measured of suspicious pairs only."""

import numpy as np
import pytest

from tests import folders
from tests.inspection import measured, objects
from unet_jax.data import sources
from unet_jax.inspection import records, second_look


def _look(root, pairs, **data):
  folders.write_pairs(root / 'train', pairs)
  folders.write_pairs(root / 'val', folders.make_pairs(2, 50))
  splits, config = measured.measure(root, **data)  # It looks again itself.
  return splits['train'], config


@pytest.mark.parametrize('values', [(0, 1), (40, 90)])
def test_a_flipped_mask_among_right_ones(tmp_path, values):
  """Whether its values are in the table or not."""
  pairs = folders.make_pairs(20)
  image, mask = pairs['07']
  pairs['07'] = image, mask[:, ::-1].copy()
  pairs = {k: (i, np.take(np.uint8(values), m)) for k, (i, m) in pairs.items()}
  found, _ = _look(tmp_path, pairs)
  assert [m.index for m in found if m.is_suspicious] == [7]
  assert all(m.look is not None and m.owner is not None for m in found)


def test_a_right_set_is_not_looked_at_again(tmp_path):
  found, _ = _look(tmp_path, folders.make_pairs(20))
  assert not any(m.look or m.owner or m.is_suspicious for m in found)


def test_pixels_without_data_say_nothing(tmp_path):
  found, config = _look(tmp_path, folders.make_pairs(3))
  example = dict(sources.make_source(config, 'train')[0])
  example['ignored'] = np.zeros(example['mask'].shape, bool)
  example['ignored'][:5] = True
  classes = second_look._any_classes(example, config.data)
  assert np.all(classes[:5] == 255)
  np.testing.assert_array_equal(classes[5:], example['mask'][5:])


def test_prepared_sets_are_sampled_and_looked_at_only_under_suspicion():
  pairs = objects.make_pairs(12)
  flipped = [(i, m[:, ::-1].copy()) for i, m in pairs]
  for chosen, seen in ((pairs, 0), (flipped, 12)):
    dataset = [{'image': image, 'mask': mask} for image, mask in chosen]
    found = [records.Measurement('train', i) for i in range(12)]
    second_look.fit_prepared(dataset, found)
    assert all(m.fit is not None for m in found)
    assert sum(m.look is not None for m in found) == seen
