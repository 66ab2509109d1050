"""PixelFlow against the official code: forward passes, tables and packed training."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import downsample2, pyramid, upsample2
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.pixelflow import PERIOD, Block, PixelFlowModel
from pixelflow_jax.nn.embed import TimeEmbed, rotary_table, sinusoid
from pixelflow_jax.nn.layers import gated, layer_normalise, modulate
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness

TABLE = 5e-6  # of rotary tables; angles of times reach 999, where float32 ends sooner
LOSS = 1e-5


def intermediates(
    model: PixelFlowModel, image: Array, t: Array, cond: Condition
) -> dict:
    """What the reference records inside the network, under its names."""
    size = jnp.array([image.shape[2] // model.patch])
    wave = lambda v: sinusoid(v, TimeEmbed.features, PERIOD, closed=True)
    out = {
        "time_proj_timestep": wave(t),
        "time_proj_latent_size": wave(size),
        "timestep_embedder": model.time_embed(t),
        "latent_size_embedder": model.size_embed(size),
    }
    total = out["timestep_embedder"] + out["latent_size_embedder"]
    if model.class_embed is not None:
        out["class_embedder"] = model.class_embed(cond.labels)
        total = total + out["class_embedder"]
    tokens, packing, rope = model.embed((image,))
    batch = (Inputs(image, t, cond),)
    text = model.pack_text(batch)
    out |= {"conditioning": total, "patch_embed": tokens}
    (vector,) = model.precompute(batch).cond
    for i, block in enumerate(harness.blocks(model.early) + harness.blocks(model.late)):
        found = branches(block, tokens, vector, packing, rope, text)
        out |= {f"block{i}_{name}": value for name, value in found.items()}
        tokens = block(tokens, (vector,), packing, rope, None, text)
        out[f"block{i}"] = tokens
    return out | {"proj_out_2": model.decoder.patches(tokens, vector)}


def branches(block: Block, x: Array, cond: Array, packing, rope, text) -> dict:
    """A block's branches, before gates and residuals."""
    modulation = block.modulation(cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, _ = jnp.split(modulation, 6, -1)
    norm1 = modulate(layer_normalise(x), shift1, scale1)
    attn1 = block.attention(norm1, packing, rope)
    out = {"norm1": norm1, "attn1": harness.biased(block.attention.out, attn1)}
    x = gated(x, gate1, out["attn1"])
    if text is not None:
        out["attn2"] = block.cross_attention(block.norm2(x), packing, rope, text)
        x = x + out["attn2"]
    made = block.mlp(modulate(block.norm3(x), shift2, scale2), packing)
    return out | {"mlp": harness.biased(block.mlp.down, made)}


def check_forward(fixture, case: str, image, t, cond: Condition) -> None:
    loaded = harness.pixelflow_model(fixture)

    @jax.jit
    def run(params, image, t, cond):
        out = loaded.network.apply(params, (Inputs(image, t, cond),))
        return out.pred[0], intermediates(loaded.module(params), image, t, cond)

    pred, ours = run(loaded.params, harness.nhwc(image), t, cond)
    assert pred.dtype == jnp.float32
    ours["output"] = harness.nchw(pred)
    recorded = fixture.under(f"out/{case}")
    unknown = sorted(set(recorded) - set(ours))
    assert not unknown, (
        f"recorded intermediates that this test does not compute: {unknown}"
    )
    for name, theirs in recorded.items():
        harness.close(ours[name], theirs, f"{case}/{name}")


def check_positions(fixture, rows: int, columns: int, pos_embed: np.ndarray) -> None:
    head_width = fixture.config["model"]["attention_head_dim"]
    cos, sin = official_table(rows, columns, head_width)
    harness.close(np.stack([cos, sin], -1), pos_embed, "pos_embed", TABLE)


def official_table(rows: int, columns: int, head_width: int) -> tuple[np.ndarray, ...]:
    """Our rotary table, each angle twice: [rows * columns, head_width]."""
    table = rotary_table(rows, columns, head_width, None, halves=True)
    return tuple(np.repeat(part, 2, axis=-1) for part in table)


@harness.parametrize(
    "pixelflow_c2i_forward", None, lambda fixture: fixture.config["cases"]
)
def test_forward(fixture, case):
    given = fixture.under(f"in/{case}")
    patch = fixture.config["model"]["patch_size"]
    rows, columns = (n // patch for n in given["x"].shape[-2:])
    assert given["latent_size"].tolist() == [columns]
    check_positions(fixture, rows, columns, given["pos_embed"])
    cond = Condition(labels=given["class_labels"].astype(np.int32))
    check_forward(fixture, case, given["x"], given["timestep"], cond)


def passes(fixture) -> list[str]:
    """The names of the passes that a text fixture holds: masked, nomask."""
    return sorted({name.split("/")[0] for name in fixture.under("out")})


@harness.parametrize("pixelflow_t2i_forward", None, passes)
def test_text_forward(fixture, case):
    given = fixture.under("in")
    patch = fixture.config["model"]["patch_size"]
    rows, columns = (n // patch for n in given["x"].shape[-2:])
    assert given["latent_size"].tolist() == [columns]
    check_positions(fixture, rows, columns, given["pos_embed"])
    mask = {"masked": given["encoder_attention_mask"].astype(bool), "nomask": None}
    cond = Condition(text=given["encoder_hidden_states"], mask=mask[case])
    check_forward(fixture, case, given["x"], given["timestep"], cond)


@harness.parametrize("pixelflow_c2i_forward", None, lambda fixture: ["every_tap"])
def test_where_the_trunk_is_cut_changes_nothing(fixture, case):
    name = fixture.config["cases"][0]
    given, recorded = fixture.under(f"in/{name}"), fixture.under(f"out/{name}")
    cond = Condition(labels=given["class_labels"].astype(np.int32))
    for feature_layer in (0, fixture.config["model"]["depth"]):
        loaded = harness.pixelflow_model(fixture, feature_layer=feature_layer)
        out = jax.jit(loaded.network.apply)(
            loaded.params,
            (Inputs(harness.nhwc(given["x"]), given["timestep"], cond),),
        )
        harness.close(
            harness.nchw(out.pred[0]),
            recorded["output"],
            f"feature_layer {feature_layer}",
        )
        theirs = f"block{feature_layer - 1}" if feature_layer else "patch_embed"
        if theirs in recorded:
            harness.close(
                out.features[0],
                recorded[theirs],
                f"feature_layer {feature_layer}: tokens",
            )


@harness.parametrize("pixelflow_rope", None, lambda fixture: ["rope", "times"])
def test_tables(fixture, case):
    recorded = fixture.under("out")
    if case == "times":
        for i, t in enumerate(fixture.config["timesteps"]):
            name = f"timesteps/{i}"
            width = recorded[name].shape[-1]
            ours = sinusoid(jnp.array([t]), width, PERIOD, closed=True)
            harness.close(ours, recorded[name], name)
        return
    for head_width, rows, columns in fixture.config["grids"]:
        name = f"d{head_width}_h{rows}_w{columns}"
        cos, sin = official_table(rows, columns, head_width)
        harness.close(cos, recorded[f"{name}/cos"], f"{name}/cos", TABLE)
        harness.close(sin, recorded[f"{name}/sin"], f"{name}/sin", TABLE)


def channels_first(image: Array, patch: int) -> np.ndarray:
    """Patches of images [b, h, w, c] in the official layout: [b * n, (c, p, q)]."""
    patches = np.asarray(patchify(image, patch))  # [b, n, p * q, c]
    return patches.swapaxes(-1, -2).reshape(-1, patches[0, 0].size)


class Batch:
    """A training batch: its stages, their points and conditions, finest stage first."""

    def __init__(self, fixture, config):
        given = fixture.under("in")
        known = {"num_train_timesteps": 1000, "num_stages": None, "gamma": -1 / 3}
        o = harness.take(fixture.config["scheduler"], known)
        stages = pyramid(o["num_stages"], o["gamma"], o["num_train_timesteps"])
        self.stages, self.points, self.members = [], [], []
        table = np.linspace(0, 1, o["num_train_timesteps"] + 1, dtype=np.float32)
        for k in sorted(set(given["stage_indices"].tolist()), reverse=True):
            members = np.flatnonzero(given["stage_indices"] == k)
            image = harness.nhwc(given["images"][members])
            assert image.shape[1:3] == (fixture.config["resolution"],) * 2
            noise = harness.nhwc(given[f"noise_stage{k}"])
            t = jnp.asarray(table[given["timestep_indices"][members]])
            self.stages.append(stages[k])
            self.points.append(stages[k].draw(image, noise, t))
            self.members.append(members)
        self.numbers = [stages.index(stage) for stage in self.stages]
        self.conds = self._conditions(given, config)

    def _conditions(self, given: dict, config) -> list[Condition]:
        """The conditions of each stage, in the packed order."""
        fields = {}
        if config.num_classes:
            labels = given["labels"][np.concatenate(self.members)].astype(np.int32)
            cond = Condition(labels=jnp.asarray(labels))
            law, u = ClassLabels(), given["label_drop_uniform"]
            cond = drop(jnp.asarray(u), cond, law.null({}, cond, config), law.drop)
            fields["labels"] = cond.labels
        if config.text_width:
            fields["text"], fields["mask"] = padded(
                given["encoder_hidden_states"], given["seqlen_list_k"]
            )
        ends = np.cumsum([len(m) for m in self.members])
        slices = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        return [Condition(**{k: v[part] for k, v in fields.items()}) for part in slices]


def padded(states: np.ndarray, lengths: np.ndarray) -> tuple[Array, Array]:
    """Packed texts [sum of lengths, d] as [b, longest, d] and their mask.

    What fills the padding must not matter; it is far from zero.
    """
    mask = np.arange(lengths.max()) < lengths[:, None]
    text = np.full((*mask.shape, states.shape[-1]), 7, np.float32)
    text[mask] = states
    return jnp.asarray(text), jnp.asarray(mask)


def collated(batch: Batch, config, recorded: dict) -> dict:
    """What the reference's collate function makes of the batch."""
    out = {}
    for number, point in zip(batch.numbers, batch.points, strict=True):
        parts = {
            "clean_end": point.clean,
            "clean_start": upsample2(downsample2(point.clean, 1)),
            "end": point.end,
            "start": point.start,
        }
        out |= {f"stage{number}/{k}": harness.nchw(v) for k, v in parts.items()}
        out[f"stage{number}/t"] = point.t
    grids = [p.x_t.shape[1] // config.patch for p in batch.points for _ in p.t]
    lengths = np.square(grids)
    head_width = config.width // config.heads
    positions = [np.stack(official_table(n, n, head_width), -1) for n in grids]
    target = PredictVelocity().target
    pixels = lambda images: np.concatenate(
        [channels_first(image, config.patch) for image in images]
    )
    return out | {
        "collate/timesteps": np.concatenate([p.timestep for p in batch.points]),
        "collate/batch_latent_size": np.array(grids, np.int32),
        "collate/seqlen_list_q": lengths,
        "collate/cumsum_q_len": np.cumsum([0, *lengths]),
        "collate/pos_embed": np.concatenate(positions),
        "collate/pixel_values": pixels(p.x_t for p in batch.points),
        "collate/target_values": pixels(target(p) for p in batch.points),
        # The labels before dropping, or zeros where there are no classes.
        "collate/input_ids": recorded["collate/input_ids"],
    }


def inputs_of(points, conds) -> tuple[Inputs, ...]:
    """What the network is given of each stage."""
    pairs = zip(points, conds, strict=True)
    return tuple(Inputs(point.x_t, point.timestep, cond) for point, cond in pairs)


def learned(loaded: harness.Loaded, batch: Batch, order: list[int]) -> dict:
    """Outputs, losses and gradients; groups enter the network in `order`."""
    pick = lambda groups: tuple(groups[i] for i in order)
    points, stages = pick(batch.points), pick(batch.stages)

    def loss(params, points, conds):
        out = loaded.network.apply(params, inputs_of(points, conds))
        items = FlowMatching()(Context(points, out, PredictVelocity(), stages))
        return jnp.mean(items), (out.pred, items)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (pred, items)), grads = run(loaded.params, points, pick(batch.conds))
    parts = np.split(items, np.cumsum([len(p.t) for p in points])[:-1])
    back = np.argsort(order)
    official = tables.export(loaded.table, grads)
    norm = np.sqrt(
        sum(np.sum(np.square(g, dtype=np.float64)) for g in official.values())
    )
    return {
        "model_output": np.concatenate(
            [channels_first(pred[i], loaded.config.patch) for i in back]
        ),
        "loss_items": np.concatenate([parts[i] for i in back]),
        "loss": value,
        "grad_norm_total": norm,
        **{f"grad/{name}": grad for name, grad in official.items()},
    }


ORDERS = {"finest_first": ("names", 1), "coarsest_first": ("none", -1)}


@harness.parametrize("pixelflow_train", None, lambda fixture: list(ORDERS))
def test_training_step(fixture, case):
    remat, direction = ORDERS[case]
    loaded = harness.pixelflow_model(fixture, remat=remat)
    recorded = fixture.under("out")
    batch = Batch(fixture, loaded.config)
    order = list(range(len(batch.points)))[::direction]
    ours = collated(batch, loaded.config, recorded) | learned(loaded, batch, order)
    if loaded.config.num_classes:
        ours["labels_after_drop"] = np.concatenate([c.labels for c in batch.conds])
        labels = fixture.tensors["in/labels"]
        ours["collate/input_ids"] = labels[np.concatenate(batch.members)]
    unknown = sorted(set(recorded) - set(ours))
    assert not unknown, f"recorded, but not computed: {unknown}"
    for name, theirs in recorded.items():
        tolerance = LOSS if name.startswith("loss") else harness.FORWARD
        harness.close(ours[name], theirs, name, tolerance)
        if name.startswith("grad/"):  # gradients are small: compare to their own size
            size = np.abs(theirs).max()
            harness.close(ours[name] / size, theirs / size, f"{name} (relative)")


@harness.parametrize("pixelflow_train", None, lambda fixture: ["groups"])
def test_packed_groups_equal_separate_ones(fixture, case):
    loaded = harness.pixelflow_model(fixture)
    batch = Batch(fixture, loaded.config)
    inputs = inputs_of(batch.points, batch.conds)
    apply = jax.jit(loaded.network.apply)
    packed = apply(loaded.params, inputs).pred
    for i, out in enumerate(packed):
        (alone,) = apply(loaded.params, inputs[i : i + 1]).pred
        harness.close(out, alone, f"group {i}", 1e-6)
