"""Trains or evaluates a U-Net: `python main.py --config=configs/NAME.py`.

Flags, logging and dispatch on --mode; everything else is in unet_jax/.
"""

import logging
import os
import pathlib
import re
import sys

from absl import app
from absl import flags
from ml_collections import config_flags
from unet_jax import config as config_lib
from unet_jax import errors

_ROOT = pathlib.Path(__file__).resolve().parent
_CONFIG = config_flags.DEFINE_config_file(
    'config', str(_ROOT / 'configs/shapes.py'), 'File with get_config().'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run; default runs/NAME, after the config.'
)
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake ends in one line and exit code 2."""
  try:
    from configs import default

    fields = config_lib.flatten(default.get_config())
    named = [re.match(r'--?(?:no)?config\.([^=]+)', a) for a in argv[1:]]
    config_lib.check_fields([m[1] for m in named if m], fields)
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise errors.UserError(f'{rest[1]}: flags are written --name=value')
    filename = config_flags.get_config_filename(flags.FLAGS['config'])
    if not os.path.isfile(filename.split(':')[0]):
      available = sorted(p.name for p in (_ROOT / 'configs').glob('[a-z]*.py'))
      raise errors.UserError(
          f'--config={filename}: no such file; configs/ has '
          + ', '.join(available)
      )
    return rest
  except (errors.UserError, flags.Error, ValueError, TypeError) as e:
    # config_flags wraps a mistake inside get_config() in a whole trace.
    lines = [s.strip() for s in str(e).splitlines() if s.strip()]
    lines = [s for s in lines if re.match(r'\w*(Error|Exception): ', s)] or lines
    print('error: ' + lines[-1 if len(lines) > 1 else 0], file=sys.stderr)
    sys.exit(2)


def _get_config(workdir: str):
  """The config asked for: of --config, or else of the workdir."""
  saved = config_lib.read(workdir)
  if _MODE.value == 'train' or saved is None or flags.FLAGS['config'].present:
    return _CONFIG.value
  saved.update_from_flattened_dict(
      config_flags.get_override_values(flags.FLAGS['config'])
  )
  return saved


def _default_workdir() -> str:
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, argument = name.partition(':')
  stem = pathlib.Path(path).stem
  return os.path.join('runs', f'{stem}-{argument}' if argument else stem)


def main(_) -> None:
  workdir = os.path.abspath(_WORKDIR.value or _default_workdir())
  # Ours at INFO; the libraries' own lines (absl's) stay at WARNING.
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
  log = logging.getLogger('unet_jax')
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  try:
    config = _get_config(workdir)
    config_lib.validate(config)
    if _MODE.value == 'train':
      from unet_jax import train

      train.train(config, workdir)
    else:
      from unet_jax import evaluate

      evaluate.evaluate(config, workdir)
  except errors.UserError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
