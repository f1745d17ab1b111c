"""Imports go one way, modules stay short, each has tests: from the code."""

import ast
import graphlib
import pathlib
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# A folder imports those before it; the files at the top, the modes, come last.
_ORDER = (
  'runtime',
  'config',
  'kernels',
  'models',
  'data',
  'reports',
  'training',
  'weights',
  'inspection',
  'prediction',
  'evaluation',
  'planning',
)
_LONG = {
  # One file documents every field.
  'unet_jax.config.default',
}
# In reading order.
_CORE = (
  'main.py',
  'unet_jax/__main__.py',
  'unet_jax/train.py',
  'unet_jax/config/default.py',
  'unet_jax/data/pipeline.py',
  'unet_jax/models/unet.py',
  'unet_jax/models/blocks.py',
  'unet_jax/training/steps.py',
  'unet_jax/training/losses.py',
  'unet_jax/training/optimizer.py',
  'unet_jax/training/state.py',
  'unet_jax/training/update.py',
  'unet_jax/evaluation/confusion.py',
)
# Modules that tests of another name cover.
_TESTED_IN = {
  'unet_jax': 'prediction/restore_test.py',
  'unet_jax.__main__': 'main_test.py',
  'unet_jax.config.loss_checks': 'config/checks_test.py',
  'unet_jax.config.value_checks': 'config/checks_test.py',
  'unet_jax.config.output_size': 'models/sizes_test.py',
  'unet_jax.data.array_files': 'data/prepared_test.py',
  'unet_jax.data.examples': 'data/decode_test.py',
  'unet_jax.data.image_levels': 'data/intensity_test.py',
  'unet_jax.data.mask_advice': 'data/masks_test.py',
  'unet_jax.data.mask_colors': 'data/masks_test.py',
  'unet_jax.data.noticed': 'data/prepare_test.py',
  'unet_jax.data.jpeg': 'data/decode_test.py',
  'unet_jax.data.png': 'data/stored_test.py',
  'unet_jax.data.tiff': 'data/stored_test.py',
  'unet_jax.data.tiff_image': 'data/stored_test.py',
  'unet_jax.data.tiff_tags': 'data/stored_test.py',
  'unet_jax.data.file_pairs': 'data/folder_source_test.py',
  'unet_jax.data.tfds_source': 'data/oxford_iiit_pet_test.py',
  'unet_jax.evaluation.counting': 'runtime/mesh_test.py',
  'unet_jax.evaluation.files': 'main_test.py',
  'unet_jax.export_weights': 'import_weights_test.py',
  'unet_jax.kernels.calls': 'kernels/convolution_test.py',
  'unet_jax.inspection.before_training': 'inspection/duplicates_test.py',
  'unet_jax.inspection.network': 'inspect_data_test.py',
  'unet_jax.inspection.plan': 'inspection/suggest_test.py',
  'unet_jax.inspection.shown': 'inspect_data_test.py',
  'unet_jax.inspection.records': 'inspection/scan_test.py',
  'unet_jax.models.trace': 'models/graph_test.py',
  'unet_jax.planning.report': 'planning/costs_test.py',
  'unet_jax.prediction.kept_tags': 'prediction/row_files_test.py',
  'unet_jax.prediction.network': 'prediction/index_test.py',
  'unet_jax.prediction.sinks': 'prediction/predictor_test.py',
  'unet_jax.prediction.step': 'prediction/restore_test.py',
  'unet_jax.reports.charts': 'evaluation/page_test.py',
  'unet_jax.reports.diagram_layout': 'reports/diagram_test.py',
  'unet_jax.reports.diagram_parts': 'reports/diagram_test.py',
  'unet_jax.runtime.errors': 'main_test.py',
  'unet_jax.training.checkpoint': 'train_test.py',
  'unet_jax.training.deep_supervision': 'training/steps_test.py',
  'unet_jax.training.loss_terms': 'training/losses_test.py',
  'unet_jax.training.made_by': 'training/checkpoint_test.py',
  'unet_jax.training.native_update': 'training/update_test.py',
  'unet_jax.training.state': 'training/steps_test.py',
  'unet_jax.weights.deduce': 'import_weights_test.py',
  'unet_jax.weights.files': 'import_weights_test.py',
  'unet_jax.weights.match': 'import_weights_test.py',
  'unet_jax.weights.naming': 'weights/milesial_parity_test.py',
}


def _module(path):
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_MODULES = {
  _module(path): path
  for path in sorted((_ROOT / 'unet_jax').rglob('*.py'))
  if path.name != '__init__.py' or path.read_text()
}


def _imports(path):
  """Full names of all that a module imports, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _graph():
  """{module: the modules of unet_jax that it imports}."""
  return {
    module: {
      name if name in _MODULES else name.rpartition('.')[0]
      for name in _imports(path)
    }
    & set(_MODULES)
    for module, path in _MODULES.items()
  }


def _floor(module):
  folder, _, name = module.removeprefix('unet_jax.').partition('.')
  return _ORDER.index(folder) if name else len(_ORDER)


def _num_lines(path):
  return len(path.read_text().splitlines())


def test_every_folder_has_a_floor():
  folders = {p.parent.name for p in (_ROOT / 'unet_jax').glob('*/__init__.py')}
  assert folders <= set(_ORDER)


def test_imports_go_one_way():
  upward = [
    f'{module} imports {other}'
    for module, others in _graph().items()
    for other in others
    if _floor(other) > _floor(module)
  ]
  assert not upward


def test_imports_form_no_circle():
  # Raises CycleError with the circle.
  order = tuple(graphlib.TopologicalSorter(_graph()).static_order())
  assert len(order) == len(_MODULES) > 50


def test_the_library_imports_no_application():
  outside = {
    (module, name)
    for module, path in _MODULES.items()
    for name in _imports(path)
    if name.partition('.')[0] in ('configs', 'experiments', 'tests', 'main')
  }
  assert not outside


def test_modules_are_short():
  long = {m for m, path in _MODULES.items() if _num_lines(path) > 400}
  assert long == _LONG


def test_the_core_is_read_in_an_afternoon():
  assert sum(_num_lines(_ROOT / name) for name in _CORE) <= 2600
  assert _num_lines(_ROOT / 'unet_jax/__main__.py') < 100


def test_every_module_has_its_tests():
  for module in _MODULES:
    folder = module.replace('.', '/').removeprefix('unet_jax').lstrip('/')
    test = _ROOT / 'tests' / f'{folder}_test.py'
    assert test.is_file() or module in _TESTED_IN, module
  assert set(_TESTED_IN) <= set(_MODULES)
  for test in _TESTED_IN.values():
    assert (_ROOT / 'tests' / test).is_file(), test


@pytest.fixture(scope='module')
def project():
  return tomllib.loads((_ROOT / 'pyproject.toml').read_text())


def _lines(name):
  lines = (_ROOT / name).read_text().splitlines()
  return [line for line in lines if line and not line.startswith('#')]


def test_the_package_needs_what_the_requirements_say(project):
  assert 'dependencies' in project['project']['dynamic']
  dynamic = project['tool']['setuptools']['dynamic']
  assert dynamic['dependencies'] == {'file': ['requirements.txt']}
  extras = project['project']['optional-dependencies']
  assert extras['dev'] == _lines('requirements-dev.txt')


def test_constraints_pin_all_that_is_required():
  normal = lambda name: name.lower().replace('_', '-')
  pinned = {normal(s.partition('==')[0]) for s in _lines('constraints.txt')}
  for line in (*_lines('requirements.txt'), *_lines('requirements-dev.txt')):
    name = line
    for sign in '<>=~![':
      name = name.partition(sign)[0]
    assert normal(name) in pinned, line


def test_the_package_has_all_folders(project):
  settings = project['tool']['setuptools']
  folders = {
    _module(path) for path in (_ROOT / 'unet_jax').rglob('__init__.py')
  }
  assert set(settings['packages']) == {*folders, 'unet_jax.configs'}
  assert settings['package-dir']['unet_jax.configs'] == 'configs'


def test_the_package_has_all_files(project):
  """Those that are not Python's: pages, and the source of the kernels."""
  data = project['tool']['setuptools']['package-data']
  packed = {
    path
    for package, patterns in data.items()
    for pattern in patterns
    for path in (_ROOT / package.replace('.', '/')).glob(pattern)
  }
  for path in (_ROOT / 'unet_jax').rglob('*.*'):
    assert path.suffix in ('.py', '.pyc') or path in packed, path
