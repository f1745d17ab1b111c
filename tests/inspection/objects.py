"""Images of objects and their masks, for the tests of how they fit."""

import cv2
import numpy as np
import skimage.draw


def blob(seed: int, size=(96, 128)) -> np.ndarray:
  """A mask uint8 [H, W] of an object that no turn or flip maps to itself."""
  rng = np.random.default_rng(seed)
  angles = np.linspace(0, 2 * np.pi, 9)[:-1]
  radii = rng.uniform(0.25, 0.95, 8)
  center = np.array(size) * rng.uniform(0.42, 0.58, 2)
  rows = center[0] + size[0] * 0.42 * radii * np.sin(angles)
  columns = center[1] + size[1] * 0.42 * radii * np.cos(angles)
  mask = np.zeros(size, np.uint8)
  mask[skimage.draw.polygon(rows, columns, size)] = 1
  return mask


def photo(mask: np.ndarray, seed: int, contrast=60) -> np.ndarray:
  """An image uint8 [H, W, 3] of the object, with texture and noise."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(-30, 30, (6, 8, 3)).astype(np.float32)
  texture = cv2.resize(coarse, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
  image = 120 + texture + contrast * mask[..., None]
  image += rng.normal(0, 6, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def make_pairs(count: int, size=(96, 128)):
  masks = [blob(seed, size) for seed in range(count)]
  return [(photo(mask, seed), mask) for seed, mask in enumerate(masks)]


def shift(mask, down, right):
  rows = np.clip(np.arange(mask.shape[0]) - down, 0, mask.shape[0] - 1)
  columns = np.clip(np.arange(mask.shape[1]) - right, 0, mask.shape[1] - 1)
  return mask[rows[:, None], columns]
