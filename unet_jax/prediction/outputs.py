"""The files that an input of --mode=predict gets.

In the output folder an image NAME.ext gets (of stems that collide see names.py)

  masks/NAME.png           the classes as the values of data.mask_values;
                           NAME.tif, in tiles, where the image is a TIFF
  probabilities/NAME.npz   `probabilities` float16 [H, W, classes] and
                           `class_names`; or NAME.tif, in tiles
  overlays/NAME.jpg        the image under its classes, at most 2000 px large;
                           legend.png beside them names the colours
  contours/NAME.geojson    outlines, see contours.py

so that the folder with the images as images/ is one for configs/folder.py. Of a
file of N images the mask is a TIFF of N, and each has the other files, whose
names are NAME.page_0001 and so on. A sigmoid channel has two classes here as
well, the background first.
"""

import collections
import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from unet_jax.config import fields, mask_table
from unet_jax.data import rasters
from unet_jax.prediction import (
  contours,
  kept_tags,
  overlays,
  probabilities,
  row_files,
  sinks,
)
from unet_jax.runtime import errors

_TIFF = ('.tif', '.tiff')
_FOLDERS = {
  'masks': ('.png', '.tif'),
  'probabilities': ('.npz', '.tif'),
  'overlays': ('.jpg',),
  'contours': ('.geojson',),
}

_PAGE = re.compile(r'\.page_\d{4,}$')

# Pixels whose logits are converted at once, of more than one row.
_PIXELS = 2**20


@dataclasses.dataclass(frozen=True)
class Paths:
  """The files that an input gets; None where the config asks for none."""

  mask: pathlib.Path
  probabilities: pathlib.Path | None
  overlay: pathlib.Path | None
  contours: pathlib.Path | None

  def of_page(self, number: int, count: int) -> 'Paths':
    """Returns the files of one of an input's images, see above."""
    if count == 1:
      return self
    named = lambda path: (
      path and path.with_stem(f'{path.stem}.page_{number + 1:04}')
    )
    mask, *others = map(named, dataclasses.astuple(self))
    return Paths(mask.with_name(f'.{mask.name}'), *others)

  def files(self, num_pages: int) -> list[pathlib.Path]:
    """Returns all files of an input of some images."""
    found = {self.mask}
    for number in range(num_pages):
      _, *others = dataclasses.astuple(self.of_page(number, num_pages))
      found |= {path for path in others if path}
    return sorted(found)


def make_paths(
  source: pathlib.Path,
  folder: pathlib.Path,
  name: str,
  config: ml_collections.ConfigDict,
  num_pages: int = 1,
) -> Paths:
  """Returns the files of an image, see above."""
  predict = config.predict
  place = lambda kind, suffix: folder / kind / f'{name}{suffix}'
  is_tiff = source.suffix.lower() in _TIFF or num_pages > 1
  kind = {'npz': '.npz', 'tiff': '.tif'}.get(predict.probabilities)
  return Paths(
    place('masks', '.tif' if is_tiff else '.png'),
    place('probabilities', kind) if kind else None,
    place('overlays', '.jpg') if predict.overlay else None,
    place('contours', '.geojson') if predict.contours else None,
  )


def found(folder: pathlib.Path) -> dict[str, set[pathlib.Path]]:
  """Returns the files of all kinds that a folder has, by stem."""
  files: dict[str, set[pathlib.Path]] = collections.defaultdict(set)
  # Not a glob for each name: there may be many.
  for kind, suffixes in _FOLDERS.items():
    if (folder / kind).is_dir():
      for path in (folder / kind).iterdir():
        if path.suffix in suffixes and not path.name.startswith('.'):
          files[path.stem].add(path)
  return files


def without_page(stem: str) -> str:
  """Returns the name of an input of several images by one of its files."""
  return _PAGE.sub('', stem)


def join_pages(paths: Paths, num_pages: int) -> None:
  """Makes one mask of those of an input's images."""
  if num_pages > 1:
    pages = [paths.of_page(i, num_pages).mask for i in range(num_pages)]
    row_files.join_pages(pages, paths.mask)


def remove_pages(inputs: Iterable[Paths]) -> None:
  """Removes the masks of images that a failure left without the others."""
  for paths in inputs:
    name = glob.escape(paths.mask.stem)
    for page in paths.mask.parent.glob(f'.{name}.page_*.tif'):
      page.unlink(missing_ok=True)


def output_folder(
  config: ml_collections.ConfigDict,
  workdir: str,
  inputs: Iterable[pathlib.Path],
) -> pathlib.Path:
  """Returns the folder of what is written: predict.output or in the workdir.

  Raises:
    UserError: it would mix with the images.
  """
  folder = pathlib.Path(
    config.predict.output or os.path.join(workdir, 'predictions')
  ).expanduser()
  # DIR/images with the output in DIR would replace the training masks.
  taken = {folder, *(folder / name for name in ('images', *_FOLDERS))}
  taken = {path.resolve() for path in taken}
  for source in inputs:
    if source.parent.resolve() in taken:
      raise errors.UserError(
        f'--config.predict.output={folder}: would mix with the images in '
        f'{source.parent}; choose another folder, such as '
        f'--config.predict.output={folder / "predictions"}'
      )
  return folder


def mask_values(data: ml_collections.ConfigDict) -> np.ndarray:
  """Returns the value of each class in a mask: data.mask_values, inverted.

  See `mask_table.MaskTable.written`. The config is one that is valid for
  --mode=predict.

  Returns:
    uint8 or uint16 [classes]; uint8 [classes, 3] for a table with colours,
    where a value v is the colour (v, v, v).
  """
  written = mask_table.of(data).written
  table = np.array([written[c] for c in range(max(data.num_classes, 2))])
  highest = table.max()
  if data.nodata or data.alpha == 'nodata':
    highest = max(highest, np.max(ignored_value(data)))
  return table.astype(np.uint8 if highest < 256 else np.uint16)


def ignored_value(data: ml_collections.ConfigDict) -> int | tuple[int, ...]:
  """Returns what a mask has where there are no data.

  The value that data.mask_values ignores; without one that can be written 255
  or, where that is a class, the highest value below that is none.
  """
  table = mask_table.of(data)
  value = table.written.get(fields.IGNORE_LABEL, -1)
  highest = 255 if table.has_colors else 65535
  if 0 <= np.min(value) and np.max(value) <= highest:
    return value
  taken = {np.max(v) for c, v in table.written.items() if c < data.num_classes}
  free = next(v for v in range(255, -1, -1) if v not in taken)
  return (free,) * 3 if table.has_colors else free


class _Rows(NamedTuple):
  """Some rows of a prediction.

  Attributes:
    classes: uint8 [h, W]; 0 where there are no data.
    planes: probabilities, float32 [classes, h, W]; empty unless some file needs
      them.
    ignored: bool [h, W], where there are no data; None: nowhere.
  """

  classes: np.ndarray
  planes: np.ndarray
  ignored: np.ndarray | None


# Makes the rows of a file.
_Convert = Callable[[_Rows], np.ndarray]


class PredictionFiles(sinks.RowSink):
  """Writes the files of an image from its logits.

  Memory is that of a few hundred rows, apart from contours.
  """

  def __init__(
    self,
    raster: rasters.Raster,
    paths: Paths,
    config: ml_collections.ConfigDict,
    tags: kept_tags.Tags = kept_tags.NONE,
    moved: Callable[[float], None] = lambda share: None,
    done: Callable[[], None] = lambda: None,
  ):
    """Opens the files.

    Args:
      raster: the image as it is stored, read again for the overlay.
      tags: those of its file that are kept in TIFFs.
      moved: called with the share of the image's rows that were written since.
      done: called once all files are complete.
    """
    self._raster, self._size, self._next = raster, raster.size, 0
    self._moved, self._done = moved, done
    self._needs_probabilities = bool(paths.probabilities or paths.contours)
    self._files: list[tuple[_Convert, sinks.RowSink]] = []
    try:
      self._open(paths, config, tags.of_orientation(raster.orientation))
    except BaseException:
      self.abort()
      raise

  def _open(
    self, paths: Paths, config: ml_collections.ConfigDict, tags: kept_tags.Tags
  ) -> None:
    add = lambda convert, file: self._files.append((convert, file))
    raster, names, size = self._raster, fields.class_names(config), self._size
    add(_to_values(config.data), _mask_file(paths.mask, raster, config, tags))
    if paths.probabilities:
      add(
        _to_probabilities,
        _probabilities_file(
          paths.probabilities, (*size, len(names)), names, raster, tags
        ),
      )
    if paths.overlay:
      add(
        lambda rows: rows.classes,
        overlays.OverlayFile(paths.overlay, raster, len(names)),
      )
    if paths.contours:
      add(
        lambda rows: np.stack(
          [rows.classes, np.rint(255 * rows.planes.max(0)).astype(np.uint8)], -1
        ),
        contours.ContoursFile(paths.contours, size, names),
      )

  def write(self, rows: np.ndarray) -> None:
    """Adds the next rows, logits float32 [h, W, K], of a sigmoid if K is 1."""
    stop = self._next + len(rows)
    if rows.shape[1] != self._size[1] or stop > self._size[0]:
      raise ValueError(
        f'{stop} rows of {rows.shape[1]} pixels; expected {self._size[0]} of '
        f'{self._size[1]}'
      )
    for part in probabilities.row_bands(rows.shape, _PIXELS):
      classes = probabilities.predict(rows[part])
      first, self._next = self._next, self._next + len(classes)
      ignored = self._raster.ignored(first, self._next)
      if ignored is not None:
        classes = np.where(ignored, np.uint8(0), classes)
      planes = np.empty(0, np.float32)
      if self._needs_probabilities:
        planes = probabilities.planes(rows[part])
      for convert, file in self._files:
        file.write(convert(_Rows(classes, planes, ignored)))
      self._moved(len(classes) / self._size[0])

  def close(self) -> None:
    try:
      if self._next != self._size[0]:
        raise ValueError(f'{self._next} of {self._size[0]} rows were written')
      for _, file in self._files:
        file.close()
    except BaseException:
      self.abort()
      raise
    self._done()

  def abort(self) -> None:
    for _, file in self._files:
      file.abort()


def _to_values(data: ml_collections.ConfigDict) -> _Convert:
  """Returns how classes become values of a mask."""
  values = mask_values(data)

  def convert(rows: _Rows) -> np.ndarray:
    found = values[rows.classes]
    if rows.ignored is not None:
      found[rows.ignored] = ignored_value(data)
    return found

  return convert


def _to_probabilities(rows: _Rows) -> np.ndarray:
  """Returns float16 [h, W, classes], NaN where there are no data."""
  found = np.moveaxis(rows.planes.astype(np.float16), 0, -1)
  if rows.ignored is not None:
    found[rows.ignored] = np.nan
  return found


def _mask_file(
  path: pathlib.Path,
  raster: rasters.Raster,
  config: ml_collections.ConfigDict,
  tags: kept_tags.Tags,
) -> row_files.RowFile:
  """Opens a file of values."""
  values = mask_values(config.data)
  shape = (*raster.size, *values.shape[1:])
  if path.suffix not in _TIFF:
    return row_files.PngFile(path, shape, values.dtype, raster.orientation)
  if raster.ignored(0, 1) is not None:
    tags = tags.of_nodata(np.ravel(ignored_value(config.data))[0])
  return row_files.TiffFile(path, shape, values.dtype, tags=tags)


def _probabilities_file(
  path: pathlib.Path,
  shape: tuple[int, int, int],
  names: Sequence[str],
  raster: rasters.Raster,
  tags: kept_tags.Tags,
) -> row_files.RowFile:
  """Opens a file of float16 [H, W, classes]."""
  if path.suffix in _TIFF:
    # ASCII is all that TIFF allows.
    text = ', '.join(names).encode('ascii', 'backslashreplace').decode()
    if raster.ignored(0, 1) is not None:
      tags = tags.of_nodata(np.nan)
    return row_files.TiffFile(path, shape, np.float16, text, tags)
  return row_files.NpzFile(
    path, 'probabilities', shape, np.float16, class_names=names
  )
