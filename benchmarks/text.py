"""Text encoders: prompts/s against transformers, and their share of a training step.

python -m benchmarks.text --json benchmarks/results/text.jsonl
python -m benchmarks.text --by step --encoder qwen3-1.7b --length 128 --scan 0

Real geometry, random bfloat16 weights made on the device, prompts of random lengths.
`--by`: "jax" is our encoder as it comes, "jax-xla" without cuDNN's attention; "torch"
is transformers compiled by `torch.compile`, "torch-eager" uncompiled. "step" is a
training step of PixNerdText (flow matching, 256 pixels), from tokens and from states
that were computed before. `--tiny` tries it all on a CPU.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip
from jax import Array  # isort: skip

from benchmarks import timing, work, worker  # isort: skip
from pixelflow_jax import build as builders
from pixelflow_jax.validate import validate

from pixelflow_jax.conditioning.interface import Conditioner  # isort: skip
from pixelflow_jax.conditioning.text import Text  # isort: skip
from pixelflow_jax.data.loader import Data  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.models.interface import Condition, DenoiserConfig, count  # isort: skip
from pixelflow_jax.models.pixnerd_text import PixNerdText  # isort: skip
from pixelflow_jax.nn.stack import StackConfig  # isort: skip
from pixelflow_jax.encoders.qwen3 import VARIANTS as QWENS  # isort: skip
from pixelflow_jax.encoders.qwen3 import Qwen3, Qwen3Geometry  # isort: skip
from pixelflow_jax.encoders.t5 import VARIANTS as T5S  # isort: skip
from pixelflow_jax.encoders.t5 import T5, T5Geometry  # isort: skip

TINY = {"width": 64, "hidden": 96, "depth": 2, "heads": 2, "vocabulary": 1000}
BY = ("jax", "jax-xla", "torch", "torch-eager", "step")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    known = [*QWENS, *T5S]
    names = ["qwen3-1.7b", "flan-t5-xl"]
    parser.add_argument("--encoder", nargs="+", default=names, choices=known)
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--by", nargs="+", default=["jax", "jax-xla", "torch"])
    parser.add_argument("--scan", type=int, nargs="+", default=[1], choices=(0, 1))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a variant, as JSON
    parser.add_argument("--tiny", action="store_const", const=[True], default=[False])
    found = parser.parse_args()
    if unknown := set(found.by) - set(BY):
        parser.error(f"--by {', '.join(unknown)}: choose from {', '.join(BY)}")
    return found


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """One encoder at one length, in this process."""
    encoder = build(variant)
    tokens, mask = prompts(encoder, variant)
    how = variant["by"]
    if how == "step":
        return variant | steps(encoder, tokens, mask, variant, args.repeats)
    if how.startswith("torch"):
        found = by_torch(encoder, tokens, mask, how == "torch", args.repeats)
    else:
        found = by_jax(encoder, tokens, mask, how, args.repeats)
    done = flops(encoder, variant["length"]) * len(tokens)
    seconds, rate = found.pop("seconds"), found["matmul_tflops"]
    return {
        **variant,
        "prompts_s": len(tokens) / seconds,
        "ms": seconds * 1e3,
        "mfu": done / seconds / rate / 1e12,
        "tflop": done / 1e12,
        **found,
    }


def build(variant: dict) -> Qwen3 | T5:
    """The encoder that a variant names, or a tiny one of its kind."""
    name, stack = variant["encoder"], StackConfig(remat="none")
    stack.scan = bool(variant["scan"])
    qwen = name in QWENS
    fields: dict[str, Any] = {"variant": name, "stack": stack}
    if variant["tiny"]:
        make = functools.partial(Qwen3Geometry, padding=3) if qwen else T5Geometry
        fields["geometry"] = make(**TINY | ({"kv_heads": 1} if qwen else {}))
    return (Qwen3 if qwen else T5)(**fields)


def prompts(encoder: Qwen3 | T5, variant: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [batch, length], from an eighth of the length to all of it."""
    draw, shape = np.random.default_rng(0), (variant["batch"], variant["length"])
    tokens = draw.integers(5, encoder.sizes.vocabulary // 2, shape).astype(np.int32)
    lengths = draw.integers(shape[1] // 8, shape[1] + 1, shape[0])
    return tokens, np.arange(shape[1]) < lengths[:, None]


def flops(encoder: Qwen3 | T5, length: int) -> float:
    """Forward operations of one prompt (2 a multiply-add; attention not halved)."""
    sizes = encoder.sizes
    kernels = count(encoder.shapes()["blocks"])
    mixing = 2 * length * sizes.heads * sizes.head_width * sizes.depth
    return 2.0 * length * (kernels + mixing)


def by_jax(
    encoder: Qwen3 | T5, tokens: np.ndarray, mask: np.ndarray, how: str, repeats: int
) -> dict:
    """Ours; `off_xla`: how far the states are from those of XLA's attention."""
    rates = timing.machine_rates()
    plain = dataclasses.replace(encoder, attention="xla")
    chosen = plain if how == "jax-xla" else encoder
    params = drawn(encoder)
    given = params, jnp.asarray(tokens), jnp.asarray(mask)
    built = harness.compiled(jax.jit(chosen.states), *given)
    program = built.program
    seconds = timing.median_seconds(lambda: program(*given), repeats)
    found, expected = (
        np.asarray(program(*given)),
        np.asarray(jax.jit(plain.states)(*given)),
    )
    off = np.linalg.norm((found - expected)[mask]) / np.linalg.norm(expected[mask])
    if not np.isfinite(off):
        raise RuntimeError("The states are not finite: this variant does not work.")
    return {
        "seconds": seconds,
        **harness.memory(program),
        "compile_s": built.seconds,
        "off_xla": float(off),
        **rates,
    }


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Array, shape: jax.ShapeDtypeStruct) -> Array:
    deviation = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.02
    return (deviation * jax.random.normal(key, shape.shape)).astype(shape.dtype)


def drawn(encoder: Qwen3 | T5) -> dict:
    """Random parameters on the device; norms scale by 1.

    T5 does not scale its logits but begins with small queries; with large ones, every
    rounding would lead elsewhere.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(encoder.shapes())
    found = []
    for number, (path, shape) in enumerate(leaves):
        if path[-1].key == "weight":
            found.append(jnp.ones(shape.shape, shape.dtype))
        else:
            found.append(_normal(jax.random.key(number), shape))
    params = jax.tree_util.tree_unflatten(structure, found)
    if isinstance(encoder, T5):
        own = params["blocks"]["attention"]["qkv"]
        inner = encoder.sizes.heads * encoder.sizes.head_width
        small = own["kernel"][..., :inner] * encoder.sizes.head_width**-0.5
        own["kernel"] = own["kernel"].at[..., :inner].set(small)
    return params


def by_torch(
    encoder: Qwen3 | T5, tokens: np.ndarray, mask: np.ndarray, fast: bool, repeats: int
) -> dict:
    """transformers' network of the same sizes; ends the process where it is absent."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        network = _transformers(transformers, encoder).to(torch.bfloat16).eval()
        ids = torch.tensor(tokens, dtype=torch.long)
        attention_mask = torch.tensor(mask, dtype=torch.long)
    if fast:
        network.compile()

    def once() -> object:
        with torch.inference_mode():
            return network(input_ids=ids, attention_mask=attention_mask)[0]

    def waited(call: Callable[[], object]) -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    finite = bool(torch.isfinite(once()).all())
    compile_seconds = time.perf_counter() - start
    if not finite:
        raise RuntimeError("The states of transformers are not finite.")
    seconds = timing.median_seconds(lambda: waited(once), repeats)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    size = 8192 if device == "cuda" else 1024
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    each = timing.median_seconds(lambda: waited(lambda: square @ square), 10)
    return {
        "seconds": seconds,
        "peak_gb": peak / 1e9,
        "compile_s": compile_seconds,
        "matmul_tflops": 2 * size**3 / each / 1e12,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _transformers(transformers: Any, encoder: Qwen3 | T5) -> Any:
    """transformers' network of the encoder's sizes."""
    sizes = encoder.sizes
    if isinstance(encoder, T5):
        config = transformers.T5Config(
            vocab_size=sizes.vocabulary,
            d_model=sizes.width,
            d_kv=sizes.head_width,
            d_ff=sizes.hidden,
            num_layers=sizes.depth,
            num_heads=sizes.heads,
            feed_forward_proj="gated-gelu",
        )
        return transformers.T5EncoderModel(config)
    config = transformers.Qwen3Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_width,
        rope_theta=sizes.period,
    )
    return transformers.Qwen3Model(config)


@dataclasses.dataclass(kw_only=True)
class Given(Conditioner):
    """A conditioner whose states were computed before: `batch["states"]`."""

    drop: float = 0.1

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """The given states."""
        return Condition(text=batch["states"], mask=batch["mask"])

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """Those of the empty text, which are as large."""
        return Condition(text=jnp.zeros_like(cond.text), mask=cond.mask)


def steps(
    encoder: Qwen3 | T5,
    tokens: np.ndarray,
    mask: np.ndarray,
    variant: dict,
    repeats: int,
) -> dict:
    """A training step from tokens and from states: milliseconds, and the share."""
    length, width = variant["length"], encoder.width
    model = PixNerdText(text_width=width, text_length=length)
    size = 256
    if variant["tiny"]:
        size, small = 32, {"width": 64, "heads": 4, "depth": 2, "text_depth": 1}
        model = dataclasses.replace(model, **small, feature_layer=1)
    config = Experiment(
        name="text",
        batch_size=variant["batch"],
        data=Data(image_size=size),
        model=model,
        conditioner=Text(encoder=encoder, length=length),
    )
    validate(config)
    objective = builders.objective(config)
    frozen_params = {"text": drawn(encoder)}
    texts = {"tokens": tokens, "mask": mask}
    whole = worker.timed(
        work.training(config, objective, frozen_params, texts), repeats
    )
    states = jax.jit(encoder.states)(frozen_params["text"], tokens, mask)
    before = {"states": np.asarray(states), "mask": mask}
    objective = dataclasses.replace(objective, conditioner=Given())
    without = worker.timed(work.training(config, objective, {}, before), repeats)
    return {
        "step_ms": whole["ms"],
        "from_states_ms": without["ms"],
        "share": 1 - without["ms"] / whole["ms"],
        **{name: whole[name] for name in ("peak_gb", "temporary_gb", "matmul_tflops")},
    }


def main() -> None:
    """Run every combination, each in its own process."""
    names = ("encoder", "length", "batch", "by", "scan", "tiny")
    harness.run_variants("benchmarks.text", arguments(), names, measure)


if __name__ == "__main__":
    main()
