"""Lines at intervals where there is no terminal."""

import logging

import pytest

from unet_jax.runtime import progress as progress_lib


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: now[0])
  return now


@pytest.fixture
def lines(monkeypatch):
  found = []
  log = logging.getLogger('unet_jax.runtime.progress')
  monkeypatch.setattr(
    log, 'info', lambda text, *args: found.append(text % args)
  )
  return found


def test_hours_are_told_apart_from_minutes():
  seconds = (65.9, 3599, 3605, 72065)
  shown = [progress_lib.clock(number) for number in seconds]
  assert shown == ['1:05', '59:59', '1:00:05', '20:01:05']


def test_a_line_at_each_interval(clock, lines):
  with progress_lib.Progress('predicting', 1000) as bar:
    for i in range(900):
      clock[0] += 8 if i == 0 else 1  # The first one compiles.
      bar.update()
  assert lines[:2] == [
    'predicting: 3 of 1000 images, 1 images/s, 16:37 left',
    'predicting: 13 of 1000 images, 1 images/s, 16:27 left',
  ]
  # Later, a tenth of the time that it took until then.
  assert 20 < len(lines) < 40
  assert lines[-2].startswith('predicting: 803 ')
  assert lines[-1].startswith('predicting: 863 ')


def test_no_line_of_short_work_nor_of_the_end(clock, lines):
  with progress_lib.Progress('predicting', 3) as bar:
    for _ in range(2):
      clock[0] += 4
      bar.update()
    clock[0] += 400
    bar.update()
  assert not lines


def test_parts_of_a_large_image(clock, lines):
  with progress_lib.Progress('predicting', 1) as bar:
    for _ in range(30):
      clock[0] += 10
      bar.update(1 / 30)
  assert lines[1] == (
    'predicting: 0 of 1 images and 7% of the next, 0.00333 images/s, 4:40 left'
  )
  assert len(lines) > 15


def test_a_terminal_has_a_bar(clock, lines, monkeypatch, capsys):
  monkeypatch.setattr(progress_lib.sys.stderr, 'isatty', lambda: True)
  with progress_lib.Progress('predicting', 4) as bar:
    for _ in range(4):
      clock[0] += 100
      bar.update()
  assert not lines
  assert 'predicting: 100%' in capsys.readouterr().err
