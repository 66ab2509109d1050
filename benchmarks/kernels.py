"""Single operations at the shapes of the XL models, each against its limit.

python -m benchmarks.kernels --only 'attention *' 'product qkv *'

ENTRIES holds what can be measured; rows are appended to results/kernels.jsonl. A
variant runs many times inside one program, so that starting it costs nothing. `us` is
one run; `gb_s` counts each input and each result once, `of_copy` is its share of the
measured copy rate; `tflop_s` and `of_matmul` likewise for entries that say their
operations. `deviation` is the largest difference from the formula in float32, or from
the first variant, of the largest value; what disagrees is said beside its time. Several
entries share a process; one that kills it costs its own rows alone.
"""

import argparse
import fnmatch
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
from jax import Array  # isort: skip

from benchmarks import suite, timing  # isort: skip
from benchmarks.micro import Entry, handed_over, measure  # isort: skip
from pixelflow_jax.doctor.kernels import (  # isort: skip
    adaln,
    field,
    projection,
    qkv,
    swiglu,
    whole_mlp,
    with_gradient,
)
from pixelflow_jax.nn.attention import attend  # isort: skip
from pixelflow_jax.nn.kernels.activate_and_project import Kind  # isort: skip
from pixelflow_jax.nn.kernels.choice import Kernels  # isort: skip
from pixelflow_jax.nn.packing import Packing  # isort: skip

WIDTH, HIDDEN, HEADS, HEAD_WIDTH = 1152, 3072, 16, 72  # of the XL models
TOKENS = (8192, 32768)  # 32 and 128 images of 256 pixels
# The layers of a block and the neural field's generator: inputs and outputs.
LAYERS = {
    "qkv": (WIDTH, 3 * WIDTH),
    "out": (WIDTH, WIDTH),
    "gate or up": (WIDTH, HIDDEN),
    "gate and up": (WIDTH, 2 * HIDDEN),
    "down": (HIDDEN, WIDTH),
    "generator": (WIDTH, 64 * 128),
}
# Tokens and images: of PixNerd, of PixelGen with its class tokens, of PixelFlow's last
# stages; both with guidance, and a large batch.
LENGTHS = (
    *((256, 32), (256, 128), (288, 32), (288, 64), (288, 128)),
    *((128, 64), (1024, 4), (4096, 4)),
)
TEACHER = (128, 272, 12, 64)  # images, tokens, heads and width of DINOv2, padded
TEACHER_LENGTH = 257
FAST_WIDTHS = (64, 128)  # of heads, which the newest kernels are written for
PADDED_WIDTHS = (80, 96, 128)  # what heads of 72 can be padded to
# Operations that have a kernel of Mosaic's for GPUs beside "auto", which is Triton's.
MOSAIC = {"adaln residual": ("mosaic",)}
# What sampling computes for guided images, two for each: tokens, images, and of the MLP
# its activation, its width and whether it has biases.
SAMPLED: dict[str, tuple[int, int, Kind, int, bool]] = {
    "pixnerd": (256, 64, "swiglu", HIDDEN, False),
    "pixelgen": (288, 64, "swiglu", HIDDEN, True),
    "pixnerd, one image": (256, 2, "swiglu", HIDDEN, False),
    "pixelgen, one image": (288, 2, "swiglu", HIDDEN, True),
    "pixnerd, two images": (256, 4, "swiglu", HIDDEN, False),
    "pixelgen, two images": (288, 4, "swiglu", HIDDEN, True),
    "pixelflow": (4096, 2, "gelu", 4 * WIDTH, True),
}
# A title, images, and the tokens of an image in every group.
BLOCKS = (
    ("pixnerd 32", 32, (256,)),
    ("pixelflow 16", 4, (64, 256, 1024, 4096)),
)
RESULTS = harness.RESULTS / "kernels.jsonl"


def normal(*shapes: tuple[int, ...], dtype: str = "bfloat16") -> tuple[Array, ...]:
    """Standard normal arrays, each from a key of its own."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = zip(keys, shapes, strict=True)
    return tuple(jax.random.normal(key, s).astype(dtype) for key, s in pairs)


def products() -> Iterator[tuple[str, Entry]]:
    """Matrix products of the layers, with gradients for inputs and weights."""
    for tokens in TOKENS:
        for layer, (inputs, outputs) in LAYERS.items():
            flops = 2.0 * tokens * inputs * outputs
            shapes = (tokens, inputs), (inputs, outputs)
            yield (
                f"product {layer} {tokens}",
                Entry(
                    inputs=functools.partial(normal, *shapes),
                    variants={"xla": jnp.matmul},
                    flops=flops,
                ),
            )
            yield (
                f"product {layer} {tokens} gradients",
                Entry(
                    inputs=functools.partial(normal, *shapes, (tokens, outputs)),
                    variants={"xla": _product_gradients},
                    flops=2 * flops,
                ),
            )


def _product_gradients(x: Array, weight: Array, cotangent: Array) -> tuple:
    return cotangent @ weight.T, x.T @ cotangent


def attentions() -> Iterator[tuple[str, Entry]]:
    """Attention at the models' lengths, forward alone and with its gradients."""
    for length, batch in LENGTHS:
        for width in (HEAD_WIDTH, *FAST_WIDTHS):
            shape = (batch, length, HEADS, width)
            name = f"attention {length} x {width}, {batch} images"
            yield from _passes(name, shape, _attentions_of(width))
    batch, length, _, width = TEACHER
    teacher = {
        word: functools.partial(attend, implementation=word, length=TEACHER_LENGTH)
        for word in ("cudnn", "hopper", "xla")
    }
    first = {name: functools.partial(_first, one) for name, one in teacher.items()}
    name = f"attention {TEACHER_LENGTH} of {length} x {width}, {batch} images"
    yield from _passes(name, TEACHER, first)


def _first(attend: Callable, q: Array, k: Array, v: Array) -> Array:
    """What the first queries find, which alone has a meaning."""
    return attend(q, k, v)[:, :TEACHER_LENGTH]


def _passes(
    name: str, shape: tuple[int, ...], variants: dict[str, Callable]
) -> Iterator[tuple[str, Entry]]:
    """The entries of a shape [batch, length, heads, width]: forward, and both."""
    batch, length, heads, width = shape
    out = jax.eval_shape(
        variants["xla"], *[jax.ShapeDtypeStruct(shape, "bfloat16")] * 3
    )
    both = {name: with_gradient(one) for name, one in variants.items()}
    flops = 4.0 * batch * length**2 * heads * width
    for title, shapes, functions, passes in (
        ("forward", [shape] * 3, variants, 1),
        ("forward and backward", [*[shape] * 3, out.shape], both, 3),
    ):
        yield (
            f"{name}, {title}",
            Entry(
                inputs=functools.partial(normal, *shapes),
                variants=functions,
                flops=passes * flops,
            ),
        )


def _attentions_of(width: int) -> dict[str, Callable]:
    """Who can compute attention, and at which width of its heads."""
    by_name = functools.partial
    found = {
        name: by_name(jax.nn.dot_product_attention, implementation=name)
        for name in ("cudnn", "xla")
    }
    found["hopper"] = _ours
    wider = [w for w in PADDED_WIDTHS if w > width]
    found |= {f"cudnn at {w}": by_name(_padded, found["cudnn"], w) for w in wider}
    if importlib.util.find_spec("tokamax"):
        for w in [width, *wider]:
            found[f"tokamax at {w}"] = by_name(_padded, _mosaic, w)
    return found


def _padded(attend: Callable, width: int, q: Array, k: Array, v: Array) -> Array:
    """Attention of heads that zeros make `width` wide, which changes no result."""
    narrow, wide = q.shape[-1], ((0, 0), (0, 0), (0, 0), (0, width - q.shape[-1]))
    out = attend(*(jnp.pad(a, wide) for a in (q, k, v)), scale=narrow**-0.5)
    return out[..., :narrow]


def _ours(q: Array, k: Array, v: Array) -> Array:
    return attend(q, k, v, implementation="hopper")


def _mosaic(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Flash attention as tokamax writes it for Mosaic."""
    import tokamax

    return tokamax.dot_product_attention(
        q, k, v, scale=scale, implementation="mosaic_gpu"
    )


def neural_fields() -> Iterator[tuple[str, Entry]]:
    """A block of PixNerd-XL's field for 32 images: products and the kernel."""
    patches, pixels, width, hidden = 32 * 256, 256, 64, 128
    shapes = [(patches, pixels, width), (patches, 2 * width * hidden)]
    flops = 4.0 * patches * pixels * width * hidden
    forward = {
        name: functools.partial(field, Kernels(field=choice))
        for name, choice in (("xla", "xla"), ("kernel", "pallas"), ("auto", "auto"))
    }
    both = {name: with_gradient(function) for name, function in forward.items()}
    yield (
        "field forward",
        Entry(inputs=functools.partial(normal, *shapes), variants=forward, flops=flops),
    )
    yield (
        "field forward and backward",
        Entry(
            inputs=functools.partial(normal, *shapes, shapes[0]),
            variants=both,
            flops=3 * flops,
        ),
    )


def blocks() -> Iterator[tuple[str, Entry]]:
    """What lies between a block's products: the compiler's work and our kernels."""
    for title, batch, lengths in BLOCKS:
        packing = Packing((batch,) * len(lengths), lengths)
        n = sum(lengths)
        tokens, wide = (batch, n, WIDTH), (batch, n, HIDDEN)
        modulation = [(batch, 6 * WIDTH)] * len(lengths)
        heads = [(batch, n, HEADS, HEAD_WIDTH)] * 3
        normed = functools.partial(qkv, HEADS)
        kinds = {
            "adaln residual": (adaln, [tokens, tokens, *modulation], [tokens] * 2),
            "qkv norm rope": (normed, [(batch, n, 3 * WIDTH)], heads),
            "activate and project": (swiglu, [wide, wide, (HIDDEN, WIDTH)], [tokens]),
        }
        for name, (function, shapes, outs) in kinds.items():
            forward = {
                choice: functools.partial(function, packing, Kernels(blocks=choice))
                for choice in ("xla", "auto", *MOSAIC.get(name, ()))
            }
            both = {k: with_gradient(f, len(outs)) for k, f in forward.items()}
            for words, given, variants in (
                ("forward", shapes, forward),
                ("forward and backward", [*shapes, *outs], both),
            ):
                yield (
                    f"{name} {title} {words}",
                    Entry(
                        inputs=functools.partial(normal, *given),
                        variants=variants,
                        exact=variants["xla"],
                    ),
                )


def sampled() -> Iterator[tuple[str, Entry]]:
    """What nobody wants gradients of: MLPs, and attention from a projection on."""
    for title, (n, batch, kind, hidden, bias) in SAMPLED.items():
        packing, count = Packing((batch,), (n,)), 2 if kind == "swiglu" else 1
        by_choice = {
            choice: functools.partial(
                whole_mlp, kind, bias, packing, Kernels(blocks=choice)
            )
            for choice in ("xla", "pallas", "auto")
        }
        shapes = (batch, n, WIDTH), (WIDTH, count * hidden), (hidden, WIDTH)
        yield (
            f"mlp {title}, {batch} x {n}",
            Entry(
                inputs=functools.partial(normal, *shapes),
                variants=by_choice,
                flops=2.0 * batch * n * WIDTH * hidden * (count + 1),
            ),
        )
        attend = functools.partial(projection, HEADS, packing)
        yield (
            f"attention of projections {title}, {batch} x {n}",
            Entry(
                inputs=functools.partial(normal, (batch, n, 3 * WIDTH), (1, 3 * WIDTH)),
                variants={
                    word: functools.partial(attend, Kernels(attention=word))
                    for word in ("cudnn", "hopper", "xla")
                },
                flops=4.0 * batch * n**2 * WIDTH,
            ),
        )


ENTRIES: dict[str, Entry] = {**dict(products()), **dict(attentions())}
ENTRIES |= dict(blocks())
ENTRIES |= dict(neural_fields())
ENTRIES |= dict(sampled())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=5, json=RESULTS)
    add = parser.add_argument
    add("--only", nargs="+", default=["*"], help="names or patterns of entries")
    add("--list", action="store_true", help="print the names of the entries")
    add("--budget", type=float, default=60, help="seconds for an entry")
    add("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


def chosen(patterns: list[str]) -> list[str]:
    """The names of the entries that match a pattern."""
    return [n for n in ENTRIES if any(fnmatch.fnmatch(n, p) for p in patterns)]


def measure_here(names: list[str], repeats: int) -> None:
    """Measure entries in this process, handing each over as soon as it is there."""
    rates = timing.machine_rates()
    for name in names:
        rows = [{"case": name, **row} for row in measure(ENTRIES[name], rates, repeats)]
        rows = [{**row, **rates} for row in rows]
        print(harness.ROW + json.dumps(harness.record(rows)), flush=True)


def main() -> None:
    """Measure the chosen entries, and print and record each as it comes."""
    args = arguments()
    names = chosen(args.only)
    if args.list:
        print("\n".join(names))
    elif args.here:
        measure_here(names, args.repeats)
    else:
        command = [sys.executable, "-m", "benchmarks.kernels", "--here"]
        command += ["--repeats", str(args.repeats), "--only"]
        rows = []
        for record in handed_over(command, names, args.budget):
            harness.append(args.json, record)
            rows += record["rows"]
            for row in record["rows"]:
                suite.say(f"{row['case']} {row.get('variant', '')}", row, ("us",))
        harness.print_table(rows)


if __name__ == "__main__":
    main()
