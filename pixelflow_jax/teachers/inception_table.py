"""The 2015 Inception's layers, and their names in PyTorch's and TensorFlow's files.

Source: Szegedy et al. 2015; the names and the order of branches are torchvision's.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pixelflow_jax.tensors.layouts import convolution
from pixelflow_jax.tensors.mapping import Row, linear_rows

WIDTH, CLASSES = 2048, 1008
NORM = ("weight", "bias", "running_mean", "running_var")
TF_NORM = dict(
    zip(NORM, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True)
)

# Stride 1, and the sides stay as they are; or the border is cut; or stride 2 as well.
Border = Literal["same", "cut", "halve"]
# A mean over the pixels that a window really has, or their maximum.
Pool = Literal["", "mean", "max"]


class Conv(NamedTuple):
    """A convolution without bias, its batch norm and ReLU."""

    name: str
    outputs: int
    size: tuple[int, int] = (1, 1)
    border: Border = "same"


class Branch(NamedTuple):
    """Convolutions one after another, and two side by side at the end of some.

    A `pool` of 3 x 3 comes first; alone, it has stride 2 and cuts the border.
    """

    convs: tuple[Conv, ...] = ()
    fork: tuple[Conv, ...] = ()
    pool: Pool = ""


class Block(NamedTuple):
    """Branches that see the same and are concatenated in this order."""

    name: str
    branches: tuple[Branch, ...]


def _chain(name: str, *steps: tuple, first: int = 1, **options) -> Branch:
    """A branch whose convolutions are called NAME_1, NAME_2 and so on."""
    convs = (Conv(f"{name}_{i}", *step) for i, step in enumerate(steps, first))
    return Branch(tuple(convs), **options)


REDUCE = Branch(pool="max")
THREE = (3, 3)


def _block_a(name: str, pooled: int) -> Block:
    return Block(
        name,
        (
            Branch((Conv("branch1x1", 64),)),
            _chain("branch5x5", (48,), (64, (5, 5))),
            _chain("branch3x3dbl", (64,), (96, THREE), (96, THREE)),
            Branch((Conv("branch_pool", pooled),), pool="mean"),
        ),
    )


def _block_c(name: str, width: int) -> Block:
    across, down = (1, 7), (7, 1)
    double = ((width,), (width, down), (width, across), (width, down), (192, across))
    return Block(
        name,
        (
            Branch((Conv("branch1x1", 192),)),
            _chain("branch7x7", (width,), (width, across), (192, down)),
            _chain("branch7x7dbl", *double),
            Branch((Conv("branch_pool", 192),), pool="mean"),
        ),
    )


def _block_e(name: str, pool: Pool) -> Block:
    def fork(branch: str) -> tuple[Conv, ...]:
        return Conv(f"{branch}a", 384, (1, 3)), Conv(f"{branch}b", 384, (3, 1))

    return Block(
        name,
        (
            Branch((Conv("branch1x1", 320),)),
            _chain("branch3x3", (384,), fork=fork("branch3x3_2")),
            _chain("branch3x3dbl", (448,), (384, THREE), fork=fork("branch3x3dbl_3")),
            Branch((Conv("branch_pool", 192),), pool=pool),
        ),
    )


# Maxima of 3 x 3 with stride 2 follow the third and the fifth.
STEM = (
    Conv("Conv2d_1a_3x3", 32, THREE, "halve"),
    Conv("Conv2d_2a_3x3", 32, THREE, "cut"),
    Conv("Conv2d_2b_3x3", 64, THREE),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, THREE, "cut"),
)
POOLED = {"Conv2d_2b_3x3": "MaxPool_1", "Conv2d_4a_3x3": "MaxPool_2"}
BLOCKS = (
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    Block(
        "Mixed_6a",
        (
            Branch((Conv("branch3x3", 384, THREE, "halve"),)),
            _chain("branch3x3dbl", (64,), (96, THREE), (96, THREE, "halve")),
            REDUCE,
        ),
    ),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    Block(
        "Mixed_7a",
        (
            _chain("branch3x3", (192,), (320, THREE, "halve")),
            _chain(
                "branch7x7x3",
                (192,),
                (192, (1, 7)),
                (192, (7, 1)),
                (192, THREE, "halve"),
            ),
            REDUCE,
        ),
    ),
    _block_e("Mixed_7b", "mean"),
    _block_e("Mixed_7c", "max"),  # a slip in training that the weights have learnt
)


def convolutions() -> Iterator[tuple[str, Conv, int]]:
    """Every convolution: its PyTorch name, itself, and the channels it reads."""
    inputs = 3
    for conv in STEM:
        yield conv.name, conv, inputs
        inputs = conv.outputs
    for block in BLOCKS:
        outputs = 0
        for branch in block.branches:
            last = inputs
            for conv in branch.convs:
                yield f"{block.name}.{conv.name}", conv, last
                last = conv.outputs
            for conv in branch.fork:
                yield f"{block.name}.{conv.name}", conv, last
            outputs += sum(conv.outputs for conv in branch.fork) or last
        inputs = outputs


def table() -> list[Row]:
    """How our parameters are made of pytorch-fid's and torch-fidelity's."""
    rows = []
    for name, conv, inputs in convolutions():
        shape = (conv.outputs, inputs, *conv.size)
        ours = name.replace(".", "/")
        rows.append(
            Row(f"{ours}/kernel", f"{name}.conv.weight", convolution, None, shape)
        )
        rows += [
            Row(f"{ours}/{part}", f"{name}.bn.{part}", shape=shape[:1]) for part in NORM
        ]
    return [*rows, *linear_rows("fc", "fc", shape=(CLASSES, WIDTH))]


def tensorflow_names() -> dict[str, str]:
    """The scopes of TensorFlow's graph by PyTorch's name of each convolution.

    There a branch is `conv` where it is one convolution alone and a `tower` otherwise;
    what lies side by side is `mixed` once more.
    """

    def numbered(scope: str, number: int) -> str:
        return f"{scope}_{number}" if number else scope

    names = {conv.name: numbered("conv", i) for i, conv in enumerate(STEM)}
    for number, block in enumerate(BLOCKS):
        scope, towers = numbered("mixed", number), 0
        for branch in block.branches:
            own = scope
            if len(branch.convs) > 1 or branch.fork or (branch.pool and branch.convs):
                own, towers = f"{scope}/{numbered('tower', towers)}", towers + 1
            for i, conv in enumerate(branch.convs):
                names[f"{block.name}.{conv.name}"] = f"{own}/{numbered('conv', i)}"
            for i, conv in enumerate(branch.fork):
                last = f"{own}/mixed/{numbered('conv', i)}"
                names[f"{block.name}.{conv.name}"] = last
    return names
