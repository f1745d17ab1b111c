"""Which chips talk to which: collectives of a program, by axis of the mesh."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unet_jax.planning import hlo

KINDS = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute'),
  *('all-to-all', 'ragged-all-to-all', 'collective-broadcast'),
)


class Collective(NamedTuple):
  """One collective.

  Attributes:
    kind: one of KINDS.
    axes: of the mesh, along which its groups lie.
    dtypes: of what is sent.
    bytes: of its results on a chip, of all its runs.
    times: how often it runs in a step.
    group: chips that take part together.
    origin: of the operation.
  """

  kind: str
  axes: tuple[str, ...]
  dtypes: tuple[str, ...]
  bytes: int
  times: int
  group: int
  origin: str


def read(
  operations: list[hlo.Operation], mesh: Mapping[str, int]
) -> list[Collective]:
  """Returns the collectives of a program for a mesh {axis: size}."""
  found = []
  for op in operations:
    kind = op.kind.removesuffix('-start')
    if kind not in KINDS:
      continue
    arrays = op.arrays
    if op.kind.endswith('-start') and kind != 'all-reduce':
      # Operands, results, and what a device keeps to wait for the others.
      arrays = arrays[len(op.operands) : 2 * len(op.operands)]
    groups = _groups(op.text)
    found.append(
      Collective(
        kind=kind,
        axes=_axes(groups, mesh),
        dtypes=tuple(sorted({a.dtype for a in arrays})),
        bytes=sum(a.bytes for a in arrays) * op.times,
        times=op.times,
        group=max(map(len, groups), default=1),
        origin=op.origin,
      )
    )
  return found


def seconds(collective: Collective, links: float) -> float:
  """The least time that the links of a chip need for what it sends, in rings.

  The results of a reduce-scatter are a part of what is summed.
  """
  n = collective.group
  share = {
    'all-reduce': 2 * (n - 1) / n,
    'reduce-scatter': n - 1,
    'collective-permute': 1.0,
  }.get(collective.kind, (n - 1) / n)
  return collective.bytes * share / links


def _groups(text: str) -> list[tuple[int, ...]]:
  """Returns the groups of a collective; for a permutation its pairs.

  The forms are lists, `{{0,1},{2,3}}`; a reshaped and transposed range,
  `[2,2]<=[2,2]T(1,0)`; and axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`.
  """
  pairs = re.search(r'source_target_pairs=\{(.*?\})\}', text)
  if pairs:
    return _lists(pairs[1])
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', text)
  if listed:
    return _lists(listed[1])
  tiled = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text
  )
  if tiled:
    shape, source = _numbers(tiled[1]), _numbers(tiled[2])
    ids = np.arange(np.prod(source)).reshape(source)
    if tiled[3]:
      ids = ids.transpose(_numbers(tiled[3]))
    return [tuple(row) for row in ids.reshape(shape).tolist()]
  named = re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', text)
  if named:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
    together = re.findall(r"'(\w+)'", named[2])
    ids = np.arange(np.prod([*sizes.values()])).reshape([*sizes.values()])
    inner = [i for i, name in enumerate(sizes) if name in together]
    ids = np.moveaxis(ids, inner, range(-len(inner), 0))
    size = int(np.prod([sizes[name] for name in together]))
    return [tuple(row) for row in ids.reshape(-1, size).tolist()]
  return []


def _lists(text: str) -> list[tuple[int, ...]]:
  return [tuple(_numbers(g)) for g in re.findall(r'\{([\d,]+)\}', text)]


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(',') if n]


def _axes(
  groups: list[tuple[int, ...]], mesh: Mapping[str, int]
) -> tuple[str, ...]:
  """Returns the axes along which the chips of a group differ."""
  places = [
    np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups
  ]
  return tuple(
    name
    for axis, name in enumerate(mesh)
    if any(len(set(place[axis].tolist())) > 1 for place in places)
  )
