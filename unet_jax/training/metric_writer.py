"""Metrics of a run, in metrics.jsonl and TensorBoard event files.

Process 0 writes; in the others every call does nothing.
"""

import json
import os
import re
import sys
from typing import Any, TextIO

import jax

from unet_jax.runtime import whole_files


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl, without one that a kill cut off."""
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  lines = []
  with open(path) as f:
    for line in f:
      try:
        lines.append(json.loads(line))
      except ValueError:
        continue
  return lines


def read_evaluation(workdir: str, step: int) -> dict[str, Any] | None:
  """Returns the metrics of the evaluation after a step, if it was made."""
  for line in read_metrics(workdir):
    if line['step'] == step and 'eval/loss' in line:
      return line
  return None


def _tensorboardx() -> Any:
  """Imports tensorboardX without PyTorch, which it asks for but for its name.

  Where PyTorch is installed, importing it holds training up for seconds. Called
  at the first line, which comes after the first steps.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules['torch']
  return tensorboardX


class MetricWriter:
  """Appends metrics, step by step.

  Args:
    workdir: has metrics.jsonl and tensorboard/.
    step: from which the run continues; later lines, of a run that was killed
      after its last checkpoint, are dropped.
    tensorboard: also write event files.
  """

  def __init__(self, workdir: str, step: int, tensorboard: bool):
    self._events: Any = None
    self._file: TextIO | None = None
    if jax.process_index():
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    kept = [m for m in read_metrics(workdir) if m['step'] <= step]
    with whole_files.replacing(path) as f:
      f.writelines(json.dumps(m) + '\n' for m in kept)
    self._file = open(path, 'a', buffering=1)
    self._tensorboard = os.path.join(workdir, 'tensorboard')
    self._purge_step = step + 1 if tensorboard else None

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes one line; names are slash-separated."""
    if self._file is None:
      return
    clean = whole_files.finite_or_none(
      {k: float(v) for k, v in metrics.items()}
    )
    self._file.write(json.dumps({'step': step, **clean}) + '\n')
    if self._purge_step is None:
      return
    if self._events is None:
      self._events = _tensorboardx().SummaryWriter(
        self._tensorboard, purge_step=self._purge_step
      )
    for name, value in clean.items():
      if value is not None:
        # TensorBoard allows fewer characters than class names may have.
        tag = re.sub(r'[^\w/.-]', '_', name)
        self._events.add_scalar(tag, value, step)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()
