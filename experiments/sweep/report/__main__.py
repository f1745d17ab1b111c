"""Writes the report of a sweep again: REPORT.md, figures/ and report.html.

  python -m experiments.sweep.report DIR [--predict]

DIR is the --workdir of experiments.sweep, which calls this with --predict:
example predictions are made first, from the checkpoints of the points, and
skipped where checkpoints or data are not there.
"""

import argparse
import pathlib
import sys

from experiments.sweep.report import examples, page, results
from unet_jax.runtime import errors


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('directory', type=pathlib.Path, help='of the sweep')
  parser.add_argument(
    '--predict', action='store_true', help='make the example predictions'
  )
  args = parser.parse_args()
  where = str(args.directory)
  try:
    if args.predict:
      sweep = results.read(args.directory)
      try:
        examples.save(args.directory, sweep)
      except errors.UserError as e:
        line = errors.one_line(e, where)
        print(f'no example predictions: {line}', file=sys.stderr)
    conclusion = page.write(args.directory)
  except (errors.UserError, OSError) as e:
    errors.exit_with(f'error: {errors.one_line(e, where)}', 1)
  print(' '.join(conclusion))
  print(f'wrote {args.directory / "report.html"}')


if __name__ == '__main__':
  main()
