"""Names of files: unique, stable, as short as they can be."""

import pathlib

import pytest

from unet_jax.prediction import names
from unet_jax.runtime import errors


def _choose(sources, known=None):
  known = {f'/d/{k}': v for k, v in (known or {}).items()}
  sources = [pathlib.Path('/d', s) for s in sources]
  return list(names.choose(sources, known).values())


@pytest.mark.parametrize(
  'sources,known,expected',
  [
    (['p1/a.png', 'p1/b.png'], {}, ['a', 'b']),
    (['p1/a.png', 'p2/a.png', 'p2/b.png'], {}, ['p1__a', 'p2__a', 'b']),
    # The folders that tell them apart, and those below.
    (['1/x/a.png', '2/x/a.tif'], {}, ['1__x__a', '2__x__a']),
    (['1/x/a.png', '1/y/a.png', 'x/a.png'], {}, ['1__x__a', 'y__a', 'd__x__a']),
    # In one folder.
    (['p/a.png', 'p/a.tif'], {}, ['a_png', 'a_tif']),
    (['p/a.png', 'p/a.tif', 'q/a.png'], {}, ['p__a_png', 'p__a_tif', 'q__a']),
    # Names of before stay.
    (['p2/a.png'], {'p1/a.png': 'a'}, ['p2__a']),
    (['p1/a.png', 'p2/a.png'], {'p1/a.png': 'a'}, ['a', 'p2__a']),
    (['p1/a.png'], {'p1/a.png': 'p1__a'}, ['p1__a']),
    (['p1/a.tif'], {'p1/a.png': 'a'}, ['a_tif']),
    # A file that is named as another would be.
    (
      ['p1/a.png', 'p2/a.png', 'q/p2__a.png'],
      {},
      ['p1__a', 'p2__a', 'q__p2__a'],
    ),
    (['p2/a.png'], {'p1/a.png': 'a', 'p2__a.png': 'p2__a'}, ['d__p2__a']),
  ],
)
def test_names(sources, known, expected):
  assert _choose(sources, known) == expected


def test_the_order_of_a_call_does_not_matter():
  sources = ['p1/a.png', 'p2/a.png', 'q/p2/a.tif', 'p1/a.tif', 'b.png']
  forward, backward = _choose(sources), _choose(sources[::-1])
  assert forward == backward[::-1] and len(set(forward)) == len(sources)


def test_no_name_is_left():
  with pytest.raises(errors.UserError, match='/d/a.png: neither its folders'):
    _choose(['a.png'], {'a.tif': 'a', 'x.png': 'a_png', 'y.png': 'd__a_png'})
