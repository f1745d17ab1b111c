"""Inputs of --mode=predict, and the files that each gets.

In the output folder an image NAME.ext gets (of stems that collide see names.py)

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

from unet_jax.config import fields
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
_FOLDERS = {
  'masks': ('.png', '.tif'),
  'probabilities': ('.npz', '.tif'),
  'overlays': ('.jpg',),
  'contours': ('.geojson',),
}

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
  source: pathlib.Path,
  folder: pathlib.Path,
  name: str,
  config: ml_collections.ConfigDict,
) -> Paths:
  """Returns the files of an image, see above."""
  predict = config.predict
  place = lambda kind, suffix: folder / kind / f'{name}{suffix}'
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


def found(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Returns the files that an image of this name has, of any kind."""
  paths = (
    folder / kind / f'{name}{suffix}'
    for kind, suffixes in _FOLDERS.items()
    for suffix in suffixes
  )
  return [path for path in paths if path.is_file()]


def others(paths: Paths, name: str) -> list[pathlib.Path]:
  """Returns the files that an image has and that are not asked for."""
  there = found(paths.mask.parent.parent, name)
  return [path for path in there if path not in dataclasses.astuple(paths)]


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


def find_inputs(pattern: str) -> list[pathlib.Path]:
  """Returns the images that a file, a folder or a pattern such as `a/*` names.

  Of a folder these are the image files in it or, where it has none, those of
  its images/; in natural order (slice_2 before slice_10).

  Raises:
    UserError: there are none.
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

  Of several values of a class, the first in the table. Without a table these
  are the classes. The config is one that is valid for --mode=predict.

  Returns:
    uint8 or uint16 [classes]; uint8 [classes, 3] for a table with colours,
    where a value v is the colour (v, v, v).
  """
  num_names = max(data.num_classes, 2)
  if not data.mask_values:
    return np.arange(num_names, dtype=np.uint8)
  first = fields.value_of_class(data)
  is_color = any(isinstance(value, tuple) for value, _ in data.mask_values)
  shape = (3,) if is_color else ()
  table = np.array(
    [np.broadcast_to(first[c], shape) for c in range(num_names)], np.int64
  )
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
    moved: Callable[[float], None] = lambda share: None,
    done: Callable[[], None] = lambda: None,
  ):
    """Opens the files.

    Args:
      raster: the image, read again for the overlay.
      moved: called with the share of the image's rows that were written since.
      done: called once all files are complete.
    """
    self._size, self._next = raster.size, 0
    self._moved, self._done = moved, done
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
