"""What a training asks of its data: no error of an inspection's cheap part."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from unet_jax.inspection import duplicates, findings, records, scan
from unet_jax.runtime import errors

_log = logging.getLogger(__name__)

# Most images that are compared with each other: 0.12 to 0.20 ms of processor
# time each, measured on 1,000 of 128 x 128.
_CHEAP = 1000


def check(
  train_set: Any, eval_set: Any, config: ml_collections.ConfigDict
) -> None:
  """Logs warnings about the prepared sets.

  With data.cache=none, a few pairs of each are read.

  Raises:
    UserError: something is an error; it gives the first.
  """
  sets = {train_set.split: train_set, eval_set.split: eval_set}
  found = findings.find_in_prepared(sets, config) + find_near(sets, config)
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


def find_near(
  sets: Mapping[str, Any], config: ml_collections.ConfigDict
) -> list[records.Finding]:
  """Looks for near duplicates across prepared sets, where these are small."""
  if (
    any(dataset.stats is None for dataset in sets.values())
    or config.data.source == 'shapes'
    or 'near_duplicates' in config.data.skip_checks
    or len(sets) < 2
    or sum(map(len, sets.values())) > _CHEAP
  ):
    return []
  splits = {name: records.of_prepared(name, s) for name, s in sets.items()}
  for name, measurements in splits.items():
    for m in measurements:
      scan.shrink(m, sets[name][m.index]['image'])
  found = duplicates.find_similar(splits, config, held_out=False)
  leaks = [f for f in found if f.level != 'note']
  return records.wanted(leaks, config.data.skip_checks)
