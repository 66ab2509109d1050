"""Pictures of a text-to-image model of emoji, for docs/gallery.

python -m benchmarks.text_gallery runs/emoji_t2i --out docs/gallery

t2i_heldout.png: held-out drawings, chosen by the seed, drawn from the first caption
(left) beside the real one (right). t2i_colours.png: things in colours in which training
never shows them, chosen by the seed. t2i_new.png: prompts that were chosen before they
were drawn; those that are training captions say so. t2i_sizes.png: prompts in rows,
SIZES in columns. No image is left out or drawn twice.
"""

import argparse
import pathlib

import numpy as np

from benchmarks import text_alignment  # first: it sets the compiler's flags

from benchmarks import ask  # isort: skip
from pixelflow_jax import Pipeline  # isort: skip
from pixelflow_jax.data.emoji.source import EmojiSource  # isort: skip
from pixelflow_jax.data.images import captioned_grid, grid, save_png  # isort: skip

COUNT, COLUMNS = 24, 6
PICTURES = ("heldout", "colours", "new", "sizes")
NEW = (
    *("red apple", "blue car", "sad cat face", "green heart", "purple car"),
    *("yellow house", "blue cat face", "black dog", "green bird", "purple fish"),
    *("pink star", "blue balloon", "red flower", "orange book", "green hat"),
    *("blue crying face", "angry dog face", "cat with sunglasses", "happy sun"),
    *("red and yellow flag", "blue flag with a star", "two hearts", "house on fire"),
    "robot cat",
)
SIZES = ((64, 64), (96, 96), (128, 64))  # height, width
AT_SIZES = ("red apple", "blue car", "sad cat face", "green heart", "france flag")
AT_SIZES += ("evergreen tree",)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = text_alignment.parser(__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=PICTURES, help="these (default: all)"
    )
    return parser.parse_args()


def held_out(pipeline: Pipeline, held: EmojiSource, seed: int) -> np.ndarray:
    """COUNT held-out captions: drawn, beside the real drawing."""
    chosen = np.random.default_rng(seed).permutation(len(held))[:COUNT]
    prompts = [held[number]["captions"][0] for number in chosen]
    drawn = pipeline(prompts, seed=seed, progress=True)
    pairs = np.concatenate([drawn, held.images[chosen]], 2)
    return captioned_grid(pairs, prompts, COLUMNS)


def colours(pipeline: Pipeline, training: EmojiSource, seed: int) -> np.ndarray:
    """COUNT of the combinations that `ask` asks for."""
    prompts = ask.of_combinations(training, 1).prompts
    prompts = [text for text in prompts if text not in ask.IN_OTHER_STYLES]
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:COUNT]
    some = [prompts[number] for number in sorted(chosen)]
    drawn = pipeline(some, seed=seed, progress=True)
    return captioned_grid(np.asarray(drawn), some, COLUMNS, scale=2)


def new(pipeline: Pipeline, training: EmojiSource, seed: int) -> np.ndarray:
    """NEW, where captions of the training split are marked."""
    known = {c for i in range(len(training)) for c in training[i]["captions"]}
    drawn = pipeline(NEW, seed=seed, progress=True)
    captions = [
        f"{text} (a training caption)" if text in known else text for text in NEW
    ]
    return captioned_grid(drawn, captions, COLUMNS, scale=2)


def sizes(pipeline: Pipeline, seed: int) -> np.ndarray:
    """AT_SIZES at every one of SIZES, on white."""
    height, width = np.max(SIZES, 0)
    cells = np.full((len(AT_SIZES), len(SIZES), height, width, 3), 255, np.uint8)
    for column, (h, w) in enumerate(SIZES):
        drawn = pipeline(AT_SIZES, seed=seed, height=h, width=w, progress=True)
        top, left = (height - h) // 2, (width - w) // 2
        cells[:, column, top : top + h, left : left + w] = drawn
    return grid(cells.reshape(-1, height, width, 3), len(SIZES), AT_SIZES, pad=8)


def main() -> None:
    """Draw the pictures."""
    args = arguments()
    pipeline = text_alignment.load(args)
    source = text_alignment.drawings(pipeline.config)
    size = pipeline.config.data.image_size
    held, training = (source.open(s, size) for s in ("test", "train"))
    draw = {
        "heldout": lambda: held_out(pipeline, held, args.seed),
        "colours": lambda: colours(pipeline, training, args.seed),
        "new": lambda: new(pipeline, training, args.seed),
        "sizes": lambda: sizes(pipeline, args.seed),
    }
    for name in args.only or PICTURES:
        save_png(args.out / f"t2i_{name}.png", draw[name]())


if __name__ == "__main__":
    main()
