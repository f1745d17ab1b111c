"""A PyTorch U-Net in the names of github.com/milesial/Pytorch-UNet, and ours.

Written from its description: two 3x3 convolutions without bias, each with batch
norm and ReLU; 2x2 max pooling; a 2x2 transposed convolution that halves the
channels, or bilinear upsampling with aligned corners, for which the stage below
has half of the channels; zeros appended where the sizes were odd; the skip
first.
"""

import collections

import jax
import numpy as np
import pytest

from tests.refusals import message_of
from tests.weights import parity
from unet_jax.config import checks
from unet_jax.models import unet
from unet_jax.weights import files, match, naming

torch = pytest.importorskip('torch', reason='needs PyTorch')
safetensors_torch = pytest.importorskip('safetensors.torch')

_WIDTHS = (4, 8, 16)
_SIZE = (27, 22)  # Odd at each pooling, of one side or both.


def _named(**modules):
  return torch.nn.Sequential(collections.OrderedDict(modules))


def _double_conv(channels, out, middle=None):
  layers = []
  for before, after in ((channels, middle or out), (middle or out, out)):
    layers += [
      torch.nn.Conv2d(before, after, 3, padding=1, bias=False),
      torch.nn.BatchNorm2d(after),
      torch.nn.ReLU(),
    ]
  return _named(double_conv=torch.nn.Sequential(*layers))


def _down(channels, out):
  pool, convs = torch.nn.MaxPool2d(2), _double_conv(channels, out)
  return _named(maxpool_conv=torch.nn.Sequential(pool, convs))


class _Up(torch.nn.Module):
  def __init__(self, channels, out, bilinear):
    super().__init__()
    if bilinear:
      self.up = torch.nn.Upsample(
        scale_factor=2, mode='bilinear', align_corners=True
      )
      self.conv = _double_conv(channels, out, channels // 2)
    else:
      self.up = torch.nn.ConvTranspose2d(channels, channels // 2, 2, 2)
      self.conv = _double_conv(channels, out)

  def forward(self, x, skip):
    x = self.up(x)
    missing = [skip.shape[i] - x.shape[i] for i in (3, 2)]
    padding = [n for m in missing for n in (m // 2, m - m // 2)]
    x = torch.nn.functional.pad(x, padding)
    return self.conv(torch.cat([skip, x], dim=1))


class _UNet(torch.nn.Module):
  def __init__(self, channels, classes, widths, bilinear):
    super().__init__()
    factor = 2 if bilinear else 1
    depth = len(widths) - 1
    self.inc = _double_conv(channels, widths[0])
    for i in range(1, depth + 1):
      last = factor if i == depth else 1
      self.add_module(f'down{i}', _down(widths[i - 1], widths[i] // last))
    for i in range(1, depth + 1):
      below, here = widths[depth - i + 1], widths[depth - i]
      out = here if i == depth else here // factor
      self.add_module(f'up{i}', _Up(below, out, bilinear))
    self.outc = _named(conv=torch.nn.Conv2d(widths[0], classes, 1))
    self.depth = depth

  def forward(self, x):
    skips = [self.inc(x)]
    for i in range(1, self.depth + 1):
      skips.append(getattr(self, f'down{i}')(skips[-1]))
    x = skips.pop()
    for i in range(1, self.depth + 1):
      x = getattr(self, f'up{i}')(x, skips.pop())
    return self.outc(x)


def _network(bilinear):
  torch.manual_seed(0)
  network = _UNet(3, 2, _WIDTHS, bilinear)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      for tensor in (module.weight, module.bias, module.running_mean):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
      torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
  return network


def _save(network, folder, **more):
  torch.save(network.state_dict() | more, folder / 'network.pth')
  return folder / 'network.pth'


def _config(bilinear):
  fields = {'data.image_size': _SIZE, 'data.num_classes': 2}
  fields |= {'model.depth': 2, 'model.base_features': 4}
  if bilinear:
    fields |= {'model.upsample': 'bilinear_corners', 'model.upsample_kernel': 0}
    fields |= {'model.max_features': _WIDTHS[-2]}
  return parity.make_config(fields)


_BOTH = pytest.mark.parametrize(
  'bilinear', [False, True], ids=['transpose', 'bilinear']
)


def _to_torch(x):
  return torch.from_numpy(x.transpose(0, 3, 1, 2)).double()


def _from_torch(x):
  return x.detach().numpy().transpose(0, 2, 3, 1)


def _biased(stats, before, counts, names):
  """Running variances after one step as flax and Keras have them.

  PyTorch takes the batch's unbiased variance into the running one (and the
  biased one to normalise with), flax and Keras the biased one.
  """
  after, before = naming.flatten({'': stats}), naming.flatten({'': before})
  for name in after:
    if name.endswith('/var'):
      n = counts[names[name].removesuffix('.running_var')]
      kept = 0.9 * before[name]
      after[name] = kept + (after[name] - kept) * (n - 1) / n
  return naming.unflatten(after, {'': stats})['']


def _count_values(network):
  """Returns {batch norm: values per channel}, once the network has run."""
  counts = {}

  def record(name):
    def hook(module, args, output):
      counts[name] = args[0].numel() // args[0].shape[1]

    return hook

  for name, module in network.named_modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.register_forward_hook(record(name))
  return counts


@pytest.mark.parametrize('train', [False, True], ids=['evaluation', 'training'])
@_BOTH
def test_outputs_and_gradients_equal_pytorch(bilinear, train, tmp_path):
  config = _config(bilinear)
  network = _network(bilinear).train(train)
  path = _save(network, tmp_path, mask_values=[0, 1])
  variables = parity.load(path, config)
  images = parity.draw(2, *_SIZE, 3)
  weight = parity.draw(2, *_SIZE, 2, seed=1)
  outputs, gradients, stats = parity.ours(
    config, variables, images, weight, train
  )

  # In float64, so that one side alone rounds.
  counts = _count_values(network.double())
  expected = network(_to_torch(images))
  torch.sum(expected * _to_torch(weight)).backward()
  state = network.state_dict()
  _save(network, tmp_path, **{k: p.grad for k, p in network.named_parameters()})
  expected_gradients = parity.load(path, config)['params']
  differences = {
    'outputs': parity.difference(outputs, _from_torch(expected)),
    'gradients': parity.difference(gradients, expected_gradients),
  }
  if train:
    torch.save(state, path)
    names = naming.from_milesial(files.read(str(path))).names
    after = parity.load(path, config)['batch_stats']
    after = _biased(after, variables['batch_stats'], counts, names)
    differences['statistics'] = parity.difference(stats, after)
  parity.check(differences)


@_BOTH
def test_the_network_is_deduced_and_exported_again(bilinear, tmp_path):
  state = _network(bilinear).state_dict()
  path = str(tmp_path / 'training.pt')
  # As training scripts save it, of a network under DataParallel.
  wrapped = {f'module.{k}': v for k, v in state.items()}
  wrapped['mask_values'] = [[0, 0, 0], [9, 8, 7]]
  torch.save({'epoch': 3, 'state_dict': wrapped}, path)
  config = match.deduced_config({'weights.path': path})
  checks.validate(config, 'import')
  expected = _config(bilinear)
  assert config.model == expected.model
  assert config.data.mask_values == (((0, 0, 0), 0), ((9, 8, 7), 1))
  assert (config.data.mean, config.data.std) == ((0.0,) * 3, (1.0,) * 3)
  variables = parity.load(path, config)
  arrays, nameless = naming.to_milesial(
    naming.flatten(variables), config.model.depth
  )
  assert not nameless
  exported = str(tmp_path / 'exported.safetensors')
  files.write_safetensors(exported, arrays, {})
  loaded = safetensors_torch.load_file(exported)
  network = _network(bilinear)
  torch.nn.init.zeros_(network.outc.conv.weight)
  network.load_state_dict(loaded)
  for name, tensor in network.state_dict().items():
    assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
  'bilinear,count', [(False, 31_037_698), (True, 17_263_042)]
)
def test_at_full_size_it_has_the_parameters_of_theirs(bilinear, count):
  with torch.device('meta'):
    network = _UNet(3, 2, (64, 128, 256, 512, 1024), bilinear)
  config = _config(bilinear)
  config.model.update(depth=4, base_features=64)
  config.model.max_features = 512 if bilinear else 1024
  wanted = naming.abstract_variables(unet.create_model(config), (64, 64, 3))
  ours = sum(x.size for x in jax.tree.leaves(wanted['params']))
  assert ours == sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
  'bilinear,fields,fit',
  [
    (False, {'activation': 'elu'}, 'activation=relu'),
    (
      False,
      {'downsample': 'average', 'norm_epsilon': 1e-3},
      'downsample=max --config.model.norm_epsilon=1e-05',
    ),
    (False, {'padding': 'valid'}, 'padding=same'),
    (
      False,
      {'upsample': 'nearest', 'upsample_kernel': 2},
      'upsample=transpose',
    ),
    (True, {'upsample': 'bilinear'}, 'upsample=bilinear_corners'),
  ],
)
def test_a_config_of_another_function_is_refused(
  bilinear, fields, fit, tmp_path
):
  """Of the same shapes."""
  path, config = _save(_network(bilinear), tmp_path), _config(bilinear)
  config.data.image_size = (44, 44)
  parity.load(path, config)
  config.model.update(fields)
  assert message_of(parity.load, path, config) == (
    f"{path}: the file's network is another one than the config's; it fits "
    f'with --config.model.{fit}'
  )


def test_other_means_than_theirs_are_logged(tmp_path, caplog):
  path, config = _save(_network(False), tmp_path), _config(False)
  config.data.mean = (0.5, 0.0, 0.0)
  with caplog.at_level('INFO', 'unet_jax'):
    parity.load(path, config)
  assert caplog.messages[-1] == (
    f"{path}: the program that its names are of takes --config.data.mean='"
    "(0.0,0.0,0.0)'; the config has --config.data.mean='(0.5,0.0,0.0)'"
  )


def test_biases_beside_batch_norm_change_nothing(tmp_path, caplog):
  network, config = _network(False).eval(), _config(False)
  for module in network.modules():
    if isinstance(module, torch.nn.Conv2d) and module.bias is None:
      module.bias = torch.nn.Parameter(torch.randn(module.out_channels))
  with caplog.at_level('INFO', 'unet_jax'):
    variables = parity.load(_save(network, tmp_path), config)
  assert '10 biases of convolutions went into the running means' in caplog.text
  assert 'skipped: 10 num_batches_tracked' in caplog.text
  images = parity.draw(1, *_SIZE, 3)
  expected = network.double()(_to_torch(images))
  actual = unet.create_model(config).apply(variables, images, train=False)
  assert parity.difference(np.asarray(actual), _from_torch(expected)) < 1e-5
