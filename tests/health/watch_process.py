"""The watch's health part as a process: looks again and again, as often as a test wants.

`python -m tests.health.watch_process CONFIG`: a HealthConfig as JSON, read again at each look.
"""

import sys
import time
from pathlib import Path

from core.errors import SerinError
from core.settings import Settings
from rollout.ledger import Ledger
from tasks.healing import heal_once
from validation.health_config import HealthConfig

LOOK_SECONDS = 0.4


def main(path: Path) -> None:
    settings = Settings.read()
    ledger = Ledger(settings.ledger_url)
    while True:
        began = time.monotonic()
        try:
            config = HealthConfig.model_validate_json(path.read_text())
            print(heal_once(settings, config, ledger, time.time()), flush=True)
        except SerinError as error:
            print(type(error).__name__, error, flush=True)
        time.sleep(max(0.05, LOOK_SECONDS - (time.monotonic() - began)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
