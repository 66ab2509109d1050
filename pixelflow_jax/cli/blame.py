"""Complaints about sampling settings, with the flags that set them."""

from pixelflow_jax.cli import sample

# The fields that a complaint may name, and the flags that set them.
FIELDS = {
    "grid.stage_steps": "sample_steps",
    "grid.steps": "sample_steps",
    "grid.shift": "shift",
    "guidance.scale": "guidance",
    "guidance.low": "guidance_interval",
    "guidance.high": "guidance_interval",
    "guidance.weights": "guide",
    "solver.": "solver",
}
PARTS = ("grid.", "guidance.", "solver.")


def with_flags(message: str) -> str:
    """A complaint, and which flag is to blame for what it names, if one was given."""
    given = {
        "sample_steps": ",".join(sample.STEPS.value or ()),
        "shift": sample.SHIFT.value,
        "guidance": sample.GUIDANCE.value,
        "guidance_interval": ",".join(sample.INTERVAL.value or ()),
        "guide": sample.GUIDE.value,
        "solver": sample.SOLVER.value,
    }
    given = {name: value for name, value in given.items() if value not in (None, "")}
    blamed = [name for field, name in FIELDS.items() if field in message]
    flags = {f"--{name}={given[name]}": None for name in blamed if name in given}
    if not flags and sample.PRESET.value and any(part in message for part in PARTS):
        flags = {f"--preset={sample.PRESET.value}": None}
    if not flags:
        return message
    return f"{message.rstrip('.')}. This was set by {', '.join(flags)}."
