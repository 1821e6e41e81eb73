"""The command line: arguments -> pipeline -> exit code. It knows no stage, and imports nothing heavy until it must."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import __version__

EPILOG = "exit codes: 0 all done, 1 some items failed, 2 usage or configuration, 4 nothing to do"
DEFAULT_CONFIG = "configs/cctv_restore.yaml"


def _fidelity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 (sharpest) to 1 (closest to the input)")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, 1 or more")
    return value


def _place(text: str) -> str:
    """A path or URL; an empty one, mostly an unset variable of a script, would mean the current folder."""
    place = text.removeprefix("file://")  # a URL of this machine's own files is a path
    if not place.strip():
        raise argparse.ArgumentTypeError("is empty; for the current folder say .")
    return place


def _file(text: str) -> Path:
    """A path that means the same from every folder, as the record of the run keeps it."""
    place = _place(text)
    return Path(place if "://" in place else os.path.abspath(place))


def _attribute(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        expected = "expected NAME=STRENGTH, for instance smiling=+1.0" if not sign else "the strength is no number"
        raise argparse.ArgumentTypeError(f"{text}: {expected}") from None


def _add_run_options(parser: argparse.ArgumentParser, config: str | None, max_pixels: int = 64_000_000) -> None:
    """Options shared by the commands that run a chain over inputs."""
    add = parser.add_argument
    add("-i", "--input", nargs="+", required=True, metavar="INPUT", action="extend", type=_place,
        help="file, folder (recursive), glob, .txt list of paths, or a URL in an object store")  # fmt: skip
    add("-o", "--output", required=True, metavar="OUT", type=_place,
        help="output folder, or its URL in an object store")  # fmt: skip
    add("-c", "--config", default=config, metavar="YAML",
        help="chain (default: %(default)s)" if config else "chain with the editor (default: it alone)")  # fmt: skip
    add("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE",
        help="change a value of the chain, e.g. stages.0.fidelity=0.2; repeatable")  # fmt: skip
    add("--engine", choices=("local", "ray"), default="local",
        help="local: this machine; ray: many, needs the extra cluster (default: %(default)s)")  # fmt: skip
    add(
        "--workers",
        type=_count,
        metavar="N",
        help="worker processes; 1 = none beside this one (default: one per core; 1 on a GPU)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto = bf16 where it is native (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=_count,
        metavar="N",
        help="faces per batch; costs memory, never changes a result (default: 16; 128 on a GPU)",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep proven results of an earlier run (default: on)",
    )
    add("--on-exists", choices=("skip", "overwrite", "error"), default="overwrite",
        help="for outputs that are no proven result of this chain (default: %(default)s)")  # fmt: skip
    add("--dry-run", action="store_true", help="check everything, print the chain and the planned names, write nothing")
    add("--fail-fast", action="store_true", help="stop at the first failure: begin no further batch")
    add(
        "--max-pixels",
        type=_count,
        default=max_pixels,
        metavar="N",
        help="largest input in pixels (default: %(default)s)",
    )


def _run(arguments: argparse.Namespace, folder: str) -> int:
    from pipeline.engine import Request, run
    from pipeline.storage import is_url

    request = Request(
        inputs=tuple(arguments.input),
        output=Path(arguments.output),
        remote=arguments.output if is_url(arguments.output) else None,
        engine=arguments.engine,
        config=arguments.config,
        folder=folder,
        fidelity=getattr(arguments, "fidelity", None),
        overrides=tuple(arguments.overrides),
        mask=getattr(arguments, "mask", None),
        boxes=getattr(arguments, "boxes", None),
        save_priors=getattr(arguments, "save_priors", False),
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        max_pixels=arguments.max_pixels,
        resume=arguments.resume,
        on_exists=arguments.on_exists,
        fail_fast=arguments.fail_fast,
    )
    return run(request, dry_run=arguments.dry_run)


def _restore(arguments: argparse.Namespace) -> int:
    return _run(arguments, "restored")


def _degrade(arguments: argparse.Namespace) -> int:
    return _run(arguments, "degraded")


def _edit(arguments: argparse.Namespace) -> int:
    from pipeline.config import ConfigError
    from pipeline.editing import check_sheet, edit_chain, write_sheet

    counts = Counter(name for name, _ in arguments.attributes)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError([f"--set-attribute {name}: given {counts[name]} times; say one strength" for name in twice])
    source, overrides = edit_chain(arguments.editor, dict(arguments.attributes), arguments.config)
    arguments.config = source if isinstance(source, dict) else str(source)
    arguments.overrides = [*overrides, *arguments.overrides]
    if arguments.sheet:
        check_sheet(arguments.output, source, arguments.overrides)
    code = _run(arguments, "restored")
    if arguments.sheet and not arguments.dry_run and code in (0, 1):
        path = write_sheet(
            arguments.input, Path(arguments.output), source, arguments.overrides, device=arguments.device,
            precision=arguments.precision, max_pixels=arguments.max_pixels,
        )  # fmt: skip
        print(f"contact sheet: {path}", file=sys.stderr)
    return code


def _train(arguments: argparse.Namespace) -> int:
    from landmarks.backends import BackendUnavailable
    from pipeline.config import ConfigError, check, find_config, read_mapping
    from stages.weights import WeightsError

    path = find_config(arguments.config)
    task = read_mapping(path, "task, data and loop").get("task")
    import importlib
    import importlib.util
    import pkgutil

    package = importlib.util.find_spec("training")
    places = list(package.submodule_search_locations or []) if package else []
    known = sorted(m.name.removeprefix("train_") for m in pkgutil.iter_modules(places) if m.name.startswith("train_"))
    if task not in known:
        raise ConfigError([f"{path}: task = {task!r}: expected one of {', '.join(known)}"])
    from training.config import OptionsError

    try:
        module = importlib.import_module(f"training.train_{task}")
        module.main(path, resume=arguments.resume, dry_run=arguments.dry_run)
    except OptionsError as error:
        raw = read_mapping(error.path, "task, data and loop")
        _, problems = check(error.model, raw, str(error.path), "", "the training")
        raise ConfigError(problems or [str(error)]) from error
    except (ImportError, BackendUnavailable, FileExistsError, WeightsError) as error:
        cure = "; install the extra: pip install 'revisage[train]'" if isinstance(error, ImportError) else ""
        print(f"revisage train: {error}{cure}", file=sys.stderr)
        return 2
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    try:
        from evaluation.suite.run import main as evaluate
    except ImportError as error:
        print(f"revisage evaluate: {error}; install the extra: pip install 'revisage[evaluate]'", file=sys.stderr)
        return 2
    return evaluate(
        arguments.config, arguments.output, overrides=arguments.overrides, device=arguments.device,
        precision=arguments.precision, resume=arguments.resume, dry_run=arguments.dry_run,
    )  # fmt: skip


def _models(arguments: argparse.Namespace) -> int:
    from pipeline import models

    return {"list": models.list_models, "verify": models.verify_models, "licences": models.print_licences}[
        arguments.action
    ]()


def _export(arguments: argparse.Namespace) -> int:
    try:
        from pipeline.export import export

        path = export(arguments.name, arguments.output)
    except ImportError as error:
        print(f"revisage export: {error}; install the extra: pip install 'revisage[export]'", file=sys.stderr)
        return 2
    print(f"{path}\n{path.with_suffix('.json')}: inputs, outputs, parity and terms")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.output import OutputError
    from pipeline.storage import is_url
    from pipeline.verify import verify

    if is_url(arguments.output):
        raise OutputError(f"{arguments.output}: runs are verified on this machine's disks; copy it here first")
    return verify(Path(arguments.output), arguments.sample, arguments.input)


def _doctor(_arguments: argparse.Namespace) -> int:
    from pipeline.doctor import diagnose

    return diagnose()


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="revisage", epilog=EPILOG,
        description="Restores faces from CCTV thumbnails. Detail is generated, not recorded; not for identification.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"revisage {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        added.set_defaults(handler=handler)
        return added

    restore = command("restore", _restore, "restore face thumbnails")
    _add_run_options(restore, DEFAULT_CONFIG)
    restore.add_argument(
        "-w", "--fidelity", type=_fidelity, metavar="FIDELITY", help="0 = sharpest, 1 = closest to the input"
    )
    restore.add_argument(
        "--mask",
        type=_file,
        metavar="PATH",
        help="occluder mask, white = covered: a file for all, or a folder mirroring the inputs",
    )
    restore.add_argument(
        "--boxes",
        type=_file,
        metavar="FILE",
        help="CSV or JSON with image, x, y, w, h of the faces, for a chain whose detect has the backend boxes",
    )
    restore.add_argument(
        "--save-priors", action="store_true", help="also write landmarks, heatmaps, parsing and mask (NPZ)"
    )

    _add_run_options(
        command("degrade", _degrade, "make CCTV thumbnails of good face crops, seeded"), "configs/degrade/cctv.yaml"
    )

    edit = command("edit", _edit, "change attributes of faces, of any size")
    _add_run_options(edit, None, max_pixels=8192 * 8192)  # edited in bands of rows, measured up to that size
    edit.add_argument(
        "--editor",
        choices=("coogan",),
        default="coogan",
        help="which method (default: %(default)s)",
    )
    edit.add_argument(
        "--set-attribute", action="append", default=[], dest="attributes", type=_attribute, metavar="NAME=STRENGTH",
        help="0 leaves as is, +1 clearly there (older, more masculine), -1 clearly away, up to 2; repeatable",
    )  # fmt: skip

    edit.add_argument(
        "--sheet", action="store_true",
        help="also draw OUT/_run/sheet.png: the first 20 faces with each of the attributes from strength -1 to +1",
    )  # fmt: skip

    train = command("train", _train, "train a network")
    train.add_argument("-c", "--config", required=True, metavar="YAML", help="training configuration")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--dry-run", action="store_true", help="two steps on the CPU, to see that all is there")

    evaluate = command("evaluate", _evaluate, "measure whether restored faces help")
    add = evaluate.add_argument
    add("-c", "--config", nargs="+", required=True, metavar="YAML", help="e.g. configs/evaluate/public.yaml")
    add("-o", "--output", required=True, type=Path, metavar="OUT", help="output folder; OUT/NAME for each evaluation")
    add("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE",
        help="change a value of the YAML, e.g. limit=60; repeatable")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="(default: %(default)s)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="take what an earlier run computed from OUT/_cache (default: on)")  # fmt: skip
    add("--dry-run", action="store_true", help="check the YAML, weights and files, print the rows, measure nothing")

    models = command("models", _models, "the shipped weights")
    models.add_argument("action", choices=("list", "verify", "licences"))

    export = command("export", _export, "write the restorer as an ONNX graph, checked against the chain")
    export.add_argument("name", nargs="?", default="prouigan_128", help="card of weights/ (default: %(default)s)")
    export.add_argument("-o", "--output", required=True, type=_file, metavar="OUT", help="output folder")

    verify = command("verify", _verify, "compare a run's files with its journal, and make them again")
    verify.add_argument("output", metavar="OUT", help="output folder of the run")
    verify.add_argument("--sample", type=_count, metavar="N", help="check N records only (default: all)")
    verify.add_argument(
        "-i", "--input", nargs="+", default=[], metavar="FOLDER", help="where the inputs lie now, if they were moved"
    )

    command("doctor", _doctor, "say what works on this machine and what does not")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.handler(parsed))
    except KeyboardInterrupt:
        again = "" if getattr(parsed, "resume", True) else " without --no-resume"
        how = " with --resume" if parsed.command == "train" else again
        print(f"stopped; the same command{how} goes on from here", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"revisage {parsed.command}: {error}", file=sys.stderr)
        return code


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that is meant for the user; None for a fault of ours, which keeps its trace."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return 2
    ours = ("pipeline", "stages", "training", "evaluation", "pydantic_core")
    if type(error).__module__.partition(".")[0] not in ours:
        return None
    return int(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))


if __name__ == "__main__":
    sys.exit(main())
