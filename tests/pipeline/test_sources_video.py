"""Videos as inputs: streaming, interlace, aspect, damage, tracks. The videos are made here, with PyAV."""

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import VideoConfig
from pipeline.images import ImageError, Limits
from pipeline.planning import InputError
from pipeline.sources.video import Video
from pipeline.tracks import Shot, Tracker, looks_of, quality_of
from pipeline.verify import verify
from stages.base import Cut, Detection
from tests.pipeline.conftest import colour, png, thumbnail, write_sound
from tests.pipeline.test_sources_frames import by_face

av = pytest.importorskip("av", reason="needs the extra video")

TRACKS: dict[str, Any] = {
    "version": 1,
    "name": "video",
    "stages": [
        {"stage": "detect", "backend": "boxes"},
        {"stage": "fuse", "frames": 4},
        {"stage": "resample", "size": 32},
    ],
}


def write_video(
    path: Path, frames: list[np.ndarray], codec: str = "ffv1", aspect: Fraction | None = None, **options: str
) -> None:
    """Encode RGB frames; lossless with ffv1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.options = options
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def scene(index: int, count: int = 2) -> np.ndarray:
    """A frame of 64 x 96 with faces of 24 px that move one pixel a frame, on a still ground."""
    picture = colour(1, (64, 96)) // 4 + 90
    for k in range(count):
        x, y = (4 + index, 6 + 30 * k) if k % 2 == 0 else (60 - index, 36)
        picture[y : y + 24, x : x + 24] = thumbnail(k * 7, (24, 24))
    return picture


def boxes_of(path: Path, name: str, frames: range) -> None:
    rows = ["image,frame,x,y,w,h"]
    for i in frames:
        rows += [f"{name},{i},{4 + i},6,24,24", f"{name},{i},{60 - i},36,24,24"]
    path.write_text("\n".join(rows))


def read(path: Path, limits: Limits | None = None, **options: Any) -> tuple[list[Any], Video]:
    video = Video(str(path), VideoConfig(**options), limits or Limits())
    return list(video), video


def test_frames_come_with_their_time_stamps_and_only_each_nth(tmp_path: Path) -> None:
    made = [scene(i) for i in range(7)]
    write_video(tmp_path / "v.mkv", made)
    frames, _ = read(tmp_path / "v.mkv")
    assert [f.index for f in frames] == list(range(7))
    assert np.allclose([f.time_s for f in frames], np.arange(7) / 25, atol=0.002)
    assert all(np.array_equal(f.picture.pixels, p) for f, p in zip(frames, made, strict=True))
    third, _ = read(tmp_path / "v.mkv", every=3)
    assert [f.index for f in third] == [0, 3, 6] and np.array_equal(third[1].picture.pixels, made[3])
    few, video = read(tmp_path / "v.mkv", max_frames=2)
    assert len(few) == 2 and "max_frames" in video.notes


def test_the_stated_pixel_shape_is_applied_without_losing_pixels(tmp_path: Path) -> None:
    for aspect, size in ((Fraction(2, 1), (64, 192)), (Fraction(1, 2), (128, 96)), (Fraction(1), (64, 96))):
        write_video(tmp_path / "v.mkv", [scene(0)] * 2, "mpeg4", aspect)
        (frame, _), video = read(tmp_path / "v.mkv")
        assert frame.picture.pixels.shape[:2] == size
        assert ("pixel_aspect" in video.notes) == (aspect != 1)


def test_interlaced_frames_lose_their_comb(tmp_path: Path) -> None:
    """A bright bar moves between the two fields of each frame."""
    frames = []
    for i in range(6):
        picture = np.full((64, 96, 3), 40, np.uint8)
        for field in (0, 1):
            x = 10 + 8 * (2 * i + field) // 2
            picture[field::2, x : x + 12] = 220
        frames.append(picture)

    def comb(pixels: np.ndarray) -> float:
        rows = pixels[..., 1].astype(float)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())

    write_video(tmp_path / "flagged.mpg", frames, "mpeg2video", flags="+ildct+ilme", qscale="2", field_order="tt")
    write_video(tmp_path / "silent.mkv", frames)
    left = read(tmp_path / "silent.mkv")[0][2].picture.pixels
    forced, video = read(tmp_path / "silent.mkv", deinterlace="always")
    assert comb(forced[2].picture.pixels) < 0.5 * comb(left) and video.notes["deinterlaced"] == "bwdif"
    assert len(forced) == 6
    flagged, video = read(tmp_path / "flagged.mpg")
    untouched, plain = read(tmp_path / "flagged.mpg", deinterlace="never")
    if not video.notes.get("deinterlaced"):
        pytest.skip("this FFmpeg does not mark what it encodes as interlaced")
    assert comb(flagged[2].picture.pixels) < 0.5 * comb(untouched[2].picture.pixels) and not plain.notes


def test_damaged_videos_end_with_the_right_status(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(whole, [scene(i % 8) for i in range(60)], "mpeg4")
    data = whole.read_bytes()
    (tmp_path / "headless.mp4").write_bytes(data[: len(data) // 2])  # the index stood at the end
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\n" + str(whole) + "\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{whole}'\n")
    for name in ("headless", "noise", "empty", "playlist", "list"):
        with pytest.raises(ImageError) as caught:
            read(tmp_path / f"{name}.mp4")
        assert caught.value.status == "corrupt", name
    (tmp_path / "torn.mp4").write_bytes(data[:400] + bytes(200) + data[600:])  # decoded, with pixels that are guessed
    video = Video(str(tmp_path / "torn.mp4"), VideoConfig(), Limits())
    assert len(list(video)) == 60 and video.damaged
    with pytest.raises(ImageError, match="over the limit of 100 pixels") as caught:
        read(whole, Limits(max_pixels=100))
    assert caught.value.status == "unsupported"


def test_a_video_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    write_video(whole, [scene(i % 8) for i in range(40)])
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    frames, video = read(tmp_path / "cut.mkv")
    assert 10 < len(frames) < 40
    assert video.damaged or video.notes["ends_early"].endswith("of the 1.60 s it announces")
    for every in (1, 7):
        _, video = read(whole, every=every)
        assert "ends_early" not in video.notes and not video.damaged


def test_sound_alone_and_no_frame_at_all_are_unsupported(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(ImageError, match="no picture in it") as caught:
        read(tmp_path / "sound.mp4")
    assert caught.value.status == "unsupported"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    (tmp_path / "none.mkv").write_bytes(buffer.getvalue())
    with pytest.raises(ImageError) as caught:
        read(tmp_path / "none.mkv")
    assert caught.value.status in ("unsupported", "corrupt")


def shot(frame: int, x: float, y: float, who: int, side: float = 24, px: int = 24) -> Shot:
    pixels = thumbnail(who, (px, px))
    box = Detection((x, y, side, side), 0.9)
    return Shot(frame, frame / 25, quality_of(box, side), box, Cut(pixels, np.eye(2, 3)), False)


def test_tracks_follow_faces_that_cross_and_end_after_a_gap() -> None:
    tracker = Tracker(VideoConfig(), keep=3)
    ended = []
    for i in range(20):
        there = [shot(i, 4 * i, 10, 1), shot(i, 76 - 4 * i, 12, 40)]
        ended += tracker.add(there if i != 10 else there[:1], i, i / 25)
    assert not ended and len(tracker.tracks) == 2
    for track, who in zip(tracker.tracks, (1, 40), strict=True):
        assert all(np.array_equal(s.cut.pixels, thumbnail(who, (24, 24))) for s in track.shots()), "no face was swapped"
        assert len(track.shots()) == 3
    assert [t.seen for t in tracker.tracks] == [20, 19]
    assert len(tracker.add([], 40, 1.6)) == 2 and not tracker.finish()


@pytest.mark.parametrize(("large", "taken"), [(1, 16), (9, 24)])
def test_one_larger_shot_does_not_cost_the_others_of_a_track(large: int, taken: int) -> None:
    tracker = Tracker(VideoConfig(), keep=10)
    for i in range(10):
        tracker.add([shot(i, 10 + i, 10, 1, 25, 24) if i < large else shot(i, 10 + i, 10, 1, 22, 16)], i, i / 25)
    (track,) = tracker.finish()
    shots = track.shots()
    assert {len(s.cut.pixels) for s in shots} == {taken} and len(shots) == 9
    assert [s.quality for s in shots] == sorted((s.quality for s in shots), reverse=True)


def test_another_face_in_the_same_place_is_another_track() -> None:
    tracker = Tracker(VideoConfig(min_similarity=0.5), keep=2)
    assert float(looks_of(thumbnail(1, (24, 24))) @ looks_of(255 - thumbnail(1, (24, 24)))) < -0.9
    tracker.add([shot(0, 10, 10, 1)], 0, 0.0)
    other = shot(1, 10, 10, 1)
    turned = Shot(1, 0.04, other.quality, other.detection, Cut(255 - other.cut.pixels, np.eye(2, 3)), False)
    tracker.add([turned], 1, 0.04)
    assert [t.seen for t in tracker.tracks] == [1, 1]


def test_the_best_view_is_large_frontal_and_sure() -> None:
    points = np.array([(10, 10), (20, 10), (15, 16), (11, 22), (19, 22)], float)
    turned = points + [(0, 0), (0, 0), (4, 0), (0, 0), (0, 0)]
    box = (0.0, 0.0, 30.0, 30.0)
    best = quality_of(Detection(box, 1.0, points), 30)
    assert best > quality_of(Detection(box, 1.0, turned), 30) > 0
    assert best > quality_of(Detection(box, 0.5, points), 30) and best > quality_of(Detection(box, 1.0, points), 20)
    assert quality_of(Detection(box, 1.0, points), 64) == quality_of(Detection(box, 1.0, points), 300)


def test_a_video_gives_one_face_a_track_and_stands_beside_pictures(tmp_path: Path, restore: Callable[..., int]) -> None:
    folder, boxes, out = tmp_path / "in", tmp_path / "boxes.csv", tmp_path / "out"
    (folder / "cam").mkdir(parents=True)
    write_video(folder / "cam" / "v.mkv", [scene(i) for i in range(10)])
    (folder / "still.png").write_bytes(png(scene(0)))
    (folder / "broken.mp4").write_bytes(b"\0" * 400)
    boxes_of(boxes, "cam/v.mkv", range(10))
    boxes.write_text(boxes.read_text() + "\nstill.png,,4,6,24,24\ncam/v.mkv,3,900,6,24,24")
    assert restore(folder, out, TRACKS, boxes=boxes, workers=1) == 1
    found = by_face(out)
    assert found["broken.mp4", None]["status"] == "corrupt"
    video = found["cam/v.mkv", None]
    assert (video["faces"], video["face_statuses"]) == (3, {"failed": 1, "ok": 2}) and video["notes"]["frames"] == 10
    faces = [r for r in (found["cam/v.mkv", i] for i in range(3)) if r["status"] == "ok"]
    assert {tuple(f["track"][k] for k in ("first_frame", "last_frame", "seen")) for f in faces} == {(0, 9, 10)}
    assert all(len(f["track"]["frames_used"]) == 4 and f["notes"]["fused"]["frames"] for f in faces)
    assert (out / faces[0]["output"]).is_file() and found["still.png", 0]["status"] == "ok"
    boxes.write_text(boxes.read_text().replace("\ncam/v.mkv,3,900,6,24,24", ""))
    (folder / "broken.mp4").unlink()
    assert restore(folder, out, TRACKS, boxes=boxes, workers=2) == 0
    assert ("cam/v.mkv", 2) not in by_face(out) and verify(out) == 0
    assert restore(folder, out, TRACKS, boxes=boxes, workers=1) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 2


def test_a_chain_of_face_crops_says_what_a_video_needs(tmp_path: Path, restore: Callable[..., int]) -> None:
    write_video(tmp_path / "v.mkv", [scene(0)])
    assert restore(tmp_path / "v.mkv", tmp_path / "out") == 1
    assert "configs/video_restore.yaml" in by_face(tmp_path / "out")["v.mkv", None]["error"]
    with pytest.raises(InputError):
        restore(tmp_path / "missing.mkv", tmp_path / "x")


def test_faces_are_not_put_back_into_videos(tmp_path: Path, restore: Callable[..., int]) -> None:
    write_video(tmp_path / "v.mkv", [scene(i) for i in range(3)])
    boxes_of(tmp_path / "boxes.csv", "v.mkv", range(3))
    chain = {**TRACKS, "stages": [*TRACKS["stages"], {"stage": "paste"}]}
    assert restore(tmp_path / "v.mkv", tmp_path / "out", chain, boxes=tmp_path / "boxes.csv", workers=1) == 1
    line = by_face(tmp_path / "out")["v.mkv", None]
    assert line["status"] == "unsupported" and "paste" in line["error"]
