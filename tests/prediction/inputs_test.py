"""Files, folders and patterns that predict.input names."""

import pytest
from PIL import Image

from unet_jax.prediction import inputs
from unet_jax.runtime import errors


def _touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (4, 4)).save(path, 'PNG')


def test_inputs(tmp_path, monkeypatch):
  _touch(tmp_path, 'slice_10.png', 'slice_2.PNG', 'a.tif', '.hidden.png')
  (tmp_path / 'notes.txt').write_text('x')
  _touch(tmp_path / 'set', 'images/b.jpg', 'images/a.png', 'masks/a.png')
  for pattern, names in {
    '': 'a.tif slice_2.PNG slice_10.png',
    'slice_2.PNG': 'slice_2.PNG',
    'slice_*': 'slice_2.PNG slice_10.png',
    '*': 'a.tif slice_2.PNG slice_10.png',
    'set': 'set/images/a.png set/images/b.jpg',
    '**/images/*': 'set/images/a.png set/images/b.jpg',
  }.items():
    found = inputs.find(f'{tmp_path}/{pattern}')
    assert found == [tmp_path / name for name in names.split()]
  monkeypatch.setenv('HOME', str(tmp_path / 'set'))
  assert inputs.find('~/m*/*') == [tmp_path / 'set/masks/a.png']


@pytest.mark.parametrize(
  'pattern,message',
  [
    ('empty', 'has no image files (.png, '),
    ('gone.png', 'no such file or folder (.png, '),
    ('*.jpg', 'matches no image files (.png, '),
  ],
)
def test_inputs_that_cannot_be_used(pattern, message, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError) as e:
    inputs.find(f'{tmp_path}/{pattern}')
  expected = f'--config.predict.input={tmp_path}/{pattern}: {message}'
  assert str(e.value).startswith(expected)
  assert '\n' not in str(e.value)


def test_no_input():
  with pytest.raises(errors.UserError) as e:
    inputs.find('')
  assert str(e.value) == (
    '--mode=predict needs --config.predict.input=PATH: an image, a folder or a '
    "pattern such as 'DIR/*.png'"
  )


def test_what_a_folder_has_besides_is_named(tmp_path, caplog):
  _touch(tmp_path, 'a.png', 'p1/b.png', 'p2/b.png', '.cache/c.png')
  for name in ('c.heic', '.DS_Store'):
    (tmp_path / name).write_text('x')
  text = (
    f'--config.predict.input={tmp_path}: passes over 2 folders (p1, p2) and 1 '
    f"file (c.heic); with all folders: '{tmp_path}/**/*'"
  )
  assert inputs.find(str(tmp_path)) == [tmp_path / 'a.png']
  assert [r.getMessage() for r in caplog.records] == [text]
  # The advice is right.
  found = inputs.find(text.rpartition(' ')[2].strip("'"))
  assert found == [
    tmp_path / name for name in ('a.png', 'p1/b.png', 'p2/b.png')
  ]
  assert inputs.find(f'{tmp_path}/p1') and len(caplog.records) == 1
  (tmp_path / 'a.png').unlink()
  with pytest.raises(
    errors.UserError, match=r'has no image .* folders \(p1, p2'
  ):
    inputs.find(str(tmp_path))
