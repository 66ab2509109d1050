"""DINOv3 against transformers, where torch is, and its files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.dinov3 import VARIANTS, DinoV3, rotary_angles, table
from pixelflow_jax.tensors import mapping
from tests.models.small import EXACT, random_like

SMALL = DinoV3(
    geometry=Geometry(width=16, heads=2, depth=2, patch=4),
    base_patch=4,
    precision=EXACT,
)


def test_the_published_sizes():
    """ViT-S, B and L have 21.6, 85.7 and 303.1 million parameters."""
    for variant, millions in (("vits16", 21.6), ("vitb16", 85.7), ("vitl16", 303.1)):
        found = count(DinoV3(variant=variant).shapes()) / 1e6
        assert found == pytest.approx(millions, abs=0.06), variant


def test_patches_turn_by_their_place_and_the_rest_does_not():
    cos, sin = rotary_angles(3, 5, 8)
    assert cos.shape == (15, 4)
    middle = 7  # the centre of the image, which does not turn
    np.testing.assert_allclose(cos[middle], 1, atol=1e-6)
    np.testing.assert_allclose(sin[middle], 0, atol=1e-6)
    params = random_like(SMALL.shapes())
    image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    features = SMALL.features(params, image)[-1]
    assert features.shape == (1, 4, 16) and features.dtype == jnp.float32
    turned = SMALL.features(params, image[:, ::-1, ::-1])[-1]
    assert jnp.abs(turned[:, ::-1] - features).max() > 1e-3


@pytest.mark.parametrize("prefix", ["", "model."])
def test_files_of_both_layouts_are_read(tmp_path, prefix):
    rows = table(SMALL.sizes, SMALL.registers, [f"{prefix}layer.0.norm1.weight"])
    params = random_like(SMALL.shapes())
    flat = {"/".join(k.key for k in path): np.asarray(a) for path, a in _leaves(params)}
    official = {k: v.read() for k, v in mapping.exported(rows, flat).items()}
    official["embeddings.mask_token"] = np.zeros((1, 1, 16), np.float32)
    save_file(official, tmp_path / "model.safetensors")
    named = dataclasses.replace(SMALL, weights=str(tmp_path / "model.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, named.load(), params)
    with pytest.raises(WeightsError, match=r"model\.encoder\.weights"):
        SMALL.load()


def _leaves(params: dict):
    return jax.tree_util.tree_leaves_with_path(params)


def test_what_it_cannot_be_is_named():
    (problem,) = DinoV3(variant="vit7b16").problems(16, 16)
    assert "vits16" in problem
    gates = dataclasses.replace(VARIANTS["vits16"], gated=True)
    (problem,) = DinoV3(geometry=gates).problems(16, 16)
    assert "gated" in problem
    assert PixelDiT2(encoder=DinoV3()).problems(256, 256) == []
    with pytest.raises(ValueError, match="last block"):
        SMALL.features({}, jnp.zeros((1, 8, 8, 3)), (0,))


def test_it_sees_what_transformers_sees():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    g = SMALL.sizes
    config = transformers.DINOv3ViTConfig(
        hidden_size=g.width,
        num_attention_heads=g.heads,
        num_hidden_layers=g.depth,
        intermediate_size=g.hidden,
        patch_size=g.patch,
        num_register_tokens=SMALL.registers,
    )
    torch.manual_seed(0)
    theirs = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        official = {k: v.numpy() for k, v in theirs.state_dict().items()}
        image = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3))
        image = image.astype(np.float32)
        seen = np.moveaxis(np.array(SMALL.prepared(image)), -1, 1)
        wanted = theirs(torch.from_numpy(seen)).last_hidden_state.numpy()
    del official["embeddings.mask_token"]
    params = mapping.load(table(g, SMALL.registers, official), official)
    ours = SMALL.features(params, image)[-1]
    np.testing.assert_allclose(ours, wanted[:, 1 + SMALL.registers :], atol=2e-5)
