"""What a traced program holds, its inner programs included."""

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def equations(
    program: ClosedJaxpr | Jaxpr, looped: bool = False
) -> Iterator[tuple[JaxprEqn, bool]]:
    """Every equation, and whether it lies in the body of a loop."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation, looped
        inside = looped or equation.primitive.name in ("scan", "while")
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    yield from equations(inner, inside)


def names(program: ClosedJaxpr) -> list[str]:
    """The primitives, in order."""
    return [equation.primitive.name for equation, _ in equations(program)]
