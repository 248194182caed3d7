"""How a process allocates memory: freed memory is used again, and large tensors get large pages.

Linux fills a page with zeros when a process first uses it. A step that gives its memory back and
asks for it again pays for that every time: with 5 units, `ddp` and batches of 10,000 an epoch took
60 ms in place of 36 (two cores, 2026-11).
"""

import os

import numpy as np

# With "1", torch asks Linux for large pages, usually of 2 MiB in place of 4 KiB, for each tensor of
# at least 2 MiB. It reads this once, at the first tensor on the CPU: in a program that has made one
# before, nothing changes. https://github.com/pytorch/pytorch/pull/107697
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
HAS_LARGE_PAGES = os.path.isdir("/sys/kernel/mm/transparent_hugepage")  # else torch would warn
KEPT_BYTES = 31 << 20  # glibc never keeps a block of more than 32 MiB


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 31 MiB for the next allocation, from now on.

    When glibc gives a block back to Linux, it raises two limits, the "dynamic mmap threshold" of
    mallopt(3): from then on it keeps smaller blocks, and gives the end of its memory back only
    where more than twice that size is free. So up to 62 MiB are kept, and more below a block that
    is still used. A user's MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_ or
    MALLOC_MMAP_MAX_ switches this off. With another C library nothing changes.
    """
    np.empty(KEPT_BYTES, np.uint8)  # is freed at once, and its values are never written
