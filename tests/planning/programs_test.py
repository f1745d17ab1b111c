"""What the compiler says where memory is short."""

from unet_jax.planning import programs


def test_needed_bytes():
  # Of libtpu 0.0.52.
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
    'the total memory required for HLO temporaries (360.00G) exceeds available '
    'HBM (15.75G). HLO module: jit__lambda.'
  )
  assert programs.needed_bytes(message) == 360 * 2**30
  assert programs.needed_bytes('INTERNAL: another mistake') is None
