"""tserve: a restart-safe model server for PyTorch that speaks TorchServe's APIs."""

__version__ = "0.1.0"
