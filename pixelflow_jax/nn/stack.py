"""`depth` equal blocks whose parameters carry a leading layer axis, run as one scan."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.nn.dropout import DropoutKeys
from pixelflow_jax.nn.precision import check_word
from pixelflow_jax.sharding import constrain_batch
from pixelflow_jax.values import Depth

# Names that blocks give (by `checkpoint_name`) to what "names" keeps for the backward
# pass; everything else between them is cheap to compute again.
SAVED = ("qkv", "attention", "mlp_hidden", "residual", "generated", "modulation")
# What a block's gates multiply, the outputs of attention and MLP, by policy.
BRANCHES = {
    "names": (),
    "mlp": ("mlp_branch",),
    "branches": ("attention_branch", "mlp_branch"),
}
Remat = Literal["none", "names", "mlp", "branches", "full"]


class Modulations(NamedTuple):
    """What modulates the blocks of a stack, made ahead: a tuple of groups a layer."""

    layers: list[tuple[Float[Array, "_ chunks"], ...]]


class JoinedModulations(NamedTuple):
    """The same with all layers side by side in one array a group.

    A program that runs a network in a loop cuts one array out of a table in each step,
    not one a layer, and a block's last sum can wait for the next one's first norm.
    """

    groups: tuple[Float[Array, "_ all_chunks"], ...]


class Place(NamedTuple):
    """Where a block stands: all layers' modulation, its number, what is to be added.

    `pending` is the `Residual` of the layer before, or None.
    """

    groups: tuple[Float[Array, "_ all_chunks"], ...]
    layer: int = 0
    pending: Any = None


def join_modulations(tree: Any) -> Any:
    """A pytree in which every `Modulations` is `JoinedModulations`."""

    def join(node: Any) -> Any:
        if not isinstance(node, Modulations):
            return node
        groups = zip(*node.layers, strict=True)
        return JoinedModulations(tuple(jnp.concatenate(g, -1) for g in groups))

    return jax.tree.map(join, tree, is_leaf=lambda node: isinstance(node, Modulations))


@dataclasses.dataclass(kw_only=True)
class StackConfig:
    """How a stack of blocks runs; changes speed and memory, never results.

    `remat`: what the backward pass keeps: "none" keeps every intermediate, "names" the
    named ones (projections, attention output, MLP hidden, middle residual), "branches"
    also the outputs of attention and MLP, which spares two matrix products a block and
    makes the middle residual cheap to compute again, "mlp" that of the MLP alone, which
    spares the larger of both and takes the memory of "names", and "full" only each
    block's input. `scan`: one block compiled and run `depth` times, `unroll` of them an
    iteration; without, all blocks are written out, which compiles several times longer
    and runs a little faster.
    """

    remat: Remat = "names"
    scan: bool = True
    unroll: Depth = 1

    def check(self) -> None:
        """Raises ValueError for values that do not exist."""
        check_word("stack.remat", self.remat, Remat)
        if self.unroll < 1:
            raise ValueError(f"stack.unroll must be at least 1, not {self.unroll}.")


class Stack(nnx.Module):
    """Blocks in sequence: x -> block(x, *args), `args` the same for all blocks."""

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        rngs: nnx.Rngs,
        config: StackConfig,
    ):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs: nnx.Rngs) -> nnx.Module:
            return make(rngs)

        self.depth = depth
        self.scan = config.scan
        self.unroll = config.unroll
        self.remat: Remat = config.remat
        self.blocks: Any = create(rngs)

    def __call__(
        self,
        x: Float[Array, " rows *rest"],
        *args: Any,
        dropouts: Sequence[DropoutKeys | None] | None = None,
        modulation: Modulations | JoinedModulations | None = None,
    ) -> Float[Array, " rows *rest"]:
        """Run all blocks on x.

        `dropouts` holds one argument more for each block: its dropout, or None where it
        drops nothing. `modulation` is what `layer_modulations` gives, for blocks that
        take it, or the same joined.
        """
        if isinstance(modulation, JoinedModulations):
            return self._run_joined(x, modulation, args, dropouts)
        graph, params = nnx.split(self.blocks)
        nothing = (None,) * self.depth

        def block(layer: tuple, x: Array) -> Array:
            params, drop, modulation = layer
            positional = () if drop is None else (drop,)
            named = {} if modulation is None else {"modulation": modulation}
            return nnx.merge(graph, params)(x, *args, *positional, **named)

        config = StackConfig(remat=self.remat, scan=self.scan, unroll=self.unroll)
        if self.scan:
            layers = (params, _stacked(dropouts or nothing), None)
            return run_layers(block, layers, x, config)
        modulations = modulation.layers if modulation else nothing
        each = zip(layers_of(params), dropouts or nothing, modulations, strict=True)
        return run_layers(block, list(each), x, config)

    def _run_joined(
        self,
        x: Array,
        modulation: JoinedModulations,
        args: tuple,
        dropouts: Sequence[DropoutKeys | None] | None,
    ) -> Array:
        """All written-out blocks; each leaves its last sum to the next one."""
        graph, params = nnx.split(self.blocks)
        drops = dropouts or (None,) * self.depth
        blocks: list[Any] = [nnx.merge(graph, layer) for layer in layers_of(params)]
        at = Place(modulation.groups)
        for layer, (block, drop) in enumerate(zip(blocks, drops, strict=True)):
            positional = () if drop is None else (drop,)
            at = at._replace(layer=layer)
            x, pending = block.open(x, *args, *positional, at=at)
            x, at = constrain_batch(x), at._replace(pending=pending)
        return constrain_batch(blocks[-1].close(x, *args, at=at))


def layer_modulations(
    stack: Stack | None, cond: tuple[Float[Array, "_ width"], ...]
) -> Modulations | None:
    """`block.modulations(cond)` for every block of a written-out stack, else None.

    They do not depend on what passes through the blocks: a program that runs a network
    in a loop over known times makes them for all times ahead of it.
    """
    if stack is None or stack.scan:
        return None
    graph, params = nnx.split(stack.blocks)
    layers = layers_of(params)
    return Modulations([nnx.merge(graph, one).modulations(cond) for one in layers])


def run_layers(
    block: Callable[[Any, Array], Array], layers: Any, x: Array, config: StackConfig
) -> Array:
    """x through block(layer, x) for every layer in turn, as `config` says.

    `layers` is a pytree with a leading layer axis, or, written out (`config.scan`
    False), the list of all layers.
    """

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return constrain_batch(block(layer, x)), None

    if config.remat != "none":
        policy = None if config.remat == "full" else _keeping(config.remat)
        # Inside a scan nothing can be merged anyway.
        body = jax.checkpoint(body, prevent_cse=not config.scan, policy=policy)
    x = constrain_batch(x)
    if config.scan:
        depth = len(jax.tree.leaves(layers)[0])
        return jax.lax.scan(body, x, layers, unroll=min(config.unroll, depth))[0]
    for layer in layers:
        x, _ = body(x, layer)
    return x


def _keeping(remat: Remat) -> Callable[..., bool]:
    """The policy that keeps what is named, and the results of cuDNN's attention.

    Its backward pass also reads the sums of the softmax, which no name reaches; without
    them, the forward pass would run again.
    """
    branches = BRANCHES[remat]
    # Where a gate's gradient needs its branch anyway, the residual is a sum away.
    names = (set(SAVED) - {"residual"} if branches else set(SAVED)) | set(branches)
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def attention(primitive: Any, *_: Any, **__: Any) -> bool:
        return "dot_product_attention_fwd" in primitive.name

    return jax.checkpoint_policies.save_from_both_policies(named, attention)


@jax.tree_util.register_pytree_with_keys_class
class Unstacked(tuple):
    """The layers of a stacked array as arrays of their own.

    A program that runs a written-out stack in a loop unstacks them ahead of it: inside,
    XLA would cut each layer's parameters out again in every step.
    """

    def tree_flatten_with_keys(self) -> tuple:
        """The layers, by their numbers."""
        return [(jax.tree_util.SequenceKey(i), a) for i, a in enumerate(self)], None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Any) -> "Unstacked":
        """The same with other layers."""
        return cls(layers)


def written_out_blocks(module: nnx.Module) -> list[tuple]:
    """Where in a module's parameters the blocks of its written-out stacks lie."""
    return [
        (*path, "blocks")
        for path, node in nnx.iter_modules(module)
        if isinstance(node, Stack) and not node.scan
    ]


def unstack_layers(params: dict, paths: Sequence[tuple]) -> dict:
    """Parameters whose stacked arrays below the `paths` are `Unstacked`."""
    for path in paths:
        params = _unstack_below(params, path)
    return params


def _unstack_below(params: dict, path: tuple) -> dict:
    if not path:
        return jax.tree.map(_unstack, params, is_leaf=_is_unstacked)
    name, rest = path[0], path[1:]
    return {**params, name: _unstack_below(params[name], rest)}


def layers_of(params: Any) -> list:
    """Every layer of a stacked pytree; their gradients meet in one concatenation."""
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_unstacked)
    layers = zip(*map(_unstack, leaves), strict=True)
    return [jax.tree.unflatten(structure, layer) for layer in layers]


def _is_unstacked(node: Any) -> bool:
    return isinstance(node, Unstacked)


def _unstack(leaf: Any) -> Unstacked:
    return leaf if _is_unstacked(leaf) else Unstacked(_entries(leaf))


@jax.custom_vjp
def _entries(stacked: Array) -> tuple[Array, ...]:
    """The entries along the first axis.

    Plain indexing, which melts into whatever reads an entry first; its own gradient
    would add up as many arrays of the whole size.
    """
    return tuple(stacked[i] for i in range(len(stacked)))


_entries.defvjp(
    lambda stacked: (_entries(stacked), None),
    lambda _, gradients: (jnp.stack(gradients),),
)


def _stacked(dropouts: Sequence[DropoutKeys | None]) -> DropoutKeys | None:
    """One dropout a layer as one pytree for a scan; None where no layer drops.

    Only a flag can tell the layers of a scan apart.
    """
    given = [drop for drop in dropouts if drop is not None]
    if not given:
        return None
    filled = [given[0] if drop is None else drop for drop in dropouts]
    stacked = jax.tree.map(lambda *keys: jnp.stack(keys), *filled)
    if len(given) == len(dropouts):
        return stacked
    return stacked._replace(active=jnp.array([drop is not None for drop in dropouts]))
