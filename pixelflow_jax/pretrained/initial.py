"""What a run begins with when it begins with the weights of another one."""

from pixelflow_jax.errors import InitialError, PipelineError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.pretrained import weights
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.pretrained.finetune import changed_fields, compare
from pixelflow_jax.training.state import Initial

BOTH = "both"


def initial_weights(config: Experiment) -> Initial:
    """What the run of `config` begins with: the weights that `config.init_from` names.

    `finetune` says by which rule. Raises InitialError for weights of another model, and
    PipelineError for those that cannot be loaded.
    """
    source = weights.find(config.init_from)
    fit = compare(source.description.config.model, config.model)
    both = config.init_ema == BOTH
    try:
        fit.check(config.init_reset)
        first = source.choose(weights.RAW if both else config.init_ema)
        by_decay = {
            str(d): source.choose(str(d)) if both else first for d in config.ema
        }
    except (InitialError, PipelineError) as error:
        raise InitialError(
            f"The run cannot begin with init_from={config.init_from!r}. {error}"
        ) from error
    sets = {name: fit.take(source.read(name)) for name in {first, *by_decay.values()}}
    lines = [f"init_from={config.init_from}: {source.origin(first)}"]
    if both:
        lines.append(f"averages: from those of the same decay, {', '.join(by_decay)}")
    constants = {}
    if weights.constant_shapes(source.description.config) == weights.constant_shapes(
        config
    ):
        constants = source.constants()
    if constants:
        lines.append(f"the prediction's, too: {', '.join(constants)}")
    lines += [*fit.report(), *_other_differences(source.description, config)]
    ema = {decay: sets[name] for decay, name in by_decay.items()}
    return Initial(sets[first], ema, "\n".join(lines), constants)


def _other_differences(theirs: Description, config: Experiment) -> list[str]:
    """What differs besides shapes, and a user may want to know of; in lines."""
    nodes = [
        {
            "model": one.model,
            "prediction": one.prediction,
            "path": one.path,
            "conditioner": one.conditioner,
        }
        for one in (theirs.config, config)
    ]
    lines = changed_fields(*nodes)
    if 0 < theirs.config.model.num_classes == config.model.num_classes:
        old, new = theirs.class_names, config.data.class_names
        pairs = enumerate(zip(old, new, strict=True))
        others = [f"class {i}: {a!r} -> {b!r}" for i, (a, b) in pairs if a != b]
        lines += others[:5] + ["and more classes"] * (len(others) > 5)
    listed = [f"  {line}" for line in lines]
    return ["what else differs (there -> here):", *listed] if listed else []
