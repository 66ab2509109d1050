"""Which runs the study is made of, and what is claimed of them.

Rows are plain data: the family whose programs they share, and the numbers that set them
apart. They stand in the order in which they are run: the ranked claims come first.
"""

import dataclasses

from benchmarks.study.configs import FAMILIES, FULL, GATES
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.losses.context import Term, term_name

SEEDS = (0, 1, 2)
FREQUENCY = {"FrequencyMatching": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A run: a member of a family.

    `label` names it in tables, `weights` are those of the family's terms by name; the
    others have none. A cascade's guidance has shares of stages where others have an
    interval.
    """

    name: str
    label: str
    family: str
    rank: int = 0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def build(self) -> Experiment:
        """The config of this row alone, in which the seed is still 0."""
        terms: list[Term] = [
            dataclasses.replace(term, weight=self.weights[term_name(term)])  # type: ignore
            for term in FAMILIES[self.family].terms
            if term_name(term) in self.weights
        ]
        return FAMILIES[self.family].build(self.rank, terms)


RANKS = {
    0: "rank 0 (clean)",
    FULL: "full rank (velocity)",
    8: "rank 8",
    16: "rank 16",
    48: "rank 48",
}
DECODERS = {
    "field": "neural field (PixNerd)",
    "linear": "linear layer",
    "deco": "pixel decoder (DeCo)",
}
PERCEPTUAL = {
    "stlpips": ("ST-LPIPS", {"StLpips": 0.1}),
    "lite0": ("features of EfficientNet-Lite0", {"Lite0Distance": 0.1}),
    "both": ("both perceptual terms", {"StLpips": 0.1, "Lite0Distance": 0.1}),
}


def _ranked(rank: int) -> Row:
    return Row(name=f"rank{rank}", label=RANKS[rank], family="jit", rank=rank)


def _with_frequency(rank: int) -> Row:
    return Row(
        name=f"rank{rank}_frequency",
        label=f"{RANKS[rank]} + FrequencyMatching",
        family="jit",
        rank=rank,
        weights=FREQUENCY,
    )


def _decoder(kind: str, what: str) -> Row:
    rank = {"velocity": FULL, "clean": 0}[what]
    label = f"{DECODERS[kind]}, {what}"
    return Row(name=f"{kind}_{what}", label=label, family=kind, rank=rank)


def _perceptual(what: str, rank: int = 0, frequency: bool = False) -> Row:
    label, weights = PERCEPTUAL[what]
    return Row(
        name=f"rank{rank}_{what}" + ("_frequency" if frequency else ""),
        label=f"{RANKS[rank]} + {label}"
        + (" + FrequencyMatching" if frequency else ""),
        family="perceptual",
        rank=rank,
        weights=weights | (FREQUENCY if frequency else {}),
    )


def _recipe(kind: str, rank: int) -> Row:
    return Row(
        name=f"{kind}_rank{rank}_frequency",
        label=f"{DECODERS[kind]}, {RANKS[rank]}, FrequencyMatching",
        family=kind,
        rank=rank,
        weights=FREQUENCY,
    )


def _alone(family: str, label: str) -> Row:
    return Row(name=family, label=label, family=family)


NETWORKS = {
    "size_small": "2 blocks of 128 channels",
    "size_medium": "4 blocks of 192 channels",
    "size_large": "6 blocks of 320 channels",
}
BATCHES = {
    "batch387": "387 images a step, learning rate 1.5e-3",
    "batch387_root": "387 images a step, 2.6e-3",
    "batch387_linear": "387 images a step, 4.5e-3",
    "batch43": "43 images a step, 1.5e-3",
    "batch43_root": "43 images a step, 0.87e-3",
}
PARTS = {
    "field_narrow": "8 channels",
    "field_wide": "32 channels",
    "field_shallow": "one MLP",
    "field_deep": "four MLPs",
    "field_sincos": "sines and cosines",
    "field_first": "unit columns of the first weights alone",
}
_gates = [
    Row(
        name=f"gate{threshold}",
        label=f"rank 0 (clean) + ST-LPIPS, gate {threshold:g}",
        family=f"gate{threshold}",
        weights=PERCEPTUAL["stlpips"][1],
    )
    for threshold in GATES
]
_every = [
    _ranked(0),
    _ranked(FULL),
    *(_decoder(kind, "velocity") for kind in ("field", "linear")),
    Row(name="stages3", label="three stages (PixelFlow)", family="stages3"),
    Row(name="stages1", label="one stage, same network", family="stages1"),
    *map(_perceptual, PERCEPTUAL),
    *map(_ranked, (8, 16, 48)),
    _decoder("deco", "velocity"),
    *(_decoder(kind, "clean") for kind in DECODERS),
    *map(_with_frequency, RANKS),
    Row(
        name="stages3_clean",
        label="three stages, clean, FrequencyMatching",
        family="stages3_clean",
        weights=FREQUENCY,
    ),
    *(_recipe(kind, rank) for rank in (0, 8, 16) for kind in DECODERS),
    _recipe("field", 48),
    _perceptual("stlpips", 48),
    _perceptual("stlpips", 48, frequency=True),
    *(_alone(name, label) for name, label in NETWORKS.items()),
    _alone("float32", "the same in float32"),
    *(_alone(name, label) for name, label in BATCHES.items()),
    *(
        Row(name=name, label=f"field, {label}", family=name, rank=FULL)
        for name, label in PARTS.items()
    ),
    _alone("stages2", "two stages"),
    _alone("stages3_patch4", "three stages, patches of 4 x 4"),
    *_gates,
]
ROWS: dict[str, Row] = {row.name: row for row in _every}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What is compared: rows by name, of which one is said to be `better`.

    `paper` is what the papers say; `than` the row that it is compared with. Several
    rows may be `better` or `than`: the best of each side counts; where they are
    `paired`, the best of `than` whose partner was run counts, against its partner.
    `metric` decides, the smaller the better. `compute`: rows differ in what they cost,
    and are drawn against it.
    """

    name: str
    title: str
    paper: str
    rows: tuple[str, ...]
    better: tuple[str, ...]
    than: tuple[str, ...]
    paired: bool = False
    metric: str = "fd_lite0"
    compute: bool = False


NEW = tuple(f"{kind}_rank{r}_frequency" for kind in DECODERS for r in (0, 8, 16))
RANKED = tuple(f"rank{r}_frequency" for r in (0, 8, 16, 48))
RECIPES = (*(f"{kind}_clean" for kind in DECODERS), "stages3_clean", *RANKED, *NEW)
RECIPES += ("rank48_stlpips", "rank48_stlpips_frequency", "field_rank48_frequency")
# AsymFlow's with the ranks that were tried: the best of them counts as its own. Of
# PixelGen the one term whose network does not judge.
OWN = (
    "field_velocity",
    "deco_velocity",
    "stages3",
    "rank0",
    "rank8",
    "rank16",
    "rank48",
    "rank0_stlpips",
)

CLAIMS = (
    Claim(
        name="prediction",
        title="Clean against velocity prediction at a large patch",
        paper="JiT, PixelGen: clean prediction is far better where a patch has as many "
        "numbers as the network has channels",
        rows=("rank0", f"rank{FULL}"),
        better=("rank0",),
        than=(f"rank{FULL}",),
    ),
    Claim(
        name="asymmetric",
        title="The rank of asymmetric prediction",
        paper="AsymFlow: a small rank (8 of 768) is better than clean prediction and "
        "than velocity prediction",
        rows=tuple(f"rank{r}" for r in sorted(RANKS)),
        better=("rank8", "rank16", "rank48"),
        than=("rank0", f"rank{FULL}"),
    ),
    Claim(
        name="frequency",
        title="FrequencyMatching on the two best",
        paper="DeCo: the term makes every FID better",
        rows=(
            *(f"rank{r}" for r in sorted(RANKS)),
            *(f"rank{r}_frequency" for r in sorted(RANKS)),
        ),
        better=tuple(f"rank{r}_frequency" for r in RANKS),
        than=tuple(f"rank{r}" for r in RANKS),
        paired=True,
    ),
    Claim(
        name="decoder",
        title="Neural field, pixel decoder and linear layer at equal compute",
        paper="PixNerd: the field is better than a linear layer",
        rows=tuple(f"{k}_{what}" for what in ("velocity", "clean") for k in DECODERS),
        better=("field_velocity",),
        than=("linear_velocity",),
    ),
    Claim(
        name="deco",
        title="PixNerd's field against DeCo's decoder at equal compute",
        paper="DeCo: its decoder is better than the field (FID 1.90 against 1.93, with "
        "FrequencyMatching)",
        rows=("deco_velocity", "field_velocity", "deco_clean", "field_clean"),
        better=("deco_velocity",),
        than=("field_velocity",),
    ),
    Claim(
        name="cascade",
        title="A cascade against one stage",
        paper="PixelFlow: about as good (FID 3.21 with a first stage of 8 x 8 tokens, "
        "3.34 without stages, 64 px), for less compute",
        rows=("stages3", "stages1"),
        better=("stages3",),
        than=("stages1",),
    ),
    Claim(
        name="perceptual",
        title="A learnt perceptual distance as a loss term",
        paper="PixelGen: LPIPS makes FID better; here it is ST-LPIPS",
        rows=("rank0", *(f"rank0_{what}" for what in PERCEPTUAL)),
        better=("rank0_stlpips",),
        than=("rank0",),
    ),
    Claim(
        name="features",
        title="A distance of a classifier's features as a loss term",
        paper="PixelGen: P-DINO makes FID better; here it is EfficientNet-Lite0, and "
        "what judges is another network (FD-ST)",
        rows=("rank0", *(f"rank0_{what}" for what in PERCEPTUAL)),
        better=("rank0_lite0",),
        than=("rank0",),
        metric="fd_st",
    ),
    Claim(
        name="recipe",
        title="Recipes across papers",
        paper="nobody has measured them",
        rows=(*OWN, *RECIPES),
        better=RECIPES,
        than=OWN,
    ),
    Claim(
        name="field",
        title="What the neural field is made of",
        paper="PixNerd: a basis of DCT is better than sines and cosines, unit columns "
        "of all weights with a norm behind them than of the first alone; more channels "
        "and MLPs gain",
        rows=("field_velocity", *PARTS),
        better=("field_velocity",),
        than=("field_sincos", "field_first"),
    ),
    Claim(
        name="kickoff",
        title="Where a cascade starts, and its patch",
        paper="PixelFlow: a first stage of 8 x 8 tokens (3.21) is better than one of "
        "2 x 2 (FID 3.49); at 64 px patches of 4 and 2 are about equal",
        rows=("stages3", "stages2", "stages1", "stages3_patch4"),
        better=("stages2",),
        than=("stages3",),
    ),
    Claim(
        name="gate",
        title="The noise gate of perceptual terms",
        paper="PixelGen: gates of 0, 0.1 and 0.3 are about equal, one of 0.6 is worse "
        "(FID 7.46, 7.42, 7.53, 10.72)",
        rows=("rank0_stlpips", *(row.name for row in _gates)),
        better=("rank0_stlpips",),
        than=("gate0.6",),
    ),
    Claim(
        name="scaling",
        title="Three sizes of one network",
        paper="all: the larger network has the better FID after as many steps",
        rows=tuple(NETWORKS),
        better=("size_large",),
        than=("size_small",),
        compute=True,
    ),
    Claim(
        name="precision",
        title="bfloat16 against float32",
        paper="all train in bfloat16; none compares",
        rows=("size_medium", "float32"),
        better=("size_medium",),
        than=("float32",),
        compute=True,
    ),
    Claim(
        name="batch",
        title="Batch and learning rate, for as many images",
        paper="none says; with Adam the rate is often raised with the root of the "
        "batch, here for three times the images a step against leaving it",
        rows=("size_medium", *BATCHES),
        better=("batch387_root",),
        than=("batch387",),
        compute=True,
    ),
)
