"""All use cases of a server, for its skins."""

from __future__ import annotations

from dataclasses import dataclass

from tserve.services.describe import Describe
from tserve.services.health import Health
from tserve.services.history import History
from tserve.services.inference import Inference
from tserve.services.management import Management
from tserve.services.open_inference import OpenInference
from tserve.services.pages import Pages


@dataclass(frozen=True, slots=True)
class UseCases:
    management: Management
    describe: Describe
    inference: Inference
    pages: Pages
    history: History
    health: Health
    open_inference: OpenInference
