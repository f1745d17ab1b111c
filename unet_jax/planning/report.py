"""A plan in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from unet_jax.reports import text_table

_MEMORY = {
  'arguments': 'arguments (parameters, optimiser, batch)',
  'outputs': 'outputs',
  'donated': 'outputs that take the place of arguments',
  'temporaries': 'temporaries',
  'code': 'code',
  'total': 'total',
}
_SHOWN = 3


def of_plan(plan: Mapping[str, Any]) -> str:
  """Returns a plan, see `unet_jax.plan`, as text."""
  about = plan['slice']
  lines = [
    f'{about["name"]}: {about["chips"]} chips, {about["hosts"]} host(s), '
    f'{_size(about["hbm"])} of memory and {about["flops"] / 1e12:.0f} TFLOP/s '
    f'a chip; {plan["compiler"]}',
    '',
  ]
  for step in plan['steps']:
    lines += [*_step(step), '']
  if plan['sweep']:
    lines += _sweep(plan['sweep'])
  return '\n'.join(lines).rstrip()


def _size(n: float) -> str:
  for power, unit in ((3, 'GiB'), (2, 'MiB'), (1, 'KiB')):
    if abs(n) >= 1024**power:
      return f'{n / 1024**power:.1f} {unit}'
  return f'{n:.0f} B'


def _mesh(mesh: Mapping[str, int]) -> str:
  return ', '.join(f'{axis}={size}' for axis, size in mesh.items())


def _step(step: Mapping[str, Any]) -> list[str]:
  """The lines of one step."""
  head = (
    f'{step["name"]}: {step["images"]} images ({step["images_per_host"]} a '
    f'host) on {_mesh(step["mesh"])}'
  )
  title = [head, '-' * len(head)]
  memory = step['memory']
  if 'arguments' not in memory:
    return [
      *title,
      f'does not fit: the compiler needs {_size(memory["total"])} of '
      f'{_size(memory["hbm"])} on a chip',
      *_largest(step),
    ]
  rows = [
    (text, _size(memory[name]), f'{memory[name] / memory["hbm"]:.1%}')
    for name, text in _MEMORY.items()
  ]
  seconds, rate = step['seconds'], step['images_per_second']
  padding, kinds = step['padding'], step['cycles_by_kind']
  cycles = max(step['cycles'], 1)
  missing = [f'{n} {k}' for k, n in step['without_estimate'].items()]
  no_less = max(seconds['roofline'], seconds['links'])
  return [
    *title,
    ('fits' if memory['fits'] else 'does not fit')
    + f' {_size(memory["hbm"])}, for each chip:',
    *(f'  {line}' for line in text_table.aligned(rows)),
    *_largest(step),
    f'{step["flops"] / 1e9:,.1f} GFLOP and {_size(step["bytes"])} moved: at '
    f'least {1e3 * no_less:.2f} ms (products {1e3 * seconds["products"]:.2f}, '
    f'memory {1e3 * seconds["memory"]:.2f}, links '
    f'{1e3 * seconds["links"]:.2f})',
    f'estimated {1e3 * seconds["estimated"]:.2f} ms, '
    f'{step["cycles"] / 1e6:.2f} million cycles ('
    + ', '.join(f'{k} {n / cycles:.0%}' for k, n in kinds.items())
    + (f'; not counted: {", ".join(missing)})' if missing else ')'),
    f'images/s: {_rate(rate["estimated"])} estimated, '
    f'{_rate(rate["roofline"])} at the roofline',
    f'padding: {padding["arrays"]:.0%} of the bytes of all results; up to '
    f"{padding['products']:.0%} of the multiply units' work",
    *_products(step['products']),
    *_collectives(step['collectives']),
    *_slowest(step['slowest']),
  ]


def _rate(n: float | None) -> str:
  return 'not known' if n is None else f'{n:,.0f}'


def _largest(step: Mapping[str, Any]) -> list[str]:
  largest = step['largest_batch']
  if largest is None:
    return []
  how = 'compiled' if largest['compiled'] else 'extrapolated, not compiled'
  if not largest['images']:
    return [f'no batch fits ({how})']
  return [f'largest batch that fits: {largest["images"]} images ({how})']


def _products(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Products by the types of their operands."""
  lines = []
  for row in rows:
    types = ' x '.join(row['dtypes'])
    if row['exact']:
      types += ', float32 products'
    elif 'f32' in row['dtypes']:
      types += ', rounded to bfloat16'
    lines.append((types, f'{row["count"]}', f'{row["share"]:.2%} of FLOP'))
  return _table('products by type:', lines)


def _collectives(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  if not rows:
    return ['no collectives']
  return _table(
    'collectives:',
    [
      (
        f'{row["kind"]} along {" and ".join(row["axes"]) or "no axis"}',
        '/'.join(row['dtypes']),
        f'{row["count"]} times',
        _size(row['bytes']),
        f'{1e3 * row["seconds"]:.3f} ms',
      )
      for row in rows
    ],
  )


def _slowest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  return _table(
    'slowest operations:',
    [
      (
        row['origin'] or row['name'],
        ', '.join(row['result'][:_SHOWN]),
        f'{row["cycles"] / 1e6:.3f} M',
        f'{row["share"]:.1%}',
      )
      for row in rows
    ],
    left=2,
  )


def _table(
  title: str, rows: Sequence[Sequence[str]], left: int = 1
) -> list[str]:
  if not rows:
    return []
  return [title, *(f'  {line}' for line in text_table.aligned(rows, left))]


def _sweep(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Compares meshes and batches; the best is what fits and is fastest."""
  header = (
    *('mesh', 'images', 'memory', 'fits', 'images/s', 'roofline'),
    *('links ms', 'copies', 'arrays padded'),
  )
  cells: list[tuple[str, ...]] = [header]
  notes = []
  for row in rows:
    if 'refused' in row:
      notes.append(f'{row["entry"]}: {row["refused"]}')
      continue
    first = (
      _mesh(row['mesh']),
      str(row['images']),
      _size(row['memory']['total']),
      'yes' if row['memory']['fits'] else 'no',
    )
    if 'seconds' not in row:
      cells.append((*first, *['-'] * 5))
      continue
    rate, cycles = row['images_per_second'], max(row['cycles'], 1)
    cells.append(
      (
        *first,
        _rate(rate['estimated']),
        _rate(rate['roofline']),
        f'{1e3 * row["seconds"]["links"]:.2f}',
        f'{row["cycles_by_kind"]["copies"] / cycles:.0%}',
        f'{row["padding"]["arrays"]:.0%}',
      )
    )
  best = best_of(rows)
  if best is not None:
    notes.append(
      f'best: {_mesh(best["mesh"])} with {best["images"]} images, '
      f'{_rate(best["images_per_second"]["estimated"])} images/s estimated'
    )
  return ['train step, compared:', *text_table.aligned(cells), *notes]


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns the row that fits and has the most images per second."""
  fit = [row for row in rows if 'seconds' in row and row['memory']['fits']]
  rate = lambda row: row['images_per_second']['estimated'] or 0.0
  return max(fit, key=rate, default=None)
