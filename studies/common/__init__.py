"""Parts that the studies share."""
