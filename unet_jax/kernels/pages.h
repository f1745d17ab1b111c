// Huge pages for the memory that a run of a program takes from the system.
#ifndef UNET_JAX_KERNELS_PAGES_H_
#define UNET_JAX_KERNELS_PAGES_H_

#include <cstddef>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#endif

namespace unet {

// Asks for huge pages around an array that is about to be written.
//
// XLA takes the memory of a step, hundreds of MB, with mmap and gives it back
// at its end. By pages of 4 KB, a quarter of a step's processor time went into
// page faults. All of it is one mapping, found here by the first large array
// that nothing has touched.
//
// To let malloc keep the memory (mallopt) is 3 to 5 % faster and took 1.9
// to 2.9 times as much: XLA takes the next step's block before it frees the
// last one, and glibc up to 2.37 leaves holes that its memalign cannot use
// again (glibc bug 30723).
inline void UseHugePages(const void* array, size_t bytes) {
#ifdef __linux__
  constexpr size_t kLarge = 4 << 20;
  if (bytes < kLarge) return;
  const auto begin = (uintptr_t)array;
  // In the middle: the array shares its first and last page with others.
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t middle = (begin + bytes / 2) / page * page;
  unsigned char is_there = 1;
  mincore((void*)middle, 1, &is_there);
  if (is_there & 1) return;
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  char* line = nullptr;
  size_t size = 0;
  unsigned long from, to;
  while (getline(&line, &size, maps) > 0) {
    if (sscanf(line, "%lx-%lx", &from, &to) == 2 && begin < to) {
      if (from <= begin) madvise((void*)from, to - from, MADV_HUGEPAGE);
      break;
    }
  }
  free(line);
  fclose(maps);
#else
  (void)array, (void)bytes;
#endif
}

}  // namespace unet

#endif  // UNET_JAX_KERNELS_PAGES_H_
