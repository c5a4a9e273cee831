"""All quantizers on one budget (docs/quantizers.md)."""
