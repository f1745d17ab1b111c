"""Lines and event files, after a kill as well."""

import json
import math
import struct
import sys

import jax
from tensorboardX.proto import event_pb2

from unet_jax.training import metric_writer


def _events(folder):
  """The events of a folder's files: length, checksum, bytes, checksum."""
  events = []
  for path in sorted(folder.glob('events.out.*')):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[12 + size + 4 :]
  return events


def _scalars(folder):
  return {
    (event.step, value.tag): value.simple_value
    for event in _events(folder)
    for value in event.summary.value
  }


def test_lines_and_events(tmp_path):
  writer = metric_writer.MetricWriter(str(tmp_path), 0, tensorboard=True)
  writer.write(1, {'train/loss': 0.5})
  scores = {'eval/dataset_iou/a b+c': 0.25, 'eval/image_iou/none': math.nan}
  writer.write(2, scores)
  # Whole before the writer is closed: a kill loses no line.
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  writer.close()
  assert [json.loads(line) for line in lines] == [
    {'step': 1, 'train/loss': 0.5},
    {'step': 2, 'eval/dataset_iou/a b+c': 0.25, 'eval/image_iou/none': None},
  ]
  # A score that is undefined is no point of a curve.
  assert _scalars(tmp_path / 'tensorboard') == {
    (1, 'train/loss'): 0.5,
    (2, 'eval/dataset_iou/a_b_c'): 0.25,
  }


def test_continued_run_drops_what_came_after_its_checkpoint(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(
    '{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/loss": 2.0}\n'
    '{"step": 2, "eval/loss": 5.0}\n{"step": 3, "train/loss": 1.0}\n'
    '{"step": 4, "train/lo'
  )
  steps = [m['step'] for m in metric_writer.read_metrics(str(tmp_path))]
  assert steps == [1, 2, 2, 3]
  _write(tmp_path, 2, 3)
  assert metric_writer.read_metrics(str(tmp_path)) == [
    {'step': 1, 'train/loss': 3.0},
    {'step': 2, 'train/loss': 2.0},
    {'step': 2, 'eval/loss': 5.0},
    {'step': 3, 'train/loss': 0.5},
  ]
  start = event_pb2.SessionLog.START
  events = _events(tmp_path / 'tensorboard')
  starts = [e.step for e in events if e.session_log.status == start]
  # TensorBoard hides what an earlier file has from this step on.
  assert starts == [3]


def _write(tmp_path, start, step, tensorboard=True):
  writer = metric_writer.MetricWriter(str(tmp_path), start, tensorboard)
  writer.write(step, {'train/loss': 0.5})
  writer.close()


def test_no_event_file_without_tensorboard_or_without_a_line(tmp_path):
  _write(tmp_path, 0, 1, tensorboard=False)
  metric_writer.MetricWriter(str(tmp_path), 1, tensorboard=True).close()
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  _write(tmp_path, 0, 1)
  assert not list(tmp_path.iterdir())


def test_no_metrics_yet(tmp_path):
  assert metric_writer.read_metrics(str(tmp_path)) == []


def test_torch_is_not_imported_to_write_events(tmp_path, monkeypatch):
  """It takes seconds in which no step is made."""
  (tmp_path / 'torch.py').write_text('raise AssertionError("was imported")')
  monkeypatch.syspath_prepend(tmp_path)
  for name in list(sys.modules):
    if name.partition('.')[0] in ('tensorboardX', 'torch'):
      monkeypatch.delitem(sys.modules, name)
  writer = metric_writer.MetricWriter(str(tmp_path), 0, tensorboard=True)
  writer.write(1, {'train/loss': 0.5})
  writer.close()
  assert _scalars(tmp_path / 'tensorboard') == {(1, 'train/loss'): 0.5}
  # Whoever asks for it later gets it.
  assert 'torch' not in sys.modules
