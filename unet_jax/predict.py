"""Masks of images from a run's workdir alone: --mode=predict."""

import logging

import ml_collections

from unet_jax.config import fields
from unet_jax.data import rasters
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.prediction import index as index_lib
from unet_jax.prediction import outputs, predictor, restore
from unet_jax.runtime import errors, program, progress
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Predicts the images that predict.input names and that are not done.

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
  inputs = outputs.find_inputs(config.predict.input)
  folder = outputs.output_folder(config, workdir, inputs)
  mesh = mesh_lib.make_prediction_mesh(config)
  variables, ensemble, about = restore.restore(config, workdir, mesh, members)
  index = index_lib.Index(folder, index_lib.network(config, variables, about))
  planned = index.plan(inputs, config)
  left = [item for item in planned if not item.is_done]
  if len(left) < len(planned):
    _log.info(
      '%d images are done already, from the same content, checkpoint and '
      'settings',
      len(planned) - len(left),
    )
  skipped = 0
  if left:
    if ensemble.count > 1:
      _log.info(
        'averaging %d network(s), %d view(s)',
        ensemble.members,
        ensemble.count // ensemble.members,
      )
    model = unet.create_model(config, build.choose(config, mesh))
    network = predictor.Predictor(config, model, variables, ensemble, mesh)
    try:
      skipped = _predict(network, left, index, config)
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
  items: list[index_lib.Item],
  index: index_lib.Index,
  config: ml_collections.ConfigDict,
) -> int:
  """Predicts images; returns how many were skipped."""
  bar, skipped = progress.Progress('predicting', len(items)), []

  def open_image(item: index_lib.Item):
    if item.is_stale:
      for path in outputs.others(item.paths, item.name):
        path.unlink(missing_ok=True)
    content = index_lib.digest_of(item.source)
    raster = rasters.open_image(item.source, config.data)
    try:
      done = lambda: index.finish(item, content)
      return raster, outputs.PredictionFiles(
        raster, item.paths, config, bar.update, done
      )
    except BaseException:
      raster.close()
      raise

  def skip(item: index_lib.Item, error: errors.DecodeError) -> bool:
    if config.data.on_error == 'stop':
      return False
    # The rest of the message says how to skip the file.
    _log.warning('skipped: %s', str(error).partition(';')[0])
    skipped.append(item)
    bar.update()
    return True

  with bar:
    try:
      network.run(items, open_image, skip)
    finally:
      index.write()
  return len(skipped)
