"""The shim: one small process beside each replica, and one beside the router.

It holds what must not die with the supervisor: the log pipe, the exit status, the power to kill the whole tree, and for the
router the listening socket. Standard library only, one thread, no asyncio. It runs as `python -I -S .../shim/__main__.py` and
imports all it will ever need before it forks, so that replacing the installed files never breaks a shim that runs.
"""
