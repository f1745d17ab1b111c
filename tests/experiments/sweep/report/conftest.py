"""A made-up sweep and its report, for the tests of both."""

import shutil

import pytest

from experiments.sweep.report import page
from tests.experiments.sweep.report import fake_sweep


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
  """A sweep in which depth matters, one of whose points failed; its report."""
  directory = tmp_path_factory.mktemp('sweep')
  failed = ('upsample=nearest,depth=2,seed=1',)
  fake_sweep.write(
    directory, fake_sweep.GRID, 5, 40, fake_sweep.depth_matters, failed=failed
  )
  conclusion = page.write(directory, resamples=fake_sweep.DRAWS)
  return directory, conclusion


@pytest.fixture
def sweep(whole, tmp_path):
  """A copy that a test may break."""
  shutil.copytree(whole[0], tmp_path / 'sweep')
  return tmp_path / 'sweep'
