"""Evaluation of a checkpoint as the field reports it: --mode=evaluate.

Every image of the split is predicted once, and measured in threads while the
device predicts the next; metrics go to eval.json, one row per image to
eval.csv, a page for people to eval.html and plots to figures/. Of many
processes, each measures its part of the images, and the first one writes.
"""

import collections
import concurrent.futures
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from unet_jax.config import fields
from unet_jax.data import (
  examples,
  identity,
  prepare,
  prepared,
  rasters,
  sources,
)
from unet_jax.evaluation import counting, files
from unet_jax.evaluation import split as split_lib
from unet_jax.kernels import build
from unet_jax.models import unet
from unet_jax.models.ensemble import Ensemble
from unet_jax.prediction import predictor, probabilities, restore, sinks
from unet_jax.runtime import (
  errors,
  processes,
  program,
  progress,
  whole_files,
)
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)

# Examples whose logits are waiting to be measured, for each thread.
_WAITING = 4


class _Network(NamedTuple):
  """The network to evaluate, or the average of several."""

  model: unet.UNet
  variables: dict[str, Any]
  ensemble: Ensemble
  mesh: Mesh


@processes.end_with_others()
def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Evaluates a checkpoint of a workdir; prints a table.

  Args:
    config: `eval`, `inference` and `checkpoint` choose the checkpoint, the
      split and the measures.
    workdir: absolute path of a training run, or of a cross-validation; gets
      eval.json, eval.csv, eval.html and figures/.

  Raises:
    UserError: there is no such checkpoint, or it is of another network.
  """
  start = time.perf_counter()
  program.initialize(fields.cache_dir(config))
  if config.eval.resolution == 'original' and jax.process_count() > 1:
    mesh = mesh_lib.make_prediction_mesh(config)
  else:
    mesh = mesh_lib.make_mesh(config)
  variables, ensemble, members = restore.restore(config, workdir, mesh)
  whole_files.make_workdir(workdir)  # Before hours of work.
  split = config.eval.split or config.data.eval_split
  record = _record(config, members)
  source = sources.make_source(config, split, record=record)
  _check_folds(source.split, members)
  _check_trained(source, config, record, members)
  native = build.choose(config, mesh)
  mesh_lib.log_devices(mesh, native)
  model = unet.create_model(config, native)
  network = _Network(model, variables, ensemble, mesh)
  result = _choose(config)(config, source, network)
  _say_copies(result.pop('pixels', {}), source, members)
  seconds = time.perf_counter() - start
  steps = sorted({member['step'] for member in members})
  about = {
    # A single step is stored as a number, several as a list.
    'step': steps[0] if len(steps) == 1 else steps,
    'split': source.split,
    'params': members[0]['params'],
    'num_examples': result['num_examples'],
    'resolution': config.eval.resolution,
    'networks': len(members),
    'views': ensemble.count // ensemble.members,
    'seconds': seconds,
    'seconds_waiting_for_device': result['seconds_waiting'],
    'settings': files.settings(config),
  }
  metrics = {f'eval/{k}': v for k, v in result['metrics'].items()}
  if jax.process_index():
    return
  files.write_full(workdir, config, about, metrics, result)
  print(
    f'step {", ".join(map(str, steps))}, {about["params"]} parameters, '
    f'{about["num_examples"]} images of {source.split}'
  )
  names = fields.class_names(config)
  print(files.format_table(metrics, names, result['intervals']))
  _log.info('wrote %s', os.path.join(workdir, 'eval.json'))


def _check_folds(split: str, members: list[dict[str, Any]]) -> None:
  """Refuses networks that were trained on the fold to evaluate."""
  for member in members:
    fold = member['fold']
    if split.startswith('fold_') and fold is not None and split != fold:
      raise errors.UserError(
        f'{member["workdir"]} was trained on {split}, as on all folds but '
        f'{fold}: its scores there mean nothing. Evaluate it alone, or all on '
        'another split with --config.eval.split'
      )


def _record(
  config: ml_collections.ConfigDict, members: list[dict[str, Any]]
) -> identity.Record | None:
  """Returns the record of the first network, which says what is held out."""
  path = members[0]['workdir']
  record = identity.read(path)
  if record is None and members[0]['step']:  # An imported one has none.
    identity.say_missing(config, path)
  return record


def _check_trained(
  source: examples.Source,
  config: ml_collections.ConfigDict,
  record: identity.Record | None,
  members: list[dict[str, Any]],
) -> None:
  """Says which images of a split its networks were trained on.

  Raises:
    UserError: another network was trained on what the first one held out.
  """
  for path in dict.fromkeys(member['workdir'] for member in members):
    is_first = path == members[0]['workdir']
    found = record if is_first else identity.read(path)
    if found is None:
      continue
    images = identity.images_of(source, found)
    trained = found.trained(images)
    if not trained:
      continue
    text = (
      f'{path} was trained on {len(trained)} of the {len(images)} images of '
      f'{source.split} ({errors.some(trained)})'
    )
    if not is_first and not config.eval.split:
      raise errors.UserError(
        f'{text}: their scores there mean nothing. Evaluate each network alone,'
        ' or all on another split with --config.eval.split'
      )
    found.say(f'{text}: scores there do not tell how it does on new ones')


def _say_copies(
  pixels: dict[str, str],
  source: examples.Source,
  members: list[dict[str, Any]],
) -> None:
  """Says which images were trained on in other files, such as other formats.

  Args:
    pixels: {name: digest}, see `identity.pixels_of`.
    source: what is evaluated.
    members: its networks.
  """
  for path in dict.fromkeys(member['workdir'] for member in members):
    record = identity.read(path)
    if record is None:
      continue
    copies = [name for name, key in pixels.items() if key in record.pixels]
    if copies:  # Those of the same files are said already.
      images = identity.images_of(source, record)
      trained = set(record.trained(images))
      rows = [i for i, image in enumerate(images) if image.name in trained]
      known = {source.read(i)['name'] for i in rows}
      copies = [name for name in copies if name not in known]
    if copies:
      record.say(
        f'{len(copies)} of {source.split} have the pixels of images that {path}'
        f' was trained on, in other files ({errors.some(copies)}): scores '
        'there do not tell how it does on new ones'
      )


def _choose(config: ml_collections.ConfigDict) -> Callable[..., dict[str, Any]]:
  """Returns the evaluation below that the config asks for and allows."""
  if config.model.spatial_dims == 3:
    return _count
  if config.eval.resolution == 'original':
    return _measure_originals
  if config.data.resize == 'patch':
    _log.warning(
      'tiles of images (data.resize=patch) are counted only; boundaries and '
      'the like need --config.eval.resolution=original'
    )
    return _count
  return _measure_prepared


def _count(
  config: ml_collections.ConfigDict, source: examples.Source, network: _Network
) -> dict[str, Any]:
  """Evaluates as a training run does: counts and losses, on the devices."""
  dataset = prepare.prepare_source(source, config)
  evaluator = counting.Evaluator(
    config, network.model, dataset, network.mesh, network.ensemble
  )
  counted = evaluator.run(network.variables)
  assert counted is not None, 'nothing stops it'
  metrics, confusion, shown = counted
  return {
    'metrics': {k.removeprefix('eval/'): v for k, v in metrics.items()},
    'intervals': {},
    'num_examples': len(dataset),
    'seconds_waiting': evaluator.seconds_waiting,
    'pixels': identity.pixels_of(dataset),
    'confusion': confusion,
    'shown': shown,
  }


def _measure_prepared(
  config: ml_collections.ConfigDict, source: examples.Source, network: _Network
) -> dict[str, Any]:
  """Compares at the network's resolution, with the masks as prepared."""
  dataset = prepare.prepare_source(source, config)
  evaluator = counting.Evaluator(
    config,
    network.model,
    dataset,
    network.mesh,
    network.ensemble,
    returns_logits=True,
  )
  workers = prepared.num_workers(config)
  queue: collections.deque = collections.deque()
  with (
    contextlib.closing(split_lib.MeasuredSplit(config)) as measured,
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):

    def measure(index: int, pixels: dict[str, np.ndarray]) -> None:
      stats = dataset.stats
      name = stats.names[index] if stats else source.read(index)['name']
      measured.add(index, name, **pixels)

    def submit(index: int, pixels: dict[str, np.ndarray]) -> None:
      queue.append(pool.submit(measure, index, pixels))
      if len(queue) > _WAITING * workers:
        queue.popleft().result()

    counted = evaluator.run(network.variables, take=submit)
    assert counted is not None, 'nothing stops it'
    for future in queue:
      future.result()
    result = measured.results()
    result['metrics']['loss'] = counted[0]['eval/loss']
    return {
      **result,
      'seconds_waiting': evaluator.seconds_waiting,
      'pixels': identity.pixels_of(dataset),
      'shown': counted[2],
      'pictures': measured.examples(result['rows'], dataset.__getitem__),
    }


def _measure_originals(
  config: ml_collections.ConfigDict, source: examples.Source, network: _Network
) -> dict[str, Any]:
  """Compares at each image's own size, with the masks as they are stored."""
  predict = predictor.Predictor(config, *network)
  mine = processes.share(range(len(source)))

  def skip(index: int, error: errors.DecodeError) -> bool:
    if config.data.on_error == 'skip':
      _log.warning('skipped: %s', str(error).partition(';')[0])
      bar.update()
    return config.data.on_error == 'skip'

  def read(index: int) -> dict[str, Any]:
    example = source[index]
    return {**example, 'mask': prepared.original_mask(example, config.data)}

  with (
    contextlib.closing(split_lib.MeasuredSplit(config)) as measured,
    progress.Progress(f'evaluating {source.split}', len(mine)) as bar,
  ):

    def open_image(index: int) -> tuple[rasters.Raster, sinks.RowSink]:
      example = read(index)

      def measure(logits: np.ndarray) -> None:
        measured.add(
          index,
          example['name'],
          logits,
          probabilities.predict(logits),
          example['mask'],
          example.get('instances'),
        )
        bar.update()

      raster = predictor.WholeImage(example['image'])
      return raster, sinks.ArraySink(raster.size, measure)

    processes.together(lambda: predict.run(mine, open_image, skip))
    result = measured.results()
    pictures = measured.examples(result['rows'], read)
  return {
    **result,
    'seconds_waiting': predict.seconds_waiting,
    'shown': pictures['median'],
    'pictures': pictures,
  }
