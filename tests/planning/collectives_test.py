"""Collectives, by axis of the mesh."""

import collections

import pytest

from tests.planning.hlo_test import PROGRAM
from unet_jax.planning import collectives, hlo

_MESH = {'data': 2, 'fsdp': 2, 'spatial': 2}


def test_of_a_real_program():
  found = collections.Counter()
  mesh = {'data': 1, 'fsdp': 2, 'spatial': 2}
  for c in collectives.read(hlo.read(PROGRAM), mesh):
    assert c.dtypes == ('bf16',) and c.group == 2
    found[c.kind, c.axes] += c.bytes
  kernel, half = 3 * 3 * 8 * 16 * 2, 3 * 3 * 8 * 8 * 2
  # Two rows of borders before the loop: the images are the same in each turn.
  row = 4 * 1 * 32 * 8 * 2
  assert found == {
    ('all-gather', ('fsdp',)): 3 * kernel,
    ('all-reduce', ('fsdp',)): 3 * kernel,
    ('all-reduce', ('spatial',)): 3 * kernel,
    ('collective-permute', ('spatial',)): 2 * row,
    ('collective-permute', ('fsdp', 'spatial')): 3 * half,
  }


@pytest.mark.parametrize(
  'groups,axes,size',
  [
    ('replica_groups={{0,1},{2,3},{4,5},{6,7}}', 'spatial', 2),
    ('replica_groups={{0,2,4,6},{1,3,5,7}}', 'data fsdp', 4),
    ('replica_groups=[4,2]<=[8]', 'spatial', 2),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', 'data', 2),
    ('replica_groups=[2,4]<=[2,2,2]T(1,0,2)', 'data spatial', 4),
    ("replica_groups=mesh['axis_0'=8] {'axis_0'}", 'data fsdp spatial', 8),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}", 'spatial', 2),
    ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 'data spatial', 4),
    ('source_target_pairs={{0,1},{2,3},{4,5},{6,7}}', 'spatial', 2),
    ('source_target_pairs={{0,0},{2,4}}', 'data fsdp', 2),
  ],
)
def test_axes(groups, axes, size):
  text = (
    'ENTRY %main (x: f32[8]) -> f32[8] {\n'
    '  %x = f32[8]{0} parameter(0)\n'
    f'  ROOT %y = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, '
    'to_apply=%add\n}'
  )
  (found,) = collectives.read(hlo.read(text), _MESH)
  assert found.axes == tuple(axes.split())
  assert found.group == size


@pytest.mark.parametrize(
  'kind,sent', [('all-reduce', 1.5), ('all-gather', 0.75), ('all-to-all', 0.75)]
)
def test_seconds(kind, sent):
  """Each of four chips sends so many times its bytes around a ring."""
  c = collectives.Collective(kind, ('data',), ('f32',), 1000, 1, 4, '')
  assert collectives.seconds(c, 100.0) == 10 * sent
