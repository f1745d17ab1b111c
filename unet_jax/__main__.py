"""Runs a U-Net: `unet-jax --mode=MODE --config=configs/NAME.py`.

In a checkout `python main.py` is the same. --config.section.field=value sets a
field; unet_jax/config/default.py lists all, with their meaning.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

import ml_collections
from absl import app, flags

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
  'plan': 'plan',
  'import': 'import_weights',
  'export': 'export_weights',
}
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/NAME, after the config.'
)
_MODE = flags.DEFINE_enum('mode', 'train', list(_MODES), 'What to do.')
# For --help alone: command_line reads it.
flags.DEFINE_string('config', command_line.USUAL, 'File with get_config().')
# What the flags say of the config, and the config of its file.
_Parsed = tuple[command_line.Asked, ml_collections.ConfigDict]


def _parse_flags(argv: Sequence[str]) -> _Parsed:
  """Parses flags; a mistake ends in one line and exit code 2."""
  try:
    # For --help, which lists the flags of the program that was started.
    for name in ('config', 'mode', 'workdir'):
      flags.FLAGS.register_key_flag_for_module(argv[0], flags.FLAGS[name])
    asked = command_line.parse(argv[1:])
    help = ['--help' if word == '-h' else word for word in asked.rest]
    rest = flags.FLAGS([argv[0], *help])
    if len(rest) > 1:
      raise errors.UserError(f'{rest[1]}: flags are written --name=value')
    if _MODE.value == 'import' and not _WORKDIR.value:
      raise errors.UserError('--mode=import needs --workdir=DIR, a new run')
    return asked, asked.config()
  except (flags.Error, errors.UserError) as e:
    errors.exit_with(f'error: {str(e).removeprefix("flag ")}', 2)


def _config(
  mode: str, workdir: str, parsed: _Parsed
) -> ml_collections.ConfigDict:
  """The config of the flags; without --config that of the run or the file."""
  asked, config = parsed
  if mode == 'train' or asked.has_file:
    return config
  if mode == 'import':
    from unet_jax.weights import match

    return match.deduced_config(asked.overrides)
  return saved.read(workdir, asked.overrides) or config


def _run(parsed: _Parsed) -> None:
  logs.set_up()
  # Names of files may be no text.
  sys.stdout.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
  workdir = _WORKDIR.value or command_line.default_workdir(parsed[0].file)
  workdir = os.path.abspath(workdir)
  with errors.reported(workdir):
    config = _config(_MODE.value, workdir, parsed)
    checks.validate(config, _MODE.value)
    # Imported here: importing jax takes seconds.
    module = importlib.import_module(f'unet_jax.{_MODES[_MODE.value]}')
    module.run(config, workdir)


def main() -> None:
  # A start makes objects that stay: to look for others takes 3 % of it.
  gc.set_threshold(100_000)
  sys.modules['__main__'].__doc__ = __doc__  # The first lines of --help.
  app.run(_run, flags_parser=_parse_flags)


if __name__ == '__main__':
  main()
