"""What is read from a network against the network: shapes, products, wiring."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from tests.models import networks
from unet_jax.models import graph, resample, unet
from unet_jax.runtime import errors

_VARIANTS = {
  'plain': ({}, (16, 16, 3)),
  'no_convolution': (
    {'upsample': 'bilinear_corners', 'upsample_kernel': 0},
    (16, 16, 3),
  ),
  'dropout_alone': ({'depth': 0, 'dropout': 0.5}, (16, 16, 3)),
  'dropouts': ({'dropout': 0.5, 'dropout_stages': 2}, (16, 16, 3)),
  'odd': ({'norm': 'group', 'stem': 'space_to_depth'}, (19, 22, 1)),
  'valid': ({'padding': 'valid', 'skip': 'add', 'remat': True}, (44, 48, 1)),
  'valid_bilinear': (
    {'padding': 'valid', 'upsample': 'bilinear', 'upsample_kernel': 3},
    (56, 60, 1),
  ),
  'valid_gates': ({'padding': 'valid', 'skip': 'attention'}, (52, 48, 1)),
  'volume': (
    {'spatial_dims': 3, 'depth': 1, 'upsample': 'nearest', 'norm': 'layer'},
    (8, 4, 6, 2),
  ),
  'everything': (
    {
      'depth': 3,
      'block': 'residual',
      'squeeze_excite': 2,
      'downsample': 'conv',
      'upsample': 'bilinear',
      'skip': 'attention',
      'norm': 'batch',
      'dropout': 0.5,
      'deep_supervision': (0.5, 0.25),
      'dtype': jnp.bfloat16,
    },
    (16, 24, 3),
  ),
}


@functools.cache
def _read(variant):
  fields, image = _VARIANTS[variant]
  return graph.read(networks.small(**fields), image)


@functools.cache
def _run(variant):
  """Shapes of parameters, and of all modules' outputs, of a traced run."""
  fields, image = _VARIANTS[variant]
  model, key = networks.small(**fields), jax.random.key(0)

  def run():
    x = jnp.zeros((1, *image))
    rngs = {'params': key, 'dropout': key}
    variables = model.init(rngs, x, train=False)
    _, state = model.apply(
      variables,
      x,
      train=True,
      rngs=rngs,
      mutable=['batch_stats', 'intermediates'],
      capture_intermediates=True,
    )
    return variables['params'], state['intermediates']

  return jax.eval_shape(run)


def _by_path(tree):
  return {
    tuple(getattr(k, 'key', k) for k in path): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


@pytest.mark.parametrize('variant', _VARIANTS)
def test_layers_are_those_of_a_run(variant):
  network = _read(variant)
  parameters, outputs = _run(variant)
  expected = collections.Counter()
  for path, leaf in _by_path(parameters).items():
    expected['/'.join(path[:-1])] += math.prod(leaf.shape)
  rows = {layer.path: layer for layer in network.layers}
  assert len(rows) == len(network.layers)
  assert {k: r.parameters for k, r in rows.items() if r.parameters} == expected
  outputs = {
    '/'.join(path[: path.index('__call__')]): leaf
    for path, leaf in _by_path(outputs).items()
  }
  assert expected.keys() <= outputs.keys() & rows.keys()
  for path in outputs.keys() & rows.keys():
    assert (1, *rows[path].output) == outputs[path].shape
    size = math.prod(outputs[path].shape) * outputs[path].dtype.itemsize
    assert rows[path].bytes == size
  assert network.parameters == sum(expected.values())
  assert network.flops == sum(layer.flops for layer in network.layers)
  assert network.bytes == sum(layer.bytes for layer in network.layers)


@pytest.mark.parametrize('variant', _VARIANTS)
def test_flops_are_those_of_the_kernels(variant):
  parameters, _ = _run(variant)
  kernels = {
    '/'.join(path[:-1]): leaf.shape
    for path, leaf in _by_path(parameters).items()
    if path[-1] == 'kernel'
  }
  for layer in _read(variant).layers:
    pixels = math.prod(layer.output[:-1])
    if layer.path not in kernels:
      assert layer.flops == 0
      continue
    if 'transposed' in layer.kind:
      pixels //= 2 ** len(layer.output[:-1])  # A product for each of the input.
    assert layer.flops == 2 * pixels * math.prod(kernels[layer.path])


def test_flops_are_the_compilers():
  model = networks.small(padding='valid', norm='none', base_features=16)
  x = jnp.zeros((1, 44, 44, 3))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), x, train=False)
  )
  apply = jax.jit(lambda v: model.apply(v, x, train=False))
  cost = apply.lower(variables).cost_analysis()['flops']
  flops = graph.read(model, (44, 44, 3)).flops
  # The compiler's has biases, ReLU and pooling too.
  assert flops < cost < 1.02 * flops


def test_stages_of_everything():
  network = _read('everything')
  stages = {s.name: s for s in network.stages}
  assert [(s.name, s.level, s.entry) for s in network.stages] == [
    ('down_0', 0, 'image'),
    ('down_1', 1, 'down'),
    ('down_2', 2, 'down'),
    ('bottleneck', 3, 'down'),
    ('up_2', 2, 'up'),
    ('up_1', 1, 'up'),
    ('up_0', 0, 'up'),
  ]
  assert stages['up_1'].skip == graph.Skip(
    'down_1', (8, 12, 8), 'concat', False, 'gate_1', 'up_2'
  )
  assert stages['up_2'].skip.gating == 'bottleneck'
  assert stages['up_0'].skip.gate == ''
  assert stages['bottleneck'].dropout == 0.5
  assert stages['up_0'].dropout == 0
  assert stages['down_2'].entry_kind == 'conv 2x2, stride 2'
  assert stages['up_2'].entry_kind == 'bilinear upsampling, conv 1x1'
  assert stages['up_2'].conv_kind == 'conv 3x3, batch norm, ReLU'
  assert all(s.is_residual and s.has_squeeze_excite for s in network.stages)
  assert [(h.path, h.source, h.output) for h in network.heads] == [
    ('head_1', 'up_1', (8, 12, 3)),
    ('head_2', 'up_2', (4, 6, 3)),
    ('head', 'up_0', (16, 24, 3)),
  ]


def test_dropout_stands_between_a_stage_and_its_skip():
  stages = {s.name: s for s in _read('dropouts').stages}
  dropped = {name for name, s in stages.items() if s.dropout}
  assert dropped == {'down_1', 'bottleneck'}
  assert stages['up_1'].skip.source == 'down_1'
  assert stages['bottleneck'].source == 'down_1'


@pytest.mark.parametrize(
  'variant,kind',
  [
    ('valid', 'transposed conv 2x2'),
    ('valid_bilinear', 'bilinear upsampling, cropped, conv 3x3'),
    # To what the gate leaves of the skip.
    ('valid_gates', 'transposed conv 2x2, cropped'),
  ],
)
def test_what_is_lost_without_padding_is_told(variant, kind):
  stages = {s.name: s for s in _read(variant).stages}
  assert stages['up_1'].entry_kind == kind
  assert stages['up_1'].skip.is_cropped
  # The features from below and the skip are of one size.
  assert stages['up_1'].came[:-1] == stages['up_1'].skip.shape[:-1]


@pytest.mark.parametrize(
  'fields,kind',
  [
    ({}, 'max pool 2x2'),
    ({'downsample': 'average'}, 'average pool 2x2'),
    ({'downsample': 'average', 'spatial_dims': 3}, 'average pool 2x2x2'),
  ],
)
def test_pooling_is_told_by_what_it_does(fields, kind):
  model = networks.small(depth=1, **fields)
  network = graph.read(model, (8,) * model.spatial_dims + (3,))
  assert network.stages[1].entry_kind == kind


def test_residual_without_a_shortcut_layer():
  fields = dict(depth=0, base_features=3, norm='none')
  (stage,) = graph.read(
    networks.small(block='residual', **fields), (8, 8, 3)
  ).stages
  assert stage.is_residual
  (stage,) = graph.read(networks.small(**fields), (8, 8, 3)).stages
  assert not stage.is_residual


def test_it_is_the_network_that_is_read_not_its_fields(monkeypatch):
  model = networks.small(skip='concat', downsample='max')
  monkeypatch.setattr(unet.UNet, '_join', lambda self, x, skip: x)
  monkeypatch.setitem(resample.POOLINGS, 'max', resample.average_pool_2x)
  network = graph.read(model, (16, 16, 3))
  assert [s.skip for s in network.stages] == [None] * 5
  assert network.stages[1].entry_kind == 'average pool 2x2'


def test_image_that_does_not_fit():
  with pytest.raises(errors.UserError, match='cannot be halved 2 times'):
    graph.read(networks.small(), (3, 16, 3))
