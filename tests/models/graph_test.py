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

_KERNEL = 'upsample_kernel'
# Image and fields.
_VARIANTS = {
  'plain': ((16, 16, 3), {}),
  'no_convolution': ((16, 16, 3), {'upsample': 'bilinear_corners', _KERNEL: 0}),
  'dropout_alone': ((16, 16, 3), {'depth': 0, 'dropout': 0.5}),
  'dropouts': ((16, 16, 3), {'dropout': 0.5, 'dropout_stages': 2}),
  'odd': ((19, 22, 1), {'norm': 'group', 'stem': 'space_to_depth'}),
  'valid': ((44, 48, 1), {'padding': 'valid', 'skip': 'add', 'remat': True}),
  'valid_bilinear': (
    (56, 60, 1),
    {'padding': 'valid', 'upsample': 'bilinear', _KERNEL: 3},
  ),
  'valid_gates': ((52, 48, 1), {'padding': 'valid', 'skip': 'attention'}),
  'volume': (
    (8, 4, 6, 2),
    dict(spatial_dims=3, depth=1, upsample='nearest', norm='layer'),
  ),
  'everything': (
    (16, 24, 3),
    {
      'depth': 3,
      'block': 'residual',
      'squeeze_excite': 2,
      'downsample': 'conv',
      'upsample': 'bilinear',
      'skip': 'attention',
      'dropout': 0.5,
      'deep_supervision': (0.5, 0.25),
      'dtype': jnp.bfloat16,
    },
  ),
}


@functools.cache
def _read(variant):
  image, fields = _VARIANTS[variant]
  return graph.read(networks.small(**fields), image)


@functools.cache
def _run(variant):
  """Shapes of parameters, and of all modules' outputs, of a traced run."""
  image, fields = _VARIANTS[variant]
  model, key = networks.small(**fields), jax.random.key(0)

  def run():
    x = jnp.zeros((1, *image))
    rngs = {'params': key, 'dropout': key}
    variables = model.init(rngs, x, train=False)
    options = dict(rngs=rngs, mutable=True, capture_intermediates=True)
    _, state = model.apply(variables, x, train=True, **options)
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
  kernels = {
    '/'.join(path[:-1]): math.prod(leaf.shape)
    for path, leaf in _by_path(parameters).items()
    if path[-1] == 'kernel'
  }
  for layer in network.layers:
    pixels = math.prod(layer.output[:-1])
    if 'transposed' in layer.kind:
      pixels //= 2 ** len(layer.output[:-1])  # A product for each of the input.
    assert layer.flops == 2 * pixels * kernels.get(layer.path, 0)


def test_flops_are_the_compilers():
  model = networks.small(padding='valid', norm='none', base_features=16)
  x = jnp.zeros((1, 44, 44, 3))
  variables = networks.shapes(model, *x.shape)
  apply = jax.jit(lambda v: model.apply(v, x, train=False))
  cost = apply.lower(variables).cost_analysis()['flops']
  flops = graph.read(model, (44, 44, 3)).flops
  # The compiler's has biases, ReLU and pooling too.
  assert flops < cost < 1.02 * flops


def test_stages_of_everything():
  network = _read('everything')
  stages = {s.name: s for s in network.stages}
  order = ' '.join(f'{s.name}:{s.level}:{s.entry}' for s in network.stages)
  assert order == (
    'down_0:0:image down_1:1:down down_2:2:down bottleneck:3:down up_2:2:up '
    'up_1:1:up up_0:0:up'
  )
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
  heads = {h.path: (h.source, *h.output) for h in network.heads}
  assert list(heads) == ['head_1', 'head_2', 'head']
  assert heads['head_1'] == ('up_1', 8, 12, 3)
  assert heads['head_2'] == ('up_2', 4, 6, 3)
  assert heads['head'] == ('up_0', 16, 24, 3)


def test_dropout_stands_between_a_stage_and_its_skip():
  stages = {s.name: s for s in _read('dropouts').stages}
  dropped = {name for name, s in stages.items() if s.dropout}
  assert dropped == {'down_1', 'bottleneck'}
  assert stages['up_1'].skip.source == 'down_1'
  assert stages['bottleneck'].source == 'down_1'


def test_crops_without_padding_are_reported():
  for variant, kind in (
    ('valid', 'transposed conv 2x2'),
    ('valid_bilinear', 'bilinear upsampling, cropped, conv 3x3'),
    # To what the gate leaves of the skip.
    ('valid_gates', 'transposed conv 2x2, cropped'),
  ):
    (stage,) = (s for s in _read(variant).stages if s.name == 'up_1')
    assert stage.entry_kind == kind
    assert stage.skip.is_cropped
    # The features from below and the skip are of one size.
    assert stage.came[:-1] == stage.skip.shape[:-1]


def test_pooling_is_reported_by_what_it_does():
  for downsample, dims, kind in (
    ('max', 2, 'max pool 2x2'),
    ('average', 2, 'average pool 2x2'),
    ('average', 3, 'average pool 2x2x2'),
  ):
    model = networks.small(depth=1, downsample=downsample, spatial_dims=dims)
    network = graph.read(model, (8,) * dims + (3,))
    assert network.stages[1].entry_kind == kind


def test_residual_without_a_shortcut_layer():
  for block, is_residual in (('residual', True), ('plain', False)):
    model = networks.small(depth=0, base_features=3, norm='none', block=block)
    (stage,) = graph.read(model, (8, 8, 3)).stages
    assert stage.is_residual == is_residual


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
