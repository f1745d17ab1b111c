#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.52, Python 3.11, x86-64, no TPU.
#
# A program that is compiled for a TPU slice that is not there (a topology from
# jax.experimental.topologies) is written into JAX's persistent compilation cache
# and can never be read from it: to load an entry takes a client, and there is
# none. Each further compilation finds the entry, warns, and compiles again. One
# would guess that the cache saves the minutes that such programs take, or that
# it leaves alone what it cannot load.
#
# Seen: "1: compiled, 1 entry", then "2: compiled, 1 entry" with the warning
# "Error reading persistent compilation cache entry ... PjRtCompiler must be
# constructed with a Client to call DeserializeLoadedExecutable".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 \
  libtpu==0.0.52
cat > "$folder/compile.py" <<'EOF'
import pathlib, sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

folder, turn = pathlib.Path(sys.argv[1]), sys.argv[2]
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_compilation_cache_dir', str(folder))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
slice = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')
mesh = Mesh(np.array(slice.devices), ('x',))
whole = NamedSharding(mesh, PartitionSpec())
x = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=whole)
assert jax.jit(lambda x: x @ x).lower(x).compile().as_text()
entries = [path for path in folder.iterdir() if path.name.endswith('-cache')]
print(f'{turn}: compiled, {len(entries)} entry')
EOF
export TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0
export TPU_ACCELERATOR_TYPE=v5litepod-4
mkdir "$folder/cache"
for turn in 1 2; do
  "$folder/venv/bin/python" "$folder/compile.py" "$folder/cache" "$turn" \
    2> "$folder/log$turn" | tee -a "$folder/seen"
done
[ "$(cat "$folder/seen")" = $'1: compiled, 1 entry\n2: compiled, 1 entry' ]
if grep -q 'Error reading persistent compilation cache' "$folder/log1"; then
  exit 1
fi
grep 'Error reading persistent compilation cache entry' "$folder/log2"
grep -q 'PjRtCompiler must be constructed with a Client' "$folder/log2"
