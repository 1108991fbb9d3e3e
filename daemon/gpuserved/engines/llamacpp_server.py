"""The old path of `engines/llamacpp/server.py`. A daemon that has not been upgraded yet starts its replicas by it."""

from gpuserved.engines.llamacpp.server import main

if __name__ == "__main__":
    raise SystemExit(main())
