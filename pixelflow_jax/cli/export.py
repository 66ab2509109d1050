"""`pixelflow export`: a folder to publish."""

from absl import flags

from pixelflow_jax.cli import sample, shared
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.paths import local_path
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.pipeline import Pipeline

SHOWN = 4  # classes in the card, where none are named

DTYPE = flags.DEFINE_enum(
    "dtype", "float32", published.DTYPES, "Type of exported weights."
)
SAMPLES = flags.DEFINE_bool(
    "samples", False, "Draw a row of each of --classes or --prompt for the model card."
)


def run_export(pipeline: Pipeline, out: str) -> None:
    """Write the published folder `out`, and say where it is."""
    folder = local_path(out, "--out", ConfigError)
    classes = pipeline.class_names
    spread = classes[:: max(1, len(classes) // SHOWN)][:SHOWN]
    asked = sample.PROMPTS.value if pipeline.reads_text else sample.classes(pipeline)
    samples = (asked or spread) if SAMPLES.value else ()
    if SAMPLES.value and not samples:
        raise ConfigError(
            "--samples needs --classes, or --prompt for a model of text: what to draw "
            "for the card."
        )
    shared.writable(folder, "out")
    pipeline.save_pretrained(folder, dtype=DTYPE.value, samples=samples)
    print(f"Written to {folder}: {pipeline.origin or 'weights'}, {DTYPE.value}.")
