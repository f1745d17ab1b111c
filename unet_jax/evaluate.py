"""Evaluation of a checkpoint as the field reports it: --mode=evaluate.

Every image of the split is measured once, in threads, while the device predicts
the next; figures go to eval.json, one row per image to eval.csv, and what a
person wants to see to eval.html and figures/.
"""

import collections
import concurrent.futures
import logging
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import prepare, prepared, sources
from unet_jax.evaluation import counting, files, measures
from unet_jax.models import blocks, unet
from unet_jax.prediction import predictor, probabilities, restore
from unet_jax.runtime import errors, program
from unet_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)

# Examples whose logits are waiting to be measured, for each thread.
_WAITING = 4


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Evaluates a checkpoint of a workdir; prints a table.

  Args:
    config: its `eval`, `inference` and `checkpoint` sections say what is
      evaluated, and how.
    workdir: absolute path of a training run, or of a cross-validation; gets
      eval.json, eval.csv, eval.html and figures/.

  Raises:
    UserError: there is no such checkpoint, or it is of another network.
  """
  start = time.perf_counter()
  program.initialize(fields.cache_dir(config))
  mesh_lib.check_processes(config, 'evaluate')
  mesh = mesh_lib.make_mesh(config)
  variables, averaging, members = restore.restore(config, workdir, mesh)
  split = config.eval.split or config.data.eval_split
  source = sources.make_source(config, split)
  _check_folds(source.split, members)
  network = (unet.create_model(config), variables, averaging, mesh)
  result = _choose(config)(config, source, *network)
  seconds = time.perf_counter() - start
  steps = sorted({member['step'] for member in members})
  about = {
    # The one that there mostly is stays a number.
    'step': steps[0] if len(steps) == 1 else steps,
    'split': source.split,
    'params': members[0]['params'],
    'num_examples': result['num_examples'],
    'resolution': config.eval.resolution,
    'networks': len(members),
    'views': averaging.count // averaging.members,
    'seconds': seconds,
    'seconds_waiting_for_device': result['seconds_waiting'],
    'settings': files.settings(config),
  }
  figures = {f'eval/{k}': v for k, v in result['figures'].items()}
  if jax.process_index():
    return
  files.write_full(workdir, config, about, figures, result)
  print(
    f'step {", ".join(map(str, steps))}, {about["params"]} parameters, '
    f'{about["num_examples"]} images of {source.split}'
  )
  names = fields.class_names(config)
  print(files.format_table(figures, names, result['intervals']))
  _log.info('wrote %s', os.path.join(workdir, 'eval.json'))


def _check_folds(split: str, members) -> None:
  """Refuses networks that were trained on the fold that is evaluated."""
  for member in members:
    fold = member['fold']
    if split.startswith('fold_') and fold is not None and split != fold:
      raise errors.UserError(
        f'{member["workdir"]} was trained on {split}, as on all folds but '
        f'{fold}: its scores there say nothing. Evaluate it alone, or all on '
        'another split with --config.eval.split'
      )


def _choose(config):
  """Which of the evaluations below is asked for, and can be done."""
  if jax.process_count() > 1:
    _log.warning('many processes: only what is counted on the devices')
    return _count
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


def _count(config, source, model, variables, averaging, mesh):
  """What a training run evaluates: counts and losses, on the devices."""
  dataset = prepare.prepare_source(source, config)
  evaluator = counting.Evaluator(config, model, dataset, mesh, averaging)
  figures, confusion, shown = evaluator.run(variables)
  return {
    'figures': {k.removeprefix('eval/'): v for k, v in figures.items()},
    'intervals': {},
    'num_examples': len(dataset),
    'seconds_waiting': evaluator.seconds_waiting,
    'confusion': confusion,
    'shown': shown,
  }


class _Measured:
  """What was measured of each image; filled from many threads."""

  def __init__(self, config):
    self._spec = measures.make_spec(config)
    self._of_image = {}

  def add(self, index: int, name: str, logits, mask, instances=None) -> None:
    """Measures logits, float32 [H, W, K], against a mask, uint8 [H, W]."""
    measured = measures.measure_image(logits, mask, self._spec, instances)
    self._of_image[index] = (name, measured)

  def results(self) -> dict[str, Any]:
    """Returns figures, and what the pages show, of the images in order."""
    indices = sorted(self._of_image)
    if not indices:
      raise errors.UserError(
        'no image of the split could be decoded; the log names each'
      )
    names, measured = zip(*(self._of_image[i] for i in indices))
    figures, intervals = measures.summarize(measured, self._spec)
    return {
      'figures': figures,
      'intervals': intervals,
      'num_examples': len(indices),
      'indices': indices,
      'rows': measures.image_rows(measured, names, self._spec),
      'confusion': measures.confusion(measured),
      'reliability': measures.reliability(measured),
    }


def _measure_prepared(config, source, model, variables, averaging, mesh):
  """Compares at the network's resolution, with the masks as prepared."""
  dataset = prepare.prepare_source(source, config)
  evaluator = counting.Evaluator(
    config, model, dataset, mesh, averaging, returns_logits=True
  )
  size = model.output_size(config.data.image_size)
  workers = prepared.num_workers(config)
  measured, queue = _Measured(config), collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:

    def measure(index, logits):
      mask = blocks.center_crop(dataset[index]['mask'][None], *size)[0]
      measured.add(index, _name(dataset, source, index), logits, mask)

    def submit(index, logits):
      queue.append(pool.submit(measure, index, logits))
      if len(queue) > _WAITING * workers:
        queue.popleft().result()

    counted, _, shown = evaluator.run(variables, take_logits=submit)
    for future in queue:
      future.result()
  result = measured.results()
  result['figures']['loss'] = counted['eval/loss']

  def predict(indices):
    examples = [dataset[i] for i in indices]
    predictions = evaluator.predict(variables, examples)
    return [
      {**example, 'prediction': prediction}
      for example, prediction in zip(examples, predictions)
    ]

  return {
    **result,
    'seconds_waiting': evaluator.seconds_waiting,
    'shown': shown,
    'pictures': _pictures(config, result, predict),
  }


def _name(dataset, source, index: int) -> str:
  """What a person would call an example of a prepared set."""
  if dataset.stats is not None:
    return dataset.stats.names[index]
  return source.read(index)['name']


class _MeasuringSink(predictor.ArraySink):
  """Measures an image once its logits are there."""

  def __init__(self, measured: _Measured, index: int, example, mask):
    super().__init__(mask.shape)
    self._measured, self._index = measured, index
    self._example, self._mask = example, mask

  def close(self) -> None:
    name, instances = self._example['name'], self._example.get('instances')
    self._measured.add(self._index, name, self.array, self._mask, instances)
    self.array = self._example = self._mask = None


def _measure_originals(config, source, model, variables, averaging, mesh):
  """Compares at each image's own size, with the masks as they are stored."""
  measured = _Measured(config)
  network = predictor.Predictor(config, model, variables, averaging, mesh)

  def leave_out(index, error):
    if config.data.on_error == 'skip':
      _log.warning('left out: %s', str(error).partition(';')[0])
    return config.data.on_error == 'skip'

  def open_image(index):
    example = source[index]
    mask = prepared.original_mask(example, config.data)
    sink = _MeasuringSink(measured, index, example, mask)
    return predictor.WholeImage(example['image']), sink

  network.run(range(len(source)), open_image, leave_out)
  result, waited = measured.results(), network.seconds_waiting

  def predict(indices):
    examples = [source[i] for i in indices]
    logits = network.logits([example['image'] for example in examples])
    return [
      {
        'image': example['image'],
        'mask': prepared.original_mask(example, config.data),
        'prediction': probabilities.predict(one),
      }
      for example, one in zip(examples, logits)
    ]

  pictures = _pictures(config, result, predict)
  return {
    **result,
    'seconds_waiting': waited,
    'shown': pictures['median'],
    'pictures': pictures,
  }


def _pictures(config, result, predict) -> dict[str, list[dict[str, Any]]]:
  """Returns the worst, median and best examples by their image mIoU.

  Args:
    config: `eval.num_examples` says how many of each.
    result: see `_Measured.results`.
    predict: returns `image`, `mask` and `prediction` of examples.
  """
  scores = np.array([row['miou'] for row in result['rows']])
  order = [i for i in np.argsort(scores, kind='stable') if scores[i] >= 0]
  # Of few images, none is shown three times.
  count = min(config.eval.num_examples, -(-len(order) // 3))
  middle = (len(order) - count) // 2
  chosen = {
    'worst': order[:count],
    'median': order[middle : middle + count],
    'best': order[::-1][:count],
  }
  return {
    kind: [
      {
        **example,
        'name': result['rows'][i]['image'],
        'score': float(scores[i]),
      }
      for i, example in zip(
        places, predict([result['indices'][i] for i in places])
      )
    ]
    for kind, places in chosen.items()
  }
