"""The rate counts the images of the time that it counts."""

import pytest

from unet_jax.training import progress as progress_lib


def test_rate_skips_pauses_but_no_image(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress_lib.time, 'perf_counter', lambda: now[0])
  progress = progress_lib.Progress(0, 100, batch_size=8)
  for step in range(1, 21):
    now[0] += 50 if step == 1 else 0.5  # The first one compiles.
    progress.update(step)
    if step == 10:  # A checkpoint off the interval of the log.
      progress.pause()
      now[0] += 30
  progress.mark()
  # Every step takes half a second, the one after the pause is not timed.
  assert progress.images_per_second == pytest.approx(8 / 0.5)
