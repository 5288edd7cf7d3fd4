"""The version of the package, read by `pyproject.toml` and by cache keys."""

__version__ = "0.1.0"
