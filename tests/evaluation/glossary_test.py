"""Names and meanings of metrics."""

import pytest

from unet_jax.evaluation import glossary


@pytest.mark.parametrize(
  'metric,title,reduction',
  [
    ('dataset_iou/a/b', 'IoU', 'dataset'),
    ('image_hd95/cell', 'HD95', 'image'),
    ('dataset_band_miou', 'mean band IoU', 'dataset'),
    ('image_mnsd', 'mean NSD', 'image'),
    ('dataset_fwiou', 'frequency weighted IoU', 'dataset'),
    ('mce', 'MCE', ''),
    ('v_rand_thin_best', 'V_rand, with borders thinned, best', ''),
  ],
)
def test_glossary(metric, title, reduction):
  entry, found = glossary.find(metric)
  assert (entry.title, found) == (title, reduction)


def test_glossary_lacks():
  lacking = ('ece/cell', 'iou', 'dataset_', 'miou/cell', 'v_rand_threshold')
  assert [glossary.find(metric) for metric in lacking] == [None] * 5
