"""Which candidates of one kernel to measure next."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target as TvmTarget
from tvm_ffi import structural_hash

from deploy.host import core_count
from deploy.kernels.machine import Machine
from deploy.tuning.space import context, generic_space, has_list, listed_schedules
from deploy.tuning.task import Task

WARM_UP = 32  # measured candidates before the cost model's opinion is asked
EMPTY_ROUNDS = 3  # rounds without anything new before a generated space counts as used up
MOST_TRIALS = 1 << 20


def cost_model() -> ms.cost_model.XGBModel:
    """MetaSchedule's XGBoost model; trained from scratch every time, it has to be cheap to train.

    With one thread it takes 0.05 s; more threads wait for each other, tenfold as long where the cores are busy.
    """
    return ms.cost_model.XGBModel(
        num_warmup_samples=WARM_UP, early_stopping_rounds=5, verbose_eval=1 << 20, num_tuning_cores=1
    )


def result_of(seconds: tuple[float, ...], reason: str) -> ms.runner.RunnerResult:
    """A measurement as MetaSchedule wants it."""
    return ms.runner.RunnerResult(list(seconds), None) if seconds else ms.runner.RunnerResult(None, reason)


@dataclass(frozen=True)
class Setting:
    """What the explorers of one run share: the processor, the cost model, the records, and how many at a time."""

    target: TvmTarget
    machine: Machine
    model: ms.cost_model.XGBModel
    records: ms.database.Database
    batch: int


class Explorer(Protocol):
    """Proposes candidates of one kernel, none twice, and learns from what became of them."""

    context: ms.TuneContext

    def propose(self, count: int) -> list[ms.MeasureCandidate]:
        """Up to `count` new candidates; none where the space is used up."""

    def learn(self, candidates: list[ms.MeasureCandidate], results: list[ms.runner.RunnerResult]) -> None:
        """Take note of the candidates that were measured."""


@dataclass
class _Choice:
    """A schedule of a list, and what the cost model sees of it, worked out once."""

    candidate: ms.MeasureCandidate
    features: npt.NDArray[np.float32] | None = None


class Listed:
    """A kernel whose schedules are all known. Half follow the cost model, the others the list and chance."""

    def __init__(self, task: Task, setting: Setting, known: set[int], seed: int) -> None:
        start = Schedule(task.mod)
        self.context = context(start, setting.target, None, core_count(), seed)
        self._model = setting.model
        self._random = random.Random(seed)
        info = ms.arg_info.ArgInfo.from_entry_func(task.mod, remove_preproc=True)
        fresh = {structural_hash(sch.mod): sch for sch in listed_schedules(start, setting.machine)}
        self._left = [_Choice(ms.MeasureCandidate(sch, info)) for key, sch in fresh.items() if key not in known]

    def propose(self, count: int) -> list[ms.MeasureCandidate]:
        """The most promising schedules that are left."""
        chosen = self._promising(count - count // 2)
        while self._left and len(chosen) < count:
            first = len(chosen) % 2 == 0
            chosen.append(self._left.pop(0 if first else self._random.randrange(len(self._left))))
        return [choice.candidate for choice in chosen]

    def _promising(self, count: int) -> list[_Choice]:
        if self._model.booster is None or self._model.data_size < WARM_UP or not self._left:
            return []
        scores = self._model._predict(self._features())  # `predict` would work them out in every round
        best = sorted(range(len(self._left)), key=lambda index: -scores[index])[:count]
        chosen = [self._left[index] for index in best]
        self._left = [choice for index, choice in enumerate(self._left) if index not in set(best)]
        return chosen

    def _features(self) -> list[npt.NDArray[np.float32]]:
        if self._left[0].features is None:
            extracted = self._model.extractor.extract_from(self.context, [choice.candidate for choice in self._left])
            for choice, features in zip(self._left, extracted, strict=True):
                choice.features = features.numpy().astype("float32")
        return [choice.features for choice in self._left if choice.features is not None]

    def learn(self, candidates: list[ms.MeasureCandidate], results: list[ms.runner.RunnerResult]) -> None:
        """Train the cost model."""
        self._model.update(self.context, candidates, results)


class Evolved:
    """Any other kernel: MetaSchedule's evolutionary search over TVM's own space."""

    def __init__(self, task: Task, setting: Setting, known: set[int], seed: int) -> None:
        self.context = context(Schedule(task.mod), setting.target, generic_space(setting.machine), core_count(), seed)
        self._model, self._known = setting.model, set(known)
        self._proposed: list[ms.MeasureCandidate] = []
        self.context.pre_tuning(MOST_TRIALS, setting.batch, database=setting.records, cost_model=setting.model)

    def propose(self, count: int) -> list[ms.MeasureCandidate]:
        """The next generation's best, without what is on record."""
        for _ in range(EMPTY_ROUNDS):
            self._proposed = list(self.context.generate_measure_candidates() or [])
            fresh = {structural_hash(c.sch.mod): c for c in self._proposed}
            chosen = [(key, c) for key, c in fresh.items() if key not in self._known][:count]
            if chosen or not self._proposed:
                self._known |= {key for key, _ in chosen}
                return [candidate for _, candidate in chosen]
            self._notify([])
        return []

    def _notify(self, results: list[ms.runner.RunnerResult]) -> None:
        """Let the strategy go on to its next generation: it wants an answer of the length that it asked for."""
        missing = [ms.runner.RunnerResult(None, "not measured")] * (len(self._proposed) - len(results))
        self.context.notify_runner_results(self._proposed, [*results, *missing])
        self._proposed = []

    def learn(self, candidates: list[ms.MeasureCandidate], results: list[ms.runner.RunnerResult]) -> None:
        """Train the cost model and go on to the next generation."""
        self._model.update(self.context, candidates, results)
        self._notify(results)


def explorer_for(task: Task, setting: Setting, known: set[int], seed: int) -> Explorer:
    """How the space of `task` is searched, without the candidates whose modules have the hashes in `known`."""
    kind = Listed if has_list(task.func, setting.machine) else Evolved
    return kind(task, setting, known, seed)
