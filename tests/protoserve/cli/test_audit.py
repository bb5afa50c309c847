"""`protoserve audit`: its tables, its JSON, and the card that it keeps."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.bundle.ensemble import write_ensemble
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import TruthCard
from tests.protoserve.cli.command_line import CommandLine


def arguments(bundle: Path, data: Path) -> tuple[object, ...]:
    return ("audit", bundle, "--data", data, "--split", "val", "--images", 2, "--device", "cpu")


def test_json_is_one_document_and_the_bundle_stays(
    tiny_bundle: Path, learned: tuple[Path, Path], protoserve_command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A log gets lines of long tasks only.
    monkeypatch.setattr("protoserve.cli.progress.FIRST_SECONDS", 0.0)
    version = read_bundle(tiny_bundle).version
    code, out, err = protoserve_command(*arguments(tiny_bundle, learned[1]), "--json")
    assert code == 0
    card = TruthCard.model_validate_json(out)
    assert (card.images, card.split, card.parts) == (2, "val", [])
    assert "necessity and sufficiency" in err
    assert read_bundle(tiny_bundle).version == version


def test_the_card_is_kept_and_printed_by_table(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path, protoserve_command: CommandLine
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    before = read_bundle(copy).version
    code, out, _ = protoserve_command(*arguments(copy, learned[1]), "--write")
    kept = read_bundle(copy)
    assert code == 0 and kept.version != before
    assert kept.manifest.truth is not None and kept.manifest.truth.images == 2
    for title in ("Additivity", "Locality", "Necessity", "Sufficiency", "Sparsity", "Checks"):
        assert title in out
    assert out.splitlines()[-1] == f"{copy}: keeps this truth card; its version is now {kept.version[:19]}"


def test_a_quick_audit_leaves_out_what_takes_long(
    tiny_bundle: Path, learned: tuple[Path, Path], protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command(*arguments(tiny_bundle, learned[1]), "--quick")
    assert code == 0 and "Necessity" not in out and "Locality" in out and "sufficiency" not in err
    assert "costs more than filling random ones" not in out


def test_masks_add_the_parts(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path, protoserve_command: CommandLine
) -> None:
    data = learned[1]
    for file in (data / "val").rglob("*.png"):
        target = tmp_path / "masks" / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as picture:
            Image.fromarray(np.ones(picture.size[::-1], dtype=np.uint8)).save(target)
    code, out, _ = protoserve_command(*arguments(tiny_bundle, data), "--masks", tmp_path / "masks", "--quick", "--json")
    hits = json.loads(out)["parts"]
    assert code == 0 and {hit["part"] for hit in hits} == {"object"}
    # Every pixel is on the object, so evidence and chance are 1.
    assert all(hit["first"]["measured"]["mean"] == hit["first"]["baseline"]["mean"] == 1 for hit in hits)


def test_an_attack_takes_the_gradients_of_the_run(
    tiny_bundle: Path, tiny_run: Path, twin_run: Path, learned: tuple[Path, Path], protoserve_command: CommandLine
) -> None:
    quick = (*arguments(tiny_bundle, learned[1]), "--quick", "--json")
    code, out, err = protoserve_command(*quick, "--attack", tiny_run)
    assert code == 0, err
    attacks = [found for found in json.loads(out)["locality"] if found["replacement"] == "attack"]
    # The network has no tiles, so a similarity depends on what lies outside its box.
    assert attacks and max(found["activation_change"]["measured"]["mean"] for found in attacks) > 0
    code, out, err = protoserve_command(*quick, "--attack", twin_run)
    assert (code, out) == (2, "") and "was not exported from this run" in err


def test_an_attack_needs_the_extra_that_gives_gradients(
    tiny_bundle: Path,
    learned: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    protoserve_command: CommandLine,
) -> None:
    monkeypatch.setitem(sys.modules, "export.gradients", None)
    code, _, err = protoserve_command(*arguments(tiny_bundle, learned[1]), "--attack", "runs/tiny")
    assert code == 2 and "protoserve[export]" in err


def test_a_bar_for_evidence_on_the_object_decides_the_exit_code(
    tiny_bundle: Path, learned: tuple[Path, Path], tmp_path: Path, protoserve_command: CommandLine
) -> None:
    data = learned[1]
    for name, value in (("all", 1), ("none", 0)):
        for file in (data / "val").rglob("*.png"):
            target = tmp_path / name / file.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as picture:
                Image.fromarray(np.full(picture.size[::-1], value, dtype=np.uint8)).save(target)
    bar = (*arguments(tiny_bundle, data), "--quick", "--require-object", 0.8)
    code, out, _ = protoserve_command(*bar, "--masks", tmp_path / "all")
    assert code == 0 and re.search(r"first evidence on the object: (100% at level \d(, )?)+ \(chance 100%\)", out)
    code, out, err = protoserve_command(*bar, "--masks", tmp_path / "none")
    assert code == 1 and "Checks" in out
    assert re.search(r"error: first evidence on the object: (0% at level \d(, )?)+", err) and "asks for 80%" in err
    code, out, err = protoserve_command(*bar)
    assert (code, out) == (2, "") and "--require-object needs masks" in err


def test_mistakes_are_one_line(
    tiny_bundle: Path, twin_bundle: Path, learned: tuple[Path, Path], tmp_path: Path, protoserve_command: CommandLine
) -> None:
    data = learned[1]
    code, out, err = protoserve_command("audit", tiny_bundle, "--data", data, "--split", "tset")
    assert (code, out) == (2, "") and "no split 'tset'" in err
    code, _, err = protoserve_command(*arguments(tiny_bundle, data), "--masks", tmp_path / "none")
    assert code == 2 and "none: no such folder; --masks takes a folder" in err
    write_ensemble([read_bundle(tiny_bundle), read_bundle(twin_bundle)], tmp_path / "both")
    code, _, err = protoserve_command(*arguments(tmp_path / "both", data))
    assert code == 2 and "both is an ensemble; audit its members" in err
