"""Meters: energy of a stretch of time, measured by RAPL or a hwmon sensor, or estimated from a declared power.

    with open_meter("auto", active_w=None) as meter:
        idle = meter.idle(1.0)
        meter.start()
        ...                      # run the model 1000 times
        reading = meter.stop()
    energy = per_inference(reading, 1000, idle)
"""

from deploy.power.meters import KINDS, open_meter
from deploy.power.reading import EnergyReading, How, Meter, Sample, per_inference

__all__ = ["KINDS", "EnergyReading", "How", "Meter", "Sample", "open_meter", "per_inference"]
