"""Names and meanings of the metrics of an evaluation, a line each."""

import dataclasses
import re

REDUCTIONS = {
  'dataset': 'counted over the whole split, then divided once',
  'image': 'of each image, then averaged over the images that have a score',
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A measure: its name in print, its meaning in a line, and who defined it.

  A measure without a unit lies in 0..1.
  """

  title: str
  meaning: str
  source: str
  unit: str = ''
  lower_is_better: bool = False


# Metrics of each class are called `REDUCTION_KEY/CLASS`, or `KEY/CLASS` if they
# are only counted; means `REDUCTION_mKEY`, with the m before the last word.
OVERLAPS = {
  'iou': Entry(
    'IoU', 'pixels in mask and prediction / pixels in either', 'Jaccard 1912'
  ),
  'dice': Entry(
    'Dice',
    '2 * pixels in mask and prediction / pixels in one + in the other',
    'Dice 1945',
  ),
  'precision': Entry(
    'precision',
    'share of the pixels predicted as the class that are of it',
    'van Rijsbergen 1979',
  ),
  'recall': Entry(
    'recall',
    'share of the pixels of the class that are predicted as it',
    'van Rijsbergen 1979',
  ),
}
BORDERS = {
  'boundary_iou': Entry(
    'boundary IoU',
    'IoU of the pixels of mask and prediction near their own borders',
    'Cheng et al. 2021, arXiv:2103.16562',
  ),
  'band_iou': Entry(
    'band IoU',
    "IoU of the pixels near the mask's borders alone (trimap)",
    'Kohli et al. 2009, doi:10.1007/s11263-008-0202-0',
  ),
  'hd95': Entry(
    'HD95',
    'distance between the borders, its 95th percentile',
    'Huttenlocher et al. 1993, doi:10.1109/34.232073',
    unit='px',
    lower_is_better=True,
  ),
  'hd95_infinite': Entry(
    'no HD95',
    'images with the class in mask or prediction alone, skipped in HD95',
    'counted here',
    unit='images',
    lower_is_better=True,
  ),
  'nsd': Entry(
    'NSD',
    'share of the borders that lie within a tolerance of one another',
    'Nikolov et al. 2018, arXiv:1809.04430',
  ),
}
# Metrics of all classes at once.
_FCN = 'Long et al. 2015, arXiv:1411.4038'
_CALIBRATION = 'Guo et al. 2017, arXiv:1706.04599'
_OBJECTS = 'Schmidt et al. 2018, arXiv:1806.03535'
_PARTITIONS = 'Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142'
_MATCHED = 'objects matched / objects in mask or prediction, at an IoU of'
WHOLES = {
  'pixel_accuracy': Entry(
    'pixel accuracy', "share of the split's pixels whose class is right", _FCN
  ),
  'mean_accuracy': Entry(
    'mean accuracy', 'mean of the recall of classes', _FCN
  ),
  'fwiou': Entry(
    'frequency weighted IoU',
    "IoU, averaged over the classes by their shares of the masks' pixels",
    _FCN,
  ),
  'ece': Entry(
    'ECE',
    "gap between confidence and accuracy of a bin, mean of the split's pixels",
    _CALIBRATION,
    lower_is_better=True,
  ),
  'mce': Entry(
    'MCE',
    'the largest gap between confidence and accuracy of a bin',
    _CALIBRATION,
    lower_is_better=True,
  ),
  'nll': Entry(
    'NLL',
    "negative log probability of a pixel's class, mean of the split's pixels",
    _CALIBRATION,
    unit='nats',
    lower_is_better=True,
  ),
  'brier': Entry(
    'Brier score',
    "squared error of the probabilities, mean of the split's pixels",
    'Brier 1950',
    unit='0 to 2',
    lower_is_better=True,
  ),
  'ap50': Entry('AP50', f'{_MATCHED} 0.5', _OBJECTS),
  'ap75': Entry('AP75', f'{_MATCHED} 0.75', _OBJECTS),
  'ap': Entry('AP', f'{_MATCHED} 0.5, 0.55 ... 0.95, averaged', _OBJECTS),
}
for _key, _title, _meaning in (
  ('v_rand', 'V_rand', 'pairs of pixels that are in one object in both'),
  ('v_info', 'V_info', 'information that the objects of both share'),
):
  for _suffix, _thin in (('', ''), ('_thin', ', with borders thinned')):
    _text = f'{_meaning}{_thin}; mean of the images'
    WHOLES[_key + _suffix] = Entry(
      _title + _thin, f'{_text}, at a probability of 0.5', _PARTITIONS
    )
    WHOLES[f'{_key}{_suffix}_best'] = Entry(
      f'{_title}{_thin}, best',
      f'{_text}, at the probability that is best for the split',
      _PARTITIONS,
    )


def find(metric: str) -> tuple[Entry, str] | None:
  """Returns the entry of a metric and its reduction, None if it is unknown.

  Metrics are 'dataset_iou/cat', 'image_miou' or 'ece', whose reduction is ''.
  """
  key = metric.partition('/')[0]
  reduction, _, rest = key.partition('_')
  if reduction not in REDUCTIONS:
    reduction, rest = '', key
  if '/' in metric:
    entry = (OVERLAPS | BORDERS).get(rest)
  else:
    entry = WHOLES.get(rest) or _mean(rest)
  return (entry, reduction) if entry else None


def mean_of(measure: str) -> str:
  """Returns the name of a measure's mean: 'band_iou' to 'band_miou'."""
  return re.sub('([^_]+)$', r'm\1', measure)


def _mean(key: str) -> Entry | None:
  for measure, entry in (OVERLAPS | BORDERS).items():
    if key == mean_of(measure):
      return dataclasses.replace(
        entry,
        title=f'mean {entry.title}',
        meaning=f'mean of the {entry.title} of the classes',
      )
  return None
