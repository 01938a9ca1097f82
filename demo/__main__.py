"""`python -m demo`: the page and `/api` on one port."""

import argparse
import asyncio
import contextlib
import importlib.util
import sys

from engine.cli import complain
from engine.errors import EngineError
from engine.logs import set_up_logs


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; the exit code (0 done, 1 failed with one clear line)."""
    argv = sys.argv[1:] if argv is None else argv
    if sys.stdout and not {"-h", "--help"} & set(argv):
        with contextlib.suppress(OSError):  # said properly below
            print("PersonaPlex starts", flush=True)
    try:
        from demo.app import build_app
        from engine.commands import serve

        if importlib.util.find_spec("gradio") is None:  # it is loaded once the port is open
            raise ModuleNotFoundError(name="gradio")
    except ModuleNotFoundError as error:  # started by hand before `make run` has set up
        if (error.name or "").split(".")[0] in ("demo", "engine"):
            raise
        complain(f"the package {error.name} is not installed; use `make run`")
        return 1
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    serve.add_arguments(parser)
    args = parser.parse_args(argv)
    set_up_logs()
    try:
        config = serve.server_config(args)
        service = serve.build_service(config)
        return asyncio.run(serve.run_app(build_app(service, config), service, config))
    except EngineError as error:
        complain(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
