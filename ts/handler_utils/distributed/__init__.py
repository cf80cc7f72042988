"""Models that one process cannot hold, by way of packages that are asked for when a handler needs them."""
