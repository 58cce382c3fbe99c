"""The version, where every part may read it without importing the package's public calls."""

__version__ = "0.1.0"
