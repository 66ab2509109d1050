"""DINOv2 against transformers, LPIPS against its package: with torch, where it is."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import count
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import VARIANTS, Geometry
from pixelflow_jax.teachers.lpips import LpipsNet
from tests.teachers.official import EXACT, MEAN, STD

torch = pytest.importorskip("torch")


def oracle(geometry: Geometry, registers: int):
    """A transformers model of random weights; its position table is not small."""
    transformers = pytest.importorskip("transformers")
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=geometry.width,
        num_hidden_layers=geometry.depth,
        num_attention_heads=geometry.heads,
        mlp_ratio=int(geometry.mlp_ratio),
        image_size=geometry.patch * geometry.grid,
        patch_size=geometry.patch,
        use_swiglu_ffn=geometry.gated,
        **({"num_register_tokens": registers} if registers else {}),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def normalised(images: np.ndarray) -> "torch.Tensor":
    normal = ((images.astype(np.float64) + 1) / 2 - MEAN) / STD
    return torch.from_numpy(np.moveaxis(normal, -1, 1).astype(np.float32))


def agreement(net: DinoV2, model, folder, size: tuple[int, int]) -> None:
    """Saved by transformers, loaded by us: the tokens of every block agree."""
    model.save_pretrained(folder)
    net = dataclasses.replace(net, weights=str(folder), base_patch=14)
    params = net.load()
    assert count(params) == sum(
        p.numel() for n, p in model.named_parameters() if "mask_token" not in n
    )
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    layers = tuple(range(net.sizes.depth))
    ours = jax.jit(lambda p, x: net.tokens(p, x, layers))(params, images)
    with torch.no_grad():
        theirs = model(normalised(images), output_hidden_states=True)
        behind = [model.layernorm(h).numpy() for h in theirs.hidden_states[1:]]
    np.testing.assert_array_equal(behind[-1], theirs.last_hidden_state.numpy())
    for layer in layers:
        scale = max(1.0, float(np.abs(behind[layer]).max()))
        pairs = (
            (ours[layer].cls, behind[layer][:, 0]),
            (ours[layer].patches, behind[layer][:, 1 + net.registers :]),
        )
        for mine, other in pairs:
            np.testing.assert_allclose(mine, other, atol=1e-5 * scale)


# Two thirds of four times 40 are no multiple of 8.
TINY = Geometry(width=40, heads=4, depth=3, grid=5)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("size", [(70, 70), (56, 112)], ids=["native", "other"])
def test_transformers_agrees(registers, gated, size, tmp_path):
    geometry = dataclasses.replace(TINY, gated=gated)
    net = DinoV2(
        geometry=geometry, registers=registers, position="transformers", precision=EXACT
    )
    agreement(net, oracle(geometry, registers), tmp_path, size)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("variant", ["vits14", "vitb14"])
def test_transformers_agrees_at_full_size(variant, registers, tmp_path):
    """At 224 pixels the trained 37 x 37 positions become 16 x 16."""
    net = DinoV2(
        variant=variant, registers=registers, position="transformers", precision=EXACT
    )
    agreement(net, oracle(net.sizes, registers), tmp_path, (224, 224))


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_has_as_many_parameters(variant):
    transformers = pytest.importorskip("transformers")
    net = DinoV2(variant=variant)
    with torch.device("meta"):
        model = transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=net.sizes.width,
                num_hidden_layers=net.sizes.depth,
                num_attention_heads=net.sizes.heads,
                image_size=518,
                patch_size=14,
                use_swiglu_ffn=net.sizes.gated,
            )
        )
    theirs = sum(p.numel() for p in model.parameters()) - net.width  # the mask token
    assert count(net.shapes()) == theirs


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_of_transformers_load(shards, tmp_path):
    model = oracle(TINY, 0)
    total = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size=total // shards + 20_000)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards > 1)
    net = DinoV2(geometry=TINY, weights=str(tmp_path), precision=EXACT)
    theirs = model.encoder.layer[2].mlp.fc1.weight.detach().numpy().T
    np.testing.assert_array_equal(
        net.load()["blocks"]["mlp"]["up"]["kernel"][2], theirs
    )


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_a_pth_of_torch_hub_loads(archive, tmp_path):
    """The names torch.hub uses, in the file format it uses."""
    from pixelflow_jax.teachers.dinov2_table import table
    from pixelflow_jax.tensors.mapping import load
    from tests.teachers import official

    theirs = official.tensors(table(TINY, 4))
    path = tmp_path / "dinov2.pth"
    tensors = {key: torch.from_numpy(value) for key, value in theirs.items()}
    tensors["mask_token"] = torch.zeros(1, TINY.width)
    torch.save(tensors, path, _use_new_zipfile_serialization=archive)
    net = DinoV2(geometry=TINY, registers=4, weights=str(path), precision=EXACT)
    expected = load(table(TINY, 4), theirs)
    jax.tree.map(np.testing.assert_array_equal, net.load(), expected)


def features(layout: list, pooling: int) -> "torch.nn.Sequential":
    """torchvision's: convolutions by their arguments with ReLU, "M" for maxima."""
    layers, inputs = [], 3
    for item in layout:
        if item == "M":
            layers.append(torch.nn.MaxPool2d(pooling, 2))
            continue
        outputs, size, stride, padding = item
        layers += [torch.nn.Conv2d(inputs, outputs, size, stride, padding)]
        layers += [torch.nn.ReLU()]
        inputs = outputs
    return torch.nn.Sequential(*layers)


def vgg16(**_) -> types.SimpleNamespace:
    layout = []
    for outputs, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layout += [(outputs, 3, 1, 1)] * convs + ["M"]
    return types.SimpleNamespace(features=features(layout, 2))


def alexnet(**_) -> types.SimpleNamespace:
    layout = [(64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384, 3, 1, 1)]
    layout += [(256, 3, 1, 1), (256, 3, 1, 1), "M"]
    return types.SimpleNamespace(features=features(layout, 3))


@pytest.fixture
def package(monkeypatch):
    """The lpips package; a stand-in for torchvision, of which it needs two networks."""
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(vgg16=vgg16, alexnet=alexnet)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    yield pytest.importorskip("lpips")
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
@pytest.mark.parametrize("size", [(32, 48), (37, 51)], ids=["even", "odd"])
def test_the_lpips_package_agrees(package, backbone, size, tmp_path):
    """On a random backbone, with the package's own linear layers; gradients, too."""
    torch.manual_seed(0)
    name = {"alexnet": "alex", "vgg16": "vgg"}[backbone]
    model = package.LPIPS(net=name, pnet_rand=True, verbose=False)
    path = tmp_path / "backbone.pth"
    # The package keeps torchvision's numbers, in five parts.
    parts = [getattr(model.net, f"slice{i}") for i in range(1, 6)]
    tensors = {f"features.{k}": v for p in parts for k, v in p.state_dict().items()}
    with torch.no_grad():
        for key, value in tensors.items():
            value.mul_(2.0 if key.endswith("weight") else 1.0)
    torch.save(tensors, path)
    net = LpipsNet(backbone=backbone, weights=str(path), precision=EXACT)
    params = net.load()  # its linear layers are found in the package
    draw = np.random.default_rng(1).uniform
    a, b = (draw(-1, 1, (2, *size, 3)).astype(np.float32) for _ in range(2))
    x, y = (torch.from_numpy(np.moveaxis(image, -1, 1).copy()) for image in (a, b))
    x.requires_grad_()
    total, layers = model(x, y, retPerLayer=True)
    total.sum().backward()

    def ours(a, b, params):
        found = net.compare(params, net.features(params, a), net.features(params, b))
        return found.sum(), found

    run = jax.jit(jax.grad(ours, has_aux=True))
    gradient, found = run(jnp.asarray(a), b, params)
    theirs = np.stack([layer.detach().numpy().ravel() for layer in layers])
    np.testing.assert_allclose(found, theirs, rtol=1e-4)
    np.testing.assert_allclose(
        net.distance(params, a, b), total.detach().numpy().ravel(), rtol=1e-4
    )
    theirs = np.moveaxis(x.grad.numpy(), 1, -1)
    off = np.abs(gradient - theirs) / np.abs(theirs).max()
    # A ReLU within rounding of its kink may go either way and change a patch of pixels.
    assert np.mean(off < 5e-5) > 0.8 and off.max() < 0.05
