"""Study of docs/generation.md: what models of tokens make of a tokenizer."""
