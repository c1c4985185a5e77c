"""The proximal term lam/2 · ‖w − w_prev‖² that keeps a network near a snapshot of its weights.

`projection_grad_` computes its gradient; `Projection` keeps the snapshot and hooks the gradient into an
optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ccp_fast._checks import check_one_of
from ccp_fast.ops.projection_grad import projection_grad_ as add_

__all__ = ["Projection", "projection_grad_"]

_PREFIX = "previous."  # of the snapshot's names in a state dict


@torch.no_grad()
def projection_grad_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    lam: float,
    grads: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Add the proximal gradient in one pass: grads[i] += lam·(params[i] − previous[i]).

    Args:
        params: any shapes, any mix of float32, float64, bfloat16 and float16, of devices and of memory
            formats. Of a DTensor the local part is used, and the penalty is this rank's share of the sum.
        previous: like params, in dtypes of their own.
        lam: at least 0; at 0 nothing is read.
        grads: where to add, in dtypes of their own; None: the parameters' `.grad`. A gradient that is None is
            skipped, none is created.

    Returns:
        The penalty lam/2 · Σ‖params[i] − previous[i]‖² over all parameters, with or without a gradient: 0-d,
        on the first one's device (without a synchronisation), float64 if a parameter is, else float32. It is
        summed in float64 in a fixed order, so it has the same bits for any number of threads.

    Raises:
        ValueError: lists of different lengths; lam negative, infinite or NaN; a tensor that does not fit
            params[i] in shape or device, or is not of these dtypes, named with its index. Nothing has been
            written then, unless the parameters are on several devices.
        RuntimeError: a gradient whose elements share memory.
    """
    _check_lam(lam)
    if grads is None:
        grads = [p.grad for p in params]
    if not len(params) == len(previous) == len(grads):
        raise ValueError(
            "params, previous, grads: expected equal lengths, "
            f"got {len(params)}, {len(previous)}, {len(grads)}"
        )
    if not params:
        return torch.zeros(())
    if lam == 0:
        is_double = any(p.dtype == torch.float64 for p in params)
        return torch.zeros((), dtype=torch.float64 if is_double else torch.float32, device=params[0].device)
    return add_(params, previous, lam, grads)


class Projection:
    """The proximal term lam/2 · ‖w − w_prev‖² on a model's trainable parameters, as a hook of its optimizer.

    coupled: g += lam·(w − w_prev) before the optimizer sees g, as in CCP's reference code: projection, then
        the optimizer's own weight decay and update. With `attach` the term joins behind your clipping. To
        clip after it, do not `attach` but call `step_()` between `backward()` and the clipping.
    decoupled: w −= lr·lam·(w − w_prev) after the optimizer's step, with the lr of each parameter's group. An
        adaptive optimizer does not rescale the pull then, like AdamW's weight decay.

    w_prev starts as the weights at construction. It is the only memory kept: one copy, in the parameters'
    dtypes, sharded as they are. Parameters outside the attached optimizers are left alone.

    Under `torch.amp.GradScaler` the pull is that of unscaled training: `scaler.step` unscales before the hook
    runs, and where an optimizer unscales inside its own kernel (fused Adam) the hook scales its term to
    match. With `step_()` by hand, call `scaler.unscale_(optimizer)` first. A closure given to
    `optimizer.step` computes its gradients behind the coupled hook, which raises RuntimeError: call `step_()`
    inside the closure instead.

    Args:
        model_or_params: a module (its parameters that require grad), or parameters, or (name, parameter)
            pairs.
        lam: strength, at least 0; can be set at any time. At 0 a step does no work.
        mode: "coupled" or "decoupled".

    Source: the regularised sub-problem of arXiv 2209.09060 and 1907.07585.
    """

    def __init__(
        self,
        model_or_params: torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        lam: float,
        mode: Literal["coupled", "decoupled"] = "coupled",
    ) -> None:
        """Take the first snapshot."""
        check_one_of("mode", mode, ("coupled", "decoupled"))
        self.mode = mode
        self.lam = lam
        self._params = _named(model_or_params)
        if not self._params:
            raise ValueError("model_or_params: expected at least one parameter that requires grad, got none")
        self._names = {id(p): name for name, p in self._params.items()}
        with torch.no_grad():
            self._previous = {name: p.detach().clone() for name, p in self._params.items()}
        self._handles: dict[Optimizer, RemovableHandle] = {}
        self._penalties: dict[Optimizer | None, Tensor] = {}

    @property
    def lam(self) -> float:
        """Strength of the pull towards w_prev."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        self._lam = _check_lam(value)

    @property
    def penalty(self) -> Tensor:
        """lam/2 · ‖w − w_prev‖² of the last step: where the pull was computed, before it took effect.

        A 0-d tensor on the parameters' device; 0 before the first step. With several optimizers, their sum.
        """
        if not self._penalties:
            return torch.zeros((), device=next(iter(self._previous.values())).device)
        first, *rest = self._penalties.values()
        return sum((p.to(first.device) for p in rest), first)

    def attach(self, optimizer: Optimizer) -> Projection:
        """Take part in every `optimizer.step()` from now on, for the parameters the two share; returns self.

        Raises:
            ValueError: they share none, or the optimizer is attached already.
        """
        if optimizer in self._handles:
            raise ValueError("optimizer: expected one that is not attached yet")
        if not any(id(p) in self._names for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer: expected one that holds parameters of this projection, got none of them"
            )
        if self.mode == "coupled":
            self._handles[optimizer] = optimizer.register_step_pre_hook(self._before_step)
        else:
            self._handles[optimizer] = optimizer.register_step_post_hook(self._after_step)
        self._penalties.pop(None, None)
        return self

    def detach(self) -> None:
        """Leave all optimizers."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._penalties.clear()

    @torch.no_grad()
    def snapshot_(self, weights: Mapping[str, Tensor] | Sequence[Tensor] | None = None) -> None:
        """w_prev ← the current weights, or those given.

        Given by name, as a model's state dict (other names are ignored), or in the order of the parameters.
        Raises ValueError for a missing weight or another shape; w_prev is unchanged then.
        """
        if weights is None:
            new = {name: p.detach() for name, p in self._params.items()}
        elif isinstance(weights, Mapping):
            new = {name: weights[name] for name in self._params if name in weights}
        else:
            if len(weights) != len(self._params):
                raise ValueError(f"weights: expected {len(self._params)} tensors, got {len(weights)}")
            new = dict(zip(self._params, weights, strict=True))
        self._set_previous("weights", new)

    def step_(self, lr: float | None = None) -> Tensor:
        """The term by hand, for all parameters; returns the penalty.

        coupled: adds to the gradients, call it between `backward()` and `optimizer.step()`.
        decoupled: moves the weights, call it after `optimizer.step()` with that step's learning rate.
        """
        if (lr is None) != (self.mode == "coupled"):
            expected = "None, gradients are not scaled by it" if self.mode == "coupled" else "a learning rate"
            raise ValueError(f'lr: expected {expected} in mode "{self.mode}", got {lr}')
        names = list(self._params)
        self._penalties = {None: self._pull(names) if lr is None else self._move(names, lr)}
        return self._penalties[None]

    def state_dict(self) -> dict[str, Any]:
        """w_prev as "previous.<name>", "lam" and "mode": a flat dict of tensors, a float and a string.

        As with a module, the tensors are the live ones; copy them if you take a snapshot before you save.
        """
        state: dict[str, Any] = {_PREFIX + name: before for name, before in self._previous.items()}
        return state | {"lam": self.lam, "mode": self.mode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: another mode, or other names or shapes; nothing has changed then.
        """
        if state.get("mode") != self.mode:
            raise ValueError(f'state: expected mode "{self.mode}", got {state.get("mode")!r}')
        previous = {key.removeprefix(_PREFIX): v for key, v in state.items() if key.startswith(_PREFIX)}
        unexpected = sorted(previous.keys() - self._params.keys())
        if unexpected:
            raise ValueError(f"state: {unexpected[0]} is no parameter of this projection")
        lam = _check_lam(state.get("lam"))
        with torch.no_grad():
            self._set_previous("state", previous)
        self._lam = lam

    def _set_previous(self, argument: str, new: Mapping[str, Tensor]) -> None:
        for name, before in self._previous.items():
            if name not in new:
                raise ValueError(f"{argument}: expected the parameter {name}, which is missing")
            if new[name].shape != before.shape:
                raise ValueError(
                    f"{argument}: expected {name} of shape {list(before.shape)}, got {list(new[name].shape)}"
                )
        for name, before in self._previous.items():
            before.copy_(new[name])

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # args[0] is the optimizer.
        if any(a is not None for a in args[1:]) or kwargs.get("closure") is not None:
            raise RuntimeError(
                "Projection: a closure computes its gradients after the coupled hook; "
                "detach() and call step_() inside the closure, after backward()"
            )
        # Set by GradScaler for optimizers that unscale by themselves: the gradients still carry this factor.
        scale = float(getattr(optimizer, "grad_scale", None) or 1.0)
        names = [name for group in optimizer.param_groups for name in self._names_in(group)]
        self._penalties[optimizer] = self._pull(names, scale)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(optimizer, "found_inf", None):  # GradScaler made a fused optimizer skip this step
            return
        penalties = [
            self._move(self._names_in(group), float(group["lr"])) for group in optimizer.param_groups
        ]
        self._penalties[optimizer] = sum((p.to(penalties[0].device) for p in penalties[1:]), penalties[0])

    def _names_in(self, group: dict[str, Any]) -> list[str]:
        return [self._names[id(p)] for p in group["params"] if id(p) in self._names]

    def _pull(self, names: Sequence[str], scale: float = 1.0) -> Tensor:
        """Gradients of lam · scale/2 · ‖w − w_prev‖² into `.grad`; the penalty itself is not scaled."""
        penalty = projection_grad_(*self._pairs(names), self.lam * scale)
        return penalty if scale == 1.0 else penalty / scale

    @torch.no_grad()
    def _move(self, names: Sequence[str], lr: float) -> Tensor:
        """w −= lr·lam·(w − w_prev): the same kernel, with the weights for gradients and −lr·lam for lam."""
        params, previous = self._pairs(names)
        if not params or self.lam == 0 or lr == 0:
            return projection_grad_(params, previous, self.lam, [None] * len(params))
        return add_(params, previous, -lr * self.lam, params) / -lr

    def _pairs(self, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        return [self._params[name] for name in names], [self._previous[name] for name in names]


def _named(
    model_or_params: torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
) -> dict[str, Tensor]:
    if isinstance(model_or_params, torch.nn.Module):
        return {name: p for name, p in model_or_params.named_parameters() if p.requires_grad}
    params: dict[str, Tensor] = {}
    for i, item in enumerate(model_or_params):
        name, param = item if isinstance(item, tuple) else (str(i), item)
        if not isinstance(param, Tensor):
            raise ValueError(
                "model_or_params: expected a module, parameters or (name, parameter), "
                f"got {type(param).__name__}"
            )
        if param.requires_grad:
            params[name] = param
    return params


def _check_lam(lam: Any) -> float:
    if not isinstance(lam, (int, float)) or not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam: expected a finite number of at least 0, got {lam!r}")
    return float(lam)
