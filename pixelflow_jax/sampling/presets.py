"""Named sampling settings of the papers, for any model of the kind."""

from collections.abc import Callable

from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import RAMP, ClassifierFree
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.settings import Sampling

TINY = 0.001  # the last step of the official PixelFlow grid: from 0.999 to 1
JIT_SCALES = {768: 2.9, 1024: 2.4, 1280: 2.2}  # guidance of JiT-B, L and H, by width
TIMESTEP_SCALE = 0.999  # of the timestep, where its Dopri5 sampler has arrived at t = 1


def euler30_cfg15() -> Sampling:
    """PixelFlow, Table 3a: Euler, 30 steps a stage, CFG 1.5 everywhere."""
    grid, guidance = Grid(steps=30, last_step=TINY), ClassifierFree(scale=1.5)
    return Sampling(solver=Euler(), grid=grid, guidance=guidance, batch_size=16)


def dopri5_cfg15() -> Sampling:
    """PixelFlow, Table 3b: Dopri5 at tolerance 1e-6, CFG 1.5 everywhere."""
    return Sampling(
        solver=Dopri5(),
        grid=Grid(steps=30, timestep_scale=TIMESTEP_SCALE),
        guidance=ClassifierFree(scale=1.5),
        batch_size=16,
    )


def dopri5_stagewise24() -> Sampling:
    """PixelFlow, Table 3c, the best: Dopri5, CFG up to 2.4 along its four stages."""
    return Sampling(
        solver=Dopri5(),
        grid=Grid(steps=30, timestep_scale=TIMESTEP_SCALE),
        guidance=ClassifierFree(scale=2.4, ramp=RAMP),
        batch_size=16,
    )


def pixnerd_euler50() -> Sampling:
    """PixNerd, Table 2: Euler, 50 steps, CFG 3.5 on (0.1, 1)."""
    return Sampling()


def pixnerd_euler100_512() -> Sampling:
    """PixNerd at 512 pixels: Euler, 100 steps, CFG 3.5 on (0.3, 1)."""
    guidance = ClassifierFree(scale=3.5, low=0.3, high=1.0)
    return Sampling(grid=Grid(steps=100), guidance=guidance, batch_size=16)


def deco_euler100() -> Sampling:
    """DeCo: Euler, 100 steps, CFG 3.2 on (0.1, 1)."""
    guidance = ClassifierFree(scale=3.2, low=0.1, high=1.0)
    return Sampling(grid=Grid(steps=100), guidance=guidance)


def deco_euler100_512() -> Sampling:
    """DeCo at 512 pixels: Euler, 100 steps, CFG 5 on (0.1, 1)."""
    guidance = ClassifierFree(scale=5.0, low=0.1, high=1.0)
    return Sampling(grid=Grid(steps=100), guidance=guidance, batch_size=16)


def pixelgen_heun50() -> Sampling:
    """PixelGen-XL with guidance: Heun, 50 steps, CFG 2.25 on (0.1, 0.9], shift 2."""
    return Sampling(
        solver=Heun(),
        grid=Grid(steps=50, shift=2.0),
        guidance=ClassifierFree(scale=2.25, low=0.1, high=0.9, interval="(]"),
        batch_size=32,
    )


def pixelgen_heun50_unguided() -> Sampling:
    """PixelGen-XL without guidance: Heun, 50 steps, shift 2."""
    guidance = ClassifierFree(scale=1.0)
    grid = Grid(steps=50, shift=2.0)
    return Sampling(solver=Heun(), grid=grid, guidance=guidance, batch_size=64)


def jit_heun50(width: int = 1024) -> Sampling:
    """JiT of that width as its authors sample: Heun, 50 steps, CFG on [0.1, 1]."""
    scale = JIT_SCALES.get(width, JIT_SCALES[1024])
    guidance = ClassifierFree(scale=scale, low=0.1, interval="[]")
    return Sampling(solver=Heun(), grid=Grid(steps=50), guidance=guidance)


def asymflow_heun50(scale: float = 2.2) -> Sampling:
    """AsymFlow-H: Heun, 50 steps, CFG 2.2 on [0.12, 1] at each evaluation's time."""
    guidance = ClassifierFree(
        scale=scale, low=0.12, high=1.0, interval="[]", interval_time="evaluation"
    )
    return Sampling(solver=Heun(), grid=Grid(steps=50), guidance=guidance)


def pixeldit2_heun50() -> Sampling:
    """PixelDiT2-H: Heun, 50 steps, CFG 2.4 on (0.125, 0.9) at each evaluation."""
    guidance = ClassifierFree(
        scale=2.4, low=0.125, high=0.9, interval_time="evaluation"
    )
    return Sampling(solver=Heun(), grid=Grid(steps=50), guidance=guidance)


def pixeldit2_heun50_512() -> Sampling:
    """PixelDiT2-H at 512 pixels: Heun, 50 steps, CFG 2.1 on (0.1, 0.925)."""
    guidance = ClassifierFree(
        scale=2.1, low=0.1, high=0.925, interval_time="evaluation"
    )
    grid = Grid(steps=50)
    return Sampling(solver=Heun(), grid=grid, guidance=guidance, batch_size=16)


def adams25_cfg4() -> Sampling:
    """PixNerd and PixelGen with text: Adams-Bashforth 2, 25 steps, CFG 4, shift 3.

    The official solver does not guide its first step, at t = 0.
    """
    return Sampling(
        solver=AdamsBashforth(order=2),
        grid=Grid(steps=25, shift=3.0),
        guidance=ClassifierFree(scale=4.0, low=0.0, high=1.0),
        batch_size=16,
    )


def euler10_cfg4() -> Sampling:
    """PixelFlow with text: Euler, 10 steps a stage, CFG 4 on all stages alike."""
    grid, guidance = Grid(steps=10, last_step=TINY), ClassifierFree(scale=4.0)
    return Sampling(solver=Euler(), grid=grid, guidance=guidance, batch_size=8)


def emoji_adams20() -> Sampling:
    """The shipped emoji model in half the time: Adams-Bashforth 2, 20 steps, CFG 3."""
    return Sampling(
        solver=AdamsBashforth(order=2),
        grid=Grid(steps=20),
        guidance=ClassifierFree(scale=3.0, low=0.1, high=1.0),
    )


def emoji_heun20() -> Sampling:
    """The shipped emoji model, by FD-lite0: Heun, 20 steps, shift 1.5, CFG 2.

    No finer than `PredictClean.t_eps` = 1 / 20: the clamp leaves noise in images whose
    last step is shorter (docs/evaluation.md, "Sweep").
    """
    return Sampling(
        solver=Heun(),
        grid=Grid(steps=20, shift=1.5),
        guidance=ClassifierFree(scale=2.0),
    )


PRESETS: dict[str, Callable[[], Sampling]] = {
    "euler30_cfg1.5": euler30_cfg15,
    "dopri5_cfg1.5": dopri5_cfg15,
    "dopri5_stagewise2.4": dopri5_stagewise24,
    "pixnerd_euler50": pixnerd_euler50,
    "pixnerd_euler100_512": pixnerd_euler100_512,
    "deco_euler100": deco_euler100,
    "deco_euler100_512": deco_euler100_512,
    "pixelgen_heun50": pixelgen_heun50,
    "pixelgen_heun50_unguided": pixelgen_heun50_unguided,
    "jit_heun50": jit_heun50,
    "asymflow_heun50": asymflow_heun50,
    "pixeldit2_heun50": pixeldit2_heun50,
    "pixeldit2_heun50_512": pixeldit2_heun50_512,
    "adams25_cfg4": adams25_cfg4,
    "euler10_cfg4": euler10_cfg4,
    "emoji_adams20": emoji_adams20,
    "emoji_heun20": emoji_heun20,
}
