"""What TensorBoard shows, in Weights & Biases too; needs the extra "wandb"."""

import importlib.util
import pathlib
import re
import secrets
from typing import Any

import numpy as np

from pixelflow_jax.errors import ConfigError

ID = "wandb.id"  # within the workdir: a run goes on as the same one there
PROJECT = re.compile(r"[^/\\#?%:\s](?:[^/\\#?%:]{0,126}[^/\\#?%:\s])?")


def problems(project: str) -> list[str]:
    """Why a project cannot be written to from here."""
    if not project:
        return []
    if not PROJECT.fullmatch(project):
        return [
            f"log.wandb={project!r:.60} is no name of a project: 1 to 128 characters "
            "without / \\ # ? % :"
        ]
    if importlib.util.find_spec("wandb") is None:
        return [
            f"log.wandb={project} needs the package wandb: pip install "
            "'pixelflow_jax[wandb]', or set log.wandb to nothing"
        ]
    return []


class WandbEvents:
    """One run of a project; a later sitting in `workdir` goes on with it.

    Curves are over the metric "step", so that they may go back where the run does.
    """

    def __init__(self, workdir: pathlib.Path, project: str, config: dict):
        import wandb

        self._wandb: Any = wandb
        # What goes to the terminal is the progress bar.
        known = workdir / ID
        run_id = known.read_text().strip() if known.exists() else None
        try:
            self._run: Any = wandb.init(
                project=project,
                name=str(config.get("name", workdir.name)),
                dir=str(workdir),
                config=config,
                id=run_id or secrets.token_hex(4),
                resume="allow",
                settings=wandb.Settings(console="off"),
            )
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"Weights & Biases cannot be used for log.wandb={project} ({error}): "
                "run `wandb login`, set WANDB_MODE=offline to keep all in the workdir, "
                "or leave log.wandb away."
            ) from error
        known.write_text(f"{self._run.id}\n")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """A point of each curve."""
        self._run.log({"step": step, **values})

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""
        shown = self._wandb.Html(f"<pre>{_escaped(text)}</pre>", inject=False)
        self._run.log({"step": step, name: shown})

    def turn_back(self, step: int) -> None:
        """Nothing: points of a step may follow those of later ones."""

    def close(self) -> None:
        """Hand over what is still in memory."""
        self._run.finish()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
