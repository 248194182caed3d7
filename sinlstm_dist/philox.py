"""Random numbers that are pure functions of a counter and a key, the same on any CPU.

>>> words = philox(np.arange(3), 0, key=(0, 0))
>>> [len(word) for word in words]
[3, 3, 3, 3]
"""

from typing import Any

import numpy as np

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(low: Any, high: Any, *, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10: four random 32-bit words for each counter of 128 bits.

    Args:
        low: the lower 64 bits of the counters: an array or a number, of which int64 is enough.
        high: the upper 64 bits; both broadcast.
        key: two numbers, 0 to 2**32 - 1.

    Returns:
        four uint64 arrays of 32-bit words.

    Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC11).
    """
    low, high = np.broadcast_arrays(*(np.asarray(half).astype(np.uint64) for half in (low, high)))
    c0, c1, c2, c3 = low & _LOW, low >> _SHIFT, high & _LOW, high >> _SHIFT
    k0, k1 = key
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0)
        c1 = product1 & _LOW
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c3 = product0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
