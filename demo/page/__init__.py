"""What a browser is shown. Whoever imports it loads Gradio."""

import inspect
from typing import Any

find_file = inspect.getfile


def find_other_file(thing: Any) -> str:
    """`inspect.getfile` for what is not Gradio's. Raises OSError for its classes."""
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("no stubs")
    return find_file(thing)


# Whenever Gradio is imported it writes stubs for editors beside its components. That takes a third
# of the import and gives a server nothing. For a class that has no file it writes none.
inspect.getfile = find_other_file
try:
    import gradio  # noqa: F401
finally:
    inspect.getfile = find_file
