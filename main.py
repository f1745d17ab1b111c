"""Runs a U-Net: `python main.py --mode=MODE --config=configs/NAME.py`.

Flags, logging and dispatch on --mode; everything else is in unet_jax/.
"""

import importlib
import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from unet_jax.config import checks, command_line, saved
from unet_jax.runtime import errors, logs

_ROOT = pathlib.Path(__file__).resolve().parent
# The module of unet_jax that runs each mode, with its run(config, workdir).
_MODES = {
  'train': 'train',
  'cross_validate': 'cross_validate',
  'evaluate': 'evaluate',
  'predict': 'predict',
  'inspect': 'inspect_data',
  'summary': 'summary',
  'import': 'import_weights',
  'export': 'export_weights',
}
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/NAME, after the config.'
)
_MODE = flags.DEFINE_enum('mode', 'train', list(_MODES), 'What to do.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake ends in one line and exit code 2."""
  try:
    command_line.check_arguments(argv[1:], _ROOT / 'configs')
    # In place: config_flags looks at sys.argv.
    argv[:] = [command_line.spelled_for_python(a) for a in argv]
    # Defined here since the definition itself parses --config.* already.
    config_flags.DEFINE_config_file(
      'config', str(_ROOT / 'configs/shapes.py'), 'File with get_config().'
    )
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise errors.UserError(f'{rest[1]}: flags are written --name=value')
    if _MODE.value == 'import' and not _WORKDIR.value:
      raise errors.UserError('--mode=import needs --workdir=DIR, a new run')
    return rest
  except (flags.Error, ValueError, TypeError) as e:
    errors.exit_with(f'error: {command_line.line_of_flags(e)}', 2)


def _module(mode: str):
  """Imported when it is needed: jax and its company take seconds."""
  return importlib.import_module(f'unet_jax.{_MODES[mode]}')


def _config(mode: str, workdir: str):
  """The config of the flags; without --config that of the run or the file."""
  flag = flags.FLAGS['config']
  if mode == 'train' or flag.present:
    return flag.value
  overrides = config_flags.get_override_values(flag)
  if mode == 'import':
    return _module(mode).deduced_config(overrides)
  return saved.read(workdir, overrides) or flag.value


def main(_) -> None:
  logs.set_up()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = os.path.abspath(
    _WORKDIR.value or command_line.default_workdir(name)
  )
  try:
    config = _config(_MODE.value, workdir)
    checks.validate(config, _MODE.value)
    _module(_MODE.value).run(config, workdir)
  except (errors.UserError, OSError) as e:
    errors.exit_with(f'error: {errors.one_line(e, workdir)}', 1)
  except KeyboardInterrupt:
    errors.exit_with('interrupted; run the same command again to continue', 130)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
