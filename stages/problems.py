"""What is wrong with a document, one plain line for each mistake: file, path, value, rule, nearest valid key."""

import difflib
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say after a wrong word: the nearest of those known, or all of them."""
    near = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(sorted(known))}"


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def path_text(prefix: str, loc: Sequence[str | int]) -> str:
    """A place in a document: `stages[0].size`."""
    path = prefix
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Names of the options where an unknown key stands, following nested option classes, also in lists and mappings."""
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = None if field is None else field.annotation
        else:  # an entry of a list (its classes are the arguments), or of a mapping (the last argument)
            here = next((a for a in get_args(here)[::-1] if a is not Ellipsis), None)
        options = [a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
        here = options[0] if get_origin(here) in (Union, UnionType) and options else here
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def problems_of(error: ValidationError, model: type[BaseModel], origin: str, prefix: str, owner: str) -> list[str]:
    """The mistakes in a document that `model` refused, one line each.

    Args:
        origin: file it came from. prefix: path of the part that was checked; empty for all of it.
        owner: whose options these are, in words.
    """
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        loc, value = item["loc"], item.get("input")
        path = path_text(prefix, loc)
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, loc[:-1])
            problems.append(
                f"{origin}: {path} = {short(value)}: unknown option of {owner}{nearest(str(loc[-1]), known)}"
            )
        elif item["type"] == "missing":
            problems.append(f"{origin}: {path}: {owner} needs this option and it is missing")
        else:
            problems.append(
                f"{origin}: {path or 'document'} = {short(value)}: {item['msg'].removeprefix('Value error, ')}"
            )
    return problems
