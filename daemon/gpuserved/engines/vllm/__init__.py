# The old path of the adapter, for a daemon of 0.1.0 whose files were replaced.
from gpuserved.engines.late import Replaced as VllmEngine

__all__ = ["VllmEngine"]
