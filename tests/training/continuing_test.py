"""What is said where a run goes on at another learning rate."""

import pytest

from unet_jax.config import default
from unet_jax.training import continuing


def _config(num_steps, decay_steps, end_factor):
  config = default.get_config()
  config.train.num_steps = num_steps
  config.optimizer.update(
    learning_rate=0.5,
    warmup_steps=0,
    decay_steps=decay_steps,
    end_factor=end_factor,
  )
  return config


def _change(step, old, new):
  return continuing.rate_change(_config(*old), _config(*new), step)


def test_a_run_that_goes_on_at_another_rate_says_so():
  assert _change(10, (10, 0, 0.0), (20, 0, 0.0)) == (
    'the learning rate of step 10 was 0.012, that of step 11 is 0.25, 20 times '
    'as high: the cosine schedule came down at step 10, now at 20. '
    '--config.optimizer.decay_steps=10 --config.optimizer.end_factor=0.01 '
    'keeps the old schedule, and stays at its end'
  )
  assert _change(5, (10, 0, 0.1), (20, 0, 0.1)).endswith(
    '. --config.optimizer.decay_steps=10 keeps the old schedule, and stays at '
    'its end'
  )
  # Its own advice is another rate than 0, which is said too.
  assert _change(10, (10, 0, 0.0), (20, 10, 0.01)) == (
    'the learning rate of step 10 was 0.012, that of step 11 is 0.005, 0.41 '
    'times as high: the cosine schedule came down at step 10, now at 10'
  )


@pytest.mark.parametrize(
  'step,old,new',
  [
    (10, (10, 0, 0.0), (10, 0, 0.0)),
    (10, (10, 20, 0.0), (20, 0, 0.0)),
    (5, (10, 0, 0.1), (20, 10, 0.1)),
    (10, (10, 0, 0.1), (20, 10, 0.1)),
  ],
)
def test_a_run_that_goes_on_as_planned_says_nothing(step, old, new):
  assert _change(step, old, new) == ''
