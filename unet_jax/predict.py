"""Masks of images from a run's workdir alone: --mode=predict."""

import logging
import sys
import threading

import ml_collections
import tqdm

from unet_jax.config import fields
from unet_jax.data import rasters
from unet_jax.models import unet
from unet_jax.prediction import outputs, predictor, restore
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program

_log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Predicts the images that predict.input names, but those that are done.

  Args:
    config: of the run; `predict` says what is read and written, `inference`
      how windows and networks are averaged.
    workdir: absolute path of a training run, or of a cross-validation.

  Raises:
    UserError: there is no such checkpoint or input, or a file is broken (left
      out with data.on_error=skip); what was written before stays.
  """
  program.initialize(fields.cache_dir(config))
  mesh_lib.check_processes(config, 'predict')
  restore.member_workdirs(config, workdir)  # Or there is none to predict.
  planned = outputs.plan(config, workdir)
  left = [item for item in planned if not outputs.existing(item[1])]
  if len(left) < len(planned):
    _log.info('%d images are done already', len(planned) - len(left))
  failed = _predict(left, config, workdir) if left else 0
  folder = planned[0][1].mask.parent.parent
  more = f', {failed} left out' if failed else ''
  print(
    f'{len(planned) - failed} images, {len(left) - failed} new{more}: {folder}'
  )


def _predict(items, config, workdir: str) -> int:
  """Predicts images; returns how many were left out."""
  mesh = mesh_lib.make_prediction_mesh(config)
  variables, average, _ = restore.restore(config, workdir, mesh)
  if average.count > 1:
    _log.info(
      'averaging %d network(s), %d view(s)',
      average.members,
      average.count // average.members,
    )
  network = predictor.Predictor(
    config, unet.create_model(config), variables, average, mesh
  )
  bar = tqdm.tqdm(
    total=len(items),
    desc='predicting',
    unit='image',
    disable=not sys.stderr.isatty(),
  )
  lock, failed = threading.Lock(), []

  def done():
    with lock:
      bar.update()

  def open_image(item):
    path, paths = item
    raster = rasters.open_image(path, config.data)
    try:
      return raster, _FileSink(raster, paths, config, done)
    except BaseException:
      raster.close()
      raise

  def leave_out(item, error):
    if config.data.on_error == 'stop':
      return False
    # What to do about it is said where it is not left out.
    _log.warning('left out: %s', str(error).partition(';')[0])
    failed.append(item)
    done()
    return True

  with bar:
    network.run(items, open_image, leave_out)
  return len(failed)


class _FileSink(outputs.PredictionWriter):
  """Writes an image's files; closes the image at the end."""

  def __init__(self, raster: rasters.Raster, paths, config, done):
    self._raster, self._done = raster, done
    super().__init__(raster, paths, config)

  def close(self) -> None:
    super().close()
    self._raster.close()
    self._done()

  def abort(self) -> None:
    super().abort()
    self._raster.close()
