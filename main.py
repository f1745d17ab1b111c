"""The program in a checkout; installed, it is `unet-jax` from any folder."""

from unet_jax.__main__ import main

if __name__ == '__main__':
  main()
