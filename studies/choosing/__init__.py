"""Remedies for unused codes and estimators of the gradient, compared (docs/choosing-a-quantizer.md)."""
