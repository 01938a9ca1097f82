"""`python -m engine COMMAND`: one file a command."""
