"""The page of --mode=inspect for people: one HTML file, nothing beside it.

It opens from disk and can be sent around; pictures are data URIs. Whatever
comes from the data, names of files above all, is escaped.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_jax.reports import charts, colors
from unet_jax.reports import html as html_lib
from unet_jax.reports import pictures as pictures_lib

# Files of a finding that are in sight, and that are on the page at all.
_SHOWN_NAMES, _LISTED_NAMES = 3, 2000
# Up to so many different sizes are listed; more are drawn as histograms.
_LISTED_SIZES = 4
_MARKS = {'error': '✖', 'warning': '▲', 'note': '●', 'good': '✔'}


def write(
  path: str, report: dict[str, Any], pictures: dict[str, list[dict[str, Any]]]
) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file.
    report: what inspect.json holds: `data`, `seconds`, `counts`, `findings`,
      `splits`, `fit` (or None), `network` (or None, or with an `error`),
      `suggestion`.
    pictures: `examples`, as they are stored, each with `name`, `caption`,
      `image` uint8 [H, W, C] of 1 or 3 channels and `mask` uint8 [H, W] of
      classes (or None); and `batch`, after augmentation, each with `image`
      uint8 [H, W, C], `mask` uint8 [H', W'], of a `valid` network the centre,
      and perhaps `weight_map` float [H', W']. An example whose caption is the
      kind of a finding is shown with it, one whose caption is the name of a
      split as an example of that split, any other with the fit.
  """
  names = report['data']['class_names']
  of_finding, of_split, of_fit = _sort_examples(report, pictures['examples'])
  page = html_lib.page(
    f'Inspection of {_title(report["data"])}',
    _headline(report),
    {
      'Findings': _findings(report['findings'], of_finding, names),
      'Fit': _fit(report['fit'], of_fit, names),
      'Examples': _examples(of_split, names),
      'Classes': _classes(report['splits'], names),
      'Files': _files(report['splits']),
      'Batch': _batch(pictures['batch'], names),
      'Network': _network(report['network']),
      'Config': _suggestion(report['suggestion']),
    },
  )
  html_lib.write(path, page)


def _sort_examples(report, examples):
  """Returns {kind of finding: examples}, {split: examples}, other examples."""
  kinds = {finding['kind'] for finding in report['findings']}
  of_finding, of_split, of_fit = {}, {}, []
  for example in examples:
    caption = example['caption']
    if caption in report['splits']:
      of_split.setdefault(caption, []).append(example)
    elif caption in kinds:
      of_finding.setdefault(caption, []).append(example)
    else:
      of_fit.append(example)
  return of_finding, of_split, of_fit


# The sections, each a string of HTML, empty where there is nothing to show.


def _title(data) -> str:
  # The other fields hold their defaults, which say nothing of these data.
  telling = {'folder': data['dir'], 'tfds': data['name']}
  return telling.get(data['source']) or data['source']


def _headline(report) -> str:
  counts, data = report['counts'], report['data']
  wrong = [level for level in ('error', 'warning') if counts[level]]
  level = wrong[0] if wrong else 'good'
  verdict = ' and '.join(html_lib.plural(counts[k], k) for k in wrong)
  verdict = verdict or 'Nothing wrong found'
  if counts['note']:
    verdict += f', {html_lib.plural(counts["note"], "note")}'
  facts = {'source': html.escape(data['source'])}
  for split, described in report['splits'].items():
    facts[split] = html_lib.plural(described['num_examples'], 'example')
  facts['classes'] = str(len(data['class_names']))
  facts['looked at in'] = f'{report["seconds"]["total"]:.1f} s'
  return (
    '<p class="soft">Inspection of the data set</p>\n'
    f'<h1>{html.escape(_title(data))}</h1>\n'
    f'<p class="verdict {level}">{_MARKS[level]} {verdict}</p>\n'
    f'{html_lib.facts(facts)}'
  )


def _findings(findings, of_finding, names) -> str:
  text = '<h2>Findings</h2>\n'
  if not findings:
    return f'{text}<p class="good">{_MARKS["good"]} Nothing to report.</p>'
  text += (
    '<p class="soft">Errors make a training fail or worthless, warnings are '
    'very likely mistakes, notes are good to know.</p>\n<ul class="findings">\n'
  )
  shown = set()
  for finding in findings:
    level, kind = finding['level'], finding['kind']
    where = f' in {html.escape(finding["split"])}' if finding['split'] else ''
    text += (
      f'<li><span class="level {level}">{_MARKS[level]} {level}</span> '
      f'<b>{html.escape(kind)}</b>{where}\n'
      f'<p>{html.escape(finding["message"])}</p>\n'
      f'{_name_list(finding["names"])}'
    )
    # Two splits may have the same kind; their pictures are shown once.
    if kind in of_finding and kind not in shown:
      shown.add(kind)
      text += _sheet(of_finding[kind], names)
    text += '</li>\n'
  return f'{text}</ul>'


def _name_list(names: Sequence[str]) -> str:
  """The first names in sight, the others below a click."""
  items = [f'<li><code>{html.escape(n)}</code></li>' for n in names]
  first, rest = items[:_SHOWN_NAMES], items[_SHOWN_NAMES:_LISTED_NAMES]
  text = f'<ul class="names">{"".join(first)}</ul>\n' if first else ''
  if rest:
    listed = f'<ul class="names long">{"".join(rest)}</ul>'
    if len(names) > _LISTED_NAMES:
      listed += (
        f'<p>{len(names) - _LISTED_NAMES:,} more are in inspect.json</p>'
      )
    text += html_lib.fold(f'{len(names) - len(first):,} more', listed)
  return text


def _fit(fit, examples, names) -> str:
  if not fit and not examples:
    return ''
  text = '<h2>Do the masks fit their images?</h2>\n'
  if fit:
    explained = html.escape(fit['explained'])
    text += f'<p>{explained} The most suspicious come first.</p>\n'
  if examples:
    text += html_lib.legend(names) + _sheet(examples, names)
  if fit and fit['examples']:
    columns = (
      ('image', ''),
      ('split', ''),
      ('score', 'number'),
      ('best alternative', ''),
      ('its score', 'number'),
      ('suspicion', 'number'),
    )
    rows = [
      (
        f'<code>{html.escape(e["name"])}</code>',
        html.escape(e['split']),
        f'{e["score"]:.2f}',
        html.escape(e['best']),
        f'{e["best_score"]:.2f}',
        f'{e["suspicion"]:.2f}',
      )
      for e in fit['examples']
    ]
    summary = f'Scores of the {len(rows)} most suspicious'
    text += html_lib.fold(summary, html_lib.table(columns, rows))
  return text


def _examples(of_split, names) -> str:
  if not of_split:
    return ''
  text = f'<h2>Examples</h2>\n{html_lib.legend(names)}'
  for split, examples in of_split.items():
    text += f'<h3>{html.escape(split)}</h3>\n{_sheet(examples, names)}'
  return text


def _classes(splits, names) -> str:
  columns = (
    ('class', 'label'),
    ('share of pixels', 'bars'),
    ('', 'number'),
    ('images', 'number'),
    ('instances', 'number'),
  )
  text = ''
  for split, described in splits.items():
    rows = [
      (
        html_lib.swatch(color) + html.escape(c['name']),
        html_lib.bar(c['pixel_share']),
        html_lib.percent(c['pixel_share']),
        f'{c["images"]:,}',
        f'{c["instances"]:,}',
      )
      for c, color in zip(described['classes'], colors.class_colors(len(names)))
    ]
    if rows:
      share = described['ignored_share']
      ignored = f'{html_lib.swatch()}ignored', html_lib.bar(share)
      last = (*ignored, html_lib.percent(share), '', '')
      text += (
        f'<div><h3>{html.escape(split)}: '
        f'{html_lib.plural(described["num_examples"], "example")}</h3>\n'
        f'{html_lib.table(columns, rows, last=last)}</div>\n'
      )
  return f'<h2>Classes</h2>\n<div class="split">\n{text}</div>' if text else ''


def _files(splits) -> str:
  text = ''
  for split, described in splits.items():
    text += f'<div><h3>{html.escape(split)}</h3>\n'
    sizes = described['sizes']
    if len(sizes) > _LISTED_SIZES:
      height, width, count = np.array(sizes).T
      text += charts.histogram('width', width, count)
      text += charts.histogram('height', height, count)
    else:
      by_size = {f'{width} x {height} px': n for height, width, n in sizes}
      text += html_lib.counts('sizes (width x height)', by_size)
    text += html_lib.counts('image files', described['image_kinds'])
    text += html_lib.counts('mask files', described['mask_kinds'])
    values = described['mask_values']
    text += html_lib.counts('pixels of each value in the masks', values)
    text += html_lib.facts(
      {
        word: ', '.join(f'{x:.3f}' for x in described[key]) or '–'
        for word, key in (
          ('mean of each channel', 'mean'),
          ('standard deviation', 'std'),
        )
      }
    )
    text += '</div>\n'
  return f'<h2>Sizes and kinds of files</h2>\n<div class="split">\n{text}</div>'


def _batch(batch, names) -> str:
  if not batch:
    return ''
  height, width = batch[0]['mask'].shape
  text = (
    f'<h2>A training batch</h2>\n<p>{html_lib.plural(len(batch), "image")} of '
    'the batch after resizing and augmentation, as the network gets them '
    'before they are normalised, with the mask that the loss gets.'
  )
  if (height, width) != batch[0]['image'].shape[:2]:
    text += (
      f' The loss sees {width} x {height} px (width x height) in the middle; '
      'the dim part of the image is context.'
    )
  text += f'</p>\n{html_lib.legend(names)}'
  maps = [picture.get('weight_map') for picture in batch]
  top = max((float(m.max()) for m in maps if m is not None), default=0) or 1.0
  figures = []
  for i, (picture, weights) in enumerate(zip(batch, maps)):
    panels = pictures_lib.batch_panels(
      picture, f'image {i} of the batch', len(names), top
    )
    caption = str(i)
    if weights is not None:
      caption += f': weights {weights.min():.3g} to {weights.max():.3g}'
    figures.append(html_lib.figure(panels, caption))
  if all(m is None for m in maps):
    return text + html_lib.sheet(figures, 'pairs')
  text += f'<p>Weight of a pixel in the loss: {html_lib.scale(top)}</p>\n'
  return text + html_lib.sheet(figures, 'triples')


def _network(network) -> str:
  if network is None:
    return ''
  text = '<h2>The network on this batch</h2>\n'
  if network['error']:
    reason = html.escape(network['error'])
    return f'{text}<p class="error">{_MARKS["error"]} error: {reason}</p>'
  by = lambda shape: ' x '.join(map(str, shape))
  same = list(network['output']) == list(network['mask'])
  level, word = ('good', 'same') if same else ('error', 'differs')
  verdict = f' <span class="{level}">{_MARKS[level]} {word}</span>'
  listed = lambda values: ', '.join(f'{x:.2f}' for x in values)
  facts = {
    'input (height x width x channels)': by(network['input']),
    'output (height x width)': by(network['output']),
    'mask (height x width)': by(network['mask']) + verdict,
    'parameters': f'{network["parameters"]:,}',
    'mean of the input': listed(network['input_mean']),
    'its standard deviation': listed(network['input_std']),
    'loss at start': f'{network["loss"]:.4f}',
    'with all classes equally likely': f'{network["expected_loss"]:.4f}',
    'norm of the gradient': f'{network["grad_norm"]:.4g}',
    **{name: f'{value:.4f}' for name, value in network['terms'].items()},
  }
  return text + html_lib.facts(facts)


def _suggestion(suggestion) -> str:
  columns = ('field', ''), ('now', ''), ('suggested', ''), ('why', '')
  code = lambda text: f'<code>{html.escape(text)}</code>'
  rows = [
    (
      code(field),
      code(repr(now)),
      code(repr(value)) if value != now else 'the same',
      html.escape(why),
      'flag' if value != now else '',
    )
    for field, now, value, why in suggestion['fields']
  ]
  return (
    f'<h2>Suggested config</h2>\n{html_lib.table(columns, rows, "fields")}'
    f'<p>{code("--config.data.suggest=true")} writes it as a config that '
    f'runs:</p>\n<pre>{html.escape(suggestion["text"])}</pre>'
  )


def _sheet(examples, names) -> str:
  """Each example as image, outline and overlay."""
  figures = []
  for example in examples:
    name, caption = [html.escape(example[k]) for k in ('name', 'caption')]
    if example['mask'] is None:
      caption += '; its mask cannot be drawn'
    panels = pictures_lib.example_panels(example, len(names))
    figures.append(html_lib.figure(panels, f'<code>{name}</code>{caption}'))
  return html_lib.sheet(figures, 'triples')
