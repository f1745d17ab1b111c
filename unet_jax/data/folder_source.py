"""Examples from folders of images and masks, paired by name."""

import concurrent.futures
import copy
import os
import pathlib

import ml_collections
import numpy as np

from unet_jax.config import fields
from unet_jax.data import (
  digests,
  examples,
  file_pairs,
  folders,
  identity,
  lists,
  pairing,
  stored,
)
from unet_jax.runtime import errors

Problems = list[examples.Problem] | None


class FolderSource:
  """Images and masks in folders; configs/folder.py shows the layouts.

  Where `held_out`, it has all of the pairs that `sources.make_source` cuts.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    split: str,
    problems: Problems = None,
  ):
    self._data = config.data
    root = pathlib.Path(config.data.dir).expanduser()
    if not root.is_dir():
      raise errors.UserError(
        f'--config.data.dir={config.data.dir}: no such folder'
      )
    self.split, self.held_out, self._pairs = _find_pairs(
      str(root), split, config, problems
    )
    self._root, self._digests = str(root), digests.Digests(config, root)
    self._images: dict[str, list[identity.Image]] = {}  # By kind.
    # Of each pair, its pages; of each example, its pair and its page.
    self._counts = [1] * len(self._pairs)
    if self._data.pages == 'images':
      self._counts = _count_pages(self._pairs, problems)
    self._files = np.repeat(np.arange(len(self._pairs)), self._counts)
    ends = np.cumsum(self._counts)
    self._pages = (
      np.arange(len(self._files)) - (ends - self._counts)[self._files]
    )

  @property
  def groups(self) -> np.ndarray:
    """Numbers of what data.holdout keeps together, see `examples.Source`."""
    return self.folders if self._data.holdout == 'folder' else self._files

  @property
  def folders(self) -> np.ndarray:
    """Of each example the number of its folder, such as a patient's.

    It is the first one that not all images are in, such as that of an archive.
    """
    parts = [self._folders(image) for image, *_ in self._pairs]
    first = len(os.path.commonprefix(parts))
    names = ['/'.join(part[first : first + 1]) for part in parts]
    return np.unique(names, return_inverse=True)[1][self._files]

  def _folders(self, path: str) -> list[str]:
    *parts, _ = os.path.relpath(path, self._root).split(os.sep)
    return [part for part in parts if folders.meaning(part) == ('', '')]

  @property
  def fingerprint(self) -> list:
    numbers = np.unique(self._files).tolist()
    paths = [path for i in numbers for path in self._pairs[i]]
    found = ['folder', [self._digests.stamp(path) for path in paths]]
    if self._data.pages == 'images':
      found.append([self._counts[i] for i in numbers])
    return found

  def select(self, rows: np.ndarray) -> 'FolderSource':
    """Returns the source of some of its examples, ascending int [K]."""
    part = copy.copy(self)
    part._files, part._pages = self._files[rows], self._pages[rows]
    part._images = {
      kind: [images[i] for i in rows] for kind, images in self._images.items()
    }
    return part

  def name(self, index: int) -> str:
    """Returns the name of an example, for people."""
    return self._pairs[self._files[index]][0] + self._suffix(index)

  def _suffix(self, index: int) -> str:
    # Numbered from 0, as in the libraries that write pages.
    is_one = self._counts[self._files[index]] == 1
    return '' if is_one else f'[{self._pages[index]}]'

  def images(
    self, read: bool, kind: str = digests.KIND
  ) -> list[identity.Image] | None:
    if kind not in self._images:
      numbers = np.unique(self._files).tolist()
      paths = [path for i in numbers for path in self._pairs[i]]
      found = self._digests.of(paths, read, kind)
      if found is None:
        return None
      images = [self._image(i, found) for i in range(len(self))]
      self._images[kind] = images
    return self._images[kind]

  def _image(self, index: int, found: dict[str, str]) -> identity.Image:
    image, *others = self._pairs[self._files[index]]
    suffix = self._suffix(index)
    # The page stands before the ending, by which names are compared.
    name, ending = os.path.splitext(image.removeprefix(self._root))
    return identity.Image(
      f'{name}{suffix}{ending}'.lstrip(os.sep),
      found[image] + suffix,
      '+'.join(found[path] + suffix for path in others),
    )

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> examples.Example:
    return examples.decode_example(self.read(index), self._data)

  def read(self, index: int) -> examples.Example:
    number, page = self._files[index], int(self._pages[index])
    image_path, mask_path, *instance_path = self._pairs[number]
    example = {
      'image': self._read(image_path),
      'mask': self._read(mask_path),
      'name': self.name(index),
      'mask_name': mask_path + self._suffix(index),
      'page': page,
    }
    for path in instance_path:
      example['instances'] = self._read(path)
    return example

  def _read(self, path: str) -> bytes:
    self._digests.stamp(path)
    content = _read_bytes(path)
    self._digests.note(path, content)
    return content


def _read_bytes(path: str) -> bytes:
  try:
    with open(path, 'rb') as f:
      return f.read()
  except OSError as e:
    raise errors.DecodeError(
      f'{path} cannot be read ({e.strerror}); fix it, or skip such files with '
      '--config.data.on_error=skip'
    ) from e


def _count_pages(pairs: list[file_pairs.Pair], problems: Problems) -> list[int]:
  """Returns how many images each pair holds; 0 where its files differ."""

  def count(path: str) -> int:
    try:
      return stored.count_pages(path)
    except errors.DecodeError:  # Decoding it says so, or skips it.
      return 1

  with concurrent.futures.ThreadPoolExecutor() as pool:
    counts = list(pool.map(lambda pair: [count(path) for path in pair], pairs))
  odd = [i for i, found in enumerate(counts) if len(set(found)) > 1]
  if odd:
    holds = zip(pairs[odd[0]], counts[odd[0]])
    text = ', '.join(f'{path} holds {number}' for path, number in holds)
    text += (
      ' image(s): with data.pages=images each page of an image needs a page of '
      f'its mask; {len(odd)} pair(s) like this. Store as many pages in both'
    )
    names = tuple(pairs[i][0] for i in odd)
    examples.report(examples.Problem('pages', text, names), problems)
  return [0 if len(set(found)) > 1 else found[0] for found in counts]


def _find_pairs(
  root: str,
  split: str,
  config: ml_collections.ConfigDict,
  problems: Problems,
) -> tuple[str, bool, list[file_pairs.Pair]]:
  """Returns a split's name, whether it is held out, and its pairs in order."""
  data, split = config.data, folders.split_name(split)
  patterns = _patterns(data)
  tree = folders.Tree(root)
  parts = {s: tree.kinds(s, patterns) for s in folders.SPLITS}
  usable = {s: kinds for s, kinds in parts.items() if kinds}
  whole = tree.kinds('', patterns)
  if whole and usable and 'train' not in usable:
    usable = {'train': whole, **usable}  # images/ and masks/ beside test/.
  _check_words(usable)
  listed = lists.find(root)
  if usable:
    tree.passed_over += listed.values()
    listed = {}
  tree.passed_over = [
    folder
    for folder in tree.passed_over
    if not any(path.startswith(folder + os.sep) for path in listed.values())
  ]
  if not usable and not whole:
    raise errors.UserError(_nothing(tree))
  splits = list(usable or listed or ['train'])
  if split == 'auto':
    split = next((s for s in ('val', 'test') if s in splits), 'val')
  # Folds take the place of `val`, see `sources.make_source`.
  held_out = not ({'val', 'test'} & set(splits) or data.num_folds)
  if held_out and data.val_fraction:
    splits = ['train', 'val']
  elif held_out and split == 'val':
    raise errors.UserError(
      f'--config.data.val_fraction=0 holds nothing of {root} out to evaluate '
      'on: set a fraction, add val/, or measure the images that are trained on '
      'with --config.data.eval_split=train'
    )
  if split not in splits:
    raise errors.UserError(
      f'{root} has no split {split!r}{fields.nearest(split, splits)}; '
      f'it has {", ".join(splits)}'
    )
  held_out = held_out and data.val_fraction > 0
  part = 'train' if held_out else split
  kinds = usable.get(part) or whole
  assert kinds is not None, 'one of them was found'
  _report_folders(tree, list(usable.values()) or [kinds], problems)
  pairs = file_pairs.pair(kinds, patterns, listed.get(part), problems)
  return split, held_out, pairs


def _check_words(splits: dict[str, file_pairs.Kinds]) -> None:
  """Refuses masks that are called differently in two splits.

  In retinal sets, masks/ beside mask/ are vessels and the field of view.
  """
  found = {
    folders.word_of(k['masks']): k['masks'].path for k in splits.values()
  }
  if len(found) > 1:
    raise errors.UserError(
      f'{" and ".join(found.values())} are called differently: if they mean '
      'the same, give them one name, otherwise move one away'
    )


def _patterns(data: ml_collections.ConfigDict) -> pairing.Patterns | None:
  """Returns the patterns of images and masks; None where none is set."""
  if not (data.image_pattern or data.mask_pattern):
    return None
  image = pairing.normal_form(data.image_pattern or pairing.STEM)
  return image, pairing.normal_form(data.mask_pattern or pairing.STEM)


def _nothing(tree: folders.Tree) -> str:
  """Returns why a folder has no pairs."""
  names = sorted(os.listdir(tree.root))
  contents = f'it has {errors.some(names, 6)}' if names else 'it is empty'
  if folders.meaning(os.path.basename(tree.root))[1]:
    contents += '; give the folder above it?'
  elif loose := tree.loose():
    pattern = pairing.likely_mask_pattern(loose)
    contents += (
      '; to tell masks from images beside them: '
      f"--config.data.mask_pattern='{pattern}'"
    )
  else:
    inside = [n for n in names if os.path.isdir(os.path.join(tree.root, n))]
    known = sorted(folders.meaning(name) for name in inside)
    for kind, other in (('images', 'masks'), ('masks', 'images')):
      if known == [('', ''), ('', other)]:
        contents += f'; rename the folder of the {kind} to {kind}'
  return (
    f'--config.data.dir={tree.root}: has neither images/ and masks/, nor '
    f'train/ with images/ and masks/ in it ({contents})'
  )


def _report_folders(
  tree: folders.Tree,
  used: list[file_pairs.Kinds],
  problems: Problems,
) -> None:
  """Names the folders that are passed over."""
  kinds = [folder for split in used for folder in split.values()]
  unused = tree.passed_over + tree.unused(kinds)
  if unused:
    names = [os.path.relpath(path, tree.root) for path in sorted(unused)]
    text = (
      f'{tree.root}: not used, by their names no images and masks of a split: '
      + errors.some(names)
    )
    problem = examples.Problem('passed over', text, tuple(unused), 'note')
    examples.report(problem, problems)
