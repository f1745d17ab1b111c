"""Reads an optimised program as the compiler prints it (HLO text).

https://openxla.org/xla/operation_semantics describes the operations; estimates
and tiles of memory are the TPU compiler's additions.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r'^(ENTRY )?(%[^ ]+) \(.*\{$')
_OPERATION = re.compile(r'^ +(?:ROOT )?(%[^ ]+) = (.*)$')
_ARRAY = re.compile(
  r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?'
)
_CALLS = re.compile(r'(calls|body|condition|to_apply)=(%[^ ,)]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
# Of types whose name does not say it; tokens have none.
_BITS = {'pred': 8}


class Array(NamedTuple):
  """An array on a device.

  Attributes:
    dtype, shape: as in the program.
    bytes: of its values.
    padded: bytes that it takes.
    on_chip: whether it lies in the fast memory of the chip.
  """

  dtype: str
  shape: tuple[int, ...]
  bytes: int
  padded: int
  on_chip: bool


class Operation(NamedTuple):
  """One operation.

  Attributes:
    name: in the program.
    kind: as `convolution` or `fusion`.
    arrays: its results.
    operands: names of its operands.
    text: all of its line after the operands.
    origin: where it was written in Python, from jit(...) on.
    cycles: the compiler's estimate; None where it has none.
    times: how often it runs in one run of the program.
    computation: the one that it is in.
    inside: whether it is part of a fusion, which counts as a whole.
  """

  name: str
  kind: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str
  origin: str
  cycles: int | None
  times: int
  computation: str
  inside: bool


def read(text: str) -> list[Operation]:
  """Returns the operations of a program that its entry leads to."""
  computations = _split(text)
  entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
  operations: list[Operation] = []
  _collect(computations, entry, 1, False, operations)
  return operations


def _split(text: str) -> dict[str, tuple[bool, list[str]]]:
  """Returns {computation: (whether it is the entry, its lines)}."""
  found: dict[str, tuple[bool, list[str]]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      lines = []
      found[header[2]] = (bool(header[1]), lines)
    elif _OPERATION.match(line):
      lines.append(line)
  return found


def _collect(
  computations: dict[str, tuple[bool, list[str]]],
  name: str,
  times: int,
  inside: bool,
  operations: list[Operation],
) -> None:
  """Appends the operations of a computation and of all that it calls."""
  for line in computations[name][1]:
    operation = _parse(line, name, times, inside)
    operations.append(operation)
    called = dict(_CALLS.findall(operation.text))
    repeats = 1
    if operation.kind == 'while':
      repeats = _trips(computations[called['condition']][1])
    # What a reduction applies to pairs of elements is no work of its own.
    for role in ('calls', 'body'):
      if role in called:
        is_part = inside or operation.kind == 'fusion'
        _collect(
          computations, called[role], times * repeats, is_part, operations
        )
    if operation.kind == 'call':
      _collect(computations, called['to_apply'], times, inside, operations)
    branches = _BRANCHES.search(operation.text)
    for branch in branches[1].split(', ') if branches else ():
      _collect(computations, branch, times, inside, operations)


def _trips(condition: list[str]) -> int:
  """How often a loop runs that counts up to a constant; else once."""
  limits = [
    int(n)
    for line in condition
    for n in re.findall(r's32\[\]\S* constant\((\d+)\)', line)
  ]
  return max(limits, default=1)


def _parse(line: str, name: str, times: int, inside: bool) -> Operation:
  found = _OPERATION.match(line)
  assert found is not None
  rest = found[2]
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  result, call = rest[:end], rest[end:].lstrip()
  start = call.index('(')
  stop = _closing(call, start)
  text = call[stop + 1 :]
  cycles = re.search(r'"estimated_cycles":"(\d+)"', text)
  origin = re.search(r'op_name="([^"]*)"', text)
  return Operation(
    name=found[1],
    kind=call[:start],
    arrays=arrays(result),
    operands=tuple(re.findall(r'%[^ ,()]+', call[start:stop])),
    text=text,
    origin=origin[1] if origin else '',
    cycles=int(cycles[1]) if cycles else None,
    times=times,
    computation=name,
    inside=inside,
  )


def _closing(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(f'no end of {text[start : start + 60]}')


def arrays(text: str) -> tuple[Array, ...]:
  """Returns the arrays of a type, as `(f32[8]{0:T(128)}, u32[])`."""
  found = []
  for dtype, sizes, layout in _ARRAY.findall(text):
    shape = tuple(int(n) for n in sizes.split(',') if n)
    width = re.match(r'[a-z]+(\d+)', dtype)
    bits = int(width[1]) if width else _BITS.get(dtype, 0)
    size = math.prod(shape) * bits // 8
    padded = math.prod(_padded(shape, layout)) * bits // 8
    # Spaces of a TPU: 1 is its vector memory, 3 the one that v4 has besides.
    on_chip = 'S(1)' in layout or 'S(3)' in layout
    found.append(Array(dtype, shape, size, max(padded, size), on_chip))
  return tuple(found)


def _padded(shape: tuple[int, ...], layout: str) -> list[int]:
  """Rounds a shape up to its layout's first tile, as in `1,0:T(8,128)`.

  The tile covers the innermost axes, whose order is before the colon.
  """
  order, _, rest = layout.partition(':')
  tile = re.match(r'T\(([\d,]+)\)', rest)
  inner_first = [int(n) for n in order.split(',') if n]
  sizes = [shape[axis] for axis in inner_first]
  if tile:
    widths = [int(n) for n in tile[1].split(',')][::-1]
    for i, width in enumerate(widths[: len(sizes)]):
      sizes[i] = -(-sizes[i] // width) * width
  return sizes


class Product(NamedTuple):
  """A convolution or a product.

  Attributes:
    flops: of one run; a multiply and an add are 2, padding counts as pixels.
    inputs, outputs: features that are summed over, and features that are made.
    dtypes: of its operands.
    is_exact: whether float32 operands are multiplied as such, by products of
      several bfloat16 parts, and not rounded.
  """

  flops: int
  inputs: int
  outputs: int
  dtypes: tuple[str, ...]
  is_exact: bool


def products(
  operations: list[Operation],
) -> Iterator[tuple[Operation, Product]]:
  """Yields the convolutions and products with what they compute."""
  known = {(op.computation, op.name): op for op in operations}
  for op in operations:
    if op.kind not in ('convolution', 'dot'):
      continue
    operands = [known[op.computation, name].arrays[0] for name in op.operands]
    if op.kind == 'dot':
      axes = re.search(r'rhs_contracting_dims=\{([\d,]*)\}', op.text)
      inner = [int(n) for n in axes[1].split(',') if n] if axes else []
      inputs = math.prod(operands[1].shape[i] for i in inner)
      outputs = operands[1].shape[-1] if operands[1].shape else 1
      taps = 1.0
    else:
      inputs, outputs, taps = _taps(op.text, operands[1].shape)
    dtypes = tuple(a.dtype for a in operands)
    is_highest = 'highest' in op.text.partition('metadata=')[0]
    size = math.prod(op.arrays[0].shape)
    yield (
      op,
      Product(
        flops=int(2 * size * inputs * taps),
        inputs=inputs,
        outputs=outputs,
        dtypes=dtypes,
        is_exact='f32' in dtypes and is_highest,
      ),
    )


def _taps(text: str, kernel: tuple[int, ...]) -> tuple[int, int, float]:
  """Returns features in and out of a kernel, and pixels that it sums over."""
  labels = re.search(r'dim_labels=\w+_(\w+)->', text)
  assert labels is not None, text
  sizes = dict(zip(labels[1], kernel))
  # Where zeros lie between the pixels, as many products are left out.
  dilated = re.search(r'lhs_dilate=([\dx]+)', text)
  zeros = math.prod(map(int, dilated[1].split('x'))) if dilated else 1
  pixels = math.prod(n for axis, n in sizes.items() if axis.isdigit())
  return sizes['i'], sizes['o'], pixels / zeros
