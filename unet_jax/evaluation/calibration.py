"""Whether confidence is accuracy: calibration errors and proper scores.

Per image only sums are kept: a histogram over the confidence of the predicted
class, and the sums of two scores. The metrics of a split weigh all its pixels
alike. Pixels that the mask ignores count nowhere.
"""

import numpy as np

from unet_jax.prediction import probabilities


def measure(
  logits: np.ndarray, prediction: np.ndarray, mask: np.ndarray, bins: int
) -> dict[str, np.ndarray]:
  """Returns the sums of one image.

  The confidence of a pixel is the probability of its most probable class. The
  bins have equal widths and are open below, ((m - 1) / M, m / M], as in Guo et
  al. 2017 (arXiv 1706.04599, sec. 2).

  Args:
    logits: float32 [H, W, K]; K = 1 is a sigmoid of two classes.
    prediction: uint8 [H, W], their classes, see `probabilities.predict`.
    mask: uint8 [H, W]; values that are no class are ignored.
    bins: M.

  Returns:
    `calibration_count` and `calibration_correct` (pixels whose predicted class
    is that of the mask), int64 [bins]; `calibration_confidence`, the sum of the
    confidences, float64 [bins]; `nll` and `brier`, sums over the pixels of
    -log p of the mask's class (in nats) and of the squared distance of all
    classes' probabilities from 0 and 1 (Brier 1950: 0 to 2), float64 [].
  """
  count, correct = (np.zeros(bins, np.int64) for _ in range(2))
  confidence, nll, brier = np.zeros(bins), 0.0, 0.0
  for rows in probabilities.row_bands(mask.shape):
    z = probabilities.by_class(logits[rows]).reshape(-1, mask[rows].size)
    classes, predicted = mask[rows].ravel(), prediction[rows].ravel()
    valid = classes < len(z)
    if not valid.all():
      z, classes, predicted = z[:, valid], classes[valid], predicted[valid]
    p, log_sum = probabilities.softmax(z)
    pixels = np.arange(classes.size)
    highest = p.max(0)
    right = predicted == classes
    index = np.clip(np.ceil(highest * bins).astype(np.intp) - 1, 0, bins - 1)
    count += np.bincount(index, minlength=bins)
    correct += np.bincount(index[right], minlength=bins)
    confidence += np.bincount(index, weights=highest, minlength=bins)
    nll += (log_sum - z[classes, pixels]).sum(dtype=np.float64)
    p[classes, pixels] -= 1
    brier += np.square(p).sum(dtype=np.float64)
  return {
    'calibration_count': count,
    'calibration_correct': correct,
    'calibration_confidence': confidence,
    'nll': np.array(nll, np.float64),
    'brier': np.array(brier, np.float64),
  }


def metrics(sums: dict[str, np.ndarray]) -> dict[str, float]:
  """Returns the metrics of summed `measure`s, NaN where no pixel counts.

  Returns:
    `ece`: the mean over pixels of their bin's |accuracy - confidence| (Guo et
    al. 2017, eq. 3); `mce`: the largest of these (eq. 5); `nll`, `brier`: means
    over pixels.
  """
  count = sums['calibration_count']
  pixels = count.sum()
  if not pixels:
    return dict.fromkeys(('ece', 'mce', 'nll', 'brier'), float('nan'))
  gaps = np.abs(sums['calibration_correct'] - sums['calibration_confidence'])
  filled = count > 0
  return {
    'ece': float(gaps.sum() / pixels),
    'mce': float((gaps[filled] / count[filled]).max()),
    'nll': float(sums['nll'] / pixels),
    'brier': float(sums['brier'] / pixels),
  }


def reliability(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the bins of a reliability diagram, of summed `measure`s.

  Returns:
    `edges` float64 [bins + 1] from 0 to 1; `count` int64 [bins]; `accuracy` and
    `confidence`, float64 [bins], means of the pixels of each bin, NaN for an
    empty one.
  """
  count = sums['calibration_count']
  with np.errstate(invalid='ignore'):
    return {
      'edges': np.linspace(0, 1, len(count) + 1),
      'count': count,
      'accuracy': sums['calibration_correct'] / count,
      'confidence': sums['calibration_confidence'] / count,
    }


def probability(logits: np.ndarray, index: int) -> np.ndarray:
  """Returns the probability of class `index`: [H, W, K] to float32 [H, W]."""
  result = np.empty(logits.shape[:2], np.float32)
  for rows in probabilities.row_bands(logits.shape):
    result[rows] = probabilities.planes(logits[rows])[index]
  return result
