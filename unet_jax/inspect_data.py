"""Inspection of a data set before a GPU hour is spent on it: --mode=inspect.

Every pair is read once; the findings go to inspect.json for machines and to
inspect.html for people. Of many processes, each reads its part of the pairs,
and the first one reports.
"""

import collections
import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from unet_jax.config import checks, fields, output_size
from unet_jax.data import examples, sources
from unet_jax.inspection import (
  alignment,
  duplicates,
  findings,
  page,
  records,
  samples,
  scan,
  second_look,
  shown,
  suggest,
)
from unet_jax.runtime import errors, processes, whole_files

_BySplit = dict[str, list[records.Measurement]]
_Sources = dict[str, examples.Source]


@processes.end_with_others()
def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Goes through the splits, writes the report and prints a summary.

  Args:
    config: its `inspect` section lists the splits.
    workdir: absolute path; gets inspect.json, inspect.html and, with
      data.suggest, suggested.py.

  Raises:
    UserError: the data are not there, or, once the report is written, there
      are errors in them.
  """
  start = time.perf_counter()
  if not processes.is_alone():
    processes.initialize_distributed()
  whole_files.make_workdir(workdir)
  chosen, config = _choose_reading(config)
  by_split, by_source, found, seconds = _scan(config)
  if config.data.suggest:
    upright, why = suggest.choose_orientation(by_split, config.data)
    if upright:
      config = _take(upright, why, chosen, config)
      by_split, by_source, found, seconds = _scan(config)
  suggestions = [*chosen, *_suggest(by_split, by_source, found, config)]
  split, measurements = next(iter(by_split.items()))
  step: dict[str, Any] | None = None
  batch: list[dict[str, np.ndarray]] = []
  if config.inspect.network:
    step, batch = _try_network(by_source[split], measurements, found, config)
  if not processes.is_first():
    return
  found = records.by_level(found)
  report: dict[str, Any] = {
    **_describe(by_split, found, config),
    'network': step,
    'suggestion': _describe_suggestions(suggestions, config),
    'seconds': {**seconds, 'total': time.perf_counter() - start},
  }
  pictures = shown.pictures(by_split, by_source, found, suggestions, config)
  whole_files.write_json(os.path.join(workdir, 'inspect.json'), report)
  path = os.path.join(workdir, 'inspect.html')
  page.write(path, report, {'examples': pictures, 'batch': batch})
  _print_summary(report, suggestions, workdir)
  num_errors = report['counts']['error']
  fix = 'fix them before training'
  if config.data.suggest:
    after = ', once all is fixed and inspected again' if num_errors else ''
    if {f.kind for f in found if f.level == 'error'} == {'unknown values'}:
      # Of a new set: the suggested table is the fix.
      after = ', which maps the unknown values'
      fix = 'the suggested config maps these values: check its data.mask_values'
    _write_suggestion(report['suggestion'], suggestions, config, workdir, after)
  if num_errors:
    raise errors.UserError(
      f'{num_errors} error(s) in the data, reported above and in {path}; {fix}'
    )


def _try_network(
  source: examples.Source,
  measurements: records.Measurements,
  found: list[records.Finding],
  config: ml_collections.ConfigDict,
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
  """Does a training step, see `network.try_step`; adds what it finds."""
  # Imported here: JAX and the rest take longer than to inspect a small set.
  from unet_jax.inspection import network
  from unet_jax.runtime import program

  program.initialize(fields.cache_dir(config))
  step, batch = network.try_step(source, measurements, config)
  if not (step['error'] and any(f.level == 'error' for f in found)):
    found += network.find(step)  # Otherwise it would repeat the errors.
  return step, batch


def _scan(
  config: ml_collections.ConfigDict,
) -> tuple[_BySplit, _Sources, list[records.Finding], dict[str, float]]:
  """Goes through the splits.

  Returns:
    {split: measurements} and {split: source}, in the order of the splits; the
    findings; and the seconds that it took.
  """
  by_split: _BySplit = {}
  by_source: _Sources = {}
  problems: dict[examples.Problem, records.Finding] = {}
  seconds = {'decode': 0.0, 'measure': 0.0, 'wall': 0.0}
  for name in _wanted_splits(config):
    mine: list[examples.Problem] = []
    source = scan.Readable(sources.make_source(config, name, mine), config.data)
    split = source.split
    if split in by_split:
      continue
    by_split[split], took = scan.scan(source, config)
    second_look.look_again(source, by_split[split], config)
    by_source[split] = source
    seconds = {k: v + took[k] for k, v in seconds.items()}
    for p in mine:
      # If both splits are taken from one folder, both have its problems.
      where = '' if p in problems else split
      problems[p] = records.Finding(p.level, p.kind, where, p.message, p.names)
  scan.use_colors([m for ms in by_split.values() for m in ms], config)
  held_out = any(source.held_out for source in by_source.values())
  found = [*problems.values(), *findings.find(by_split, config, held_out)]
  return by_split, by_source, found, seconds


def _choose_reading(
  config: ml_collections.ConfigDict,
) -> tuple[list[suggest.Suggestion], ml_collections.ConfigDict]:
  """Returns what follows from pages and values of images, and the config so.

  With data.suggest they are inspected as they should be trained with: otherwise
  most could not be, or would be dark.
  """
  chosen: list[suggest.Suggestion] = []
  if config.data.suggest:
    config = _take(*samples.choose_pages(config), chosen, config)
    source = sources.make_source(config, config.data.train_split, [])
    found = samples.choose_intensity(source, config.data)
    config = _take(*found, chosen, config)
  return chosen, config


def _take(
  values: Mapping[str, Any],
  why: str,
  chosen: list[suggest.Suggestion],
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a config with some fields of `data`; adds them to the chosen."""
  taken = config.copy_and_resolve_references()
  taken.data.update(values)
  for name, value in values.items():
    field = f'data.{name}'
    if processes.is_first():
      print(f'inspected with the suggested {field}={value}: {why}')
    chosen.append(suggest.Suggestion(field, config.data[name], value, why))
  return taken


def _wanted_splits(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the splits to go through; a suggested table needs all there are."""
  data = config.data
  wanted = config.inspect.splits or (data.train_split, data.eval_split)
  if data.suggest and data.source == 'folder' and not config.inspect.splits:
    for split in ('val', 'test'):
      try:
        sources.make_source(config, split, [])
      except errors.UserError:
        continue  # There is none, or it has no masks.
      wanted = (*wanted, split)
  return list(dict.fromkeys(wanted))


def _suggest(
  by_split: _BySplit,
  by_source: _Sources,
  found: Iterable[records.Finding],
  config: ml_collections.ConfigDict,
) -> list[suggest.Suggestion]:
  split = next(iter(by_split))
  sampled = samples.read_masks(by_source[split], config.data)
  on_cpu = not (config.data.suggest and _has_accelerator())
  suggestions = suggest.suggest(by_split, sampled, config, on_cpu)
  for f in found:
    if f.kind == duplicates.NEIGHBOURS and by_source[split].held_out:
      suggestions.append(
        suggest.Suggestion(
          'data.holdout', 'random', 'last', f.message.partition('; use ')[0]
        )
      )
  return suggestions


def _has_accelerator() -> bool:
  """Asks JAX, which takes a second to import."""
  import jax

  return jax.devices()[0].platform != 'cpu'


def _write_suggestion(
  described: Mapping[str, Any],
  suggestions: Iterable[suggest.Suggestion],
  config: ml_collections.ConfigDict,
  workdir: str,
  after: str,
) -> None:
  """Writes suggested.py; prints how to use it or why it does not run."""
  path = os.path.join(workdir, 'suggested.py')
  with open(path, 'w', encoding='utf-8') as f:
    f.write(described['text'])
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({s.field: s.value for s in suggestions})
  try:
    checks.validate(config)
    output_size.output_size(config.data.image_size, config.model)
    print(
      f'suggested config{after}: python main.py --config={shlex.quote(path)}'
    )
  except errors.UserError as e:
    print(f'suggested config: {path}, which needs a change: {e}')


# The entries of inspect.json.


def _describe(
  by_split: _BySplit,
  found: Sequence[records.Finding],
  config: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Returns what was read of the data, and found in them."""
  return {
    'data': {
      'source': config.data.source,
      'dir': config.data.dir,
      'name': config.data.name if config.data.source == 'tfds' else '',
      'class_names': list(fields.class_names(config)),
    },
    'counts': {
      level: sum(f.level == level for f in found) for level in records.LEVELS
    },
    'findings': [{**vars(f), 'names': list(f.names)} for f in found],
    'splits': {
      name: _describe_split(measured, config)
      for name, measured in by_split.items()
    },
    'fit': _describe_fit(by_split),
  }


def _describe_suggestions(
  suggestions: Sequence[suggest.Suggestion], config: ml_collections.ConfigDict
) -> dict[str, Any]:
  data = config.data
  places = {'tfds': data.dir or data.name, 'folder': data.dir}
  place = places.get(data.source, data.source)
  return {
    'text': suggest.config_text(suggestions, config, place),
    'fields': [[s.field, s.now, s.value, s.why] for s in suggestions],
  }


def _describe_split(
  measurements: records.Measurements, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  sized = [m for m in measurements if m.image_size]
  sizes, counts = np.unique(
    np.array([m.image_size for m in sized]).reshape(-1, 2),
    axis=0,
    return_counts=True,
  )
  classes, ignored_share = _describe_classes(measurements, config)
  values: collections.Counter[str] = collections.Counter()
  for m in measurements:
    values.update({str(v): n for v, n in (m.values or {}).items()})
  mean, std = suggest.normalization(sized) if sized else ((), ())
  return {
    'num_examples': len(measurements),
    'sizes': np.column_stack([sizes, counts]).tolist(),
    'image_kinds': _kinds(m.image_file for m in measurements),
    'mask_kinds': _kinds(m.mask_file for m in measurements),
    'mean': mean,
    'std': std,
    'intensity': config.data.intensity,
    'classes': classes,
    'ignored_share': ignored_share,
    'mask_values': dict(values.most_common(256)),
  }


def _describe_classes(
  measurements: records.Measurements, config: ml_collections.ConfigDict
) -> tuple[list[dict[str, Any]], float | None]:
  """Returns a row for each class, and the share of ignored pixels."""
  mapped = [m for m in measurements if m.class_pixels is not None]
  if not mapped:
    return [], None
  pixels = np.sum([m.class_pixels for m in mapped], 0)
  shares = (pixels / pixels.sum()).tolist()
  classes = []
  for c, name in enumerate(fields.class_names(config)):
    with_class = [m for m in mapped if m.class_pixels[c]]
    classes.append(
      {
        'name': name,
        'pixels': int(pixels[c]),
        'pixel_share': shares[c],
        'images': len(with_class),
        'instances': int(sum(m.instances[c] for m in with_class)),
      }
    )
  return classes, shares[-1]


def _kinds(files: Iterable[records.FileInfo | None]) -> dict[str, int]:
  kinds = collections.Counter(f.kind for f in files if f is not None)
  return dict(kinds.most_common())


def _describe_fit(by_split: _BySplit) -> dict[str, Any] | None:
  ranked = records.by_suspicion(m for ms in by_split.values() for m in ms)
  if not ranked:
    return None
  return {
    'explained': alignment.EXPLAINED,
    'examples': [
      {
        'split': m.split,
        'index': m.index,
        'name': m.name,
        'score': m.fit.score,
        'best': m.fit.best,
        'best_score': m.fit.best_score,
        'suspicion': m.fit.suspicion,
      }
      for m in ranked[:200]
    ],
  }


def _print_summary(
  report: Mapping[str, Any],
  suggestions: Iterable[suggest.Suggestion],
  workdir: str,
) -> None:
  for split, described in report['splits'].items():
    shares = ', '.join(
      f'{c["name"]} {c["pixel_share"]:.1%}' for c in described['classes']
    )
    count = described['num_examples']
    print(f'{split}: {count} pairs; {shares or "no mask can be mapped yet"}')
  for f in report['findings']:
    where = f' [{f["split"]}]' if f['split'] else ''
    print(f'{f["level"]}: {f["kind"]}{where}: {f["message"]}')
  step = report['network']
  if step and not step['error']:
    height, width, channels = step['input']
    print(
      f'network: input {height} x {width} x {channels}, output and mask '
      f'{step["output"][0]} x {step["output"][1]}, loss at start '
      f'{step["loss"]:.3f} (expected about {step["expected_loss"]:.3f}), '
      f'gradient norm {step["grad_norm"]:.3f}'
    )
  for s in suggestions:
    if s.field == 'train.num_steps':
      print(f'training with what is suggested: {s.why}')
    if s.now != s.value:
      value = shlex.quote(str(s.value))
      print(f'suggested: --config.{s.field}={value} ({s.why})')
  counts = ', '.join(f'{n} {level}(s)' for level, n in report['counts'].items())
  print(f'{counts}; wrote {os.path.join(workdir, "inspect.html")} and .json')
