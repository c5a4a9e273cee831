"""Study behind docs/tokenizers.md: the estimators on the tokenizers of the rotation-trick paper, at small width."""
