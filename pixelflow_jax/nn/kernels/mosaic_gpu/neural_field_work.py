"""`neural_field` on Hopper GPUs by Mosaic, backward: what each warpgroup does."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.launch import EPS, SHORTEST, total
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import Index, put, written
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    ROWS,
    Ref,
    across,
    by_column,
    down,
    full,
)

COMPUTE = 2  # warpgroups that have tiles, besides the one that has the sums
SLOTS = 2  # tiles, and patches' weights, that are there or on their way
WIDTH = 64  # of pixels, and as many hidden values are computed at a time


class Sizes(NamedTuple):
    """Patches, their pixels and hidden widths, and whose columns get unit length."""

    patches: int
    pixels: int
    hidden: int
    unit: tuple[bool, bool]

    @property
    def programs(self) -> int:
        """How many work at a time."""
        return min(multiprocessors(), self.patches)

    @property
    def tiles(self) -> int:
        """Of a patch, for each of the warpgroups that compute them."""
        return self.pixels // (COMPUTE * ROWS)

    @property
    def parts(self) -> int:
        """How often hidden values are computed, a part at a time."""
        return self.hidden // WIDTH


class Far(NamedTuple):
    """What lies in the GPU's memory: weights twice, as rows of either matrix."""

    z: Ref
    cotangent: Ref
    gain: Ref
    first: Ref
    second: Ref
    dz: Ref
    dweights: Ref
    dgain: Ref


class Near(NamedTuple):
    """What lies in shared memory: what was brought, and what a tile leaves for sums.

    Gradients leave by the slots of z and of the first matrix, and by `dsecond`.
    """

    z: Ref
    cotangent: Ref
    first: Ref
    second: Ref
    unit: Ref
    active: Ref
    dhidden: Ref
    dsecond: Ref
    scale1: Ref
    scale2: Ref


class Barriers(NamedTuple):
    """A tile or weights have come; a tile's values are ready, or not needed any more.

    `scales` of the next patch are there; weights of a patch are `done` with.
    """

    tile: Ref
    weights: Ref
    ready: Ref
    free: Ref
    scales: Ref
    done: Ref


class At(NamedTuple):
    """The step of a patch, and the number of a tile among those of a warpgroup."""

    step: Index
    number: int


class Work:
    """What all warpgroups know: a program's patches, and where things are."""

    def __init__(self, sizes: Sizes, far: Far, near: Near, barriers: Barriers):
        self.sizes, self.far, self.near, self.barriers = sizes, far, near, barriers
        self.program = jax.lax.axis_index("program")
        self.warpgroup = jax.lax.axis_index("warpgroup")
        ahead = sizes.patches - self.program + (sizes.programs - 1)
        self.steps = jax.lax.div(ahead, jnp.int32(sizes.programs))
        self.parts = range(sizes.parts)

    def patch(self, step: Index) -> Array:
        """The number of the patch of a step."""
        return self.program + step * self.sizes.programs

    def slot(self, at: At) -> Index:
        """Where a tile is in shared memory."""
        if self.sizes.tiles % SLOTS == 0:
            return slot_of(at.number)
        return slot_of(at.step * self.sizes.tiles + at.number)

    def scale1(self, step: Index, part: int) -> Array:
        """What makes columns of the first matrix as long as one."""
        return by_column(self.near.scale1.at[slot_of(step), span(part)])


class Tiles(Work):
    """A warpgroup that computes every second tile of pixels of each patch."""

    def __init__(self, *given):
        super().__init__(*given)
        one, near = self.warpgroup, self.near
        self.z, self.cotangent = near.z.at[one], near.cotangent.at[one]
        self.unit, self.active = near.unit.at[one], near.active.at[one]
        self.dhidden = near.dhidden.at[one]
        self.ready, self.free = self.barriers.ready.at[one], self.barriers.free.at[one]

    def run(self) -> None:
        """All tiles."""
        self._fetch(At(0, 0))
        jax.lax.fori_loop(0, self.steps, self._patch, None)
        plgpu.barrier_wait(self.free)
        plgpu.wait_smem_to_gmem(0)

    def _patch(self, step: Array, nothing: None) -> None:
        plgpu.barrier_wait(self.barriers.scales)
        plgpu.barrier_wait(self.barriers.weights.at[slot_of(step)])
        for number in range(self.sizes.tiles):
            self._tile(At(step, number))
        plgpu.barrier_arrive(self.barriers.done)
        return nothing

    def _place(self, at: At) -> tuple:
        """Where a tile is in memory."""
        start = (at.number * COMPUTE + self.warpgroup) * ROWS
        return self.patch(at.step), pl.ds(pl.multiple_of(start, ROWS), ROWS)

    def _arrived(self, at: At) -> Ref:
        return self.barriers.tile.at[self.warpgroup * SLOTS + self.slot(at)]

    def _fetch(self, at: At) -> None:
        """Send for a tile of pixels and their cotangents."""
        place, slot = self._place(at), self.slot(at)
        plgpu.commit_smem()  # what was there has been read
        arrays = (self.far.z, self.z), (self.far.cotangent, self.cotangent)
        for source, to in arrays:
            plgpu.copy_gmem_to_smem(source.at[place], to.at[slot], self._arrived(at))

    def _fetch_next(self, at: At) -> None:
        """Send for the tile behind one, of this patch or the next one."""
        written()  # the gradient that left by its slot
        if at.number + 1 < self.sizes.tiles:
            self._fetch(At(at.step, at.number + 1))
        else:
            pl.when(at.step + 1 < self.steps)(lambda: self._fetch(At(at.step + 1, 0)))

    def _wait_until_free(self, at: At, part: int) -> None:
        """Until the sums have done with what was left for them before."""
        wait = lambda: plgpu.barrier_wait(self.free)
        if part or at.number:
            wait()
        else:
            pl.when(at.step > 0)(wait)

    def _tile(self, at: At) -> None:
        """A tile's gradient, and what the sums need of it."""
        plgpu.barrier_wait(self._arrived(at))
        slot, dtype = self.slot(at), self.far.z.dtype
        z = rows_of(self.z.at[slot]).astype(jnp.float32)
        inverse = jax.lax.rsqrt((z * z).sum(axis=1) * (1 / WIDTH) + EPS)
        unit = z * down(inverse, z)
        normed = (unit * across(by_column(self.far.gain), unit)).astype(dtype)
        d = rows_of(self.cotangent.at[slot])
        if self.sizes.unit[1]:
            scale = by_column(self.near.scale2.at[slot_of(at.step)])
            d = (d.astype(jnp.float32) * across(scale, unit)).astype(dtype)
        dnormed = full((ROWS, WIDTH), 0.0)
        for part in self.parts:
            active, dhidden = self._hidden(at, part, (normed, d))
            self._wait_until_free(at, part)
            if part == 0:
                # The sums have done with the tile before, whose slot is the next one's.
                self._fetch_next(at)
                self.unit[...] = unit.astype(dtype)
            self.active[...] = active
            self.dhidden[...] = dhidden
            plgpu.commit_smem()
            plgpu.barrier_arrive(self.ready)
            first = functools.partial(self._first, at, part)
            dnormed = more_of_pixels(dnormed, dhidden, first)
        self._put(at, dnormed, inverse)

    def _first(self, at: At, part: int) -> Ref:
        """A part of the first matrix."""
        return self.near.first.at[slot_of(at.step), part]

    def _hidden(self, at: At, part: int, rows: tuple) -> tuple[Array, Array]:
        """Some hidden values after SiLU, and the gradient before the columns' scale."""
        weights, (normed, d) = slot_of(at.step), rows
        second = self.near.second.at[weights, part]
        pairs = (normed, self._first(at, part), False), (d, second, True)
        hidden, dactive = two_products(*pairs)
        if self.sizes.unit[0]:
            scale = across(self.scale1(at.step, part), hidden)
            hidden, dactive = hidden * scale, dactive * scale
        gate = 0.5 * jnp.tanh(0.5 * hidden) + 0.5
        active = hidden * gate
        dhidden = dactive * (gate + active * (1 - gate))
        return active.astype(d.dtype), dhidden.astype(d.dtype)

    def _put(self, at: At, dnormed: Array, inverse: Array) -> None:
        """The gradient of a tile's pixels, from that of what they are normalised to."""
        slot = self.slot(at)
        dunit = dnormed * across(by_column(self.far.gain), dnormed)
        unit = rows_of(self.z.at[slot]).astype(jnp.float32) * down(inverse, dunit)
        along = (dunit * unit).sum(axis=1) * (1 / WIDTH)
        moved = (dunit - unit * down(along, unit)) * down(inverse, unit)
        dz = rows_of(self.cotangent.at[slot]).astype(jnp.float32) + moved
        self.z[slot] = dz.astype(self.far.dz.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.z.at[slot], self.far.dz.at[self._place(at)])


class Sums(Work):
    """The warpgroup that sums over a patch's pixels, and brings weights."""

    def run(self) -> None:
        """All patches."""
        self._fetch(0)
        self._scales(0)
        jax.lax.fori_loop(0, self.steps, self._patch, None)
        plgpu.wait_smem_to_gmem(0)

    def _fetch(self, step: Index) -> None:
        """Send for a patch's weights."""
        slot, patch, near = slot_of(step), self.patch(step), self.near
        arrived = self.barriers.weights.at[slot]
        plgpu.commit_smem()  # what was there has been read
        for part in self.parts:
            first = self.far.first.at[patch, pl.ds(0, WIDTH), part]
            plgpu.copy_gmem_to_smem(first, near.first.at[slot, part], arrived)
            rows = pl.ds(self.sizes.hidden + part * WIDTH, WIDTH)
            second = self.far.second.at[patch, rows]
            plgpu.copy_gmem_to_smem(second, near.second.at[slot, part], arrived)

    def _fetch_next(self, step: Array) -> None:
        """Send for the next patch's weights, in place of those before."""
        written()  # the gradient that left by their slot
        pl.when(step + 1 < self.steps)(lambda: self._fetch(step + 1))

    def _scales(self, step: Index) -> None:
        """Wait for a patch's weights; what makes their columns as long as one."""
        slot, near = slot_of(step), self.near
        plgpu.barrier_wait(self.barriers.weights.at[slot])
        if self.sizes.unit[0]:
            for part in self.parts:
                squares = _squares(near.first.at[slot, part])
                near.scale1.at[slot, span(part)][...] = _inverse(squares)
        if self.sizes.unit[1]:
            squares = [_squares(near.second.at[slot, part]) for part in self.parts]
            near.scale2.at[slot][...] = _inverse(total(squares))
        plgpu.barrier_arrive(self.barriers.scales)

    def _patch(self, step: Array, nothing: None) -> None:
        first, second = self._sum_up(step)
        plgpu.barrier_wait(self.barriers.done)
        self._put_first(step, first)
        self._put_second(step, second)
        return nothing

    def _sum_up(self, step: Array) -> tuple[list[Array], list[Array]]:
        """Over all pixels of a patch, what both matrices' gradients are made of."""
        first, second = ([full((WIDTH, WIDTH), 0.0)] * len(self.parts) for _ in "12")
        for number in range(self.sizes.tiles):
            slot = self.slot(At(step, number))
            for part in self.parts:
                for one in range(COMPUTE):
                    plgpu.barrier_wait(self.barriers.ready.at[one])
                    sums = [first[part], second[part]]
                    first[part], second[part] = more_of_weights(
                        sums, functools.partial(self._left, one, slot)
                    )
                    plgpu.barrier_arrive(self.barriers.free.at[one])
                if number == part == 0:
                    self._fetch_next(step)
            if number == self.sizes.tiles - 2:
                another = step + 1 < self.steps
                pl.when(another)(lambda: self._scales(step + 1))
        return first, second

    def _left(self, one: int, slot: Index) -> list[tuple[Ref, Ref]]:
        """What a warpgroup's tile has left for both sums."""
        near = self.near
        first = near.unit.at[one], near.dhidden.at[one]
        return [first, (near.active.at[one], near.cotangent.at[one, slot])]

    def _put_first(self, step: Array, sums: list[Array]) -> None:
        """The first matrix' gradient, and what it says of the gain's."""
        slot, patch = slot_of(step), self.patch(step)
        rows = plgpu.Layout.WGMMA.reduce(1)
        gain = plgpu.load(self.far.gain, layout=rows, optimized=False)
        dgain = full((WIDTH,), 0.0)
        for part, some in zip(self.parts, sums, strict=True):
            place = self.near.first.at[slot, part]
            weight = rows_of(place).astype(jnp.float32)
            gradient = some * down(gain, some)
            dgain = dgain + (some * weight).sum(axis=1)
            if self.sizes.unit[0]:  # of sums that have the scale already
                weight = weight * across(self.scale1(step, part), weight)
                along = (gradient * weight).sum(axis=0)
                gradient = gradient - weight * across(along, weight)
            place[...] = gradient.astype(self.far.dweights.dtype)
            plgpu.commit_smem()
            to = self.far.dweights.at[patch, pl.ds(0, WIDTH), part]
            plgpu.copy_smem_to_gmem(place, to)
        put(self.far.dgain.at[patch], dgain)

    def _put_second(self, step: Array, sums: list[Array]) -> None:
        """The second matrix' gradient."""
        near, slot, patch = self.near, slot_of(step), self.patch(step)
        if self.sizes.unit[1]:
            scale = by_column(near.scale2.at[slot])
            rows = [rows_of(near.second.at[slot, part]) for part in self.parts]
            unit = [a.astype(jnp.float32) * across(scale, a) for a in rows]
            pairs = list(zip(sums, unit, strict=True))
            along = total([(a * weight).sum(axis=0) for a, weight in pairs])
            sums = [
                (a - weight * across(along, weight)) * across(scale, weight)
                for a, weight in pairs
            ]
        for part, rows in zip(self.parts, sums, strict=True):
            lay_rows(near.dsecond, part, rows.astype(near.dsecond.dtype))
        plgpu.commit_smem()
        to = self.far.dweights.at[patch, pl.ds(WIDTH, WIDTH)]
        plgpu.copy_smem_to_gmem(near.dsecond, to)


def span(part: int) -> Any:
    """Hidden values that are computed at a time."""
    return pl.ds(part * WIDTH, WIDTH)


def slot_of(number: Index) -> Index:
    """Where a tile or a patch's weights are, of so many before them."""
    if isinstance(number, int):
        return number % SLOTS
    return jax.lax.rem(number, jnp.int32(SLOTS))


def rows_of(place: Ref) -> Array:
    """Rows as products have them: the compiler would look for a layout for long."""
    return plgpu.load(place, layout=plgpu.Layout.WGMMA)


def _squares(weight: Ref) -> Array:
    """The squared length of columns."""
    weight = rows_of(weight).astype(jnp.float32)
    return (weight * weight).sum(axis=0)


def _inverse(squares: Array) -> Array:
    """One over the length of columns."""
    return jax.lax.rsqrt(jnp.maximum(squares, SHORTEST))


def two_products(*products: tuple[Array, Ref, bool]) -> tuple[Array, ...]:
    """rows @ block of each, or rows @ block^T, at the same time."""

    def run(*sums) -> tuple[Array, ...]:
        for to, (rows, block, transposed) in zip(sums, products, strict=True):
            plgpu.wgmma(to, rows, block.transpose((1, 0)) if transposed else block)
        return tuple(to[...] for to in sums)

    shape = plgpu.ACC((ROWS, WIDTH), jnp.float32)
    return pl.run_scoped(run, *[shape] * len(products))


# Blocks are looked up inside: what a reference is told of outside would be an argument.
def more_of_pixels(sums: Array, rows: Array, block: Callable[[], Ref]) -> Array:
    """Sums with rows @ block^T added."""

    def product(reference) -> None:
        plgpu.wgmma(reference, rows, block().transpose((1, 0)))

    return pl.run_state(product)(plgpu.ACC.init(sums))


def more_of_weights(
    sums: list[Array], pairs: Callable[[], list[tuple[Ref, Ref]]]
) -> list[Array]:
    """Each sum with rows^T @ block of its pair added: a sum over pixels."""

    def products(references) -> None:
        for to, (rows, block) in zip(references, pairs(), strict=True):
            plgpu.wgmma(to, rows.transpose((1, 0)), block)

    return pl.run_state(products)([plgpu.ACC.init(a) for a in sums])


def lay_rows(to: Ref, part: int, rows: Array) -> None:
    """Lay rows of a part into an array in which several are side by side."""
    hidden = to.shape[0] * to.shape[1]
    put(to.reshape(hidden, WIDTH).at[span(part)], rows)
