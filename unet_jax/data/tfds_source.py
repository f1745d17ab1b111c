"""Examples of TensorFlow Datasets (TFDS), read without TensorFlow."""

import os
from typing import Any

import ml_collections

from unet_jax.config import fields
from unet_jax.data import examples
from unet_jax.runtime import errors


class TfdsSource:
  """A split of a TFDS data set; its records cannot be unpaired."""

  held_out = False
  groups = None

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    split: str,
    problems: list[examples.Problem] | None = None,
  ):
    del problems
    import tensorflow_datasets as tfds

    data = config.data
    self._data = data
    if data.name == 'oxford_iiit_pet':
      from unet_jax.data import oxford_iiit_pet

      builder = oxford_iiit_pet.prepare(data.dir, fields.cache_dir(config))
    else:
      builder = _prepare_tfds(config)
    if split == 'auto':
      known, splits = ('val', 'validation', 'test'), builder.info.splits
      split = next((name for name in known if name in splits), '')
      if not split:
        raise errors.UserError(
          f'data.eval_split=auto finds none of {", ".join(known)} among the '
          f'splits {", ".join(splits)}; name one with --config.data.eval_split'
        )
    self.split = split
    features = builder.info.features
    keys = [data.image_key, data.mask_key]
    keys += [data.instance_key] * bool(data.instance_key)
    for key in keys:
      if key not in features:
        raise errors.UserError(
          f'TFDS set {data.name} has no feature {key!r}'
          f'{fields.nearest(key, features)}; set --config.data.image_key, '
          f'data.mask_key (and instance_key) to some of '
          f'{", ".join(sorted(features))}'
        )
    skip = tfds.decode.SkipDecoding()
    try:
      self._records = builder.as_data_source(
        split, decoders=dict.fromkeys(keys, skip)
      )
    except (KeyError, ValueError) as e:
      raise errors.UserError(
        f'TFDS set {data.name} has no split {split!r}; it has '
        f'{", ".join(builder.info.splits)}'
      ) from e
    data_path = str(builder.data_path)
    self.fingerprint = ['tfds', builder.info.full_name, split, data_path]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> examples.Example:
    return examples.decode_example(self.read(index), self._data)

  def read(self, index: int) -> examples.Example:
    record, data = self._records[index], self._data
    name = record.get('file_name', f'{data.name}/{self.split}[{index}]')
    name = name.decode() if isinstance(name, bytes) else str(name)
    example = {
      'image': record[data.image_key],
      'mask': record[data.mask_key],
      'name': name,
      'mask_name': f'the mask of {name}',
    }
    if data.instance_key:
      example['instances'] = record[data.instance_key]
    return example


def _prepare_tfds(config: ml_collections.ConfigDict) -> Any:
  """Prepares any other TFDS set with TFDS's own builder, and returns that."""
  import tensorflow_datasets as tfds

  data = config.data
  try:
    builder = tfds.builder(
      data.name,
      data_dir=os.path.join(fields.cache_dir(config), 'tfds'),
      file_format='array_record',
    )
    builder.download_and_prepare()
  except tfds.core.registered.DatasetNotFoundError as e:
    raise errors.UserError(
      f'--config.data.name={data.name}: TFDS has no such set'
      f'{fields.nearest(data.name, tfds.list_builders())}'
    ) from e
  return builder
