"""Curves of a run."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ccp_fast.training.metrics import Row
from ccp_fast.training.report.svg import ACCENT, FAINT, SECOND, THIRD, drawing


def retrieval_curve(rows: list[Row], subproblems: list[Row], best_step: int) -> Markup:
    """MAP@R over the steps: of training classes, and of new ones with the best step marked where some were held out."""
    with drawing("map-at-r") as d:
        ax = d.axes[0]
        _phases(ax, subproblems)
        ax.plot(_column(rows, "step"), _column(rows, "train_map_at_r"), color=FAINT, label="training classes")
        best = next(row["val_map_at_r"] for row in rows if row["step"] == best_step)
        if best is not None:
            ax.plot(
                _column(rows, "step"),
                _column(rows, "val_map_at_r"),
                color=ACCENT,
                label="validation classes, never trained on",
            )
            ax.plot([best_step], [best], "o", color=ACCENT, markersize=7)
            ax.annotate(f"{best:.3f}", (best_step, best), (0, 7), textcoords="offset points", ha="center")
        ax.margins(y=0.12)
        ax.set(title="MAP@R", xlabel="step")
        ax.legend(loc="lower right")
    return d.markup


def loss_curve(rows: list[Row], subproblems: list[Row]) -> Markup:
    """Mean loss between two evaluations."""
    with drawing("loss") as d:
        ax = d.axes[0]
        _phases(ax, subproblems)
        ax.plot(_column(rows, "step"), _column(rows, "loss"), color=SECOND)
        ax.set(title="Training loss", xlabel="step")
    return d.markup


def radius_curve(subproblems: list[Row]) -> Markup | None:
    """Covering radius of the proxies at the start of each sub-problem; None without re-initialisations."""
    chosen = [row for row in subproblems if row["radius_mean"] is not None]
    if not chosen:
        return None
    with drawing("radius") as d:
        ax = d.axes[0]
        before = [row for row in chosen if row["previous_radius_mean"] is not None]
        ax.plot(
            _column(chosen, "index"),
            _column(chosen, "radius_max"),
            ":",
            color=THIRD,
            label="widest class, new proxies",
        )
        ax.plot(
            _column(before, "index"),
            _column(before, "previous_radius_mean"),
            "o-",
            color=FAINT,
            markersize=4,
            label="mean, proxies as trained",
        )
        ax.plot(
            _column(chosen, "index"),
            _column(chosen, "radius_mean"),
            "o-",
            color=ACCENT,
            markersize=4,
            label="mean, chosen anew by k-center",
        )
        ax.set(title="Covering radius of a class by its proxies", xlabel="sub-problem", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="best")
    return d.markup


def spread_curve(rows: list[Row], subproblems: list[Row]) -> Markup | None:
    """Mean distance between two proxies of a class; None where there are none."""
    points = [(row["step"], row["proxy_spread"]) for row in rows if row["proxy_spread"] is not None]
    if not points:
        return None
    # A jump at each re-initialisation: its step has the value before it, then (sorted stably) the one after.
    starts = [(row["step"], row["spread"]) for row in subproblems]
    points = sorted(points + starts, key=lambda point: point[0])
    with drawing("spread") as d:
        ax = d.axes[0]
        ax.plot([step for step, _ in points], [value for _, value in points], color=THIRD)
        ax.plot(
            [s for s, _ in starts],
            [v for _, v in starts],
            "o",
            color=ACCENT,
            markersize=5,
            label="start of a sub-problem",
        )
        ax.set(title="Distance between the proxies of a class", xlabel="step")
        ax.margins(y=0.15)
        ax.set_ylim(bottom=0)
        ax.legend(loc="lower right")
    return d.markup


def _phases(ax: Axes, subproblems: list[Row]) -> None:
    """The warm start shaded, every later sub-problem marked where it begins."""
    if subproblems:
        ax.axvspan(0, subproblems[0]["step"], color=FAINT, alpha=0.1, linewidth=0)
        ax.annotate(
            "warm start",
            (subproblems[0]["step"] / 2, 0.99),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            color=FAINT,
            fontsize=9,
        )
    for row in subproblems[1:]:
        ax.axvline(row["step"], color=FAINT, alpha=0.35, linewidth=0.8, linestyle=(0, (1, 3)))


def _column(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]
