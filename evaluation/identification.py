"""Identification: who of a gallery is it? Closed set (everybody is enrolled) and open set (some are not)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Search:
    """Probes searched in a gallery that holds one picture of each enrolled person.

    Attributes:
        gallery: (G,) indices into the list of faces. probes: (P,) indices, none of them in the gallery.
        mate: (P,) place of the probe's person in `gallery`, -1 where the person is not enrolled.
    """

    gallery: np.ndarray
    probes: np.ndarray
    mate: np.ndarray


def search_split(people: Sequence[str], enrolled: float = 1.0, probes_per_person: int = 5, seed: int = 0) -> Search:
    """Seeded choice of gallery and probes.

    People with one picture are enrolled in a closed set, as distractors, and not enrolled in an open one. Of the people
    with several pictures `enrolled` (a share, 1 = closed set) get one into the gallery and at most `probes_per_person`
    others searched; the pictures of the rest are probes that must not be found.

    Raises:
        ValueError: the gallery is empty or nobody in it has a second picture, or no probe is left that must fail.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    pictures = [rng.permutation(np.flatnonzero(member == i)) for i in range(len(names))]
    several = rng.permutation([i for i, own in enumerate(pictures) if len(own) > 1]).astype(int)
    known = several[: max(1, round(len(several) * enrolled))] if enrolled < 1 else np.arange(len(names))
    gallery = np.array([pictures[i][0] for i in known], dtype=int)
    mated = [(picture, place) for place, i in enumerate(known) for picture in pictures[i][1 : 1 + probes_per_person]]
    strangers = [
        p for i in sorted(set(range(len(names))) - set(known.tolist())) for p in pictures[i][:probes_per_person]
    ]
    if not mated:
        raise ValueError(f"identification needs a person with two pictures or more; {len(names)} people have one each")
    if enrolled < 1 and not strangers:
        raise ValueError("open-set identification needs people who are not in the gallery; everybody is enrolled")
    probes = [picture for picture, _ in mated] + strangers
    return Search(gallery, np.array(probes), np.array([place for _, place in mated] + [-1] * len(strangers)))


def ranks(scores: np.ndarray, mate: np.ndarray) -> np.ndarray:
    """(P,) place of each probe's mate by falling score, 1 = first; of equal scores the mate comes last.

    Infinite where there is no mate, or where the mate's score is NaN: a face that was not found is nowhere.

    Args:
        scores: (P, G), NaN where probe or gallery picture has no embedding.
        mate: (P,) column of the mate, -1 for none.
    """
    own = np.where(mate >= 0, scores[np.arange(len(mate)), np.maximum(mate, 0)], np.nan)
    better = (np.nan_to_num(scores, nan=-np.inf) >= own[:, None]).sum(1)  # counts the mate itself
    return np.where(np.isfinite(own), better, np.inf)


def cmc(place: np.ndarray, depth: int) -> np.ndarray:
    """Cumulative match characteristic, (depth,): share of probes whose mate stands at rank 1, ..., `depth` or before.

    Method: Phillips, Grother, Micheals, Handbook of Face Recognition, 2011, chapter 21.
    """
    return (place[:, None] <= np.arange(1, depth + 1)).mean(0)


def detection_identification(top: np.ndarray, place: np.ndarray, mate: np.ndarray, fpir: float) -> float:
    """DIR at rank 1 in [0, 1] where at most `fpir` of the searches for strangers return anybody.

    Args:
        top: (P,) best score of each search, -inf where the probe has no embedding. place: (P,) from `ranks`.
        mate: (P,) -1 for strangers.

    Method: Phillips, Grother, Micheals, as above: detect-and-identify rate over false-positive identification rate.
    """
    strangers = np.sort(top[mate < 0])[::-1]
    allowed = int(np.floor(fpir * len(strangers) + 1e-9))
    threshold = strangers[allowed] if allowed < len(strangers) else -np.inf  # scores must lie above it
    mated = mate >= 0
    return float(((place[mated] == 1) & (top[mated] > threshold)).mean())
