#!/usr/bin/env bash
# Pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6, Python 3.11 or newer.
#
# Pillow opens a TIFF of int8 (SampleFormat 2, 8 bits: masks of GDAL and of
# tifffile) as mode L, and -1 comes as 255, -128 as 128, without an error or a
# warning. int16 and int32 keep their signs. One would guess a mode with a sign
# for int8 too, or a refusal, as of float64. "No label" of -1 becomes the 255
# that many programs ignore, or take for the foreground.
#
# Seen: "int8: mode L, [-128, -1, 0, 127] comes as [128, 255, 0, 127]", and for
# int16 and int32 "mode I, [-128, -1, 0, 127] comes as [-128, -1, 0, 127]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 \
  numpy==2.4.6
cat > "$folder/read.py" <<'EOF'
import sys
import warnings

import numpy as np
import tifffile
from PIL import Image

warnings.simplefilter('error')
path, values = f'{sys.argv[1]}/mask.tif', [-128, -1, 0, 127]
for dtype in ('int8', 'int16', 'int32'):
  tifffile.imwrite(path, np.array([values], dtype))
  with Image.open(path) as image:
    found = np.asarray(image)[0].tolist()
    print(f'{dtype}: mode {image.mode}, {values} comes as {found}')
EOF
"$folder/venv/bin/python" "$folder/read.py" "$folder" | tee "$folder/seen"
grep -q '^int8: mode L, .* comes as \[128, 255, 0, 127\]$' "$folder/seen"
test "$(grep -c 'comes as \[-128, -1, 0, 127\]$' "$folder/seen")" = 2
