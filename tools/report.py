"""Writes the HTML report of one or several runs: python tools/report.py RUN_FOLDER [RUN_FOLDER …] --out FILE"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mfm_core.errors import UserError
from mfm_core.report.html import write_report


def main() -> int:
    """Returns the exit code: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Write one self-contained HTML report; several runs are compared.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="OUTPUT_DIR of a run")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write (report.html)")
    arguments = parser.parse_args()
    try:
        write_report(arguments.runs, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
