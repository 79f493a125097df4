"""The version of rin."""

from importlib.metadata import version

__version__ = version("rapidin")
