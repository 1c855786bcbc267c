import os

# OpenMP's threads sleep while they wait. Where they spin, a small run on a busy machine is many times slower
# (on an idle one it is faster: docs/training.md).
# The library reads this once, when torch is loaded, so scripts import configurator.py before it
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
