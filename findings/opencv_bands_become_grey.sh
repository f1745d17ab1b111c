#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, tifffile 2026.3.3, numpy 2.4.6, Python 3.11
# or newer.
#
# cv2.imread(path, cv2.IMREAD_UNCHANGED) of a TIFF of three or four bands that
# are tagged black-is-zero, as GDAL writes bands that are no colours, depends on
# their type: of uint8 it gives the first band, of uint16 the grey of a
# photograph (0.299, 0.587 and 0.114 of the first three), of float32 all bands.
# Of two bands of uint16 it gives uint8, the first divided by 256. There is no
# error and no warning. One would guess that UNCHANGED gives [H, W, bands] of
# the stored type, as it does of the same pixels tagged RGB.
#
# Seen: "4 bands, uint8: (40, 50), the first band", "4 bands, uint16: (40, 50), a
# grey", "4 bands, float32: (40, 50, 4), all bands", "2 bands, uint16: (40, 50),
# the first band / 256".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 \
  tifffile==2026.3.3 numpy==2.4.6
cat > "$folder/read.py" <<'EOF'
import sys

import cv2
import numpy as np
import tifffile

path = f'{sys.argv[1]}/bands.tif'
for bands, dtype in ((4, 'uint8'), (4, 'uint16'), (4, 'float32'), (2, 'uint16')):
  rng = np.random.default_rng(bands)
  high = 2**8 if dtype == 'uint8' else 2**16
  array = rng.integers(0, high, (40, 50, bands)).astype(dtype)
  tifffile.imwrite(
    path, array, photometric='minisblack', planarconfig='contig'
  )
  found = cv2.imread(path, cv2.IMREAD_UNCHANGED)
  what = 'other values'
  if found.ndim == 3 and np.array_equal(found, array[..., [2, 1, 0, 3]]):
    what = 'all bands'  # OpenCV has the order BGRA.
  elif np.array_equal(found, array[..., 0]):
    what = 'the first band'
  elif np.array_equal(found, array[..., 0] // 256):
    what = 'the first band / 256'
  elif bands == 4:
    grey = array[..., :3] @ [0.299, 0.587, 0.114]
    what = 'a grey' if np.abs(found - grey).max() < 10 else what
  print(f'{bands} bands, {dtype}: {found.shape}, {what}')
EOF
"$folder/venv/bin/python" "$folder/read.py" "$folder" | tee "$folder/seen"
grep -q '^4 bands, uint8: (40, 50), the first band$' "$folder/seen"
grep -q '^4 bands, uint16: (40, 50), a grey$' "$folder/seen"
grep -q '^4 bands, float32: (40, 50, 4), all bands$' "$folder/seen"
grep -q '^2 bands, uint16: (40, 50), the first band / 256$' "$folder/seen"
