"""What a target's cost model has learnt, kept between runs: a new model on a known target starts with an opinion.

The features of measured candidates and their times, by kernel, beside the trained trees. A file that cannot be read,
or that another version of XGBoost wrote, is as good as none: the model then learns from the records of this run alone.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup

from deploy import files
from deploy.tuning.store import cost_model_path

MOST = 2000  # candidates that are kept, those of the kernels seen last
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)  # XGBoost's errors are ValueErrors


@contextlib.contextmanager
def kept(model: XGBModel, folder: Path | None) -> Iterator[None]:
    """Let `model` begin with what runs with the log in `folder` learnt before, and keep what it knows in the end."""
    path = None if folder is None else cost_model_path(folder)
    if path is not None:
        load(model, path)
    size = model.data_size
    try:
        yield
    finally:
        if path is not None and model.data_size > size:
            save(model, path)


def save(model: XGBModel, path: Path) -> None:
    """Keep what `model` knows in `path`, if it was ever trained. Raises ToolError where that cannot be written."""
    if model.booster is None:
        return
    groups: list[FeatureGroup] = []
    count = 0
    for group in reversed(model.data.values()):
        count += len(group.costs)
        if groups and count > MOST:
            break
        groups.append(group)
    features = [feature for group in reversed(groups) for feature in group.features]
    stored = io.BytesIO()
    np.savez_compressed(
        stored,
        trees=np.frombuffer(bytes(model.booster.save_raw("ubj")), np.uint8),
        kernels=np.array([group.group_hash for group in reversed(groups)]),
        candidates=np.array([len(group.costs) for group in reversed(groups)]),
        costs=np.concatenate([group.costs for group in reversed(groups)]),
        rows=np.array([len(feature) for feature in features]),
        features=np.concatenate(features),
    )
    files.write_bytes(path, stored.getvalue())


def load(model: XGBModel, path: Path) -> None:
    """Give `model` what an earlier one knew, if `path` holds that."""
    import xgboost

    with contextlib.suppress(*_UNREADABLE), np.load(path, allow_pickle=False) as stored:
        booster = xgboost.Booster()
        booster.load_model(bytearray(stored["trees"].tobytes()))
        features = np.split(stored["features"], np.cumsum(stored["rows"])[:-1])
        data: OrderedDict[str, FeatureGroup] = OrderedDict()
        start = 0
        for kernel, count in zip(stored["kernels"].tolist(), stored["candidates"].tolist(), strict=True):
            end = start + count
            data[kernel] = FeatureGroup(kernel, features[start:end], stored["costs"][start:end])
            start = end
        if start != len(features) or start != len(stored["costs"]):
            raise ValueError("counts that do not fit")
        model.data, model.data_size, model.last_train_size, model.booster = data, start, start, booster
