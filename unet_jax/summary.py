"""--mode=summary: the layers and costs of a network, and its drawing."""

import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.stages import Compiled

from unet_jax.config import fields
from unet_jax.models import graph, sizes, unet
from unet_jax.planning import programs
from unet_jax.reports import diagram, diagram_parts, text_table
from unet_jax.runtime import mesh as mesh_lib
from unet_jax.runtime import program, whole_files

_log = logging.getLogger(__name__)

# Names in the compiler's report, and in words.
_MEMORY = {
  'argument_bytes': ('argument_size_in_bytes', 'arguments'),
  'output_bytes': ('output_size_in_bytes', 'outputs'),
  'alias_bytes': ('alias_size_in_bytes', 'outputs over arguments'),
  'temp_bytes': ('temp_size_in_bytes', 'temporaries'),
  'peak_bytes': ('peak_memory_in_bytes', 'peak (CPUs: no temporaries)'),
}


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Prints a table of layers and writes summary.json, .txt, network.svg, .png.

  No array of the network is made: all shapes come from tracing, and the train
  step, where `summary.compile` is on, is compiled for abstract arguments.

  Raises:
    UserError: the image does not fit the network, or the mesh the devices.
  """
  program.initialize(fields.cache_dir(config))
  model = unet.create_model(config)
  image = (*config.data.image_size, config.data.num_channels)
  network = graph.read(model, image)
  compiles = config.summary.compile
  summary = {
    'image': image,
    'output': network.heads[-1].output,
    'parameters': network.parameters,
    'flops': network.flops,
    'compiler_flops': _forward_flops(model, image),
    'activation_bytes': network.bytes,
    'receptive_field': sizes.receptive_field(model),
    'layers': [layer._asdict() for layer in network.layers],
    'train_step': _train_step(config, model) if compiles else None,
  }
  text = format_summary(summary)
  if jax.process_index():
    return
  whole_files.make_workdir(workdir)
  path = lambda name: os.path.join(workdir, name)
  with whole_files.replacing(path('summary.txt')) as f:
    f.write(text + '\n')
  whole_files.write_json(path('summary.json'), summary)
  diagram.draw(network, path('network.svg'), path('network.png'))
  print(text)
  _log.info('wrote summary.* and network.* into %s', workdir)


def _forward_flops(model: unet.UNet, image: graph.Shape) -> float | None:
  """XLA's count for one image, forward, before it optimises; no compiling."""

  def apply(variables, x, key):
    return model.apply(
      variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats']
    )

  key = jax.eval_shape(lambda: jax.random.key(0))
  x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  variables = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), key, x
  )
  cost = jax.jit(apply).lower(variables, x, key).cost_analysis()
  return (cost or {}).get('flops')


def costs(compiled: Compiled) -> dict[str, float | None]:
  """Returns FLOP and bytes of a program, per device; None: not reported."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  known = {k: getattr(memory, name, None) for k, (name, _) in _MEMORY.items()}
  total = None
  if memory is not None:
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  return {'flops': (cost or {}).get('flops'), **known, 'total_bytes': total}


def _train_step(
  config: ml_collections.ConfigDict, model: unet.UNet
) -> dict[str, Any]:
  """Returns the compiler's costs of the train step."""
  mesh = mesh_lib.make_mesh(config)
  compiled = programs.lower_train_step(config, model, mesh).compile()
  return {
    'backend': mesh.devices.flat[0].platform,
    'devices': mesh.size,
    'batch_size': config.data.batch_size,
    **costs(compiled),
  }


def _memory(n: float | None) -> str:
  if n is None:
    return 'not given'
  if n < 2**20:
    return f'{n / 2**10:.1f} KiB'
  return f'{n / 2**20:,.1f} MiB'


def _flop(n: float | None) -> str:
  return 'not given' if n is None else diagram_parts.quantity(n).strip()


def _sides(shape: graph.Shape) -> str:
  return ' x '.join(map(str, shape))


def format_summary(summary: dict[str, Any]) -> str:
  """Returns the table of layers, the totals and the train step, as text."""
  rows = [('layer', 'kind', 'output', 'parameters', 'FLOP', 'activations')]
  for layer in summary['layers']:
    rows.append(
      (
        layer['path'],
        layer['kind'],
        _sides(layer['output']),
        f'{layer["parameters"]:,}' if layer['parameters'] else '',
        _flop(layer['flops']) if layer['flops'] else '',
        _memory(layer['bytes']),
      )
    )
  totals = (
    f'{summary["parameters"]:,}',
    _flop(summary['flops']),
    _memory(summary['activation_bytes']),
  )
  rows.append(('total', '', '', *totals))
  notes = [
    'For one image, forward, with all heads. FLOP: of convolutions and',
    'products; a multiply and an add are 2, padding counts as pixels do.',
    "Activations: the layers' outputs.",
  ]
  facts = [
    ('image', _sides(summary['image'])),
    ('logits', _sides(summary['output'])),
    ('receptive field', f'{summary["receptive_field"]} pixels'),
    ('parameters', totals[0]),
    ('FLOP', totals[1]),
    (
      'FLOP (compiler)',
      f'{_flop(summary["compiler_flops"])}, with norms and the like, without '
      'padding',
    ),
  ]
  header, *layers, total = text_table.aligned(rows, left=2)
  rule = '-' * len(header)
  return '\n'.join(
    [header, rule, *layers, rule, total, '', *notes, '', *_lines(facts), '']
    + _step_lines(summary)
  )


def _lines(facts: list[tuple[str, str]]) -> list[str]:
  return [f'{name:<30}{value}' for name, value in facts]


def _step_lines(summary: dict[str, Any]) -> list[str]:
  """The compiler's costs of the train step."""
  step = summary['train_step']
  if step is None:
    return ['The train step was not compiled (summary.compile=False).']
  # Each of a convolution's two gradients, by input and kernel, costs as much.
  ours = 3 * summary['flops'] * step['batch_size'] / step['devices']
  facts = [
    ('FLOP, 3 x forward x images', _flop(ours)),
    ('FLOP (compiler)', _flop(step['flops'])),
    *((name, _memory(step[key])) for key, (_, name) in _MEMORY.items()),
    ('all memory', _memory(step['total_bytes'])),
  ]
  title = (
    f'Train step of {step["batch_size"]} images, for each of '
    f'{step["devices"]} {step["backend"]} device(s), from the compiler, with '
    "XLA's convolutions (native ones, cpu.kernels, take other memory):"
  )
  return [title, '', *_lines(facts)]
