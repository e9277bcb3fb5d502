"""Models with known wiring: programs in RASP, compiled, and the truth about their circuits, certified.

from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.truth import truth

certificate = truth(compiled(program("reverse")), fill="resample")
"""

from __future__ import annotations

import torch

from voltmeter.wiring.load import LoadedModel, register_kind


def _load(spec: str, dtype: torch.dtype | None) -> LoadedModel:
    from voltmeter.rasp.load import load_rasp  # the compiler is imported when a program is asked for

    return load_rasp(spec, dtype)


register_kind("rasp", _load)
