"""Entry point; run by path, because `-I -S` leaves neither the script's folder nor site-packages on sys.path."""

import os
import sys

# Appended, never inserted: nothing that lies beside the package may shadow a module of the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from gpuserved.shim.start import main

if __name__ == "__main__":
    sys.exit(main())
