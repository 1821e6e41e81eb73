"""`verify OUT`: are the files of a run those its journal describes, and does the same chain make them again?"""

import json
import os
import random
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chain import pick_device
from pipeline.config import MarkingConfig, load_chain, weight_hashes
from pipeline.credentials import RECORD_LABEL, read_manifest, unsigned
from pipeline.engine import settle_process
from pipeline.images import ImageError, file_sha256, sha256
from pipeline.journal import journal_sha256, line_of, read_records
from pipeline.output import OutputError, OutputFolder
from pipeline.planning import ENDINGS, InputSet, Task, name_hash, record_target, target_of
from pipeline.restorer import Restorer
from pipeline.run_record import code_sha256
from pipeline.sources.boxes import BoxFile
from pipeline.worker import Job, Worker, product_paths, reproducible

# Times, and what is compared through `reproducible`.
_NOT_COMPARED = {"seconds", "key", "files_sha256", "output_sha256", "unsigned_sha256"}


def _sample(journal: Path, count: int | None) -> Iterator[dict[str, Any]]:
    """The records to look at: all, or `count` drawn evenly, the same ones each time."""
    if count is None:
        yield from read_records(journal)
        return
    total = sum(1 for _ in read_records(journal))
    chosen = set(random.Random(0).sample(range(total), min(count, total)))
    yield from (record for index, record in enumerate(read_records(journal)) if index in chosen)


def _changed_files(record: dict[str, Any], folder: str, output: OutputFolder) -> Iterator[str]:
    """What is wrong with the files of a record as they lie there now."""
    paths = product_paths(folder, record_target(record))
    for kind, digest in record.get("files_sha256", {}).items():
        data = output.read(paths[kind])
        if data is None:
            yield f"{paths[kind]} is missing"
        elif sha256(data) != digest:
            yield f"{paths[kind]} was changed after it was written"
        elif kind == "image" and "unsigned_sha256" in record:
            yield from (f"{paths[kind]}: {problem}" for problem in _signature_problems(data, record))
    if not record.get("files_sha256") and output.read(paths["image"]) is not None:
        yield f"{paths['image']} exists, though the status is {record['status']}"


def _signature_problems(png: bytes, record: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the manifest of a signed picture."""
    try:
        manifest, wrong = read_manifest(png)
        same = sha256(unsigned(png)) == record["unsigned_sha256"]
    except ValueError as error:
        yield str(error)
        return
    yield from (f"its manifest is not valid: {code}" for code in wrong)
    said: dict[str, Any] = next((a["data"] for a in manifest["assertions"] if a["label"] == RECORD_LABEL), {})
    if not same or said.get("input_sha256") != record["input_sha256"]:
        yield "its manifest is that of another picture"


def _find_input(record: dict[str, Any], roots: Sequence[str], problems: list[str]) -> str | None:
    """The file of a record's input, if it is still there unchanged; if only another lies there, that is a problem.
    Where none lies there, that is printed."""
    others = []
    for root in roots:
        path = os.path.join(root, record["input"])
        try:
            if (digest := file_sha256(path)) == record["input_sha256"]:
                return path
        except ImageError:
            continue
        others.append(f"{path} has the SHA-256 {digest}, the journal says {record['input_sha256']}")
    problems += others
    if not others and record.get("face") is None:
        print(f"{record['input']}: the input is not there any more")
    return None


def _unknown_files(output: Path, folder: str, known: "array[int]") -> Iterator[str]:
    """Pictures and priors among the outputs that no record speaks of; `known`: hashes of the paths that one does."""
    hashes = np.unique(np.asarray(known, np.uint64))
    for part in {path.rpartition("/")[0] for path in product_paths(folder, "").values()}:
        for where, _, files in os.walk(output / part):
            for path in (Path(where, name) for name in files if name.endswith(ENDINGS)):
                relative = path.relative_to(output).as_posix()
                at = int(np.searchsorted(hashes, digest := np.uint64(name_hash(relative))))
                if at == len(hashes) or hashes[at] != digest:
                    yield f"{relative} is not in the journal"


def _read_run(path: Path) -> dict[str, Any]:
    """What `run.json` says. Raises `OutputError` where it is damaged."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = [run[key] for key in ("chain", "request", "marking", "versions", "weights_sha256")]
        if all(isinstance(value, dict) for value in wanted):
            _ = run["device"], run["precision"], run["batch_size"], run["input_roots"], run["marking"]["strip"]
            _ = [run["request"][key] for key in ("folder", "mask", "max_pixels", "save_priors")], run["journal_sha256"]
            return run
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"{path}: damaged, it is not the record of a run")


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a journal line has what is needed to check it."""
    files = record.get("files_sha256")
    return (
        isinstance(record.get("status"), str)
        and isinstance(record.get("input_sha256", 0), str | None)
        and isinstance(record.get("face", 0), int)
        and isinstance(record.get("notes", {}), dict)
        and isinstance(files, dict)
        and files.keys() <= product_paths("", "").keys()
        and record.get("output_sha256") == files.get("image")
    )


class _Again:
    """Inputs made again, by a worker in a temporary folder, in bands of rows where their lines say so; the lines of one
    input stand together in the journal, so that each is made again once."""

    def __init__(self, restorer: Restorer, job: Job, masks: InputSet) -> None:
        self.restorer, self.job, self.masks = restorer, job, masks
        self.boxes = BoxFile(Path(job.boxes)) if job.boxes else None
        self._made: tuple[str, dict[int | None, dict[str, Any]]] = ("", {})

    def is_of_this_run(self, record: dict[str, Any]) -> bool:
        """Whether a line says that it was made as the last run makes them, and not by an earlier one with another
        chain; what failed, and runs that kept no fingerprint, cannot tell and count as of it."""
        if not self.job.fingerprint or not record.get("key"):
            return True
        name = record["input"]
        mask = self.masks.mask_of(name, target_of(name))
        beside = {None, file_sha256(mask) if mask else None}
        if self.boxes is not None:
            beside.add(f"boxes {self.boxes.digest(name)}")
        return record["key"] in {self.job.key(record["input_sha256"], part) for part in beside}

    def differences(self, record: dict[str, Any], path: str) -> Iterator[str]:
        """What differs for one line when its input is made again."""
        name = record["input"]
        if self._made[0] != name:
            target = target_of(name)
            task = Task(name, path, target, self.masks.mask_of(name, target))
            bands = "in_bands" in record.get("notes", {})
            with tempfile.TemporaryDirectory(prefix="revisage-verify-") as folder:
                outcomes = Worker(self.restorer, replace(self.job, output=folder, bands=bands)).process([(task, None)])
                lines = [line_of(outcome.record) for outcome in outcomes if outcome.record is not None]
            found = [json.loads(line) for line in lines]
            self._made = (name, {made.get("face"): made for made in found})
        label = name if record.get("face") is None else f"{name}, face {record['face']}"
        made = self._made[1].get(record.get("face"))
        if made is None:
            yield f"{label}: made again, it is not there"
            return
        expected = reproducible(record)
        for kind in sorted(made["files_sha256"].keys() | expected.keys()):
            if made["files_sha256"].get(kind) != expected.get(kind):
                yield f"{label}: made again, {kind} is not the same"
        for key in sorted((made.keys() | record.keys()) - _NOT_COMPARED):
            if made.get(key) != record.get(key):
                yield f"{label}: made again, {key} is {made.get(key)}, the journal says {record.get(key)}"


def verify(output: Path, sample: int | None = None, inputs: Sequence[str] = ()) -> int:
    """Check a run; prints what is wrong and a summary. Returns 0 where all agrees, else 1, also where no
    input is there any more; 4 for an empty journal.

    Args:
        output: the output folder of a run.
        sample: how many records to check, None = all.
        inputs: further folders to look for the inputs in, where they have moved.

    Raises:
        OutputError: no run lies there.
        ConfigError: its chain or weights are not here any more.
    """
    run_file, journal = output / "_run" / "run.json", output / "_run" / "journal.jsonl"
    if not run_file.is_file() or not journal.is_file():
        raise OutputError(f"{output}: no finished run here (expected _run/run.json and _run/journal.jsonl)")
    run = _read_run(run_file)
    config, request = load_chain(run["chain"]), run["request"]
    settle_process()
    restorer = Restorer(config, pick_device(run["device"]), run["precision"], run["batch_size"], request["max_pixels"])
    weights = weight_hashes(config)
    boxes = request.get("boxes")
    marking = MarkingConfig.model_validate(run["marking"])
    job = Job(
        str(output), request["folder"], run.get("fingerprint", ""), "overwrite", request["save_priors"],
        config.digest(), weights, boxes, marking,
    )  # fmt: skip
    again = _Again(restorer, job, InputSet((), output, Path(request["mask"]) if request["mask"] else None))
    roots, folder = [*inputs, *run["input_roots"], *run.get("earlier_input_roots", [])], OutputFolder(output)
    checked = remade = absent = earlier = 0
    if run["versions"]["code_sha256"] != code_sha256():
        print("note: the code is not that of the run; what is made again is made with this one")
    problems = [f"weights {n} differ from the run's" for n, h in run["weights_sha256"].items() if weights.get(n) != h]
    if journal_sha256(journal) != run["journal_sha256"]:
        problems.append("the journal is not the one of run.json: it was changed, or a later run was killed")
    for problem in problems:
        print(problem)
    known: array[int] = array("Q")
    for record in _sample(journal, sample):
        checked += 1
        if not _is_whole(record):
            problems.append(f"the journal's line of {record['input']} is damaged")
            print(problems[-1])
            continue
        paths = product_paths(job.folder, record_target(record))
        known.extend(name_hash(paths[kind]) for kind in record["files_sha256"])
        found = list(_changed_files(record, job.folder, folder))
        if record["input_sha256"]:
            if (path := _find_input(record, roots, found)) is None:
                absent += 1
            elif not again.is_of_this_run(record):
                earlier += 1
            else:
                remade += 1
                found += again.differences(record, path)
        for problem in found:
            print(problem)
        problems += found
    for problem in _unknown_files(output, job.folder, known) if sample is None else ():
        print(problem)
        problems.append(problem)
    if absent and not remade + earlier:
        problems.append("none of the inputs is there any more, so no output was made again; name their folder with -i")
        print(problems[-1])
    print(
        f"{checked} records checked, {remade} made again, {absent} inputs no longer there as they were, "
        + (f"{earlier} of an earlier run with another chain and not made again, " if earlier else "")
        + f"{len(problems)} problem(s)"
    )
    return 1 if problems else 0 if checked else 4
