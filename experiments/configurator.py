"""
Not a study: `python experiments/NAME.py` finds this in place of the configurator of the top folder, which is
then not on Python's path. It says how to run a study.
"""

import sys
from pathlib import Path

name = Path(sys.argv[0]).stem
raise SystemExit(f'Run this from the top folder of the repository, as a module: python -m experiments.{name}')
