"""Parts that the studies share: records, documents, figures, command-line flags, training on photographs."""
