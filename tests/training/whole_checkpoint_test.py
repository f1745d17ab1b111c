"""Every damage of a checkpoint's files is found and named."""

import random

import pytest

from tests.refusals import message_of
from unet_jax.training import whole_checkpoint


@pytest.fixture
def folder(tmp_path):
  """As Orbax leaves it: items in folders, of small and large files."""
  rng = random.Random(0)
  for name in 'config/metadata', 'data/metadata', 'state/manifest.ocdbt':
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"name": [1, 2]}')
  (tmp_path / 'state/p/d').mkdir(parents=True)
  (tmp_path / 'state/p/d/0a').write_bytes(rng.randbytes(200_000))
  (tmp_path / 'step_record').write_text('written again later')
  whole_checkpoint.write_digests(tmp_path)
  return tmp_path


def test_a_whole_one(folder):
  assert not whole_checkpoint.damage(folder)
  (folder / 'step_record').write_text('now')
  assert not whole_checkpoint.damage(folder)


def test_every_damage_is_named(folder):
  rng = random.Random(1)
  files = [p for p in folder.glob('*/**/*') if p.is_file()]
  assert len(files) == 4
  for file in files:
    good, name = file.read_bytes(), file.relative_to(folder).as_posix()
    for _ in range(20):
      bad = bytearray(good)
      bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
      file.write_bytes(bad)
      changed = f'{name} is not as it was saved'
      assert whole_checkpoint.damage(folder) == changed
    for bad in b'', good[: len(good) // 2], good + b'\0':
      file.write_bytes(bad)
      assert whole_checkpoint.damage(folder) == changed
    file.unlink()
    assert whole_checkpoint.damage(folder) == f'{name} is gone'
    file.write_bytes(good)
    assert not whole_checkpoint.damage(folder)


@pytest.mark.parametrize('text', ['', '{"a": "', '\xff'])
def test_digests_that_are_damaged(folder, text):
  (folder / 'digests.json').write_text(text, 'latin-1')
  assert whole_checkpoint.damage(folder) == 'digests.json cannot be read'


def test_one_of_before_there_were_digests(folder):
  (folder / 'digests.json').unlink()
  assert not whole_checkpoint.damage(folder)
  (folder / 'data/metadata').unlink()
  assert whole_checkpoint.damage(folder) == 'data/metadata is gone'


def test_a_file_that_cannot_be_read_is_not_called_changed(folder):
  (folder / 'config/metadata').unlink()
  (folder / 'config/metadata').mkdir()  # Also root cannot read it.
  assert whole_checkpoint.damage(folder) == 'config/metadata cannot be read'


def test_steps_that_go_while_they_are_listed_or_read_are_one_line(folder):
  def list_steps():
    with whole_checkpoint.listing('run'):
      (folder / '00000003').stat()

  assert message_of(list_steps) == (
    'run: a run that goes on there replaced what was read; run the same '
    'command again'
  )
  gone = ValueError('Checkpoint directory does not exist: run/00000003/state.')
  assert whole_checkpoint.is_of_damage(gone)
  assert not whole_checkpoint.is_of_damage(ValueError('another'))
