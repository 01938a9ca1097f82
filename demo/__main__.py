"""`python -m demo`: the page and `/api` on one port."""

import argparse
import asyncio
import logging
import sys

from engine.cli import LOG_FORMAT
from engine.errors import EngineError


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal; the exit code (0 done, 1 failed with one clear line)."""
    try:
        from demo.app import serve
        from engine.commands.serve import add_server_arguments, build_service, server_config
    except ModuleNotFoundError as error:  # started by hand before `make run` has set up
        if (error.name or "").split(".")[0] in ("demo", "engine"):
            raise
        print(f"error: the package {error.name} is not installed; use `make run`", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    add_server_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    try:
        config = server_config(args)
        return asyncio.run(serve(build_service(config), config))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
