"""The version of the package; it is part of every run's fingerprint."""

__version__ = "0.1.0"
