"""Video files: frames as they come, deinterlaced, in their stated shape, with their time stamps; and their faces.

Read with PyAV (FFmpeg). A file is only ever read through the handle that was opened here: demuxers that would open
further files or addresses (playlists, concatenations) are not admitted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from pipeline.config import VideoConfig
from pipeline.face import Face, Origin, place
from pipeline.images import ImageError, Limits, Picture, check_size, opened, settle_grey
from pipeline.restorer import Result
from pipeline.sources.frames import find, unusable
from pipeline.tracks import Shot, Track, Tracker, describe, quality_of
from stages.base import Detection, Opening

DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,mpeg1video,mpeg2video,flv,asf,h264,hevc,mjpeg,m4v"
)
MOST_STRETCHED = 4  # a pixel shape beyond 1:4 is a damaged header and not applied
CUT_SHORT_S = 0.5  # a video whose pictures end this much before the end it announces was cut short
DROPS_LISTED = 200  # dropped findings of one video that are listed one by one; all are counted
INSTALL = 'reading videos needs PyAV: pip install "revisage[video]"'


@dataclass(frozen=True)
class Frame:
    """One frame: its number from 0, its time stamp in seconds (None where the file has none), and its picture."""

    index: int
    time_s: float | None
    picture: Picture


def why_no_video() -> str | None:
    """Why videos cannot be read here, None where they can."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        return f"{INSTALL} ({error})"
    return None


class Video:
    """The frames of one video, read once from front to back.

    Attributes:
        notes: what was done on the way, plain values; complete once the frames have been read.
        damaged: packets that could not be decoded.
    """

    def __init__(self, path: str, config: VideoConfig, limits: Limits) -> None:
        self.path, self.config, self.limits = path, config, limits
        self.notes: dict[str, Any] = {}
        self.damaged = 0

    def __iter__(self) -> Iterator[Frame]:
        """Every n-th frame (`every`), deinterlaced and with square pixels.

        Raises:
            ImageError: `unsupported`: PyAV is missing, no picture in the file, frames beyond the limits; `corrupt`:
                no video at all, or not one frame can be decoded.
        """
        if (reason := why_no_video()) is not None:
            raise ImageError("unsupported", reason)
        with opened(self.path) as file:
            yield from self._read(file)

    def _read(self, file: BinaryIO) -> Iterator[Frame]:
        import av

        try:
            container = av.open(file, options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"})
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise ImageError("corrupt", f"not a readable video: {_why(error)}") from error
        with container:
            streams = [s for s in container.streams.video if not _is_cover(s)]
            if not streams:
                raise ImageError("unsupported", "there is no picture in it, only sound or data")
            stream = streams[0]
            stream.codec_context.thread_count = 1  # workers are processes; the cores are theirs
            count, shown = 0, 0.0
            for decoded in self._decoded(container, stream):
                for frame in decoded:
                    shown = max(shown, frame.time or 0.0)
                    if count % self.config.every == 0:
                        yield self._finished(frame, count)
                    count += 1
                    if count >= self.config.max_frames:
                        self.notes["max_frames"] = f"what comes after frame {count} was not read"
                        return
            if not count and self.damaged:
                raise ImageError("corrupt", f"not one frame can be decoded; {self.damaged} packets are damaged")
            if not count:
                raise ImageError("unsupported", "the video holds no frame (0 seconds)")
            if self.damaged:
                self.notes["damaged_packets"] = self.damaged
            announced = _end_of(container, stream)
            if announced is not None and shown < announced - max(CUT_SHORT_S, 4 * announced / max(count, 1)):
                self.notes["ends_early"] = f"{shown:.2f} of the {announced:.2f} s it announces"

    def _decoded(self, container: Any, stream: Any) -> Iterator[list[Any]]:
        """Filtered frames, packet by packet; a packet that cannot be decoded is counted and passed over."""
        import av

        graph = _Graph(self.config, stream, self.limits, self.notes)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError):  # cut short: what was read until here counts
                self.damaged += 1
                break
            if stream.codec_context.width and stream.codec_context.height:
                _check(stream.codec_context.width, stream.codec_context.height, self.limits)
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self.damaged += 1
                frames = []
            self.damaged += any(frame.is_corrupt for frame in frames)  # pixels that the decoder guessed
            yield [done for frame in frames for done in graph.push(frame)]
        yield graph.flush()

    def _finished(self, frame: Any, index: int) -> Frame:
        pixels = frame.to_ndarray(format="rgb24")
        if turns := round(getattr(frame, "rotation", 0) / 90) % 4:
            pixels = np.ascontiguousarray(np.rot90(pixels, turns))
            self.notes["rotation"] = turns * 90
        return Frame(index, None if frame.time is None else float(frame.time), settle_grey(pixels, {}))


def _check(width: int, height: int, limits: Limits) -> None:
    check_size(width, height, replace(limits, accepts_px=None))


def _end_of(container: Any, stream: Any) -> float | None:
    """Seconds at which the pictures should end by what the file says, None where it says nothing of them."""
    start = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    if stream.duration is not None:
        return start + float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return start + container.duration / 1e6
    return None


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the cover picture of a sound file."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


class _Graph:
    """FFmpeg's filters over a stream: deinterlacing, then square pixels. Made anew where the frames change shape."""

    def __init__(self, config: VideoConfig, stream: Any, limits: Limits, notes: dict[str, Any]) -> None:
        self.config, self.stream, self.limits, self.notes = config, stream, limits, notes
        self._shape: tuple[Any, ...] | None = None
        self._graph: Any = None

    def _aspect(self, frame: Any) -> Fraction:
        """Width over height of a pixel; 1 where the file states none, or nonsense."""
        stated = getattr(frame, "sample_aspect_ratio", None) or self.stream.sample_aspect_ratio
        if not stated or not 1 / MOST_STRETCHED <= stated <= MOST_STRETCHED:
            return Fraction(1)
        return Fraction(stated)

    def push(self, frame: Any) -> list[Any]:
        """Frames that come out after `frame` went in. Raises `ImageError` for frames beyond the limits."""
        aspect = self._aspect(frame)
        shape = (frame.width, frame.height, frame.format.name, aspect)
        ready: list[Any] = []
        if shape != self._shape:
            _check(frame.width, frame.height, self.limits)
            ready = self.flush()
            self._build(frame, aspect)
            self._shape = shape
        if frame.interlaced_frame and self.config.deinterlace != "never":
            self.notes["deinterlaced"] = "bwdif"
        self._graph.push(frame)
        return ready + self._pull()

    def _build(self, frame: Any, aspect: Fraction) -> None:
        import av

        graph = av.filter.Graph()
        steps = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self.stream.time_base
            )
        ]
        if self.config.deinterlace != "never":
            only = "all" if self.config.deinterlace == "always" else "interlaced"
            steps.append(graph.add("bwdif", f"mode=send_frame:parity=auto:deint={only}"))
            if only == "all":
                self.notes["deinterlaced"] = "bwdif"
        if aspect != 1:  # the shorter direction is stretched, so that no pixel is lost
            width = round(frame.width * max(aspect, Fraction(1)))
            height = round(frame.height / min(aspect, Fraction(1)))
            _check(width, height, self.limits)
            self.notes["pixel_aspect"] = f"{aspect.numerator}:{aspect.denominator}"
            steps.append(graph.add("scale", f"w={width}:h={height}:flags=bicubic"))
        steps.append(graph.add("buffersink"))
        for a, b in zip(steps[:-1], steps[1:], strict=True):
            a.link_to(b)
        graph.configure()
        self._graph = graph

    def _pull(self) -> list[Any]:
        import av

        found = []
        while True:
            try:
                found.append(self._graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return found

    def flush(self) -> list[Any]:
        """What the filters still hold."""
        if self._graph is None:
            return []
        self._graph.push(None)
        found, self._graph = self._pull(), None
        return found


class VideoFaces:
    """The faces of a video, one per track, each with its best shots; a box that cannot be used is a failed result.

    Attributes, complete once all faces have been taken:
        dropped: findings that were not taken, each with its reason, and the number of those beyond `DROPS_LISTED`.
        notes: of the reading. damage: why the result may lack something, else None.
    """

    def __init__(
        self,
        opening: Opening[Any],
        config: VideoConfig,
        moments: int,
        path: str,
        name: str,
        digest: str,
        limits: Limits,
        boxes: Callable[[int], list[Detection]] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.opening, self.config, self.moments = opening, config, moments
        self.name, self.digest, self.boxes, self.stopped = name, digest, boxes, stopped
        self.video = Video(path, config, limits)
        self.dropped: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.damage: str | None = None
        self._not_listed: Counter[str] = Counter()
        self._count = 0

    def __iter__(self) -> Iterator[Face | Result]:
        """Faces in the order in which they leave the picture; ends early once `stopped()`. Raises `ImageError`."""
        tracker = Tracker(self.config, self.moments)
        frames = 0
        size = (0, 0)
        for frame in self.video:
            if self.stopped():
                return
            frames += 1
            pixels = frame.picture.pixels
            size = (pixels.shape[0], pixels.shape[1])
            found = find(self.opening, pixels, None if self.boxes is None else self.boxes(frame.index))
            kept, dropped = self.opening.choose(found, size)
            for detection, reason in dropped:
                self._drop({"frame": frame.index, **place(detection)}, reason)
            shots = []
            for detection in kept:
                if detection.error is not None:
                    yield unusable(self.name, self.digest, self._next(), detection, size)
                    continue
                cut = self.opening.cut(pixels, detection)
                quality = quality_of(detection, self.opening.side_px(detection))
                shots.append(Shot(frame.index, frame.time_s, quality, detection, cut, frame.picture.grey))
            for track in tracker.add(shots, frame.index, frame.time_s):
                yield from self._face(track, size)
        for track in tracker.finish():
            yield from self._face(track, size)
        for reason, count in sorted(self._not_listed.items()):
            self.dropped.append({"reason": reason, "not_listed": count})
        self.notes = {**self.video.notes, "frames": frames}
        if self.video.damaged:
            self.damage = f"the file is damaged: {self.video.damaged} packets could not be decoded"
        elif early := self.video.notes.get("ends_early"):
            self.damage = f"the file was cut short: it shows {early}"

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _drop(self, what: dict[str, Any], reason: str) -> None:
        if len(self.dropped) < DROPS_LISTED:
            self.dropped.append({**what, "reason": reason})
        else:
            self._not_listed[reason.partition(" is under")[0].rstrip("0123456789. px")] += 1

    def _face(self, track: Track, size: tuple[int, int]) -> Iterator[Face]:
        """The face of a track that has ended; none where it was seen too seldom."""
        if track.seen < self.config.min_seen and not self.opening.reads_boxes:
            reason = f"seen in {track.seen} frame(s), under min_seen {self.config.min_seen}"
            self._drop({"frame": track.first.frame, **place(track.first.detection)}, reason)
            return
        shots = track.shots()
        best = shots[0]
        origin = Origin(
            self._next(), best.detection, best.cut.to_source, size, best.frame, best.time_s, describe(track, shots)
        )
        moments: np.ndarray | None = None
        if self.moments > 1:
            moments = np.stack([shot.cut.pixels for shot in shots])
        picture = Picture(best.cut.pixels, best.grey)
        yield Face(self.name, picture, self.digest, None, origin, moments)
