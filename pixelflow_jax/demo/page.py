"""The page of the demo, in Gradio: a form on one side, what was drawn on the other."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

# Before gradio is imported: nothing is told to anybody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio import themes

from pixelflow_jax.demo.drawing import Shown, draw, refusal
from pixelflow_jax.demo.form import Form, Limits, defaults, sizes
from pixelflow_jax.demo.models import Models
from pixelflow_jax.errors import UserError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.choices import SOLVERS

TITLE = "pixelflow_jax"
ABOUT = (
    "# pixelflow_jax\nImages drawn directly in pixels, without a VAE: choose what to "
    "draw, and watch it come out of the noise."
)
# Fonts that every machine has: the page loads none from elsewhere.
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
CHOSEN = 2  # classes that are chosen at first
KEPT = 3600  # seconds that pictures of old requests stay on the disk


def build(models: Models, limits: Limits) -> gr.Blocks:
    """The page; its events run one after the other, others wait in a queue."""
    first = models[models.names[0]]
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT, KEPT)
    ) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = _form(models, first, limits)
            with gr.Column(scale=3, min_width=300):
                shown = _results()
        _connect(form, shown, models, limits)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1)
    return page


def launch(
    page: gr.Blocks, host: str | None = "127.0.0.1", port: int | None = None
) -> str:
    """Serve the page without waiting, never shared; returns its address.

    `host` None: that of Gradio's environment; `port` None: its own, or a free one.
    Raises OSError where nothing can listen there.
    """
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=themes.Soft(font=FONTS, font_mono=MONO),
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        prevent_thread_lock=True,
    )
    return address


def _form(models: Models, first: Pipeline, limits: Limits) -> dict[str, Any]:
    """All that a visitor may choose, by name, in the order of `Form`."""
    start = defaults(first, limits)
    model = gr.Dropdown(
        models.names, value=models.names[0], label="Model", elem_id="model"
    )
    found = {
        "model": model,
        "classes": gr.Dropdown(
            **_classes(first), label="Classes", multiselect=True, elem_id="classes"
        ),
        "prompt": gr.Textbox(
            **_prompt(first), label="Prompts, a line each", lines=2, elem_id="prompt"
        ),
        "count": gr.Slider(
            1, limits.images, 2, step=1, label="Images of each", elem_id="count"
        ),
        "seed": gr.Number(0, label="Seed", elem_id="seed"),
    }
    with gr.Row():
        found["draw"] = gr.Button(
            "Generate", variant="primary", elem_id="generate", min_width=120
        )
        found["stop"] = gr.Button("Stop", elem_id="stop", min_width=120)
    with gr.Accordion("Sampling", open=False, elem_id="sampling"):
        solver = gr.Dropdown(
            list(SOLVERS), value=start.solver, label="Solver", elem_id="solver"
        )
        steps = gr.Slider(
            1, limits.steps, start.steps, step=1, label="Steps", elem_id="steps"
        )
        scale = gr.Slider(0, 10, start.guidance, step=0.1, label="Guidance scale")
        with gr.Row():
            low = gr.Slider(
                0, 1, start.low, step=0.01, label="From time", elem_id="low"
            )
            high = gr.Slider(0, 1, start.high, step=0.01, label="To time")
        shift = gr.Slider(0.1, 10, start.shift, step=0.1, label="Timestep shift")
        side = gr.Dropdown(
            sizes(first, limits), value=start.size, label="Size, pixels", elem_id="size"
        )
        trajectory = gr.Checkbox(True, label="Keep the way out of the noise")
    return found | {
        "solver": solver,
        "steps": steps,
        "guidance": scale,
        "low": low,
        "high": high,
        "shift": shift,
        "size": side,
        "trajectory": trajectory,
    }


def _results() -> dict[str, Any]:
    """The places for what was drawn."""
    return {
        "picture": _picture("Images", "picture", visible=True),
        "words": gr.Markdown("", elem_id="words"),
        "animation": _picture("Out of the noise", "animation", type="filepath"),
        "stages": _picture("The end of each stage of the cascade", "stages"),
    }


def _picture(label: str, name: str, visible: bool = False, **more: Any) -> gr.Image:
    """A place for a picture, to be saved or looked at alone, but not to be shared."""
    return gr.Image(
        label=label,
        elem_id=name,
        visible=visible,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        **more,
    )


def _connect(
    form: dict[str, Any], shown: dict[str, Any], models: Models, limits: Limits
) -> None:
    """What happens when something is chosen or pressed."""
    names = list(form)
    inputs = [form[name] for name in names if name not in ("draw", "stop")]
    places = list(shown.values())

    def generate(model: str, classes: list[str], prompt: str, *rest: Any) -> Iterator:
        try:
            pipeline = models[model]
        except UserError as error:
            yield _update(Shown(words=refusal(error), done=True))
            return
        wanted = prompt if pipeline.reads_text else classes
        for one in draw(pipeline, Form(wanted, *rest), limits):
            yield _update(one)
            if one.animation:  # the page has a copy of its own by now
                pathlib.Path(one.animation).unlink()

    def choose(model: str) -> list:
        try:
            pipeline = models[model]
        except UserError as error:
            raise gr.Error(str(error)) from error
        start = defaults(pipeline, limits)
        return [
            gr.Dropdown(**_classes(pipeline)),
            gr.Textbox(**_prompt(pipeline)),
            start.solver,
            start.steps,
            start.guidance,
            start.low,
            start.high,
            start.shift,
            gr.Dropdown(sizes(pipeline, limits), value=start.size),
        ]

    changed = "classes prompt solver steps guidance low high shift size".split()
    form["model"].change(choose, form["model"], [form[name] for name in changed])
    running = form["draw"].click(
        generate, inputs, places, concurrency_id="draw", show_progress="minimal"
    )
    form["stop"].click(lambda: "Stopped.", None, shown["words"], cancels=[running])


def _update(one: Shown) -> list:
    """What Gradio changes on the page; a picture stays until there is another."""
    hidden = gr.Image(value=None, visible=False)
    animation = stages = hidden
    if one.animation:
        animation = gr.Image(value=one.animation, visible=True)
    if one.stages is not None:
        stages = gr.Image(value=one.stages, visible=True)
    picture = gr.skip() if one.picture is None else one.picture
    return [picture, one.words, animation, stages]


def _classes(pipeline: Pipeline) -> dict[str, Any]:
    """The field for classes, which a model of text has no use for."""
    if pipeline.reads_text:
        return {"choices": [], "value": [], "visible": False}
    names = list(pipeline.class_names)
    names = names or [str(k) for k in range(pipeline.config.model.num_classes)]
    return {"choices": names, "value": names[:CHOSEN], "visible": True}


def _prompt(pipeline: Pipeline) -> dict[str, Any]:
    """The field for prompts, which a model of classes has no use for."""
    reads = pipeline.reads_text
    return {"value": "a red heart" if reads else "", "visible": reads}
