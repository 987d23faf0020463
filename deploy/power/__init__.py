"""Meters: energy of a stretch of time, measured by a sensor or an instrument, or estimated from a declared power.

with open_meter("auto", active_w=None) as meter:
    idle = meter.idle(1.0)
    meter.start()
    meter.mark("begin")
    ...                      # run the model 1000 times
    meter.mark("end")
    reading = meter.stop()
energy = per_inference(reading, 1000, idle)
"""

from deploy.power.meters import KINDS, is_external, meter_for, open_meter
from deploy.power.reading import EnergyReading, How, Meter, Sample, joined, per_inference
from deploy.power.trace import MeterFacts, Trace, Window

__all__ = [
    "KINDS",
    "EnergyReading",
    "How",
    "Meter",
    "MeterFacts",
    "Sample",
    "Trace",
    "Window",
    "is_external",
    "joined",
    "meter_for",
    "open_meter",
    "per_inference",
]
