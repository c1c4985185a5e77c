"""Optimizer steps that touch some rows of a parameter and leave the others alone, momentum and decay included.

From the loss to the step the optimizer holds a small parameter in place of the whole one: the sampled rows, with the
rows of every state that has the parameter's shape. Behind the step they are written back. Any optimizer works whose
arithmetic is by element: SGD, Adam, AdamW, RAdam, RMSprop, Adagrad. What it keeps per parameter, such as the number of
steps that Adam's bias correction reads, stays per parameter: a row seen for the first time at step 1000 is corrected
as of step 1000, which makes its first moments count for less than in a run of its own, never for more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class RowSparse:
    """The rows of one parameter that the next step of an optimizer is about."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._optimizer: Optimizer | None = None
        self._rows: Tensor | None = None
        self._sample: nn.Parameter | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Once; ValueError if the optimizer does not hold the parameter."""
        if self._optimizer is not None:
            raise RuntimeError("attach: expected one call, an optimizer is attached already")
        if not any(p is self._parameter for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer: expected the proxies among its parameters, got none of them")
        optimizer.register_step_post_hook(self._write_back)
        self._optimizer = optimizer

    @property
    def pending(self) -> nn.Parameter | None:
        """The sample whose step is yet to come."""
        return self._sample

    def sample(self, rows: Tensor) -> nn.Parameter:
        """Leaf [len(rows), ...] to compute a loss with, whose gradient the next step uses.

        Raises RuntimeError without an optimizer, and if the gradient of another sample waits for its step: gradients
        of two samples are not added up.
        """
        if self._optimizer is None:
            raise RuntimeError("sample_rate: expected `attach(optimizer)` before the first loss, got none")
        if self._sample is not None:
            if self._sample.grad is not None:
                raise RuntimeError(
                    "sample_rate: expected an optimizer step, or zero_grad, between two losses with sampled classes"
                )
            self._put(self._parameter)  # the step was left out, as GradScaler does after an overflow
        sample = nn.Parameter(self._parameter.detach()[rows])
        state = self._optimizer.state.get(self._parameter, {})
        self._put(sample)
        if state:
            self._optimizer.state[sample] = {
                name: value[rows] if self._has_rows(value) else value for name, value in state.items()
            }
        self._rows, self._sample = rows, sample
        return sample

    def _put(self, now: nn.Parameter) -> None:
        """Into the optimizer, in place of the other of the two."""
        assert self._optimizer is not None
        before = self._sample if now is self._parameter else self._parameter
        for group in self._optimizer.param_groups:
            group["params"] = [now if p is before else p for p in group["params"]]
        if now is self._parameter and self._sample is not None:
            self._optimizer.state.pop(self._sample, None)
            self._rows = self._sample = None

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self._parameter.shape

    @torch.no_grad()
    def _write_back(self, optimizer: Optimizer, *_: Any) -> None:
        if self._sample is None or self._rows is None:
            return
        rows, sample = self._rows, self._sample
        self._parameter[rows] = sample
        whole = optimizer.state[self._parameter]
        for name, value in optimizer.state.get(sample, {}).items():
            if isinstance(value, Tensor) and value.shape == sample.shape:
                if whole.get(name) is None:
                    whole[name] = torch.zeros_like(self._parameter, dtype=value.dtype)
                whole[name][rows] = value
            else:
                whole[name] = value
        if not whole:  # plain SGD keeps nothing
            del optimizer.state[self._parameter]
        self._put(self._parameter)
