"""Random damage to one file, drawn by a seed: damage that fits its format, or any file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from vlds.runtime.json_files import MANIFEST, write_manifest

Change = Callable[[bytes, Random], bytes]

SCALARS: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1 << 63, 10**30, -(1 << 63), 0.5, 1e308, float("nan"), float("inf"), "",
    "x", "../../victim", "/dev/zero", "/etc/passwd", "file:///etc/passwd", "\0", "a" * 5000,
    "\ud800", "\u202e\x1b[31m", [], {}, [[]], {"": None}, [None], {"x": {"x": []}},
)  # fmt: skip
"""Values to put where something else is expected."""
TEXTS = (
    b"", b" ", b"\0", b"null", b"[]", b"{}", b"7", b'"x"', b"NaN", b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 3000, b'{"a": 1, "a": 2}', b"9" * 5000,
    b"\r\n\r\n", b"a: &a [x]\nb: &b [*a,*a,*a]\nc: [*b,*b]", b"? [a]\n: b", b"\x80\x04N.",
    b"!!python/object/apply:os.getpid []",
)  # fmt: skip
"""Whole files."""


def replace_value(tree: Any, draw: Random) -> Any:
    """The tree with one random change."""
    top = [copy.deepcopy(tree)]
    positions: list[tuple[Any, Any]] = [(top, 0)]
    waiting = [top[0]]
    while waiting:
        node = waiting.pop(0)
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys if isinstance(node, (dict, list)) else ():
            positions.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    # Breadth first: values near the top are few, so draw them more often than others.
    near = draw.choice([2, 6, 20, len(positions)])
    holder, key = draw.choice(positions[1:near] or positions)
    value = holder[key]
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(["extra", "", "\0", "class_path", "__class__", "a.b", "a/b"])] = value
    elif kind == 2:
        holder[key] = [value, value]
    elif kind == 3 and isinstance(value, (int, float)):
        holder[key] = draw.choice([-value, value + 1, value * 1000, float(value), str(value)])
    elif kind == 4 and isinstance(value, str):
        holder[key] = draw.choice([value + "x", value * 50, value[:-1], value.upper(), [value]])
    else:
        holder[key] = copy.deepcopy(draw.choice(SCALARS))
    return top[0] if top else None


def of_json(data: bytes, draw: Random) -> bytes:
    """Change one value of a JSON text, or of one of its lines."""
    lines = data.split(b"\n") if draw.random() < 0.9 else [data]
    try:
        json.loads(data)
        lines = [data]
    except ValueError:
        pass
    filled = [n for n, line in enumerate(lines) if line.strip()]
    index = draw.choice(filled)
    tree = replace_value(json.loads(lines[index]), draw)
    if draw.random() < 0.1:
        lines[index] = draw.choice(TEXTS)
    else:
        lines[index] = json.dumps(tree).encode()
    return b"\n".join(lines)


def of_yaml(data: bytes, draw: Random) -> bytes:
    """Change one value of a recipe."""
    tree = replace_value(yaml.safe_load(data), draw)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def of_safetensors(data: bytes, draw: Random) -> bytes:
    """Change the header or its length."""
    size = int.from_bytes(data[:8], "little")
    if draw.random() < 0.2:
        wrong = draw.choice([0, 1, size - 1, size + 1, 1 << 40, (1 << 64) - 1])
        return wrong.to_bytes(8, "little") + data[8:]
    header = json.dumps(replace_value(json.loads(data[8 : 8 + size]), draw)).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def of_tar(data: bytes, draw: Random) -> bytes:
    """Change a field of a header and its checksum, or duplicate, drop or change a member."""
    blocks, at = [], 0
    while at + 512 <= len(data) and data[at] != 0:
        size = int(data[at + 124 : at + 135].rstrip(b" \0") or b"0", 8)
        end = at + 512 + (size + 511) // 512 * 512
        blocks.append((data[at : at + 512], data[at + 512 : at + 512 + size]))
        at = end
    index = draw.randrange(len(blocks))
    head, content = blocks[index]
    kind = draw.randrange(5)
    if kind == 0:
        blocks.insert(draw.randrange(len(blocks)), blocks[index])
    elif kind == 1:
        del blocks[index]
    elif kind == 2:
        first, length, value = draw.choice(FIELDS)
        head = head[:first] + value.ljust(length, b"\0")[:length] + head[first + length :]
        blocks[index] = checked(head), content
    else:
        name = head[:100].rstrip(b"\0").decode("utf-8", "replace")
        content = change_of(Path(name))(content, draw)
        head = head[:124] + b"%011o\0" % len(content) + head[136:]
        blocks[index] = checked(head), content
    padded = (head + content + b"\0" * (-len(content) % 512) for head, content in blocks)
    return b"".join(padded) + b"\0" * 1024


FIELDS = [
    (0, 100, b""), (0, 100, b"../../victim.json"), (0, 100, b"/etc/x.json"), (0, 100, b"a"),
    (0, 100, b"\xff\xfe.json"), (0, 100, b"vqa-0.json"), (0, 100, b"x." + b"y" * 98),
    (124, 12, b"77777777777\0"), (124, 12, b"-0000000001\0"), (124, 12, b"00000000000\0"),
    (124, 12, b"\x80" + b"\0" * 5 + b"\x10" + b"\0" * 5), (124, 12, b"\xff" * 12),
    (124, 12, b"zz"), (124, 12, b"00000000001\0"), (156, 1, b"2"), (156, 1, b"5"), (156, 1, b"L"),
    (156, 1, b"x"), (156, 1, b"g"), (156, 1, b"S"), (156, 1, b"\xff"), (257, 8, b"notatar!"),
    (345, 155, b"../.."), (345, 155, b"\xff"),
]  # fmt: skip
"""First byte, length and new value of a header's field."""


def checked(head: bytes) -> bytes:
    """The header with its checksum corrected."""
    total = sum(head[:148]) + 8 * 32 + sum(head[156:])
    return head[:148] + b"%06o\0 " % total + head[156:]


def of_header(data: bytes, draw: Random) -> bytes:
    """Change some of the first bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        position = draw.randrange(min(len(data), draw.choice([16, 64, 400])))
        changed[position] = draw.choice([0, 255, 127, 128, draw.randrange(256)])
    return bytes(changed)


def of_numbers(data: bytes, draw: Random) -> bytes:
    """Change one number of eight bytes."""
    position = draw.randrange(max(1, len(data) // 8)) * 8
    value = draw.choice(
        [0, 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, draw.randrange(9999)]
    )
    return data[:position] + value.to_bytes(8, "little") + data[position + 8 :]


def of_bytes(data: bytes, draw: Random) -> bytes:
    """Cut, double, lengthen or overwrite."""
    cut = draw.randrange(len(data) + 1)
    kind = draw.randrange(6)
    if kind == 0:
        return data[:cut]
    if kind == 1:
        return data + data
    if kind == 2:
        return data + draw.randbytes(draw.choice([1, 8, 600]))
    if kind == 3:
        return data[:cut] + draw.randbytes(4) + data[cut + 4 :]
    if kind == 4:
        return draw.choice(TEXTS)
    return data[:cut] + b"\0" * 64 + data[cut + 64 :]


CHANGES: dict[str, Change] = {
    ".json": of_json, ".jsonl": of_json, ".yaml": of_yaml, ".safetensors": of_safetensors,
    ".tar": of_tar, ".jpg": of_header, ".png": of_header, ".model": of_header, ".npy": of_header,
    ".npz": of_header, ".pth": of_header, ".pt": of_header, ".idx": of_numbers, ".cnt": of_numbers,
    ".crc": of_numbers,
}  # fmt: skip


def change_of(path: Path) -> Change:
    """The damage that fits a file's format."""
    return CHANGES.get(path.suffix, of_header)


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"x")


REPLACED: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "a folder": put_folder,
    "a named pipe": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to("."),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
}


def damage_file(path: Path, draw: Random) -> str:
    """Damage a file at random; a description of the damage."""
    kind, data = draw.random(), path.read_bytes()
    if kind < 0.2:
        how = draw.choice(list(REPLACED))
        path.unlink()
        REPLACED[how](path)
        return f"replaced by {how}"
    name = "of_bytes"
    if kind < 0.85 and data:
        change = change_of(path)
        try:
            changed, name = change(data, draw), change.__name__
        except (ValueError, IndexError, RecursionError):
            changed = of_bytes(data, draw)
    else:
        changed = of_bytes(data, draw)
    path.unlink()
    path.write_bytes(changed)
    damage = name
    if path.suffix == ".tar" and draw.random() < 0.6:
        for ending in (".idx", ".cnt", ".crc"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        damage += ", without its index"
    manifest = path.with_name(MANIFEST)
    if manifest.is_file() and path != manifest and draw.random() < 0.7:
        manifest.unlink()
        write_manifest(path.parent)
        damage += ", with a right manifest"
    return damage
