"""What a network is made of, read from the network itself.

The module is traced without a computation. The calls of its layers give paths,
kinds and shapes; the traced program (a jaxpr), each of whose operations knows
the layer that it belongs to, gives the products and who consumes what. Nothing
is derived from a config a second time. All shapes are without the batch axis.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from unet_jax.models import blocks, unet

Shape = tuple[int, ...]
Path = tuple[str, ...]


class Layer(NamedTuple):
  """A row of the table of layers.

  Attributes:
    path: names from the network down, `down_0/conv1`. What is no module
      (pooling, joining) is named after the two stages that it lies between.
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
  """What a stage of the decoder gets from the encoder.

  Attributes:
    source: the stage's name.
    shape: of what arrives, after cropping.
    join: `concat` or `add`.
    is_cropped: less arrives than the source has.
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
    entry: how the features come here: `image`, `down` or `up`.
    entry_kind: the same in words: 'max pool 2x2'.
    source: the stage that they come from; '' for the image.
    came: shape of what `entry` brings here; `up`: before it is joined.
    input: shape of what the block takes.
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
  """Logits of a stage: `features` out of the convolution, `output` in the end.

  They differ where a stem's pixels are put back in their places, `rearranged`
  says how; it is '' otherwise.
  """

  path: str
  kind: str
  source: str
  features: Shape
  output: Shape
  rearranged: str


class Network(NamedTuple):
  """A network as it is; `heads` has the main one last."""

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


class _Call(NamedTuple):
  module: nn.Module
  output: jax.ShapeDtypeStruct


class _Edge(NamedTuple):
  """A way from a layer (`''`: from outside) to where it is consumed.

  `operations` are those on the way, which belong to no layer.
  """

  source: str
  operations: frozenset[str]


def read(model: unet.UNet, image: Shape) -> Network:
  """Reads a network.

  Args:
    model: as it is trained: with dropout and all its heads.
    image: shape of one image, (H, W, C).

  Raises:
    UserError: the image does not fit the network.
  """
  return _Reader(model, image).network()


def _sub_jaxprs(eqn) -> Iterator[Any]:
  for value in eqn.params.values():
    if hasattr(value, 'jaxpr'):
      yield value.jaxpr
    elif hasattr(value, 'eqns'):
      yield value


def _operations(eqn) -> set[str]:
  """Names of an operation and of those within it."""
  inner = (_operations(e) for jaxpr in _sub_jaxprs(eqn) for e in jaxpr.eqns)
  return {eqn.primitive.name}.union(*inner)


def _flops(eqn) -> int:
  """Of the convolutions and products in an operation."""
  if eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    left = eqn.invars[0].aval.shape
    each = math.prod(left[axis] for axis in contracted)
  elif eqn.primitive.name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    axis = eqn.params['dimension_numbers'].rhs_spec[0]
    each = math.prod(kernel) // kernel[axis]
  else:
    return sum(_flops(e) for jaxpr in _sub_jaxprs(eqn) for e in jaxpr.eqns)
  return 2 * each * math.prod(eqn.outvars[0].aval.shape)


def _sides(shape: Shape) -> str:
  return 'x'.join(map(str, shape))


_NAMES = {
  nn.relu: 'ReLU',
  nn.leaky_relu: 'leaky ReLU',
  nn.elu: 'ELU',
  nn.gelu: 'GELU',
  nn.silu: 'SiLU',
}


class _Reader:
  """Traces a network once and answers questions on the program."""

  def __init__(self, model: unet.UNet, image: Shape):
    # The same function; a recomputed block would be traced under other names.
    model = model.clone(remat=False)
    self._image, self._calls = image, {}
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((1, *image), jnp.float32)
    rngs = {'params': key, 'dropout': key}
    variables = jax.eval_shape(lambda x: model.init(rngs, x, train=False), x)

    def apply(x, variables):
      with nn.intercept_methods(self._record):
        return model.apply(
          variables,
          x,
          train=True,
          rngs={'dropout': key},
          mutable=['batch_stats'],
        )[0]

    jaxpr = jax.make_jaxpr(apply)(x, variables).jaxpr
    self._parameters = {}
    for path, leaf in jax.tree.leaves_with_path(variables['params']):
      names = tuple(k.key for k in path)
      self._parameters.setdefault(names[:-1], {})[names[-1]] = leaf
    self._eqns, self._outputs = jaxpr.eqns, jaxpr.outvars
    self._scopes = [self._scope(eqn) for eqn in jaxpr.eqns]
    # What depends on the image, and which operation made it.
    self._made = {jaxpr.invars[0]: None}
    for i, eqn in enumerate(jaxpr.eqns):
      if any(v in self._made for v in self._variables(eqn.invars)):
        self._made.update(dict.fromkeys(eqn.outvars, i))

  def _record(self, function, args, kwargs, context):
    output = function(*args, **kwargs)
    if context.method_name == '__call__' and context.module.path:
      self._calls[context.module.path] = _Call(
        context.module, jax.ShapeDtypeStruct(output.shape[1:], output.dtype)
      )
    return output

  @staticmethod
  def _variables(atoms) -> list:
    return [v for v in atoms if not hasattr(v, 'val')]  # Without literals.

  @staticmethod
  def _scope(eqn) -> Path:
    """The layer that an operation belongs to."""
    _, *names = str(eqn.source_info.name_stack).split('/')
    # `UNet._join` is a method, not a layer.
    return tuple(name for name in names if '.' not in name)

  def _edges(self, sinks, scope: Path = ()) -> list[_Edge]:
    """Where variables come from, in the order of the operands.

    Args:
      sinks: variables.
      scope: the layer whose own layers are asked for; (): the network.
    """
    edges = {}

    def follow(variable, operations):
      if variable not in self._made:
        return
      i = self._made[variable]
      owner = () if i is None else self._scopes[i]
      if i is None or owner[: len(scope)] != scope:
        edges.setdefault('', set()).update(operations)
      elif len(owner) > len(scope):
        edges.setdefault(owner[len(scope)], set()).update(operations)
      else:
        operations = operations | _operations(self._eqns[i])
        for operand in self._variables(self._eqns[i].invars):
          follow(operand, operations)

    for sink in sinks:
      follow(sink, frozenset())
    return [_Edge(k, frozenset(v)) for k, v in edges.items()]

  def _inputs(self, scope: Path) -> list:
    """Variables that a layer takes from outside."""
    inputs = {}
    for eqn, owner in zip(self._eqns, self._scopes):
      if owner[: len(scope)] == scope:
        for v in self._variables(eqn.invars):
          if v in self._made:
            i = self._made[v]
            if i is None or self._scopes[i][: len(scope)] != scope:
              inputs[v] = None
    return list(inputs)

  def _results(self, scope: Path) -> list:
    """Variables of a layer that are used outside."""
    results = {}
    for eqn, owner in zip(self._eqns, self._scopes):
      if owner[: len(scope)] != scope:
        for v in self._variables(eqn.invars):
          i = self._made.get(v)
          if i is not None and self._scopes[i][: len(scope)] == scope:
            results[v] = None
    return list(results)

  def _kernel(self, path: Path) -> str:
    return _sides(self._parameters[path]['kernel'].shape[:-2])

  def _kind(self, path: Path) -> str:
    """A layer in words."""
    module = self._calls[path].module
    if isinstance(module, blocks.ConvTranspose2x):
      return f'transposed conv {self._kernel(path)}'
    if isinstance(module, blocks.Conv2x):
      return f'conv {self._kernel(path)}, stride 2'
    if isinstance(module, nn.Conv):
      return f'conv {self._kernel(path)}'
    if isinstance(module, nn.BatchNorm):
      return 'batch norm'
    if isinstance(module, nn.GroupNorm):
      # The wrapper knows what it was asked for; None: a group per channel.
      kinds = {1: 'layer norm', None: 'instance norm'}
      return kinds.get(
        self._calls[path[:-1]].module.groups,
        f'group norm, {module.num_groups} groups',
      )
    if isinstance(module, nn.Dropout):
      return f'dropout {module.rate:g}'
    return type(module).__name__

  def _is_leaf(self, path: Path) -> bool:
    if any(p[: len(path)] == path and p != path for p in self._calls):
      return False
    module = self._calls[path].module
    return not (isinstance(module, nn.Dropout) and module.rate == 0)

  def network(self) -> Network:
    stages = []
    for path, call in self._calls.items():
      if isinstance(call.module, blocks.ConvBlock):
        stages.append(self._stage(path[0], {s.name: s for s in stages}))
    heads = self._heads()
    return Network(
      tuple(self._image), self._layers(stages, heads), tuple(stages), heads
    )

  def _stage_before(self, name: str) -> str:
    """Goes back to the stage that a layer's input comes from."""
    while name and not isinstance(self._calls[name,].module, blocks.ConvBlock):
      (edge,) = self._edges(self._inputs((name,)))
      name = edge.source
    return name

  def _stage(self, name: str, before: dict[str, Stage]) -> Stage:
    """Reads a stage; `before` has those that were called earlier."""
    (variable,) = self._inputs((name,))
    shape = variable.aval.shape[1:]
    edges = self._edges([variable])
    modules = {e.source: self._module(e.source) for e in edges}
    up = next(
      (e for e in edges if isinstance(modules[e.source], blocks.Upsample)), None
    )
    skip, came = None, shape
    if up is not None:
      entry, source = 'up', self._stage_before(up.source)
      level = before[source].level - 1
      entry_kind = self._upsample_kind(up.source)
      *size, channels = self._calls[up.source,].output.shape
      came = (*shape[:-1], channels)
      if came[:-1] != tuple(size):
        grows = math.prod(came[:-1]) > math.prod(size)
        entry_kind += ', zero-padded' if grows else ', cropped'
      others = [e for e in edges if e is not up]
      if others:
        skip = self._skip(*others, shape)
    else:
      (edge,) = edges
      source = self._stage_before(edge.source)
      level = before[source].level + 1 if source else 0
      entry = 'down' if source else 'image'
      entry_kind = self._glue_kind(edge, shape)
    return Stage(
      name=name,
      level=level,
      entry=entry,
      entry_kind=entry_kind,
      source=source,
      came=came,
      input=shape,
      convs=tuple(
        ('/'.join(path), self._calls[path].output.shape)
        for path in self._convs(name)
      ),
      conv_kind=self._conv_kind(name),
      is_residual=len(self._edges(self._results((name,)), (name,))) > 1,
      has_squeeze_excite=any(
        isinstance(c.module, blocks.SqueezeExcite) and path[0] == name
        for path, c in self._calls.items()
      ),
      dropout=self._dropout(name),
      skip=skip,
    )

  def _module(self, name: str) -> nn.Module | None:
    return self._calls[name,].module if name else None

  def _convs(self, name: str) -> list[Path]:
    """The convolutions of a stage that follow one another."""
    chain, names = (
      [],
      [e.source for e in self._edges(self._results((name,)), (name,))],
    )
    # The first of the sources is the chain, the other the shortcut.
    while names and names[0]:
      path = (name, names[0])
      if isinstance(self._calls[path].module, nn.Conv):
        chain.insert(0, path)
      names = [e.source for e in self._edges(self._inputs(path), (name,))]
    return chain

  def _conv_kind(self, name: str) -> str:
    (first, *_) = self._convs(name)
    parts = [self._kind(first)]
    for path in self._calls:
      if path[:2] == (name, first[1].replace('conv', 'norm')):
        if self._is_leaf(path):
          parts.append(self._kind(path).partition(',')[0])
    return ', '.join([*parts, _NAMES[self._module(name).activation]])

  def _dropout(self, name: str) -> float:
    for path, call in self._calls.items():
      if isinstance(call.module, nn.Dropout) and call.module.rate:
        (edge,) = self._edges(self._inputs(path))
        if edge.source == name:
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

  def _glue_kind(self, edge: _Edge, shape: Shape) -> str:
    """What brings the features to a stage or to the output, in words."""
    if edge.source and isinstance(self._module(edge.source), blocks.Conv2x):
      return self._kind((edge.source,))
    if not edge.source:
      changed = shape != tuple(self._image)
      square = _sides((2,) * (len(shape) - 1))
      return f'space to depth {square}' if changed else 'image'
    combine = 'max' if 'max' in edge.operations else 'average'
    return f'{combine} pool {_sides((2,) * (len(shape) - 1))}'

  def _skip(self, edge: _Edge, joined: Shape) -> Skip:
    gate, gating = '', ''
    if isinstance(self._module(edge.source), blocks.AttentionGate):
      gate = edge.source
      # The gate's arguments: the skip, then the coarser stage.
      inputs = self._edges(self._inputs((gate,)))
      source, gating = sorted(
        (self._stage_before(e.source) for e in inputs),
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
    for variable in self._outputs:
      (edge,) = self._edges([variable])
      (before,) = self._edges(self._inputs((edge.source,)))
      features = self._calls[edge.source,].output.shape
      output = variable.aval.shape[1:]
      square = _sides((2,) * (len(output) - 1))
      heads.append(
        Head(
          path=edge.source,
          kind=self._kind((edge.source,)),
          source=self._stage_before(before.source),
          features=features,
          output=output,
          rearranged=f'depth to space {square}' if output != features else '',
        )
      )
    return tuple(heads[1:] + heads[:1])

  def _layers(self, stages, heads) -> tuple[Layer, ...]:
    """The rows of the table, in the order of the calls."""
    flops = {}
    leaves = [path for path in self._calls if self._is_leaf(path)]
    for eqn, scope in zip(self._eqns, self._scopes):
      if n := _flops(eqn):
        flops[scope] = flops.get(scope, 0) + n
    missing = (set(flops) | set(self._parameters)) - set(leaves)
    assert not missing, f'no layer has {missing}'
    itemsize = {p: c.output.dtype.itemsize for p, c in self._calls.items()}

    def glue(name, kind, shape, like):
      size = math.prod(shape) * itemsize[like]
      return Layer(name, kind, shape, 0, 0, size)

    before = {s.name: self._glue_row(s, glue) for s in stages}
    after = {
      h.path: glue(f'{h.path}/output', h.rearranged, h.output, (h.path,))
      for h in heads
      if h.rearranged
    }
    rows = []
    for path in leaves:
      if row := before.pop(path[0], None):
        rows.append(row)
      output = self._calls[path].output
      own = self._parameters.get(path, {}).values()
      rows.append(
        Layer(
          '/'.join(path),
          self._kind(path),
          output.shape,
          sum(math.prod(p.shape) for p in own),
          flops.get(path, 0),
          math.prod(output.shape) * itemsize[path],
        )
      )
      if path[0] in after:
        rows.append(after[path[0]])
    return tuple(rows)

  def _glue_row(self, stage: Stage, glue) -> Layer | None:
    """The row of what no module does in front of a stage."""
    like = (stage.name,)
    if stage.entry == 'image' and stage.input != tuple(self._image):
      return glue('stem', stage.entry_kind, stage.input, like)
    if stage.entry == 'down' and 'pool' in stage.entry_kind:
      name = f'{stage.source} -> {stage.name}'
      return glue(name, stage.entry_kind, stage.input, like)
    if stage.skip is not None:
      kind = 'concatenate' if stage.skip.join == 'concat' else 'add'
      kind = f'crop, {kind}' if stage.skip.is_cropped else kind
      name = f'{stage.skip.source} -> {stage.name}'
      return glue(name, kind, stage.input, like)
    return None
