"""What --mode=predict reads and writes: inputs, their files, rows of results.

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

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import decode, examples, rasters
from unet_jax.prediction import contours, overlays, probabilities, row_files
from unet_jax.runtime import errors

_TIFF = ('.tif', '.tiff')
_FOLDERS = ('masks', 'probabilities', 'overlays', 'contours')


@dataclasses.dataclass(frozen=True)
class Paths:
  """The files that an input gets; None is not asked for."""

  mask: pathlib.Path
  probabilities: pathlib.Path | None
  overlay: pathlib.Path | None
  contours: pathlib.Path | None


def make_paths(source: pathlib.Path, folder: pathlib.Path, config) -> Paths:
  """Returns where the results of an image go, see above.

  Args:
    source: the image.
    folder: of the output.
    config: of the run.
  """
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
  """Whether all files that are asked for are there."""
  files = dataclasses.astuple(paths)
  return all(path.is_file() for path in files if path)


def plan(config, workdir: str) -> list[tuple[pathlib.Path, Paths]]:
  """Returns each image that predict.input names, with the files that it gets.

  Args:
    config: of the run.
    workdir: of the run; the output is in it unless predict.output says where.

  Raises:
    UserError: see `find_inputs`, or the output would mix with the input.
  """
  inputs = find_inputs(config.predict.input)
  folder = config.predict.output or os.path.join(workdir, 'predictions')
  folder = pathlib.Path(folder).expanduser()
  # DIR/images with the output in DIR would replace the masks to learn from.
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
  by_stem = {}
  for file in files:
    other = by_stem.setdefault(file.stem, file)
    if other is not file:
      raise errors.UserError(
        f'{flag}: {other} and {file} have the same stem, one result would '
        'overwrite the other; rename one or predict them apart'
      )
  return files


def _images(paths) -> list[pathlib.Path]:
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
  are the classes.

  Args:
    data: the section `data` of a config that is valid for --mode=predict.

  Returns:
    uint8 or uint16 [classes]; uint8 [classes, 3] for a table with colours,
    where a value v is the colour (v, v, v).
  """
  num_names = max(data.num_classes, 2)
  if not data.mask_values:
    return np.arange(num_names, dtype=np.uint8)
  first = fields.value_of_class(data)
  values = [first[c] for c in range(num_names)]
  if any(isinstance(value, tuple) for value, _ in data.mask_values):
    values = [np.broadcast_to(value, 3) for value in values]
  table = np.array(values, np.int64)
  return table.astype(np.uint8 if table.max() < 256 else np.uint16)


class _Mask:
  """The classes as the data's own values."""

  def __init__(self, path: pathlib.Path, size, data):
    self._values = mask_values(data)
    is_tiff = path.suffix in _TIFF
    kind = row_files.TiffFile if is_tiff else row_files.PngFile
    shape = (*size, *self._values.shape[1:])
    self._file = kind(path, shape, self._values.dtype)
    self.close, self.abort = self._file.close, self._file.abort

  def write(self, start: int, classes, planes) -> None:
    self._file.write(self._values[classes])


class _Probabilities:
  """float16 [H, W, classes]."""

  def __init__(self, path: pathlib.Path, size, names):
    shape = (*size, len(names))
    if path.suffix in _TIFF:
      # ASCII is all that TIFF allows.
      text = ', '.join(names).encode('ascii', 'backslashreplace').decode()
      self._file = row_files.TiffFile(path, shape, np.float16, text)
    else:
      self._file = row_files.NpzFile(
        path, 'probabilities', shape, np.float16, class_names=names
      )
    self.close, self.abort = self._file.close, self._file.abort

  def write(self, start: int, classes, planes) -> None:
    self._file.write(np.moveaxis(planes.astype(np.float16), 0, -1))


class _Overlay:
  """The image under its classes."""

  def __init__(self, path: pathlib.Path, raster: rasters.Raster, names):
    self._raster, self._num_classes = raster, len(names)
    self._file = row_files.JpegFile(path)
    self._overlay = overlays.Overlay(raster.size)
    self.abort = self._file.abort

  def write(self, start: int, classes, planes) -> None:
    image = self._raster.read(start, start + len(classes))
    self._overlay.add(image, classes)

  def close(self) -> None:
    self._file.write(self._overlay.picture(self._num_classes))
    self._file.close()


class _Contours:
  """Outlines of the parts, of maps that are held as a whole."""

  def __init__(self, path: pathlib.Path, size, names):
    self._names = names
    self._classes = np.zeros(size, np.uint8)
    self._probabilities = np.zeros(size, np.uint8)
    self._file = row_files.TextFile(path)
    self.abort = self._file.abort

  def write(self, start: int, classes, planes) -> None:
    rows = slice(start, start + len(classes))
    self._classes[rows] = classes
    self._probabilities[rows] = np.rint(255 * planes.max(0))

  def close(self) -> None:
    found = contours.features(self._classes, self._probabilities, self._names)
    for text in contours.to_text(found):
      self._file.write(text)
    self._file.close()


class PredictionWriter:
  """Writes the files of an image, from bands of logits in order.

  A context manager: without an error, `close`, otherwise `abort`. Memory is
  that of a few hundred rows, apart from contours.
  """

  def __init__(self, raster: rasters.Raster, paths: Paths, config):
    """Opens the files.

    Args:
      raster: the image; read again for the overlay.
      paths: what is written.
      config: of the run.
    """
    self._size, self._next = raster.size, 0
    self._outputs = []
    names = fields.class_names(config)
    self._needs_probabilities = bool(paths.probabilities or paths.contours)
    makers = [
      (_Mask, paths.mask, (raster.size, config.data)),
      (_Probabilities, paths.probabilities, (raster.size, names)),
      (_Overlay, paths.overlay, (raster, names)),
      (_Contours, paths.contours, (raster.size, names)),
    ]
    try:
      for make, path, arguments in makers:
        if path:
          self._outputs.append(make(path, *arguments))
    except BaseException:
      self.abort()
      raise

  def write(self, start: int, logits: np.ndarray) -> None:
    """Adds the next rows.

    Args:
      start: the first of them, the number of rows so far.
      logits: float32 [h, W, num_classes], of a sigmoid where that is 1.
    """
    if start != self._next or logits.shape[1] != self._size[1]:
      raise ValueError(
        f'rows from {start} of {logits.shape[1]} pixels; expected rows from '
        f'{self._next} of {self._size[1]}'
      )
    self._next += len(logits)
    classes, planes = probabilities.predict(logits), None
    if self._needs_probabilities:
      planes = probabilities.planes(logits)
    for output in self._outputs:
      output.write(start, classes, planes)

  def close(self) -> None:
    """Finishes the files, which are there from now on."""
    try:
      if self._next != self._size[0]:
        raise ValueError(f'{self._next} of {self._size[0]} rows were written')
      for output in self._outputs:
        output.close()
    except BaseException:
      self.abort()
      raise

  def abort(self) -> None:
    """Removes what is not finished."""
    for output in self._outputs:
      output.abort()

  def __enter__(self) -> 'PredictionWriter':
    return self

  def __exit__(self, kind, *error) -> None:
    if kind is None:
      self.close()
    else:
      self.abort()
