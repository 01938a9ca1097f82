"""The progress of long work on the terminal: one line that is drawn over itself."""

import sys

BAR_CELLS = 30


def show(phase: str, percent: float) -> None:
    """Draw or end the bar of a phase. Without a terminal only the end is printed."""
    done = percent >= 100
    if sys.stderr.isatty():
        cells = int(BAR_CELLS * percent / 100)
        bar = "#" * cells + "." * (BAR_CELLS - cells)
        print(f"\r{phase:60.60} {bar} {percent:5.1f} %", end="\n" * done, file=sys.stderr)
    elif done:
        print(f"{phase}: done", file=sys.stderr)
