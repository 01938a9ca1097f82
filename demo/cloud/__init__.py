"""Life on Modal."""
