"""Training recipes: what is initialized, trained and evaluated."""
