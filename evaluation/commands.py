"""What the measuring commands of this folder share: a parser, the options that several have, and what they write."""

import argparse
import json
from pathlib import Path
from typing import Any

from evaluation.restoring import REPOSITORY


def command_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m evaluation.NAME`; help begins with the first line of `text`, the module's own."""
    return argparse.ArgumentParser(prog=f"python -m evaluation.{name}", description=(text or "").split("\n")[0])


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`, the shipped chain if not given."""
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "cctv_restore.yaml", help="the chain")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def write_measured(record: Any, table: str, folder: Path, name: str) -> None:
    """Write `folder/name.json` and `folder/name.md`, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    print(table, end="")
