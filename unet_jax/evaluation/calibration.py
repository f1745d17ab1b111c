"""Whether confidence is accuracy: calibration errors and proper scores.

Per image only sums are kept: a histogram over the confidence of the predicted
class, and the sums of two scores. The split's figures are those of all its
pixels, each of which counts alike. Pixels that the mask ignores count nowhere.
"""

import numpy as np

from unet_jax.prediction import probabilities


def measure(
  logits: np.ndarray, mask: np.ndarray, bins: int
) -> dict[str, np.ndarray]:
  """Returns the sums of one image.

  The confidence of a pixel is the probability of its most probable class. The
  bins have equal widths and are open below, ((m - 1) / M, m / M], as in Guo et
  al. 2017 (arXiv 1706.04599, sec. 2).

  Args:
    logits: float32 [H, W, K]; K = 1 is a sigmoid of two classes.
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
    z, classes = _valid(logits[rows], mask[rows])
    p, log_sum = _softmax(z)
    pixels = np.arange(classes.size)
    highest = p.max(0)
    # The class of the mask counts as predicted as `argmax` has it: the first
    # of those that are equal.
    right = z.argmax(0) == classes
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
    'nll': np.float64(nll),
    'brier': np.float64(brier),
  }


def figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
  """Returns the figures of summed `measure`s, NaN where no pixel counts.

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
  """Returns what a reliability diagram draws of summed `measure`s.

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
    p, _ = _softmax(_by_class(logits[rows]))
    result[rows] = p[index].reshape(result[rows].shape)
  return result


def _by_class(logits: np.ndarray) -> np.ndarray:
  """float32 [H, W, K] as [C, H * W]: quick to reduce over the classes.

  A sigmoid's logit z is that of two classes with the logits 0 and z.
  """
  z = np.ascontiguousarray(logits.reshape(-1, logits.shape[-1]).T)
  return np.concatenate([np.zeros_like(z), z]) if len(z) == 1 else z


def _valid(
  logits: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The logits [C, P] and the classes [P] of the pixels that count."""
  z, classes = _by_class(logits), mask.ravel()
  valid = classes < len(z)
  if valid.all():
    return z, classes
  return z[:, valid], classes[valid]


def _softmax(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns probabilities [C, P] of logits, and log sum exp of them [P]."""
  highest = z.max(0)
  p = np.exp(z - highest)
  total = p.sum(0)
  p /= total
  return p, np.log(total) + highest
