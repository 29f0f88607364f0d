"""The toolkit that keeps GPU training clusters training."""

__version__ = "0.1.0"
