"""Saving, finding, verifying and restoring checkpoints."""
