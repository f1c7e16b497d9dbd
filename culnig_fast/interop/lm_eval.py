"""lm-evaluation-harness: its own model class for Hugging Face checkpoints, with neurons scaled in every call.

The harness finds models by name in a registry that is filled by importing them, so a name of ours is known only after
`register`; `culnig-fast lm-eval` is the harness's own command line with it known.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet

NAME = "culnig"
"""What the harness calls the model: `--model culnig`."""

_UNPICKLED_ELSEWHERE = ("autogptq", "gptqmodel", "gguf_file")
"""Options with which the harness loads weights in another way than safetensors."""


def harness_model(pretrained: Any, neurons: NeuronSet | str | Path, factor: float = 0.0, **options: Any) -> Any:
    """A model for lm-evaluation-harness with neurons suppressed, or scaled, until it is closed.

        with culnig_fast.harness_model("demo", "general.json", device="cpu") as model:
            lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])

    Args:
        pretrained: a checkpoint folder, a hub id, `demo`, or a loaded model, which `close` leaves as it was.
        neurons: a set or its file.
        factor: what the neurons' outputs are multiplied by: 0 suppresses, 2 enhances.
        options: of the harness's `HFLM`: device, dtype, batch_size, …

    Returns:
        an `lm_eval.models.huggingface.HFLM` that also has `close`, and is a context manager. Once closed it refuses
        to run, so that no result of the untouched model passes for one without the neurons.

    Raises:
        CulnigError: the harness is not installed, the set's file cannot be read or is of another model, the factor is
            no finite number, or the model's structure cannot be resolved.
    """
    return register()(pretrained=pretrained, neurons=neurons, factor=factor, **options)


@functools.cache
def register() -> type[Any]:
    """Make the name `culnig` known to the harness; returns the model's class. A second call changes nothing.

    Raises:
        CulnigError: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.api.registry import register_model
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise CulnigError(
            f"lm-evaluation-harness cannot be imported ({error}); pip install 'culnig_fast[lm-eval]'"
        ) from error
    made = type("NeuronLM", (_Scaled, HFLM), {"__doc__": _Scaled.__doc__, "__module__": __name__})
    register_model(NAME)(made)
    return made


class _Scaled:
    """What is put before the harness's class: neurons scaled from the model's making until `close`."""

    def __init__(
        self,
        pretrained: Any,
        neurons: NeuronSet | str | Path | None = None,
        factor: float = 0.0,
        **options: Any,
    ) -> None:
        from culnig_fast.masking import scaled
        from culnig_fast.models import EMBEDDED, embedded_folder

        self.neurons, self.neurons_file = _neurons(neurons), neurons if isinstance(neurons, (str, Path)) else None
        self.factor = _factor(factor)
        if isinstance(pretrained, str):
            pretrained = str(embedded_folder("model")) if pretrained == EMBEDDED else pretrained
            if not any(options.get(name) for name in _UNPICKLED_ELSEWHERE):
                options.setdefault("use_safetensors", True)
        super().__init__(pretrained=pretrained, **options)  # type: ignore[call-arg]
        hooks = contextlib.ExitStack()
        hooks.enter_context(scaled(self.model, self.neurons, self.factor))  # type: ignore[attr-defined]
        # Also when nobody closes it: a model that was given outlives this object.
        self._undo = weakref.finalize(self, hooks.close)

    def close(self) -> None:
        """Give the neurons back to the model; a second call does nothing."""
        self._undo()

    def __enter__(self) -> Any:
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def get_model_info(self) -> dict[str, Any]:
        """The harness's facts about the model, for its results, and what was done to the neurons."""
        info: dict[str, Any] = super().get_model_info()  # type: ignore[misc]
        file = None if self.neurons_file is None else str(self.neurons_file)
        return {**info, "neurons": file, "neurons_count": len(self.neurons), "neurons_factor": self.factor}

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        return super()._model_call(*args, **kwargs)  # type: ignore[misc]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._check_open()
        return super()._model_generate(*args, **kwargs)  # type: ignore[misc]

    def _check_open(self) -> None:
        if not self._undo.alive:
            raise CulnigError("this model was closed, so its neurons are back; make another with harness_model")


def _neurons(given: NeuronSet | str | Path | None) -> NeuronSet:
    if given is None:
        raise CulnigError("no neuron set was given; add neurons=SET.json, or use the model hf for the untouched one")
    return given if isinstance(given, NeuronSet) else NeuronSet.load(given)


def _factor(given: Any) -> float:
    """The factor as a number; the harness's command line gives text for what it cannot read as one."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise CulnigError(f"factor is {given!r:.60}; give a finite number: 0 suppresses, 2 enhances")
    return float(given)
