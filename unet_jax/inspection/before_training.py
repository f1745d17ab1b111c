"""What a training asks of its data: no error of an inspection's cheap part."""

import logging
from typing import Any

import jax
import ml_collections

from unet_jax.inspection import findings
from unet_jax.runtime import errors

_log = logging.getLogger(__name__)


def check(
  train_set: Any, eval_set: Any, config: ml_collections.ConfigDict
) -> None:
  """Logs warnings about the prepared sets.

  With data.cache=none, a few pairs of each are read.

  Raises:
    UserError: something is an error; it gives the first.
  """
  sets = {train_set.split: train_set, eval_set.split: eval_set}
  found = findings.find_in_prepared(sets, config)
  for finding in found:
    if finding.level == 'warning' and jax.process_index() == 0:
      _log.warning('warning: %s: %s', finding.kind, finding.message)
  bad = [finding for finding in found if finding.level == 'error']
  if bad:
    more = f' ({len(bad)} errors in all)' if len(bad) > 1 else ''
    raise errors.UserError(
      f'{bad[0].kind}: {bad[0].message}{more}. --mode=inspect reports more, '
      '--config.data.check=false trains without any check'
    )
