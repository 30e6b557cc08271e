"""Where the repository keeps what tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs"
TOOLS = REPOSITORY / "tools"
