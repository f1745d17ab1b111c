"""Runs a U-Net: `python main.py --mode=MODE --config=configs/NAME.py`.

Flags, logging and dispatch on --mode; everything else is in unet_jax/.
"""

import logging
import os
import pathlib
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from unet_jax import config as config_lib
from unet_jax import errors

_ROOT = pathlib.Path(__file__).resolve().parent
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/NAME, after the config.'
)
_MODES = (
  'train',
  'cross_validate',
  'evaluate',
  'inspect',
  'summary',
  'import',
  'export',
)
_MODE = flags.DEFINE_enum('mode', 'train', _MODES, 'What to do.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake ends in one line and exit code 2."""
  try:
    config_lib.check_arguments(argv[1:], _ROOT / 'configs')
    # In place: config_flags looks at sys.argv.
    argv[:] = [config_lib.spelled_for_python(a) for a in argv]
    # Defined here since the definition itself parses --config.* already.
    config_flags.DEFINE_config_file(
      'config', str(_ROOT / 'configs/shapes.py'), 'File with get_config().'
    )
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise errors.UserError(f'{rest[1]}: flags are written --name=value')
    return rest
  except (flags.Error, ValueError, TypeError) as e:
    # config_flags wraps a mistake inside get_config() in a whole trace.
    trace = re.findall(r'^ *\w+Error: (.+)$', str(e), re.MULTILINE)
    line = trace[-1] if trace else str(e).splitlines()[0]
    print('error: ' + line.removeprefix('flag '), file=sys.stderr)
    sys.exit(2)


def _set_up_logging() -> None:
  """Our lines at INFO; those of the libraries (absl's) at WARNING."""
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  log = logging.getLogger('unet_jax')
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  absl = logging.getLogger('absl')
  absl.setLevel(logging.WARNING)
  # Orbax and its tasks log a stack trace for each that fails; we tell it once.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  absl.addFilter(lambda r: not r.exc_info and 'Traceback' not in r.getMessage())


def _leave(code: int) -> None:
  if 'jax' in sys.modules:
    from unet_jax import runtime

    runtime.leave(code)
  sys.exit(code)


def main(_) -> None:
  _set_up_logging()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')
  if _MODE.value == 'import' and not _WORKDIR.value:
    print(
      'error: --mode=import needs --workdir=DIR, a new run', file=sys.stderr
    )
    _leave(2)
  flag = flags.FLAGS['config']
  name = config_flags.get_config_filename(flag)
  workdir = os.path.abspath(_WORKDIR.value or config_lib.default_workdir(name))
  try:
    config = flag.value
    # What runs is imported here: jax and its company take seconds.
    if _MODE.value != 'train' and not flag.present:
      overrides = config_flags.get_override_values(flag)
      if _MODE.value == 'import':
        from unet_jax import import_weights

        config = import_weights.deduced_config(overrides)
      else:
        config = config_lib.read(workdir, overrides) or config
    config_lib.validate(config, _MODE.value)
    match _MODE.value:
      case 'train':
        from unet_jax import train as mode
      case 'cross_validate':
        from unet_jax import cross_validate as mode
      case 'evaluate':
        from unet_jax import evaluate as mode
      case 'inspect':
        from unet_jax import inspect_data as mode
      case 'summary':
        from unet_jax import summary as mode
      case 'import':
        from unet_jax import import_weights as mode
      case 'export':
        from unet_jax import export_weights as mode
    mode.run(config, workdir)
  except (errors.UserError, OSError) as e:
    print(f'error: {errors.one_line(e, workdir)}', file=sys.stderr)
    _leave(1)
  except KeyboardInterrupt:
    print(
      'interrupted; run the same command again to continue', file=sys.stderr
    )
    sys.exit(130)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
