"""The whole run: faces, conditions, rows, measures, judges, protocols, tables."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cards import cards_measured
from evaluation.faces import EvaluationFace, read_validation_list
from evaluation.naturalness import with_interval
from evaluation.restoring import REPOSITORY, AnyPrecision, Device
from evaluation.rivals import untrained_seconds
from evaluation.statistics import Estimate, Finding, bootstrap, to_json
from evaluation.suite import plots
from evaluation.suite.cache import Cache
from evaluation.suite.collecting import FACES, Collected, Log, build_rows, collect, made_in_parts
from evaluation.suite.config import IDENTITY, EvaluationConfig, EvaluationError, Source, load_evaluation
from evaluation.suite.covered import Bare, load_real, real_findings
from evaluation.suite.curves import Curve, alignment_curves, group_curves, uncertainty_curves
from evaluation.suite.judges import build_judge
from evaluation.suite.measures import FAMILIES, SET_MEASURES, Columns, Quantity
from evaluation.suite.numbers import Measured, groups, leads, numbers, parity
from evaluation.suite.recognition import Vectors, recognition
from evaluation.suite.report import Strip, write_report
from evaluation.suite.rows import AT_1, BARE, DEFAULT, ORIGINAL, Made, Row
from evaluation.suite.sources import Loaded, load_source
from evaluation.suite.tables import to_markdown
from pipeline.chain import pick_device
from pipeline.config import ConfigError, load_chain
from pipeline.run_record import hardware, versions

POOL = "all sources"
MOST_BARE = 300  # bare faces of each source that really covered ones are held against


# --- from what was collected to numbers ------------------------------------------------------------------------------


def _joined(parts: Sequence[Columns]) -> Columns:
    """Columns of several parts, one after the other; NaN where a part has none (say, all its faces were refused)."""
    shapes = {name: values.shape[1:] for part in parts for name, values in part.items()}
    return {
        name: np.concatenate([part.get(name, np.full((len(part[FACES]), *shape), np.nan)) for part in parts])
        for name, shape in shapes.items()
    }


def measured_families(
    source: Loaded, condition: str, kept: Collected, rows: Sequence[Row], identity: bool
) -> list[Measured]:
    """Columns of every family, and of `identity` by every judge, as `Measured`."""
    clusters = np.array([face.group for face in source.faces])
    cards, rivals = {row.name: row.weights for row in rows}, tuple(row.name for row in rows if row.rival)
    made = []
    for name, by_row in kept.columns.items():
        family = FAMILIES[name]
        weights = {ORIGINAL: family.weights} | cards
        joined = {row: _joined(parts) for row, parts in by_row.items()}
        made.append(
            Measured(family.section, source.name, condition, family.quantities, joined, clusters, weights, rivals)
        )
    for title, vectors in kept.vectors.items() if identity else ():
        stacked = {row: np.concatenate(parts) for row, parts in vectors.items()}
        original = stacked[ORIGINAL]
        columns = {
            row: {
                FACES: np.ones(len(own)),
                "cosine": (own * original).sum(1),
                "no_face": np.isnan(own).any(1).astype(float),
            }
            for row, own in stacked.items()
        }
        quantities = (
            Quantity("cosine to the original", ("cosine",), f"of unit vectors, same photograph; {title}", gain=True),
            Quantity("no face found", ("no_face",), f"share of pictures without a vector; {title}", "", "down"),
        )
        weights, section = {ORIGINAL: ""} | cards, f"Identity: {title}"
        made.append(Measured(section, source.name, condition, quantities, columns, clusters, weights, rivals))
    return made


def pooled(parts: Sequence[Measured]) -> Measured:
    """The faces of several sources as one."""
    rows = {row: _joined([part.rows[row] for part in parts]) for row in parts[0].rows}
    return replace(parts[0], source=POOL, rows=rows, clusters=np.concatenate([part.clusters for part in parts]))


def set_findings(source: str, condition: str, kept: Collected, rows: Sequence[Row]) -> list[Finding]:
    """Distances between the cloud of a row's vectors and that of the originals."""
    found = []
    cards = {row.name: row.weights for row in rows}
    for title, vectors in kept.vectors.items():
        stacked = {row: np.concatenate(parts) for row, parts in vectors.items()}
        original = stacked[ORIGINAL]
        for row, own in ((r, v) for r, v in stacked.items() if r != ORIGINAL):
            both = np.isfinite(own).all(1) & np.isfinite(original).all(1)
            for measure in SET_MEASURES if both.sum() > 1 else ():
                found.append(Finding(
                    f"Distribution: {title}", source, measure.name, f"{measure.definition}; row against originals",
                    with_interval(measure.distance, own[both], original[both]), measure.direction,
                    condition=condition, row=row, version=measure.version, weights=cards[row],
                ))  # fmt: skip
    return found


def cost_findings(source: str, condition: str, kept: Collected, rows: Sequence[Row]) -> list[Finding]:
    """Time and memory of each row, over its chunks, with the load they were made under, perhaps by an earlier run."""
    found = []
    for row in rows:
        seconds, peak, load = np.array(kept.costs[row.name]).T
        label: dict[str, Any] = {"condition": condition, "row": row.name, "weights": row.weights}
        wall = "wall time of a face on this machine, whatever else it did: see load; n = batches"
        memory = "largest resident memory of the whole process while the row was made; n = batches"
        rate = bootstrap(1000 * seconds)
        found.append(Finding("Time and memory", source, "time", wall, rate, "down", "ms", **label))
        if np.isfinite(peak).any():
            top = float(np.nanmax(peak))
            estimate = Estimate(top, float(np.nanmin(peak)), top, int(np.isfinite(peak).sum()))
            found.append(Finding("Time and memory", source, "peak memory", f"{memory}; interval = lowest, highest",
                                 estimate, "down", "MiB", **label))  # fmt: skip
        if (known := np.isfinite(load)).any():
            words = "processes that ran or waited when the row was made, mean of a minute; n = batches"
            found.append(Finding("Time and memory", source, "load", words, bootstrap(load[known]), "down", **label))
    return found


def apply_bars(found: list[Finding], config: EvaluationConfig, not_measured: dict[str, str]) -> list[Finding]:
    """Put the bars of the configuration onto the numbers they are for; a bar without a number is named."""
    used: set[int] = set()
    barred = []
    for f in found:
        for i, bar in enumerate(config.options.bars):
            if bar.fits(f):
                used.add(i)
                up = bar.at_least is not None
                limit = bar.at_least if up else bar.at_most
                f = replace(f, bar=limit, direction="up" if up else "down", surely=bar.surely)
        barred.append(f)
    for i, bar in enumerate(config.options.bars):
        if i not in used:
            not_measured[f"bar {bar}"] = "no number of this run is meant by it"
    return barred


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A finished evaluation: its numbers, what was left out and why, where the tables lie, inputs that failed."""

    findings: list[Finding]
    not_measured: dict[str, str]
    folder: Path
    failed: int
    cache: Cache


class _Run:
    """One evaluation on its way: what is measured with, and what was found so far."""

    def __init__(
        self, config: EvaluationConfig, output: Path, device: Device, precision: AnyPrecision, resume: bool, log: Log
    ) -> None:
        self.config, self.log, self.device = config, log, pick_device(device)
        self.found: list[Finding] = []
        self.curves: list[Curve] = []
        self.strips: list[Strip] = []
        self.sources: dict[str, str] = {}
        self.not_measured: dict[str, str] = {}
        self.failed = 0
        self.families = []
        for name in (n for n in config.options.measures if n != IDENTITY):
            if why := FAMILIES[name].unavailable():
                self.not_measured[FAMILIES[name].section] = why
            else:
                self.families.append(name)
        self.judges = [build_judge(options, config) for options in config.options.embedders]
        self.rows = build_rows(config, device, precision, self.not_measured)
        self.cache, self.warm = Cache(output / "_cache", read=resume), set[str]()
        # Section and condition -> each source's numbers and the kind of cover of each of its faces.
        self.pool: dict[tuple[str, str], list[tuple[Measured, list[str]]]] = {}
        self.bare: dict[str, Bare] = {}  # by source

    def measure(self, entry: Source) -> None:
        """Everything about one source."""
        source = load_source(entry, self.config)
        if source is None:
            self.not_measured[f"source {entry.name}"] = f"{entry.parquet or entry.folder} is not there"
            return
        options = self.config.options
        lost = "".join(f", {n} x {reason}" for reason, n in source.counts.items())
        self.sources[source.name] = f"{len(source.faces)} faces, {len({f.group for f in source.faces})} people{lost}"
        self.failed += source.counts["unreadable picture"]
        self.log(f"{source.name}: {self.sources[source.name]}")
        members = groups(source.faces, options.parity) if source.name in options.parity.sources else {}
        for condition in entry.conditions or options.conditions:
            wanted, recognised = self.config.measures(entry, condition), self.config.recognised(entry)
            rows = [row for row in self.rows if self.config.has_row(condition, row.name)]
            judges = self.judges if IDENTITY in wanted or recognised else []
            families = [name for name in self.families if name in wanted]
            kept = collect(source, condition, self.config, rows, judges, families, self.cache, self.warm, self.log)
            self.failed += kept.failed
            self.strips += kept.strips
            for family in measured_families(source, condition, kept, rows, IDENTITY in wanted):
                self._numbers(family, members)
                self.pool.setdefault((family.section, condition), []).append((family, kept.covers))
            self.found += set_findings(source.name, condition, kept, rows) if IDENTITY in wanted else []
            self.found += cost_findings(source.name, condition, kept, rows)
            if recognised:
                self._recognition(source, condition, kept, members)
            if options.really_covered is not None and condition == options.really_covered.bare:
                self._keep_bare(source.name, source.faces, kept)
            self.log(f"{source.name}, {condition}: numbers")

    def _numbers(self, family: Measured, members: Mapping[str, np.ndarray], whole: bool = True) -> None:
        grouped = parity(family, members)
        self.found += ([*numbers(family), *leads(family)] if whole else []) + grouped
        self.curves += uncertainty_curves(family) + alignment_curves(family) + group_curves(grouped)

    def _recognition(self, source: Loaded, condition: str, kept: Collected, members: Mapping[str, np.ndarray]) -> None:
        options, asked = self.config.options, self.config.options.recognition
        if asked is None or not (source.identified or asked.same_photograph):
            self.not_measured[f"Recognition on {source.name}"] = "its faces carry no identity"
            return
        cards = {row.name: row.weights for row in self.rows}
        undecided = {row: np.concatenate(parts) for row, parts in kept.undecided.items()}
        for judge in self.judges:
            vectors = {row: np.concatenate(parts) for row, parts in kept.vectors[judge.title].items()}
            if source.references:
                others = np.concatenate(kept.references[judge.title])
                blank = np.full_like(others, np.nan)
                vectors = {r: np.concatenate([v, others if r == ORIGINAL else blank]) for r, v in vectors.items()}
            weights = {ORIGINAL: judge.weights} | cards
            given = Vectors(source, condition, judge.title, vectors, undecided, weights, members)
            found, curves = recognition(given, asked, options.seed, self.not_measured)
            self.found, self.curves = self.found + found, self.curves + curves

    def measure_pool(self) -> None:
        """Numbers over all sources together, and by kind of painted cover."""
        for pool in self.pool.values():
            parts, kinds = [part for part, _ in pool], np.concatenate([covers for _, covers in pool])
            members = {"cover": kinds} if (kinds != BARE).any() else {}
            several = len(parts) > 1
            if several or members:
                self._numbers(pooled(parts) if several else parts[0], members, whole=several)

    def _keep_bare(self, name: str, faces: Sequence[EvaluationFace], kept: Collected) -> None:
        """What really covered faces are held against, as the first row made of bare ones."""
        of_row = next((parts for row, parts in kept.columns.get("cover", {}).items() if row in (AT_1, DEFAULT)), [])
        fractions = _joined(of_row).get("occluded_fraction")
        if fractions is not None:
            chosen = faces[:MOST_BARE]
            people = np.array([face.group for face in chosen])
            self.bare[name] = Bare(fractions[:MOST_BARE], [face.image for face in chosen], people)

    def measure_covered(self) -> None:
        """Really covered faces, by the most faithful and by the default fidelity."""
        given, section = self.config.options.really_covered, "Really covered faces"
        if given is None:
            return

        def files(texts: Mapping[str, str]) -> dict[str, Path]:
            return {name: self.config.path(text) for name, text in texts.items()}

        covered, as_found, canonical = files(given.covered), files(given.as_found), files(given.canonical)
        paths = (*covered.values(), *as_found.values(), *canonical.values())
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            self.not_measured[section] = f"{', '.join(missing)} not there"
            return
        chosen = [row for row in self.rows if row.name in (AT_1, DEFAULT)]
        if not chosen:
            self.not_measured[section] = "fidelities hold neither 1 nor default"
            return
        if not self.bare:
            self.not_measured[section] = f"no source is measured for cover in {given.bare!r}"
            return
        listed = read_validation_list(self.config.path(given.held_out))
        real = load_real(covered, as_found, canonical, listed, self.config.options.limit)

        def restore(row: Row, lq: np.ndarray) -> Made:
            return made_in_parts(row, lq, self.config.options.chunk, self.cache, self.warm)

        restorers = {row.name: partial(restore, row) for row in chosen}
        found, strips = real_findings(
            real, self.bare, restorers, self.cache.folder, given.steps, self.config.options.pictures
        )
        self.found += [replace(f, weights=chosen[0].weights if f.row in restorers else "") for f in found]
        self.strips += strips
        self.log("really covered faces: numbers")

    def measure_untrained(self) -> None:
        """The time of restorers whose checkpoints are not at hand."""
        definition = "wall time of a face of 512 px, its side there, with random weights; n = faces"
        for name in self.config.options.untrained:
            try:
                seconds = untrained_seconds(name, device=self.device)
            except ImportError as error:
                self.not_measured[f"time of {name}"] = str(error)
                continue
            self.found.append(Finding(
                "Time and memory", "noise", "time", definition, bootstrap(1000 * np.array(seconds)), "down", "ms",
                row=f"{name} (speed only, untrained)",
            ))  # fmt: skip


def evaluate(
    config: EvaluationConfig, output: Path, *, device: Device = "auto", precision: AnyPrecision = "auto",
    resume: bool = True, log: Log = lambda text: None,
) -> Outcome:  # fmt: skip
    """Measure everything the configuration asks for and write `output/<name>/`; parts are kept in `output/_cache`.

    Raises:
        ConfigError: an embedder or a rival cannot be built. EvaluationError: the data do not allow what was asked.
    """
    started, options = time.perf_counter(), config.options
    if output.resolve().is_relative_to(REPOSITORY) and not all(s.examples for s in options.sources):
        raise EvaluationError(f"{output} lies in the repository; pictures of people must not. Choose another folder")
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    run = _Run(config, output, device, precision, resume, log)
    for entry in options.sources:
        run.measure(entry)
    if not run.sources:
        raise EvaluationError(f"{config.origin}: no source is there: {', '.join(s.name for s in options.sources)}")
    run.measure_pool()
    run.measure_covered()
    run.measure_untrained()
    if options.recognition is not None and not run.judges:
        run.not_measured["Recognition"] = "no embedder is configured"
    sections = list(dict.fromkeys(f.section for f in run.found))
    found = apply_bars(sorted(run.found, key=lambda f: sections.index(f.section)), config, run.not_measured)
    header = _header(run, load, started, pick_device(device).type, precision)
    folder = output / options.name
    _write(folder, run, header, found)
    return Outcome(found, run.not_measured, folder, run.failed, run.cache)


def _cards(run: _Run) -> list[str]:
    """Every card that had a part."""
    options = run.config.options
    chains = [run.config.path(chain) for chain in (options.chain, *options.chains.values())]
    names = [name for chain in chains for name in load_chain(chain).weight_names()]
    names += [judge.weights for judge in run.judges] + [FAMILIES[name].weights for name in run.families]
    names += [row.weights for row in run.rows]
    return [name for name in dict.fromkeys(names) if name]


def _header(run: _Run, load: str, started: float, device: str, precision: str) -> dict[str, Any]:
    machine = hardware(pick_device("cuda" if device == "cuda" else "cpu"))
    cache = run.cache
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "configuration": run.config.origin.name,
        "seed": run.config.options.seed,
        "faces": "; ".join(f"{name}: {text}" for name, text in run.sources.items()),
        **cards_measured(_cards(run)),
        "judges": "; ".join(judge.title for judge in run.judges) or "none",
        "device": f"{device}, {precision}",
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "load before": load,
        "software": json.dumps(versions(), sort_keys=True),
        "seconds": round(time.perf_counter() - started),
        "taken from the cache": f"{cache.hits} of {cache.hits + cache.misses} parts",
        "resolved configuration": json.dumps(run.config.resolved(), sort_keys=True),
    }


def _write(folder: Path, run: _Run, header: dict[str, Any], found: Sequence[Finding]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, Path]] = []
    if not run.config.options.plots:
        run.not_measured["plots"] = "plots: false"
    elif why := plots.why_no_plots():
        run.not_measured["plots"] = why
    else:
        drawn = plots.draw(run.curves, folder / "plots")
    title, order, left_out = run.config.options.name, [ORIGINAL, *(r.name for r in run.rows)], run.not_measured
    tables = to_json(found, header | {"not measured": left_out})
    (folder / "tables.json").write_text(tables, encoding="utf-8")
    (folder / "curves.json").write_text(json.dumps([c.plain() for c in run.curves]) + "\n", encoding="utf-8")
    shown = header | {"not measured": "; ".join(f"{k}: {v}" for k, v in left_out.items()) or "nothing"}
    (folder / "tables.md").write_text(to_markdown(title, shown, found, order), encoding="utf-8")
    write_report(folder / "report.html", title, header, found, order, drawn, run.strips, left_out)


def main(
    configs: Sequence[str], output: Path, *, overrides: Sequence[str] = (), device: Device = "auto",
    precision: AnyPrecision = "auto", resume: bool = True, dry_run: bool = False,
) -> int:  # fmt: skip
    """`evaluate` of the command line; returns the exit code: 0 all done, 1 some inputs failed.

    Raises:
        ConfigError, EvaluationError: with the reason.
    """
    loaded = [load_evaluation(path, overrides) for path in configs]
    names = [c.options.name for c in loaded]
    if len(set(names)) < len(names):
        raise ConfigError([f"-c: two evaluations have the same name: {', '.join(sorted(names))}"])
    started, code = time.perf_counter(), 0

    def log(text: str) -> None:
        print(f"{time.perf_counter() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    for config in loaded:
        if dry_run:
            rows = [ORIGINAL, *(r.name for r in build_rows(config, device, precision, {}))]
            judges = [build_judge(o, config).title for o in config.options.embedders]
            print(f"{config.options.name}: rows {', '.join(rows)}; conditions {', '.join(config.options.conditions)}; "
                  f"judges {', '.join(judges) or 'none'}; would write {output / config.options.name}")  # fmt: skip
            continue
        outcome = evaluate(config, output, device=device, precision=precision, resume=resume, log=log)
        bars = [f for f in outcome.findings if f.passed is not None]
        reached = f", {sum(bool(f.passed) for f in bars)} of {len(bars)} bars reached" if bars else ""
        for what, why in outcome.not_measured.items():
            log(f"not measured: {what}: {why}")
        log(f"{len(outcome.findings)} numbers{reached}; {outcome.folder / 'report.html'}")
        if outcome.failed:
            log(f"{outcome.failed} inputs failed; they are counted in the tables")
            code = 1
    return code
