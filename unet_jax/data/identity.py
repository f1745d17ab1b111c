"""What an image is: its content, not its name, path or place.

A run keeps the names and digests of the images that it trains on and of those
that it holds out in WORKDIR/split.json. What continues or evaluates it goes by
that record: images may be renamed or lie elsewhere, some may be gone, changed
or new, and none changes sides.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_collections

from unet_jax.data import digests, examples
from unet_jax.runtime import errors, processes, whole_files

_log = logging.getLogger(__name__)

FILE = 'split.json'


class Image(NamedTuple):
  """An image and its mask.

  Attributes:
    name: its place in the data, such as `images/a.png`.
    content: digest of the image.
    mask: of its mask, and of its instances where it has them.
  """

  name: str
  content: str
  mask: str


@runtime_checkable
class OfFiles(Protocol):
  """A source whose examples may change one by one."""

  def images(self, read: bool, kind: str = digests.KIND) -> list[Image] | None:
    """Returns what each example is.

    Args:
      read: read the files that are not known yet; otherwise the result is None
        if there are any.
      kind: of the digests.
    """


def images_of(
  source: examples.Source, record: 'Record | None' = None
) -> list[Image]:
  """Returns what each example of a source is, by the digests of a record.

  Those of a source without files are what their numbers say: a version of a
  TFDS set does not change.
  """
  if isinstance(source, OfFiles):
    found = source.images(True, record.kind if record else digests.KIND)
    assert found is not None
    return found
  names = [f'{source.split}[{i}]' for i in range(len(source))]
  return [Image(name, name, '') for name in names]


def pixels_of(dataset: Any) -> dict[str, str]:
  """Returns {name: digest of the pixels} of the images of a prepared set.

  An image has the same pixels in another format. Those of one colour are left
  out: they are equal by chance. Of sets that were not read whole, none is
  known.
  """
  stats = dataset.stats
  if stats is None:
    return {}
  entries = zip(stats.digests, stats.names, stats.stds)
  return {name: bytes(d).hex() for d, name, std in entries if std > 0}


def _stem(name: str) -> str:
  """A name without its ending: images may be stored anew in another format."""
  return os.path.splitext(name)[0]


@dataclasses.dataclass(frozen=True)
class Placed:
  """Images of today in a record.

  Attributes:
    parts: the part of each image; None of a new one.
    new, copied, changed, remasked: names of images that the record lacks; that
      are further copies of one that is there; that have another content under
      their name; and whose mask is another.
    gone: (part, name) of the record's images that are not there.
  """

  parts: list[str | None]
  new: list[str]
  copied: list[str]
  changed: list[str]
  remasked: list[str]
  gone: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Record:
  """The images of a run by the part that they belong to.

  Attributes:
    workdir: of the run.
    held_out: the part that is evaluated; all others are trained on.
    parts: {part: images}, with those that were there earlier at its end.
    continues: whether the run goes on; otherwise it is evaluated.
    kind: of its digests.
    pixels: digests of the images that are trained on, see `pixels_of`; none in
      records of older versions.
    said: lines that were logged; each is logged once.
  """

  workdir: str
  held_out: str
  parts: Mapping[str, Sequence[Image]]
  continues: bool = False
  kind: str = digests.KIND
  pixels: frozenset[str] = frozenset()
  said: set[str] = dataclasses.field(default_factory=set)

  def say(self, text: str) -> None:
    """Logs a line, once."""
    if text not in self.said and processes.is_first():
      _log.warning('warning: %s', text)
    self.said.add(text)

  def place(
    self, images: Sequence[Image], parts: Sequence[str] = ()
  ) -> Placed | None:
    """Finds images in the record: by content, then by name.

    Args:
      images: of today.
      parts: those of which images may be gone.

    Returns:
      None if none of them is in the record.
    """
    by_pair: dict[tuple[str, ...], str] = {}
    by_content: dict[str, str] = {}
    by_name: dict[str, str] = {}
    masks: dict[str, set[str]] = collections.defaultdict(set)
    # Of a content in two parts, that which is trained on counts: it comes last.
    ordered = sorted(self.parts, key=lambda part: part != self.held_out)
    entries = [(part, image) for part in ordered for image in self.parts[part]]
    there = {image.content for image in images}
    for part, image in entries:
      by_pair[image[:2]] = by_content[image.content] = part
      masks[image.content].add(image.mask)
      if image.content not in there:
        by_name[_stem(image.name)] = part
    found: list[str | None] = []
    new: list[str] = []
    changed: list[str] = []
    remasked: list[str] = []
    # Names whose earlier contents are not gone, but were replaced.
    replaced = set()
    for image in images:
      stem = _stem(image.name)
      place = by_pair.get(image[:2]) or by_content.get(image.content)
      if place is None:
        place = by_name.get(stem)
        (changed if place else new).append(image.name)
      elif image.mask not in masks[image.content]:
        remasked.append(image.name)
      if image[:2] in by_pair or image.content not in by_content:
        replaced.add(stem)
      found.append(place)
    if not any(found):
      return None
    gone = [
      (part, image.name)
      for part, image in entries
      if part in parts and image.content not in there
      if _stem(image.name) not in replaced
    ]
    kept = {image.content for image in images if image[:2] in by_pair}
    copied = [
      image.name
      for image in images
      if image[:2] not in by_pair and image.content in kept
    ]
    return Placed(found, new, copied, changed, remasked, gone)

  def trained(self, images: Iterable[Image]) -> list[str]:
    """Returns the names of those images that the run was trained on."""
    contents = {
      image.content
      for part, known in self.parts.items()
      if part != self.held_out
      for image in known
    }
    return [image.name for image in images if image.content in contents]

  def say_changes(self, placed: Placed, rule: str) -> None:
    """Says what is new, gone or changed, and what becomes of new images."""
    gone = [name for _, name in placed.gone]
    listed = [
      f'{len(names)} {one if len(names) == 1 else many} ({errors.some(names)})'
      for names, one, many in (
        (placed.new, 'image is new', 'images are new'),
        (placed.copied, 'image is a copy', 'images are copies'),
        (gone, 'image is gone', 'images are gone'),
        (placed.changed, 'image has changed', 'images have changed'),
        (placed.remasked, 'mask has changed', 'masks have changed'),
      )
      if names
    ]
    if not listed:
      return
    text = f'since {self.workdir} was trained, ' + ', '.join(listed)
    if placed.new:
      text += f'. {rule}'
    lost = sum(part == self.held_out for part, _ in placed.gone)
    if lost:
      text += f'. {lost} of those that are gone were held out'
    self.say(text)


def continued(
  workdir: str,
  config: ml_collections.ConfigDict,
  saved: ml_collections.ConfigDict,
) -> Record | None:
  """Returns the record of a run that goes on, or says that it has none.

  With a record, the images tell whether the data are the same, not the saved
  config's `data.dir`: that becomes the one of today.
  """
  record = read(workdir, continues=True)
  if record is None:
    say_missing(config, workdir)
  else:
    saved.data.dir = config.data.dir
  return record


def say_missing(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Says that a run of an older version has no record."""
  if config.data.source == 'folder' and processes.is_first():
    _log.warning(
      'warning: %s has no %s, as runs of older versions: what is held out is '
      'chosen anew, right only if the files are those of then',
      workdir,
      FILE,
    )


def read(workdir: str, continues: bool = False) -> Record | None:
  """Returns the record of a run; None where older versions made none."""
  path = pathlib.Path(workdir, FILE)
  try:
    found = json.loads(path.read_text())
    parts = {
      part: [Image(*image) for image in images]
      for part, images in found['parts'].items()
    }
    kind = found.get('digest', digests.FIRST_KIND)
    pixels = frozenset(found.get('pixels', ()))
    return Record(workdir, found['held_out'], parts, continues, kind, pixels)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise errors.UserError(
      f'{path} cannot be read ({e}); restore it, or remove it to go on without '
      'a record of the images'
    ) from e


def write(
  workdir: str,
  held_out: str,
  parts: Mapping[str, Sequence[Image]],
  earlier: Record | None,
  pixels: Iterable[str] = (),
) -> None:
  """Writes the record of a run, in process 0.

  Args:
    workdir: of the run.
    held_out: the part that is evaluated.
    parts: {part: images} of today, see `images_of`.
    earlier: the record that it goes on from. Its images stay where they were,
      also those that are gone: they may come back.
    pixels: digests of today's images that are trained on.
  """
  if not processes.is_first():
    return
  known = {image[:2] for images in parts.values() for image in images}
  merged: dict[str, list[Any]] = {k: list(v) for k, v in parts.items()}
  for part, images in earlier.parts.items() if earlier else ():
    old = [image for image in images if image[:2] not in known]
    merged[part] = merged.get(part, []) + old
  kind = earlier.kind if earlier else digests.KIND
  content = {'digest': kind, 'held_out': held_out, 'parts': merged}
  content['pixels'] = sorted({*pixels, *(earlier.pixels if earlier else ())})
  with whole_files.replacing(pathlib.Path(workdir, FILE)) as f:
    f.write(json.dumps(content))
