"""Locks where the file system has none; others are tested by their users."""

import errno
import fcntl

import pytest

from unet_jax.runtime import errors, locks


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, code):
  def flock(f, operation):
    raise OSError(code, 'no locks here')

  monkeypatch.setattr(fcntl, 'flock', flock)
  path = tmp_path / '.lock'
  with pytest.raises(errors.UserError) as e, locks.lock(path, 'training'):
    pass
  assert str(e.value) == (
    f'{path}: its file system has no locks (no locks here); mount it with them '
    '(Lustre: -o flock), or choose a folder of another'
  )
