"""The error of the converter."""


class ConvertError(ValueError):
    """Weights that cannot be converted; says what is wrong and what to do."""
