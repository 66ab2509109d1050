"""The words of a call: which there are, which contradict, and what others call them."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelflow_jax import values
from pixelflow_jax.config_types import is_node
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.pretrained.requests import checked
from pixelflow_jax.sampling.choices import Choices

# Two words for one thing: the only ones.
SAME = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
# What says one thing in parts beside what says it whole.
WHOLE = {
    "grid": ("steps", "shift"),
    "sampling": ("preset",),
}
FIRST = "the first argument: pipeline(WHAT, ...), such as classes or prompts"
RESULT = (
    "nothing: the result is uint8, and has .pil, .images, .grid() and .save(folder)"
)
PLACE = "nothing: JAX computes on the devices that it finds (JAX_PLATFORMS=cpu)"
TYPE = "the config's `precision`: Pipeline.from_pretrained reads float32"
LATENTS = "seed= (an int, or one an image): the noise is a function of it"
# What other tools call it, by our word for it.
FOREIGN = {
    "steps": "num_steps n_steps sample_steps sampling_steps inference_steps nfe "
    "num_sampling_steps ddim_steps iterations timesteps sigmas",
    "guidance": "cfg cfg_scale cfg_weight scale w omega true_cfg_scale",
    "guidance_interval": "interval cfg_interval guidance_start guidance_end",
    "guidance=ClassifierFree(scale=2.0, rescale=0.7)": "guidance_rescale cfg_rescale",
    "guidance=AutoGuidance(scale=2.0, weights=...)": "guide autoguidance",
    "solver": "scheduler sampler method ode_solver sampling_method noise_scheduler",
    "seed": "seeds sample_seed manual_seed random_seed global_seed key rng",
    LATENTS: "generator latents noise",
    "images_per_prompt": "num_images_per_prompt num_images num_samples n_samples count "
    "num_outputs n n_images images_per_class",
    "sampling=Sampling(batch_size=8)": "batch_size",
    "height and width": "size image_size resolution img_size res",
    "negative_prompt": "negative neg_prompt n_prompt uncond_prompt negative_prompts",
    "callback(step, steps, images)": "callback_on_step_end callback_fn on_step "
    "callback_steps callback_on_step_end_tensor_inputs",
    "progress": "show_progress verbose tqdm disable_progress progress_bar",
    "shift": "time_shift flow_shift timestep_shift",
    FIRST: "prompt prompts classes class_labels labels label class_id y text wanted",
    RESULT: "output_type return_dict return_tensors",
    PLACE: "device devices gpu cuda",
    TYPE: "dtype torch_dtype precision",
    "Pipeline.from_pretrained(path, ema=...)": "ema",
    "record=True of a call, and .trajectory of its result": "trajectory return_steps "
    "output_trajectory return_intermediates",
    "solver='sde' or another of the stochastic ones": "eta",
}
OURS = {word: ours for ours, words in FOREIGN.items() for word in words.split()}
# What people ask of a pipeline of other tools, and what there is.
ATTRIBUTES = {
    "to": PLACE,
    "cuda": PLACE,
    "cpu": PLACE,
    "half": TYPE,
    "eval": "nothing: a pipeline never trains",
    "scheduler": "pipeline(..., solver='heun', steps=30), for each call",
    "unet": "pipeline.params and pipeline.config.model",
    "transformer": "pipeline.params and pipeline.config.model",
    "vae": "nothing: the models are of pixels, and have none",
    "components": "pipeline.config, pipeline.params",
    "set_progress_bar_config": "pipeline(..., progress=True)",
    "load_lora_weights": "fine-tuning: --config.init_from=WEIGHTS",
    "sample": "the pipeline itself: pipeline(WHAT, seed=0)",
    "generate_images": "the pipeline itself: pipeline(WHAT, seed=0)",
    "classes": "pipeline.class_names",
    "id2label": "pipeline.class_names",
    "labels2ids": "pipeline.labels(names)",
    "get_label_ids": "pipeline.labels(names)",
    "device": PLACE,
    "dtype": TYPE,
}
ATTRIBUTES_LIKE = {"enable_": "nothing: XLA plans the memory", "disable_": "nothing"}


def settled(options: Mapping[str, Any], kinds: type) -> dict[str, Any]:
    """The options of a call in our words, each of the type and range of `kinds`.

    Raises PipelineError for words that are none, with ours in their place, for two that
    contradict, and for values that cannot be.
    """
    known = kinds.__optional_keys__  # pyright: ignore[reportAttributeAccessIssue]
    if unknown := [word for word in options if word not in known]:
        raise PipelineError(" ".join(_in_our_words(w, known) for w in unknown))
    plain = {name: _plain(value) for name, value in options.items()}
    given = {k: v for k, v in checked(plain, kinds).items() if v is not None}
    for word, ours in SAME.items():
        if word in given and ours in given:
            _refuse_both(word, ours, given)
        if word in given:
            given[ours] = given.pop(word)
    for whole, parts in WHOLE.items():
        for part in parts:
            if whole in given and part in given:
                _refuse_both(part, whole, given)
    if "guidance_interval" in given and is_node(given.get("guidance")):
        _refuse_both("guidance_interval", "guidance", given)
    low, high = given.get("guidance_interval", (0.0, 1.0))
    if low >= high:
        raise PipelineError(
            f"guidance_interval={low, high} must be two times, the earlier one first, "
            "such as (0.1, 1.0)."
        )
    return given


def choices(given: Mapping[str, Any]) -> Choices:
    """What settled options say of the sampling settings."""
    named = {name: given.get(name) for name in Choices._fields if name in given}
    return Choices(**named, interval=given.get("guidance_interval"))


def seeds(seed: Any, count: int) -> tuple[int, np.ndarray | None]:
    """The seed of all images, and those of each where there are several.

    Raises PipelineError for another number of seeds than of images.
    """
    if isinstance(seed, int):
        return seed, None
    each = np.asarray(seed)
    if len(each) != count:
        raise PipelineError(
            f"There are {len(each)} seeds for {count} images: give one for each "
            "image, or one for all."
        )
    return 0, each.astype(np.uint32)


def attribute(name: str) -> str:
    """What there is in place of an attribute that a pipeline of other tools has."""
    ours = ATTRIBUTES.get(name)
    for begin, words in ATTRIBUTES_LIKE.items():
        ours = words if name.startswith(begin) else ours
    return f" Here it is {ours}." if ours else ""


def _plain(value: Any) -> Any:
    """Several numbers as a tuple, whatever holds them."""
    if isinstance(value, list | range):
        return tuple(value)
    return tuple(value.tolist()) if getattr(value, "ndim", 0) == 1 else value


def _in_our_words(word: str, known: Sequence[str]) -> str:
    """What to say instead of a word that is none of a call."""
    ours = OURS.get(word.lower())
    near = difflib.get_close_matches(word, known, 1)
    if ours:
        return f"{word}= is no word of a call: here it is {ours}."
    meant = f" did you mean {near[0]}=?" if near else ""
    return f"{word}= is no word of a call:{meant} There are {', '.join(sorted(known))}."


def _refuse_both(part: str, whole: str, given: Mapping[str, Any]) -> None:
    raise PipelineError(
        f"{part}={values.show(given[part])} and {whole}={values.show(given[whole])} "
        "say the same thing twice: give one of the two."
    )
