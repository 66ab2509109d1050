"""A generator with something else about it."""

import dataclasses

import jax

from pixelflow_jax.sharding import MeshShape


def on(generator, devices, **changes):
    """On so many devices."""
    mesh = MeshShape().build(jax.devices()[:devices])
    return dataclasses.replace(generator, mesh=mesh, **changes)


def drawing(generator, **changes):
    """With another sampler."""
    sampler = dataclasses.replace(generator.sampler, **changes)
    return dataclasses.replace(generator, sampler=sampler)
