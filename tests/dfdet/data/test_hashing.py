import numpy as np
import pytest

from dfdet.data.hashing import chain, splitmix64, uniforms

GAMMA = 0x9E3779B97F4A7C15


def test_splitmix64_gives_the_reference_stream_of_seed_0():
    states = [(step * GAMMA) % 2**64 for step in range(4)]
    assert [hex(value) for value in splitmix64(np.array(states, np.uint64))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
        "0xf88bb8a8724c81ec",
    ]


def test_splitmix64_wraps_without_a_warning():
    with np.errstate(all="raise"):
        assert splitmix64(np.array([2**64 - 1, 0], np.uint64)).dtype == np.uint64
        assert splitmix64(-1)[0] == splitmix64(np.uint64(2**64 - 1))[0]


def test_floats_are_refused_rather_than_rounded():
    with pytest.raises(TypeError, match="float64"):
        splitmix64(np.array([2.0]))


def test_chain_depends_on_the_order_and_number_of_values():
    hashes = [int(chain(*values)[0]) for values in [(1, 2), (2, 1), (1,), (1, 2, 0), (3, 0), (0, 3)]]
    assert len(set(hashes)) == len(hashes)
    assert chain(7, np.arange(5))[3] == chain(7, 3)[0]


def test_chain_has_golden_values():
    assert int(chain(0, 1, 2)[0]) == 6768782832058643234


def test_uniforms_are_uniform_and_independent_of_their_neighbours():
    draws = uniforms(chain(5, np.arange(20_000)), 3)
    assert draws.shape == (20_000, 3) and draws.min() >= 0 and draws.max() < 1
    histogram = np.histogram(draws, 20, (0, 1))[0] / 3000
    assert abs(histogram - 1).max() < 0.1
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert (uniforms(chain(5, np.array([17])), 3)[0] == draws[17]).all()
