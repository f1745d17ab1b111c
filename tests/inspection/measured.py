"""Folders of pairs that are written, measured and searched for faults."""

from tests import folders
from unet_jax.data import sources
from unet_jax.inspection import findings, scan, second_look


def write(root, val=None, **splits):
  """Writes pairs of the splits; without `val`, two good pairs are added."""
  splits['val'] = val or folders.make_pairs(2, start=50)
  for split, pairs in splits.items():
    folders.write_pairs(root / split, pairs)


def measure(root, *splits, **data):
  """Returns {split: measurements} of a folder, and the config."""
  config = folders.make_config(root, **data)
  measured = {}
  for split in splits or ('train',):
    source = sources.make_source(config, split, [])
    measured[split], _ = scan.scan(source, config)
    second_look.look_again(source, measured[split], config)
  return measured, config


def find(root, *splits, **data):
  """Returns {kind: finding} of a folder."""
  splits, config = measure(root, *splits, **data)
  source = sources.make_source(config, next(iter(splits)), [])
  found = findings.find(splits, config, source.held_out)
  return {f.kind: f for f in found}
