"""`engine serve` with a backend that hangs for ever where the first argument says."""

import sys
import threading

from engine.cli import main
from engine.runtime.embedded import EmbeddedBackend

setattr(EmbeddedBackend, sys.argv.pop(1), lambda *_: threading.Event().wait())
sys.exit(main(["serve", *sys.argv[1:]]))
