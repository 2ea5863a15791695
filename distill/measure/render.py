"""A measurement as a person reads it on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.measure.memory import KEEP_FREE, MOST
from distill.measure.probes import FEW_SCENES, MORE_SCENES, looks
from distill.measure.run import MeasuredStage, Measurement, lowering
from distill.recipe.build import join
from distill.recipe.render import WIDTH_WITHOUT_TERMINAL

_COLUMNS = (
    "stage",
    "a step",
    "images/s",
    "waits for data",
    "peak memory",
    "largest that fits",
    "calibration",
    "steps",
    "loading, saving",
    "whole stage",
)


def print_measurement(measured: Measurement, console: Console | None = None) -> None:
    """Print what each stage and the whole run take."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    console.print()
    console.print(Text(f"measured on {measured.device}:"))
    console.print(_table(measured))
    for stage in measured.stages:
        for line in _remarks(measured, stage):
            console.print(Text(line), soft_wrap=True)
    validate = measured.recipe.validate
    if measured.probes is not None and validate is not None:
        how = "measured"
        if validate.train + validate.test > 2 * MORE_SCENES:
            how = f"worked out from {FEW_SCENES} and {MORE_SCENES} scenes of each split"
        text = f"probes, pictures and report: about {duration(measured.probes)} ({how})"
        console.print(Text(text), soft_wrap=True)
    parts = f"{duration(measured.starting)} of it to start"
    console.print(
        Text(f"a whole run on this device alone: about {duration(measured.seconds)} ({parts})"),
        soft_wrap=True,
    )


def _table(measured: Measurement) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right", overflow="fold")
    for stage in measured.stages:
        table.add_row(*(Text(cell) for cell in _row(measured, stage)))
    return table


def _row(measured: Measurement, stage: MeasuredStage) -> tuple[str, ...]:
    parts = stage.parts
    seconds = stage.step.seconds
    return (
        stage.name,
        f"{seconds:.3g} s",
        f"{stage.batch_size / seconds:,.3g}"
        if stage.batch_size < 1000 * seconds
        else f"{stage.batch_size / seconds:,.0f}",
        f"{stage.step.data_wait:.0%}",
        _bytes(stage.memory),
        _largest(measured, stage),
        duration(parts["calibration"] + parts["scaling"]),
        duration(parts["steps"]),
        duration(parts["loading"] + parts["saving"] + parts["export"]),
        duration(stage.seconds),
    )


def _largest(measured: Measurement, stage: MeasuredStage) -> str:
    if stage.largest is None:
        return "unknown"
    sign = "at least " if stage.largest == MOST else "" if stage.tried else "about "
    return f"{_setting(measured, stage)} {sign}{stage.largest:,}"


def _setting(measured: Measurement, stage: MeasuredStage) -> str:
    micro = measured.recipe.stages[stage.name].train.micro_batch
    return "batch_size" if micro is None else "micro_batch"


def _remarks(measured: Measurement, stage: MeasuredStage) -> list[str]:
    """How the largest batch was found, what to do where the recipe's own does not fit, and what its
    probes take."""
    path, lines = join("stages", stage.name), []
    if not stage.fits:
        setting = _setting(measured, stage)
        ways = [f"set {path}.train.micro_batch to {stage.largest} (measured so)"]
        ways += lowering(measured.recipe, stage.name)
        what = f"{stage.at_once} images at once do not fit"
        lines.append(f"{path}.train.{setting}: {what}; {', or '.join(ways)}")
    if stage.line is not None and stage.limit is not None:
        lines.append(
            f"{stage.name}: the largest is worked out, not tried: {_bytes(stage.line.fixed)} and "
            f"{_bytes(stage.line.per_image)} for each image, of {_bytes(stage.limit)} that this "
            f"process can have ({KEEP_FREE:.0%} kept free; loaders not counted)"
        )
    if "probes" in stage.parts:
        times = looks(measured.recipe, stage.name)
        each = duration(stage.parts["probes"] / times)
        lines.append(f"{stage.name}: probes while it trains, {times} x {each} (measured)")
    return lines


def _bytes(count: float | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.4 s, 95 s, 12 min, 3 h 20 min, 4 days 3 h."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
