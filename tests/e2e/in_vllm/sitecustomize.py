"""Every Python of a vLLM that has this folder in PYTHONPATH begins here.

The CPU build computes on the processors that gpuserve, the clients and the test's clock need, with more threads than a small machine
has: seconds pass before any of them gets its turn, and that would be measured. On a GPU host the engine's work is the GPU's.
"""

from __future__ import annotations

import os

os.nice(10)
