"""What the plots and the example predictions of a report show."""

import re
import types

import numpy as np

from experiments.sweep.report import examples, plots, results
from tests.experiments.sweep.report import fake_sweep


def test_pareto_front_is_what_nothing_beats():
  rng = np.random.default_rng(0)
  for _ in range(20):
    cost, quality = rng.integers(0, 6, (2, 12)).astype(float)
    cost[3], quality[4] = np.nan, np.nan
    beaten = lambda i: any(
      cost[j] <= cost[i]
      and quality[j] >= quality[i]
      and (cost[j] < cost[i] or quality[j] > quality[i])
      for j in range(12)
    )
    front = plots.pareto_front(cost, quality)
    expected = {
      (cost[i], quality[i])
      for i in range(12)
      if not beaten(i) and np.isfinite(cost[i] + quality[i])
    }
    assert {(cost[i], quality[i]) for i in front} == expected
    assert sorted(cost[front]) == list(cost[front])


def test_means_and_deviations_skip_what_is_missing():
  nan = float('nan')
  mean, spread = results.means_and_deviations(
    [np.array([1, 3, nan]), np.array([4.0]), np.array([nan])]
  )
  np.testing.assert_array_equal(mean, [2, 4, nan])
  np.testing.assert_allclose(spread, [2**0.5, nan, nan])


def test_sizes_of_objects(sweep):
  found = results.read(sweep)
  columns = found.points[0][0].columns
  counted = {n: columns[f'pixels/{n}'] for n in fake_sweep.NAMES}
  # What the evaluation scored as one, pet and border, is the foreground.
  share = (counted['pet'] + counted['border']) / sum(counted.values())
  np.testing.assert_allclose(found.object_sizes(), share)
  del columns['iou/pet+border']
  np.testing.assert_allclose(found.object_sizes(), share)
  columns['pixels/pet'][2] = columns['pixels/border'][2] = 0
  sizes = found.object_sizes()
  assert np.isnan(sizes[2]) and np.isfinite(sizes).sum() == 39


class _Segmenter:
  """Predicts the class depth % 3 everywhere."""

  def __init__(self, folder):
    self._depth = int(re.search(r'depth=(\d+)', folder)[1])
    section = types.SimpleNamespace
    self.config = section(eval=section(split=''), data=section(eval_split='x'))

  def __call__(self, images):
    return np.eye(3)[np.full(images.shape[:3], self._depth % 3)]


def test_examples(sweep, monkeypatch):
  found = results.read(sweep)
  miou = found.stack(['miou'])[..., 0].mean(0)
  chosen = examples.choose(found)
  ranks = [int((miou < miou[i]).sum()) for i in chosen]
  assert ranks == [4, 20, 35]  # Of 39: 3.9, 19.5 (to even) and 35.1.
  full = lambda value, *rest: np.full((6, 8, *rest), value, np.uint8)
  dataset = [{'image': full(i, 3), 'mask': full(i % 3)} for i in range(40)]
  monkeypatch.setattr('unet_jax.load', _Segmenter)
  prepare = 'unet_jax.data.prepare.prepare'
  monkeypatch.setattr(prepare, lambda config, split: dataset)
  examples.save(sweep, found)
  files = sorted((sweep / 'examples').iterdir())
  # The first network that there is of each variant.
  assert [f.name for f in files] == [
    f'upsample={upsample},depth={depth},seed=0.npz'
    for upsample in ('nearest', 'transpose')
    for depth in (10, 2)
  ]
  with np.load(files[1]) as saved:
    assert list(saved['name']) == [f'image_{i:03}.jpg' for i in chosen]
    np.testing.assert_array_equal(saved['image'][:, 0, 0, 0], chosen)
    np.testing.assert_array_equal(saved['mask'][:, 0, 0], np.mod(chosen, 3))
    assert (saved['prediction'] == 2).all()
    assert saved['prediction'].dtype == np.uint8
  drawn = examples.draw(sweep, found, sweep / 'figures')
  assert list(drawn) == [f'predictions_{i}.png' for i in range(3)]
  assert drawn['predictions_0.png'].startswith(f'image_{chosen[0]:03}.jpg: ')
  assert (sweep / 'figures' / 'predictions_2.png').exists()
  # Files that are there are kept.
  with monkeypatch.context() as patch:
    patch.setattr('unet_jax.load', None)
    examples.save(sweep, found)
  # Unless other images are chosen now.
  monkeypatch.setattr(examples, '_PERCENTILES', (20,))
  assert not examples.draw(sweep, found, sweep / 'figures')
  examples.save(sweep, found)
  drawn = examples.draw(sweep, found, sweep / 'figures')
  assert list(drawn) == ['predictions_0.png']
