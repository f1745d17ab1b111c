"""Predictions of a few images by each variant of a sweep, side by side.

Which images is a rule (`RULE`), not a choice.
"""

import os

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches

from experiments import contrasts
from experiments import results as results_lib
from unet_jax import colors, metrics

RULE = (
  'The images at the 10th, 50th and 90th percentile of the mean mIoU over all '
  'networks: a hard, a middling and an easy one.'
)
_PERCENTILES = (10, 50, 90)
_FOLDER = 'examples'
# Predictions side by side, of a sweep that is no grid of two factors.
_COLUMNS = 6


def choose(results: results_lib.Results) -> list[int]:
  """Returns the places of the images, the hardest first."""
  miou = metrics.nanmean(results.stack(['miou'])[..., 0], 0)
  order = np.argsort(miou, kind='stable')[: np.isfinite(miou).sum()]
  places = [round((len(order) - 1) * p / 100) for p in _PERCENTILES]
  return [int(order[i]) for i in dict.fromkeys(places)]


def save(directory: str, results: results_lib.Results) -> None:
  """Predicts the images by the first network of each variant.

  Writes DIR/examples/POINT.npz with `image` uint8 [K, H, W, C], `mask` and
  `prediction` uint8 [K, H, W], at the size that the network is given, and
  `name` [K]. What is there of these images is kept.

  Args:
    directory: of the sweep; points/NAME still has its checkpoint.
    results: of it.

  Raises:
    UserError: a point has no checkpoint, or its data is not there.
  """
  # Imports jax, and takes the device.
  import unet_jax
  from unet_jax.data import prepare

  os.makedirs(os.path.join(directory, _FOLDER), exist_ok=True)
  for point in (points[0] for points in results.points):
    if _load(directory, results, point):
      continue
    segment = unet_jax.load(os.path.join(directory, 'points', point.name))
    config = segment.config
    dataset = prepare.prepare(
      config, config.eval.split or config.data.eval_split
    )
    chosen = [dataset[i] for i in choose(results)]
    images = np.stack([example['image'] for example in chosen])
    arrays = {
      'image': images,
      'mask': np.stack([example['mask'] for example in chosen]),
      'prediction': segment(images).argmax(-1).astype(np.uint8),
      'name': np.array([results.images[i] for i in choose(results)]),
    }
    path = _path(directory, point)
    np.savez_compressed(path + '.tmp.npz', **arrays)
    os.replace(path + '.tmp.npz', path)


def _path(directory: str, point: results_lib.Point) -> str:
  return os.path.join(directory, _FOLDER, f'{point.name}.npz')


def _load(directory, results, point) -> dict[str, np.ndarray]:
  """Returns what `save` wrote, or {}: it is not there, or of other images.

  Which are chosen changes while a sweep runs.
  """
  path = _path(directory, point)
  if not os.path.exists(path):
    return {}
  with np.load(path) as arrays:
    found = dict(arrays)
  names = [results.images[i] for i in choose(results)]
  return found if found['name'].tolist() == names else {}


def draw(
  directory: str, results: results_lib.Results, figures: str
) -> dict[str, str]:
  """Draws each image with its mask and the predictions of all variants.

  Args:
    directory: of the sweep, with what `save` wrote; without it nothing is
      drawn. Variants that have no file have no picture.
    results: of it.
    figures: folder of the PNGs.

  Returns:
    {name of the file: caption}.
  """
  found = {
    variant: _load(directory, results, points[0])
    for variant, points in zip(results.variants, results.points)
  }
  found = {variant: arrays for variant, arrays in found.items() if arrays}
  if not found:
    return {}
  os.makedirs(figures, exist_ok=True)
  first, drawn = next(iter(found.values())), {}
  for k, name in enumerate(first['name']):
    file = f'predictions_{k}.png'
    _draw_image(os.path.join(figures, file), results, found, k)
    drawn[file] = (
      f'{name}: image, mask (ignored pixels are white), and the prediction by '
      'the first network of each variant, with its mIoU.'
    )
  return drawn


def _name_classes(figure, names: list[str]) -> None:
  """Adds a key to the colours; ignored pixels are white."""
  if not 0 < len(names) <= 2 * _COLUMNS:
    return
  keys = [
    patches.Patch(color=color / 255)
    for color in colors.class_colors(len(names))
  ]
  # A name is no formula, though it may hold dollars.
  with plt.rc_context({'text.parse_math': False}):
    figure.legend(
      keys,
      names,
      loc='outside lower center',
      ncols=min(len(names), _COLUMNS),
      frameon=False,
      fontsize=8,
    )


def _draw_image(path: str, results, found, k: int) -> None:
  """A row of image and mask, then a row for each value of the first factor."""
  first = next(iter(found.values()))
  image, classes = first['image'][k], len(results.class_names()) or 8
  place = results.images.index(str(first['name'][k]))
  panels = [
    ('image', image if image.shape[2] == 3 else image[..., 0]),
    ('mask', colors.color_mask(first['mask'][k], classes)),
  ]
  grid = contrasts.full_grid(results.factors, results.variants)
  columns = min(len(found), _COLUMNS) if grid is None else grid.shape[1]
  panels += [None] * (-len(panels) % columns)
  for variant, points in zip(results.variants, results.points):
    panel = None
    if variant in found:
      miou = points[0].columns['miou'][place]
      mask = colors.color_mask(found[variant]['prediction'][k], classes)
      panel = f'{" ".join(variant)}\n{miou:.3f}', mask
    panels.append(panel)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(1.6 * columns, 1.95 * rows),
    squeeze=False,
    layout='constrained',
  )
  for axis, panel in zip(axes.flat, panels + [None] * rows * columns):
    axis.set_axis_off()
    if panel is not None:
      axis.imshow(
        panel[1], cmap='gray', vmin=0, vmax=255, interpolation='nearest'
      )
      axis.set_title(panel[0], fontsize=8, parse_math=False)
  _name_classes(figure, results.class_names())
  figure.savefig(path, dpi=100)
  plt.close(figure)
