"""Functions handlers import; everything is in `ts.utils.util`."""
