"""`gpuserve`: the commands. Only what the chosen command needs is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpuserved.api.errors import GpuserveError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 usage or configuration, 3 no daemon, 4 refused, 5 timed out."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["sim-engine"]:  # its flags are its own, --help included
        from gpuserved.cli.sim_engine import become

        become(arguments[1:])
    from gpuserved.cli.parser import build

    parser = build()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 2
    try:
        return int(options.run(options))
    except GpuserveError as error:
        _report(error, as_json=getattr(options, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `gpuserve logs ... | head` is satisfied
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _report(error: GpuserveError, *, as_json: bool) -> None:
    from gpuserved.host.logtail import clean

    if as_json:
        import msgspec

        print(msgspec.json.encode(error.body()).decode(), flush=True)
    sys.stdout.flush()
    print(f"gpuserve: {clean(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {clean(error.hint)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
