"""Masks of images from a run's workdir alone: --mode=predict."""

import logging
import pathlib
import sys
import threading

import ml_collections
import tqdm

from unet_jax.config import fields
from unet_jax.data import rasters
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.prediction import outputs, predictor, restore
from unet_jax.runtime import errors, program
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Predicts the images that predict.input names and that have no files yet.

  Args:
    config: of the run; `predict` names input and output, `inference` the
      averages of windows, views and networks.
    workdir: absolute path of a training run, or of a cross-validation.

  Raises:
    UserError: there is no such checkpoint or input, or a file is broken
      (skipped with data.on_error=skip); files written before stay.
  """
  program.initialize(fields.cache_dir(config))
  mesh_lib.check_processes(config, 'predict')
  members = restore.member_workdirs(config, workdir)
  planned = outputs.plan(config, workdir)
  folder = planned[0][1].mask.parent.parent
  left = [item for item in planned if not outputs.existing(item[1])]
  if len(left) < len(planned):
    _log.info(
      '%d images are done already; to predict them again, remove their files '
      'or set predict.output',
      len(planned) - len(left),
    )
  skipped = 0
  if left:
    mesh = mesh_lib.make_prediction_mesh(config)
    variables, ensemble, _ = restore.restore(config, workdir, mesh, members)
    if ensemble.count > 1:
      _log.info(
        'averaging %d network(s), %d view(s)',
        ensemble.members,
        ensemble.count // ensemble.members,
      )
    model = unet.create_model(config, build.choose(config, mesh))
    network = predictor.Predictor(config, model, variables, ensemble, mesh)
    try:
      skipped = _predict(network, left, config)
    except OSError as e:
      e.filename = e.filename or folder  # A full disk has no name.
      raise
  more = f', {skipped} skipped' if skipped else ''
  print(
    f'{len(planned) - skipped} images, {len(left) - skipped} new{more}: '
    f'{folder}'
  )


def _predict(
  network: predictor.Predictor,
  items: list[tuple[pathlib.Path, outputs.Paths]],
  config: ml_collections.ConfigDict,
) -> int:
  """Predicts images; returns how many were skipped."""
  bar = tqdm.tqdm(
    total=len(items),
    desc='predicting',
    unit='image',
    disable=not sys.stderr.isatty(),
  )
  lock, skipped = threading.Lock(), []

  def done() -> None:
    with lock:
      bar.update()

  def open_image(item):
    path, paths = item
    raster = rasters.open_image(path, config.data)
    try:
      return raster, outputs.PredictionFiles(raster, paths, config, done)
    except BaseException:
      raster.close()
      raise

  def skip(item, error: errors.DecodeError) -> bool:
    if config.data.on_error == 'stop':
      return False
    # The rest of the message says how to skip the file.
    _log.warning('skipped: %s', str(error).partition(';')[0])
    skipped.append(item)
    done()
    return True

  with bar:
    network.run(items, open_image, skip)
  return len(skipped)
