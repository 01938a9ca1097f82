"""Tools of ours that no server runs."""
