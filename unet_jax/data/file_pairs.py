"""The pairs of files of one split, and what is said of the rest."""

import os

from unet_jax.data import decode, examples, folders, lists, pairing
from unet_jax.runtime import errors

# Paths of an image, its mask and, where there is one, its instance mask.
Pair = tuple[str, ...]
Problems = list[examples.Problem] | None
Kinds = dict[str, folders.Folder]
# Endings of NIfTI, DICOM, MetaImage and NRRD.
_VOLUMES = {'.gz', '.nii', '.dcm', '.mha', '.nrrd'}


def pair(
  kinds: Kinds,
  patterns: pairing.Patterns | None,
  list_path: str | None,
  problems: Problems,
) -> list[Pair]:
  """Returns the pairs of a split: of all images, or of those that are listed.

  Args:
    kinds: its images, masks and, where there are, instance masks.
    patterns: of images and masks, if given.
    list_path: of the list that names the images; others are not looked at.
    problems: see `sources.make_source`.

  Raises:
    UserError: there is no pair.
  """
  for folder in kinds.values():
    _check_has_files(folder)
  _report_others(kinds, problems)
  files = kinds['images'].files
  images = list(files)
  if list_path:
    images = lists.select(list_path, images, problems)
  elif patterns:
    images = [key for key in images if pairing.core(key, patterns[0])]
    if not images:
      raise errors.UserError(
        f'--config.data.image_pattern={patterns[0]}: no file of '
        f'{kinds["images"].path} is named like this, {next(iter(files))} is not'
      )
  partners = {}
  for kind in list(kinds)[1:]:
    found = pairing.pair(
      images,
      list(kinds[kind].files),
      patterns if kind == 'masks' else None,
      are_listed=bool(list_path),
    )
    _report_masks_alone(kinds, kind, images, found, bool(list_path), problems)
    _report_images_alone(kinds, kind, images, found, problems)
    if kind == 'masks':
      _report_way(kinds, found, patterns, problems)
    partners[kind] = found.masks
    images = [key for key in images if key in found.masks]
  if not list_path:
    images.sort(key=examples.natural_key)
  return [
    (
      _only(files[key], problems),
      *(_only(kinds[k].files[of[key]], problems) for k, of in partners.items()),
    )
    for key in images
  ]


def _check_has_files(folder: folders.Folder) -> None:
  """Raises UserError where there are none that are read."""
  if folder.files:
    return
  counts, ways = errors.some(_counts(folder.others), 6), ''
  if _VOLUMES & folder.others.keys():
    ways = ', volumes to TIFFs of their slices, with data.pages=images'
  raise errors.UserError(
    f'{folder.path}: has no image files ({", ".join(decode.EXTENSIONS)})'
    + (f' but {counts}; convert them{ways}' if counts else '')
  )


def _only(paths: list[str], problems: Problems) -> str:
  """Returns the path of a key, of which there should be one."""
  if len(paths) > 1:
    text = (
      f'{paths[0]} and {paths[1]} have the same stem; pairs are made by '
      'stem, rename or remove one'
    )
    problem = examples.Problem('same stem', text, tuple(paths))
    examples.report(problem, problems)
  return paths[-1]


def _counts(others: dict[str, list[str]]) -> list[str]:
  """Returns `3 .heic` and so on, the most frequent ending first."""
  ranked = sorted(others.items(), key=lambda item: -len(item[1]))
  return [f'{len(paths)} {ending}' for ending, paths in ranked]


def _report_others(kinds: Kinds, problems: Problems) -> None:
  """Counts the files whose endings are not read."""
  others: dict[str, list[str]] = {}
  for folder in kinds.values():
    for ending, paths in folder.others.items():
      others.setdefault(ending, []).extend(paths)
  if not others:
    return
  firsts = [os.path.basename(paths[0]) for paths in others.values()]
  names = tuple(path for paths in others.values() for path in paths)
  text = (
    f'{kinds["images"].path} and {os.path.basename(kinds["masks"].path)}/: '
    f'{len(names)} file(s) passed over, {errors.some(_counts(others), 6)}, '
    f'such as {errors.some(firsts)}; '
    f'those that are images are read as {", ".join(decode.EXTENSIONS)}'
  )
  problem = examples.Problem('passed over', text, names, 'note')
  examples.report(problem, problems)


def _report_masks_alone(
  kinds: Kinds,
  kind: str,
  images: list[str],
  found: pairing.Pairing,
  are_listed: bool,
  problems: Problems,
) -> None:
  """Masks without images are a mistake, unless the images are chosen."""
  masks, used = kinds[kind].files, set(found.masks.values())
  alone = [
    key
    for key in masks
    if key not in used and pairing.core(key, found.patterns[1]) is not None
  ]
  if are_listed or not alone:
    return
  rest = [key for key in images if key not in found.masks]
  names = tuple(masks[key][0] for key in alone)
  text = (
    f'{names[0]} has no image: {kinds["images"].path} has no file of the name '
    f'{_expected(alone[0], found.patterns[::-1])!r}'
    f'{pairing.nearest(alone[0], rest)}; {len(alone)} file(s) like this. '
  )
  text += _advice(images, list(masks), kind, found) or (
    'Add the image, or rename or remove the file'
    + '; join several masks of an image into one'
    * (len(masks) >= 2 * len(images))
  )
  _report_unpaired(text, names, found, problems)


def _report_images_alone(
  kinds: Kinds,
  kind: str,
  images: list[str],
  found: pairing.Pairing,
  problems: Problems,
) -> None:
  """Images without masks are left out; the instances, if any, are needed."""
  alone = [key for key in images if key not in found.masks]
  if not alone:
    return
  names = tuple(kinds['images'].files[key][0] for key in alone)
  if kind == 'masks' and found.masks:
    shown = errors.some([os.path.basename(n) for n in names])
    text = (
      f'{len(alone)} of {len(images)} images of {kinds["images"].path} have no '
      f'mask and are left out: {shown}'
    )
    problem = examples.Problem('unpaired', text, names, 'warning')
    examples.report(problem, problems)
    return
  rest = set(kinds[kind].files) - set(found.masks.values())
  text = (
    f'{names[0]} has no {kind.removesuffix("s")}: {kinds[kind].path} has no '
    f'file of the name {_expected(alone[0], found.patterns)!r}'
    f'{pairing.nearest(alone[0], sorted(rest))}; {len(alone)} file(s) like '
    'this. '
  )
  text += _advice(images, list(kinds[kind].files), kind, found) or (
    f'Add the {kind.removesuffix("s")}, or rename or remove the file'
  )
  _report_unpaired(text, names, found, problems)


def _report_unpaired(
  text: str,
  names: tuple[str, ...],
  found: pairing.Pairing,
  problems: Problems,
) -> None:
  if not found.masks:  # Nothing is left to go on with.
    raise errors.UserError(text)
  examples.report(examples.Problem('unpaired', text, names), problems)


def _expected(key: str, patterns: pairing.Patterns) -> str:
  """Returns the name of a file's partner, by the patterns of the two."""
  folder, slash, stem = (pairing.core(key, patterns[0]) or key).rpartition('/')
  return folder + slash + patterns[1].replace(pairing.STEM, stem)


def _advice(
  images: list[str], masks: list[str], kind: str, found: pairing.Pairing
) -> str:
  """Returns the flags that pair more files; '' if none do."""
  plain = (pairing.STEM, pairing.STEM)
  if kind != 'masks' or found.patterns != plain:
    return ''
  likely = pairing.likely_patterns(images, masks)
  if likely in (None, plain):
    return ''
  return f'If names differ by a rule, give it: {_flags(likely)}'


def _flags(patterns: pairing.Patterns) -> str:
  return ' '.join(
    f"--config.data.{field}='{pattern}'"
    for field, pattern in zip(('image_pattern', 'mask_pattern'), patterns)
    if pattern != pairing.STEM
  )


def _report_way(
  kinds: Kinds,
  found: pairing.Pairing,
  patterns: pairing.Patterns | None,
  problems: Problems,
) -> None:
  """Says what was paired where it was found, not asked for."""
  images, masks = kinds['images'], kinds['masks']
  places = [os.path.basename(folder.path) for folder in (images, masks)]
  is_usual = [place.casefold() for place in places] == ['images', 'masks']
  is_plain = found.patterns == (pairing.STEM, pairing.STEM)
  is_stated = found.is_exact and (patterns or is_plain)
  if not found.masks or (is_usual and is_stated):
    return
  image, mask = next(iter(found.masks.items()))
  text = (
    f'paired {len(found.masks)} images of {images.path} with masks of '
    f'{masks.path}, such as {os.path.basename(images.files[image][0])} with '
    f'{os.path.basename(masks.files[mask][0])}'
  )
  flags = '' if patterns else _flags(found.patterns)
  text += f' (as {flags})' if flags else ''
  examples.report(examples.Problem('paired', text, (), 'note'), problems)
