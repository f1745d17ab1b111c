"""Objects: whether they are found, split or merged.

Objects of a prediction are the connected parts (4 neighbours, as ISBI 2012 has
them) of one class; those of the truth too, or they are given.

- Average precision: objects matched one to one at an IoU, TP / (TP + FP + FN)
  (the 2018 Data Science Bowl; Schmidt et al. 2018, arXiv 1806.03535).
- V_rand and V_info: two partitions of the pixels of the truth's objects
  compared (Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142, with
  alpha = 0.5), also after thinning, where the objects of the prediction are
  grown over all that is between them, so that the width of borders does not
  matter. Pixels of the truth's objects where the prediction has none are one
  more part of it. Pairs of a pixel with itself are not counted, as in
  scikit-image and SNEMI3D; the paper counts them, which differs by a share of
  one in the size of the objects.
"""

import cv2
import numpy as np

from unet_jax.prediction import probabilities

# Thresholds of IoU: 0.5 to 0.95.
IOU_THRESHOLDS = np.arange(10, 20) / 20
# Thresholds of the probability of a class: 0.1 to 0.9.
THRESHOLDS = np.arange(1, 10) / 10
# Where 0.5 is in THRESHOLDS.
HALF = 4


def components(binary: np.ndarray) -> np.ndarray:
  """Numbers the connected parts (4 neighbours) of a mask: int32 [H, W]."""
  _, labels = cv2.connectedComponents(binary.astype(np.uint8), connectivity=4)
  return labels


def measure(
  mask: np.ndarray,
  prediction: np.ndarray,
  probability: np.ndarray,
  index: int,
  num_classes: int,
  instances: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Measures the objects of one class in one image.

  Args:
    mask: uint8 [H, W]; values that are no class are ignored: no object has
      pixels there.
    prediction: uint8 [H, W], of classes.
    probability: float32 [H, W] of the class.
    instances: integers [H, W] that number the objects of the truth, 0 is none;
      only their pixels of the class count. None takes the connected parts.

  Returns:
    `objects`, int64 [10, 3]: TP, FP and FN at IOU_THRESHOLDS, see
    `match_counts`; `v_rand`, `v_info`, `v_rand_thin`, `v_info_thin`, float64
    [9]: at THRESHOLDS of the probability, see `v_scores`.
  """
  inside, valid = mask == index, mask < num_classes
  truth = components(inside) if instances is None else instances * inside
  found = components(prediction == index) * valid
  result = {'objects': match_counts(truth, found)}
  scores = np.empty((len(THRESHOLDS), 4))
  for i, threshold in enumerate(THRESHOLDS):
    parts = components(probability >= threshold)
    scores[i] = (
      *v_scores(truth, parts),
      *v_scores(truth, grow(parts, probability)),
    )
  names = ('v_rand', 'v_info', 'v_rand_thin', 'v_info_thin')
  return {**result, **dict(zip(names, scores.T))}


def match_counts(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Counts the objects of two images that are the same.

  Two objects can be matched where their IoU reaches the threshold; each is in
  one match at most, and there are as many matches as can be. In both images,
  integers [H, W], 0 is none and each other value one object.

  Returns:
    int64 [10, 3]: TP, FP (objects of `found` without match) and FN (of `truth`)
    at each of IOU_THRESHOLDS.
  """
  from scipy import sparse  # Slow to import.

  table = _contingency(truth, found)
  sizes, found_sizes = table.sum(1), table.sum(0)
  # Row and column 0 are the pixels of no object; numbers without pixels are no
  # objects either.
  objects, found_objects = (
    np.count_nonzero(x[1:]) for x in (sizes, found_sizes)
  )
  table = table[1:, 1:].tocoo()
  union = sizes[1:][table.row] + found_sizes[1:][table.col] - table.data
  iou = table.data / union
  result = np.empty((len(IOU_THRESHOLDS), 3), np.int64)
  for i, threshold in enumerate(IOU_THRESHOLDS):
    same = iou >= threshold
    graph = sparse.csr_array(
      (np.ones(same.sum(), bool), (table.row[same], table.col[same])),
      table.shape,
    )
    # Above 0.5 no object is in two pairs; at 0.5 it can be.
    matched = sparse.csgraph.maximum_bipartite_matching(graph)
    tp = np.count_nonzero(matched >= 0)
    result[i] = tp, found_objects - tp, objects - tp
  return result


def average_precision(counts: np.ndarray) -> np.ndarray:
  """Returns TP / (TP + FP + FN): [..., 3] to [...]; NaN without any object."""
  total = counts.sum(-1)
  return np.where(total, counts[..., 0] / np.maximum(total, 1), np.nan)


def v_scores(truth: np.ndarray, parts: np.ndarray) -> tuple[float, float]:
  """Returns V_rand and V_info of a partition of the truth's objects.

  V_rand is the F-score of pairs of pixels that are together in both, V_info is
  2 I / (H + H) of mutual information and entropies.

  Both images are integers [H, W]; in the truth 0 is none, in `parts` a part as
  any other. The scores are 0 to 1, 1 for equal partitions, and NaN if there is
  no object.
  """
  from skimage import metrics  # Slow to import.

  table = _contingency(truth, parts)[1:]
  if not table.nnz:
    return np.nan, np.nan
  with np.errstate(invalid='ignore', divide='ignore'):
    error, _, _ = metrics.adapted_rand_error(table=table, ignore_labels=(0,))
  both, s, t = (_entropy(x) for x in (table.data, table.sum(0), table.sum(1)))
  # Without any pair, or any information, in either: the partitions are equal.
  v_rand = 1.0 if np.isnan(error) else 1 - error
  v_info = 2 * (s + t - both) / (s + t) if s + t else 1.0
  return v_rand, v_info


def grow(parts: np.ndarray, probability: np.ndarray) -> np.ndarray:
  """Grows objects over all pixels by a watershed, the most probable first.

  The parts are integers [H, W], where 0 is none; the result has a 0 only if
  there is no object. The probability is float32 [H, W].
  """
  from skimage import segmentation

  return segmentation.watershed(-probability, parts)


def _contingency(truth: np.ndarray, found: np.ndarray):
  """Counts pixels by their labels in two images: int64 [labels, labels]."""
  from scipy import sparse

  shape = int(truth.max()) + 1, int(found.max()) + 1
  table = sparse.csr_array(shape, dtype=np.int64)
  for rows in probabilities.row_bands(truth.shape):
    labels = truth[rows].ravel(), found[rows].ravel()
    ones = np.ones(labels[0].size, np.int64)
    table += sparse.csr_array((ones, labels), shape)
  return table


def _entropy(counts: np.ndarray) -> float:
  """The entropy, in nats, of a distribution that is given by counts."""
  p = counts[counts > 0] / counts.sum()
  return float(-(p * np.log(p)).sum())
