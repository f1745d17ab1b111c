"""Oxford-IIIT Pet (Parkhi et al., "Cats and Dogs", CVPR 2012) by TFDS's code.

TFDS's builder needs TensorFlow in two places: to re-encode a dozen corrupt
files, and to extract the archives. Here Pillow and tarfile do that, and a
local folder can replace the download; the rest is TFDS's own code:
https://www.tensorflow.org/datasets/catalog/oxford_iiit_pet
"""

import collections
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import requests
import tensorflow_datasets as tfds
import tqdm
from PIL import Image, JpegImagePlugin
from tensorflow_datasets.core.download import download_manager
from tensorflow_datasets.core.utils import py_utils
from tensorflow_datasets.datasets.oxford_iiit_pet import (
  oxford_iiit_pet_dataset_builder as upstream,
)

from unet_jax.runtime import errors, locks

_log = logging.getLogger(__name__)

_LISTS = ('annotations/trainval.txt', 'annotations/test.txt')
# Each name in a list has one file in each of these folders.
_FILES = {'images': '.jpg', 'annotations/trimaps': '.png'}
_XMLS = 'annotations/xmls'
_LAYOUT = (
  'images/NAME.jpg, annotations/trimaps/NAME.png, annotations/trainval.txt, '
  'annotations/test.txt'
)
# A copy, since upstream's own list is emptied while its code runs.
_CORRUPT_SAMPLES = frozenset(upstream._CORRUPT_SAMPLES)


def prepare(data_dir: str, cache_dir: str) -> tfds.core.DatasetBuilder:
  """Returns a builder whose two splits are ready for `as_data_source`.

  Args:
    data_dir: '' to download, or a folder in the layout of the two archives.
    cache_dir: keeps downloads and their records under `tfds/`, records of local
      files under `tfds_local/` by a fingerprint of the files.

  Raises:
    UserError: `data_dir` is missing, not in that layout, or its lists and its
      files do not fit; no network; `cache_dir` cannot be written.
  """
  try:
    folder = _check_layout(data_dir) if data_dir else None
    where = f'tfds_local/{_fingerprint(folder)}' if folder else 'tfds'
    root = pathlib.Path(cache_dir).expanduser() / where
    builder = _make_builder(root)
    if not builder.info.initialized:
      if folder:
        _check_lists(folder)
      root.mkdir(parents=True, exist_ok=True)
      what = 'preparing Oxford-IIIT Pet'
      with locks.lock(root / f'{Builder.name}.lock', what):
        # Another run may have prepared it while this one waited.
        builder = _make_builder(root)
        if not builder.info.initialized:
          _prepare(builder, folder)
  except OSError as e:
    raise errors.UserError(
      f'cannot prepare Oxford-IIIT Pet ({e}); fix this, or replace the cache '
      f'folder {cache_dir} with --config.data.cache_dir=DIR'
    ) from e
  return builder


def _make_builder(root: pathlib.Path) -> 'Builder':
  """A builder; its info is initialized if the records were there by then."""
  return Builder(data_dir=root, file_format='array_record')


def _prepare(builder: 'Builder', folder: pathlib.Path | None) -> None:
  """Builds the records; the lock is held."""
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  # Left by a run that was killed, or a set of which a part was deleted.
  _remove_leftovers(builder)
  shutil.rmtree(builder.data_dir, ignore_errors=True)
  try:
    # TFDS writes beside the target and renames, so that it is whole or absent.
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        manual_dir=folder, try_download_gcs=False
      )
    )
  finally:
    _remove_leftovers(builder)


def _remove_leftovers(builder: 'Builder') -> None:
  """Removes half-written records and downloads, and the extracted archives."""
  target = pathlib.Path(builder.data_dir)
  downloads = _download_dir(builder) / builder.name
  for path in (
    *target.parent.glob(f'incomplete.*_{target.name}'),
    *downloads.glob('*.tmp.*'),
    downloads / 'extracted',
  ):
    shutil.rmtree(path, ignore_errors=True)


def _download_dir(builder: 'Builder') -> pathlib.Path:
  return pathlib.Path(builder.data_dir_root) / 'downloads'


class Builder(upstream.Builder, skip_registration=True):  # type: ignore[call-arg]
  """TFDS's builder of Oxford-IIIT Pet, without TensorFlow.

  With `DownloadConfig(manual_dir=DIR)` it reads DIR, in the layout of the
  archives, instead of downloading.
  """

  name = upstream.Builder.name
  # TFDS finds checksums.tsv and the description beside a builder's code.
  code_path = upstream.Builder.code_path
  pkg_dir_path = upstream.Builder.code_path.parent

  def _make_download_manager(
    self, download_dir: str, download_config: tfds.download.DownloadConfig
  ) -> '_LocalArchives | _Downloads':
    del download_dir
    if download_config.manual_dir:
      return _LocalArchives(download_config.manual_dir)
    return _Downloads(
      download_dir=_download_dir(self),
      manual_dir=_download_dir(self) / 'manual',
      url_infos=self.url_infos,
      force_checksums_validation=True,
      dataset_name=self.name,
    )

  def _generate_examples(self, *args: Any, **kwargs: Any) -> Iterator[tuple]:
    # With its list of corrupt samples empty, upstream yields files as they are.
    with py_utils.temporary_assignment(upstream, '_CORRUPT_SAMPLES', ()):
      for key, record in super()._generate_examples(*args, **kwargs):
        if key.removesuffix('.jpg') in _CORRUPT_SAMPLES:
          record['image'] = io.BytesIO(_reencode(record['image'].read()))
        yield key, record

  # These log where TFDS prints.
  def _log_download_bytes(self) -> None:
    _log.info('preparing Oxford-IIIT Pet in %s', self.data_dir)

  def _log_download_done(self) -> None:
    _log.info('prepared Oxford-IIIT Pet')


def _reencode(data: bytes) -> bytes:
  """Returns an image file as a JPEG, as upstream does with TensorFlow.

  Of a PNG, a BMP or a JPEG with full chroma it makes the same bytes as
  `tf.io.encode_jpeg` of `tf.image.decode_image` without alpha. Of a JPEG with
  halved chroma the pixels differ by 0.3 of 255 levels on average and 20 at
  most: TensorFlow interpolates the chroma, Pillow repeats it when it is fast.
  """
  try:
    image: Image.Image = Image.open(io.BytesIO(data))
    if isinstance(image, JpegImagePlugin.JpegImageFile):
      # (scale, draft): TensorFlow uses libjpeg's fast inverse transform, and
      # Pillow does only with this flag. Without it every pixel is a bit off.
      image.decoderconfig = (1, 1)
    if image.mode not in ('L', 'RGB'):
      # Drops alpha, unblended; a direct conversion warns of a palette's.
      image = image.convert('RGBA').convert('RGB')
    pixels = np.asarray(image)
  except (OSError, SyntaxError, ValueError):
    return data  # Decoding the record will report it, like any broken file.
  # From the pixels, since an opened image would keep its comment. The options
  # are the defaults of tf.io.encode_jpeg.
  jpeg = io.BytesIO()
  Image.fromarray(pixels).save(
    jpeg, 'JPEG', quality=95, subsampling='4:2:0', dpi=(300, 300)
  )
  return jpeg.getvalue()


class _Downloads(tfds.download.DownloadManager):
  """TFDS's verified downloads, extracted by tarfile."""

  def _download(self, resource: Any) -> Any:
    # Fails at once without a network, where TFDS would try again for minutes.
    with requests.get(resource.url, stream=True, timeout=10) as response:
      response.raise_for_status()
    return super()._download(resource)

  def download_and_extract(self, urls: dict[str, str]) -> dict[str, str]:
    """Returns {name: folder} of the archives {name: URL}.

    Raises:
      UserError: no network, an error of the server, or a wrong checksum.
    """
    try:
      archives = self.download(urls)
    except (
      requests.RequestException,
      tfds.download.DownloadError,
      download_manager.NonMatchingChecksumError,
    ) as e:
      response = getattr(e, 'response', None)
      status = '' if response is None else f' {response.status_code}'
      raise errors.UserError(
        f'cannot download {" and ".join(urls.values())} '
        f'({type(e).__name__}{status}); try again, or name a local copy in '
        f'the layout of the archives ({_LAYOUT}) with --config.data.dir=DIR'
      ) from e
    folder = str(self.download_dir / self._dataset_name / 'extracted')
    for name, archive in archives.items():
      with tarfile.open(archive) as files:
        # None before Python 3.11.4; the checksums have been verified.
        files.extraction_filter = getattr(tarfile, 'data_filter', None)
        bar = tqdm.tqdm(
          files,
          f'Extracting {name}',
          unit=' files',
          disable=not sys.stderr.isatty(),
        )
        for file in bar:
          files.extract(file, folder)
    return dict.fromkeys(urls, folder)


class _LocalArchives:
  """A local folder in place of a download manager."""

  downloaded_size = 0

  def __init__(self, folder: pathlib.Path):
    self._folder = str(folder)

  def download_and_extract(self, urls: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys(urls, self._folder)


def _check_layout(data_dir: str) -> pathlib.Path:
  """Returns the resolved folder; raises UserError if it lacks a part."""
  folder = pathlib.Path(data_dir).expanduser().resolve()
  if not folder.is_dir():
    raise errors.UserError(
      f'--config.data.dir={data_dir}: no such folder; give one in the layout '
      f'of the Oxford-IIIT Pet archives ({_LAYOUT})'
    )
  missing = [f'{name}/' for name in _FILES if not (folder / name).is_dir()]
  missing += [name for name in _LISTS if not (folder / name).is_file()]
  if missing:
    raise errors.UserError(
      f'--config.data.dir={data_dir}: has no {", ".join(missing)}; extract '
      'images.tar.gz and annotations.tar.gz of '
      f'{upstream._BASE_URL} there, or arrange the files alike ({_LAYOUT})'
    )
  return folder


def _check_lists(folder: pathlib.Path) -> None:
  """Raises UserError where the lists and the files disagree."""
  available = {sub: set(os.listdir(folder / sub)) for sub in _FILES}
  for path in (folder / name for name in _LISTS):
    names = _read_names(path)
    for sub, suffix in _FILES.items():
      missing = [n + suffix for n in names if n + suffix not in available[sub]]
      if missing:
        raise errors.UserError(
          f'{path} names {missing[0]}, which is not in {folder / sub}; '
          f'{len(missing)} of its {len(names)} are missing like this, add '
          'them or remove them from the list'
        )
    for name in names:
      _check_head_box(folder / _XMLS / f'{name}.xml')


def _read_names(path: pathlib.Path) -> list[str]:
  """Returns the names in a list; raises UserError for lines that are wrong."""
  names = []
  last_class = len(upstream._LABEL_CLASSES)
  for i, line in enumerate(path.read_text(errors='replace').splitlines(), 1):
    match = re.fullmatch(r'(\S+) (\d+) [12] \S+', line.strip())
    if not match or not 1 <= int(match[2]) <= last_class:
      raise errors.UserError(
        f'{path}:{i}: {line!r} is not "NAME CLASS SPECIES BREED" with CLASS '
        f'in 1..{last_class} and SPECIES 1 or 2; fix or remove the line'
      )
    names.append(match[1])
  if not names:
    raise errors.UserError(
      f'{path}: is empty; list the images of this split, one line '
      '"NAME CLASS SPECIES BREED" each'
    )
  twice = [name for name, n in collections.Counter(names).items() if n > 1]
  if twice:
    raise errors.UserError(f'{path}: names {twice[0]} twice; remove one line')
  return names


def _check_head_box(path: pathlib.Path) -> None:
  """Raises UserError if upstream cannot read a head box that is there."""
  try:
    box = upstream._get_head_bbox(path)
    tfds.features.BBoxFeature().encode_example(box)
  except FileNotFoundError:
    pass  # Optional; upstream takes an empty box.
  except (
    AttributeError,
    ElementTree.ParseError,
    ValueError,
    ZeroDivisionError,
  ) as e:
    raise errors.UserError(
      f'{path}: holds no head box that can be read ({e}); fix or remove it'
    ) from e


def _fingerprint(folder: pathlib.Path) -> str:
  """Returns a name that changes with the folder's path and with each file."""
  stats = [(name, (folder / name).stat()) for name in _LISTS]
  for sub in (*_FILES, _XMLS):
    if (folder / sub).is_dir():
      with os.scandir(folder / sub) as entries:
        stats += [(f'{sub}/{e.name}', e.stat()) for e in entries if e.is_file()]
  stamps = sorted((name, s.st_size, s.st_mtime_ns) for name, s in stats)
  text = json.dumps([os.fsdecode(folder), stamps])
  return hashlib.sha256(text.encode()).hexdigest()[:20]
