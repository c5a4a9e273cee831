"""Which remedy helps against which symptom (docs/choosing-a-quantizer.md)."""
