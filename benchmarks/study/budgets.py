"""How large the study is: for a GPU, for two CPU cores, or only to try that it runs."""

import dataclasses
from typing import Any

from benchmarks.study import configs
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import SourceConfig
from pixelflow_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How large everything is: by default for a GPU.

    `data` names the folder of shards that `pixelflow prepare emoji-styles` wrote; "":
    OpenMoji's drawings alone. `steps` and `batch` (0: the config's) are those of rows
    with the usual batch. `easy` narrows those to faces, flags, hearts and fruit,
    in three classes.
    """

    name: str = "gpu"
    data: str = ""
    steps: int = 1500
    batch: int = 0
    size: int = 64
    width: int = 0  # of networks that are `configs.WIDTH` wide; 0: the config's
    shallower: int = 0  # blocks less, where the width is said
    sweep_images: int = 200
    images: int = 1000
    draw_batch: int = 200
    pictures: int = 0  # of each split; 0: all
    easy: bool = False
    look_batch: int = 600
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)  # {}: all

    def applied(self, config: Experiment) -> Experiment:
        """The config at that size."""
        # Larger batches see as many images, in fewer steps.
        times = config.batch_size / configs.BATCH
        steps = max(1, round(self.steps / times))
        warmup = max(1, steps // 20)
        config = dataclasses.replace(
            config,
            steps=steps,
            batch_size=round(times * (self.batch or configs.BATCH)),
            optimizer=dataclasses.replace(config.optimizer, warmup=warmup),
        )
        source: SourceConfig = config.data.source
        model: Any = config.model
        if self.data:
            source = Shards(path=self.data)
        elif self.easy:
            source = configs.easy()
            model = dataclasses.replace(model, num_classes=len(configs.SIMPLE))
        if self.width:
            # Networks of other sizes stay so, in multiples of 16 channels.
            width = 16 * round(self.width * model.width / configs.WIDTH / 16)
            heads = max(1, width // 64)
            depth = max(1, model.depth - self.shallower)
            model = dataclasses.replace(model, width=width, heads=heads, depth=depth)
        if hasattr(model, "image_size"):
            model = dataclasses.replace(model, image_size=self.size)
        data = dataclasses.replace(config.data, image_size=self.size, source=source)
        return dataclasses.replace(config, data=data, model=model)


# As many images in three times as many steps; 42 are shared evenly by three stages.
OFTEN = Budget(name="often", steps=4500, batch=42)
# Fewer, simpler drawings at 32 px; patches wider than the network.
SMALL = Budget(
    name="small",
    steps=700,
    batch=33,
    size=32,
    width=96,
    shallower=2,
    easy=True,
    sweep_images=48,
    images=160,
    draw_batch=16,
    look_batch=48,
    axes={"ema": ("0.998", "0.99"), "scale": (2.0,), "steps": (20, 10)},
)
SMOKE = Budget(
    name="smoke",
    steps=4,
    batch=6,
    size=32,
    width=32,
    shallower=2,
    sweep_images=8,
    images=8,
    draw_batch=4,
    pictures=24,
    look_batch=12,
    axes={"scale": (1.0, 2.0), "steps": (4, 2)},
)
BUDGETS = {one.name: one for one in (Budget(), OFTEN, SMALL, SMOKE)}
