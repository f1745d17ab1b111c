#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2, CPU with two devices, Python 3.11 or newer.
#
# A program in which a function of jax.experimental.custom_partitioning is split
# over devices is compiled again in every process: JAX's persistent compilation
# cache writes it and never finds it. The same program without the function is
# found. One would guess that the key holds what the function does, or that JAX
# says that the program cannot be cached; an entry more is left at each start.
#
# Seen, two starts each: "plain: 1 miss, then 1 hit", "custom: 1 miss, then
# 1 miss", and two entries of the custom program on the disk.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/compile.py" <<'EOF'
import sys

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning

folder, name = sys.argv[1:]
jax.config.update('jax_compilation_cache_dir', f'{folder}/{name}')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
jax.config.update('jax_num_cpu_devices', 2)
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.NamedSharding(mesh, jax.P('data'))


@custom_partitioning
def custom(x):
  return 2 * x


custom.def_partition(
  partition=lambda mesh, arguments, result: (
    mesh,
    lambda x: 2 * x,
    result.sharding,
    (arguments[0].sharding,),
  ),
  infer_sharding_from_operands=lambda mesh, arguments, result: (
    arguments[0].sharding
  ),
  sharding_rule='i -> i',
)
events = []
x = jax.device_put(jnp.arange(8.0), split)
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
function = custom if name == 'custom' else lambda x: 2 * x
jax.jit(function, in_shardings=split, out_shardings=split).lower(x).compile()
hits = events.count('/jax/compilation_cache/cache_hits')
misses = events.count('/jax/compilation_cache/cache_misses')
print(f'{name}: {hits} hit(s), {misses} miss(es)')
EOF
for name in plain custom; do
  for start in first second; do
    JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/compile.py" \
      "$folder" "$name" | sed "s/^/$start start, /" | tee -a "$folder/seen"
  done
done
grep -q '^second start, plain: 1 hit' "$folder/seen"
grep -q '^second start, custom: 0 hit(s), 1 miss' "$folder/seen"
