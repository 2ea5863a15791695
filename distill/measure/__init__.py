"""What a run will take: a few real steps of each stage, and small probes, in a folder of their own.

Everything is done as a run does it, with the same parts, but for the number of steps: a stage's
barely trained students are exported to a temporary folder, and later stages learn from them, for a
step takes as long with any weights. The run's own folder is not touched.
"""

from distill.measure.run import MeasuredStage, Measurement, measure

__all__ = ["MeasuredStage", "Measurement", "measure"]
