"""Costs of the small program of hlo_test.py, and the report of them."""

import types

import jax
import pytest

from tests.planning.hlo_test import PROGRAM
from tests.refusals import message_of
from unet_jax.planning import chips, costs, hlo, report

_CHIP = chips.CHIPS['v5e']


@pytest.fixture(scope='module')
def program():
  mesh = {'data': 1, 'fsdp': 2, 'spatial': 2}
  return costs.Program(hlo.read(PROGRAM), _CHIP, mesh)


@pytest.fixture(scope='module')
def described(program):
  return program.describe(8, 394e9, 819e6)


def test_time(described):
  seconds = described['seconds']
  assert seconds['products'] == 2e-3 and seconds['memory'] == 1e-3
  assert seconds['roofline'] == 2e-3
  assert described['images_per_second']['roofline'] == 4000
  expected = described['cycles'] / 1.5e9 + seconds['links']
  assert seconds['estimated'] == pytest.approx(expected)
  # 3 x 6912 bytes, of which all-reduces send each once, others half.
  links = (6912 * 2 + 6912 / 2 + 2 * 2048 + 3456) / 200e9
  assert seconds['links'] == pytest.approx(links)


def test_loops_go_round_more_than_once(program):
  assert program.turns() == 3


def test_bytes_that_are_moved():
  """A copy to the chip, a sum there, and a result that leaves it."""
  text = """
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, \
u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %add = f32[8,128]{1,0:T(8,128)S(1)} add(%copy-done, %copy-done)
  ROOT %multiply = f32[8,128]{1,0:T(8,128)} multiply(%add, %x)
}
"""
  program = costs.Program(hlo.read(text), _CHIP, {'data': 1})
  assert program.moved() == 3 * 4096


def test_kinds_of_operations(described):
  kinds = described['cycles_by_kind']
  assert sum(kinds.values()) == described['cycles']
  # The two fusions with a convolution, three times.
  fusions = {s['name']: s['cycles'] for s in described['slowest']}
  assert kinds['products'] == fusions['fusion.59'] + fusions['fusion.64']
  assert kinds['copies'] > 0


def test_padding(described):
  # 8 and 16, 32 and 16 features in 128 x 128 lanes.
  whole = 128 * 128 / (8 * 16) + 128 * 128 / (32 * 16)
  assert described['padding']['products'] == pytest.approx(1 - 2 / whole)
  assert 0.5 < described['padding']['arrays'] < 1


def _compiled(**memory):
  sizes = {f'{name}_size_in_bytes': n for name, n in memory.items()}
  analysis = types.SimpleNamespace(**sizes)
  return types.SimpleNamespace(memory_analysis=lambda: analysis)


def test_memory():
  sizes = {'argument': 50, 'output': 40, 'alias': 30, 'temp': 20}
  compiled = _compiled(**sizes, generated_code=10)
  found = costs.memory(compiled, 100)
  # 50 + 40 - 30 + 20 + 10.
  assert found['total'] == 90 and found['fits']
  assert not costs.memory(compiled, 89)['fits']


def test_report(described):
  memory = {
    **dict.fromkeys(
      ('arguments', 'outputs', 'donated', 'temporaries', 'code'), 2**20
    ),
    'total': 3 * 2**30,
    'hbm': 15.75 * 2**30,
    'fits': True,
  }
  row = {
    'name': 'train',
    'images_per_host': 8,
    'mesh': {'data': 1, 'fsdp': 2, 'spatial': 2},
    'largest_batch': {'images': 40, 'compiled': False},
    'entry': '1x2x2:8',
    'memory': memory,
    **described,
  }
  large = {**row, 'entry': '4x1x1:9000', 'images': 9000}
  large['memory'] = {'total': 2**35, 'hbm': memory['hbm'], 'fits': False}
  for name in ('seconds', 'images_per_second'):
    del large[name]
  refused = {'entry': '3x1x1', 'refused': 'does not fit'}
  about = {'name': 'v5e:2x2', 'chips': 4, 'hosts': 1, **_CHIP._asdict()}
  about['name'] = 'v5e:2x2'
  text = report.of_plan(
    {
      'slice': about,
      'compiler': 'libtpu',
      'steps': [row],
      'sweep': [row, large, refused],
    }
  )
  for line in (
    'train: 8 images (8 a host) on data=1, fsdp=2, spatial=2',
    'largest batch that fits: 40 images (extrapolated, not compiled)',
    'images/s: 67,763 estimated, 4,000 at the roofline',
    '  fsdp                      bf16  3 times  6.8 KiB  0.000 ms',
    'best: data=1, fsdp=2, spatial=2 with 8 images, 67,763 images/s estimated',
    '3x1x1: does not fit',
  ):
    lines = [s.replace('all-gather along ', '') for s in text.splitlines()]
    assert line in lines, text
  assert report.best_of([large, refused]) is None


def test_a_program_that_jaxlib_cannot_read():
  class Compiled:
    def memory_analysis(self):
      sizes = {field: 2**30 for field in costs._MEMORY.values()}
      return types.SimpleNamespace(**sizes)

    def as_text(self):
      raise jax.errors.JaxRuntimeError('INTERNAL: async-update\nmore')

  mesh = types.SimpleNamespace(shape={'data': 4})
  assert message_of(costs.describe, Compiled(), _CHIP, mesh, 8) == (
    'the step of 8 images compiles, and takes 3.00 of 15.75 GiB of a chip, but '
    'jaxlib cannot read the program (INTERNAL: async-update); take another '
    'version of libtpu or jax, or another slice'
  )
