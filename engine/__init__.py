"""The PersonaPlex engine. Importing it loads neither torch nor a web framework."""

__version__ = "0.1.0"
