"""Converting holds a small part of a checkpoint in memory."""

import importlib.util
import sys

import pytest

from pixelflow_jax.models.pixnerd import NeuralField, PixNerd

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MODEL = PixNerd(width=1024, depth=8, feature_layer=4, decoder=NeuralField(depth=1))


@LINUX
@pytest.mark.slow
def test_a_conversion_takes_less_than_the_checkpoint_and_a_third():
    from benchmarks import convert_memory

    torch = importlib.util.find_spec("torch") is not None
    size, idle, found = convert_memory.measure(MODEL, torch)
    assert size > 500e6 and len(found) == 3 * (1 + torch)
    for name, peak in found.items():
        assert (peak - idle) / size < 1.3, name
        # Reading safetensors maps nothing, and writing holds a layer.
        if ".safetensors" in name:
            assert (peak - idle) / size < 0.5, name
