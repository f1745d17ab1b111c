"""The layers, stages and skips of a network, read from the network itself.

They come from a trace of the module; nothing is derived from a config a second
time. All shapes are without the batch axis.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn

from unet_jax.models import blocks, unet
from unet_jax.models.trace import Edge, Path, Shape, Trace


class Layer(NamedTuple):
  """A row of the table of layers.

  Attributes:
    path: names from the network down, `down_0/conv1`. Pooling and joining,
      which are no modules, are named after the two stages between which they
      are.
    kind: in words.
    output: its shape, [H, W, C].
    parameters: how many.
    flops: of its convolutions and products, for one image, forward: a multiply
      and an add count as 2, and pixels of padding as any others.
    bytes: of its output, for one image.
  """

  path: str
  kind: str
  output: Shape
  parameters: int
  flops: int
  bytes: int


class Skip(NamedTuple):
  """The encoder's features at a stage of the decoder.

  Attributes:
    source: the stage of the encoder.
    shape: after cropping.
    join: `concat` or `add`.
    is_cropped: whether the source's own shape is larger.
    gate: name of the attention gate on the way; '' without one.
    gating: the stage that controls the gate; '' without one.
  """

  source: str
  shape: Shape
  join: str
  is_cropped: bool
  gate: str
  gating: str


class Stage(NamedTuple):
  """A block of convolutions at one size.

  Attributes:
    name: of the module.
    level: halvings of the image's (or the stem's) size.
    entry: how features enter: `image`, `down` or `up`.
    entry_kind: the same in words: 'max pool 2x2'.
    source: the stage that they come from; '' for the image.
    came: shape that `entry` brings here; `up`: before it is joined.
    input: shape that the block takes.
    convs: path and shape of each convolution's output.
    conv_kind: 'conv 3x3, batch norm, ReLU'.
    is_residual: the input is added to the last convolution's output.
    has_squeeze_excite: whether its channels are scaled at the end.
    dropout: rate of the dropout behind it.
    skip: None without one.
  """

  name: str
  level: int
  entry: str
  entry_kind: str
  source: str
  came: Shape
  input: Shape
  convs: tuple[tuple[str, Shape], ...]
  conv_kind: str
  is_residual: bool
  has_squeeze_excite: bool
  dropout: float
  skip: Skip | None


class Head(NamedTuple):
  """Logits of a stage: `features` of the convolution, `output` in the end.

  They differ after a stem, whose pixels are put back in their places;
  `rearranged` says how, and is '' otherwise.
  """

  path: str
  kind: str
  source: str
  features: Shape
  output: Shape
  rearranged: str


class Network(NamedTuple):
  """A whole network; `heads` has the main one last."""

  image: Shape
  layers: tuple[Layer, ...]
  stages: tuple[Stage, ...]
  heads: tuple[Head, ...]

  @property
  def parameters(self) -> int:
    return sum(layer.parameters for layer in self.layers)

  @property
  def flops(self) -> int:
    return sum(layer.flops for layer in self.layers)

  @property
  def bytes(self) -> int:
    return sum(layer.bytes for layer in self.layers)


def read(model: unet.UNet, image: Shape) -> Network:
  """Reads a network.

  Args:
    model: read as in training: with dropout and all its heads.
    image: shape of one image, (H, W, C).

  Raises:
    UserError: the image does not fit the network.
  """
  return _Reader(model, image).network()


_ACTIVATIONS = {
  nn.relu: 'ReLU',
  nn.leaky_relu: 'leaky ReLU',
  nn.elu: 'ELU',
  nn.gelu: 'GELU',
  nn.silu: 'SiLU',
}


def _by_2(shape: Shape) -> str:
  """'2x2', for a volume '2x2x2'."""
  return 'x'.join('2' * (len(shape) - 1))


class _Reader:
  """Names what a trace of a network shows."""

  def __init__(self, model: unet.UNet, image: Shape):
    # The same function; a recomputed block would be traced under other names.
    self._trace = Trace(model.clone(remat=False), image)
    self._calls, self._image = self._trace.calls, tuple(image)

  def network(self) -> Network:
    stages: dict[str, Stage] = {}
    for path, call in self._calls.items():
      if isinstance(call.module, blocks.ConvBlock):
        stages[path[0]] = self._stage(path[0], stages)
    heads = self._heads()
    layers = tuple(self._layers(stages.values(), heads))
    return Network(self._image, layers, tuple(stages.values()), heads)

  def _sources(self, path: Path, scope: Path = ()) -> list[Edge]:
    return self._trace.edges(self._trace.inputs(path), scope)

  def _module(self, name: str) -> Any:
    return self._calls[name,].module if name else None

  def _stage_before(self, name: str) -> str:
    """Goes back to the stage that a layer's input comes from."""
    while name and not isinstance(self._module(name), blocks.ConvBlock):
      (edge,) = self._sources((name,))
      name = edge.source
    return name

  def _stage(self, name: str, before: dict[str, Stage]) -> Stage:
    """Reads a stage; `before` has those that were called earlier."""
    (variable,) = self._trace.inputs((name,))
    shape = came = variable.aval.shape[1:]
    edges = self._trace.edges([variable])
    is_up = lambda e: isinstance(self._module(e.source), blocks.Upsample)
    skip, up = None, next(filter(is_up, edges), None)
    if up is not None:
      entry, source = 'up', self._stage_before(up.source)
      level = before[source].level - 1
      entry_kind = self._upsample_kind(up.source)
      *size, channels = self._calls[up.source,].output.shape
      came = (*shape[:-1], channels)
      if came[:-1] != tuple(size):
        grows = math.prod(came[:-1]) > math.prod(size)
        entry_kind += ', zero-padded' if grows else ', cropped'
      if len(edges) > 1:
        (other,) = (e for e in edges if e is not up)
        skip = self._skip(other, shape)
    else:
      (edge,) = edges
      source = self._stage_before(edge.source)
      level = before[source].level + 1 if source else 0
      entry = 'down' if source else 'image'
      entry_kind = self._entry_kind(edge, shape)
    results = self._trace.edges(self._trace.results((name,)), (name,))
    convs = self._convs(name, results)
    return Stage(
      name=name,
      level=level,
      entry=entry,
      entry_kind=entry_kind,
      source=source,
      came=came,
      input=shape,
      convs=tuple(('/'.join(p), self._calls[p].output.shape) for p in convs),
      conv_kind=self._conv_kind(convs[0]),
      # The shortcut is the other.
      is_residual=len(results) > 1,
      has_squeeze_excite=(name, 'squeeze_excite') in self._calls,
      dropout=self._dropout(name),
      skip=skip,
    )

  def _convs(self, name: str, results: list[Edge]) -> list[Path]:
    """The convolutions of a stage that follow one another."""
    chain: list[Path] = []
    # The first of the sources is the chain, the other the shortcut.
    while results and results[0].source:
      path = (name, results[0].source)
      if isinstance(self._calls[path].module, nn.Conv):
        chain.insert(0, path)
      results = self._sources(path, (name,))
    return chain

  def _conv_kind(self, conv: Path) -> str:
    """A stage's convolution, norm and activation in words."""
    stage, name = conv
    parts = [self._kind(conv)]
    for path in self._calls:
      is_norm = path[:2] == (stage, name.replace('conv', 'norm'))
      if is_norm and self._is_leaf(path):
        parts.append(self._kind(path).partition(',')[0])
    return ', '.join([*parts, _ACTIVATIONS[self._module(stage).activation]])

  def _dropout(self, stage: str) -> float:
    for path, call in self._calls.items():
      if isinstance(call.module, nn.Dropout) and call.module.rate:
        (edge,) = self._sources(path)
        if edge.source == stage:
          return call.module.rate
    return 0.0

  def _upsample_kind(self, name: str) -> str:
    module = self._module(name)
    resize = f'{module.kind.replace("_", " ")} upsampling'
    if module.is_valid and module.kind == 'bilinear':
      resize += ', cropped'
    if (name, 'conv') not in self._calls:
      return resize
    conv = self._kind((name, 'conv'))
    return conv if module.kind == 'transpose' else f'{resize}, {conv}'

  def _entry_kind(self, edge: Edge, shape: Shape) -> str:
    """How features enter a stage of the encoder, in words."""
    if isinstance(self._module(edge.source), blocks.Conv2x):
      return self._kind((edge.source,))
    if not edge.source:
      is_image = shape == self._image
      return 'image' if is_image else f'space to depth {_by_2(shape)}'
    combine = 'max' if 'max' in edge.operations else 'average'
    return f'{combine} pool {_by_2(shape)}'

  def _skip(self, edge: Edge, joined: Shape) -> Skip:
    gate, gating = '', ''
    if isinstance(self._module(edge.source), blocks.AttentionGate):
      gate = edge.source
      # The gate's arguments: the skip, then the coarser stage.
      source, gating = sorted(
        (self._stage_before(e.source) for e in self._sources((gate,))),
        key=lambda name: -math.prod(self._calls[name,].output.shape[:-1]),
      )
    else:
      source = self._stage_before(edge.source)
    whole = self._calls[source,].output.shape
    shape = (*joined[:-1], whole[-1])
    return Skip(
      source=source,
      shape=shape,
      join='concat' if 'concatenate' in edge.operations else 'add',
      is_cropped=shape != whole,
      gate=gate,
      gating=gating,
    )

  def _heads(self) -> tuple[Head, ...]:
    heads = []
    for variable in self._trace.outputs:
      (edge,) = self._trace.edges([variable])
      (before,) = self._sources((edge.source,))
      features = self._calls[edge.source,].output.shape
      output = variable.aval.shape[1:]
      is_same = output == features
      heads.append(
        Head(
          path=edge.source,
          kind=self._kind((edge.source,)),
          source=self._stage_before(before.source),
          features=features,
          output=output,
          rearranged='' if is_same else f'depth to space {_by_2(output)}',
        )
      )
    return tuple(heads[1:] + heads[:1])

  def _kind(self, path: Path) -> str:
    """A layer in words."""
    module = self._calls[path].module
    if isinstance(module, nn.BatchNorm):
      return 'batch norm'
    if isinstance(module, nn.Dropout):
      return f'dropout {module.rate:g}'
    if isinstance(module, nn.GroupNorm):
      # The wrapper has the groups of the config; None: a group per channel.
      groups = self._calls[path[:-1]].module.groups
      kinds = {1: 'layer norm', None: 'instance norm'}
      return kinds.get(groups, f'group norm, {module.num_groups} groups')
    convolutions = (blocks.ConvTranspose2x, blocks.Conv2x, nn.Conv)
    if not isinstance(module, convolutions):
      return type(module).__name__
    *size, _, _ = self._trace.parameters[path]['kernel'].shape
    kernel = 'x'.join(map(str, size))
    if isinstance(module, blocks.ConvTranspose2x):
      return f'transposed conv {kernel}'
    stride = ', stride 2' if isinstance(module, blocks.Conv2x) else ''
    return f'conv {kernel}{stride}'

  def _is_leaf(self, path: Path) -> bool:
    if any(p[: len(path)] == path and p != path for p in self._calls):
      return False
    module = self._calls[path].module
    return not (isinstance(module, nn.Dropout) and module.rate == 0)

  def _layers(
    self, stages: Iterable[Stage], heads: tuple[Head, ...]
  ) -> list[Layer]:
    """The rows of the table, in the order of the calls."""
    flops, parameters = self._trace.flops(), self._trace.parameters
    leaves = [path for path in self._calls if self._is_leaf(path)]
    missing = (set(flops) | set(parameters)) - set(leaves)
    assert not missing, f'no layer has {missing}'

    def row(name: str, kind: str, shape: Shape, like: Path) -> Layer:
      size = self._calls[like].output.dtype.itemsize
      return Layer(name, kind, shape, 0, 0, math.prod(shape) * size)

    before = {s.name: self._row_before(s, row) for s in stages}
    after = {
      h.path: row(f'{h.path}/output', h.rearranged, h.output, (h.path,))
      for h in heads
      if h.rearranged
    }
    rows: list[Layer | None] = []
    for path in leaves:
      shape, own = self._calls[path].output.shape, parameters.get(path, {})
      layer = row('/'.join(path), self._kind(path), shape, path)._replace(
        parameters=sum(math.prod(p.shape) for p in own.values()),
        flops=flops.get(path, 0),
      )
      rows += [before.pop(path[0], None), layer, after.get(path[0])]
    return [row for row in rows if row is not None]

  def _row_before(
    self, stage: Stage, row: Callable[..., Layer]
  ) -> Layer | None:
    """The row of an operation in front of a stage that is no module."""
    skip = stage.skip
    if stage.entry == 'image' and stage.input != self._image:
      name, kind = 'stem', stage.entry_kind
    elif stage.entry == 'down' and 'pool' in stage.entry_kind:
      name, kind = f'{stage.source} -> {stage.name}', stage.entry_kind
    elif skip is not None:
      name = f'{skip.source} -> {stage.name}'
      kind = 'concatenate' if skip.join == 'concat' else 'add'
      kind = f'crop, {kind}' if skip.is_cropped else kind
    else:
      return None
    return row(name, kind, stage.input, (stage.name,))
