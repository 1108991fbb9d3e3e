"""`python -m gpuserved.router`."""

from __future__ import annotations

import sys

from gpuserved.router.main import main

sys.exit(main())
