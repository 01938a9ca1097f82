"""A peer beside us: its process, its weights, its turns and ours. Nothing of theirs is here."""
