"""All quantizers on the same data and budget (docs/quantizers.md)."""
