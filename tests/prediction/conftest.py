"""A run that several files predict with."""

import pytest

from tests import runs, tiny


def make_config(**sections):
  sections['model'] = {'norm': 'none', **sections.get('model', {})}
  data = {'image_size': (16, 16), 'num_workers': 2, **sections.pop('data', {})}
  return tiny.make_config(data=data, **sections)


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  """Of a run with two checkpoints; the states of these."""
  path = tmp_path_factory.mktemp('run')
  config = make_config(checkpoint={'keep_latest': 2})
  return path, config, *runs.save(path, config, steps=(1, 2))
