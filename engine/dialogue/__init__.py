"""One conversation: persona, voice, director, router, transcript. No torch, no web framework."""
