"""A detector's boxes and names in .npz files, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.packing.file_check import DetectorFile, locate_boxes, names_in
from data_prep.packing.source import BadFeatures
from tests.toys.files import write
from tests.toys.own_rows import pack_rows
from tests.toys.shards import packed


def detected(folder: Path, **changed: Any) -> DetectorFile:
    """Four boxes of picture `a`, and a vocabulary."""
    write(folder / "objects_vocab.txt", "Cat,kitty\ntree\n")
    write(folder / "attributes_vocab.txt", "red\ngrey,gray\n")
    arrays = {
        "features": np.full((4, 3), 0.5, np.float32),
        "boxes": np.array([[10, 40, 30, 90], [-5, 0, 120, 200]] * 2, np.float32),
        "img_w": np.array(100),
        "img_h": np.array(200),
        "obj_id": np.array([0, 1, 1, 0]),
        "attr_id": np.array([1, 0, 1, 0]),
    }
    np.savez(folder / "a.npz", **(arrays | changed))
    return locate_boxes(folder, "a", folder)


def test_boxes_are_shares_of_the_picture(tmp_path: Path) -> None:
    stored = detected(tmp_path).read()
    assert (stored.dtype, stored.shape) == (np.float16, (4, 7))
    assert (stored[:, :3] == 0.5).all()
    assert stored[0, 3:].tolist() == pytest.approx([0.1, 0.3, 0.2, 0.45], abs=1e-3)
    assert stored[1, 3:].tolist() == [0, 1, 0, 1]  # clamped, as in VL-T5


def test_boxes_have_names(tmp_path: Path) -> None:
    annotation = detected(tmp_path).annotated({"id": "r"})
    names = ["grey cat", "red tree", "grey tree", "red cat"]
    assert annotation == {"id": "r", "regions": names}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"obj_id": np.array([0, 1, 2, 0])}, "obj_id has numbers outside of objects_vocab.txt"),
        ({"obj_id": np.array([0.0])}, r"obj_id is float64 \(1,\)"),
        ({"attr_id": np.array([0, 1])}, "4 objects, 2 attributes"),
        ({"boxes": np.zeros((3, 4), np.float32)}, r"boxes of shape \(3, 4\) for 4 features"),
        ({"img_w": np.array(0)}, "no width and height of the picture"),
        ({"img_w": np.array("100")}, "no width and height of the picture"),
        ({"img_h": np.array(50 + 1j)}, "no width and height of the picture"),
        ({"img_w": np.array(np.inf)}, "no width and height of the picture"),
        ({"boxes": np.full((4, 4), np.nan)}, "boxes are not finite"),
    ],
)
def test_bad_boxes(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    file = detected(tmp_path, **changed)
    with pytest.raises(BadFeatures, match=f"^{reason}$"):
        file.annotated({"n": len(file.read())})


def test_a_file_without_boxes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.ones((4, 3), np.float32))
    with pytest.raises(BadFeatures, match="missing or damaged"):
        locate_boxes(tmp_path, "a").read()


def test_a_vocabulary_has_a_name_in_each_line(tmp_path: Path) -> None:
    write(tmp_path / "names.txt", "cat\n ,kitty\n")
    with pytest.raises(ValueError, match=r"names\.txt: line 2 has no name"):
        names_in(tmp_path / "names.txt")


def test_every_command_stores_boxes(tmp_path: Path, refused: Any) -> None:
    detected(tmp_path)
    rows = write(tmp_path / "rows.json", [{"image": "a.jpg", "question": "?", "answer": "b"}])
    out = tmp_path / "out"
    assert pack_rows(rows, tmp_path, out, "--features", str(tmp_path), "--boxes") == 0
    (stored,) = packed(out)["a.jpg"].features
    assert stored.shape == (4, 7)
    code = pack_rows(rows, tmp_path, tmp_path / "other", "--boxes")
    refused(code, "--boxes reads those of --features")
