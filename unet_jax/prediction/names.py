"""Names of the files that images get, which no other image has.

An image in/p1/a.png is `a`. Where another image has that stem, of the same call
or of a call before, it gets as many of its folders as tell the two apart,
`p1__a`; of two in one folder, the suffix, `a_png`. An image keeps the name that
it once had.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from unet_jax.runtime import errors


def choose(
  sources: Sequence[pathlib.Path], known: Mapping[str, str]
) -> dict[pathlib.Path, str]:
  """Returns a name for each image.

  Args:
    sources: the images.
    known: {absolute path: name} of images that have one.

  Raises:
    UserError: neither folders nor suffix make one unique.
  """
  by_stem: dict[str, set[pathlib.Path]] = collections.defaultdict(set)
  places = {source: pathlib.Path(os.path.abspath(source)) for source in sources}
  for place in {*places.values(), *map(pathlib.Path, known)}:
    by_stem[place.stem].add(place)
  taken, chosen = set(known.values()), {}
  for source, place in places.items():
    name = known.get(str(place))
    if name is None:
      rivals = by_stem[place.stem] - {place}
      free = (n for n in _candidates(place, rivals) if n not in taken)
      name = next(free, None)
    if name is None:
      raise errors.UserError(
        f'{source}: neither its folders nor its suffix give its files a name '
        'that no other image has; rename it'
      )
    taken.add(name)
    chosen[source] = name
  return chosen


def _candidates(
  place: pathlib.Path, rivals: set[pathlib.Path]
) -> Iterator[str]:
  """Yields names, the shortest first, see above."""
  base = place.stem
  if any(rival.parent == place.parent for rival in rivals):
    base += place.suffix.replace('.', '_')
  others = [r.parent.parts for r in rivals if r.parent != place.parent]
  folders = place.parent.parts
  for k in range(len(folders)):  # The first one is the root.
    tail = folders[len(folders) - k :]
    if all(other[max(len(other) - k, 0) :] != tail for other in others):
      yield '__'.join([*tail, base])
