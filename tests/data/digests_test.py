"""Digests tell contents apart. That files are read once: identity_test."""

import hashlib
import zlib

import numpy as np

from unet_jax.data import digests


def test_a_digest_is_of_every_byte(tmp_path):
  content = np.random.default_rng(0).bytes(200_000)
  crcs = [zlib.crc32(content[i : i + 65536]) for i in (65536, 131072, 196608)]
  crcs = b''.join(crc.to_bytes(4, 'little') for crc in crcs)
  expected = hashlib.sha1(content[:65536] + crcs).digest()[:16]
  assert digests.digest(content) == expected
  found = {expected}
  for size in (0, 65536, 65537, 199_999):
    found.add(digests.digest(content[:size]))
  for place in (0, 65535, 65536, 131072, 199_999):
    other = bytearray(content)
    other[place] ^= 1
    found.add(digests.digest(bytes(other)))
    (tmp_path / 'file').write_bytes(other)
    of_file = digests.of_file(tmp_path / 'file')
    assert of_file == digests.digest(bytes(other)).hex()
  # Images as they lie in memory, also turned ones.
  image = np.frombuffer(content[:199_998], np.uint8).reshape(-1, 2, 3)
  assert digests.digest(image) == digests.digest(content[:199_998])
  turned = image[:, ::-1]
  assert digests.digest(turned) == digests.digest(turned.tobytes())
  assert len(found) == 10
  (tmp_path / 'file').write_bytes(b'')
  assert digests.of_file(tmp_path / 'file') == digests.digest(b'').hex()
