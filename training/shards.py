"""Carry packed faces to another machine: a pack of raw pixels (5 GB for 57,000 faces) as WebP shards, and back.

    python -m training.shards split --pack runs/pack/faces --shards out/shards --megabytes 30
    python -m training.shards join --pack runs/pack/faces --shards out/shards

Pixels pass through WebP (lossy, quality 88 unless told otherwise); landmarks, ids and the validation split are kept as
they are. Shards may arrive in any order and in several lots; `join` wants them all.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.faces import PACK_SIZE, Pack
from training.files import as_webp, from_webp


def _shares(lengths: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Runs of consecutive entries of at most `most` bytes together (a longer entry stands alone)."""
    first, used = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > first and used + length > most:
            yield slice(first, i)
            first, used = i, 0
        used += length
    yield slice(first, len(lengths))


def split(pack: Path, shards: Path, megabytes: float, quality: int = 88, workers: int = 2) -> list[Path]:
    """Write `shards/NNN.npz` of at most `megabytes` each, and `shards/index.npz`; returns the paths."""
    images = Pack.open(pack).images
    shards.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        data = list(pool.map(partial(as_webp, quality=quality), images, chunksize=128))
    lengths = np.array([len(d) for d in data], np.int64)
    written = [shards / "index.npz"]
    written[0].write_bytes((pack / "index.npz").read_bytes())
    for number, share in enumerate(_shares(lengths, int(megabytes * 2**20))):
        written.append(shards / f"{number:03}.npz")
        joined = np.frombuffer(b"".join(data[share]), np.uint8)
        np.savez(written[-1], first=share.start, lengths=lengths[share], data=joined)
    return written


def join(pack: Path, shards: Path, workers: int = 2) -> Pack:
    """Make the pack again.

    Raises:
        FileNotFoundError: pictures are missing; the message says how many.
    """
    with np.load(shards / "index.npz") as index:
        count = len(index["ids"])
    pack.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(pack / "images.npy", "w+", np.uint8, (count, PACK_SIZE, PACK_SIZE, 3))
    found = 0
    with ProcessPoolExecutor(workers) as pool:
        for path in sorted(shards.glob("[0-9]*.npz")):
            with np.load(path) as shard:
                pieces = np.split(shard["data"], np.cumsum(shard["lengths"])[:-1])
                first = int(shard["first"])
            for i, picture in enumerate(pool.map(from_webp, pieces, chunksize=128)):
                images[first + i] = picture
            found += len(pieces)
    images.flush()
    if found != count:
        raise FileNotFoundError(f"{shards}: {count - found} of {count} pictures are missing; are all shards there?")
    (pack / "index.npz").write_bytes((shards / "index.npz").read_bytes())  # last: it marks the pack as complete
    return Pack.open(pack)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=30, help="most bytes of one shard")
    parser.add_argument("--quality", type=int, default=88, help="of WebP, 1 to 100")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "split":
        for path in split(args.pack, args.shards, args.megabytes, args.quality, args.workers):
            print(f"{path} {path.stat().st_size / 2**20:.1f} MiB")
    else:
        print(f"{args.pack}: {len(join(args.pack, args.shards, args.workers).images)} faces")


if __name__ == "__main__":
    main()
