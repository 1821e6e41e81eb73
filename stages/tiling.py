"""Cut a picture into overlapping tiles and lay them together without seams: memory follows the tile, not the picture.

Along each axis, tile weights rise and fall as a cosine where two tiles overlap and sum to 1 at every pixel, so a result
needs no division. The outermost `margin` pixels of a tile, where its own border shows most, count for nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis, evenly spread.

    Args:
        length: of the picture, px.
        tile: length of a tile, px; a shorter picture is one tile.
        overlap: shared by neighbouring tiles at least, px; at most a third of a tile, so that two blends never meet.
        margin: px at each inner border of a tile that get no weight; at most half the overlap.
        align: tiles start at multiples of it, px; divides `tile` and, where there are several tiles, `length`.

    Raises:
        ValueError: numbers that do not fit together.
    """

    length: int
    tile: int
    overlap: int
    margin: int = 0
    align: int = 1

    def __post_init__(self) -> None:
        if self.length <= self.tile and self.length > 0:
            return
        if self.length < 1 or not 0 <= 2 * self.margin <= self.overlap <= self.tile / 3:
            raise ValueError(
                f"tiles of {self.tile} px with overlap {self.overlap} and margin {self.margin} on {self.length} px: "
                "expected 0 <= 2 * margin <= overlap <= tile / 3"
            )
        if self.tile % self.align or self.length % self.align:
            raise ValueError(f"tiles of {self.tile} px on {self.length} px: both must divide by {self.align}")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile; the first tile begins and the last one ends with the picture."""
        if self.length <= self.tile:
            return (0,)
        room = self.length - self.tile
        steps = -(-room // ((self.tile - self.overlap) // self.align * self.align))
        return tuple(room * i // steps // self.align * self.align for i in range(steps + 1))

    @property
    def size(self) -> int:
        """Length of every tile."""
        return min(self.tile, self.length)

    def weights(self, index: int) -> Tensor:
        """(size,) float32 weights of tile `index`; over all tiles they sum to 1 at every pixel."""
        place = torch.arange(self.size, dtype=torch.float32) + self.starts[index]
        weight = torch.ones(self.size)
        if index > 0:
            weight = self._rise(place, index)
        if index + 1 < len(self.starts):
            weight = weight * (1 - self._rise(place, index + 1))
        return weight

    def _rise(self, place: Tensor, index: int) -> Tensor:
        """How far tile `index` has taken over from the one before it, within its first `overlap` pixels."""
        first = self.starts[index] + self.margin - 0.5
        width = self.overlap - 2 * self.margin
        if width == 0:
            return (place > first).float()
        return 0.5 - 0.5 * torch.cos(torch.pi * ((place - first) / width).clamp(0, 1))

    def settled(self, index: int) -> int:
        """How many pixels of the picture no tile after `index` touches."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.length


def tiled(
    image: Tensor, scale: int, tile: int, overlap: int, margin: int, network: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Run `network` tile by tile; yields (first row, rows) of the result from top to bottom.

    Args:
        image: (B, C, H, W).
        scale: size of the network's output over that of its input.
        tile, overlap, margin: input pixels.
        network: (B, C, h, w) -> (B, D, scale * h, scale * w).

    Yields:
        Row number and (B, D, rows, scale * W) float32; together they make up the whole result.
    """
    rows, columns = (
        Axis(scale * n, scale * tile, scale * overlap, scale * margin, align=scale) for n in image.shape[-2:]
    )
    band: Tensor | None = None
    for y, top in enumerate(rows.starts):
        fresh: Tensor | None = None
        for x, left in enumerate(columns.starts):
            piece = image[
                ...,
                top // scale : (top + rows.size) // scale,
                left // scale : (left + columns.size) // scale,
            ]
            out = network(piece).float()
            if fresh is None:
                fresh = out.new_zeros(*out.shape[:2], rows.size, scale * image.shape[-1])
            weight = (rows.weights(y)[:, None] * columns.weights(x)).to(out.device)
            fresh[..., left : left + columns.size] += out * weight
        assert fresh is not None
        if band is not None:
            fresh[..., : band.shape[-2], :] += band
        settled = rows.settled(y) - top
        yield top, fresh[..., :settled, :]
        band = fresh[..., settled:, :].clone()
