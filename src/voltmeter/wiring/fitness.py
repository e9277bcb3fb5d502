"""Models that cannot be wired as they are, each refused with its mend."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from voltmeter.errors import WiringError, counted


def refuse_no_model(model: object) -> None:
    """Raises WiringError for what is no module: a name or a function, say."""
    if not isinstance(model, nn.Module):
        raise WiringError(
            f"a torch.nn.Module is wired, and a {type(model).__name__} was given",
            mend="load the model first, or put the function into a module's forward",
        )


def refuse_unfit(model: nn.Module) -> None:
    """Raises WiringError for a model in training mode, without weights, with NaN, compiled, or recomputing itself."""
    for check in (_training, _meta, _not_a_number, _checkpointed, _compiled):
        check(model)


def _modules(model: nn.Module, which: Callable[[nn.Module], bool]) -> list[str]:
    return [path or "the model itself" for path, module in model.named_modules() if which(module)]


def _tensors(model: nn.Module, which: Callable[[Tensor], bool]) -> list[str]:
    return [name for name, t in (*model.named_parameters(), *model.named_buffers()) if which(t)]


def _training(model: nn.Module) -> None:
    found = _modules(model, lambda module: module.training)
    if found:
        raise WiringError(
            "the model is in training mode, in which dropout and batch statistics change from run to run",
            [f"modules in training mode: {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}"],
            "call model.eval() first",
        )


def _meta(model: nn.Module) -> None:
    found = _tensors(model, lambda t: t.is_meta)
    if found:
        raise WiringError("the model has no weights yet (they are on the meta device)", found, "load its weights first")


def _not_a_number(model: nn.Module) -> None:
    found = _tensors(model, _holds_nan)
    if found:
        raise WiringError(
            f"{len(found)} of the model's tensors {'holds' if len(found) == 1 else 'hold'} NaN",
            found,
            "load weights that are finite",
        )


def _holds_nan(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if tensor.element_size() == 1:  # 8-bit floats can be stored, but not added up
        tensor = tensor.float()
    # A sum keeps NaN, and costs no copy; but infinities of both signs make one.
    return bool(torch.isnan(tensor.sum())) and bool(torch.isnan(tensor).any())


def _checkpointed(model: nn.Module) -> None:
    found = _modules(model, lambda module: getattr(module, "gradient_checkpointing", False) is True)
    if found:
        raise WiringError(
            "gradient checkpointing is on, which runs layers twice",
            found,
            "call model.gradient_checkpointing_disable()",
        )


def _compiled(model: nn.Module) -> None:
    found = _modules(model, _is_compiled)
    if found:
        raise WiringError(
            f"{counted(len(found), 'module is', 'modules are')} compiled, "
            "and what happens inside compiled code cannot be seen",
            found,
            "wire the model before it is compiled, or put each compiled module's _orig_mod back in its place",
        )


def _is_compiled(module: nn.Module) -> bool:
    """By ``torch.compile(module)``, ``module.compile()`` or TorchScript."""
    wrapped = isinstance(getattr(module, "_orig_mod", None), nn.Module)
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return wrapped or in_place or isinstance(module, torch.jit.ScriptModule)
