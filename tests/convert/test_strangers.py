"""Checkpoints of other programs: averages under any name, by any wrapper."""

import numpy as np
import pytest

from pixelflow_jax.convert.checkpoints import checkpoint
from pixelflow_jax.errors import ConvertError, WeightsError
from pixelflow_jax.tensors import finite
from pixelflow_jax.tensors.lazy import LazyTensor

NAMES = ("blocks.0.attn.qkv.weight", "final.weight")


def tensors(value: float, names=NAMES) -> dict[str, LazyTensor]:
    arrays = [np.full((2, 3 + i), value, np.float32) for i in range(len(names))]
    return {k: LazyTensor.of(a) for k, a in zip(names, arrays, strict=True)}


def prefixed(prefix: str, value: float) -> dict[str, LazyTensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors(value).items()}


RAW, EMA = tensors(0.0), tensors(1.0)
UNDOTTED = {f"model_ema.{k.replace('.', '')}": t for k, t in EMA.items()}
COUNTER = {"n_averaged": LazyTensor.of(np.zeros(1))}
AVERAGES = {
    **{
        name: {"model": RAW, name: EMA}
        for name in "ema model_ema ema_model ema_state_dict state_dict_ema "
        "ema_model_state_dict params_ema averaged_model".split()
    },
    "nested": {"state_dict": RAW, "ema": {"decay": 0.9, "state_dict": EMA}},
    "shadow": {"model": RAW, "ema": {"shadow": EMA}},
    "shadow_params": {"model": RAW, "ema": {"shadow_params": list(EMA.values())}},
    "a list at the top": {"model": RAW, "shadow_params": list(EMA.values())},
    "ema. prefix": {"state_dict": {**prefixed("model.", 0.0), **prefixed("ema.", 1.0)}},
    "ema_pytorch": {**prefixed("online_model.", 0), **prefixed("ema_model.", 1.0)},
    "without dots": {"state_dict": {**prefixed("model.", 0.0), **UNDOTTED}},
    "averaged by torch": {"model": RAW, "ema": {**prefixed("module.", 1.0), **COUNTER}},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_taken_under_its_other_names(name):
    found = checkpoint(AVERAGES[name])
    assert not found.stray
    chosen = found.chosen()
    assert chosen.name == "ema" and sorted(chosen.tensors) == sorted(NAMES)
    assert all((tensor.read() == 1).all() for tensor in chosen.tensors.values())
    raw = found.chosen("raw").tensors
    assert sorted(raw) == sorted(NAMES) and not raw[NAMES[0]].read().any()


def test_a_dictionary_goes_by_its_own_name_too():
    content = {"model": RAW, "model_ema": EMA, "polyak": tensors(2.0)}
    found = checkpoint(content)
    assert found.chosen("model_ema").name == "ema"
    assert found.chosen("polyak").tensors[NAMES[0]].read()[0, 0] == 2
    with pytest.raises(ConvertError, match="it holds ema, raw, polyak"):
        found.chosen("ema_9")
    assert checkpoint({"generator": RAW}).chosen().name == "generator"


def test_numbers_that_are_none_are_told_when_they_are_read():
    wrong = {**EMA, "w": LazyTensor.of(np.array([1, np.nan, np.inf], np.float16))}
    guarded = finite.checked(wrong, "x.pt", False)
    assert guarded[NAMES[0]].read().all()
    with pytest.raises(WeightsError, match=r"w holds 2 numbers.*--allow-nonfinite"):
        guarded["w"].read()
    assert np.isnan(finite.checked(wrong, "x.pt", True)["w"].read()[1])
