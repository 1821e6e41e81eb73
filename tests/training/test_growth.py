"""A grown network answers as the smaller one did, and every new weight can learn."""

from typing import Any

import pytest
import torch

from stages.networks.classifier import TraitNet
from stages.networks.coogan import CooganNet
from stages.networks.prouigan import ProUiganNet
from tests.tiny import TINY as SMALL
from training.config import TrainingError
from training.growth import grow, grow_editor, grow_reader

LARGE = SMALL | {
    "widths": (32, 24, 20),
    "blocks": (2, 1, 0),
    "dilations": ((1, 2), (1,), (1, 1)),
    "landmark_width": 24,
    "detail_width": 20,
    "face_width": 8,
}


def moved(network: ProUiganNet) -> ProUiganNet:
    """With weights of a trained network's kind: none at zero."""
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network


def test_a_grown_network_gives_the_answers_of_the_small_one() -> None:
    torch.manual_seed(0)
    small, large = moved(ProUiganNet(**SMALL)), ProUiganNet(**LARGE)
    grow(large, small)
    faces = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        old, new = small(faces, detail=True), large(faces, detail=True)
    for name in ("images", "mask_logits", "heatmap_logits", "parsing_logits", "points"):
        for a, b in zip(getattr(old, name), getattr(new, name), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    for name in ("log_scale", "log_noise", "detail"):
        torch.testing.assert_close(getattr(old, name), getattr(new, name), atol=2e-4, rtol=1e-4)


def test_what_is_new_learns_and_then_counts() -> None:
    torch.manual_seed(0)
    small, large = moved(ProUiganNet(**SMALL)), ProUiganNet(**LARGE)
    grow(large, small)
    before = {k: v.clone() for k, v in large.state_dict().items()}
    optimiser = torch.optim.Adam(large.parameters(), 1e-3)
    for _ in range(3):  # readers and writers of new channels, then what stands before both
        out = large(torch.rand(2, 3, 16, 16), detail=True)
        everything = (*out.images, *out.parsing_logits, *out.mask_logits, *out.points, out.log_scale, out.log_noise)
        loss = sum(t.square().mean() for t in (*everything, out.face_logit, out.detail))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = large.state_dict()
    assert not [k for k, v in after.items() if torch.equal(v, before[k])]
    for name, old in small.state_dict().items():  # new rows and new columns too: two zeros in a row would never move
        for axis in range(min(old.ndim, 2)):
            added = slice(old.shape[axis], None)
            was, now = (s[name].transpose(0, axis)[added] for s in (before, after))
            assert not was.numel() or (now.isfinite().all() and not torch.equal(was, now)), (name, axis)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": 4}, "heads"),
        ({"attention_width": 32}, "cannot grow"),
        ({"dilations": ((2,), (1,), (1,))}, "dilation"),
    ],
)
def test_what_would_change_the_answers_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        grow(ProUiganNet(**SMALL | change), ProUiganNet(**SMALL))


def test_a_network_cannot_shrink() -> None:
    with pytest.raises(TrainingError, match=r"steps\.0\..*does not fit"):
        grow(ProUiganNet(**SMALL), ProUiganNet(**LARGE))


EDITOR: dict[str, Any] = {"attributes": ["age", "smiling"], "width": 16, "local_width": 16}
MORE = EDITOR | {"attributes": ["smiling", "beard", "age"]}


def trained_editor() -> CooganNet:
    torch.manual_seed(0)
    network = CooganNet(**EDITOR).eval()
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network


@torch.no_grad()
def test_a_grown_editor_edits_as_before_and_knows_no_beard_yet() -> None:
    small, large = trained_editor(), CooganNet(**MORE).eval()
    grow_editor(large, small)
    face, patch, place = torch.rand(1, 3, 128, 128), torch.rand(1, 3, 32, 32), torch.eye(2, 3)[None]
    old_wish, new_wish = torch.tensor([[0.7, -1.0]]), torch.tensor([[-1.0, 1.5, 0.7]])  # each name in its own place
    old, new = small.edit_whole(face, old_wish), large.edit_whole(face, new_wish)
    assert old.change.abs().max() > 1e-3
    torch.testing.assert_close(new.change, old.change, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(new.source[:, [2, 0]], old.source, atol=1e-5, rtol=1e-4)
    before = small.edit_patch(patch, old, place, old_wish)[0]
    torch.testing.assert_close(large.edit_patch(patch, new, place, new_wish)[0], before, atol=1e-5, rtol=1e-4)


def test_a_grown_editor_can_learn_the_new_attribute() -> None:
    small, large = trained_editor(), CooganNet(**MORE)
    grow_editor(large, small)
    large.edit_whole(torch.rand(1, 3, 128, 128), torch.tensor([[0.0, 1.0, 0.0]])).change.sum().backward()
    wishes = {n: w for n, w in large.whole.named_parameters() if n.endswith("wanted.weight") and w.ndim == 2}
    assert wishes
    for name, weight in wishes.items():
        assert weight.grad is not None and weight.grad[:, 1].abs().sum() > 0, name


@pytest.mark.parametrize(
    ("change", "named"),
    [({"attributes": ["age", "beard"]}, "smiling would be lost"), ({"width": 24}, "differ in more")],
)
def test_an_editor_loses_nothing(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        grow_editor(CooganNet(**MORE | change), trained_editor())


READER: dict[str, Any] = {"flags": ["smiling"], "numbers": ["age"], "trunk": "mobile", "width": 8, "features": 16}


@torch.no_grad()
def test_a_grown_reader_answers_as_before_and_has_the_new_head() -> None:
    torch.manual_seed(0)
    small, large = TraitNet(**READER).eval(), TraitNet(**READER | {"flags": ["beard", "smiling"]}).eval()
    grow_reader(large, small)
    face = torch.rand(2, 3, 128, 128)
    old, new = small(face), large(face)
    assert set(new) - set(old) == {"beard"} and new["beard"].std() > 0
    for name, answer in old.items():
        torch.testing.assert_close(new[name], answer)


@pytest.mark.parametrize(
    ("change", "named"), [({"flags": ["beard"]}, "smiling would be lost"), ({"width": 16}, "differ in more")]
)
def test_a_reader_loses_nothing(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingError, match=named):
        grow_reader(TraitNet(**READER | change), TraitNet(**READER))
