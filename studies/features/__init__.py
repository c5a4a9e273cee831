"""A small classifier, trained here and frozen, whose features tell how alike two images look."""
