"""Candidates called in an emulator, which counts their instructions: exactly, so once is enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from deploy import shell
from deploy.device.qemu import QemuDevice, emulator_command
from deploy.errors import ToolError
from deploy.firmware import candidates, harness
from deploy.firmware.link import source_path
from deploy.target import Target
from deploy.tuning.firmware_image import IMAGE, Entry, Image, Linker, Source
from deploy.tuning.firmware_task import Result

START_S = 10.0  # that an image may run, and as much longer for each candidate
PER_CANDIDATE_S = 0.5


@dataclass
class Emulator:
    """Calls the candidates of an image in QEMU, with semihosting."""

    linker: Linker
    start_s: float = START_S
    note: str = ""

    @staticmethod
    def sources(target: Target) -> tuple[Source, ...]:
        """The files of the program. Raises InputError: the target lacks something; ToolError: there is no emulator."""
        QemuDevice(target)  # says what the target lacks
        shell.require(emulator_command(target, IMAGE)[0])
        tick = harness.tick_flags(cast("float | None", target.device.get("tick")))
        names = (candidates.SOURCE, candidates.SHARED, *harness.sources(target.architecture))
        return tuple(Source(source_path(name), tuple(tick)) for name in names)

    def run(self, image: Image, entries: Sequence[Entry]) -> Iterator[Result]:
        """Run the image until each of its candidates was called once."""
        results: dict[int, Result] = {}
        while len(results) < len(entries):
            left = [number for number in range(len(entries)) if number not in results]
            answer, data, ended = self._answer(left)
            at = 0
            for number, outcome in answer.outcomes.items():
                size = entries[number].known.output_bytes
                counts = () if outcome.instructions is None else (outcome.instructions,)
                results[number] = Result(counts, data[at : at + size], outcome.reason)
                at += size
            stuck = [answer.lost] if answer.lost is not None else left if not answer.outcomes else []
            results |= {number: Result(reason=ended) for number in stuck}
        yield from (results[number] for number in range(len(entries)))

    def _answer(self, numbers: Sequence[int]) -> tuple[candidates.Answer, bytes, str]:
        """What the image answers about some of its candidates, their outputs, and how the emulator ended."""
        folder, target = self.linker.folder, self.linker.target
        limit_s = self.start_s + PER_CANDIDATE_S * len(numbers)
        (folder / "numbers").write_bytes(candidates.feed(numbers))
        for name in ("answer", "outputs"):
            (folder / name).write_bytes(b"")
        started = time.monotonic()
        try:
            done = shell.run(emulator_command(target, IMAGE), timeout_s=limit_s, cwd=folder, check=False)
            ended = f"the emulator ended with {shell.exit_words(done.returncode)}"
        except ToolError:
            if time.monotonic() - started < limit_s:
                raise
            ended = "ran for ever"
        try:
            answer = candidates.decode((folder / "answer").read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise ToolError(f"{target.name} cannot be tuned: {error}") from None
        return answer, (folder / "outputs").read_bytes(), ended
