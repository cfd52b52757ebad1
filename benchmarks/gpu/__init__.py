"""The GPU program: python -m benchmarks gpu. program.py is its command line, plan.py lists what it finds out."""

import time

# before torch is imported, which on a cold machine takes a while
BEGUN = time.monotonic()
