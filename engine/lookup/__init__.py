"""Questions: which need the facts, how they are asked, how they are answered."""
