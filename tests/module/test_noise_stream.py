"""The stream: generator, bit layout, error bounds, and what depends on what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module import noise
from module.kernels import cpu_stream as cpu
from tests.module.draws import draw
from tests.reference import noise as reference
from tests.reference.philox import philox4x32_10

PATH = "layer.3.attention.self.query.weight"
# Known answers of Random123, the generator's authors' library.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
]


def kernel_words(block, step, identity, seed, lanes=256):
    out = [np.zeros(256, np.uint32) for _ in range(4)]
    cpu.philox_block(block, step, *divmod32(identity), *divmod32(seed), lanes, *out)
    return out


def divmod32(value):
    return np.uint32(value & 0xFFFFFFFF), np.uint32(value >> 32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_generator(counter, key, expected):
    assert noise.philox4x32(counter, key) == expected
    assert tuple(int(w) for w in philox4x32_10(counter, key)) == expected
    block, lane = counter[0] >> 8, counter[0] & 255
    words = kernel_words(block, counter[1], counter[2] | counter[3] << 32, key[0] | key[1] << 32)
    assert tuple(int(w[lane]) for w in words) == expected


@given(st.integers(0, 2**24 - 1), st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_kernel_words_equal_the_reference(block, step, identity, seed):
    lanes = np.arange(256, dtype=np.uint64)
    same = [np.full_like(lanes, v) for v in (step, identity & 0xFFFFFFFF, identity >> 32)]
    expected = philox4x32_10(((np.uint64(block) << np.uint64(8)) | lanes, *same), (seed & 0xFFFFFFFF, seed >> 32))
    for got, wanted in zip(kernel_words(block, step, identity, seed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def ulps(got, exact):
    return np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_every_radius_is_within_its_bound():
    z, mask = np.zeros(1024, np.float32), np.zeros(1024, np.int32)
    angle_zero = np.zeros(256, np.uint32)
    exact_cosine = np.cos(2 * np.pi * 0.5 / 65536)  # the kernel's is 1, 2e-9 more
    for start in range(0, 2**24, 2**20):
        k = np.arange(start, start + 2**20, dtype=np.uint32)
        got = np.empty(k.size, np.float32)
        for i in range(0, k.size, 256):
            cpu.normals_block(k[i : i + 256] << np.uint32(8), angle_zero, 256, 0, z, mask)
            got[i : i + 256] = z[:256]
        exact = reference.radius(k) * exact_cosine
        positive = exact > 0  # u rounds to 1 for the last k: the radius is 0 on both sides
        assert (got[~positive] == 0).all()
        assert ulps(got[positive], exact[positive]).max() <= 1.0
        assert np.abs(got[positive] / exact[positive] - 1).max() <= 1.9 * 2.0**-24


def test_every_angle_is_within_its_bound():
    n = np.arange(65536, dtype=np.uint32)
    unit = np.full(256, np.uint32(10175895) << np.uint32(8), np.uint32)  # its radius is 1 in float32
    z, mask = np.zeros(1024, np.float32), np.zeros(1024, np.int32)
    cpu.normals_block(unit, np.zeros(256, np.uint32), 256, 0, z, mask)
    assert z[0] == 1.0
    angle = 2 * np.pi * (n + 0.5) / 65536
    for i in range(0, n.size, 256):
        cpu.normals_block(unit, n[i : i + 256] << np.uint32(16), 256, 0, z, mask)
        for got, exact in ((z[:256], np.cos(angle[i : i + 256])), (z[256:512], np.sin(angle[i : i + 256]))):
            assert np.abs(got / exact - 1).max() <= 2.7 * 2.0**-24


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700, 1023, 1024, 1025, 5000])
def test_entries_get_what_the_definition_gives_them(n):
    seed, step = 0x0123456789ABCDEF, 7
    exact = reference.normals(seed, step, PATH, n)
    got = draw(seed, step, PATH, n)
    assert ulps(got, exact).max() <= 5.1
    bits = reference.mask_bits(seed, step, PATH, n)
    for threshold in (1, 1000, 2048, 4095):
        np.testing.assert_array_equal(draw(seed, step, PATH, n, threshold) != 0, bits < threshold)


def test_an_entry_does_not_depend_on_the_size_of_its_tensor():
    np.testing.assert_array_equal(draw(1, 1, PATH, 300_000)[:777], draw(1, 1, PATH, 777))


@pytest.mark.parametrize(
    "other", [(2, 1, PATH), (1 + 2**32, 1, PATH), (1, 2, PATH), (1, 1, PATH.replace("query", "key"))]
)
def test_seed_step_and_tensor_all_matter(other):
    assert not (draw(1, 1, PATH, 4096) == draw(*other, 4096)).any()


def test_tensor_mask_equals_the_reference_and_uses_no_entry_of_the_largest_tensor():
    for step in range(1, 50):
        got = noise.tensor_mask_bits(5, step, noise.tensor_id(PATH))
        assert got == reference.tensor_mask_bits(5, step, PATH)
    last = noise.MAX_ENTRIES - 1
    assert ((last >> 10) << 8 | 255) < 0xFFFFFFFF


def test_identity_of_a_tensor_is_fixed():
    # A change here changes every published result.
    assert noise.tensor_id(PATH) == reference.tensor_id(PATH) == 0xDE24E64812FF1F26
    assert noise.tensor_id("") != noise.tensor_id("a")


def test_the_largest_normal():
    a = np.zeros(256, np.uint32)
    z, mask = np.zeros(1024, np.float32), np.zeros(1024, np.int32)
    cpu.normals_block(a, a, 256, 0, z, mask)
    assert z[0] == pytest.approx(np.sqrt(2 * np.log(2**25)), rel=1e-6)


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (1.0, 4096), (0.5, 2048), (0.3, 1229), (1 / 4096, 1)])
def test_mask_threshold(p, threshold):
    assert noise.mask_threshold(p) == threshold


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), 1e-4, 0.99999])
def test_mask_threshold_refuses(p):
    with pytest.raises(ValueError, match=r"noise_probability.*\[0, 1\]|use 0, 1, or a value"):
        noise.mask_threshold(p)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "1"])
def test_seed_is_checked(seed):
    with pytest.raises(ValueError, match="Invalid noise_seed"):
        noise.check_seed(seed)
