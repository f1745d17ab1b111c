"""Which images --mode=predict takes."""

import glob
import logging
import pathlib
import shlex
from collections.abc import Iterable

from unet_jax.data import decode, examples
from unet_jax.runtime import errors

_log = logging.getLogger(__name__)


def find(pattern: str) -> list[pathlib.Path]:
  """Returns the images that a file, a folder or a pattern such as `a/*` names.

  Of a folder these are the image files in it or, where it has none, those of
  its images/; in natural order (slice_2 before slice_10).

  Raises:
    UserError: there are none.
  """
  if not pattern:
    raise errors.UserError(
      '--mode=predict needs --config.predict.input=PATH: an image, a folder or '
      "a pattern such as 'DIR/*.png'"
    )
  flag = f'--config.predict.input={pattern}'
  path = pathlib.Path(pattern).expanduser()
  if path.is_file():
    return [path]
  over = ''
  if path.is_dir():
    files = _images(path.iterdir())
    if not files and (path / 'images').is_dir():
      path = path / 'images'
      files = _images(path.iterdir())
    over = _passed_over(path, files)
    found = 'has no image files'
  else:
    files = _images(map(pathlib.Path, glob.glob(str(path), recursive=True)))
    found = 'no such file or folder'
    if glob.has_magic(pattern):
      found = 'matches no image files'
  if not files:
    raise errors.UserError(
      f'{flag}: {found} ({", ".join(decode.EXTENSIONS)}){over}'
    )
  if over:
    _log.warning('%s%s', flag, over)
  return files


def _passed_over(folder: pathlib.Path, files: list[pathlib.Path]) -> str:
  """Returns ': passes over ...', what else a folder has, or ''."""
  others = sorted(set(folder.iterdir()) - set(files))
  folders = [path for path in others if path.is_dir()]
  lines = []
  for kind, paths in (
    ('folder', folders),
    ('file', [path for path in others if path not in folders]),
  ):
    # Hidden ones are those of the system.
    names = [path.name for path in paths if not path.name.startswith('.')]
    if names:
      kind += 's' * (len(names) > 1)
      lines.append(f'{len(names)} {kind} ({errors.some(names)})')
  pattern = shlex.quote(f'{glob.escape(str(folder))}/**/*')
  advice = f'; with all folders: {pattern}' if folders else ''
  return f': passes over {" and ".join(lines)}{advice}' if lines else ''


def _images(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """The image files among paths, in natural order."""
  files = [
    path
    for path in paths
    if path.suffix.lower() in decode.EXTENSIONS
    and not path.name.startswith('.')
    and path.is_file()
  ]
  return sorted(files, key=lambda path: examples.natural_key(str(path)))
