"""Study behind docs/rotation.md: estimators and remedies, trained as users train."""
