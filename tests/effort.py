"""How many random cases a test tries: all of them in `make soak` (USERRL_SOAK=1), a part everywhere else. The
law is the same in both."""

import os

IS_SOAK = os.environ.get("USERRL_SOAK") == "1"


def examples(in_soak: int) -> int:
    """Random cases to try: all of them in a soak, else a sixth, at least 10."""
    return in_soak if IS_SOAK else min(in_soak, max(10, in_soak // 6))
