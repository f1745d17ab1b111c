"""Predictions of a few images by each variant of a sweep, side by side."""

import pathlib
from collections.abc import Sequence

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure

from experiments.sweep.report import contrasts
from experiments.sweep.report.results import Point, Results
from unet_jax.evaluation import confusion
from unet_jax.reports import colors

# How the images are chosen.
RULE = (
  'The images at the 10th, 50th and 90th percentile of the mean mIoU over all '
  'networks: a hard, a middling and an easy one.'
)
_PERCENTILES = (10, 50, 90)
_FOLDER = 'examples'
# Predictions in a row, if the sweep is no grid of two factors.
_COLUMNS = 6

Arrays = dict[str, np.ndarray]


def choose(results: Results) -> list[int]:
  """Returns the places of the images, the hardest first."""
  miou = confusion.nanmean(results.stack(['miou'])[..., 0], 0)
  order = np.argsort(miou, kind='stable')[: np.isfinite(miou).sum()]
  places = [round((len(order) - 1) * p / 100) for p in _PERCENTILES]
  return [int(order[i]) for i in dict.fromkeys(places)]


def save(directory: pathlib.Path, results: Results) -> None:
  """Predicts the images by the first network of each variant.

  Writes DIR/examples/POINT.npz with `image` uint8 [K, H, W, C], `mask` and
  `prediction` uint8 [K, H, W], at the network's input size, and `name` [K].
  Files that have these images already are kept.

  Raises:
    UserError: a point has no checkpoint, or its data is not there.
  """
  # Imports jax, and takes the device.
  import unet_jax
  from unet_jax.data import prepare

  (directory / _FOLDER).mkdir(exist_ok=True)
  places = choose(results)
  for point in (points[0] for points in results.points):
    if _load(directory, results, point):
      continue
    segment = unet_jax.load(str(directory / 'points' / point.name))
    config = segment.config
    dataset = prepare.prepare(
      config, config.eval.split or config.data.eval_split
    )
    chosen = [dataset[i] for i in places]
    images = np.stack([example['image'] for example in chosen])
    arrays = {
      'image': images,
      'mask': np.stack([example['mask'] for example in chosen]),
      'prediction': np.argmax(segment(images), -1).astype(np.uint8),
      'name': np.array([results.images[i] for i in places]),
    }
    path = _path(directory, point)
    temporary = path.with_name(f'{path.name}.tmp.npz')
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def _path(directory: pathlib.Path, point: Point) -> pathlib.Path:
  return directory / _FOLDER / f'{point.name}.npz'


def _load(directory: pathlib.Path, results: Results, point: Point) -> Arrays:
  """Returns what `save` wrote, {} if it is missing or of other images.

  The choice of images changes while a sweep runs.
  """
  path = _path(directory, point)
  if not path.exists():
    return {}
  with np.load(path) as arrays:
    found = dict(arrays)
  names = [results.images[i] for i in choose(results)]
  return found if found['name'].tolist() == names else {}


def draw(
  directory: pathlib.Path, results: Results, folder: pathlib.Path
) -> dict[str, str]:
  """Draws each image with its mask and the predictions of all variants.

  Variants without a file of `save` are skipped.

  Returns:
    {name of the PNG in the folder: caption}.
  """
  loaded = [_load(directory, results, points[0]) for points in results.points]
  first = next(filter(None, loaded), None)
  if first is None:
    return {}
  folder.mkdir(exist_ok=True)
  drawn = {}
  for k, name in enumerate(first['name']):
    file = f'predictions_{k}.png'
    figure = _draw_image(results, loaded, first, k)
    figure.savefig(folder / file, dpi=100)
    plt.close(figure)
    drawn[file] = (
      f'{name}: image, mask (ignored pixels are white), and the prediction by '
      'the first network of each variant, with its mIoU.'
    )
  return drawn


def _draw_image(
  results: Results, loaded: Sequence[Arrays], first: Arrays, k: int
) -> Figure:
  """Draws a row of image and mask, then one for each value of a factor."""
  image, names = first['image'][k], results.class_names()
  place = results.images.index(str(first['name'][k]))
  color = lambda mask: colors.color_mask(mask, len(names) or 8)
  grid = contrasts.full_grid(results.factors, results.variants)
  columns = min(sum(map(bool, loaded)), _COLUMNS)
  if grid is not None:
    columns = grid.shape[1]
  panels: list[tuple[str, np.ndarray] | None] = [
    ('image', image if image.shape[2] == 3 else image[..., 0]),
    ('mask', color(first['mask'][k])),
  ]
  panels += [None] * (-len(panels) % columns)
  for variant, points, arrays in zip(results.variants, results.points, loaded):
    miou = points[0].columns['miou'][place]
    title = f'{" ".join(variant)}\n{miou:.3f}'
    panels.append((title, color(arrays['prediction'][k])) if arrays else None)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(1.6 * columns, 1.95 * rows),
    squeeze=False,
    layout='constrained',
  )
  for axis in axes.flat:
    axis.set_axis_off()
  for axis, panel in zip(axes.flat, panels):
    if panel is not None:
      axis.imshow(
        panel[1], cmap='gray', vmin=0, vmax=255, interpolation='nearest'
      )
      axis.set_title(panel[0], fontsize=8, parse_math=False)
  _name_classes(figure, names)
  return figure


def _name_classes(figure: Figure, names: Sequence[str]) -> None:
  """Adds a legend of the colours; ignored pixels are white."""
  if not 0 < len(names) <= 2 * _COLUMNS:
    return
  of_classes = colors.class_colors(len(names)) / 255
  # A name is no formula, though it may hold dollars.
  with plt.rc_context({'text.parse_math': False}):
    figure.legend(
      [patches.Patch(color=color) for color in of_classes],
      names,
      loc='outside lower center',
      ncols=min(len(names), _COLUMNS),
      frameon=False,
      fontsize=8,
    )
