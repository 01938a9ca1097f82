"""The model in plain PyTorch. No asyncio, no sockets, no files."""
