"""The training loop of every stage: batches in, optimiser steps, a line of progress, a state that survives.

Interrupted and resumed is the same as never interrupted, bit by bit on CPUs: the state holds weights, Adam moments,
random generators, the position in the data and the stage's own monitor.
"""

import json
import logging
import math
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor

from entropy_asr.errors import InputError
from entropy_asr.models.attention import kernels
from entropy_asr.models.flops import matmul_rate
from entropy_asr.signals import EXIT_INTERRUPTED, handle_stop
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine, write_tensors
from entropy_asr.training.state import RunningState
from entropy_asr.training.validation import Validation

log = logging.getLogger(__name__)


class Monitor(Protocol):
    """Looks at the module after optimiser steps and may end the run (pretraining's CKA).

    every: steps between two looks; a run that it ends takes at least as many.
    """

    every: int

    def after_step(self, step: int) -> bool: ...

    def counters(self) -> dict[str, Any]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None: ...


@dataclass
class Counters:
    """What a run has done so far; part of its state.

    flops: of the models, by their shapes, all processes together; wall_seconds, cpu_seconds: in its steps, of one process,
    without what other processes loaded for it.
    """

    step: int = 0
    position: list[int] = field(default_factory=lambda: [0, 0])
    audio_seconds: float = 0.0
    skipped: int = 0
    flops: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


class Trainer:
    """Runs an engine up to a step.

    Args:
        engine: what is trained; its module maps a batch to (mean loss of the micro-batch, dict of numbers to log), and has
            `flops(batch)`.
        batches: has `loader(position, workers)` and `largest()`; gives batches with `.audio_seconds`, `.padding`, `.position`
            and `.ids`, and a `.to` that makes what the module takes, with `.tensors`.
        state: where the running state lies.
        log_path: train.jsonl, a line a log step; the same goes to TensorBoard files in `tensorboard` beside it.
        monitor: may end the run early.
        validation: loss on held-out data, logged as `valid_loss`; None: there is no such data.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Any,
        state: RunningState,
        log_path: Path,
        stage: str,
        monitor: Monitor | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.engine, self.batches = engine, batches
        self.state, self.log_path, self.stage, self.monitor = state, log_path, stage, monitor
        self.validation = validation
        self.counters = Counters()
        self.interrupted = False
        self.started_at_step = 0
        self.saved_at = time.monotonic()
        self.matmul_rate = math.nan
        dtype = torch.bfloat16 if engine.config.precision == "bf16" else torch.float32
        self.attention = kernels(engine.module, engine.device, dtype)
        self.tensorboard: EventsWriter | None = None

    def resume(self, initial: Path | None = None) -> None:
        """Take up the newest running state, else `initial` (the state that an earlier part of the same run ended with).

        From here on a request to stop is noted, and answered after a step.
        """
        handle_stop(self._on_signal)
        saved = self.state.open()
        if saved or initial:
            self.restore(saved or initial)
        if saved:
            log.info("%s: resumed at step %d from %s", self.stage, self.counters.step, saved)
        if distributed.rank() == 0:
            self._cut_log(self.counters.step if saved else 0)
            self._open_tensorboard(fresh=not saved)

    def _open_tensorboard(self, fresh: bool) -> None:
        """Event files beside the log; those of another run are removed, steps that are run again are purged.

        The file's own writer, not `SummaryWriter`: that one writes from a thread which its `flush` does not wait for, so that a
        killed process, or one that leaves by `distributed.stop`, loses its last lines.
        """
        folder = self.log_path.with_name("tensorboard")
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.tensorboard = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self.tensorboard.write_event(Event(wall_time=time.time(), step=self.counters.step + 1, session_log=start))

    def _cut_log(self, step: int) -> None:
        """Drop the log's lines after a step, and a last line that a dying process left unfinished."""
        path = self._log_file()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept))

    def cost(self) -> dict[str, Any]:
        """Facts of the provenance: the attention, and what it took so far, over all attempts, for pretraining over all parts."""
        counters = self.counters
        return {
            "end_step": counters.step,
            "attention": self.attention,
            "audio_hours": counters.audio_seconds / 3600,
            "model_flops": counters.flops,
            "training_seconds": round(counters.wall_seconds, 1),
            "training_cpu_seconds": round(counters.cpu_seconds * distributed.world_size(), 1),
        }

    def restore(self, path: Path) -> None:
        counters, tensors = self.engine.load(path)
        self.counters = Counters(**counters["run"])
        if self.monitor is not None:
            self.monitor.restore(counters["monitor"], tensors)

    def save(self, path: Path) -> None:
        monitor = self.monitor
        counters = {"run": vars(self.counters), "monitor": monitor.counters() if monitor else {}}
        self.engine.save(path, counters, monitor.tensors() if monitor else {})

    def run(self) -> str:
        """Train to the schedule's last step, or until the monitor ends it; returns "last_step" or "monitor".

        Asked to stop (`entropy_asr.signals`), it saves and ends the process with EXIT_INTERRUPTED.

        Raises:
            RuntimeError: too many batches gave a loss that is not finite.
            InputError: the largest batch does not fit in the GPU's memory.
        """
        counters, config = self.counters, self.engine.config
        self._probe_memory()
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.matmul_rate = matmul_rate(self.engine.device, dtype)
        log.info(
            "%s: %d process(es) on %s, %s, attention by %s, matrix products at %.3g TFLOP/s",
            self.stage,
            distributed.world_size(),
            self.engine.device.type,
            config.precision,
            self.attention,
            self.matmul_rate / 1e12,
        )
        if distributed.agree(self.interrupted):
            log.warning("%s: asked to stop, no step taken since %d; exit %d", self.stage, counters.step, EXIT_INTERRUPTED)
            distributed.stop(EXIT_INTERRUPTED)
        with closing(self.batches.loader(counters.position, config.workers)) as loader:
            ended_by = self._steps(loader)
        if ended_by == "asked":
            log.warning("%s: asked to stop; saved at step %d, exit %d", self.stage, counters.step, EXIT_INTERRUPTED)
            distributed.stop(EXIT_INTERRUPTED)
        if distributed.rank() == 0:
            self.state.check_owner()  # the artifact comes next
            if self._log_file().exists():
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._log_file(), self.log_path)
        return ended_by

    def _steps(self, loader: Iterator[Any]) -> str:
        """The loop; returns why it ended: "last_step", "monitor", or "asked" to stop, with the state saved."""
        counters, schedule, config = self.counters, self.engine.schedule, self.engine.config
        self.started_at_step = counters.step
        save_every = self.save_every()
        window = _Window()
        while counters.step < schedule.steps:
            lr = self.engine.set_lr(counters.step)
            begun, cpu_begun = time.monotonic(), time.process_time()
            taken = self._optimiser_step(loader)
            counters.step += 1
            window.add(taken, time.monotonic() - begun)
            counters.wall_seconds += time.monotonic() - begun
            counters.cpu_seconds += time.process_time() - cpu_begun
            audio, flops = distributed.totals(sum(one.audio for one in taken), sum(one.flops for one in taken))
            counters.audio_seconds += audio
            counters.flops += flops
            window.audio += audio
            done = counters.step == schedule.steps
            ends = self.monitor is not None and self.monitor.after_step(counters.step) and not done
            valid = self.validation is not None and (counters.step % config.validate_every == 0 or done or ends)
            measured = {"valid_loss": round(self.validation.loss(), 6)} if valid else {}
            if counters.step % config.log_every == 0 or done or valid:
                self._report(window, lr, measured)
                window = _Window()
            if ends:
                return "monitor"
            # One number that all ranks agree on: 2 asked to stop, 1 time to save.
            due = counters.step % save_every == 0 or time.monotonic() - self.saved_at > 60 * config.save_minutes
            wish = distributed.largest(2 if self.interrupted else int(due and not done))
            if wish:
                self._save_running()
            if wish == 2:
                return "asked"
        return "last_step"

    def save_every(self) -> int:
        """Steps between two saves: `engine.save_every`, but at most a quarter of the fewest steps that this run can take."""
        fewest = min([self.engine.schedule.steps, *([self.monitor.every] if self.monitor else [])])
        return min(self.engine.config.save_every, max(1, fewest // 4))

    def _probe_memory(self) -> None:
        """Try the largest batch first: running out of memory after days of training would be a waste.

        Raises:
            InputError: it does not fit.
        """
        batch = self.batches.largest()
        try:
            self.engine.probe(batch)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.stage}: the largest batch ({len(batch.ids)} utterances, {batch.audio_seconds:.0f} s) does not fit: "
                f"{error}; lower the stage's max_duration and raise accumulation, or set engine.activation_checkpointing"
            ) from error

    def _optimiser_step(self, loader: Iterator[Any]) -> list["_MicroBatch"]:
        """Forward and backward of as many micro-batches as an optimiser step takes, and the step.

        Whether a loss is finite, on every rank, is read when its backward pass has been launched: a GPU never waits for the
        answer.  If it is not, what was accumulated for this step is dropped, and the step begins anew with the next batches.

        Raises:
            RuntimeError: too many losses were not finite.
        """
        taken: list[_MicroBatch] = []
        while len(taken) < self.engine.schedule.accumulation:
            asked = time.monotonic()
            batch = next(loader)
            waited = time.monotonic() - asked
            one = _MicroBatch(batch.audio_seconds, self.engine.module.flops(batch), batch.padding, waited)
            batch = batch.to(self.engine.device)
            self.counters.position = list(batch.position)
            one.loss, one.numbers = self.engine(batch)
            wrong = distributed.agree_later(~one.loss.isfinite())
            self.engine.backward(one.loss)
            if wrong():
                self._skip(batch, one.loss.item())
                self.engine.discard()
                taken.clear()
            else:
                self.engine.step()
                one.loss = one.loss.detach()
                taken.append(one)
        return taken

    def _skip(self, batch: Any, loss: float) -> None:
        """Note a batch whose loss is not finite on some rank; keep it, where it is this one."""
        self.counters.skipped += 1
        if not math.isfinite(loss):
            name = f"nonfinite-{self.counters.skipped:03d}-step{self.counters.step}-rank{distributed.rank()}.safetensors"
            path = self.log_path.with_name(name)  # beside the model: the running state goes when the run is done
            write_tensors(path, batch.tensors(), {"ids": json.dumps(list(batch.ids)), "loss": str(loss)})
            log.error("%s: step %d: loss is %s; batch skipped, kept as %s", self.stage, self.counters.step, loss, path)
        if self.counters.skipped > self.engine.config.max_nonfinite:
            raise RuntimeError(f"{self.stage}: {self.counters.skipped} batches gave a non-finite loss (engine.max_nonfinite)")

    def _report(self, window: "_Window", lr: float, measured: dict[str, float]) -> None:
        if distributed.rank() != 0:
            return
        counters = self.counters
        rate = window.audio / max(window.seconds, 1e-9)
        per_step = counters.wall_seconds / max(counters.step, 1)
        line = {
            "step": counters.step,
            "last_step": self.engine.schedule.steps,
            **window.means(),
            **measured,
            "lr": lr,
            "gradient_norm": self.engine.gradient_norm(),
            "audio_seconds_per_second": round(rate, 2),
            "mfu": round(window.flops / max(window.seconds, 1e-9) / self.matmul_rate, 4),
            "memory_gib": round(_peak_memory(self.engine.device) / 2**30, 3),
            "audio_hours": round(counters.audio_seconds / 3600, 4),
            "epoch": counters.position[0],
            "skipped_batches": counters.skipped,
            "time": round(time.time(), 1),
        }
        self.state.check_owner()
        with self._log_file().open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = [Summary.Value(tag=name, simple_value=line[name]) for name in sorted(line.keys() - {"step", "last_step", "time"})]
        self.tensorboard.write_event(Event(wall_time=line["time"], step=counters.step, summary=Summary(value=shown)))
        self.tensorboard.flush()
        log.info(
            "%s step %d/%d  loss %.4f%s  lr %.2e  grad %.2f  audio %.0f s/s  MFU %.0f%%  padding %.1f%%  "
            "memory %.1f GiB  left %s",
            self.stage,
            counters.step,
            self.engine.schedule.steps,
            line["loss"],
            f" (dev {measured['valid_loss']:.4f})" if measured else "",
            lr,
            line["gradient_norm"],
            rate,
            100 * line["mfu"],
            100 * line["padding"],
            line["memory_gib"],
            time.strftime("%H:%M:%S", time.gmtime(per_step * (self.engine.schedule.steps - counters.step))),
        )

    def _save_running(self) -> None:
        if distributed.rank() == 0:
            self.state.check_owner()
        self.save(self.state.path(self.counters.step))
        self.saved_at = time.monotonic()
        if distributed.rank() == 0:
            self.state.prune(self.engine.config.keep_last)

    def _log_file(self) -> Path:
        return self.state.folder / "train.jsonl"

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.interrupted = True


@dataclass
class _MicroBatch:
    """One that was learned from. audio: seconds; waited: seconds for its data; loss, numbers: on the device."""

    audio: float
    flops: float
    padding: float
    waited: float
    loss: Tensor | None = None
    numbers: dict[str, Tensor] = field(default_factory=dict)


class _Window:
    """Since the last log line. audio: seconds, of all ranks; the rest of this one."""

    def __init__(self) -> None:
        self.audio = self.seconds = 0.0
        self.taken: list[_MicroBatch] = []

    def add(self, taken: list[_MicroBatch], seconds: float) -> None:
        self.taken += taken
        self.seconds += seconds

    @property
    def flops(self) -> float:
        return sum(one.flops for one in self.taken)

    def means(self) -> dict[str, float]:
        """Of loss, its parts, and the share of padding; and the share of time that data was waited for. Reads the GPU."""
        found = {"loss": torch.stack([one.loss for one in self.taken])}
        for name in self.taken[-1].numbers:
            found[name] = torch.stack([one.numbers[name] for one in self.taken])
        return {
            **{name: round(values.double().mean().item(), 6) for name, values in found.items()},
            "padding": round(sum(one.padding for one in self.taken) / len(self.taken), 6),
            "data_wait": round(sum(one.waited for one in self.taken) / max(self.seconds, 1e-9), 4),
        }


def _peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on its GPU, else in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def configure_logging() -> None:
    """Progress to stderr; libraries only when something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("entropy_asr").setLevel(logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.ERROR)
