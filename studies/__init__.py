"""The experiments behind the documentation; not part of the installed package."""
