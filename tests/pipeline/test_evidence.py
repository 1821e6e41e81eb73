"""What a run leaves as evidence: profiles that do not mix, marks, signatures, verdicts, and a record to check it by."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ConfigError, load_chain
from pipeline.images import sha256
from pipeline.output import OutputError
from pipeline.provenance import DISCLAIMER, STRIP, yardstick
from pipeline.restorer import Restorer
from pipeline.verify import verify
from stages import STAGES
from stages.resample import Resample
from tests.pipeline.conftest import RESAMPLE, colour, png, records, shipped_chain, thumbnail, tree

FORENSIC: dict[str, Any] = {**RESAMPLE, "name": "court", "profile": "forensic"}


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A chain whose one stage counts as learned; quick, and there without any weights."""

    class Invents(Resample):
        generative = True

        @classmethod
        def is_forensic(cls, config: Any) -> bool:
            return False

    monkeypatch.setitem(STAGES, "invent", Invents)
    return {"version": 1, "name": "made", "stages": [{"stage": "invent", "size": 32}]}


# Profiles


def test_the_forensic_profile_refuses_a_learned_stage_and_names_it(learned: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"stages\[0\].stage = 'invent': not for the forensic profile"):
        load_chain(learned | {"profile": "forensic"})
    with pytest.raises(ConfigError, match=r"stages\[0\].stage = 'degrade': not for the forensic profile"):
        load_chain({"version": 1, "name": "x", "profile": "forensic", "stages": [{"stage": "degrade"}]})
    with pytest.raises(ConfigError, match=r"stages\[0\].stage = 'detect': not for the forensic profile"):
        load_chain({"version": 1, "name": "x", "profile": "forensic", "stages": [{"stage": "detect"}]})


def test_a_learned_stage_makes_a_chain_generative_and_a_plain_one_must_not_say_so(learned: dict[str, Any]) -> None:
    assert load_chain(learned).profile == "generative" and load_chain(RESAMPLE).profile is None
    with pytest.raises(ConfigError, match="no stage of this chain is learned"):
        load_chain(RESAMPLE | {"profile": "generative"})


def test_a_recorded_chain_loads_again_to_the_same(learned: dict[str, Any]) -> None:
    for chain in (FORENSIC, learned, RESAMPLE):
        config = load_chain(chain)
        assert load_chain(config.resolved()).digest() == config.digest()
    other = load_chain(RESAMPLE | {"cluster": {"max_actors": 3}, "marking": {"strip": "copies"}})
    assert other.digest() == load_chain(RESAMPLE).digest(), "what changes no pixel is no part of the chain's hash"


def test_measured_and_generated_results_never_share_a_folder(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    assert restore(folder, tmp_path / "out", FORENSIC, workers=1) == 0
    before = tree(tmp_path / "out")
    for other in (learned, RESAMPLE):
        with pytest.raises(OutputError, match="profile forensic.*must not be mixed"):
            restore(folder, tmp_path / "out", other, workers=1)
    assert tree(tmp_path / "out") == before
    assert restore(folder, tmp_path / "made", learned, workers=1) == 0
    with pytest.raises(OutputError, match="profile generative.*must not be mixed"):
        restore(folder, tmp_path / "made", FORENSIC, workers=1)


def test_what_a_model_made_is_no_input_of_the_forensic_profile(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    assert restore(folder, tmp_path / "made", learned, workers=1) == 0
    assert restore(tmp_path / "made" / "restored", tmp_path / "out", FORENSIC, workers=1) == 1
    found = list(records(tmp_path / "out").values())
    assert found and all(r["status"] == "unsupported" and "a learned model made it" in r["error"] for r in found)
    assert restore(tmp_path / "made" / "restored", tmp_path / "again", RESAMPLE, workers=1) == 0
    assert restore(folder, tmp_path / "measured", FORENSIC, workers=1) == 0
    assert restore(tmp_path / "measured" / "restored", tmp_path / "twice", FORENSIC, workers=1) == 0


def test_registration_and_averaging_belong_to_the_forensic_profile() -> None:
    stages = [{"stage": "detect", "backend": "boxes"}, {"stage": "fuse"}, {"stage": "resample", "size": 32}]
    assert load_chain({"version": 1, "name": "x", "profile": "forensic", "stages": stages}).profile == "forensic"


def test_the_shipped_forensic_chain_runs_and_records_what_it_did(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    assert restore(folder, tmp_path / "out", "configs/forensic.yaml", workers=1) == 0
    run = json.loads((tmp_path / "out" / "_run" / "run.json").read_text())
    assert run["profile"] == "forensic" and not run["generative"] and run["weights_sha256"] == {}
    assert len(run["versions"]["code_sha256"]) == 64 and run["hardware"]["processor"]
    assert all({"black", "white", "gamma"} == r["notes"]["levels"].keys() for r in records(tmp_path / "out").values())


# Marks


def test_marked_copies_carry_the_strip_below_the_whole_picture_and_are_proven_like_the_rest(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    chain = learned | {"marking": {"strip": "copies"}}
    assert restore(folder, out, chain, workers=1) == 0
    for record in records(out).values():
        plain = np.asarray(Image.open(out / record["output"]))
        copy = np.asarray(Image.open(out / record["output"].replace("restored/", "_run/marked/")))
        assert np.array_equal(copy[: len(plain)], plain) and copy.shape[1:] == plain.shape[1:]
        assert copy[len(plain) :].min() == 0 and copy[len(plain) :].max() > 200
    assert verify(out) == 0
    victim = out / "_run" / "marked" / "face00.png"
    victim.write_bytes(b"")
    assert verify(out) == 1
    assert restore(folder, out, chain, workers=1) == 0 and verify(out) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 39


def test_a_sidecar_says_what_the_picture_says_and_which_picture_it_is(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    chain = learned | {"marking": {"sidecar": True}}
    assert restore(folder, out, chain, workers=1) == 0
    for record in records(out).values():
        picture = out / record["output"]
        said = json.loads(Path(str(picture).replace("restored", "sidecars")).with_suffix(".json").read_text())
        assert said["output_sha256"] == sha256(picture.read_bytes())
        assert said["notice"] == DISCLAIMER and said["digital_source_type"].endswith("AlgorithmicMedia")
        assert said.items() >= json.loads(Image.open(picture).text["Revisage"]).items()  # type: ignore[attr-defined]
    assert verify(out) == 0
    (out / "sidecars" / "face00.json").write_text("{}")
    assert verify(out) == 1
    (out / "sidecars" / "other.json").write_text("{}")  # of no input
    assert restore(folder, out, chain, workers=1) == 0 and verify(out) == 1
    signing = {"signing": {"certificate": "a.pem", "key": "b.pem"}}
    with pytest.raises(ConfigError, match="leave sidecar or signing out"):
        restore(folder, tmp_path / "both", chain | signing, workers=1)


@pytest.mark.parametrize(("strip", "shown"), [("none", False), ("report", True)])
def test_the_strip_of_the_report_can_be_left_out(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any], strip: str, shown: bool
) -> None:
    restore(folder / "face00.png", tmp_path / "out", learned | {"marking": {"strip": strip}}, workers=1)
    html = (tmp_path / "out" / "_run" / "report.html").read_text()
    assert (STRIP in html) == shown and "Not for identification" in html
    assert not (tmp_path / "out" / "_run" / "marked").exists()


def test_operator_and_case_are_recorded_and_change_no_result(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    out, said = tmp_path / "out", {"operator": "J. Doe <&>", "reference": 118}
    restore(folder / "face00.png", out, learned, workers=1)
    before = json.loads((out / "_run" / "run.json").read_text())
    restore(folder / "face00.png", out, learned | {"case": said}, workers=1)
    after = json.loads((out / "_run" / "run.json").read_text())
    assert after["case"] == said | {"remarks": None}
    assert after["kept_from_earlier_run"] == 1 and after["chain_sha256"] == before["chain_sha256"]
    html = (out / "_run" / "report.html").read_text()
    assert "J. Doe &lt;&amp;&gt;" in html and "118" in html


def test_the_recorded_pixels_stand_beside_every_result(
    folder: Path, tmp_path: Path, restore: Callable[..., int], learned: dict[str, Any]
) -> None:
    restore(folder / "face00.png", tmp_path / "out", learned, workers=1)
    side = min(Image.open(folder / "face00.png").size)
    line = json.loads((tmp_path / "out" / "_run" / "journal.jsonl").read_text())
    image = Image.open(tmp_path / "out" / line["output"])
    html = (tmp_path / "out" / "_run" / "report.html").read_text()
    assert line["side_px"] == side == json.loads(image.info["Revisage"])["input_side_px"]
    assert f"at most {side} px across the face: {yardstick(side)}" in html


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (3, "too few for anything; detection begins at 4"),
        (16, "enough for detection; recognition begins at 20"),
        (20, "enough for recognition; identification in good conditions begins at 40"),
        (80, "enough for identification in hard conditions"),
    ],
)
def test_the_yardstick_names_what_is_reached_and_what_is_not(side: int, said: str) -> None:
    assert yardstick(side) == said


# Verdicts


def verdict(pixels: np.ndarray, **limits: Any) -> tuple[str, str, str | None]:
    result = Restorer.from_config(RESAMPLE | {"verdict": limits}, device="cpu").restore([pixels])[0]
    return result.status, result.verdict, result.reason


def test_too_small_and_too_dark_are_not_decidable_with_the_reason() -> None:
    face = thumbnail(0)
    assert verdict(face) == ("ok", "restored", None)
    assert verdict(face, min_side_px=17) == ("review", "not_decidable", "too small: 16 px a side, under 17")
    assert verdict(thumbnail(0, (20, 18)), min_side_px=19)[2] == "too small: 18 px a side, under 19"
    dark = (face * 0.08).astype(np.uint8)
    status, decided, reason = verdict(dark)
    assert (status, decided) == ("review", "not_decidable") and reason is not None and reason.startswith("too dark")
    assert verdict(dark, min_brightness=0)[0] == "ok"


def test_too_uncertain_is_not_decidable_with_the_reason() -> None:
    if (chain := shipped_chain()) is None:
        pytest.skip("the shipped weights are not here")
    restorer = Restorer.from_config(chain, device="cpu", overrides=("verdict.max_uncertainty=0.01",))
    result = restorer.restore([thumbnail(0)])[0]
    assert (result.status, result.verdict) == ("review", "not_decidable") and "too uncertain" in (result.reason or "")
    assert result.image is not None


# Signatures


def credentials(folder: Path, days: int = 9) -> dict[str, str]:
    """A signer's certificate, the root that vouches for it, and the key, as PEM files."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.timezone.utc)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "signer")}

    def built(name: str, authority: bool) -> Any:
        def called(common: str) -> Any:
            organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")
            return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

        usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
        builder = (
            x509.CertificateBuilder(called("root"), called(name), keys[name].public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(20))
            .not_valid_after(now + datetime.timedelta(days))
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[name].public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["root"].public_key()), False)
        )
        if not authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return builder.sign(keys["root"], hashes.SHA256())

    pem = serialization.Encoding.PEM
    chain = b"".join(built(name, name == "root").public_bytes(pem) for name in ("signer", "root"))
    secret = keys["signer"].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(secret)
    return {"certificate": str(folder / "chain.pem"), "key": str(folder / "key.pem")}


@pytest.fixture
def signing(tmp_path: Path) -> dict[str, str]:
    pytest.importorskip("c2pa", reason='the extra "c2pa" is not installed')
    return credentials(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_signed_outputs_name_their_input_and_their_kind_and_pass_for_the_unsigned_ones(
    folder: Path,
    tmp_path: Path,
    restore: Callable[..., int],
    learned: dict[str, Any],
    signing: dict[str, str],
    workers: int,
) -> None:
    from pipeline.credentials import RECORD_LABEL, read_manifest, unsigned

    out = tmp_path / "out"
    for ending in ("JPEG", "WEBP", "TIFF", "BMP"):
        Image.fromarray(colour(3)).save(folder / f"other.{ending.lower()}", ending)
    assert restore(folder, tmp_path / "plain", learned, workers=1) == 0
    assert restore(folder, out, learned | {"signing": signing}, workers=workers) == 0
    expected = tree(tmp_path / "plain")
    for record in records(out).values():
        data = (out / record["output"]).read_bytes()
        assert b"caBX" in data and sha256(data) == record["output_sha256"]
        assert unsigned(data) == expected[record["output"]] and sha256(unsigned(data)) == record["unsigned_sha256"]
        manifest, wrong = read_manifest(data)
        assert wrong == []
        (parent,) = manifest["ingredients"]
        assert parent["relationship"] == "parentOf" and parent["title"] == record["input"]
        actions = next(a for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))["data"]["actions"]
        assert [a["action"] for a in actions] == ["c2pa.opened", "c2pa.edited"]
        assert actions[1]["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
        said = next(a for a in manifest["assertions"] if a["label"] == RECORD_LABEL)["data"]
        assert said["input_sha256"] == record["input_sha256"]
    assert verify(out) == 0
    assert restore(folder, out, learned | {"signing": signing}, workers=1) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 44


def test_a_changed_pixel_breaks_the_signature(
    folder: Path, tmp_path: Path, restore: Callable[..., int], signing: dict[str, str], capsys: Any
) -> None:
    from pipeline.credentials import read_manifest, unsigned

    out = tmp_path / "out"
    restore(folder / "face00.png", out, RESAMPLE | {"signing": signing}, workers=1)
    path = out / "restored" / "face00.png"
    data = path.read_bytes()
    picture = np.asarray(Image.open(io.BytesIO(data))).copy()
    picture[0, 0] ^= 1
    plain = unsigned(data)
    start = data.index(b"caBX") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    forged = png(picture)
    path.write_bytes(forged[:33] + chunk + forged[33:])
    assert "assertion.dataHash.mismatch" in read_manifest(path.read_bytes())[1]
    assert verify(out) == 1
    path.write_bytes(plain)
    with pytest.raises(ValueError, match="no readable manifest"):
        read_manifest(plain)
    assert verify(out) == 1, "a signature that was taken off is missed"
    assert "was changed after it was written" in capsys.readouterr().out


def test_a_certificate_that_cannot_sign_is_found_before_anything_is_touched(
    folder: Path, tmp_path: Path, restore: Callable[..., int], signing: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="gone.pem: cannot be read"):
        restore(folder, tmp_path / "out", RESAMPLE | {"signing": signing | {"key": str(tmp_path / "gone.pem")}})
    (tmp_path / "junk.pem").write_text("no key")
    with pytest.raises(ConfigError, match="certificate and key cannot be used"):
        restore(folder, tmp_path / "out", RESAMPLE | {"signing": signing | {"key": str(tmp_path / "junk.pem")}})
    with pytest.raises(ConfigError, match="signing: the certificate|signing: certificate"):
        restore(folder, tmp_path / "out", RESAMPLE | {"signing": credentials(tmp_path, days=-5)})
    assert not (tmp_path / "out").exists()


def test_paths_of_the_certificate_are_relative_to_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(
        "version: 1\nname: x\nstages: [{stage: resample}]\nsigning: {certificate: a.pem, key: sub/b.pem}\n"
    )
    found = load_chain(tmp_path / "chain.yaml").signing
    assert found is not None
    assert (found.certificate, found.key) == (str(tmp_path / "a.pem"), str(tmp_path / "sub" / "b.pem"))


def test_without_the_extra_signing_says_what_to_install(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ConfigError, match=r"pip install .*c2pa"):
        restore(folder, tmp_path / "out", RESAMPLE | {"signing": {"certificate": "a", "key": "b"}})
