"""Costs of the input pipeline: in training, alone, preparing the arrays."""

import contextlib
import functools
import itertools
from typing import Any

import ml_collections

from experiments.speed import rounds, step
from unet_jax.data import pipeline, prepare, prepared, sources

_REPEATED = 'one batch repeated'


def _fed_round(
  config: ml_collections.ConfigDict,
  ours: step.Ours,
  dataset: prepared.Dataset,
  steps: int,
) -> rounds.Seconds:
  """Returns the seconds per step of training on real batches.

  Each round starts an iterator of its own; the steps before the clock bring it
  into the balance that it has in a long run, whatever was read ahead.
  """
  with contextlib.closing(
    pipeline.train_batches(dataset, config, ours.mesh)
  ) as batches:
    return rounds.per_step(functools.partial(ours.train, batches), steps, steps)


def measure(
  config: ml_collections.ConfigDict, repeats: int, steps: int
) -> dict[str, Any]:
  """Times the input pipeline: in training, alone, and preparing the arrays."""
  config = config.copy_and_resolve_references()
  size, split = config.data.batch_size, config.data.train_split
  sources.make_source(config, split)  # Downloads and builds, if it must.
  datasets: dict[str, prepared.Dataset] = {}

  def prepare_with(cache: str) -> None:
    config.data.cache = cache
    datasets[f'cache {cache}'] = prepare.prepare(config, split)

  seconds = rounds.seconds(prepare_with, 'memory')
  for cache in ('disk', 'none'):
    prepare_with(cache)
  total, workers = len(datasets['cache memory']), prepared.num_workers(config)
  print(
    f'\npreparing (decode, check, resize) {total} images: '
    f'{total / seconds:.1f} images/s, '
    f'{total / seconds / workers:.1f} per worker of {workers}'
  )
  ours = step.Ours(config)
  batch = next(
    pipeline.eval_batches(datasets['cache memory'], config, ours.mesh)
  )
  repeated = itertools.repeat({k: batch[k] for k in ('image', 'mask')})
  ours.train(repeated, steps)  # Compiles.
  contenders = {
    _REPEATED: lambda: rounds.per_step(
      lambda n: ours.train(repeated, n), steps, steps
    )
  }
  alone = {}
  for name, dataset in datasets.items():
    contenders[name] = functools.partial(
      _fed_round, config, ours, dataset, steps
    )
    alone[name] = lambda d=dataset: rounds.per_batch(
      pipeline.train_batches(d, config, ours.mesh), config, 10 * steps
    )
  rows = rounds.compare(
    f'training step of {size} images, s', contenders, repeats, size
  )
  lost = {name: 1 - 1 / rows[name]['ratio'] for name in datasets}
  print(
    'share of the step lost to the pipeline: '
    + ', '.join(f'{name} {share:.1%}' for name, share in lost.items())
  )
  return {
    'prepare': {
      'images': total,
      'seconds': seconds,
      'images_per_second': total / seconds,
      'images_per_second_and_worker': total / seconds / workers,
    },
    'training': rows,
    'lost_share': lost,
    'alone': rounds.compare(
      f'pipeline alone, batch of {size} images, s', alone, repeats, size
    ),
  }
