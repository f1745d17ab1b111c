"""What is refused, with which line; what is allowed."""

import pytest

from tests.refusals import cases, message_of, parse_fields
from unet_jax.config import checks, default, fields
from unet_jax.data import shapes

_FIELDS = fields.flatten(default.get_config())
_NO_FLIP = 'augment.flip_horizontal=0.0'
_GREY = 'data.num_channels=1 data.mean=(0,) data.std=(1,)'
_3D = 'model.spatial_dims=3 data.image_size=(8,8,8)'


def _config(text):
  """The default with `section.field=value section.field=value`."""
  config = default.get_config()
  for field, value in parse_fields(text).items():
    # Locked types: integers where the default is a float, and so on.
    with config.ignore_type():
      config.update_from_flattened_dict({field: value})
  return config


def _refused(config, mode='train'):
  return message_of(checks.validate, config, mode)


def _is_refused(field, value, text):
  config = default.get_config()
  config.update_from_flattened_dict({field: value})
  assert _refused(config) == f'--config.{field}={value}{text}'


def _is_allowed(field, value):
  config = default.get_config()
  config.update_from_flattened_dict({field: value})
  checks.validate(config)


def test_every_checked_field_exists_and_is_checked_once():
  tables = ('CHOICES', 'AT_LEAST', 'RANGES', 'RANDOM_RANGES')
  checked = [field for table in tables for field in getattr(fields, table)]
  assert len(checked) == len(set(checked))
  assert set(checked) | set(fields.ONLY_VALUE_IN_3D) <= set(_FIELDS)


def test_fields_with_a_set_ofparse_fields():
  for field, choices in fields.CHOICES.items():
    other = 'qqq' if isinstance(choices[0], str) else 77
    listed = ', '.join(map(str, choices))
    _is_refused(field, other, f': not one of {listed}')


def test_lowestparse_fields():
  for field, low in fields.AT_LEAST.items():
    value = type(_FIELDS[field])(low - 1)
    _is_refused(field, value, f': must be at least {low}')


def test_ranges():
  for field in fields.RANGES:
    for value in (-0.1, 1.0, float('nan')):
      _is_refused(field, value, ': must be at least 0.0 and below 1.0')
    _is_allowed(field, 0.0)


def test_random_ranges():
  for field, (least, greatest) in fields.RANDOM_RANGES.items():
    for value in ((least - 1.0, greatest), (least, greatest + 1.0)):
      text = f': must lie between {least} and {greatest}'
      _is_refused(field, value, text)
    for value in (
      (greatest, least),
      (),
      (least,),
      (least, least, greatest),
      ('a', greatest),
      (least, float('nan')),
    ):
      text = ': takes two numbers, the lower one first, such as '
      _is_refused(field, value, f'{text}{least},{greatest}')
    _is_allowed(field, (least, greatest))
    _is_allowed(field, (greatest, greatest))


# Fields, and what follows --config.FIELD=VALUE of the first one; `=`: the line.
_REFUSED = f"""\
model.upsample=bilinar
  : not one of transpose, bilinear, bilinear_corners, nearest, pixel_shuffle
  (did you mean bilinear?)
data.source=shape
  : not one of tfds, folder, shapes (did you mean shapes?)
augment.flip_vertical=1.5
augment.flip_horizontal=-0.5
augment.rotate_90=nan
augment.elastic.probability=2.0
  : a probability is between 0 and 1
augment.rotate_90=0.5 data.image_size=(64,48)
  needs a square data.image_size, not (64, 48); flip_horizontal with
  flip_vertical gives half turns
augment.hue.probability=0.25 {_GREY}
  : grey images (data.num_channels=1) have no hue; set it to 0
augment.saturation.probability=1.0 {_GREY}
  : grey images (data.num_channels=1) have no saturation; set it to 0
seed=4294967296
  : must be below 4294967296 (2**32); a larger one would give the weights of a
  smaller one
optimizer.decay_steps=399
  : the learning rate is 0 from there on, and train.num_steps=400; set
  --config.optimizer.end_factor=0.01 or the like
mesh.data=0
  : takes a number of devices, or -1 for all
data.image_size=(16,16,16)
  : takes 2 values (height, width), not 3
data.image_size=(16,0)
data.image_size=(16.5,16)
  : takes two numbers of pixels, at least 1 each
data.mean=(0.5,0.5,0.5) data.num_channels=1
  : takes 1 values (data.num_channels), not 3
data.mean=('a','b','c')
  : takes numbers
data.std=(0.5,0.5)
  : takes 3 values (data.num_channels), not 2
data.std=(0.5,0.0,0.5)
  : must be above 0
data.class_names=('a','b')
  : takes 4 values (the classes; data.num_classes), not 2
data.class_names=('a','b','c','a')
  : takes a different name for each class, as in cat,dog
data.holdout=folder data.source=tfds
  : the tfds source has no folders; take random or last
augment.flip_horizontal=0.5 data.class_names=('a','L-lung','b','r-lung')
  : a mirror makes each of L-lung and r-lung look like the other
  (data.class_names); set --config.augment.flip_horizontal=0
augment.flip_vertical=1.0 data.class_names=('a','Left','right','b') {_NO_FLIP}
  : a mirror makes each of Left and right look like the other
  (data.class_names); set --config.augment.flip_vertical=0
loss.class_weights=(1.0,) data.num_classes=1
  : takes 2 values (the classes; data.num_classes), not 1
loss.class_weights=(1,1,-1,1)
loss.class_weights=(0,0,0,0)
  : must be at least 0, and not all 0
data.mask_values=(0,1)
  = --config.data.mask_values: 0 is not a pair (value, class); write
  '((0,0),(255,1))'
data.mask_values=((0,'a'),)
  = --config.data.mask_values: (0, 'a') is not a pair (value, class); write
  '((0,0),(255,1))'
data.mask_values=((18446744073709551616,1),)
  = --config.data.mask_values: (18446744073709551616, 1) is not a pair (value,
  class); write '((0,0),(255,1))'
data.mask_values=(((0,0),1),)
  = --config.data.mask_values: ((0, 0), 1) is not a pair (value, class);
  write '((0,0),(255,1))'
data.mask_values=('((0,0),(others,1))',)
  = --config.data.mask_values: '((0,0),(others,1))' is not a pair (value,
  class); write "((0,0),('others',1))"
data.mask_values=((0,0),(255,4))
  = --config.data.mask_values: (255, 4) maps to class 4; with
  data.num_classes=4 the classes are 0 to 3, or 255 to ignore
data.num_classes=1 data.mask_values=((0,0),(255,2))
  = --config.data.mask_values: (255, 2) maps to class 2; with
  data.num_classes=1 the classes are 0 to 1, or 255 to ignore
data.mask_values=((0,0),(255,1),(0,2))
  = --config.data.mask_values: (0, 0) and (0, 2) give one value two classes;
  leave out one of them
data.mask_values=((7,1),((7,7,7),0))
  = --config.data.mask_values: (7, 1) and ((7, 7, 7), 0) give one value two
  classes; leave out one of them
data.mask_values=(('others','nearest'),)
  = --config.data.mask_values: has no value for 'nearest'; add the values of
  classes
data.mask_values=((0,'nearest'),(1,1))
  = --config.data.mask_values: (0, 'nearest') is not a pair (value, class);
  write '((0,0),(255,1))'
data.mask_values=('((0,0),(transparent,1))',)
  = --config.data.mask_values: '((0,0),(transparent,1))' is not a pair (value,
  class); write "(('transparent',0),(255,1))"
data.mask_values=((0,0),('others',1),('others',255))
  = --config.data.mask_values: ('others', 1) and ('others', 255) give one value
  two classes; leave out one of them
data.intensity=range
  needs the stored values that become 0 and 255, such as
  --config.data.intensity_range=0,4095; --mode=inspect with another
  data.intensity measures them
data.intensity_range=(0,1)
  is for --config.data.intensity=range
data.intensity_range=(5,5) data.intensity=range
  : takes two numbers, the lower one first, such as 0,4095
data.bands=(1.0,2,3)
  : takes numbers of bands, the first of which is 1
data.bands=(0,1,2)
  : takes numbers of bands, the first of which is 1
eval.foreground=('clas_1',)
  = --config.eval.foreground: no class is named 'clas_1' (did you mean
  class_1?); the classes are class_0, class_1, class_2, class_3
eval.instances=cell
  = --config.eval.instances: no class is named 'cell'; the classes are
  class_0, class_1, class_2, class_3
data.num_classes=256
  : at most 255, masks are 8 bit
loss.weights.cross_entropy=0.0
  = config.loss.weights: all are 0; set one, for instance
  --config.loss.weights.cross_entropy=1
model.features=(8,16)
model.features=(8,16,0,8)
model.features=(8,16,'a',8)
  : takes 4 numbers of channels (model.depth=3 and the bottleneck), at least
  1 each
model.upsample=pixel_shuffle model.features=(3,8,6,8)
  makes 4 pixels of the channels of one: those of all stages but the first,
  (8, 6, 8), must be multiples of 4; set model.features or base_features
model.upsample=transpose model.upsample_kernel=0
  changes the channels: model.upsample_kernel=0 is for bilinear,
  bilinear_corners and nearest
model.upsample=bilinear_corners model.padding=valid
  : where its pixels lie depends on the size of the image, which
  model.padding=valid is to do without; use bilinear
model.upsample_kernel=2 model.upsample=nearest model.padding=valid
  needs model.padding=same: without padding, an even kernel moves the image
  by half a pixel; use 1 or 3
model.dropout_stages=5
  : the encoder has 4 (model.depth=3 and the bottleneck)
model.kernel_size=4
  : must be odd, so that a convolution has a middle
model.squeeze_excite=17
  leaves nothing of the 16 channels of a stage; at most 16
model.skip=attention model.depth=1
  : at model.depth=1 there is no gate, since the first stage has none; use
  concat, or a depth of 2
model.deep_supervision=(0.5,0.0)
model.deep_supervision=('a',)
  : takes weights above 0
model.deep_supervision=(0.5,0.25,0.1)
  : takes a weight for each decoder stage but the first, at most 2 at
  model.depth=3
model.deep_supervision=(0.5,) model.depth=0
  : takes a weight for each decoder stage but the first, at most 0 at
  model.depth=0
model.deep_supervision=(0.5,) model.padding=valid
  needs model.padding=same: with valid, the coarser logits cover more than
  the mask that is used
model.padding=valid
  = an image size of 64 pixels does not fit model.padding=valid at
  model.depth=3; the nearest that do are 92 (--config.data.image_size=H,W)
model.depth=6 data.image_size=(64,32)
  = an image of 64 x 32 pixels cannot be halved 6 times (model.depth=6); use
  at least 64 pixels or a smaller depth
data.on_error=skip data.cache=none
  needs --config.data.cache=disk or memory: with none, files are first
  opened in the middle of training
data.batch_size=16 optimizer.accumulate_steps=3
  cannot be run in optimizer.accumulate_steps=3 equal parts; choose a
  multiple
loss.border_sigma=0.0
loss.border_sigma=nan
  : must be above 0 pixels
loss.balance=image loss.weights.cross_entropy=0.0 loss.weights.dice=1.0
  weighs the pixels of cross_entropy, focal, hard_pixels, which are off; set
  loss.weights.cross_entropy, or leave it out
loss.hard_fraction=0.0
loss.hard_fraction=1.1
  : must be above 0, and at most 1
loss.tversky=(0.3,)
loss.tversky=(0.0,0.0)
loss.tversky=(-1.0,2.0)
  : takes two numbers of at least 0, not both 0, such as 0.3,0.7
loss.weights.cl_dice=1.0 loss.class_weights=(1,0,0,0)
  is of all classes but the first: with loss.class_weights, one of these must
  be above 0
data.instance_key=panoptic
  names a feature of the tfds source, not of shapes; the folder source takes
  instances/ beside masks/
data.foreground_fraction=1.5
  : a fraction is between 0 and 1
data.sample_classes=('clas_1',) data.resize=patch
  = --config.data.sample_classes: no class is named 'clas_1' (did you mean
  class_1?); the classes are class_0, class_1, class_2, class_3
data.sample_classes=('class_1',)
  chooses windows of images, which data.resize=stretch does not draw; set
  --config.data.resize=patch
data.resize=patch data.cache=none
  needs --config.data.cache=disk or memory: with none, the sizes of the
  images and the places of their classes are not known
data.train_split=auto
  : name the split; auto is for eval_split
data.source=folder
  = the folder source needs --config.data.dir=DIR, a folder with images/ and
  masks/
data.image_pattern=_scan
  : must hold {{stem}} once
data.mask_pattern={{stem}}_{{stem}}
  : must hold {{stem}} once
data.num_folds=1
  leaves nothing to train on; take 2 or more, or 0 for no folds
data.fold=5 data.num_folds=5
  : with data.num_folds=5 the folds are 0 to 4
data.fold=1
  : with data.num_folds=0 there are no folds; set data.num_folds
data.skip_checks=('movd',)
  : no check 'movd' (did you mean moved?); there are turned, stretched, moved,
  shuffled, unfit, edges, constant, levels, ignored, one_class, absent,
  duplicates, near_duplicates, neighbours, smoothed, files, sizes
inference.flips=('up',)
  : takes horizontal and vertical, or () for none
inference.window=(8,) data.resize=patch
  : takes height and width in pixels, or () for data.image_size
inference.window=(8,8)
  : with data.resize=stretch each image is one window; set it to ()
inference.window=(8,8) data.resize=patch mesh.spatial=2
  with mesh.spatial=2: rows of data.image_size are split; set it to ()
inference.rotate_90=True data.image_size=(64,48)
  needs square windows, not (64, 48); flips give half turns
inference.scales=()
  : takes factors from 0.1 to 10, such as 1.0,1.25
inference.scales=(0.5,) model.padding=valid data.image_size=(92,92)
  needs model.padding=same: with valid, few sizes fit the network
plan.topology=h100:8
  : GPUs cannot be planned (docs/plan.md says why); TPU slices are v4, v5e, v5p,
  v6e
plan.topology=v4:2x2
  : a kind of chip and chips along each axis, as v4:2x2x2, v5e:2x2, v5p:2x2x2,
  v6e:2x2
plan.topology=v7:2x2
  : a kind of chip and chips along each axis, as v4:2x2x2, v5e:2x2, v5p:2x2x2,
  v6e:2x2
plan.topology=v5e:0x2
  : a kind of chip and chips along each axis, as v4:2x2x2, v5e:2x2, v5p:2x2x2,
  v6e:2x2
plan.steps=('train','test')
  : takes train, evaluate, predict
plan.sweep=('8x1x1:64','8x1')
  : takes DATAxFSDPxSPATIAL or DATAxFSDPxSPATIAL:BATCH, as in 8x1x1:64, or grid
{_3D} augment.rotate_90=0.5
  = --config.augment.rotate_90=0.5 is for images: volumes
  (model.spatial_dims=3) take 0.0 only
"""


def _line(values, message):
  """The line that a message of a table stands for."""
  if message.startswith('= '):
    return message.removeprefix('= ')
  (field, value), *_ = parse_fields(values).items()
  space = '' if message.startswith(':') else ' '
  return f'--config.{field}={value}{space}{message}'


@pytest.mark.parametrize('values,message', cases(_REFUSED))
def test_values_that_are_refused(values, message):
  assert _refused(_config(values)) == _line(values, message)


@pytest.mark.parametrize(
  'values',
  [
    'data.mask_values=(((255,0,0),1),(7,255))',
    "data.nodata=('nan',-9999) data.intensity=range "
    'data.intensity_range=(-1.5,9)',
    "data.mask_values=((0,0),('others',1),(0,0),((9,9,9),2),(9,2))",
    'data.source=tfds data.num_classes=1 loss.class_weights=(1,2.5) '
    "data.class_names=('ground','cell') eval.foreground=('cell',) "
    'eval.instances=cell',
    f'data.source=tfds {_GREY}',
    'optimizer.accumulate_steps=4 mesh.data=2',
    'augment.flip_vertical=1.0 augment.affine.rotation=(-180,180) '
    'data.image_size=(64,48)',
    "data.resize=patch data.sample_classes=('class_3',) "
    'data.foreground_fraction=1.0 loss.weight_map=border',
    'data.num_folds=2 data.fold=1 data.eval_split=test',
    'data.image_pattern={stem}_scan data.mask_pattern=m_{stem}',
    "data.class_names=('left','bright','c','d')",
    f"data.class_names=('left','right','c','d') {_NO_FLIP}",
    'model.padding=valid data.image_size=(92,92)',
    'checkpoint.best_metric=-eval/loss',
    _3D,
  ],
)
def test_values_that_are_allowed(values):
  checks.validate(_config(values))


# The mode that refuses it, modes that do not, and fields; the rest as above.
_REFUSED_BY_A_MODE = f"""\
cross_validate not train:
  = --mode=cross_validate needs the number of folds, for instance
  --config.data.num_folds=5
cross_validate not train: data.eval_split=test data.num_folds=5
  : --mode=cross_validate evaluates each run on its fold; set
  --config.data.eval_split=auto
inspect not train evaluate: {_3D}
  = --mode=inspect looks at images, not at volumes (model.spatial_dims=3); a
  training run checks what it can (data.check)
predict not train evaluate: {_3D}
  = --mode=predict and unet_jax.load take images, not volumes
  (model.spatial_dims=3); --mode=evaluate measures the network
predict not train load: data.mask_values=((0,0),(255,2))
  has no value for class 1, so its pixels cannot be written; add (VALUE, 1)
predict not summary load: data.mask_values=((0,0),(256,1),((1,2,3),1)) \
data.num_classes=1
  : masks are written with values of 0 to 255; choose others
predict not summary load: data.mask_values=((-1,0),(1,1)) data.num_classes=1
  : masks are written with values of 0 to 65535; choose others
evaluate not predict load summary import: data.num_classes=1 {_GREY}
  = the shapes source draws 4 classes in RGB: data.num_classes must be 4 and
  data.num_channels 3
export not train import: export.path=x.pth
  : takes the name of a .safetensors file
evaluate not predict load summary: data.dir=DIR data.source=tfds \
data.name=mnist
  with the TFDS set mnist: only oxford_iiit_pet is read from a local copy;
  remove data.dir to download, or use --config=configs/folder.py
train not evaluate predict: checkpoint.best_metric=eval/image_mio \
data.num_classes=1 data.source=tfds
  : an evaluation has no such metric (did you mean eval/image_miou?); it has
  eval/pixel_accuracy, eval/loss, eval/dataset_miou,
  eval/dataset_iou/background, eval/dataset_iou/foreground,
  eval/dataset_mdice, eval/dataset_dice/background,
  eval/dataset_dice/foreground, eval/image_miou, eval/image_iou/background,
  eval/image_iou/foreground, eval/image_mdice, eval/image_dice/background,
  eval/image_dice/foreground
plan not predict: data.image_size=(4,4)
  = an image of 4 x 4 pixels cannot be halved 3 times (model.depth=3); use at
  least 8 pixels or a smaller depth
summary not inspect predict: data.image_size=(4,4)
  = an image of 4 x 4 pixels cannot be halved 3 times (model.depth=3); use at
  least 8 pixels or a smaller depth
"""


@pytest.mark.parametrize('case,message', cases(_REFUSED_BY_A_MODE))
def test_what_single_modes_refuse(case, message):
  modes, _, values = case.partition(':')
  mode, _, *others = modes.split()
  assert _refused(_config(values), mode) == _line(values, message)
  for other in others:
    checks.validate(_config(values), other)


def test_the_shapes_source_draws_what_is_checked():
  assert fields.OF_SHAPES == {
    'num_classes': shapes.NUM_CLASSES,
    'num_channels': shapes.draw((0,), (16, 16))[0].shape[-1],
  }


@pytest.mark.parametrize('base,largest', [(3, 1024), (4, 30)])
def test_pixel_shuffle_needs_multiples_of_four(base, largest):
  config = _config(
    f'model.upsample=pixel_shuffle model.base_features={base} '
    f'model.max_features={largest}'
  )
  assert 'must be multiples of 4' in _refused(config)
