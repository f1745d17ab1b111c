"""How often copies are called near duplicates, and images of one layout.

  python -m experiments.data_faults.copies [--data=../shared/data]

Of 60 images of each kind (`kinds`), each sixth is copied with a change into a
second split. Prints how many of the 60 are grouped without copies, and of the
copies, how many are grouped with their image.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from experiments.data_faults import kinds, measure
from unet_jax.inspection import duplicates, records, scan

_NUM, _EACH = 60, 6


def _as_jpeg(image: np.ndarray, quality: int = 50) -> np.ndarray:
  data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def _reduced(image: np.ndarray) -> np.ndarray:
  size = tuple(int(0.7 * n) for n in image.shape[1::-1])
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _cropped(image: np.ndarray) -> np.ndarray:
  edge = max(image.shape[0] // 100, 1)
  return image[edge:-edge, edge:-edge].copy()


def _noisy(image: np.ndarray) -> np.ndarray:
  noise = np.random.default_rng(0).normal(0, 4, image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'brighter': lambda image: cv2.convertScaleAbs(image, alpha=1.1, beta=5),
  'JPEG of quality 50': _as_jpeg,
  'mirrored': lambda image: image[:, ::-1].copy(),
  'upside down': lambda image: image[::-1].copy(),
  'turned by 90 degrees': lambda image: np.rot90(image).copy(),
  'turned, as JPEG of quality 80': lambda image: _as_jpeg(np.rot90(image), 80),
  'reduced to 0.7': _reduced,
  'noise of 4 levels': _noisy,
  'cropped by 1 %': _cropped,
}


def _measured(
  images: Sequence[np.ndarray], split: str
) -> list[records.Measurement]:
  measurements = []
  for i, image in enumerate(images):
    m = records.Measurement(split, i, f'{split}{i:03d}')
    scan.shrink(m, image.reshape(*image.shape[:2], -1))
    measurements.append(m)
  return measurements


def _groups(
  measurements: records.Measurements,
) -> list[list[records.Measurement]]:
  found = duplicates.near_duplicates(measurements)
  return [group for groups in found.values() for group in groups]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default='../shared/data')
  args = parser.parse_args()
  for kind in (*kinds.TUNED, *kinds.HELD_OUT, *measure.REAL):
    if kind in measure.REAL:
      pairs = kinds.read(kind, args.data, _NUM)
    else:
      pairs = kinds.draw(kind, _NUM, 5)
    images = [image for image, _ in pairs]
    train = _measured(images, 'train')
    found = [f'{sum(map(len, _groups(train)))} right']
    for name, change in _CHANGES.items():
      copies = _measured([change(image) for image in images[::_EACH]], 'val')
      together = {
        (a.split, a.index, b.split, b.index)
        for group in _groups([*train, *copies])
        for a in group
        for b in group
      }
      right = sum(
        ('train', _EACH * i, 'val', i) in together for i in range(len(copies))
      )
      found.append(f'{name} {right} of {len(copies)}')
    print(f'{kind}: {", ".join(found)}', flush=True)


if __name__ == '__main__':
  main()
