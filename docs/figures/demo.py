"""Pictures of the web demo, and a walk through it in a browser.

    python docs/figures/demo.py [FOLDER]

Starts the page, draws classes at another solver and size, provokes three refusals,
opens it at a phone's width, and writes demo.png, demo_refusal.png and demo_phone.png.
Needs the extra "demo", playwright, and a Chromium (or PIXELFLOW_BROWSER=PATH).
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


def walk(view: Page, folder: pathlib.Path) -> None:
    """A visit: images, another solver and size, refusals."""
    view.wait_for_selector("#generate")
    view.click("#sampling button")
    number(view, "steps", 20)
    generate(view, "4 images of 64 x 64 pixels")
    view.wait_for_selector("#animation img")
    time.sleep(1.5)  # the way out of the noise has begun
    view.screenshot(path=folder / "demo.png")
    choose(view, "solver", "heun")
    choose(view, "size", "96")
    number(view, "steps", 10)
    generate(view, "4 images of 96 x 96 pixels")
    for field, value, words in REFUSALS:
        kept = view.locator(f"#{field} input[type=number]").input_value()
        number(view, field, value)
        generate(view, words)
        if field == "low":
            view.screenshot(path=folder / "demo_refusal.png")
        number(view, field, kept)


def main(folder: pathlib.Path = GALLERY) -> None:
    """Visit the page twice, at a desk's width and at a phone's."""
    named = os.environ.get("PIXELFLOW_BROWSER", "chromium")
    built = page.build(Models(["emoji"]), Limits(images=8, steps=50, side=128))
    address = page.launch(built)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(named), args=list(FLAGS)
        )
        view = browser.new_page(viewport={"width": 1200, "height": 900})
        view.goto(address)
        walk(view, folder)
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(address)
        phone.wait_for_selector("#generate")
        generate(phone, "4 images of 64 x 64 pixels")
        phone.wait_for_selector("#animation img")
        phone.screenshot(path=folder / "demo_phone.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
