import errno
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lorakit.errors import CheckpointError
from lorakit.weights import (
    FINGERPRINT_BYTES,
    Chunk,
    Span,
    fingerprint,
    model_entries,
    model_files,
    read_header,
    write_file,
)

TENSORS = {
    "half": torch.arange(3, dtype=torch.float16),
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "brain": torch.arange(4, dtype=torch.bfloat16).reshape(2, 2),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "nothing": torch.empty(0, 5),
}


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    entries, metadata = read_header(file)
    assert metadata == {"format": "pt"}
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "half": ("F16", (3,)),
        "matrix": ("F32", (2, 3)),
        "brain": ("BF16", (2, 2)),
        "scalar": ("I64", ()),
        "nothing": ("F32", (0, 5)),
    }
    for name, tensor in TENSORS.items():
        assert entries[name].read() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert entries["matrix"].read(8, 4) == struct.pack("<f", 2.0)
    assert entries["matrix"].read(20, 400) == struct.pack("<f", 5.0), "never past the tensor's end"


def test_safetensors_reads_what_is_written_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    layout = {
        name: (dtype, tuple(TENSORS[name].shape), TENSORS[name].nbytes)
        for name, dtype in (
            ("scalar", "I64"),
            ("matrix", "F32"),
            ("nothing", "F32"),
            ("brain", "BF16"),
            ("half", "F16"),
        )
    }
    stream = b"".join(TENSORS[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in layout)
    write_file(file, layout, (stream[at : at + 5] for at in range(0, len(stream), 5)), {"z": "1", "a": "2"})
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"a": "2", "z": "1"}
        assert set(opened.keys()) == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert torch.equal(opened.get_tensor(name), tensor)
    assert set(read_header(file)[0]) == TENSORS.keys()
    assert (8 + struct.unpack("<Q", file.read_bytes()[:8])[0]) % 8 == 0


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name, metadata in (("a", {"x": "1", "y": "2"}), ("b", {"y": "2", "x": "1"})):
        write_file(tmp_path / name, {"t": ("U8", (2,), 2)}, iter([b"ab"]), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_stream_of_another_length_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1 bytes written, 2 announced"):
        write_file(tmp_path / "x", {"t": ("U8", (2,), 2)}, iter([b"a"]), {})


def test_every_truncation_is_a_checkpoint_error(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="x.safetensors: "):
            read_header(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_header(file)
    file.write_bytes(whole)
    assert len(read_header(file)[0]) == len(TENSORS)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}}


@pytest.mark.parametrize(
    "header",
    [
        [],
        1,
        None,
        "text",
        {"t": 1},
        {"t": {}},
        {"__metadata__": 3, **tensor()},
        {"__metadata__": {"a": 1}, **tensor()},
        tensor(dtype=3),
        tensor(dtype=None),
        tensor(shape=3),
        tensor(shape=[-1]),
        tensor(shape=["1"]),
        tensor(shape=[True]),
        tensor(shape=[1.0]),
        tensor(shape=[2]),
        tensor(shape=[float("inf")]),
        tensor(data_offsets=[0]),
        tensor(data_offsets=[4, 0]),
        tensor(data_offsets=[-4, 0]),
        tensor(data_offsets=[0.0, 4.0]),
        tensor(data_offsets="04"),
        {**tensor(), "u": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"u": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        b"{",
        b"\xff\xfe\xfd\xfc",
        b"[" * 100_000,
        b'{"t":' * 100_000,
    ],
    ids=lambda header: (header.decode(errors="replace") if isinstance(header, bytes) else json.dumps(header))[:60],
)
def test_a_bad_header_is_a_checkpoint_error(tmp_path: Path, header: Any) -> None:
    good = written(tmp_path / "good", raw(tensor(), b"\0\0\0\0"))
    assert read_header(good)[0]["t"].shape == (1,)
    with pytest.raises(CheckpointError, match="bad: "):
        read_header(written(tmp_path / "bad", raw(header, b"\0\0\0\0")))


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="longer than the file"):
        read_header(written(tmp_path / "x", struct.pack("<Q", 2**60) + b"{}"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=10,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "XYZ"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 12), min_size=1, max_size=3) | JSON,
    },
)
HEADER = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON, max_size=3) | JSON


@settings(deadline=None, max_examples=300)
@given(header=HEADER, data=st.binary(max_size=12), noise=st.binary(max_size=4))
def test_any_header_is_read_or_refused(header: Any, data: bytes, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = written(Path(directory) / "x", raw(json.dumps(header).encode() + noise, data))
        try:
            entries, metadata = read_header(file)
        except CheckpointError:
            return
        assert all(isinstance(value, str) for value in metadata.values())
        assert sum(len(entry.read()) for entry in entries.values()) == len(data)


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = written(Path(directory) / "x", content)
        try:
            read_header(file)
        except CheckpointError as error:
            assert str(error).startswith(str(file))


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 200), to=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(at: int, to: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "x"
        save_file(TENSORS, file)
        content = bytearray(file.read_bytes())
        content[at % len(content)] = to
        file.write_bytes(content)
        try:
            read_header(file)
        except CheckpointError:
            return


# --- directories ---


def test_one_file_or_shards(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert [file.name for file in model_files(tmp_path)] == ["model.safetensors"]
    for name in ("model-2", "model-1"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"model-2": "model-2.safetensors", "model-1": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in model_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    assert set(model_entries(tmp_path)) == {"model-1", "model-2"}


def test_an_index_cannot_point_out_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="secret.safetensors' is no file beside it"):
        model_files(tmp_path / "model")


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model.safetensors: no such file"):
        model_files(tmp_path)
    with pytest.raises(CheckpointError, match="x: no such file"):
        read_header(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_header(tmp_path)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        model_files(tmp_path)
    assert [problem.rsplit("/", 1)[-1] for problem in caught.value.problems] == [
        "one.safetensors: no such file",
        "two.safetensors: no such file",
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 100_000]
)
def test_a_bad_index_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json: not a weight index"):
        model_files(tmp_path)


# --- fingerprints ---


def test_the_fingerprint_sees_names_shapes_and_the_first_bytes(tmp_path: Path) -> None:
    def of(name: str, value: torch.Tensor) -> str:
        save_file({name: value, "other": torch.zeros(2)}, tmp_path / "x.safetensors")
        return fingerprint(read_header(tmp_path / "x.safetensors")[0], [name])

    count = FINGERPRINT_BYTES // 4
    value = torch.arange(2 * count, dtype=torch.float32)
    changed, late = value.clone(), value.clone()
    changed[count - 1] += 1
    late[count] += 1
    different = [of("a", value), of("b", value), of("a", value.reshape(2, -1)), of("a", value.int()), of("a", changed)]
    assert len(set(different)) == 5
    assert of("a", late) == different[0], "only the first 64 KB are read"


def test_the_fingerprint_does_not_depend_on_the_order_of_names(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    entries, _ = read_header(tmp_path / "x.safetensors")
    assert fingerprint(entries, ["a", "b"]) == fingerprint(entries, ["b", "a"]) != fingerprint(entries, ["a"])


@pytest.mark.parametrize("in_kernel", [True, False])
def test_spans_of_other_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not in_kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    (tmp_path / "source").write_bytes(bytes(range(100)))
    chunks: list[Chunk] = [b"ab", Span(tmp_path / "source", 10, 40), memoryview(b"cd"), Span(tmp_path / "source", 0, 3)]
    write_file(tmp_path / "x", {"t": ("U8", (37,), 37)}, iter(chunks), {})
    entries, _ = read_header(tmp_path / "x")
    assert entries["t"].read() == b"ab" + bytes(range(10, 40)) + b"cd" + bytes(range(3))


def test_a_source_that_shrinks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="has become shorter"):
        write_file(tmp_path / "x", {"t": ("U8", (9,), 9)}, iter([Span(tmp_path / "source", 0, 9)]), {})
