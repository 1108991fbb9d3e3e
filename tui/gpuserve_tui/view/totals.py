"""What stands under the replicas: a row for each model with its queue in the router, and one for everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuserve_tui.view import cells as c
from gpuserve_tui.view.cells import Cell
from gpuserve_tui.view.columns import Row
from gpuserve_tui.view.rows import load_cells
from gpuserved.api.types import LoadView, ModelView, Status


def total_rows(status: Status | None, *, wide: bool, models: int) -> list[Row]:
    """The rows of some models, in the order of their names, then the one of everything. Percentiles come merged from the daemon.

    :param models: how many have room; those with the longest queues are shown.
    """
    if status is None:
        return [_all(None, wide=wide)]
    return [*(_model(model, wide=wide) for model in busiest(status.models, models)), _all(status, wide=wide)]


def busiest(models: Sequence[ModelView], count: int) -> list[ModelView]:
    """The `count` models with most requests in the queue, or else under way, in their own order. One alone is everything."""
    if len(models) < 2:
        return []
    ranked = sorted(models, key=lambda m: (m.queued or 0, m.in_flight or 0), reverse=True)[: max(0, count)]
    return [model for model in models if model in ranked]


def queueing(models: Iterable[ModelView]) -> int:
    """How many models have requests in the router's queue."""
    return sum((model.queued or 0) > 0 for model in models)


def _model(model: ModelView, *, wide: bool) -> Row:
    values = (model.queued, model.in_flight, model.running, model.waiting)
    return _row(f"all {c.plain(model.name)}", "", values, model.load, wide=wide)


def _all(status: Status | None, *, wide: bool) -> Row:
    replicas = status.replicas if status else []
    router = status.router if status else None
    running = _sum(replica.running for replica in replicas)
    waiting = _sum(replica.waiting for replica in replicas)
    values = (router.queued if router else None, router.in_flight if router else None, running, waiting)
    row = _row("ALL", "bold", values, status.load if status else None, wide=wide)
    row.cells["restarts"] = (Cell(str(sum(r.restarts for r in replicas)), "bold"),)
    return row


def _row(name: str, role: str, values: tuple[int | None, ...], load: LoadView | None, *, wide: bool) -> Row:
    queued, in_flight, running, waiting = values
    return Row(
        name,
        {
            "id": (Cell(name, role),),
            "state": (Cell(f"queue {c.count(queued)}", "warn" if queued else "dim"),),
            "in_flight": (Cell(c.count(in_flight), role),),
            "running": (Cell(c.count(running), role),),
            "waiting": (Cell(c.count(waiting), role),),
            **load_cells(load, wide=wide),
        },
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
