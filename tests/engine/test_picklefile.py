from __future__ import annotations

import io
import os
import pickle
import pickletools
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.picklefile import PickleFile, open_weights
from lorapipe_engine.files.tensorfile import TensorFile, write_tensors
from lorapipe_engine.files.unpickle import BadPickleError, Call, Global, read_pickle
from support.quick import examples

PythonPickler: Any = pickle._Pickler


class Runs:
    """A pickle of this calls a function on loading."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)
    return path


class Storage:
    """Stands for a torch storage: pickled as the reference that torch writes."""

    def __init__(self, kind: str, key: Any, count: int) -> None:
        self.reference = ("storage", ByName(f"torch.{kind}"), key, "cpu", count)


class ByName:
    def __init__(self, name: str) -> None:
        self.name = name


class ByHand(PythonPickler):  # type: ignore[misc]  # the only one that lets names be invented
    """Pickles with names that need not exist here, so that files of torch can be made without it."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.reference if isinstance(obj, Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, ByName):
            module, _, name = obj.name.rpartition(".")
            self.write(b"c" + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Runs) and isinstance(obj.call[0], ByName):
            self.save(obj.call[0])
            self.save(obj.call[1])
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any) -> bytes:
    stream = io.BytesIO()
    ByHand(stream, 2).dump(value)
    return stream.getvalue()


def tensor(
    key: Any, shape: tuple[int, ...], strides: tuple[int, ...], *, offset: int = 0, kind: str = "FloatStorage"
) -> Runs:
    rebuild = ByName("torch._utils._rebuild_tensor_v2")
    return Runs(rebuild, Storage(kind, key, 12), offset, shape, strides, False, OrderedDict())


def saved(path: Path, root: Any, **storages: bytes) -> Path:
    return archive(
        path, {"data.pkl": dumps(root)} | {f"data/{key[1:]}": data for key, data in storages.items()}
    )


DATA = np.arange(12, dtype=np.float32)


# ---------------------------------------------------------------------------------------- without torch


def test_tensors_are_read_from_their_storage(tmp_path: Path) -> None:
    root = {
        "state_dict": OrderedDict(
            a=tensor("0", (3, 4), (4, 1)),
            turned=tensor("0", (4, 3), (1, 4)),
            part=tensor("0", (2, 2), (4, 1), offset=5),
            none=tensor("0", (0, 3), (3, 1)),
            one=tensor("0", (), (), offset=7),
            half=tensor("1", (2,), (1,), kind="HalfStorage"),
        ),
        "epoch": 3,
        "note": "hello",
        "long": "x" * 2000,
    }
    path = saved(tmp_path / "model.ckpt", root, _0=DATA.tobytes(), _1=np.array([1, 2], np.float16).tobytes())
    with open_weights(path) as file:
        assert list(file.tensors) == ["a", "turned", "part", "none", "one", "half"]
        assert file.metadata == {"epoch": "3", "note": "hello"}
        assert (file.read("a") == DATA.reshape(3, 4)).all()
        assert (file.read("turned") == DATA.reshape(3, 4).T).all()
        assert file.read("part").tolist() == [[5, 6], [9, 10]]
        assert file.read("none").shape == (0, 3)
        assert file.read("one").tolist() == 7
        assert file.tensors["half"].dtype == "F16"
        assert file.read("half").tolist() == [1, 2]
        assert np.frombuffer(file.raw("turned", 4, 12), "<f4").tolist() == [4, 8]
        assert np.frombuffer(file.raw("part", 8), "<f4").tolist() == [9, 10]


def test_the_format_is_known_by_the_content(tmp_path: Path) -> None:
    renamed = saved(tmp_path / "model.safetensors", {"a": tensor("0", (12,), (1,))}, _0=DATA.tobytes())
    with open_weights(renamed) as file:
        assert isinstance(file, PickleFile)
        assert (file.read("a") == DATA).all()
    write_tensors(tmp_path / "model.ckpt", {"a": DATA})
    with open_weights(tmp_path / "model.ckpt") as file:
        assert isinstance(file, TensorFile)
        assert (file.read("a") == DATA).all()


def test_nested_tables_have_dotted_names_and_circles_end(tmp_path: Path) -> None:
    inner: dict[Any, Any] = {"*": tensor("0", (12,), (1,)), 3: tensor("0", (12,), (1,))}
    inner["self"] = inner
    root = {"string_to_param": inner, "name": "style"}
    path = saved(tmp_path / "a.pt", root, _0=DATA.tobytes())
    with open_weights(path) as file:
        assert list(file.tensors) == ["string_to_param.*", "string_to_param.3"]


MARK = "ran.txt"


def evil_pickles(mark: Path) -> list[bytes]:
    shell = f"echo ran > {mark}"
    plain = [
        Runs(os.system, shell),
        Runs(subprocess.getoutput, shell),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(exec, f"open({str(mark)!r}, 'w')"),
        Runs(open, str(mark), "w"),
    ]
    found = [pickle.dumps({"a": bad}, protocol) for bad in plain for protocol in (0, 1, 2, 4, 5)]
    text = shell.encode()
    found += [
        b"(cos\nsystem\nS'" + text + b"'\no.",  # OBJ
        b"(S'" + text + b"'\nios\nsystem\n.",  # INST
        b"\x80\x02cos\nsystem\n(S'" + text + b"'\nt\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'" + text + b"'\nt}\x92.",  # NEWOBJ_EX
        b"\x80\x02}(U\x01acos\nsystem\nS'" + text + b"'\nbu.",  # BUILD
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x0b__globals__}sb(t\x81.",
    ]
    return found


def test_no_pickle_runs_anything(tmp_path: Path) -> None:
    mark = tmp_path / MARK
    for number, data in enumerate(evil_pickles(mark)):
        pickletools.dis(data, io.StringIO())  # a real pickle
        path = archive(tmp_path / f"{number}.ckpt", {"data.pkl": data})
        with suppress(InputError):
            open_weights(path).close()
        assert not mark.exists()
    # The same pickle in pickle's own hands: the test can fail.
    pickle.loads(evil_pickles(mark)[0])  # noqa: S301
    assert mark.exists()


def test_unknown_objects_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    callback = Runs(ByName("pytorch_lightning.callbacks.ModelCheckpoint"), 1)
    root = {
        "callbacks": {callback: 1, "x": callback},
        "optimizer_states": [
            defaultdict(list),
            {("tuple", 1): 2},
            Runs(ByName("numpy.core.multiarray.scalar"), 1),
        ],
        "state_dict": {"a": tensor("0", (12,), (1,)), "hook": callback},
    }
    path = saved(tmp_path / "a.ckpt", root, _0=DATA.tobytes())
    with open_weights(path) as file:
        assert list(file.tensors) == ["a"]


@pytest.mark.parametrize(
    ("root", "says"),
    [
        (Runs(ByName("torch.nn.Module")), "torch.nn.Module"),
        ([1], "a list"),
        ({"a": tensor("9", (12,), (1,))}, "no data"),
        ({"a": tensor("0", (13,), (1,))}, "reaches over"),
        ({"a": tensor("0", (3, 4), (5, 1))}, "reaches over"),
        ({"a": tensor("0", (2,), (-1,))}, "no valid shape"),
        ({"a": tensor("0", (2,), (1, 1))}, "no valid shape"),
        ({"a": tensor("0", (2,), (1,), offset=1 << 70)}, "no valid shape"),
        ({"a": tensor("0", (1 << 40,), (0,))}, "reaches over"),
        ({"a": tensor("0", (2,), (1,), kind="QInt8Storage")}, "type"),
        ({"a": tensor(["0"], (2,), (1,))}, "not a storage"),
        ({"a": Runs(ByName("torch._utils._rebuild_tensor_v2"), 1, 2, 3, 4)}, "not described"),
    ],
)
def test_descriptions_that_do_not_fit(tmp_path: Path, root: Any, says: str) -> None:
    path = saved(tmp_path / "a.ckpt", root, _0=DATA.tobytes())
    with pytest.raises(InputError, match=says) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_torch_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="has no data"):
        open_weights(path)
    archive(path, {"data.pkl": pickle.dumps({}) + bytes(1000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        open_weights(path)
    archive(path, {"data.pkl": pickle.dumps({}), "byteorder": b"big"})
    with pytest.raises(InputError, match="big-endian"):
        open_weights(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"before 1\.6"):
        open_weights(path)
    with pytest.raises(InputError, match="no such file"):
        open_weights(tmp_path / "absent")


def test_an_archive_cut_short_anywhere(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.ckpt", {"a": tensor("0", (12,), (1,))}, _0=DATA.tobytes()).read_bytes()
    path = tmp_path / "b.ckpt"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            open_weights(path)


# ------------------------------------------------------------------------------------------------ the machine

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@settings(max_examples=examples(100), deadline=None)
@given(VALUES, st.integers(0, 5))
def test_plain_data_come_out_as_they_went_in(value: Any, protocol: int) -> None:
    data = pickle.dumps([value, value], protocol)
    if protocol < 3 and (b"_codecs" in data or b"bytes" in data):
        return  # bytes were not data yet then
    assert read_pickle(io.BytesIO(data)) == [value, value]


def test_sets_and_special_tables() -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(OrderedDict(a=1)))) == {"a": 1}
    assert read_pickle(io.BytesIO(pickle.dumps({1, 2}, 4))) == [1, 2]
    assert read_pickle(io.BytesIO(pickle.dumps(frozenset([1]), 4))) == [1]
    call = read_pickle(io.BytesIO(pickle.dumps(Runs(os.getcwd), 2)))
    assert isinstance(call, Call)
    assert isinstance(call.function, Global)
    assert call.function.name.endswith(".getcwd")


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)
    | st.lists(st.sampled_from([ord(op.code) for op in pickletools.opcodes]), min_size=4, max_size=60).map(
        lambda codes: list(enumerate(codes))
    )
)
def test_broken_pickles_are_refused_in_one_way(changes: list[tuple[int, int]]) -> None:
    data = bytearray(dumps({"state_dict": OrderedDict(a=tensor("0", (3, 4), (4, 1))), "x": [1, (2.5, "y")]}))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(BadPickleError):  # many are accepted, and nothing else may come out
        read_pickle(io.BytesIO(bytes(data)))


def test_numbers_and_tables_made_to_blow_up() -> None:
    for data in (
        b"\x8e" + b"\xff" * 8,
        b"X\xff\xff\xff\x7f",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8b\xff\xff\xff\x7f.",
    ):
        with pytest.raises(BadPickleError):
            read_pickle(io.BytesIO(data))
    # Tuples in tuples, 2 to the 60th if anything visited them all; as a key Python would.
    doubling = b"\x80\x02}(K\x01" + b"2\x86" * 60 + b"K\x02u."
    assert read_pickle(io.BytesIO(doubling)) == {}


# ------------------------------------------------------------------------------------------------ with torch


@pytest.mark.torch
def test_what_torch_saves(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "plain": base,
        "turned": base.T,
        "rows": base[1:3],
        "columns": base[:, 1:3],
        "parameter": torch.nn.Parameter(base.clone()),
        "number": torch.tensor(1.5, dtype=torch.float64),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "fp8": base.to(torch.float8_e4m3fn),
        "flags": base > 5,
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
        "empty": torch.zeros(0, 3),
        "spread": torch.arange(77).expand(1, -1),
    }
    for name, wanted in (
        ("state.ckpt", {"state_dict": tensors, "global_step": 875000}),
        ("plain.pt", tensors),
    ):
        torch.save(wanted, tmp_path / name)
        with open_weights(tmp_path / name) as file:
            assert list(file.tensors) == list(tensors)
            assert file.metadata.get("global_step") == ("875000" if name == "state.ckpt" else None)
            for key, expected in tensors.items():
                data = expected.detach()
                exact = (
                    data
                    if data.dtype in (torch.float64, torch.bool) or not data.is_floating_point()
                    else data.float()
                )
                np.testing.assert_array_equal(file.read(key), exact.numpy())
                assert bytes(file.raw(key)) == data.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.torch
def test_torch_files_of_before_1_6_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before 1\.6"):
        open_weights(tmp_path / "old.ckpt")
