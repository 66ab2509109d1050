"""The demo as a Hugging Face Space: upload this folder as a Space of kind Gradio."""

from pixelflow_jax.demo import page
from pixelflow_jax.demo.form import Limits
from pixelflow_jax.demo.models import Models

# What to offer: names of shipped models, or "organisation/name" on the Hub. Strangers
# share the machine of a Space: small limits keep their turns short.
WEIGHTS = ["emoji"]
LIMITS = Limits(images=8, steps=50, side=128, waiting=8)

demo = page.build(Models(WEIGHTS), LIMITS)

if __name__ == "__main__":
    page.launch(demo, host=None)  # where the Space says
    demo.block_thread()
