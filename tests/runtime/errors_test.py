"""Errors of the system that a user can fix, and others."""

import errno
import os

import pytest

from unet_jax.runtime import errors


def _error(code, path=None):
  return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize(
  'code',
  [
    *(errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EISDIR, errno.ENAMETOOLONG),
  ],
)
def test_a_path_that_a_user_can_fix(code):
  text = f'{os.strerror(code)}; fix this and run the same command again'
  assert errors.one_line(_error(code, 'a/b'), 'run') == f'a/b: {text}'
  assert errors.one_line(_error(code), 'run') == f'run: {text}'


def test_other_errors_are_raised():
  with pytest.raises(OSError, match='Bad file'):
    errors.one_line(_error(errno.EBADF), 'run')
