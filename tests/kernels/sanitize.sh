#!/usr/bin/env bash
# Runs the kernels of unet_jax/kernels under the sanitizers of g++, which
# end with an error at the first fault.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
for sanitizers in address,undefined thread; do
  echo "$sanitizers"
  g++ -std=c++17 -O1 -g -march=native -w -pthread \
    -fsanitize="$sanitizers" -fno-sanitize-recover=all \
    sanitize.cc \
    ../../unet_jax/kernels/{direct,winograd,batch_norm,max_pool,adamw}.cc -o "$folder/program"
  # The thread sanitizer does not start where addresses are very random.
  setarch "$(uname -m)" --addr-no-randomize "$folder/program"
done
