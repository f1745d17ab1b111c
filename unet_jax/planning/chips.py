"""TPU chips, and slices of them that need not be there.

libtpu compiles for a slice by its name; no TPU is asked for, and none of this
machine is taken.
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from unet_jax.runtime import errors, mesh

# What libtpu would ask of a machine with TPUs, or of the metadata server, for
# which it waits where there is none.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  # Of no consequence for slices; libtpu warns where it is not set.
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  # A chip of this machine may be another program's.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Chip(NamedTuple):
  """What a chip has.

  Attributes:
    name: in the names of slices.
    hbm: bytes of memory that a program can have.
    flops: FLOP per second of bfloat16 products.
    bandwidth: bytes per second between memory and chip.
    links: bytes per second that a chip sends to its neighbours, all together.
    clock: cycles per second of its cores.
    lanes: features that a multiply unit takes at once.
  """

  name: str
  hbm: float
  flops: float
  bandwidth: float
  links: float
  clock: float
  lanes: int


# bfloat16 FLOP/s and bandwidths as published, page by page, at
# https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (read 2026-12-01).
# HBM is published as 32, 16, 95 and 32 GB; what programs can have is what the
# compiler (libtpu 0.0.52) says where one needs more. The pages give the links
# of both directions for v5e and v6e (400, 800 GB/s), and 4,800 Gbit/s for v5p;
# those of v4, 6 of 50 GB/s, are from Jouppi et al. 2023 (arXiv 2304.01433). The
# clock is FLOP/s by what multiply units do in a cycle: four of 128 x 128 a
# core; of v6e the compiler's estimates need four of 256 x 256.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 30.75 * 2**30, 275e12, 1200e9, 300e9, 1.05e9, 128),
    Chip('v5e', 15.75 * 2**30, 197e12, 819e9, 200e9, 1.5e9, 128),
    Chip('v5p', 95.73 * 2**30, 459e12, 2765e9, 600e9, 1.75e9, 128),
    Chip('v6e', 31.24 * 2**30, 918e12, 1638e9, 400e9, 1.75e9, 256),
  )
}
# Of the two cores of a chip, which v4 would show as two devices.
_MEGACORE = {'chip_config_name': 'megacore'}


class Slice(NamedTuple):
  """A slice: its chip, and its devices, one a chip, in `hosts` processes."""

  name: str
  chip: Chip
  devices: tuple[jax.Device, ...]
  hosts: int


def make_slice(name: str) -> Slice:
  """Returns a slice by its name, such as `v5e:2x4`.

  Raises:
    UserError: libtpu is missing, or knows no such slice.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      '--mode=plan compiles with libtpu, which is not installed: '
      'pip install libtpu (in a checkout: pip install ".[plan]")'
    )
  os.environ.update(_NO_TPU)
  # libtpu ends the program for a flag of another compiler; its own are
  # LIBTPU_INIT_ARGS.
  os.environ.pop('XLA_FLAGS', None)
  # Nothing runs, and a TPU of this machine stays free.
  jax.config.update('jax_platforms', 'cpu')
  # A program for a slice that is not there can be kept, but not loaded.
  jax.config.update('jax_enable_compilation_cache', False)
  kind = name.partition(':')[0]
  options = _MEGACORE if kind == 'v4' else {}
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    )
  except jax.errors.JaxRuntimeError as e:
    reason = re.sub(r'^[A-Z_]+: ', '', str(e)).splitlines()[0]
    raise errors.UserError(
      f'--config.plan.topology={name}: libtpu knows no such slice ({reason})'
    ) from e
  devices = tuple(described.devices)
  hosts = len(devices) // len(mesh.of_one_process(devices))
  return Slice(name, CHIPS[kind], devices, hosts)
