"""Grow a trained network into one that can learn more and starts by doing exactly what the trained one does: a restorer
into a wider or deeper one, an editor or a reader of traits into one of further attributes.

After Net2Net (Chen, Goodfellow and Shlens, ICLR 2016), without its copied units. New channels of a stream (what
residual blocks add to, or what one step hands to the next) start at 0, since the new rows of whatever writes to the
stream are 0; the new columns of what reads them are random, so that gradients reach the writers from the first step on.
Units that are new inside a block are random, and the new columns of what reads them start at 0. New blocks are
identities, as every `ResidualBlock` is at its start.
"""

import torch
from torch import nn

from stages.networks.classifier import TraitNet
from stages.networks.coogan import CooganNet
from stages.networks.prouigan import Attention
from training.config import TrainingError

# Last parts of the names of layers that write to a stream, and of those that read units inside a block.
WRITERS = (
    "stem",
    "carry",
    "landmark_mix",
    "second",
    "out",
    "_forward.3",
    "prior_in",
    "up",
    "fine",
    "coarse",
    "picture",
)
INNER_READERS = ("second", "_forward.3")
# Root-mean-square norms over a stream: the new channels, 0 at the start, lower the mean square.
NORMS = ("query_norm", "key_norm", "_forward.0")


def grow(network: nn.Module, trained: nn.Module) -> None:
    """Load the weights of a smaller restorer into `network`, which then gives that restorer's answers.

    Args:
        network: freshly made; streams at least as wide and stacks at least as deep as the trained one's. Attention and
            the head that tells faces from other things must be as wide as there, dilations the same.
        trained: the smaller one.

    Raises:
        TrainingError: the new network cannot give the trained one's answers.
    """
    modules = dict(network.named_modules())
    for name, module in trained.named_modules():
        if isinstance(module, Attention) and module.heads != getattr(modules.get(name), "heads", None):
            raise TrainingError(f"{name}: attention with other heads gives other answers")
        if isinstance(module, nn.Conv2d) and module.dilation != getattr(modules.get(name), "dilation", module.dilation):
            raise TrainingError(f"{name}: another dilation gives other answers")
    state = network.state_dict()
    for name, old in trained.state_dict().items():
        new, layer = state.get(name), name.rpartition(".")[0]
        fixed = layer.endswith(("query", "key_value")) or layer.startswith("face_head.")  # rows, beside what they read
        if new is None or new.ndim != old.ndim or any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            place = "none" if new is None else tuple(new.shape)
            raise TrainingError(f"{name}: {tuple(old.shape)} does not fit into {place}: a network can only grow")
        if fixed and new.shape[0] != old.shape[0]:
            raise TrainingError(f"{name}: {old.shape[0]} rows cannot become {new.shape[0]}: this part cannot grow")
        grown = new.clone()
        if layer.endswith(WRITERS):
            grown[old.shape[0] :] = 0
        if layer.endswith(INNER_READERS) and old.ndim > 1:
            grown[:, old.shape[1] :] = 0
        if name.endswith("place"):  # position codes are added to the stream
            grown.zero_()
        scale = (old.shape[0] / new.shape[0]) ** 0.5 if layer.endswith(NORMS) else 1.0
        grown[tuple(slice(n) for n in old.shape)] = old.to(new.dtype) * scale
        state[name] = grown
    network.load_state_dict(state)


def grow_editor(network: CooganNet, trained: CooganNet) -> None:
    """Load the weights of an editor into `network`, which edits as that one does and nothing more, until it is taught.

    Args:
        network: freshly made; its attributes are those of the trained one, in any order, and further ones.
        trained: as wide and with the same transfer units.

    Raises:
        TrainingError: an attribute would be lost, or the networks differ in more than their attributes.
    """
    if lost := sorted(set(trained.attributes) - set(network.attributes)):
        raise TrainingError(f"attributes: {', '.join(lost)} would be lost: an editor can only learn more")
    place = [network.attributes.index(name) for name in trained.attributes]
    state = network.state_dict()
    for name, old in trained.state_dict().items():
        new = state.get(name)
        told, predicts = name.endswith("wanted.weight"), name.startswith("whole.source_head.2.")
        features = old.shape[1] - len(place) if told else 0  # the wanted change stands behind them
        if told and new is not None and new.shape[:1] == old.shape[:1]:
            state[name] = torch.zeros_like(new)
            state[name][:, :features] = old[:, :features]
            state[name][:, [features + p for p in place]] = old[:, features:].to(new.dtype)
        elif predicts and new is not None and new.shape[1:] == old.shape[1:]:
            state[name] = new.clone()
            state[name][place] = old.to(new.dtype)
        elif new is not None and new.shape == old.shape:
            state[name] = old
        else:
            raise TrainingError(f"{name}: the networks differ in more than their attributes")
    network.load_state_dict(state)


def grow_reader(network: TraitNet, trained: TraitNet) -> None:
    """Load the trunk and the heads of a reader of traits into `network`, whose further heads stay as they are.

    Raises:
        TrainingError: a trait would be lost, or the networks differ in more than their traits.
    """
    if lost := sorted(set(trained.traits) - set(network.traits)):
        raise TrainingError(f"traits: {', '.join(lost)} would be lost: a reader can only learn more")
    state, old = network.state_dict(), trained.state_dict()
    if odd := [name for name, value in old.items() if name not in state or state[name].shape != value.shape]:
        raise TrainingError(f"{odd[0]}: the networks differ in more than their traits")
    network.load_state_dict(state | old)
