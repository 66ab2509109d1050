"""What weights say of themselves: JSON for the machine, a model card for people."""

import dataclasses
import json

from pixelflow_jax import build, values
from pixelflow_jax.config_types import fits
from pixelflow_jax.errors import ConfigError, PipelineError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.interface import count
from pixelflow_jax.values import Natural

FORMAT = "pixelflow_jax"
# Of the format; raised when older code could not read it. Configs of version 1 have
# fields that are called otherwise now, which reading a config sees to.
VERSION = 2
PICTURE = "samples.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What comes with weights.

    `class_names` gives labels names; `step` is how long the weights were trained;
    `origin` says in words where they come from.
    """

    config: Experiment
    class_names: tuple[str, ...]
    step: int
    origin: str = ""

    def to_dict(self) -> dict:
        """The description as JSON-able dicts."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "config": self.config.to_dict(),
            "class_names": list(self.class_names),
            "step": self.step,
            "origin": self.origin,
        }

    @staticmethod
    def from_dict(data: dict, where: str) -> "Description":
        """What `to_dict` of this or an earlier version wrote.

        Raises PipelineError for that of a later one, or where something is missing.
        """
        # Single files of before the format had a version are of the first one.
        version = data.get("version", 1)
        if not isinstance(version, int) or version not in range(1, VERSION + 1):
            raise PipelineError(
                f"{where} is of version {version} of the format; this pixelflow_jax "
                f"reads up to version {VERSION}: install the one that wrote it, or a "
                "newer one (pip install -U pixelflow_jax)."
            )
        missing = sorted({"config", "class_names", "step"} - set(data))
        if missing:
            raise PipelineError(
                f"{where} lacks {', '.join(missing)}: it is damaged. Fetch or export "
                "the weights again."
            )
        names, step = data["class_names"], data["step"]
        origin = data.get("origin", "")
        wrong = values.problems("step", step, Natural) if fits(step, int) else ["step"]
        if wrong or not fits(names, list[str]) or not isinstance(origin, str):
            raise PipelineError(
                f"{where} is damaged: class_names must be a list of texts, step a "
                "whole number of at least 0, origin a text. Fetch or export the "
                "weights again."
            )
        return Description(
            config=on_any_devices(data["config"], where),
            class_names=tuple(names),
            step=step,
            origin=origin,
        )

    def card(self, name: str, dtype: str, picture: bool) -> str:
        """The model card: Markdown with the front matter that the Hub reads.

        `name` is what to load the weights by, `dtype` the type they are stored in;
        with `picture`, samples.png is shown.
        """
        config, model = self.config, type(self.config.model).__name__
        reads_text = config.model.condition.reads_text
        sort = "text-to-image" if reads_text else "class-conditional"
        # Converted weights may know their classes by number alone.
        asked = ["a red fox in the snow"] if reads_text else [*self.class_names, 0][:1]
        size = config.data.image_size
        task = "text-to-image" if reads_text else "unconditional-image-generation"
        tags = ["pixelflow_jax", "jax", "flow-matching", "pixel-space", model.lower()]
        shown = f"\n![samples of the model]({PICTURE})\n" if picture else ""
        return TEMPLATE.format(
            library=FORMAT,
            task=task,
            tags="".join(f"\n  - {tag}" for tag in [*tags, sort]),
            title=config.name,
            summary=f"A {sort} {model} for images of {size} x {size} pixels.",
            shown=shown,
            table="\n".join(f"| {k} | {v} |" for k, v in self._facts(dtype)),
            name=json.dumps(name),
            asked=json.dumps(asked, ensure_ascii=False),
            size=size,
            citation=config.model.paper.bibtex,
            config=json.dumps(config.to_dict(), indent=1),
        )

    def _facts(self, dtype: str) -> list[tuple[str, str]]:
        config, paper = self.config, self.config.model.paper
        parameters = count(build.network(config).shapes()) / 1e6
        sampling, names = config.sampling, ", ".join(self.class_names)
        # A conversion knows neither names nor, sometimes, how long it was trained.
        if self.class_names and all(name.isdigit() for name in self.class_names):
            names = "by number"
        trained = f"{self.step:,} steps of batch {config.batch_size}"
        facts = [
            ("model", type(config.model).__name__),
            ("paper", f"[{paper.title}]({paper.url})"),
            ("parameters", f"{parameters:.4g} million, {dtype}"),
            ("weights", self.origin),
            ("trained", trained if self.step else ""),
            ("data", f"`{config.data.source!r}`"),
            (f"{len(self.class_names)} classes", names),
            ("solver", f"`{sampling.solver!r}`"),
            ("steps", f"`{sampling.grid!r}`"),
            ("guidance", f"`{sampling.guidance!r}`"),
        ]
        # A bar or a line break would end the cell.
        cells = [(k, " ".join(v.replace("|", "\\|").split())) for k, v in facts]
        return [(k, v) for k, v in cells if v]


TEMPLATE = """---
library_name: {library}
pipeline_tag: {task}
tags:{tags}
---

# {title}

{summary} It generates pixels directly, without a VAE.
{shown}
| | |
|---|---|
{table}

Solver, steps and guidance are the defaults; every call may choose others.

## Load

```python
from pixelflow_jax import Pipeline

pipeline = Pipeline.from_pretrained({name})
images = pipeline({asked}, seed=0)  # uint8 [1, {size}, {size}, 3]
```

## Licence

Not stated: add `license:` to the front matter of this file.

## Citation

```bibtex
{citation}
```

<details>
<summary>Training config</summary>

```json
{config}
```

</details>
"""


def on_any_devices(config: dict, where: str = "the checkpoint") -> Experiment:
    """The config that weights came with, for the devices that are there."""
    try:
        experiment = Experiment.from_dict(config)
    except RecursionError as error:
        raise PipelineError(f"The config in {where} is nested too deeply.") from error
    except ConfigError as error:
        raise PipelineError(
            f"The config in {where} is damaged, or of another version of "
            f"pixelflow_jax: {error}"
        ) from error
    experiment.mesh = MeshShape()
    return experiment
