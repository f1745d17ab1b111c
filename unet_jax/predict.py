"""Masks of images from a run's workdir alone: --mode=predict."""

import contextlib
import functools
import logging
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from unet_jax.config import fields
from unet_jax.data import digests, rasters
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.models.ensemble import Ensemble
from unet_jax.prediction import index as index_lib
from unet_jax.prediction import (
  inputs,
  kept_tags,
  kinds,
  outputs,
  overlays,
  predictor,
  restore,
  sinks,
)
from unet_jax.prediction import network as network_lib
from unet_jax.runtime import errors, processes, program, progress
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)


@processes.end_with_others()
def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Predicts the images that predict.input names and that are not done.

  Of many processes, each predicts every n-th image on its own devices.

  Args:
    config: of the run; `predict` names input and output, `inference` the
      averages of windows, views and networks.
    workdir: absolute path of a training run, or of a cross-validation.

  Raises:
    UserError: there is no such checkpoint or input, or a file is broken
      (skipped with data.on_error=skip); files written before stay.
  """
  program.initialize(fields.cache_dir(config))
  members = restore.member_workdirs(config, workdir)
  images = inputs.find(config.predict.input)
  folder = outputs.output_folder(config, workdir, images)
  mesh = mesh_lib.make_prediction_mesh(config)
  restored = functools.cache(
    lambda: restore.restore(config, workdir, mesh, members)
  )
  files = restore.fingerprints(config, members)
  predicts = network_lib.known(folder, config, files)
  if predicts is None:
    variables, _, about = restored()
    predicts = network_lib.describe(config, variables, about, files)
  index = index_lib.Index(folder, predicts)
  with contextlib.closing(index):
    plans = processes.together(lambda: index.plan(images, config))
    count = sum(map(len, plans))
    left = sum(not item.is_done for items in plans for item in items)
    if left < count:
      _log.info(
        '%d images are done already, from the same content, checkpoint and '
        'settings',
        count - left,
      )
    skipped = 0
    if left:
      variables, ensemble, about = restored()
      network = _make_predictor(config, variables, ensemble, mesh)
      checks = kinds.checks(config, about[0])
      mine = [i for i in plans[jax.process_index()] if not i.is_done]
      try:
        skipped = sum(
          processes.together(
            lambda: _predict(network, mine, index, config, checks)
          )
        )
        if config.predict.overlay and skipped < left and processes.is_first():
          names = fields.class_names(config)
          overlays.write_legend(folder / 'overlays', names)
      except OSError as e:
        e.filename = e.filename or folder  # A full disk has no name.
        raise
  if processes.is_first():
    more = f', {skipped} skipped' if skipped else ''
    print(f'{count - skipped} images, {left - skipped} new{more}: {folder}')


def _make_predictor(
  config: ml_collections.ConfigDict,
  variables: Any,
  ensemble: Ensemble,
  mesh: Mesh,
) -> predictor.Predictor:
  """Returns what predicts with variables, and logs how it does."""
  if ensemble.count > 1:
    _log.info(
      'averaging %d network(s), %d view(s)',
      ensemble.members,
      ensemble.count // ensemble.members,
    )
  native = build.choose(config, mesh)
  mesh_lib.log_devices(mesh, native)
  model = unet.create_model(config, native)
  return predictor.Predictor(config, model, variables, ensemble, mesh)


class _Page(NamedTuple):
  """One image of a file."""

  item: index_lib.Item
  number: int
  of: int


class _Run:
  """Opens the images of a call, and notes which are done."""

  def __init__(
    self,
    items: list[index_lib.Item],
    index: index_lib.Index,
    config: ml_collections.ConfigDict,
    checks: Sequence[kinds.Check],
  ):
    self._index, self._config, self._lock = index, config, threading.Lock()
    self._checks = checks
    self.skipped: set[index_lib.Item] = set()
    # Images whose tag turns them for display, and is not applied.
    self.tagged: set[pathlib.Path] = set()
    self._contents: dict[index_lib.Item, str] = {}
    # Of files of several images, whose pages are long to find.
    self._known: dict[index_lib.Item, list[kept_tags.Tags]] = {}
    self._left = {item: item.num_pages for item in items}
    pages = sum(self._left.values())
    self.progress = progress.Progress('predicting', pages)

  def pages(self) -> Iterator[_Page]:
    for item, count in list(self._left.items()):
      for number in range(count):
        yield _Page(item, number, count)

  def open_image(self, page: _Page) -> tuple[rasters.Raster, sinks.RowSink]:
    """Opens an image and its files, see `Predictor.run`."""
    item, data = page.item, self._config.data
    if not page.number:
      for path in item.stale:
        path.unlink(missing_ok=True)
      self._contents[item] = digests.of_file(item.source)
    raster = rasters.open_image(item.source, data, page.number)
    try:
      if raster.orientation != 1 and raster.turned == 1:
        self.tagged.add(item.source)
      as_stored = predictor.as_stored(raster)
      sink: sinks.RowSink = outputs.PredictionFiles(
        as_stored,
        item.paths.of_page(page.number, page.of),
        self._config,
        self._tags(page),
        self.progress.update,
        lambda: self._finish(item, raster),
      )
      if as_stored is not raster:
        sink = sinks.TurnedBack(sink, raster.size, raster.turned)
      return raster, sink
    except BaseException:
      raster.close()
      raise

  def _tags(self, page: _Page) -> kept_tags.Tags:
    """Returns the tags of an image to keep in its files."""
    if page.of == 1:
      found = kept_tags.read(page.item.source)
    else:
      with self._lock:
        if page.item not in self._known:
          self._known[page.item] = kept_tags.read(page.item.source)
        found = self._known[page.item]
    return found[page.number] if found else kept_tags.NONE

  def _finish(self, item: index_lib.Item, raster: rasters.Raster) -> None:
    with self._lock:
      for check in self._checks:
        check.see(raster)
      self._left[item] -= 1
      if self._left[item] or item in self.skipped:
        return
    outputs.join_pages(item.paths, item.num_pages)
    self._index.finish(item, self._contents.pop(item))

  def skip(self, page: _Page, error: errors.DecodeError) -> bool:
    if self._config.data.on_error == 'stop':
      return False
    # The rest of the message says how to skip the file.
    _log.warning('skipped: %s', str(error).partition(';')[0])
    with self._lock:
      self.skipped.add(page.item)
    self.progress.update()
    return True


def _predict(
  network: predictor.Predictor,
  items: list[index_lib.Item],
  index: index_lib.Index,
  config: ml_collections.ConfigDict,
  checks: Sequence[kinds.Check],
) -> int:
  """Predicts images; returns how many were skipped."""
  run = _Run(items, index, config, checks)
  with run.progress:
    try:
      network.run(run.pages(), run.open_image, run.skip)
    finally:
      index.write()
      several = [item for item in items if item.num_pages > 1]
      outputs.remove_pages(item.paths for item in several)
      for item in run.skipped.intersection(several):
        for path in item.paths.files(item.num_pages):  # Of whole pages.
          path.unlink(missing_ok=True)
  if run.tagged:
    shown = errors.some(sorted(path.name for path in run.tagged))
    _log.warning(
      '%d images have a tag by which a viewer turns them (%s); it is not '
      'applied, as in training, and their masks have it too; to apply it, '
      'train with --config.data.orientation=upright',
      len(run.tagged),
      shown,
    )
  for check in checks:
    if line := check.warning():
      _log.warning('%s', line)
  return len(run.skipped)
