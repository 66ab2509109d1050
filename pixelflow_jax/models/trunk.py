"""What can be wrong with the config of any transformer on patches."""

from typing import Protocol


class Trunk(Protocol):
    """The fields that all transformers on patches have."""

    channels: int
    patch: int
    width: int
    heads: int
    depth: int
    feature_layer: int


def trunk_problems(
    model: Trunk, height: int, width: int, also: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with these fields for images of `height` x `width`.

    Fields named in `also` must be at least 1, too.
    """
    sizes = (*also, "channels", "patch", "width", "heads", "depth")
    small = [f"{n}={getattr(model, n)}" for n in sizes if getattr(model, n) < 1]
    if small:
        return [f"model.{', '.join(small)} must be at least 1"]
    found = []
    if height % model.patch or width % model.patch:
        found.append(
            f"model.patch={model.patch} does not divide the image size {height} x "
            f"{width}: choose a multiple of {model.patch}"
        )
    if model.width % model.heads or (model.width // model.heads) % 4:
        found.append(
            f"model.heads={model.heads} must divide model.width={model.width} into "
            "heads whose width is a multiple of 4"
        )
    if not 0 <= model.feature_layer <= model.depth:
        found.append(
            f"model.feature_layer={model.feature_layer} must lie in 0..depth={model.depth}"
        )
    return found
