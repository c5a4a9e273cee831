"""Experiments that anyone can rerun by one command each; their results and pictures go into docs/."""
