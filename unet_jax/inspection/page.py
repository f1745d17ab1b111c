"""The page of --mode=inspect for people: one HTML file, nothing beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_jax.reports import charts, colors, html, pictures
from unet_jax.reports.html import parts

# Above this many different sizes of images: histograms instead of a list.
_LISTED_SIZES = 4
_NUM_CLASSES = 'data.num_classes'
_MARKS = {'error': '✖', 'warning': '▲', 'note': '●', 'good': '✔'}

_Examples = Sequence[Mapping[str, Any]]


def write(
  path: str, report: dict[str, Any], shown: Mapping[str, _Examples]
) -> None:
  """Writes the page, whole or not at all.

  Args:
    report: the content of inspect.json: `data`, `seconds`, `counts`,
      `findings`, `splits`, `fit` (or None), `network` (or None, or with an
      `error`), `suggestion`.
    shown: `examples`, as they are stored, each with `name`, `caption`, `image`
      uint8 [H, W, C] of 1 or 3 channels, `mask` uint8 [H, W] of `num_classes`
      classes (or None) and a `note` on it; and `batch`, after augmentation,
      each with `image` uint8 [H, W, C], `mask` uint8 [H', W'], of a `valid`
      network the centre, and perhaps `weight_map` float [H', W']. An example
      whose caption is the kind of a finding is shown with it, one whose
      caption is the name of a split as an example of that split, any other
      with the fit.
  """
  of_finding, of_split, of_fit = _sort_examples(report, shown['examples'])
  data = report['data']
  # Fields that other sources use hold their defaults.
  title = {'folder': data['dir'], 'tfds': data['name']}.get(data['source'])
  title, names = title or data['source'], data['class_names']
  page = html.render(
    'inspection.html',
    title=f'Inspection of {title}',
    subject=title,
    report=report,
    names=names,
    drawn=_drawn_names(names, report['suggestion']['fields']),
    marks=_MARKS,
    verdict=_verdict(report['counts']),
    of_finding=of_finding,
    of_split=of_split,
    of_fit=of_fit,
    fit_rows=_fit_rows(report['fit']),
    classes=_classes(report['splits'], names),
    files=_files(report['splits']),
    batch=_batch(shown['batch'], names),
    network=_network(report['network']),
    suggestion_rows=_suggestion_rows(report['suggestion']['fields']),
  )
  html.write(path, page)


def _sort_examples(
  report: Mapping[str, Any], examples: _Examples
) -> tuple[
  dict[str, list[pictures.Figure]],
  dict[str, list[pictures.Figure]],
  list[pictures.Figure],
]:
  """Returns {kind of finding: pictures}, {split: pictures}, other pictures."""
  kinds = {finding['kind'] for finding in report['findings']}
  of_finding: dict[str, list] = {}
  of_split: dict[str, list] = {}
  of_fit = []
  for example in examples:
    name, caption = example['name'], example['caption']
    panels = pictures.example_panels(example, example['num_classes'])
    notes = [caption, example['note'], pictures.stretch(example['image'])[1]]
    if example['mask'] is None:
      notes.append('its mask cannot be drawn')
    figure = pictures.Figure(panels, '; '.join(filter(None, notes)), name)
    if caption in report['splits']:
      of_split.setdefault(caption, []).append(figure)
    elif caption in kinds:
      of_finding.setdefault(caption, []).append(figure)
    else:
      of_fit.append(figure)
  return of_finding, of_split, of_fit


def _drawn_names(
  names: Sequence[str], fields: Sequence[Sequence[Any]]
) -> list[str]:
  """Returns the names of the classes in pictures, which may be suggested."""
  suggested = [value for field, _, value, _ in fields if field == _NUM_CLASSES]
  count = max([len(names), *suggested])
  return [*names, *(f'class_{c}' for c in range(len(names), count))]


def _verdict(counts: Mapping[str, int]) -> tuple[str, str]:
  """Returns the worst level that there is, and how many there are of each."""
  wrong = [level for level in ('error', 'warning') if counts[level]]
  text = ' and '.join(html.plural(counts[level], level) for level in wrong)
  text = text or 'Nothing wrong found'
  if counts['note']:
    text += f', {html.plural(counts["note"], "note")}'
  return wrong[0] if wrong else 'good', text


def _fit_rows(fit: Mapping[str, Any] | None) -> list[list[str]]:
  """Name, split, score, best alternative, its score, suspicion."""
  return [
    [
      parts.code(e['name']),
      e['split'],
      f'{e["score"]:.2f}',
      e['best'],
      f'{e["best_score"]:.2f}',
      f'{e["suspicion"]:.2f}',
    ]
    for e in (fit or {'examples': ()})['examples']
  ]


def _classes(
  splits: Mapping[str, Any], names: Sequence[str]
) -> dict[str, tuple[list[list[str]], list[str]]]:
  """Returns {split: (row of each class, row of the ignored pixels)}."""
  share_cells = lambda share: [parts.bar(share), html.percent(share)]
  tables = {}
  for split, described in splits.items():
    rows = [
      [
        parts.swatch(c['name'], color),
        *share_cells(c['pixel_share']),
        f'{c["images"]:,}',
        f'{c["instances"]:,}',
      ]
      for c, color in zip(described['classes'], colors.class_colors(len(names)))
    ]
    if rows:
      ignored = share_cells(described['ignored_share'])
      tables[split] = rows, [parts.swatch('ignored'), *ignored, '', '']
  return tables


def _files(splits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns {split: its sizes, tables of counts and statistics}."""
  files = {}
  for split, described in splits.items():
    sizes, tables, histograms = described['sizes'], {}, []
    if len(sizes) > _LISTED_SIZES:
      height, width, count = np.array(sizes).T
      histograms = [
        charts.histogram('width', width, count),
        charts.histogram('height', height, count),
      ]
    else:
      tables['sizes (width x height)'] = {
        f'{width} x {height} px': n for height, width, n in sizes
      }
    tables['image files'] = described['image_kinds']
    tables['mask files'] = described['mask_kinds']
    tables['pixels of each value in the masks'] = described['mask_values']
    statistics = {
      word: ', '.join(f'{x:.3f}' for x in described[key]) or '–'
      for word, key in (
        ('mean of each channel', 'mean'),
        ('standard deviation', 'std'),
      )
    }
    statistics['scaled by'] = f'data.intensity={described["intensity"]}'
    files[split] = {
      'histograms': histograms,
      'counts': {
        title: [
          [key, parts.bar(n / sum(by_key.values())), f'{n:,}']
          for key, n in by_key.items()
        ]
        for title, by_key in tables.items()
        if by_key
      },
      'statistics': statistics,
    }
  return files


def _batch(batch: _Examples, names: Sequence[str]) -> dict[str, Any] | None:
  """Pictures of the images that the network gets, and their largest weight."""
  if not batch:
    return None
  height, width = batch[0]['mask'].shape
  maps = [p['weight_map'] for p in batch if 'weight_map' in p]
  top = max((float(m.max()) for m in maps), default=0) or 1.0
  figures = []
  for i, picture in enumerate(batch):
    alt = f'image {i} of the batch'
    panels = pictures.batch_panels(picture, alt, len(names), top)
    caption = str(i)
    if note := pictures.stretch(picture['image'])[1]:
      caption += f': {note}'
    if 'weight_map' in picture:
      weights = picture['weight_map']
      caption += f': weights {weights.min():.3g} to {weights.max():.3g}'
    figures.append(pictures.Figure(panels, caption))
  is_whole = (height, width) == batch[0]['image'].shape[:2]
  return {
    'figures': figures,
    'top': top if maps else None,
    'seen': None if is_whole else f'{width} x {height} px (width x height)',
  }


def _network(network: Mapping[str, Any] | None) -> dict[str, Any]:
  """Returns {word: value} of the network's first step."""
  if network is None or network['error']:
    return {}
  by = lambda shape: ' x '.join(map(str, shape))
  same = list(network['output']) == list(network['mask'])
  level, word = ('good', 'same') if same else ('error', 'differs')
  mask = parts.marked(by(network['mask']), level, f'{_MARKS[level]} {word}')
  listed = lambda values: ', '.join(f'{x:.2f}' for x in values)
  return {
    'input (height x width x channels)': by(network['input']),
    'output (height x width)': by(network['output']),
    'mask (height x width)': mask,
    'parameters': f'{network["parameters"]:,}',
    'mean of the input': listed(network['input_mean']),
    'its standard deviation': listed(network['input_std']),
    'loss at start': f'{network["loss"]:.4f}',
    'with all classes equally likely': f'{network["expected_loss"]:.4f}',
    'norm of the gradient': f'{network["grad_norm"]:.4g}',
    **{name: f'{value:.4f}' for name, value in network['terms'].items()},
  }


def _suggestion_rows(fields: Sequence[Sequence[Any]]) -> list[list[str]]:
  """Field, value now, suggested value and reason; changes stand out."""
  return [
    [
      parts.code(field),
      parts.code(repr(now)),
      parts.code(repr(value)) if value != now else 'the same',
      why,
      *(['flag'] if value != now else []),
    ]
    for field, now, value, why in fields
  ]
