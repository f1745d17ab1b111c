"""Values of fields from text and from Python: taken, or refused in one line."""

import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import cases, message_of
from unet_jax.config import default, fields, values

# `FIELD=TEXT`, and the value.
_TEXTS = {
  'model.depth=3': 3,
  'model.depth= 3': 3,
  'model.depth="3"': 3,
  'checkpoint.step=-1': -1,
  'seed=4294967295': 4294967295,
  'optimizer.learning_rate=1e-3': 1e-3,
  'optimizer.learning_rate=1': 1.0,
  'optimizer.learning_rate=.5': 0.5,
  "optimizer.learning_rate='2E-4'": 2e-4,
  'model.remat=true': True,
  'model.remat=False': False,
  'model.remat=1': True,
  'model.remat=0': False,
  'data.dir=': '',
  'data.dir=/a b/c=d': '/a b/c=d',
  'data.dir="/a b"': '/a b',
  "data.dir=o'neil": "o'neil",
  'data.train_split=train[:90%]': 'train[:90%]',
  'data.image_size=96,64': (96, 64),
  'data.image_size=(96, 64)': (96, 64),
  'data.image_size=[96,64]': (96, 64),
  'data.image_size="96,64"': (96, 64),
  'inference.scales=1.0,': (1.0,),
  'inference.scales=1.25': (1.25,),
  'inference.window=': (),
  'inference.window=()': (),
  'data.mean=-0.5,1e-2,+3': (-0.5, 1e-2, 3),
  'data.nodata=-9999,nan': (-9999, 'nan'),
  'data.nodata=NaN': ('nan',),
  'data.nodata=inf,-inf': ('inf', '-inf'),
  'augment.affine.rotation=-180,180': (-180, 180),
  'data.class_names=road,crack': ('road', 'crack'),
  'data.class_names=road, crack,': ('road', 'crack'),
  'data.class_names=(road,crack)': ('road', 'crack'),
  'data.class_names=[road,crack]': ('road', 'crack'),
  'data.class_names="road","crack"': ('road', 'crack'),
  'data.class_names=("a, b", "c")': ('a, b', 'c'),
  "data.class_names='road,crack'": ('road', 'crack'),
  'data.class_names=("road", crack)': ('road', 'crack'),
  'data.class_names=road': ('road',),
  'data.class_names=road sign,crack-1': ('road sign', 'crack-1'),
  # Names that look like numbers or words of Python stay names.
  'data.class_names=1,02,nan,True': ('1', '02', 'nan', 'True'),
  'eval.foreground=': (),
  'inference.ensemble=runs/a,../b/c.d': ('runs/a', '../b/c.d'),
  'inference.flips=horizontal,vertical': ('horizontal', 'vertical'),
  'data.mask_values=((0,0),(255,1))': ((0, 0), (255, 1)),
  'data.mask_values=(0,0),(255,1)': ((0, 0), (255, 1)),
  'data.mask_values=[[0,0],[[255,0,0],1]]': ((0, 0), ((255, 0, 0), 1)),
  "data.mask_values='((0,0),(255,1))'": ((0, 0), (255, 1)),
  # A word needs no quotes.
  'data.mask_values=((0,0),(others,1))': ((0, 0), ('others', 1)),
  'data.mask_values=((0,0),("others",1))': ((0, 0), ('others', 1)),
}


@pytest.mark.parametrize('text', _TEXTS)
def test_texts(text):
  name, _, value = text.partition('=')
  found = values.parse(name, value)
  assert repr(found) == repr(_TEXTS[text])
  # What `load` is given is taken as it is.
  assert repr(values.checked(name, found)) == repr(found)


_WHOLE = ': takes a whole number, such as '
_NUMBERS = ': takes numbers with commas between them, such as '
# `FIELD=TEXT`, and what follows it.
_REFUSED_TEXTS = f"""\
model.depth=
model.depth=deep
model.depth=2.5
model.depth=3.0
model.depth=1e1
model.depth=True
model.depth=None
model.depth=(3,)
model.depth=3 # a comment
  {_WHOLE}3
model.depth=3000000000
model.depth=-2147483648
  : must be below 2147483648
optimizer.learning_rate=
optimizer.learning_rate=big
optimizer.learning_rate=1,5
optimizer.learning_rate=nan
optimizer.learning_rate=inf
optimizer.learning_rate=1e999
optimizer.learning_rate=True
optimizer.learning_rate=None
  : takes a number, such as 0.002
model.remat=
model.remat=maybe
model.remat=None
model.remat=2
model.remat=yes
  : takes True or False
data.dir=None
data.dir='None'
  : takes text, '' for none
data.nodata=0,nun
data.nodata=-0,-nan
  : takes numbers with commas between them, such as -9999,nan
data.image_size=64x64
data.image_size=64 64
data.image_size=64;64
data.image_size=64-64
data.image_size=None
data.image_size=True,True
data.image_size=(64,64
data.image_size=big,small
data.image_size=((64,64),)
data.image_size={{64,64}}
data.image_size=064,064
data.image_size=18446744073709551616,64
  {_NUMBERS}64,64
data.std=1,1,1e999
  {_NUMBERS}0.25,0.25,0.25
model.features=a,b
data.intensity_range=0,1e999
  {_NUMBERS}1,2
data.class_names=None
data.class_names=("road","crack"
data.class_names=road,,crack
data.class_names={{road,crack}}
data.class_names=(("road","crack"),)
data.class_names=("road",1)
  : takes names with commas between them, such as one,two
data.mask_values=((0,0),(255,1)
data.mask_values=0:0,255:1
  : takes pairs (value, class); write '((0,0),(255,1))'
"""


@pytest.mark.parametrize('text,message', cases(_REFUSED_TEXTS))
def test_texts_that_are_refused(text, message):
  name, _, value = text.partition('=')
  assert message_of(values.parse, name, value) == f'--config.{text}{message}'


# Of NumPy and JAX, paths, lists: values that mean the field's own type.
_VALUES = [
  ('model.depth', np.int64(3), 3),
  ('model.depth', np.array(3), 3),
  ('model.depth', jnp.int32(3), 3),
  ('optimizer.learning_rate', 1, 1.0),
  ('optimizer.learning_rate', np.float32(0.5), 0.5),
  ('optimizer.learning_rate', np.int8(2), 2.0),
  ('model.remat', np.True_, True),
  ('model.dtype', np.str_('bfloat16'), 'bfloat16'),
  ('data.dir', pathlib.PurePosixPath('/a/b'), '/a/b'),
  ('data.image_size', [32, 48], (32, 48)),
  ('data.image_size', np.array([32, 48]), (32, 48)),
  ('data.image_size', (np.int32(32), 48), (32, 48)),
  ('data.class_names', ['a', 'b'], ('a', 'b')),
  ('data.nodata', [0, np.float32('nan')], (0, 'nan')),
  ('data.nodata', [-np.inf, 1], ('-inf', 1)),
  ('data.class_names', np.array(['a', 'b']), ('a', 'b')),
  ('inference.ensemble', [pathlib.PurePosixPath('/a')], ('/a',)),
  ('data.mask_values', [[0, 0], [(1, 2, 3), 1]], ((0, 0), ((1, 2, 3), 1))),
  ('data.mask_values', np.array([[0, 0], [9, 1]]), ((0, 0), (9, 1))),
]


@pytest.mark.parametrize('name,value,expected', _VALUES)
def test_values_of_python(name, value, expected):
  config = default.get_config()
  values.update(config, {name: value})
  found = fields.flatten(config)[name]
  # NumPy's True is equal to True.
  assert repr(found) == repr(expected)


_REFUSED_VALUES = [
  ('model.depth', 3.0, _WHOLE + '3'),
  ('model.depth', np.float32(3), _WHOLE + '3'),
  ('model.depth', '3', _WHOLE + '3'),
  ('model.depth', True, _WHOLE + '3'),
  ('model.depth', np.bool_(1), _WHOLE + '3'),
  ('model.depth', None, _WHOLE + '3'),
  ('model.depth', [3], _WHOLE + '3'),
  ('model.depth', 2**31, ': must be below 2147483648'),
  ('optimizer.learning_rate', '1e-3', ': takes a number, such as 0.002'),
  ('optimizer.learning_rate', True, ': takes a number, such as 0.002'),
  ('optimizer.learning_rate', math.nan, ': takes a number, such as 0.002'),
  ('optimizer.learning_rate', np.float16('inf'), ': takes a number, such as'),
  ('optimizer.learning_rate', 10**400, ': takes a number, such as 0.002'),
  ('data.std', (1, math.inf, 1), _NUMBERS + '0.25,0.25,0.25'),
  ('data.mean', (1, np.float32('nan'), 1), _NUMBERS + '0.5,0.5,0.5'),
  ('data.intensity_range', (0, 10**400), _NUMBERS + '1,2'),
  ('model.remat', 1, ': takes True or False'),
  ('model.remat', 'True', ': takes True or False'),
  ('data.dir', None, ": takes text, '' for none"),
  ('data.dir', 3, ": takes text, '' for none"),
  ('model.dtype', jnp.bfloat16, ': takes one of float32, bfloat16'),
  ('data.image_size', 64, _NUMBERS + '64,64'),
  ('data.image_size', '64,64', _NUMBERS + '64,64'),
  ('data.image_size', ('64', '64'), _NUMBERS + '64,64'),
  ('data.image_size', range(2), _NUMBERS + '64,64'),
  ('data.image_size', {64, 65}, _NUMBERS + '64,64'),
  ('data.image_size', np.ones((2, 2)), _NUMBERS + '64,64'),
  ('inference.flips', 'horizontal', ': takes names with commas between them'),
  ('inference.flips', ('a', 1), ': takes names with commas between them'),
  ('data.class_names', ('a', ''), ': takes names with commas between them'),
  ('data.mask_values', {0: 0, 255: 1}, ': takes pairs (value, class); write'),
]


@pytest.mark.parametrize('name,value,text', _REFUSED_VALUES)
def test_values_of_python_that_are_refused(name, value, text):
  config = default.get_config()
  message = message_of(values.update, config, {'seed': 1, name: value})
  assert message.startswith(f'--config.{name}=') and text in message
  # All or nothing.
  assert config == default.get_config()


@pytest.mark.parametrize(
  'name,line',
  cases("""\
log.num_figures
  --config.log.num_figures is now --config.log.num_examples
import_.path
  --config.import_.path is now --config.weights.path
log.num_example
  --config.log.num_example: there is no such field (did you mean
  log.num_examples?); unet_jax/config/default.py lists them all
mesh
  --config.mesh is a section; set one of its fields: mesh.data, mesh.fsdp,
  mesh.spatial
"""),
)
def test_names_of_no_field(name, line):
  config = default.get_config()
  for call in (
    lambda: values.check_name(name),
    lambda: values.parse(name, '1'),
    lambda: values.update(config, {name: 1}),
  ):
    assert message_of(call) == line


def test_every_default_is_taken_as_it_is():
  for name, value in values.known().items():
    assert repr(values.checked(name, value)) == repr(value)
    text = value if isinstance(value, str) else repr(value)
    assert repr(values.parse(name, text)) == repr(value)


@pytest.mark.parametrize('text', ['inf,-inf', '(inf, -inf)', "('inf','-inf')"])
def test_words_for_no_data(text):
  assert values.parse('data.nodata', text) == ('inf', '-inf')
  numbers = (float('inf'), -float('inf'), float('nan'), -9999)
  words = ('inf', '-inf', 'nan', -9999)
  assert values.checked('data.nodata', numbers) == words


def test_tuples_are_of_numbers_or_of_names():
  """A new field that is empty by default is listed here or in fields.NAMES."""
  empty = {name for name, value in values.known().items() if value == ()}
  numbers = 'data.bands data.intensity_range data.nodata inference.window '
  numbers += 'loss.class_weights model.deep_supervision model.features'
  found = empty - set(fields.NAMES) - {'data.mask_values'}
  assert sorted(found) == numbers.split()
  assert set(fields.NAMES) <= set(values.known())
