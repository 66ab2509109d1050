"""The words of other tools for what our flags say: diffusers, DiT, SiT, EDM, JiT."""

# What is meant, by the verb it is asked of ("": all others), and the words for it.
GUIDANCE = {
    "sample": "--guidance",
    "": "--config.sampling.guidance.scale",
}
STEPS = {
    "sample": "--sample_steps",
    "train": "--config.steps",
    "": "--config.sampling.grid.steps",
}
LENGTH = {
    "train": "--config.steps",
    "sample": "--sample_steps",
    "": "--config.sampling.grid.steps",
}
SEED = {"sample": "--sample_seed", "train": "--config.seed", "": "--sample_seed"}
COUNT = {"sample": "--count", "": "--count"}
BATCH = {"train": "--config.batch_size", "": "--config.sampling.batch_size"}
OUT = {"train": "--workdir", "evaluate": "--workdir", "": "--out"}
START = {
    "train": "--workdir (the same command goes on from its newest checkpoint), or "
    "--config.init_from to begin with other weights",
    "": "--weights, or --workdir for a run of your own",
}
SIZE = {
    "train": "--config.data.image_size",
    "sample": "--height and --width",
    "": "--config.data.image_size",
}
CLASSES = {"train": "--config.model.num_classes", "": "--classes"}
AVERAGE = {"train": "--config.ema", "": "--ema"}
SOLVER = {"sample": "--solver", "": "--solver"}
WORDS = (
    (
        GUIDANCE,
        "guidance_scale cfg_scale cfg cfg_weight guidance_weight scale w omega",
    ),
    (
        {
            "sample": "--guidance_interval",
            "": "--config.sampling.guidance.low and .high",
        },
        "interval_min interval_max cfg_interval guidance_low guidance_high cfg_start",
    ),
    (
        STEPS,
        "num_inference_steps inference_steps num_sampling_steps sampling_steps steps "
        "num_steps ddim_steps nfe",
    ),
    (
        LENGTH,
        "max_train_steps train_steps num_train_steps max_steps total_steps iterations "
        "max_iters num_iterations n_steps",
    ),
    (
        {"train": "--config.steps, in steps of a batch", "": "--config.steps"},
        "epochs num_epochs max_epochs num_train_epochs duration",
    ),
    (SEED, "seed manual_seed global_seed random_seed generator seeds"),
    (
        COUNT,
        "num_images num_samples n_samples n_images num_images_per_prompt "
        "images_per_prompt images_per_class samples_per_class n_iter num_fid_samples "
        "num_outputs",
    ),
    (
        BATCH,
        "batch_size batch bs global_batch_size per_proc_batch_size train_batch_size "
        "eval_batch_size per_device_train_batch_size max_batch_size",
    ),
    (
        OUT,
        "output output_dir outdir out_dir output_path save_dir save_path sample_dir "
        "results_dir logdir log_dir_path o",
    ),
    (
        START,
        "ckpt ckpt_path checkpoint checkpoint_path model_path pretrained network "
        "pretrained_model_name_or_path resume resume_from resume_from_checkpoint "
        "model_id load",
    ),
    (
        {"train": "--config=NAME:VARIANT (`pixelflow config list`)", "": "--weights"},
        "model arch model_name net",
    ),
    ({"": "--config.optimizer.lr"}, "lr learning_rate base_lr blr"),
    ({"": "--config.optimizer.warmup"}, "warmup warmup_steps lr_warmup_steps"),
    ({"": "--config.optimizer.weight_decay"}, "weight_decay wd adam_weight_decay"),
    ({"": "--config.optimizer.clip"}, "grad_clip clip max_grad_norm clip_grad"),
    (
        {"": "--config.optimizer.schedule"},
        "lr_scheduler lr_schedule schedule lr_scheduler_type",
    ),
    (SOLVER, "sampler sampling_method scheduler method ode_solver sde"),
    (
        SIZE,
        "resolution image_size img_size size res image_resolution",
    ),
    ({"sample": "--height", "": SIZE[""]}, "h image_height img_height"),
    ({"sample": "--width", "": SIZE[""]}, "image_width img_width"),
    (
        {"": "--negative_prompt"},
        "negative neg_prompt n_prompt uncond_prompt",
    ),
    ({"": "--prompt"}, "prompts text caption captions p"),
    ({"": "--prompts_file"}, "prompt_file prompts_path from_file caption_file"),
    (
        CLASSES,
        "class classes_list class_labels class_label class_idx labels label class_id "
        "num_classes y",
    ),
    (
        {"": "--config.data.source.path"},
        "data data_path data_dir dataset dataset_path train_data_dir data_root "
        "dataset_name",
    ),
    ({"": "--config.data.workers"}, "num_workers workers dataloader_num_workers"),
    (AVERAGE, "ema_decay use_ema ema_rate ema_beta"),
    (
        {"export": "--dtype", "": "--config.precision.compute"},
        "precision mixed_precision fp16 bf16 half amp dtype torch_dtype",
    ),
    (
        {"": "--config.accumulate"},
        "gradient_accumulation_steps accumulation_steps grad_accum accum_iter "
        "batch_gpu",
    ),
    (
        {"": "--config.mesh.fsdp and .tensor, and $JAX_PLATFORMS for the kind"},
        "device devices gpu gpus num_gpus n_gpu nproc_per_node world_size cpu cuda",
    ),
    (
        {"": "--config.checkpoint.every"},
        "save_every ckpt_every checkpointing_steps snap",
    ),
    ({"": "--config.log.every"}, "log_every logging_steps print_freq report_every"),
    ({"": "--config.log.preview_every"}, "sample_every validation_steps eval_every"),
    ({"": "--shift"}, "time_shift timestep_shift flow_shift shift_scale"),
)
BY_WORD = {word: meaning for meaning, words in WORDS for word in words.split()}


def ours(word: str, verb: str) -> str | None:
    """Our words for another tool's flag, asked of a verb; None where none is known."""
    meaning = BY_WORD.get(word.replace("-", "_").lower())
    if meaning is None:
        return None
    return meaning.get(verb) or meaning.get("")
