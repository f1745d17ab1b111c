"""JSON and CSV files: whole or not at all, and read back exactly."""

import csv
import json
import math
import os

import numpy as np
import pytest

from unet_jax.runtime import processes, whole_files


def test_write_json_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'eval.json'
  content = {'step': 3, 'a': math.nan, 'b': math.inf, 'split': 'test'}
  whole_files.write_json(str(path), content)
  assert json.loads(path.read_text()) == {**content, 'a': None, 'b': None}
  with pytest.raises(TypeError):
    whole_files.write_json(str(path), {'a': 1, 'b': object()})
  assert json.loads(path.read_text())['step'] == 3


def test_what_a_killed_writer_left_is_removed(tmp_path):
  """Not what is being written, nor files of somebody else."""
  left, own = tmp_path / f'a.json.{"0af3" * 8}.tmp', tmp_path / 'notes.tmp'
  left.touch()
  own.touch()
  with whole_files.replacing(tmp_path / 'eval.json') as f:
    f.write('1')
    whole_files.remove_parts(str(tmp_path))
    assert not left.exists() and own.exists()
  assert sorted(os.listdir(tmp_path)) == ['eval.json', 'notes.tmp']


def _read_csv(path):
  with open(path, encoding='utf-8', newline='') as f:
    return list(csv.DictReader(f))


def test_csv_is_read_back_exactly(tmp_path):
  rng = np.random.default_rng(0)
  names = ['plain.png', 'a, b.png', 'say "x".png', 'two\nlines', 'cr\rhere']
  names += [' ', '猫.png', '=1+1', '', *(f'{i}.png' for i in range(300))]
  rows = [
    {'image': name, 'miou': rng.uniform(), 'iou/a,"b"': rng.uniform() ** 99}
    for name in names
  ]
  rows[0] |= {'miou': 1 / 3, 'iou/a,"b"': 5e-324}
  path = tmp_path / 'eval.csv'
  whole_files.write_csv(str(path), rows)
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
  whole_files.write_csv(str(path), rows)
  assert path.read_bytes().decode() == (
    'image,x,y,z\r\na,,,\r\nb,,0.1,0.10000000149011612\r\nc,3,4,inf\r\n'
  )


def test_csv_of_names_that_are_no_unicode(tmp_path):
  names = [os.fsdecode(b'caf\xe9,1.png'), 'b.png']
  path = tmp_path / 'eval.csv'
  whole_files.write_csv(str(path), [{'image': n} for n in names])
  assert [row['image'] for row in _read_csv(path)] == [
    *(r'caf\udce9,1.png', 'b.png')
  ]


def test_csv_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'eval.csv'
  whole_files.write_csv(str(path), [])
  assert path.read_bytes() == b''

  class Broken:
    def __str__(self):
      raise ValueError('broken')

  path.write_text('the one before')
  with pytest.raises(ValueError, match='broken'):
    whole_files.write_csv(str(path), [{'a': 1}, {'a': Broken()}])
  assert path.read_text() == 'the one before'


def test_only_one_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  whole_files.write_json(str(tmp_path / 'eval.json'), {'a': 1})
  whole_files.write_csv(str(tmp_path / 'eval.csv'), [{'a': 1}])
  assert not list(tmp_path.iterdir())
