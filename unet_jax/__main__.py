"""Runs a U-Net: `unet-jax --mode=MODE --config=configs/NAME.py`.

In a checkout `python main.py` is the same. --config.section.field=value sets a
field; unet_jax/config/default.py lists all, with their meaning.
"""

import importlib
import os
import sys

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from unet_jax.config import checks, command_line, saved
from unet_jax.runtime import errors, logs

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
    command_line.check_python()
    # In place: config_flags looks at sys.argv.
    argv[1:] = command_line.resolved(argv[1:])
    # Defined here since the definition itself parses --config.* already.
    usual = command_line.find('configs/shapes.py')
    config_flags.DEFINE_config_file('config', usual, 'File with get_config().')
    # For --help, which lists the flags of the program that was started.
    for name in ('config', 'mode', 'workdir'):
      flags.FLAGS.register_key_flag_for_module(argv[0], flags.FLAGS[name])
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise errors.UserError(f'{rest[1]}: flags are written --name=value')
    if _MODE.value == 'import' and not _WORKDIR.value:
      raise errors.UserError('--mode=import needs --workdir=DIR, a new run')
    command_line.check_config(flags.FLAGS['config'].value)
    return rest
  except Exception as e:  # A mistake of another kind is raised again.
    errors.exit_with(f'error: {command_line.line_of_flags(e)}', 2)


def _config(mode: str, workdir: str) -> ml_collections.ConfigDict:
  """The config of the flags; without --config that of the run or the file."""
  flag = flags.FLAGS['config']
  if mode == 'train' or flag.present:
    return flag.value
  overrides = config_flags.get_override_values(flag)
  if mode == 'import':
    from unet_jax.weights import match

    return match.deduced_config(overrides)
  return saved.read(workdir, overrides) or flag.value


def _run(_: list[str]) -> None:
  logs.set_up()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = _WORKDIR.value or command_line.default_workdir(file)
  workdir = os.path.abspath(workdir)
  try:
    config = _config(_MODE.value, workdir)
    checks.validate(config, _MODE.value)
    # Imported here: importing jax takes seconds.
    module = importlib.import_module(f'unet_jax.{_MODES[_MODE.value]}')
    module.run(config, workdir)
  except (errors.UserError, OSError) as e:
    errors.exit_with(f'error: {errors.one_line(e, workdir)}', 1)
  except KeyboardInterrupt:
    errors.exit_with('interrupted; run the same command again to continue', 130)


def main() -> None:
  sys.modules['__main__'].__doc__ = __doc__  # The first lines of --help.
  app.run(_run, flags_parser=_parse_flags)


if __name__ == '__main__':
  main()
