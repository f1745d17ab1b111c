"""Inspection of a data set before a GPU hour is spent on it: --mode=inspect.

Every pair is read once; what was found goes to inspect.json for machines and to
inspect.html for people.
"""

import functools
import logging
import os
import shlex
import time

import jax
import ml_collections
import numpy as np

from unet_jax.config import checks, fields
from unet_jax.data import (
  augment,
  examples,
  pipeline,
  prepare,
  prepared,
  resize,
  sources,
)
from unet_jax.data import masks as masks_lib
from unet_jax.inspection import alignment, findings, scan, suggest
from unet_jax.inspection import page as page_lib
from unet_jax.models import unet
from unet_jax.runtime import errors, program, whole_files
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.training import losses, steps
from unet_jax.training import optimizer as optimizer_lib
from unet_jax.training import state as state_lib

_log = logging.getLogger(__name__)

# Images of the batch that the report shows.
_BATCH_SHOWN = 16
# Longest edge of the pictures that the report is made from, in pixels.
_PICTURE = 480


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Goes through the splits, writes the report and prints a summary.

  Args:
    config: its `inspect` section says what is looked at.
    workdir: absolute path; gets inspect.json, inspect.html and, with
      data.suggest, suggested.py.

  Raises:
    UserError: the data are not there, or, once the report is written, there
      are errors in them.
  """
  start = time.perf_counter()
  program.initialize(fields.cache_dir(config))
  mesh_lib.check_processes(config, 'inspect')
  program.make_workdir(workdir)
  by_split, by_source, found, seconds = _scan(config)
  suggestions = _suggest(by_split, by_source, found, config)
  network, batch = _try_network(by_split, by_source, config)
  if not (network['error'] and any(f.level == 'error' for f in found)):
    found += _network_findings(network)  # Otherwise it is the same again.
  found = sorted(
    found,
    key=lambda f: findings.LEVELS.index(f.level),
  )
  data = config.data
  where = {'tfds': data.dir or data.name, 'folder': data.dir}
  report = {
    'data': {
      'source': data.source,
      'dir': data.dir,
      'name': data.name if data.source == 'tfds' else '',
      'class_names': list(fields.class_names(config)),
    },
    'counts': {
      level: sum(f.level == level for f in found) for level in findings.LEVELS
    },
    'findings': [{**vars(f), 'names': list(f.names)} for f in found],
    'splits': {
      split: _describe_split(measurements, config)
      for split, measurements in by_split.items()
    },
    'fit': _describe_fit(by_split),
    'network': network,
    'suggestion': {
      'text': suggest.config_text(
        suggestions, config, where.get(data.source, data.source)
      ),
      'fields': [[s.field, s.now, s.value, s.why] for s in suggestions],
    },
    'seconds': {**seconds, 'total': time.perf_counter() - start},
  }
  pictures = {
    'examples': _pictures(by_split, by_source, found, config),
    'batch': batch,
  }
  whole_files.write_json(os.path.join(workdir, 'inspect.json'), report)
  page = os.path.join(workdir, 'inspect.html')
  page_lib.write(page, report, pictures)
  _tell(report, suggestions, workdir)
  if data.suggest:
    _write_suggestion(
      report['suggestion']['text'],
      suggestions,
      config,
      workdir,
      mended_first=bool(report['counts']['error']),
    )
  if report['counts']['error']:
    raise errors.UserError(
      f'{report["counts"]["error"]} error(s) in the data, told above and in '
      f'{page}; mend them before training'
    )


def _scan(config):
  """Goes through the splits.

  Returns:
    {split: measurements} and {split: source}, in the order of the splits; the
    findings; and the seconds that it took.
  """
  by_split, by_source, problems = {}, {}, {}
  seconds = {'decode': 0.0, 'measure': 0.0, 'wall': 0.0}
  wanted = config.inspect.splits or (
    config.data.train_split,
    config.data.eval_split,
  )
  for name in dict.fromkeys(wanted):
    mine: list[examples.Problem] = []
    source = sources.make_source(config, name, mine)
    split = source.split
    if split in by_split:
      continue
    _log.info('inspecting %s: %d examples', split, len(source))
    by_split[split], took = scan.scan(source, config)
    scan.find_owners(source, by_split[split], config)
    by_source[split] = source
    seconds = {k: v + took[k] for k, v in seconds.items()}
    for p in mine:
      # Of a folder that both splits are taken from, both have the problem.
      where = '' if p in problems else split
      problems[p] = findings.Finding('error', p.kind, where, p.message, p.names)
  found = [*problems.values(), *findings.find(by_split, config)]
  return by_split, by_source, found, seconds


def _suggest(by_split, by_source, found, config) -> list[suggest.Suggestion]:
  split, measurements = next(iter(by_split.items()))
  suggestions = suggest.suggest(measurements, config)
  for f in found:
    if f.kind == findings.NEIGHBOURS and by_source[split].held_out:
      suggestions.append(
        suggest.Suggestion('data.holdout', 'random', 'last', f.message)
      )
  return suggestions


def _write_suggestion(
  text: str, suggestions, config, workdir: str, mended_first: bool
) -> None:
  """Writes suggested.py, and says how to use it or why it does not run."""
  path = os.path.join(workdir, 'suggested.py')
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({s.field: s.value for s in suggestions})
  try:
    checks.validate(config)
    unet.create_model(config).output_size(config.data.image_size)
    after = ', once the errors are mended' if mended_first else ''
    print(
      f'suggested config{after}: python main.py --config={shlex.quote(path)}'
    )
  except errors.UserError as e:
    print(f'suggested config: {path}, which needs a change: {e}')


def _describe_split(measurements, config) -> dict:
  """What inspect.json tells of a split."""
  names = fields.class_names(config)
  sized = [m for m in measurements if m.image_size]
  sizes, counts = np.unique(
    np.array([m.image_size for m in sized]).reshape(-1, 2),
    axis=0,
    return_counts=True,
  )
  mapped = [m for m in measurements if m.class_pixels is not None]
  pixels = np.sum([m.class_pixels for m in mapped], 0) if mapped else None
  classes = []
  for c, name in enumerate(names if mapped else ()):
    with_class = [m for m in mapped if m.class_pixels[c]]
    classes.append(
      {
        'name': name,
        'pixels': int(pixels[c]),
        'pixel_share': float(pixels[c] / pixels.sum()),
        'images': len(with_class),
        'instances': int(sum(m.instances[c] for m in with_class)),
      }
    )
  values: dict[str, int] = {}
  for m in measurements:
    for value, count in (m.values or {}).items():
      values[str(value)] = values.get(str(value), 0) + count
  most_frequent = sorted(values.items(), key=lambda item: -item[1])[:256]
  mean, std = suggest.normalization(sized) if sized else ((), ())
  return {
    'num_examples': len(measurements),
    'sizes': np.column_stack([sizes, counts]).tolist(),
    'image_kinds': _kinds(m.image_file for m in measurements),
    'mask_kinds': _kinds(m.mask_file for m in measurements),
    'mean': mean,
    'std': std,
    'classes': classes,
    'ignored_share': float(pixels[-1] / pixels.sum()) if mapped else None,
    'mask_values': dict(most_frequent),
  }


def _kinds(files) -> dict[str, int]:
  counts: dict[str, int] = {}
  for file in files:
    if file is not None:
      counts[file.kind] = counts.get(file.kind, 0) + 1
  return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _by_suspicion(by_split) -> list[scan.Measurement]:
  fitted = [m for ms in by_split.values() for m in ms if m.fit is not None]
  return sorted(fitted, key=lambda m: -m.fit.suspicion)


def _describe_fit(by_split) -> dict | None:
  ranked = _by_suspicion(by_split)
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


def _pictures(by_split, by_source, found, config) -> list[dict]:
  """The examples to show: the worst fits, what was found, and the first."""
  limit = config.inspect.num_examples
  of_kind = {}
  every = [m for ms in by_split.values() for m in ms]
  by_name = {name: m for m in every for name in (m.name, m.mask_name)}
  chosen: dict[tuple[str, int], tuple[scan.Measurement, str]] = {}

  def choose(m, caption):
    if m is not None and len(chosen) < limit:
      chosen.setdefault((m.split, m.index), (m, caption))

  for m in _by_suspicion(by_split)[: limit // 2]:
    caption = f'score {m.fit.score:.2f}; {m.fit.best}: {m.fit.best_score:.2f}'
    if m.owner not in (None, m.index):
      caption += f'; better: {by_split[m.split][m.owner].mask_name}'
    choose(m, caption)
  for f in found:
    # Groups of duplicates are written 'a = b'.
    for name in [n for names in f.names for n in names.split(' = ')][:3]:
      if of_kind.setdefault(f.kind, 0) < 3:
        choose(by_name.get(name), f.kind)
        of_kind[f.kind] += 1
  for measurements in by_split.values():
    for m in measurements[: max(limit // 8, 1)]:
      choose(m, m.split)
  return [
    picture
    for m, caption in chosen.values()
    if (picture := _picture(by_source[m.split], m, caption, config))
  ]


def _picture(source, m: scan.Measurement, caption: str, config) -> dict | None:
  """An example as it is stored; None where it cannot be read."""
  try:
    example = source[m.index]
  except errors.UserError:
    return None
  try:
    prepared.check_sizes(example)
    mask = masks_lib.map_mask(
      example['mask'],
      config.data.mask_values,
      config.data.num_classes,
      m.mask_name,
    )
  except errors.UserError:
    mask = None
  image = example['image']
  # No larger than it is shown, since two dozen scans of tissue fill a memory.
  scale = _PICTURE / max(image.shape[:2])
  if scale < 1:
    size = tuple(max(round(n * scale), 1) for n in image.shape[:2])
    blank = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
    image, small = resize.resize_pair(image, blank, size, 'stretch')
    mask = None if mask is None else small
  return {'name': m.name, 'caption': caption, 'image': image, 'mask': mask}


def _try_network(by_split, by_source, config) -> tuple[dict, list[dict]]:
  """The configured network on a real batch, or why that cannot be."""
  split, measurements = next(iter(by_split.items()))
  usable = [m.index for m in measurements if m.error is None]
  if not usable:
    return {'error': f'no pair of {split} can be used'}, []
  spread = np.linspace(0, len(usable) - 1, config.data.batch_size, dtype=int)
  chosen = np.unique(np.array(usable)[spread])
  try:
    some = sources.Subset(by_source[split], chosen, split)
    return _network(some, config)
  except errors.UserError as e:
    return {'error': str(e)}, []
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).splitlines()[0]
    return {
      'error': f'the step cannot run ({reason}); lower data.batch_size, '
      'data.image_size or model.base_features'
    }, []


def _network(source, config) -> tuple[dict, list[dict]]:
  """One forward and backward pass, and the batch as the network sees it."""
  config = config.copy_and_resolve_references()
  config.data.cache = 'memory'
  mesh = mesh_lib.make_mesh(config)
  model = unet.create_model(config)
  size = tuple(config.data.image_size)
  output = model.output_size(size)
  dataset = prepare.prepare_source(source, config)
  batches = pipeline.train_batches(dataset, config, mesh)
  try:
    batch = next(batches)
  finally:
    batches.close()
  optimizer = optimizer_lib.make_optimizer(config)
  # The keys of a training's first step.
  root = jax.random.key(config.seed)
  key = jax.random.fold_in(root, 1)
  augmentation = augment.make_augmentation(config)
  seen, _ = jax.jit(
    functools.partial(steps.augment_batch, augmentation=augmentation)
  )(batch, key, 0)
  state = state_lib.create_train_state(
    jax.random.fold_in(root, 0), config, model, optimizer, mesh
  )
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  train_step = steps.make_train_step(config, model, optimizer, mesh, state)
  _, figures = train_step(state, batch, key)
  figures = {k: float(v) for k, v in jax.device_get(figures).items()}
  shown = jax.device_get(seen)
  masks, weight_map = steps.targets(shown, output)
  normalized = np.asarray(
    steps.normalize(shown['image'], config.data.mean, config.data.std)
  )
  pictures = [
    {
      'image': np.clip(np.rint(image), 0, 255).astype(np.uint8),
      'mask': np.asarray(mask),
    }
    for image, mask in zip(shown['image'][:_BATCH_SHOWN], masks)
  ]
  if weight_map is not None:
    for picture, w in zip(pictures, weight_map):
      ignored = picture['mask'] == fields.IGNORE_LABEL
      picture['weight_map'] = np.where(ignored, 0, w).astype(np.float32)
  described = {
    'input': [*size, config.data.num_channels],
    'output': list(output),
    'mask': list(masks.shape[1:]),
    'parameters': parameters,
    'loss': figures['loss'],
    'expected_loss': _expected_loss(masks, weight_map, config),
    'terms': {k: v for k, v in figures.items() if k.startswith('loss/')},
    'grad_norm': figures['grad_norm'],
    'input_mean': normalized.mean((0, 1, 2)).tolist(),
    'input_std': normalized.std((0, 1, 2)).tolist(),
    'error': None,
  }
  return described, pictures


def _expected_loss(masks, weight_map, config) -> float:
  """The loss of a network that finds all classes equally likely.

  Of the cross-entropy it is the log of the number of classes.
  """
  spec = losses.make_spec(config)
  logits = np.zeros((*masks.shape, config.data.num_classes), np.float32)
  total = losses.totals(logits, masks, spec, weight_map)
  count = losses.counts(masks, spec, weight_map)
  return float(losses.weighted_sum(total, count, spec))


def _network_findings(network: dict) -> list[findings.Finding]:
  """What the pass through the network says."""
  if network['error']:
    return [findings.Finding('error', 'no batch', '', network['error'])]
  loss, expected = network['loss'], network['expected_loss']
  if not np.isfinite([loss, network['grad_norm']]).all():
    text = (
      f'the first loss is {loss} and the gradient norm {network["grad_norm"]}; '
      'look at data.mean, data.std and the loss weights'
    )
    return [findings.Finding('error', 'loss not finite', '', text)]
  found = []
  if not network['grad_norm']:
    text = (
      'the gradient of the first batch is 0: nothing to learn from; are all '
      'masks ignored?'
    )
    found.append(findings.Finding('error', 'no gradient', '', text))
  if loss > 3 * expected or loss < expected / 3:
    text = (
      f'the first loss, {loss:.3f}, is far from that of equally likely '
      f'classes, {expected:.3f}; look at data.mean and data.std'
    )
    found.append(findings.Finding('warning', 'loss at start', '', text))
  mean, std = np.array(network['input_mean']), np.array(network['input_std'])
  if np.any(np.abs(mean) > 1.5) or np.any((std < 0.3) | (std > 3)):
    text = (
      f'the network sees mean {np.round(mean, 2).tolist()} and standard '
      f'deviation {np.round(std, 2).tolist()} per channel, expected about 0 '
      'and 1; set data.mean and data.std'
    )
    found.append(findings.Finding('warning', 'normalisation', '', text))
  return found


def _tell(report: dict, suggestions, workdir: str) -> None:
  """Prints the summary."""
  for split, described in report['splits'].items():
    shares = ', '.join(
      f'{c["name"]} {c["pixel_share"]:.1%}' for c in described['classes']
    )
    print(f'{split}: {described["num_examples"]} pairs; {shares or "no class"}')
  for f in report['findings']:
    where = f' [{f["split"]}]' if f['split'] else ''
    print(f'{f["level"]}: {f["kind"]}{where}: {f["message"]}')
  network = report['network']
  if not network['error']:
    height, width, channels = network['input']
    print(
      f'network: input {height} x {width} x {channels}, output and mask '
      f'{network["output"][0]} x {network["output"][1]}, loss at start '
      f'{network["loss"]:.3f} (expected about {network["expected_loss"]:.3f}), '
      f'gradient norm {network["grad_norm"]:.3f}'
    )
  for s in suggestions:
    if s.now != s.value:
      value = shlex.quote(str(s.value))
      print(f'suggested: --config.{s.field}={value} ({s.why})')
  counts = ', '.join(f'{n} {level}(s)' for level, n in report['counts'].items())
  print(f'{counts}; wrote {os.path.join(workdir, "inspect.html")} and .json')
