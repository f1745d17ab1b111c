"""What a compiled step costs on a chip: memory, time, padding, collectives."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.stages import Compiled

from unet_jax.planning import collectives, hlo
from unet_jax.planning.chips import Chip
from unet_jax.runtime import errors

# Slowest operations that are named.
_SLOWEST = 10
# Names in the compiler's report.
_MEMORY = {
  'arguments': 'argument_size_in_bytes',
  'outputs': 'output_size_in_bytes',
  'donated': 'alias_size_in_bytes',
  'temporaries': 'temp_size_in_bytes',
  'code': 'generated_code_size_in_bytes',
}
# Operations that only move values, or name them.
_MOVES = frozenset(
  'copy copy-start copy-done transpose reshape bitcast bitcast-convert reverse '
  'slice slice-start slice-done dynamic-slice dynamic-update-slice pad '
  'concatenate broadcast constant parameter tuple get-tuple-element '
  'custom-call'.split()
)
# Operations without arrays of their own.
_NAMES = frozenset(
  'parameter constant bitcast tuple get-tuple-element while conditional call '
  'copy-done slice-done'.split()
)
# The work that may lie in an operation without an estimate.
_WORK = frozenset(
  ('convolution', 'dot', 'fusion', 'select-and-scatter', 'reduce-window')
  + ('copy', 'transpose', 'reverse', 'reduce', 'scatter', 'gather', 'sort')
)


def memory(compiled: Compiled, hbm: float) -> dict[str, Any]:
  """Returns bytes on a chip by kind; `donated` are counted in two of them."""
  given = compiled.memory_analysis()
  found = {name: getattr(given, field) for name, field in _MEMORY.items()}
  total = sum(found.values()) - 2 * found['donated']
  return {**found, 'total': total, 'hbm': hbm, 'fits': total <= hbm}


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step for a chip, read."""

  operations: list[hlo.Operation]
  chip: Chip
  mesh: Mapping[str, int]

  def describe(
    self, images: int, flops: float, num_bytes: float
  ) -> dict[str, Any]:
    """Returns all but the memory, as JSON.

    Args:
      images: of one step, on all chips.
      flops: of a chip.
      num_bytes: that it reads from its memory and writes to it.
    """
    chip = self.chip
    sent = collectives.read(self.operations, self.mesh)
    links = sum(collectives.seconds(c, chip.links) for c in sent)
    by_kind = self._cycles_by_kind()
    cycles = sum(by_kind.values())
    seconds = {
      'products': flops / chip.flops,
      'memory': num_bytes / chip.bandwidth,
      'links': links,
      # Collectives have no estimate.
      'estimated': cycles / chip.clock + links,
    }
    seconds['roofline'] = max(seconds[k] for k in ('products', 'memory'))
    return {
      'images': images,
      'flops': flops,
      'bytes': num_bytes,
      'seconds': seconds,
      'images_per_second': {
        k: images / seconds[k] if seconds[k] else None
        for k in ('roofline', 'estimated')
      },
      'cycles': cycles,
      'cycles_by_kind': by_kind,
      'without_estimate': self._without_estimate(),
      'padding': self._padding(),
      'products': self._products(),
      'collectives': _summed(sent, chip),
      'slowest': self._slowest(cycles),
    }

  def turns(self) -> float:
    """Returns by what the FLOP of the program exceed those of one turn.

    That is what the compiler counts of a loop, as of accumulate_steps parts.
    """
    once = total = 0
    for op, product in hlo.products(self.operations):
      once += product.flops
      total += product.flops * op.times
    return total / max(once, 1)

  def moved(self) -> int:
    """Returns bytes that operations read from a chip's memory and write to it.

    The compiler's own count has those that stay on the chip too.
    """
    known = {(op.computation, op.name): op for op in self.operations}
    total = 0
    for op in self._top():
      if op.kind in _NAMES or op.kind.endswith('-done'):
        continue
      operands = [
        array
        for name in op.operands
        for array in known[op.computation, name].arrays
      ]
      if op.kind.endswith('-start'):
        # From one memory to the other; the rest is to wait for it.
        total += op.times * min(a.padded for a in op.arrays if a.shape)
      else:
        made = _outside(op.arrays)
        is_part = op.kind in ('slice', 'dynamic-slice', 'gather')
        read = min(_outside(operands), made) if is_part else _outside(operands)
        total += op.times * (made + read)
    return total

  def _top(self) -> Iterable[hlo.Operation]:
    return (op for op in self.operations if not op.inside)

  def _kinds(self) -> dict[str, set[str]]:
    """Returns the kinds of operations in each computation, and in its own."""
    kinds: dict[str, set[str]] = collections.defaultdict(set)
    # Those that are called come after their callers.
    for op in reversed(self.operations):
      kinds[op.computation].add(op.kind)
      kinds[op.computation] |= kinds.get(_called(op), set())
    return kinds

  def _cycles_by_kind(self) -> dict[str, int]:
    """Returns estimates of products, of moves of values, and of the rest."""
    kinds, found = self._kinds(), collections.Counter[str]()
    for op in self._top():
      if op.cycles:
        inside = kinds.get(_called(op), {op.kind}) - {'fusion'}
        name = 'other'
        if inside & {'convolution', 'dot'}:
          name = 'products'
        elif inside <= _MOVES:
          name = 'copies'
        found[name] += op.cycles * op.times
    return {name: found[name] for name in ('products', 'copies', 'other')}

  def _without_estimate(self) -> dict[str, int]:
    """Counts the operations that do work of which no estimate is given."""
    return dict(
      collections.Counter(
        op.kind for op in self._top() if op.cycles is None and op.kind in _WORK
      )
    )

  def _padding(self) -> dict[str, float]:
    """Returns shares of bytes, and of multiply units, that are padding.

    `arrays`: what tiles of memory add to the results of all operations.
    `products`: of the multiply units' work, were features alone in their lanes;
    the compiler may put other axes there too.
    """
    made = padded = 0
    for op in self._top():
      if op.kind not in _NAMES:
        made += sum(a.bytes for a in op.arrays) * op.times
        padded += sum(a.padded for a in op.arrays) * op.times
    lanes, useful, spent = self.chip.lanes, 0.0, 0.0
    up = lambda n: -(-n // lanes) * lanes
    for op, product in hlo.products(self.operations):
      useful += product.flops * op.times
      features = product.inputs * product.outputs
      whole = up(product.inputs) * up(product.outputs)
      spent += product.flops * op.times * whole / max(features, 1)
    return {
      'arrays': 1 - made / padded if padded else 0.0,
      'products': 1 - useful / spent if spent else 0.0,
    }

  def _products(self) -> list[dict[str, Any]]:
    """Returns the share of FLOP by types, the largest first."""
    found: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0])
    for op, product in hlo.products(self.operations):
      entry = found[product.dtypes, product.is_exact]
      entry[0] += op.times
      entry[1] += product.flops * op.times
    total = sum(flops for _, flops in found.values())
    rows = [
      {
        'dtypes': list(dtypes),
        'exact': is_exact,
        'count': int(count),
        'share': flops / total if total else 0.0,
      }
      for (dtypes, is_exact), (count, flops) in found.items()
    ]
    return sorted(rows, key=lambda row: -row['share'])

  def _slowest(self, total: int) -> list[dict[str, Any]]:
    known = [op for op in self._top() if op.cycles]
    known.sort(key=lambda op: -(op.cycles or 0) * op.times)
    return [
      {
        'name': op.name.lstrip('%'),
        'cycles': (op.cycles or 0) * op.times,
        'share': (op.cycles or 0) * op.times / total,
        'result': [f'{a.dtype}{list(a.shape)}' for a in op.arrays],
        'origin': op.origin.partition('/')[2],
      }
      for op in known[:_SLOWEST]
    ]


def _outside(arrays: Iterable[hlo.Array]) -> int:
  """Returns the bytes of arrays in the memory beside the chip."""
  return sum(a.padded for a in arrays if not a.on_chip)


def _called(op: hlo.Operation) -> str:
  """Returns the computation of a fusion; '' for another operation."""
  before, _, after = op.text.partition('calls=')
  return after.partition(',')[0] if after and op.kind == 'fusion' else ''


def _summed(
  sent: Iterable[collectives.Collective], chip: Chip
) -> list[dict[str, Any]]:
  """Sums collectives of one kind, axis and type, the largest first."""
  found: dict[tuple, dict[str, Any]] = {}
  for c in sent:
    row = found.setdefault(
      (c.kind, c.axes, c.dtypes),
      {
        'kind': c.kind,
        'axes': list(c.axes),
        'dtypes': list(c.dtypes),
        'count': 0,
        'bytes': 0,
        'seconds': 0.0,
      },
    )
    row['count'] += c.times
    row['bytes'] += c.bytes
    row['seconds'] += collectives.seconds(c, chip.links)
  return sorted(found.values(), key=lambda row: -row['bytes'])


def describe(
  compiled: Compiled, chip: Chip, mesh: jax.sharding.Mesh, images: int
) -> dict[str, Any]:
  """Returns what a compiled step of so many images costs on a chip, as JSON.

  Raises:
    UserError: this jaxlib cannot read what the compiler made.
  """
  used = memory(compiled, chip.hbm)
  try:
    text = compiled.as_text() or ''
  except jax.errors.JaxRuntimeError as e:
    # The compiler and jaxlib have each their version of XLA.
    raise errors.UserError(
      f'the step of {images} images compiles, and takes '
      f'{used["total"] / 2**30:.2f} of {chip.hbm / 2**30:.2f} GiB of a chip, '
      f'but jaxlib cannot read the program ({str(e).splitlines()[0]}); take '
      'another version of libtpu or jax, or another slice'
    ) from e
  program = Program(hlo.read(text), chip, mesh.shape)
  counted: dict[str, float] = compiled.cost_analysis() or {}
  flops = counted.get('flops', 0) * program.turns()
  return {
    'memory': used,
    **program.describe(images, flops, program.moved()),
  }
