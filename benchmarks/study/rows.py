"""Which runs the study is made of, and what is claimed of them.

Rows are plain data: a name, the config that it builds, and the claims that it serves.
"""

import dataclasses
import functools
from collections.abc import Callable

from benchmarks.study import configs
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.losses.frequency import FrequencyMatching

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A run: `build` makes its config, in which the seed is still 0.

    `label` names it in tables. A cascade's guidance has shares of stages where others
    have an interval.
    """

    name: str
    label: str
    build: Callable[[], Experiment]


def _row(name: str, label: str, build: Callable, *args: object, **more: object) -> Row:
    return Row(name=name, label=label, build=functools.partial(build, *args, **more))


def _ranked(rank: int, kind: str = "", **options: object) -> Experiment:
    """Asymmetric prediction with FrequencyMatching, behind a decoder's own trunk."""
    fields = configs.with_rank(rank, FrequencyMatching(**options))  # type: ignore
    if kind:
        return configs.decoder(kind, **fields)
    return configs.asymmetric(rank, FrequencyMatching())


RANKS = {
    0: "rank 0 (clean)",
    8: "rank 8",
    16: "rank 16",
    48: "rank 48",
    configs.FULL: "full rank (velocity)",
}
DECODERS = {
    "field": "neural field (PixNerd)",
    "deco": "pixel decoder (DeCo)",
    "linear": "linear layer",
}

_every = [
    *(_row(f"rank{r}", label, configs.asymmetric, r) for r, label in RANKS.items()),
    *(
        _row(f"{kind}_velocity", f"{label}, velocity", configs.decoder, kind)
        for kind, label in DECODERS.items()
    ),
    *(
        _row(
            f"{kind}_clean",
            f"{label}, clean",
            configs.decoder,
            kind,
            prediction=PredictClean(),
        )
        for kind, label in DECODERS.items()
    ),
    *(
        _row(f"rank{r}_frequency", f"{label} + FrequencyMatching", _ranked, r)
        for r, label in RANKS.items()
    ),
    _row("stages3", "three stages (PixelFlow)", configs.cascade, 3),
    _row("stages1", "one stage, same network", configs.cascade, 1),
    _row(
        "stages3_clean",
        "three stages, clean, FrequencyMatching",
        configs.cascade,
        3,
        prediction=PredictClean(),
        terms=[*configs.with_rank(0)["terms"], FrequencyMatching()],
    ),
    *(
        _row(
            f"{kind}_rank{r}_frequency",
            f"{DECODERS[kind]}, {RANKS[r]}, FrequencyMatching",
            _ranked,
            r,
            kind,
        )
        for kind in DECODERS
        for r in (0, 8, 16)
    ),
]
ROWS: dict[str, Row] = {row.name: row for row in _every}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What is compared: rows by name, of which one is said to be `better`.

    `paper` is what the papers say; `than` the row that it is compared with. Several
    rows may be `better` or `than`: the best of each side counts; where they are
    `paired`, the best of `than` whose partner was run counts, against its partner.
    """

    name: str
    title: str
    paper: str
    rows: tuple[str, ...]
    better: tuple[str, ...]
    than: tuple[str, ...]
    paired: bool = False


CLAIMS = (
    Claim(
        name="prediction",
        title="Clean against velocity prediction at a large patch",
        paper="JiT, PixelGen: clean prediction is far better where a patch has as many "
        "numbers as the network has channels",
        rows=("rank0", f"rank{configs.FULL}"),
        better=("rank0",),
        than=(f"rank{configs.FULL}",),
    ),
    Claim(
        name="asymmetric",
        title="The rank of asymmetric prediction",
        paper="AsymFlow: a small rank (8 of 768) is better than clean prediction and "
        "than velocity prediction",
        rows=tuple(f"rank{r}" for r in RANKS),
        better=("rank8", "rank16", "rank48"),
        than=("rank0", f"rank{configs.FULL}"),
    ),
    Claim(
        name="frequency",
        title="FrequencyMatching on the two best",
        paper="DeCo: the term makes every FID better",
        rows=(
            *(f"rank{r}" for r in RANKS),
            *(f"rank{r}_frequency" for r in RANKS),
        ),
        better=tuple(f"rank{r}_frequency" for r in RANKS),
        than=tuple(f"rank{r}" for r in RANKS),
        paired=True,
    ),
    Claim(
        name="decoder",
        title="Neural field, pixel decoder and linear layer at equal compute",
        paper="PixNerd: the field is better than a linear layer",
        rows=(
            *(f"{kind}_velocity" for kind in DECODERS),
            *(f"{kind}_clean" for kind in DECODERS),
        ),
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
        name="recipe",
        title="Recipes across papers",
        paper="nobody has measured them",
        rows=(
            "field_velocity",
            "deco_velocity",
            "stages3",
            "rank0",
            "rank8",
            "field_clean",
            "deco_clean",
            "linear_clean",
            "stages3_clean",
            *(f"{kind}_rank{r}_frequency" for kind in DECODERS for r in (0, 8, 16)),
        ),
        better=(
            "field_clean",
            "deco_clean",
            "linear_clean",
            "stages3_clean",
            *(f"{kind}_rank{r}_frequency" for kind in DECODERS for r in (0, 8, 16)),
        ),
        than=("field_velocity", "deco_velocity", "stages3", "rank0", "rank8"),
    ),
)
