"""Several processes that speak HTTP, in front of one service."""
