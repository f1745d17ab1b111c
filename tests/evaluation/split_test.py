"""Images that are added in any order, and the examples of the page."""

import contextlib

import numpy as np
import pytest

from tests import tiny
from unet_jax.evaluation import measures, split
from unet_jax.prediction import probabilities
from unet_jax.runtime import errors


def _config():
  config = tiny.make_config(eval={'num_examples': 2, 'bootstrap': 0})
  config.data.class_names = ('a', 'b', 'c')
  return config


def _images():
  """{index: (logits, mask)} of several sizes."""
  rng = np.random.default_rng(0)
  sizes = [(9, 14), (5, 8), (12, 12), (7, 30), (20, 11), (6, 6)]
  logits = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
  masks = [rng.integers(0, 3, size).astype(np.uint8) for size in sizes]
  return dict(enumerate(zip(logits, masks), 10))


def _add(measured, images):
  for index, (logits, mask) in images.items():
    prediction = probabilities.predict(logits)
    measured.add(index, f'n{index}', logits, prediction, mask)


def test_the_worst_come_first():
  scores = [0.5, np.nan, 0.1, 0.9, 0.4, 0.3]
  rows = [{'image': str(i), 'miou': m} for i, m in enumerate(scores)]
  with contextlib.closing(split.MeasuredSplit(_config())) as measured:
    _add(measured, _images())
    measured.results()  # Of all processes.
    found = measured.examples(rows, lambda index: {'index': index})
  names = {k: ''.join(p['name'] for p in v) for k, v in found.items()}
  assert names == {'worst': '25', 'median': '54', 'best': '30'}
  assert [p['index'] for p in found['worst']] == [12, 15]
  assert [p['score'] for p in found['worst']] == [0.1, 0.3]


@pytest.mark.parametrize('in_memory', [1, 2**20])
def test_order_and_place_of_predictions_do_not_matter(in_memory, monkeypatch):
  monkeypatch.setattr(split, '_IN_MEMORY', in_memory)
  images, config = _images(), _config()
  with contextlib.closing(split.MeasuredSplit(config)) as measured:
    _add(measured, dict(reversed(images.items())))
    result = measured.results()
    shown = measured.examples(
      result['rows'], lambda i: {'index': i, 'mask': images[i][1]}
    )
  assert [row['image'] for row in result['rows']] == [f'n{i}' for i in images]
  spec = measures.make_spec(config)
  alone = [
    measures.measure_image(x, probabilities.predict(x), mask, spec)
    for x, mask in images.values()
  ]
  expected, _ = measures.summarize(alone, spec)
  assert result['metrics'] == pytest.approx(expected, nan_ok=True)
  assert result['num_examples'] == 6
  for example in [e for examples in shown.values() for e in examples]:
    logits, _ = images[example['index']]
    np.testing.assert_array_equal(example['prediction'], logits.argmax(-1))
    assert example['name'] == f'n{example["index"]}'


def test_no_image_at_all():
  with contextlib.closing(split.MeasuredSplit(_config())) as measured:
    with pytest.raises(errors.UserError, match='no image of the split could'):
      measured.results()
