"""Images are known by their content; what was held out stays so."""

import hashlib
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
import tifffile

from tests.data import helpers
from tests.data.value_pairs import values, write, write_pairs
from tests.refusals import message_of
from unet_jax.data import digests, identity, prepare, sources

_STEMS = [f'p{i:02}' for i in range(10)]


@pytest.fixture(autouse=True)
def said(caplog, monkeypatch):
  """The lines that were logged so far."""
  monkeypatch.setattr(logging.getLogger('unet_jax'), 'propagate', True)
  caplog.set_level(logging.INFO)
  return lambda: [m for m in caplog.messages if m.startswith('warning: ')]


class _Run:
  """A run on a folder: which images it trains on, and which it holds out."""

  def __init__(self, tmp_path, layout='', **data):
    self.root, self.work = tmp_path / 'data', tmp_path / 'run'
    self.data = {'cache': 'disk', 'cache_dir': str(tmp_path / 'cache'), **data}
    self.work.mkdir()
    if layout == 'folders':
      write_pairs(self.root / 'train', _STEMS[:7])
      write_pairs(self.root / 'val', _STEMS[7:], start=7)
    elif not layout:
      write_pairs(self.root, _STEMS)

  def config(self, **data):
    fixed = {'source': 'folder', 'dir': str(self.root), 'num_classes': 200}
    fixed |= {'image_size': (2, 3), **self.data}
    return helpers.make_config(**{**fixed, **data})

  def start(self, continues=True, **data):
    """As a training does; returns the values of both splits."""
    config = self.config(**data)
    record = identity.read(str(self.work), continues)
    splits = [
      sources.make_source(config, split, record=record)
      for split in ('train', 'auto')
    ]
    for split in splits:
      prepare.prepare_source(split, config)
    if continues:
      sources.keep_record(str(self.work), splits, record)
    return [values(split) for split in splits]

  def evaluate(self, **data):
    return self.start(continues=False, **data)


@pytest.mark.parametrize('layout', ['', 'folders'])
@pytest.mark.parametrize('cache', ['disk', 'memory', 'none'])
@pytest.mark.parametrize('holdout', ['random', 'last'])
def test_what_was_held_out_stays_so(tmp_path, said, layout, cache, holdout):
  run = _Run(tmp_path, layout, cache=cache, holdout=holdout, seed=3)
  train, held_out = run.start()
  assert sorted(train + held_out) == list(range(10))
  assert run.start() == run.evaluate() == [train, held_out] and not said()
  # One of each is gone, and some are new: of a part that is cut, for training.
  part = run.root / 'train' if layout else run.root
  for value in (train[1], held_out[0]):
    for path in run.root.rglob(f'p{value:02}.png'):
      path.unlink()
  write_pairs(part, ['a', 'b', 'c', 'z'], start=50)
  now = [[50, 51, 52, *train[:1], *train[2:], 53], held_out[1:]]
  assert run.evaluate() == run.start() == now
  where = 'train/images' if layout else 'images'
  new = (
    f'4 images are new ({where}/a.png, {where}/b.png, {where}/c.png and 1 more)'
  )
  lines = ' '.join(said())
  assert new in lines and 'gone' in lines
  # What came later is no longer new, and what was gone comes back to its side.
  write_pairs(part, [f'p{train[1]:02}'], start=train[1])
  write_pairs(
    run.root / 'val' if layout else run.root,
    [f'p{held_out[0]:02}'],
    start=held_out[0],
  )
  before = len(said())
  again, held_again = run.start()
  assert sorted(again) == sorted([*train, 50, 51, 52, 53])
  assert held_again == held_out
  assert len(said()) == before


def test_a_line_names_all_kinds_of_changes(tmp_path, said):
  run = _Run(tmp_path)
  train, held_out = run.start()
  name = 'images/p{:02}.png'.format
  (run.root / name(held_out[0])).unlink()
  (run.root / name(held_out[0]).replace('images', 'masks')).unlink()
  write_pairs(run.root, ['new'], start=90)
  changed = f'p{train[0]:02}'
  write_pairs(run.root, [changed], start=91)
  other = run.root / name(train[1]).replace('images', 'masks')
  write(other, 3)
  config = run.config()
  record = identity.read(str(run.work))
  for split in ('train', 'val'):
    sources.make_source(config, split, record=record)
  assert said() == [
    f'warning: since {run.work} was trained, 1 image is new (images/new.png), '
    f'1 image is gone ({name(held_out[0])}), 1 image has changed '
    f'({name(train[0])}), 1 mask has changed ({name(train[1])}). New images '
    'are for training, what was held out stays so. 1 of those that are gone '
    'were held out'
  ]


@pytest.mark.parametrize('layout', ['', 'folders'])
def test_names_paths_and_dates_do_not_matter(tmp_path, said, layout):
  """A copy elsewhere is the same data: nothing is prepared anew."""
  run = _Run(tmp_path, layout)
  first = run.start()
  shutil.copytree(run.root, tmp_path / 'copy')
  kept = sorted((tmp_path / 'cache/prepared').glob('*/meta.json'))
  data = {'dir': str(tmp_path / 'copy')}
  assert run.evaluate(**data) == run.start(**data) == first
  os.utime(tmp_path / 'copy' / ('val' if layout else '') / 'images/p09.png')
  assert run.start(**data) == first
  assert sorted((tmp_path / 'cache/prepared').glob('*/meta.json')) == kept
  config = run.config(**data)
  names = prepare.prepare(config, 'train').stats.names
  assert all(name.startswith(data['dir']) for name in names)
  # Renamed: the order is another, the sides are not.
  for path in (tmp_path / 'copy').rglob('*.png'):
    path.rename(path.with_name(f'q{99 - int(path.stem[1:])}.png'))
  assert [sorted(split) for split in run.start(**data)] == first
  assert not said()


def test_a_changed_file_stays_on_its_side_in_another_format(tmp_path):
  run = _Run(tmp_path)
  train, held_out = run.start()
  for i, value in enumerate(held_out):
    stem = f'p{value:02}'
    (run.root / f'images/{stem}.png').unlink()
    (run.root / f'masks/{stem}.png').unlink()
    write(run.root / f'images/{stem}.bmp', 70 + i)
    write(run.root / f'masks/{stem}.bmp', 170 + i)
  assert run.start() == run.start() == [train, [70, 71]]


def test_a_copy_of_an_image_is_on_its_side(tmp_path, said):
  run = _Run(tmp_path)
  train, held_out = run.start()
  write_pairs(run.root, ['x'], start=held_out[0])
  write_pairs(run.root, ['y'], start=train[0])
  now = run.start()
  assert now == [[*train, train[0]], [*held_out, held_out[0]]]
  assert said() == [
    f'warning: since {run.work} was trained, 2 images are copies '
    '(images/x.png, images/y.png)'
  ]


def test_images_that_are_moved_to_the_other_side_are_left_out(tmp_path, said):
  run = _Run(tmp_path, 'folders')
  run.start()
  for kind in ('images', 'masks'):
    source, target = run.root / f'train/{kind}', run.root / f'val/{kind}'
    (source / 'p00.png').rename(target / 'p00.png')
    (target / 'p09.png').rename(source / 'p09.png')
  assert run.start() == [[1, 2, 3, 4, 5, 6], [7, 8]]
  name = str(run.work)
  assert any(
    f'1 of 7 images of train were held out by {name}: they are left out' in m
    for m in said()
  )
  assert any(
    f'1 of 3 images of val were trained on by {name}: they are left out' in m
    for m in said()
  )
  record = identity.read(name)
  images = {image.name for part in record.parts.values() for image in part}
  assert images == {
    f'{part}/images/p{i:02}.png'
    for part, numbers in (('train', range(7)), ('val', range(7, 10)))
    for i in numbers
  }


def test_a_layout_may_change(tmp_path):
  """From a part that is cut to folders with the parts in them, and back."""
  run = _Run(tmp_path)
  train, held_out = run.start()
  flat = tmp_path / 'flat'
  run.root.rename(flat)
  for part, chosen in (('train', train), ('val', held_out)):
    for value in chosen:
      for kind in ('images', 'masks'):
        target = run.root / part / kind
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(flat / kind / f'p{value:02}.png', target)
  assert run.start() == [train, held_out]
  assert run.start(dir=str(flat)) == [train, held_out]


@pytest.mark.parametrize('cache', ['disk', 'none'])
def test_folds_stay_folds(tmp_path, said, cache):
  run = _Run(tmp_path, num_folds=3, fold=1, cache=cache)
  train, held_out = run.start()
  fold = sources.make_source(run.config(), 'auto')
  names = [image.name for image in identity.images_of(fold)]
  assert names == [f'images/p{value:02}.png' for value in held_out]
  folds = [
    values(sources.make_source(run.config(), f'fold_{i}')) for i in (0, 2)
  ]
  (run.root / f'images/p{train[0]:02}.png').unlink()
  (run.root / f'masks/p{train[0]:02}.png').unlink()
  write_pairs(run.root, ['a', 'b'], start=60)
  assert run.start() == run.start() == [[60, 61, *train[1:]], held_out]
  assert '2 images are new' in said()[0]
  record = identity.read(str(run.work))
  for i, expected in zip((0, 2), folds):
    got = sources.make_source(run.config(), f'fold_{i}', record=record)
    assert values(got) == [v for v in expected if v != train[0]]


def test_pages_of_a_file_stay_together(tmp_path, said):
  """Also those that it gets later."""

  def stacks(number, start=0):
    for i in range(start, start + 5):
      for kind, first in (('images', 0), ('masks', 100)):
        path = tmp_path / f'data/{kind}/s{i}.tif'
        path.parent.mkdir(parents=True, exist_ok=True)
        pages = [
          np.full((2, 3), first + 10 * i + page, np.uint8)
          for page in range(number)
        ]
        tifffile.imwrite(path, np.stack(pages), photometric='minisblack')

  run = _Run(tmp_path, 'stacks', pages='images')
  stacks(3)
  train, held_out = run.start()
  assert len(train) == 12 and len({value // 10 for value in held_out}) == 1
  assert run.start() == [train, held_out]
  stacks(4)
  now = run.start()
  assert [len(part) for part in now] == [16, 4]
  assert {v // 10 for v in now[1]} == {v // 10 for v in held_out}
  assert (
    '5 images are new (' in said()[0]
    and '15 images have changed' in (said()[0])
  )


def test_other_data(tmp_path, said):
  run = _Run(tmp_path)
  run.start()
  other = {'dir': str(tmp_path / 'other')}
  write_pairs(tmp_path / 'other', [f'o{i}' for i in range(10)], start=80)
  assert message_of(run.start, **other) == (
    f'{tmp_path}/other has none of the images of {run.work}; give the data '
    'that have them, or start another --workdir'
  )
  train, held_out = run.evaluate(**other)
  assert sorted(train + held_out) == list(range(80, 90))
  assert said() == [
    f'warning: {tmp_path}/other has none of the images of {run.work}: it is '
    'taken as other data'
  ]


def test_nothing_of_the_held_out_part_is_left(tmp_path):
  run = _Run(tmp_path)
  _, held_out = run.start()
  for value in held_out:
    for path in run.root.rglob(f'p{value:02}.png'):
      path.unlink()
  assert message_of(run.start) == (
    f'none of the images of val that {run.work} has in split.json is in '
    f'{run.root}; give the data that have them, or start another --workdir'
  )


def test_the_split_that_is_trained_on_may_be_evaluated(tmp_path):
  run = _Run(tmp_path, 'folders')
  config = run.config()
  split = sources.make_source(config, 'train')
  sources.keep_record(str(run.work), [split, split], None)
  record = identity.read(str(run.work))
  again = sources.make_source(config, 'train', record=record)
  assert len(again) == len(split) == 7
  assert len(record.trained(identity.images_of(again))) == 7


def test_trained_images_are_found_in_other_splits(tmp_path):
  run = _Run(tmp_path, 'folders')
  run.start()
  write_pairs(run.root / 'test', ['same', 'new'], start=6)
  write_pairs(run.root / 'test', ['new'], start=60)
  record = identity.read(str(run.work))
  split = sources.make_source(run.config(), 'test', record=record)
  assert len(split) == 2
  trained = record.trained(identity.images_of(split))
  assert trained == ['test/images/same.png']


def test_drawn_sets_are_known_by_their_numbers(tmp_path):
  config = helpers.make_config(source='shapes', num_train=5, num_eval=3)
  splits = [sources.make_source(config, split) for split in ('train', 'auto')]
  sources.keep_record(str(tmp_path), splits, None)
  record = identity.read(str(tmp_path), continues=True)
  for split in splits:
    again = sources.make_source(config, split.split, record=record)
    assert len(again) == len(split)
  assert len(record.trained(identity.images_of(splits[0]))) == 5
  assert not record.trained(identity.images_of(splits[1]))


@pytest.mark.parametrize('layout', ['', 'folders'])
@pytest.mark.parametrize('folds', [0, 3])
def test_a_record_with_earlier_digests_keeps_them(
  tmp_path, said, layout, folds, monkeypatch
):
  """They were the SHA-1 of a file, and the record did not say so."""
  # Of one block, the two are the same.
  monkeypatch.setattr(digests, '_BLOCK', 16)
  run = _Run(tmp_path, layout, num_folds=folds)
  first = run.start()
  path = run.work / 'split.json'
  record = json.loads(path.read_text())
  assert record.pop('digest') == 'blocks'
  for images in record['parts'].values():
    for image in images:
      file = run.root / image[0]
      mask = pathlib.Path(str(file).replace('images', 'masks'))
      image[1:] = [
        hashlib.sha1(f.read_bytes()).hexdigest()[:32] for f in (file, mask)
      ]
  path.write_text(json.dumps(record))
  for file in run.root.rglob('*.png'):  # Known by content alone.
    file.rename(file.with_name(f'q{file.name}'))
  assert run.evaluate() == run.start() == run.start() == first and not said()
  kept = json.loads(path.read_text())
  assert kept['digest'] == 'sha1'
  contents = lambda of: {im[1] for ims in of['parts'].values() for im in ims}
  assert contents(kept) == contents(record)


def test_files_are_read_once(tmp_path, monkeypatch):
  """By path, size and time; also those that a build has read."""
  run = _Run(tmp_path)
  run.start()
  read = []
  of_file = digests.of_file
  monkeypatch.setattr(
    digests,
    'of_file',
    lambda path, kind: read.append(path) or of_file(path, kind),
  )
  run.start()
  run.evaluate()
  assert not read
  os.utime(run.root / 'images/p03.png', ns=(1, 1))
  run.evaluate()
  run.evaluate()
  assert read == [str(run.root / 'images/p03.png')]
  # A damaged index, or none, costs a reading.
  index = next((tmp_path / 'cache/digests').iterdir())
  index.write_text('{')
  run.evaluate()
  assert len(read) == 21


def test_a_file_that_cannot_be_read_keeps_its_side(tmp_path):
  """Its reader reports it. It is tried anew at each start."""
  run = _Run(tmp_path)
  first = run.start()
  path = run.root / 'images/p04.png'
  content = path.read_bytes()
  path.unlink()
  path.symlink_to('later.bin')
  record = identity.read(str(run.work))
  sides = [
    sources.make_source(run.config(), split, record=record)
    for split in ('train', 'val')
  ]
  assert [len(side) for side in sides] == [len(side) for side in first]
  (path.parent / 'later.bin').write_bytes(content)
  assert run.start() == first


def test_records_of_no_use(tmp_path):
  assert identity.read(str(tmp_path)) is None
  path = tmp_path / 'split.json'
  for content in ('{', '[]', '{"held_out": "val", "parts": {"train": [1]}}'):
    path.write_text(content)
    message = message_of(identity.read, str(tmp_path))
    assert message.startswith(f'{path} cannot be read (')
    assert message.endswith(
      '; restore it, or remove it to go on without a record of the images'
    )


def test_a_run_without_a_record_is_said(tmp_path, said):
  run = _Run(tmp_path)
  saved = run.config(dir='elsewhere')
  assert identity.continued(str(run.work), run.config(), saved) is None
  assert saved.data.dir == 'elsewhere'  # Which is refused.
  assert said() == [
    f'warning: {run.work} has no split.json, as runs of older versions: what '
    'is held out is chosen anew, right only if the files are those of then'
  ]
  run.start()
  assert identity.continued(str(run.work), run.config(), saved) is not None
  assert saved.data.dir == str(run.root)
  assert len(said()) == 1
