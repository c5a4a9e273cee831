"""Losses of images and networks."""
