"""Reading programs, on what libtpu 0.0.52 made of a small one.

Three steps of gradient descent in a loop, on the mean square of a 3x3
convolution's ReLU: x bfloat16 [8, 32, 32, 8], kernel float32 [3, 3, 8, 16],
for v5e:2x2 with fsdp=2 and spatial=2. Of the settings of operations only the
estimates of cycles are left, and no places in files.
"""

import math
import pathlib

import pytest

from unet_jax.planning import hlo

PROGRAM = pathlib.Path(__file__).with_name('two_axes.hlo.txt').read_text()


@pytest.fixture(scope='module')
def operations():
  return hlo.read(PROGRAM)


@pytest.mark.parametrize(
  'text,expected',
  [
    ('f32[]', [('f32', (), 4, 4, False)]),
    # 8 x 128 of the two innermost axes.
    (
      'bf16[3,3,8,16]{3,2,1,0:T(8,128)(2,1)S(1)}',
      [('bf16', (3, 3, 8, 16), 2304, 9 * 8 * 128 * 2, True)],
    ),
    # The axis of 3 is an outer one here.
    (
      'u8[2,32,32,3]{2,1,3,0:T(8,128)(4,1)}',
      [('u8', (2, 32, 32, 3), 6144, 2 * 3 * 32 * 128, False)],
    ),
    ('pred[2]{0:T(512)(128)(4,1)}', [('pred', (2,), 2, 512, False)]),
    (
      '(f32[8]{0:T(128)}, /*index=1*/s32[2]{0}, u32[]{:S(2)})',
      [
        ('f32', (8,), 32, 512, False),
        ('s32', (2,), 8, 8, False),
        ('u32', (), 4, 4, False),
      ],
    ),
    ('f32[32]{0:T(128)S(3)}', [('f32', (32,), 128, 512, True)]),
    ('f8e4m3fn[4]{0}', [('f8e4m3fn', (4,), 4, 4, False)]),
  ],
)
def test_arrays(text, expected):
  assert [tuple(a) for a in hlo.arrays(text)] == expected


def test_what_is_in_a_loop_runs_as_often_as_it_does(operations):
  loop = [op for op in operations if 'while/body' in op.origin and op.cycles]
  assert len(loop) > 10
  in_body = {op.computation for op in loop if not op.inside} - {
    op.computation for op in operations if op.kind == 'while'
  }
  assert len(in_body) == 1
  assert {op.times for op in operations if op.computation in in_body} == {3}
  assert {op.times for op in operations if op.kind == 'while'} == {1}


def test_every_estimate_is_found_once(operations):
  found = [op.cycles for op in operations if op.cycles is not None]
  assert len(found) == PROGRAM.count('estimated_cycles')
  assert not any(op.cycles for op in operations if op.inside)


def test_products(operations):
  found = list(hlo.products(operations))
  # 16 columns become two of 8, beside three of padding: 5/4 of the products.
  pixels = 8 * 32 * 32 / 4 * 5 / 4
  of_kernel = 2 * 3 * 3 * 8 * 16
  assert [p.flops for _, p in found] == [pixels * of_kernel] * 2
  assert all(op.inside and op.times == 3 for op, _ in found)
  assert {(p.dtypes, p.is_exact) for _, p in found} == {
    (('bf16', 'bf16'), False)
  }
  assert {p.outputs for _, p in found} == {16}


def _program(*lines):
  return '\n'.join(['ENTRY %main (x: f32[2]) -> f32[] {', *lines, '}'])


def test_product_of_matrices():
  ((_, product),) = hlo.products(
    hlo.read(
      _program(
        '  %a = f32[4,5]{1,0} parameter(0)',
        '  %b = f32[5,6]{1,0} parameter(1)',
        '  ROOT %c = f32[4,6]{1,0} dot(%a, %b), lhs_contracting_dims={1}, '
        'rhs_contracting_dims={0}, operand_precision={highest,highest}',
      )
    )
  )
  assert product == (2 * 4 * 5 * 6, 5, 6, ('f32', 'f32'), True)


def test_zeros_between_pixels_are_not_multiplied():
  """A transposed convolution: each of 2x2 pixels sees one of four taps."""
  ((_, product),) = hlo.products(
    hlo.read(
      _program(
        '  %a = bf16[1,4,4,8]{3,2,1,0} parameter(0)',
        '  %b = bf16[2,2,8,3]{3,2,1,0} parameter(1)',
        '  ROOT %c = bf16[1,8,8,3]{3,2,1,0} convolution(%a, %b), '
        'window={size=2x2 pad=1_1x1_1 lhs_dilate=2x2}, '
        'dim_labels=b01f_01io->b01f',
      )
    )
  )
  assert product.flops == 2 * math.prod((4, 4, 8)) * math.prod((2, 2, 3))
