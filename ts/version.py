"""The version of the handler contract, as handlers read it from `ts.__version__` (spec/inference.md section 11)."""

__version__ = "0.12.0"
