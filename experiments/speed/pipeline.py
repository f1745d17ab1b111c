"""Costs of the input pipeline: in training, alone, preparing the arrays."""

import itertools
import time

from experiments.speed import rounds, step
from unet_jax.data import pipeline, prepare, prepared, sources


def _fed_round(config, ours: step.Ours, dataset, steps: int) -> float:
  """Seconds per step of training on real batches.

  Each round starts an iterator of its own; the steps before the clock bring it
  into the balance that it has in a long run, whatever was read ahead.
  """
  batches = pipeline.train_batches(dataset, config, ours.mesh)
  try:
    ours.train(batches, steps)
    return rounds.seconds(ours.train, batches, steps) / steps
  finally:
    batches.close()


def _pipeline_round(config, mesh, dataset, steps: int) -> float:
  """Seconds per batch of the pipeline alone."""
  batches = pipeline.train_batches(dataset, config, mesh)
  # The first batches start the threads; what is read ahead is used up.
  warmup = 2 * prepared.num_workers(config) + 4
  return rounds.per_batch(batches, warmup, 10 * steps)


def measure(config, repeats: int, steps: int) -> dict:
  """Times the input pipeline: in training, alone, and preparing the arrays."""
  config = config.copy_and_resolve_references()
  size, split = config.data.batch_size, config.data.train_split
  sources.make_source(config, split)  # Downloads and builds, if it must.
  datasets, prepare_seconds = {}, 0.0
  for cache in ('memory', 'disk', 'none'):
    config.data.cache = cache
    start = time.perf_counter()
    datasets[f'cache {cache}'] = prepare.prepare(config, split)
    if cache == 'memory':
      prepare_seconds = time.perf_counter() - start
  total = len(datasets['cache memory'])
  workers = prepared.num_workers(config)
  results = {
    'prepare': {
      'images': total,
      'seconds': prepare_seconds,
      'images_per_second': total / prepare_seconds,
      'images_per_second_and_worker': total / prepare_seconds / workers,
    }
  }
  print(
    f'\npreparing (decode, check, resize) {total} images: '
    f'{total / prepare_seconds:.1f} images/s, '
    f'{total / prepare_seconds / workers:.1f} per worker of {workers}'
  )
  ours = step.Ours(config)
  batch = next(
    pipeline.eval_batches(datasets['cache memory'], config, ours.mesh)
  )
  batch = {k: batch[k] for k in ('image', 'mask')}

  def repeated_round():
    batches = itertools.repeat(batch)
    ours.train(batches, steps)
    return rounds.seconds(ours.train, batches, steps) / steps

  repeated_round()  # Compiles.
  fed = {
    name: lambda d=d: _fed_round(config, ours, d, steps)
    for name, d in datasets.items()
  }
  alone = {
    name: lambda d=d: _pipeline_round(config, ours.mesh, d, steps)
    for name, d in datasets.items()
  }
  results['training'] = rows = rounds.report(
    f'training step of {size} images, s',
    rounds.in_turn({'one batch repeated': repeated_round, **fed}, repeats),
    size,
  )
  lost = {name: 1 - 1 / rows[name]['ratio'] for name in fed}
  print(
    'share of the step lost to the pipeline: '
    + ', '.join(f'{name} {share:.1%}' for name, share in lost.items())
  )
  results['lost_share'] = lost
  results['alone'] = rounds.report(
    f'pipeline alone, batch of {size} images, s',
    rounds.in_turn(alone, repeats),
    size,
  )
  return results
