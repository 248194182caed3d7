"""Let the memory that a step frees serve the next one.

Linux fills each page that it gives to a process with zeros. A large step that gives its memory back
and asks for it again can spend half of its time on that.
"""

import numpy as np

# With "1", torch asks for pages of 2 MiB for tensors of that size and more: one in place of 512.
# https://github.com/pytorch/pytorch/pull/107697
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
KEPT_BYTES = 31 << 20  # glibc never keeps a block of more than 32 MiB


def keep_freed_memory() -> None:
    """Let freed blocks of up to 31 MiB, twice as much in all, stay in this process.

    glibc keeps blocks as large as the largest that it has given back to the system: the "dynamic
    mmap threshold" of mallopt(3), which a user's own variables switch off. Another C library may do
    nothing.
    """
    np.empty(KEPT_BYTES, np.uint8)  # is given back at once; no page of it is touched
