"""The noise stream of PATS: the random number of each entry of a tensor at each step.

This text is the definition. Every backend (CPU kernel, the NumPy reference of the tests, a GPU kernel) follows it.

**Generator.** Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011): 128-bit counter and 64-bit key in, four 32-bit
words out. A pure function: no state, so no order, thread count, sharding or resume can change the number of an entry.

**Key.** ``(seed mod 2**32, seed // 2**32)`` of the 64-bit noise seed.

**Counter.** ``(c0, step, id mod 2**32, id // 2**32)``. ``step`` is the number of updates of this tensor, counting this
one (the first update has step 1). ``id`` is a 64-bit hash of the tensor's path in the encoder (:func:`tensor_id`), so
freezing, regrouping or reordering other tensors changes nothing.

**Entries.** Entry ``j`` (row-major index in the tensor) has ``block = j >> 10``, ``quarter = (j >> 8) & 3``,
``lane = j & 255`` and ``c0 = (block << 8) | lane``. One call of the generator serves the four entries of a lane, which
lie 256 apart, so that neighbours in memory are neighbours in the vector unit. Words ``(w0, w1)`` serve quarters 0 and
1, words ``(w2, w3)`` quarters 2 and 3. Call such a pair ``(a, b)``.

===========================  ======================  ==========================================================
what                         bits                    value
===========================  ======================  ==========================================================
radius of the pair           a[31:8], 24 bits ``k``  ``u = (k + 1/2) / 2**24``, ``r = sqrt(-2 ln u)``
angle of the pair            b[31:16], 16 bits ``n`` ``(n + 1/2) / 65536`` turns
mask bits, even quarter      b[11:0], 12 bits        integer in [0, 4096)
mask bits, odd quarter       a[7:0] above b[15:12]   ``(a & 255) << 4 | (b >> 12) & 15``, integer in [0, 4096)
===========================  ======================  ==========================================================

The normal of the even quarter is ``r cos(angle)``, of the odd quarter ``r sin(angle)`` (Box and Muller 1958). The half
step in the angle makes all odd moments zero and the variance exact. ``u`` is computed in float32 as
``(float32(k) + 0.5) * 2**-24``: exact below 1/2, rounded to nearest even above; ``u = 1`` gives ``r = 0``. The largest
normal is ``sqrt(2 ln 2**25) = 5.887``.

**Mask.** An entry is perturbed if its mask bits are below ``round(4096 p)`` (:func:`mask_threshold`). With one mask for
a whole tensor, the mask bits are those of the even quarter of words ``(w0, w1)`` at ``c0 = 2**32 - 1``, which no entry
uses.

Only integer operations, IEEE additions, multiplications and square roots and two fixed polynomials (logarithm; sine
and cosine) are involved: see the kernels for their error bounds.
"""

from hashlib import blake2b

BLOCK = 1024  # entries that share a block index
LANES = BLOCK // 4  # generator calls per block
MASK_LEVELS = 4096  # resolution of the Bernoulli probability
MAX_ENTRIES = (1 << 34) - BLOCK  # per tensor; the last block is left to the tensor-wide mask
WORD = 0xFFFFFFFF

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


def tensor_id(path: str) -> int:
    """Hash a tensor's path, such as ``layer.3.attention.self.query.weight``, to its 64-bit identity in the stream."""
    return int.from_bytes(blake2b(path.encode(), digest_size=8, person=b"pats-tensor").digest(), "little")


def check_seed(seed: int) -> int:
    """Return ``seed`` if it is an integer in [0, 2**64).

    Raises:
        ValueError: If it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"Invalid noise_seed: {seed!r}: an integer in [0, 2**64) is needed")
    return seed


def mask_threshold(probability: float) -> int:
    """Turn a Bernoulli probability into the threshold of the 12 mask bits.

    Args:
        probability: In [0, 1]; realised to the nearest multiple of 1/4096.

    Raises:
        ValueError: If the probability is outside [0, 1], or is strictly inside and would be rounded to 0 or 1.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"Invalid noise_probability: {probability}: a number in [0, 1] is needed")
    threshold = round(probability * MASK_LEVELS)
    if threshold in (0, MASK_LEVELS) and probability not in (0.0, 1.0):
        raise ValueError(
            f"Invalid noise_probability: {probability} rounds to {threshold // MASK_LEVELS} at the mask's resolution "
            f"of 1/{MASK_LEVELS}: use 0, 1, or a value in [{1 / MASK_LEVELS}, {1 - 1 / MASK_LEVELS}]"
        )
    return threshold


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter, in Python integers: the readable version, for one draw per tensor."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        p0 = PHILOX_MULTIPLIERS[0] * c0
        p1 = PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0 = (k0 + PHILOX_KEY_STEPS[0]) & WORD
        k1 = (k1 + PHILOX_KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def tensor_mask_bits(seed: int, step: int, identity: int) -> int:
    """Return the 12 mask bits of a whole tensor at one step, for one mask per tensor."""
    words = philox4x32((WORD, step, identity & WORD, identity >> 32), (seed & WORD, seed >> 32))
    return words[1] & (MASK_LEVELS - 1)
