#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2, CPU, Python 3.11 or newer.
#
# A compiled program that comes out of JAX's persistent compilation cache cannot
# be serialised again: jax.experimental.serialize_executable.serialize() returns
# bytes without an error (14,415 where the compiler's own program has 25,528),
# deserialize_and_load() takes them without an error, and only the first call
# fails. One would guess that a program is a program, however it was made.
#
# Seen: "compiled: runs" and "from the cache: JaxRuntimeError: NOT_FOUND:
# Function wrapped_sine not found (type id: 1)".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/keep.py" <<'EOF'
import pathlib, pickle, sys

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

folder, name, action = pathlib.Path(sys.argv[1]), *sys.argv[2:]
jax.config.update('jax_compilation_cache_dir', str(folder / 'cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
x = jnp.ones((64, 64))
file = folder / name
if action == 'write':
  function = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ x) + x[::-1].cumsum(0))
  compiled = function.lower(x).compile()
  file.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
  print(f'{name}: {file.stat().st_size} bytes')
else:
  parts = pickle.loads(file.read_bytes())
  loaded = serialize_executable.deserialize_and_load(*parts)
  try:
    loaded(x).block_until_ready()
    print(f'{name}: runs')
  except jax.errors.JaxRuntimeError as e:
    print(f'{name}: JaxRuntimeError: {e}')
EOF
for name in 'compiled' 'from the cache'; do
  for action in write read; do
    JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/keep.py" "$folder" \
      "$name" "$action" | tee -a "$folder/seen"
  done
done
grep -q '^compiled: runs' "$folder/seen"
grep -q '^from the cache: JaxRuntimeError: .*not found' "$folder/seen"
