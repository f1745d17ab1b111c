"""How often unet_jax/inspection/alignment.py finds masks that do not fit.

  python -m experiments.data_faults.measure [--data=../shared/data]
    [--pairs=600] [--sets=oxford_pets_600,oxford_pets_128,isbi2012]

Injects each fault into real pairs, one kind at a time, and prints tables: of
single pairs, of sets in which all masks have the fault, and of the time.
"""

import argparse
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unet_jax.config import default
from unet_jax.data import decode, resize
from unet_jax.data import masks as masks_lib
from unet_jax.inspection import alignment, verdict

# (image, mask).
_Pair = tuple[np.ndarray, np.ndarray]
# From the masks of all pairs, and an index among them, to a faulty mask.
_Fault = Callable[[Sequence[np.ndarray], int], np.ndarray]

_SHIFTS = (4, 8, 16, 32)
_OTHERS = 4  # Borders of other masks that each pair is compared with.
# The turn that fixes a mask with a fault, as verdicts name it.
_FIXES = {
  'flip left to right': 'flipped left to right',
  'a quarter flipped left to right': 'flipped left to right',
  'flip upside down': 'flipped upside down',
  'turn by 180 degrees': 'turned by 180 degrees',
  'transpose': 'transposed',
  'turn by 90 degrees': 'turned by 90 degrees clockwise',
}
_PETS_TABLE: tuple[tuple[int, int], ...] = ((1, 0), (2, 1), (3, 2))


def _files(
  folder: pathlib.Path, name: str, count: int, rng: np.random.Generator
) -> list[tuple[pathlib.Path, pathlib.Path]]:
  """Paths of up to `count` pairs: all in order, or a random choice."""
  if name == 'isbi2012':
    masks = (folder / 'train/masks').iterdir()
    found = sorted(masks, key=lambda p: int(p.stem))[:count]
    return [(folder / 'train/images' / p.name, p) for p in found]
  found = sorted((folder / 'annotations/trimaps').glob('[!.]*.png'))
  chosen = sorted(rng.permutation(len(found))[:count])
  return [
    (folder / 'images' / f'{found[i].stem}.jpg', found[i]) for i in chosen
  ]


def _load(
  name: str, files: Sequence[tuple[pathlib.Path, pathlib.Path]]
) -> tuple[list[_Pair], float, float]:
  """Returns pairs, and the median ms of decoding and of measuring."""
  channels, table = 3, _PETS_TABLE
  if name == 'isbi2012':
    channels, table = 1, ((0, 0), (255, 1))
  data = default.get_config().data
  data.num_channels = channels
  pairs, times = [], []
  others: list[Any] = []
  for paths in files:
    image_bytes, mask_bytes = (path.read_bytes() for path in paths)
    image_name, mask_name = map(str, paths)
    start = time.perf_counter()
    image = decode.decode_image(image_bytes, image_name, data).array
    values = decode.decode_mask(mask_bytes, mask_name, data).array
    decoded = time.perf_counter()
    mask = masks_lib.map_mask(values, table, len(table), mask_name)
    mapped = time.perf_counter()
    fit = alignment.measure(image, mask, others)
    times.append([decoded - start, time.perf_counter() - mapped])
    # Other masks to try: those of the last few pairs.
    others = [*others, fit and fit.border][-_OTHERS:]
    pairs.append((image, mask))
  decoding, measuring = 1e3 * np.median(times, axis=0)
  return pairs, float(decoding), float(measuring)


def _shift(mask: np.ndarray, pixels: int, angle: float) -> np.ndarray:
  """Moves a mask; its outermost pixels fill the gap."""
  offsets = round(pixels * math.sin(angle)), round(pixels * math.cos(angle))
  rows, columns = (
    np.clip(np.arange(n) - by, 0, n - 1) for n, by in zip(mask.shape, offsets)
  )
  return mask[rows[:, None], columns]


def _faults(angles: np.ndarray) -> dict[str, _Fault]:
  """Returns the faults of single masks; angles are of the pairs' shifts."""

  def shift(pixels: int) -> _Fault:
    return lambda masks, i: _shift(masks[i], pixels, angles[i])

  return {
    'none': lambda masks, i: masks[i],
    'flip left to right': lambda masks, i: masks[i][:, ::-1],
    'flip upside down': lambda masks, i: masks[i][::-1],
    'turn by 180 degrees': lambda masks, i: masks[i][::-1, ::-1],
    'transpose': lambda masks, i: masks[i].T,
    'turn by 90 degrees': lambda masks, i: np.rot90(masks[i]),
    **{f'shift by {pixels} px': shift(pixels) for pixels in _SHIFTS},
  }


def _fits(
  pairs: Sequence[_Pair], fault: _Fault, others: Sequence[Any] | None = None
) -> list[Any]:
  """Measures all pairs with a fault in each."""
  masks = [mask for _, mask in pairs]
  fits = []
  for i, (image, _) in enumerate(pairs):
    size = image.shape[:2]
    mask = resize.resize_labels(fault(masks, i), size, 'stretch', 0)
    mask = np.ascontiguousarray(mask)
    fits.append(alignment.measure(image, mask, others[i] if others else ()))
  return fits


def _single_pairs(
  pairs: Sequence[_Pair], rng: np.random.Generator
) -> dict[str, float]:
  """The share of pairs called suspicious, for each fault."""
  n = len(pairs)
  borders = [alignment.border(mask) for _, mask in pairs]
  # Neither its own, nor that of the pair that a mask is taken from below.
  steps = rng.integers(1, n, n)
  others = []
  for i in range(n):
    allowed = np.setdiff1d(np.arange(n), [i, (i + steps[i]) % n])
    others.append([borders[k] for k in rng.choice(allowed, _OTHERS)])
  faults = _faults(rng.uniform(0, 2 * math.pi, n))
  faults['mask of another image'] = lambda masks, i: masks[(i + steps[i]) % n]
  shares = {}
  for name, fault in faults.items():
    fits = [fit for fit in _fits(pairs, fault, others) if fit is not None]
    shares[name] = float(np.mean(list(map(alignment.is_suspicious, fits))))
  return shares


def _set_faults(size: int, rng: np.random.Generator) -> dict[str, _Fault]:
  faults = _faults(np.full(size, rng.uniform(0, 2 * math.pi)))
  order = rng.permutation(size)
  faults['mask of the next image'] = lambda masks, i: masks[(i + 1) % size]
  faults['masks shuffled'] = lambda masks, i: masks[order[i]]
  wrong = rng.random(size) < 0.25
  faults['a quarter flipped left to right'] = lambda masks, i: (
    masks[i][:, ::-1] if wrong[i] else masks[i]
  )
  return faults


def _is_named(fault: str, found: verdict.Verdict) -> bool:
  """Whether a verdict names the fault."""
  if fault in _FIXES:
    fixed = f' when {_FIXES[fault]}'
    return fixed + ';' in found.message or fixed + ',' in found.message
  if fault.startswith('shift'):
    return found.kind == 'moved'
  return found.kind in ('shuffled', 'no fit')


def _whole_sets(
  pairs: Sequence[_Pair], size: int, repeats: int, rng: np.random.Generator
) -> dict[str, list[float]]:
  """Of sets of `size` neighbouring pairs: [share noticed, share named]."""
  counts: dict[str, list[float]] = {}
  for _ in range(repeats):
    start = int(rng.integers(len(pairs) - size + 1))
    chosen = pairs[start : start + size]
    for name, fault in _set_faults(size, rng).items():
      fits = _fits(chosen, fault)
      finder = alignment.MaskFinder([fit and fit.border for fit in fits])
      tried = range(0, size, max(1, size // 32))
      found = {i: finder.find(chosen[i][0]) for i in tried}
      owners = {i: owner[0] for i, owner in found.items() if owner}
      noticed = verdict.summarize(fits, owners)
      row = counts.setdefault(name, [0.0, 0.0])
      if noticed:
        row[0] += 1 / repeats
        row[1] += _is_named(name, noticed) / repeats
  return counts


def _print_table(title: str, columns: Mapping[str, Mapping[str, str]]) -> None:
  rows = list(dict.fromkeys(row for c in columns.values() for row in c))
  print(f'\n| {title} | ' + ' | '.join(columns) + ' |')
  print('|---' * (len(columns) + 1) + '|')
  for row in rows:
    cells = ' | '.join(column.get(row, '') for column in columns.values())
    print(f'| {row} | {cells} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default='../shared/data')
  parser.add_argument('--pairs', type=int, default=600)
  parser.add_argument('--sizes', default='16,64')
  parser.add_argument('--repeats', type=int, default=25)
  sets = 'oxford_pets_600,oxford_pets_128,isbi2012'
  parser.add_argument('--sets', default=sets)
  args = parser.parse_args()
  single, whole, times = {}, {}, {}
  for name in args.sets.split(','):
    rng = np.random.default_rng(0)
    files = _files(args.data / name, name, args.pairs, rng)
    pairs, decoding, measuring = _load(name, files)
    times[name] = {
      'decoding, ms a pair': f'{decoding:.2f}',
      'measuring, ms a pair': f'{measuring:.2f}',
      'share': f'{measuring / decoding:.0%}',
    }
    shares = _single_pairs(pairs, rng)
    single[f'{name} ({len(pairs)})'] = {
      fault: f'{share:.1%}' for fault, share in shares.items()
    }
    for size in map(int, args.sizes.split(',')):
      size = min(size, len(pairs))
      counts = _whole_sets(pairs, size, args.repeats, rng)
      whole[f'{name}, sets of {size}'] = {
        fault: f'{noticed:.0%} ({named:.0%})'
        for fault, (noticed, named) in counts.items()
      }
  _print_table('fault, suspicious pairs', single)
  _print_table('fault of all masks, sets noticed (named)', whole)
  _print_table('time', times)


if __name__ == '__main__':
  main()
