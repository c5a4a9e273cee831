"""Study behind docs/classification.md: quantizers inside classifiers, with the remedies of vqtorch."""
