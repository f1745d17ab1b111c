"""Lines and event files, after a kill as well."""

import csv
import json
import math
import os
import struct

import jax
import numpy as np
import pytest
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
  writer.write(
    2, {'eval/dataset_iou/a b+c': 0.25, 'eval/image_iou/none': math.nan}
  )
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
  assert [m['step'] for m in metric_writer.read_metrics(str(tmp_path))] == [
    1,
    2,
    2,
    3,
  ]
  writer = metric_writer.MetricWriter(str(tmp_path), 2, tensorboard=True)
  writer.write(3, {'train/loss': 0.5})
  writer.close()
  assert metric_writer.read_metrics(str(tmp_path)) == [
    {'step': 1, 'train/loss': 3.0},
    {'step': 2, 'train/loss': 2.0},
    {'step': 2, 'eval/loss': 5.0},
    {'step': 3, 'train/loss': 0.5},
  ]
  starts = [
    e.step
    for e in _events(tmp_path / 'tensorboard')
    if e.session_log.status == event_pb2.SessionLog.START
  ]
  # TensorBoard hides what an earlier file has from this step on.
  assert starts == [3]


def test_no_event_file_without_tensorboard_or_without_a_line(tmp_path):
  writer = metric_writer.MetricWriter(str(tmp_path), 0, tensorboard=False)
  writer.write(1, {'train/loss': 0.5})
  writer.close()
  metric_writer.MetricWriter(str(tmp_path), 1, tensorboard=True).close()
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_write_json_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'eval.json'
  metric_writer.write_json(
    str(path), {'step': 3, 'a': math.nan, 'b': math.inf, 'split': 'test'}
  )
  assert json.loads(path.read_text()) == {
    'step': 3,
    'a': None,
    'b': None,
    'split': 'test',
  }
  with pytest.raises(TypeError):
    metric_writer.write_json(str(path), {'a': 1, 'b': object()})
  assert json.loads(path.read_text())['step'] == 3


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  writer = metric_writer.MetricWriter(str(tmp_path), 0, tensorboard=True)
  writer.write(1, {'train/loss': 0.5})
  writer.close()
  metric_writer.write_json(str(tmp_path / 'eval.json'), {'a': 1})
  assert not list(tmp_path.iterdir())


def test_no_metrics_yet(tmp_path):
  assert metric_writer.read_metrics(str(tmp_path)) == []


def _read_csv(path):
  with open(path, encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


def test_csv_is_read_back_exactly(tmp_path):
  rng = np.random.default_rng(0)
  names = [
    'plain.png',
    'a, b.png',
    'say "x".png',
    'two\nlines',
    'cr\rhere',
    ' ',
  ]
  names += ['猫.png', '=1+1', '', *(f'{i}.png' for i in range(300))]
  rows = [
    {'image': name, 'miou': rng.uniform(), 'iou/a,"b"': rng.uniform() ** 99}
    for name in names
  ]
  rows[0] |= {'miou': 1 / 3, 'iou/a,"b"': 5e-324}
  path = tmp_path / 'eval.csv'
  metric_writer.write_csv(str(path), rows)
  assert [p.name for p in tmp_path.iterdir()] == ['eval.csv']
  found = _read_csv(path)
  assert list(found[0]) == ['image', 'miou', 'iou/a,"b"']
  assert rows == [
    {'image': row.pop('image'), **{k: float(v) for k, v in row.items()}}
    for row in found
  ]


def test_csv_cells(tmp_path):
  """NaN is empty, and a number is a number, whatever NumPy calls it."""
  rows = [
    {'image': 'a', 'x': math.nan, 'y': np.float64('nan')},
    {'image': 'b', 'x': None, 'y': np.float64(0.1), 'z': np.float32(0.1)},
    {'z': math.inf, 'x': 3, 'y': np.int64(4), 'image': 'c'},
  ]
  path = tmp_path / 'eval.csv'
  metric_writer.write_csv(str(path), rows)
  assert path.read_bytes().decode() == (
    'image,x,y,z\r\na,,,\r\nb,,0.1,0.10000000149011612\r\nc,3,4,inf\r\n'
  )


def test_csv_of_names_that_are_no_unicode(tmp_path):
  names = [os.fsdecode(b'caf\xe9,1.png'), 'b.png']
  path = tmp_path / 'eval.csv'
  metric_writer.write_csv(str(path), [{'image': n} for n in names])
  assert [row['image'] for row in _read_csv(path)] == [
    r'caf\udce9,1.png',
    'b.png',
  ]


def test_csv_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'eval.csv'
  metric_writer.write_csv(str(path), [])
  assert path.read_bytes() == b''

  class Broken:
    def __str__(self):
      raise ValueError('broken')

  path.write_text('the one before')
  with pytest.raises(ValueError, match='broken'):
    metric_writer.write_csv(str(path), [{'a': 1}, {'a': Broken()}])
  assert path.read_text() == 'the one before'


def test_only_one_process_writes_csv(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  metric_writer.write_csv(str(tmp_path / 'eval.csv'), [{'a': 1}])
  assert not list(tmp_path.iterdir())
