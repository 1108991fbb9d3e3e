"""What is known for planning: facts of models, and what earlier starts measured."""

from __future__ import annotations

import logging
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.core.planner.model import Unknown
from gpuserved.core.profile import Profile
from gpuserved.fleet.desired import Known
from gpuserved.models.facts import ModelReader

log = logging.getLogger(__name__)


class Knowledge:
    """Of one host. Reads files: call it off the event loop."""

    def __init__(self, state: Path) -> None:
        self._models = ModelReader()
        self._state = state

    def of(self, profile: Profile) -> Known:
        """What to plan this profile with; a damaged model is one that nobody knows, and its engine will say so."""
        try:
            facts = self._models.facts(profile)
        except Invalid as error:
            return Known(Unknown("unknown_architecture", error.message, error.hint or ""))
        return Known(facts)
