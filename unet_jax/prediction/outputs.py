"""Inputs of --mode=predict, and the files that each gets.

In the output folder an image NAME.ext gets

  masks/NAME.png           the classes as the values of data.mask_values;
                           NAME.tif, in tiles, where the image is a TIFF
  probabilities/NAME.npz   `probabilities` float16 [H, W, classes] and
                           `class_names`; or NAME.tif, in tiles
  overlays/NAME.jpg        the image under its classes, at most 2000 px large
  contours/NAME.geojson    outlines, see contours.py

so that the folder with the images as images/ is one for configs/folder.py. A
sigmoid channel has two classes here as well, the background first.
"""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import ml_collections
import numpy as np

from unet_jax.config import fields, mask_table
from unet_jax.data import decode, examples, rasters
from unet_jax.prediction import (
  contours,
  overlays,
  probabilities,
  row_files,
  sinks,
)
from unet_jax.runtime import errors

_TIFF = ('.tif', '.tiff')
_FOLDERS = ('masks', 'probabilities', 'overlays', 'contours')

# Pixels whose logits are converted at once, of more than one row.
_PIXELS = 2**20


@dataclasses.dataclass(frozen=True)
class Paths:
  """The files that an input gets; None where the config asks for none."""

  mask: pathlib.Path
  probabilities: pathlib.Path | None
  overlay: pathlib.Path | None
  contours: pathlib.Path | None


def make_paths(
  source: pathlib.Path, folder: pathlib.Path, config: ml_collections.ConfigDict
) -> Paths:
  """Returns the files of an image, see above."""
  predict = config.predict
  place = lambda name, suffix: folder / name / f'{source.stem}{suffix}'
  is_tiff = source.suffix.lower() in _TIFF
  kind = {'npz': '.npz', 'tiff': '.tif'}.get(predict.probabilities)
  return Paths(
    place('masks', '.tif' if is_tiff else '.png'),
    place('probabilities', kind) if kind else None,
    place('overlays', '.jpg') if predict.overlay else None,
    place('contours', '.geojson') if predict.contours else None,
  )


def existing(paths: Paths) -> bool:
  """Whether all files that the config asks for exist."""
  files = dataclasses.astuple(paths)
  return all(path.is_file() for path in files if path)


def plan(
  config: ml_collections.ConfigDict, workdir: str
) -> list[tuple[pathlib.Path, Paths]]:
  """Returns each image that predict.input names, with its files.

  These are in the workdir unless predict.output is set.

  Raises:
    UserError: see `find_inputs`, or the output would mix with the input.
  """
  inputs = find_inputs(config.predict.input)
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
  return [(source, make_paths(source, folder, config)) for source in inputs]


def find_inputs(pattern: str) -> list[pathlib.Path]:
  """Returns the images that a file, a folder or a pattern such as `a/*` names.

  Of a folder these are the image files in it or, where it has none, those of
  its images/; in natural order (slice_2 before slice_10).

  Raises:
    UserError: there are none, or two have one stem, and so one result.
  """
  if not pattern:
    raise errors.UserError(
      '--mode=predict needs --config.predict.input=PATH: an image, a folder or '
      "a pattern such as 'DIR/*.png'"
    )
  flag = f'--config.predict.input={pattern}'
  path = pathlib.Path(pattern).expanduser()
  if path.is_file():
    return [path]
  if path.is_dir():
    files = _images(path.iterdir())
    if not files and (path / 'images').is_dir():
      files = _images((path / 'images').iterdir())
    found = 'has no image files'
  else:
    files = _images(map(pathlib.Path, glob.glob(str(path), recursive=True)))
    found = 'no such file or folder'
    if glob.has_magic(pattern):
      found = 'matches no image files'
  if not files:
    raise errors.UserError(f'{flag}: {found} ({", ".join(decode.EXTENSIONS)})')
  by_stem: dict[str, pathlib.Path] = {}
  for file in files:
    other = by_stem.setdefault(file.stem, file)
    if other is not file:
      raise errors.UserError(
        f'{flag}: {other} and {file} have the same stem, one result would '
        'overwrite the other; rename one or predict them apart'
      )
  return files


def _images(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """The image files among paths, in natural order."""
  files = [
    path
    for path in paths
    if path.suffix.lower() in decode.EXTENSIONS
    and not path.name.startswith('.')
    and path.is_file()
  ]
  return sorted(files, key=lambda path: examples.natural_key(str(path)))


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
  return table.astype(np.uint8 if table.max() < 256 else np.uint16)


# Makes the rows of a file of the classes, uint8 [h, W], and their
# probabilities, float32 [classes, h, W], which are empty unless some file
# needs them.
_Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]


class PredictionFiles(sinks.RowSink):
  """Writes the files of an image from its logits.

  Memory is that of a few hundred rows, apart from contours.
  """

  def __init__(
    self,
    raster: rasters.Raster,
    paths: Paths,
    config: ml_collections.ConfigDict,
    done: Callable[[], None] = lambda: None,
  ):
    """Opens the files; calls `done` once all of them are complete.

    The raster is read again for the overlay.
    """
    self._size, self._next, self._done = raster.size, 0, done
    self._needs_probabilities = bool(paths.probabilities or paths.contours)
    self._files: list[tuple[_Convert, sinks.RowSink]] = []
    try:
      self._open(raster, paths, config)
    except BaseException:
      self.abort()
      raise

  def _open(
    self,
    raster: rasters.Raster,
    paths: Paths,
    config: ml_collections.ConfigDict,
  ) -> None:
    add = lambda convert, file: self._files.append((convert, file))
    names, size = fields.class_names(config), raster.size
    values = mask_values(config.data)
    is_tiff = paths.mask.suffix in _TIFF
    mask_kind = row_files.TiffFile if is_tiff else row_files.PngFile
    add(
      lambda classes, _: values[classes],
      mask_kind(paths.mask, (*size, *values.shape[1:]), values.dtype),
    )
    if paths.probabilities:
      add(
        lambda _, planes: np.moveaxis(planes.astype(np.float16), 0, -1),
        _probabilities_file(paths.probabilities, (*size, len(names)), names),
      )
    if paths.overlay:
      add(
        lambda classes, _: classes,
        overlays.OverlayFile(paths.overlay, raster, len(names)),
      )
    if paths.contours:
      add(
        lambda classes, planes: np.stack(
          [classes, np.rint(255 * planes.max(0)).astype(np.uint8)], -1
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
    self._next = stop
    for part in probabilities.row_bands(rows.shape, _PIXELS):
      classes = probabilities.predict(rows[part])
      planes = np.empty(0, np.float32)
      if self._needs_probabilities:
        planes = probabilities.planes(rows[part])
      for convert, file in self._files:
        file.write(convert(classes, planes))

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


def _probabilities_file(
  path: pathlib.Path, shape: tuple[int, int, int], names: Sequence[str]
) -> row_files.RowFile:
  """Opens a file of float16 [H, W, classes]."""
  if path.suffix in _TIFF:
    # ASCII is all that TIFF allows.
    text = ', '.join(names).encode('ascii', 'backslashreplace').decode()
    return row_files.TiffFile(path, shape, np.float16, text)
  return row_files.NpzFile(
    path, 'probabilities', shape, np.float16, class_names=names
  )
