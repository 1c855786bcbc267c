"""`python experiments/NAME.py` finds this in place of the top folder's configurator. It says what to do."""

import sys
from pathlib import Path

name = Path(sys.argv[0]).stem
raise SystemExit(f'Run this from the top folder of the repository, as a module: python -m experiments.{name}')
