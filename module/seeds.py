"""Independent random streams: every consumer of randomness derives its seed from the run's seed and its own name."""

from hashlib import blake2b

SEED_BITS = 63


def stream_seed(seed: int, name: str) -> int:
    """Derive the seed of one named random stream.

    Adding a stream never changes another one, because nothing is drawn in sequence: the seed is a hash.

    Args:
        seed: The run's seed, any integer.
        name: Name of the consumer, such as ``"head"``, ``"order"``, ``"dropout"``, ``"noise"``.

    Returns:
        An integer in [0, 2**63), fit for ``torch.Generator.manual_seed`` and ``numpy.random.default_rng``.
    """
    digest = blake2b(f"{int(seed)}/{name}".encode(), digest_size=8, person=b"stream-seed").digest()
    return int.from_bytes(digest, "little") >> (64 - SEED_BITS)
