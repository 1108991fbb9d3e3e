"""`python -m gpuserved.engines.sim serve MODEL ...`"""

from __future__ import annotations

import sys

from gpuserved.engines.sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
