"""Puts this folder on the path, so that tests share modules such as `golden_cases` (pytest imports tests by file)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
