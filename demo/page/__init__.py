"""What a browser is shown. Whoever imports it loads Gradio, without its stubs for editors.

At every import Gradio writes such stubs beside its components. That takes a third of the import and
gives a server nothing. It writes none for a class that has no file, so meanwhile its classes have
none.
"""

import inspect
from typing import Any

getfile = inspect.getfile


def hide_file(thing: Any) -> str:
    """`inspect.getfile`, but raises OSError for the classes of Gradio."""
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("its file is hidden")
    return getfile(thing)


inspect.getfile = hide_file
try:
    import gradio  # noqa: F401
finally:
    inspect.getfile = getfile
