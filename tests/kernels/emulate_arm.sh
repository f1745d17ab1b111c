#!/usr/bin/env bash
# Runs tests, those of the kernels if none are named, on an emulated 64-bit Arm
# processor. It says nothing of speed.
#
#   tests/kernels/emulate_arm.sh FOLDER [ARGUMENTS OF PYTEST]
#
# As root, with qemu-user-static and debootstrap, on Linux 6.7 or newer (a list
# of emulators for each namespace). FOLDER keeps a Debian with two compilers and
# the packages: 2 GB. CXX=clang++ before it takes the second compiler.
set -euo pipefail
mkdir -p "$1"
folder=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
root=$folder/root packages=$folder/root/packages

if [ ! -e "$packages" ]; then
  debootstrap --foreign --arch=arm64 --variant=minbase \
    --include=python3,g++,clang bookworm "$root"
  # In place of its second stage, which would be emulated.
  for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --extract "$package" "$root"
  done
  # To be moved once they are whole.
  rm -rf "$folder/new"
  python3 -m pip install --target "$folder/new" --constraint constraints.txt \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --only-binary :all: --python-version 3.11 --implementation cp \
    flax imagecodecs ml-collections opencv-python-headless optax pillow \
    pytest tifffile
  mv "$folder/new" "$packages"
fi

[ $# -gt 0 ] || set tests/kernels
mkdir -p "$root/repository"
unshare --map-root-user --mount --fork bash -euc '
  root=$0
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  # ELF files of 64 bits for Arm; F: opened here, outside of the root folder.
  magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
  mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
  echo ":arm:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" \
    >/proc/sys/fs/binfmt_misc/register
  for folder in proc dev; do mount --rbind "/$folder" "$root/$folder"; done
  mount --bind . "$root/repository"
  in_debian() {
    chroot "$root" /usr/bin/env --ignore-environment PATH=/usr/bin:/bin \
      HOME=/tmp LANG=C.UTF-8 PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 \
      JAX_PLATFORMS=cpu CXX="${CXX:-g++}" \
      bash -c "cd /repository && exec python3 \"\$@\"" python3 "$@"
  }
  mkdir -p "$root/tests"
  # An emulated compiler takes minutes, more than it is given elsewhere.
  in_debian -c "from unet_jax.kernels import build
build._SECONDS = 3600
print(build._library(\"/tests/kernels\"))"
  in_debian -m pytest -q -o addopts= -p no:cacheprovider \
    --basetemp=/tests/pytest "$@"
' "$root" "$@"
