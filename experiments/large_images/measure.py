"""Time and memory to predict an image of 20,000 x 20,000 pixels.

  python -m experiments.large_images.measure [--side=20000]

draws a tiled TIFF (noise at two scales), makes a small network of random
parameters, and runs `main.py --mode=predict` on the image in a process of its
own, whose time and peak of memory it prints. With --layout=png the same image
is a PNG, which is read whole.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TILE = 256


def _tiles(side: int) -> Iterator[np.ndarray]:
  """Yields RGB tiles, row by row."""
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 128, (_TILE, _TILE, 3), np.uint8)
  for _ in range((-(-side // _TILE)) ** 2):
    coarse = rng.integers(0, 128, (4, 4, 3), np.uint8)
    yield noise + np.kron(
      coarse, np.ones((_TILE // 4, _TILE // 4, 1), np.uint8)
    )


def _draw(folder: pathlib.Path, side: int, layout: str) -> pathlib.Path:
  path = folder / f'image.{layout}'
  tiff = folder / 'image.tiff'
  tifffile.imwrite(
    tiff,
    _tiles(side),
    shape=(side, side, 3),
    dtype=np.uint8,
    tile=(_TILE, _TILE),
    compression='zlib',
  )
  if layout == 'png':
    Image.fromarray(tifffile.imread(tiff)).save(path, compress_level=1)
    tiff.unlink()
  return path


def _run(*command: str) -> tuple[float, float]:
  """Runs a program; returns its seconds, and its peak of memory in MiB."""
  start = time.perf_counter()
  process = subprocess.Popen(
    command, cwd=_ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'{command} failed')
  return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  add = parser.add_argument
  add('--side', type=int, default=20_000, help='pixels along each side')
  add('--window', type=int, default=512, help='pixels along a window')
  add('--layout', choices=('tiff', 'png'), default='tiff', help='of the image')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    path = _draw(folder, args.side, args.layout)
    run = [
      sys.executable,
      str(_ROOT / 'main.py'),
      f'--workdir={folder}/run',
      '--config.data.cache=memory',
    ]
    # Of random parameters, as far as time and memory go.
    _run(
      *run,
      '--config.data.resize=patch',
      f'--config.data.image_size={args.window},{args.window}',
      '--config.data.num_train=2',
      '--config.data.num_eval=2',
      '--config.data.batch_size=2',
      '--config.data.check=False',
      '--config.model.depth=2',
      '--config.model.base_features=4',
      '--config.train.num_steps=1',
      '--config.log.num_examples=0',
    )
    seconds, peak = _run(
      *run,
      '--mode=predict',
      f'--config.predict.input={path}',
      '--config.inference.overlap=0.25',
    )
    (mask,) = (folder / 'run/predictions/masks').iterdir()
    print(
      f'{args.side} x {args.side} pixels, {path.stat().st_size / 1e6:.0f} '
      f'MB as {args.layout}: {seconds:.0f} s, peak of {peak:.0f} MiB; the '
      f'mask has {mask.stat().st_size / 1e6:.0f} MB'
    )


if __name__ == '__main__':
  main()
