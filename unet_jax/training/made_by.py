"""What made the steps of a checkpoint, and whether a run goes on with other."""

import logging
from typing import Any

import cv2
import flax
import jax
import jaxlib
import optax
import PIL

_log = logging.getLogger(__name__)

# Libraries whose versions may change the bits of a step, by their package.
_LIBRARIES = {
  'jax': jax,
  'jaxlib': jaxlib,
  'flax': flax,
  'optax': optax,
  'Pillow': PIL,
  'OpenCV': cv2,
}


def versions() -> dict[str, str]:
  return {name: module.__version__ for name, module in _LIBRARIES.items()}


def say_others(step: int, meta: dict[str, Any] | None, kernels: str) -> None:
  """Logs where a run goes on with other code than a step's.

  Args:
    step: of the checkpoint.
    meta: its record: {} of older ones, None if it cannot be read.
    kernels: whose convolutions this run has, `native` or `xla`.
  """
  if meta is None:
    return
  made_by = meta.get('kernels', 'xla')
  then: dict[str, str] = meta.get('versions', {})
  if made_by != kernels:
    _log.info(
      'step %d was made with the convolutions of cpu.kernels=%s, this run '
      'has %s ones, whose bits differ',
      step,
      made_by,
      kernels,
    )
  others = [
    f'{name} {then[name]} (now {version})'
    for name, version in versions().items()
    if then.get(name, version) != version
  ]
  if others:
    _log.info(
      'step %d was made with %s; bits may differ from a run that has the '
      'same versions throughout',
      step,
      ', '.join(others),
    )
