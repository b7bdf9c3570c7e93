"""Shards that are read as streams: equal steps, exact mixing, damage that is found."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest

import vlds.data.shards.download
from tests.toys.files import read_lines
from tests.toys.pictures import noise
from tests.toys.streams import ToyTask, all_ids, red_source, stream_options, train_stream
from tests.toys.web import Web
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.info import DATASET_FILE
from vlds.data.shards.store import open_dataset
from vlds.data.streams.sequential import SequentialStream, StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.runtime.terminal import Away
from vlds.tasks import VQA

LENIENT = ErrorPolicy(max_bad_fraction=1.0, on_bad_shard="substitute")


def source(
    *places: str | Path, name: str = "red", weight: float = 1.0, **fields: str
) -> StreamedSource:
    """A task that reads these shards."""
    datasets = [open_streamed(str(place), ("vqa",), fields or None) for place in places]
    task = VQA() if fields else ToyTask()
    return StreamedSource(name, task, datasets, weight)  # type: ignore[arg-type]


def stream(
    sources: list[StreamedSource],
    *,
    world_size: int = 1,
    micro_batch_size: int | None = None,
    **changes: Any,
) -> SequentialStream:
    """Like `train_stream`, for streamed shards."""
    cut = BatchCut(world_size, micro_batch_size)
    given = {"reader": "sequential", "seed": 5, "global_batch_size": 8, "shuffle_buffer": 20}
    return SequentialStream(sources, *stream_options(given | {"cut": cut} | changes))


def ids(stream: SequentialStream, batches: int) -> list[str]:
    return [id for batch in islice(stream, batches) for id in batch.ids]


@pytest.fixture
def bare(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The six shards of "big" alone: no index, no dataset.json."""
    (tmp_path / "bare").mkdir()
    for tar in folders["big"].glob("*.tar"):
        shutil.copy(tar, tmp_path / "bare")
    return tmp_path / "bare"


def pattern(folder: Path) -> str:
    return f"{folder}/big-train-0000{{0..5}}.tar"


def test_every_example_once_a_pass(bare: Path, folders: dict[str, Path]) -> None:
    """One process and a buffer of one: a pass is an epoch, its shards permuted."""
    expected = Counter(all_ids(open_dataset(folders["big"])))
    everything = stream([source(pattern(bare))], global_batch_size=180)
    assert everything.epochs() == {}  # nobody knows how many there are
    unshuffled = stream([source(folders["big"])], global_batch_size=180, shuffle_buffer=1)
    first, second = ([*batch.ids] for batch in islice(unshuffled, 2))
    assert Counter(first) == Counter(second) == expected
    assert first != second
    assert unshuffled.epochs() == {"red": 2.0}
    assert set(ids(everything, 3)) == set(expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_shard_feeds_sixteen_ranks(bare: Path, num_workers: int) -> None:
    """More processes than shards: none runs dry, all give as many batches."""
    one = [source(bare / "big-train-00000.tar")]
    ranks = [0, 7, 15] if num_workers else range(16)
    for global_rank in ranks:
        rank_stream = stream(
            one, global_batch_size=48, micro_batch_size=3, world_size=16, global_rank=global_rank,
            num_workers=num_workers,
        )  # fmt: skip
        assert len(ids(rank_stream, 20)) == 60  # more than the shard holds
        assert rank_stream.consumed == 20 * 48


def test_processes_share_the_shards(bare: Path) -> None:
    """Two ranks of one process each: a pass of six shards is three for each."""
    options: dict[str, Any] = {"world_size": 2, "micro_batch_size": 4, "shuffle_buffer": 1}
    streams = [stream([source(pattern(bare))], global_rank=rank, **options) for rank in range(2)]
    first, second = ({id.split("-")[1] for id in ids(of_rank, 18)} for of_rank in streams)
    assert not first & second


@pytest.mark.parametrize("unit", ["example", "global_batch"])
def test_tasks_stand_where_indexed_shards_have_them(
    bare: Path, folders: dict[str, Path], sources: list[Source], unit: str
) -> None:
    """The mixture is the same function of the position: exact shares, units, any rank."""
    indexed = train_stream(sources, unit=unit, micro_batch_size=2)
    streamed = [
        source(pattern(bare), name="red", weight=3.0), source(folders["small"], name="blue")
    ]  # fmt: skip
    sequential = stream(streamed, unit=unit, micro_batch_size=2)
    pairs = list(zip(islice(indexed, 64), islice(sequential, 64), strict=True))
    for one, other in pairs:
        assert one.task_index.tolist() == other.task_index.tolist()
        for id, task in zip(other.ids, other.task_index.tolist(), strict=True):
            assert id.startswith(("big", "small")[task])
    assert sum(other.task_index.sum().item() for _, other in pairs) == 128 // 4


def test_going_on_begins_new_shards_and_is_reproducible(bare: Path) -> None:
    cut: dict[str, Any] = {"world_size": 2, "global_rank": 1, "micro_batch_size": 4}
    whole = stream([source(pattern(bare))], **cut)
    first = ids(whole, 4)
    assert first == ids(stream([source(pattern(bare))], **cut), 4)
    state = json.loads(json.dumps(whole.state()))
    rest = ids(whole, 4)  # a new iterator, at the 32nd example
    resumed = stream([source(pattern(bare))], **cut)
    resumed.load_state(state)
    assert resumed.consumed == 32
    assert ids(resumed, 4) == rest != first
    alone = stream([source(pattern(bare))])  # another number of ranks may go on as well
    alone.load_state(state)
    assert len(ids(alone, 2)) == 16


def test_a_state_of_other_shards_or_of_the_other_reader_is_refused(
    bare: Path, folders: dict[str, Path]
) -> None:
    state = stream([source(pattern(bare))]).state()
    fewer = stream([source(f"{bare}/big-train-0000{{0..4}}.tar")])
    with pytest.raises(ValueError, match=r"data\.red: \w{16} -> \w{16}"):
        fewer.load_state(state)
    indexed = train_stream([red_source(folders["big"])])
    with pytest.raises(ValueError, match="reader: sequential -> nothing"):
        indexed.load_state(state)


def test_commands_servers_and_other_storage(
    bare: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="and not pipe; to allow it, set VLDS_SCHEMES=pipe"):
        source("pipe:touch pwned")
    monkeypatch.setenv("VLDS_SCHEMES", "memory pipe")
    first = bare / "big-train-00000.tar"
    fsspec.filesystem("memory").pipe("/red-0.tar", first.read_bytes())
    expected = ids(stream([source(first)]), 8)
    url = f"{web.url('big')}/{first.name}"
    for place in (f"pipe:cat {first}", f"pipe:curl -s {url}", url, "memory://red-0.tar"):
        assert ids(stream([source(place)]), 8) == expected, place
    many = source("pipe:cat " + pattern(bare))
    assert len(many.shards) == 6
    assert set(ids(stream([many]), 30)) == set(ids(stream([source(bare)]), 30))


def ninth(data: bytes) -> int:
    """Where the ninth member begins, which is the first one of a sample."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[8].offset


def smashed(data: bytes, other: bytes) -> bytes:
    """The header of the ninth member begins with other bytes."""
    return data[: ninth(data)] + other + data[ninth(data) + len(other) :]


DAMAGE = [
    (lambda data: data[: ninth(data)], "the file ends at byte"),
    # Garbage, which tarfile takes for the end; and one bit of a name.
    (lambda data: smashed(data, b"\xff" * 100), "is damaged (wrong checksum)"),
    (lambda data: smashed(data, bytes([data[ninth(data)] ^ 1])), "is damaged (wrong checksum)"),
    (lambda data: data[:4700], "inside 00000"),
    (lambda data: b"", "the file ends at byte 0"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("hurt", "reason", "num_workers"), [*((*case, 0) for case in DAMAGE), (*DAMAGE[1], 1)]
)
def test_damage_stops_the_run_or_is_counted(
    bare: Path, tmp_path: Path, hurt: Any, reason: str, num_workers: int
) -> None:
    shards = [source(pattern(bare))]
    path = bare / "big-train-00003.tar"
    path.write_bytes(hurt(path.read_bytes()))
    with pytest.raises(ShardError, match=r"^shard .*big-train-00003\.tar, after \d samples") as e:
        ids(stream(shards, num_workers=num_workers), 60)
    assert reason in str(e.value)
    lenient = stream(shards, errors=LENIENT, ledger=tmp_path / "ledger", num_workers=num_workers)
    ids_read = ids(lenient, 60)
    assert len(ids_read) == 480
    assert lenient.num_bad >= 2  # once a pass
    (line,) = (tmp_path / "ledger").read_text().splitlines()
    assert json.loads(line)["shard"] == str(path)
    assert reason in json.loads(line)["reason"]


def test_a_whole_archive_that_lacks_samples_is_counted_against_dataset_json(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["big"], tmp_path / "big"))
    path = folder / "big-train-00002.tar"
    data = path.read_bytes()
    path.write_bytes(data[: ninth(data)] + bytes(1024))
    with pytest.raises(ShardError, match=r"4 samples came, its dataset\.json says 10"):
        ids(stream([source(folder)]), 30)
    (folder / DATASET_FILE).unlink()
    assert len(ids(stream([source(folder)]), 30)) == 240


def test_commands_that_fail(bare: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLDS_SCHEMES", "pipe")
    with pytest.raises(ShardError, match="pipe:exit 3, after 0 samples: its command ended with ex"):
        stream([source("pipe:exit 3")])
    gone = f"{web.url('big')}/gone.tar"
    said = r"gone\.tar, after 0 samples: there is no such file \(404\); check the"
    with pytest.raises(ShardError, match=said):
        stream([source(gone)])
    monkeypatch.setattr(vlds.data.shards.download, "PAUSE_S", 0.01)
    web.breaks["big-train-00001.tar"] = 3  # it goes on where it was
    shards = source(f"{web.url('big')}/big-train-0000{{0..5}}.tar")
    assert ids(stream([shards]), 60) == ids(stream([source(pattern(bare))]), 60)
    web.breaks["big-train-00001.tar"] = 1000
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 0.3)
    with pytest.raises(Away, match=r"00001\.tar: away for 0.3 s; request \d+ broke with Client"):
        ids(stream([shards], errors=LENIENT), 60)
    with pytest.raises(ShardError, match=r"nowhere://x-1\.tar"):
        stream([source("nowhere://x-1.tar")])


def test_nothing_but_broken_shards_ends(bare: Path) -> None:
    shards = source(pattern(bare))
    for path in list(bare.iterdir())[1:]:
        path.write_bytes(b"")
    one_is_good = stream([shards], errors=LENIENT)
    next(iter(one_is_good))
    for path in bare.iterdir():
        path.write_bytes(bytes(1024))  # archives without a member
    with pytest.raises(ShardError, match="shards in a row gave no example, such as "):
        next(iter(one_is_good))
    with pytest.raises(ValueError, match="its shards hold no sample"):
        stream([shards], errors=LENIENT)


def test_bad_pictures_are_replaced_and_counted(tmp_path: Path) -> None:
    """Keys restart in each shard, as other writers do it: equal keys are different samples."""
    for shard in range(2):
        write_foreign(tmp_path / f"{shard}.tar", range(12), broken=(3,))
    shards = source(tmp_path, question="json:q", answer="txt")
    lenient = stream([shards], errors=ErrorPolicy(max_bad_fraction=1.0), ledger=tmp_path / "ledger")
    ids_read = ids(lenient, 12)
    assert len(ids_read) == 96
    assert "003" not in ids_read
    lines = read_lines(tmp_path / "ledger")
    assert sorted((line["shard"], line["key"]) for line in lines) == [
        (str(tmp_path / "0.tar"), "003"),
        (str(tmp_path / "1.tar"), "003"),
    ]
    assert lenient.num_bad >= 6
    strict = stream([shards], errors=ErrorPolicy(max_bad_fraction=0.01, max_in_a_row=2))
    with pytest.raises(ValueError, match="had to be replaced"):
        ids(strict, 30)


def write_foreign(path: Path, numbers: Sequence[int], broken: Sequence[int] = ()) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            picture = noise(number) if number not in broken else noise(number)[:100]
            about = json.dumps({"q": "how many?"}).encode()
            for extension, data in (("png", picture), ("json", about), ("txt", b" Two\n")):
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_samples_of_others(tmp_path: Path) -> None:
    write_foreign(tmp_path / "a.tar", range(6))
    foreign = stream([source(tmp_path / "a.tar", question="json:q", answer="txt")])
    batch = next(iter(foreign))
    assert set(batch.ids) <= {f"00{n}" for n in range(6)}
    with pytest.raises(ValueError, match="id is null, text expected; foreign samples need data"):
        stream([source(tmp_path / "a.tar")])
    with pytest.raises(ValueError, match="vqa takes question and answer"):
        source(tmp_path / "a.tar", caption="txt")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("BARE/big-train-0000{0..7}.tar", r"2 of 8 shards are missing, such as .*00006\.tar"),
        ("BARE/nothing", r"no \*\.tar in this folder"),
        ("shards/x-{0..9.tar", "give a pattern of shards such as"),
        ("pipe:cat ${HERE}/x.tar", r"WDS_HERE|wds_HERE|; give a pattern"),
    ],
)
def test_places_that_are_no_shards(bare: Path, place: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        source(place.replace("BARE", str(bare)))


def test_shards_that_are_not_what_was_asked(
    bare: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds samples of kind 'vqa', the task understands gqa"):
        open_streamed(str(folders["big"]), ("gqa",), None)
    compressed = tmp_path / "x.tar"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(bare / "big-train-00000.tar")
    with pytest.raises(ShardError, match="it is compressed: give it as `pipe:gunzip"):
        stream([source(compressed)])
    with pytest.raises(ValueError, match="names shards, not a data set: to train on them"):
        open_dataset(pattern(bare))


def test_weights_by_size_need_sizes(bare: Path, folders: dict[str, Path]) -> None:
    known = [source(folders[name], name=name) for name in ("big", "small")]
    big, small = (open_dataset(folders[name]).num_annotations for name in ("big", "small"))
    shares = stream(known, temperature=1.0).order.shares
    assert float(shares[0]) == pytest.approx(big / (big + small))
    said = r"data\.temperature: got 1\.0, but the number of examples"
    with pytest.raises(ValueError, match=said):
        stream([source(pattern(bare))], temperature=1.0)
