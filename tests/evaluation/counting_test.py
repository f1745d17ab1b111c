"""The order of work in an evaluation: the device must never wait."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.testing import assert_array_equal

from tests import tiny
from unet_jax.evaluation import counting
from unet_jax.models import unet


def test_pictures_are_fetched_while_the_next_batch_is_computed(monkeypatch):
  config = tiny.make_config(data={'batch_size': 2}, log={'num_examples': 3})
  state, _ = tiny.setup(config)
  dataset = tiny.Examples(tiny.make_examples(config, 6))
  evaluator = counting.Evaluator(
    config, unet.create_model(config), dataset, tiny.one_device()
  )
  order = []
  step, gather = evaluator._step, multihost_utils.process_allgather

  def record(what, function):
    def call(*args, **options):
      order.append(what)
      return function(*args, **options)

    return call

  monkeypatch.setattr(evaluator, '_step', record('step', step))
  monkeypatch.setattr(
    multihost_utils, 'process_allgather', record('picture', gather)
  )
  _, _, shown = evaluator.run(state.variables('raw'))
  assert order == ['step', 'step', 'picture', 'step', 'picture', 'picture']
  for index, example in zip((0, 2, 5), shown, strict=True):
    assert_array_equal(example['image'], dataset[index]['image'])
    assert_array_equal(example['mask'], dataset[index]['mask'])
  batch = {k: np.stack([e[k] for e in shown]) for k in ('image', 'mask')}
  batch['weight'] = np.ones(3, np.float32)
  alone = tiny.evaluate(config, state, jax.device_put(batch))
  assert_array_equal(alone['prediction'], [e['prediction'] for e in shown])
