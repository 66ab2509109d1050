"""What attention kernels do in a program for TPUs, which XLA does not count.

Of a kernel without an estimate of its own, as JAX's splash attention is, XLA's cost
analysis counts neither operations nor bytes. Both are read off the compiled program,
which holds the shapes that one device sees.
"""

import json
import math
import re
from typing import NamedTuple

# Matrix products between queries and keys, or what has their shapes: logits and
# mixture; backward the logits again, and the gradients of all four.
PRODUCTS = {"fwd": 2, "dkv": 5}
BYTES = {"s8": 1, "bf16": 2, "s32": 4, "f32": 4}
FLOATS = ("bf16", "f32")
SEQUENCE_LAST = 2  # a layout [b, heads, head_width, n]
CALL = re.compile(
    r"%splash_mha_(?P<kind>fwd|dkv)\w*(?:\.\d+)* = (?P<results>[^\n]*?) custom-call\("
    r'[^\n]*?custom_call_target="tpu_custom_call", '
    r"operand_layout_constraints=\{(?P<operands>[^\n]*?\})\}, "
    r'frontend_attributes=\{kernel_metadata=\{\n"xprof_metadata":(?P<blocks>"[^\n]*")\n'
)
ARRAY = re.compile(r"(\w+)\[([\d,]+)\]")


class Work(NamedTuple):
    """Operations, and bytes to and from the chip's memory."""

    flops: float = 0
    moved: float = 0


class Shape(NamedTuple):
    """An array's type and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Without the padding of tiles, as XLA counts."""
        return BYTES[self.dtype] * math.prod(self.sizes)


def attention(program: str) -> Work:
    """What all calls of the kernel in a compiled program (HLO text) do, once each.

    Logits that are computed again for the gradient count, padding of heads to whole
    tiles does not. Each array is read or written once; but keys and values that do not
    fit into one block are read again for each block of queries, and backward, what has
    the length of queries for each block of keys.
    """
    works = [_work(call) for call in CALL.finditer(program)]
    return Work(sum(w.flops for w in works), sum(w.moved for w in works))


def _work(call: re.Match) -> Work:
    blocks = json.loads(json.loads(call["blocks"]))
    operands, results = _shapes(call["operands"]), _shapes(call["results"])
    # All others are numbers of a mask's blocks, or of segments.
    q, k, v, *others = (a for a in operands if a.dtype in FLOATS)
    *batch, heads, n, width = q.sizes  # a batch of one image has no axis
    if blocks["q_layout"] == SEQUENCE_LAST:
        n, width = width, n
    rows = math.prod(batch) * heads * n
    m = math.prod(k.sizes) // (math.prod(batch) * heads * width)
    if call["kind"] == "fwd":
        rounds = n // blocks["block_q"] if blocks["block_kv"] < m else 1
        repeated = (k, v)
    else:
        rounds, repeated = m // blocks["block_kv_dkv"], (q, *others)
    moved = sum(shape.nbytes for shape in (*operands, *results))
    again = (rounds - 1) * sum(shape.nbytes for shape in repeated)
    return Work(PRODUCTS[call["kind"]] * 2 * rows * m * width, moved + again)


def _shapes(text: str) -> list[Shape]:
    """The arrays of a piece of HLO."""
    return [
        Shape(dtype, tuple(map(int, sizes.split(","))))
        for dtype, sizes in ARRAY.findall(text)
    ]
