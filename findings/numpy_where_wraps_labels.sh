#!/usr/bin/env bash
# numpy 2.4.6, Python 3.11 or newer.
#
# np.where(mask, 300, labels), with labels of uint8, gives 44 where the mask is
# true, without an error or a warning; so do np.choose and np.pad. NumPy 1 gave
# 300, of uint16. One would guess that NumPy 2 raises, as it does for the same
# number in labels + 300, labels[mask] = 300, np.full_like, np.copyto and
# np.maximum: "Python integer 300 out of bounds for uint8". An id above 255, or
# -9999 for no data, becomes another class.
#
# Seen: "where: 44 of uint8", "choose: 44 of uint8", "pad: 44 of uint8", and
# "OverflowError" for the other five.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6
cat > "$folder/fill.py" <<'EOF'
import warnings

import numpy as np

warnings.simplefilter('error')
labels = np.array([0, 1, 2], np.uint8)
mask = labels == 2


def assign():
  filled = labels.copy()
  filled[mask] = 300
  return filled


def copyto():
  filled = labels.copy()
  np.copyto(filled, 300, where=mask)
  return filled


for name, function in {
  'where': lambda: np.where(mask, 300, labels),
  'choose': lambda: np.choose(mask, [labels, 300]),
  'pad': lambda: np.pad(labels, (0, 1), constant_values=300),
  'add': lambda: labels + 300,
  'assign': assign,
  'full_like': lambda: np.full_like(labels, 300),
  'copyto': copyto,
  'maximum': lambda: np.maximum(labels, 300),
}.items():
  try:
    result = function()
    print(f'{name}: {result[-1]} of {result.dtype}')
  except OverflowError as e:
    print(f'{name}: OverflowError: {e}')
EOF
"$folder/venv/bin/python" "$folder/fill.py" | tee "$folder/seen"
test "$(grep -c ': 44 of uint8$' "$folder/seen")" = 3
test "$(grep -c ': OverflowError' "$folder/seen")" = 5
