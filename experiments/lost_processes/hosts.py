"""Hosts and shared folders that fail, by namespaces and mounts; needs root."""

import ctypes
import os
import pathlib
import socket
import subprocess
import sys

# Of Linux: what a process can have of its own.
_NEW_UTS, _NEW_NET = 0x04000000, 0x40000000
_INSIDE = 'LOST_PROCESSES_INSIDE'
_THROTTLE = pathlib.Path('/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device')


def is_root() -> bool:
  return os.geteuid() == 0


def enter_namespaces() -> None:
  """Starts this program again with a network and mounts of its own."""
  if not is_root() or os.environ.get(_INSIDE):
    return
  os.environ[_INSIDE] = '1'
  module = 'experiments.lost_processes'
  command = [sys.executable, '-m', module, *sys.argv[1:]]
  os.execvp('unshare', ['unshare', '--mount', '--net', '--uts', *command])


def _do(*words: object) -> str:
  command = [str(word) for word in words]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise OSError(f'{" ".join(command)}: {done.stderr.strip()}')
  return done.stdout.strip()


class Hosts:
  """Hosts lost0, lost1 ... on one network, each a namespace."""

  def __init__(self, folder: pathlib.Path, count: int):
    self._folder, self._count = folder, count
    self._cut: list[int] = []

  def __enter__(self) -> 'Hosts':
    if not is_root():
      return self
    names = '127.0.0.1 localhost\n'
    _do('mkdir', '-p', '/run/netns')
    _do('mount', '-t', 'tmpfs', 'none', '/run/netns')
    _do('ip', 'link', 'add', 'lost', 'type', 'bridge')
    _do('ip', 'link', 'set', 'lost', 'up')
    for i in range(self._count):
      _do('ip', 'netns', 'add', f'lost{i}')
      link = ('type', 'veth', 'peer', 'name', 'eth0', 'netns', f'lost{i}')
      _do('ip', 'link', 'add', f'to{i}', *link)
      _do('ip', 'link', 'set', f'to{i}', 'master', 'lost', 'up')
      inside = ('ip', '-n', f'lost{i}')
      _do(*inside, 'address', 'add', f'10.77.0.{i + 1}/24', 'dev', 'eth0')
      _do(*inside, 'link', 'set', 'eth0', 'up')
      _do(*inside, 'link', 'set', 'lo', 'up')
      names += f'10.77.0.{i + 1} lost{i}\n'
    file = self._folder / 'hosts'
    file.write_text(names)
    _do('mount', '--bind', file, '/etc/hosts')
    return self

  def __exit__(self, *unused) -> None:
    """All is gone with the namespaces of this program."""

  def enter(self, i: int) -> None:
    """Puts this process on a host; to be called before it has threads."""
    if not is_root():
      return
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f'/run/netns/lost{i}') as f:
      if libc.setns(f.fileno(), _NEW_NET) or libc.unshare(_NEW_UTS):
        raise OSError(ctypes.get_errno(), f'cannot enter the host lost{i}')
    socket.sethostname(f'lost{i}')

  def address(self) -> str:
    return 'lost0' if is_root() else '127.0.0.1'

  def cut(self, i: int) -> None:
    """Takes a host off the network; nobody is told."""
    _do('ip', 'link', 'set', f'to{i}', 'nomaster')
    self._cut.append(i)

  def mend(self) -> None:
    while self._cut:
      _do('ip', 'link', 'set', f'to{self._cut.pop()}', 'master', 'lost')


class Disk:
  """The folder of a run.

  Args:
    folder: is made.
    kind: '' is an ordinary folder; `tmpfs`; `ext4` in a file; `slow` is that,
      with 30 kB/s to write.
  """

  def __init__(self, folder: pathlib.Path, kind: str):
    self._folder, self._kind = folder, kind
    self._device, self._is_aborted = '', False
    self._ballast = folder / 'ballast'

  def __enter__(self) -> 'Disk':
    self._folder.mkdir(parents=True, exist_ok=True)
    if self._kind == 'tmpfs':
      _do('mount', '-t', 'tmpfs', '-o', 'size=30m', 'none', self._folder)
    elif self._kind:
      image = self._folder.with_suffix('.ext4')
      image.unlink(missing_ok=True)
      _do('truncate', '-s', '100M', image)
      _do('mkfs.ext4', '-q', '-E', 'lazy_itable_init=0', image)
      self._device = _do('losetup', '--find', '--show', image)
      _do('mount', self._device, self._folder)
      if self._kind == 'slow':
        self._throttle(30_000)
    return self

  def _throttle(self, rate: int) -> None:
    number = os.stat(self._device).st_rdev
    _THROTTLE.write_text(f'{os.major(number)}:{os.minor(number)} {rate}')

  def __exit__(self, *unused) -> None:
    if self._device:
      self._throttle(0)
    if self._kind:
      _do('umount', self._folder)
    if self._device:
      _do('losetup', '--detach', self._device)
      self._folder.with_suffix('.ext4').unlink()

  def fill(self) -> None:
    with open(self._ballast, 'wb', buffering=0) as f:
      try:
        while f.write(bytes(4096)):
          pass
      except OSError:
        pass  # It is full.

  def make_read_only(self) -> None:
    """As the system does after an error; files that are open are so too."""
    _do('mount', '-o', 'remount,abort', self._folder)
    self._is_aborted = True

  def freeze(self, on: bool) -> None:
    """Makes writers wait, as for a server that does not answer."""
    _do('fsfreeze', '--freeze' if on else '--unfreeze', self._folder)

  def mend(self) -> None:
    """Undoes what `fill` and `make_read_only` did, once no run uses it."""
    if self._is_aborted:
      _do('umount', self._folder)
      _do('mount', self._device, self._folder)
      self._is_aborted = False
    self._ballast.unlink(missing_ok=True)
