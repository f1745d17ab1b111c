"""Errors of native convolutions of random shapes, against three others.

  python -m tests.kernels.parity [COUNT]

prints the worst ones of COUNT shapes (300, a few minutes): the greatest
difference over the greatest number, of the value and of both gradients.
"""

import sys
import tempfile

import jax
import numpy as np

from unet_jax.kernels import build, convolution


def float64(x, kernel, dy, pad):
  """Value and gradients in NumPy, a tap at a time."""
  x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
  around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  padded = np.pad(x, around)
  height, width = dy.shape[1:3]
  y, dx, dkernel = np.zeros_like(dy), np.zeros_like(padded), []
  for i, j in np.ndindex(kernel.shape[:2]):
    part = np.s_[:, i : i + height, j : j + width]
    y += padded[part] @ kernel[i, j]
    dx[part] += dy @ kernel[i, j].T
    dkernel.append(np.einsum('bhwc,bhwf->cf', padded[part], dy, optimize=True))
  inside = np.s_[:, pad : pad + x.shape[1], pad : pad + x.shape[2]]
  return y, dx[inside], np.reshape(dkernel, kernel.shape)


def xla(x, kernel, dy, pad):
  layout = ('NHWC', 'HWIO', 'NHWC')
  call = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), ((pad, pad),) * 2, dimension_numbers=layout
  )
  y, vjp = jax.vjp(call, x, kernel)
  return y, *vjp(dy)


def pytorch(x, kernel, dy, pad):
  import torch

  to_first, to_last = (0, 3, 1, 2), (0, 2, 3, 1)
  tensor = lambda a, axes: torch.tensor(a.transpose(axes).copy())
  x = tensor(x, to_first).requires_grad_()
  kernel = tensor(kernel, (3, 2, 0, 1)).requires_grad_()
  y = torch.nn.functional.conv2d(x, kernel, padding=pad)
  y.backward(tensor(dy, to_first))
  y, dx = (t.detach().numpy().transpose(to_last) for t in (y, x.grad))
  return y, dx, kernel.grad.numpy().transpose(2, 3, 1, 0)


def draw(rng):
  """Sizes of a random convolution, `same` or `valid`; half fit Winograd's."""
  taps = int(rng.choice([1, 3, 3, 3, 3, 5]))
  if rng.random() < 0.5:
    c, f = (16 * rng.integers(1, 33, 2)).tolist()
  else:
    c, f = np.exp(rng.uniform(0, np.log(513), 2)).astype(int).tolist()
  # Fewer pixels for many channels: a float64 reference takes its time.
  most = int(np.clip(200 / (c * f) ** 0.25, taps, 60))
  height, width = rng.integers(taps, most + 1, 2).tolist()
  x, kernel = (int(rng.integers(1, 4)), height, width, c), (taps, taps, c, f)
  return x, kernel, int(rng.choice([0, taps // 2]))


def errors(rng, shape, references):
  """{(reference, what): error} of one convolution."""
  x_shape, kernel_shape, pad = shape
  x, kernel = (
    rng.standard_normal(s, np.float32) for s in (x_shape, kernel_shape)
  )
  y, vjp = jax.vjp(lambda x, k: convolution.convolve(x, k, pad), x, kernel)
  dy = rng.standard_normal(y.shape, np.float32)
  found, result = (y, *vjp(dy)), {}
  for reference in references:
    names = ('value', 'input gradient', 'kernel gradient')
    for name, a, b in zip(names, found, reference(x, kernel, dy, pad)):
      assert a.shape == b.shape
      error = np.abs(a - b).max() / np.abs(b).max()
      result[reference.__name__, name] = float(error)
  return result


def worst(count, seed, references):
  """{(reference, what): (error, shape)} of the worst of random shapes."""
  rng, result = np.random.default_rng(seed), {}
  for _ in range(count):
    shape = draw(rng)
    for key, error in errors(rng, shape, references).items():
      result[key] = max(result.get(key, (0.0, shape)), (error, shape))
  return result


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as folder:
    build.load(folder)
    shapes = int(sys.argv[1]) if sys.argv[1:] else 300
    for key, (error, shape) in worst(
      shapes, 0, (float64, xla, pytorch)
    ).items():
      print(f'{" ".join(key):30}{error:.1e}  {shape}')
