"""lora-inspect zeros: the golden file, the rule of dead modules, the status, pipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# In the order that files have them in.
LAYER = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{name}_proj" for name in ("k", "out", "q", "v")))
UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def text(prefix: str, *layers: int) -> list[str]:
    """Names of a text encoder's modules, six a layer."""
    return [f"{prefix}_text_model_encoder_layers_{layer}_{name}" for layer in layers for name in LAYER]


SD1 = [*text("lora_te", *range(12)), UNET]
SDXL = [*text("lora_te1", *range(12)), *text("lora_te2", *range(32)), "lora_unet_input_blocks_4_1_proj_in"]


def zeros_of(inspect: Any, path: Path, *words: str) -> dict[str, Any]:
    record: dict[str, Any] = inspect("zeros", path, "--json", *words).record
    return record


# -------------------------------------------------------------------------------- golden


def test_golden_counts(data: Path, inspect: Any) -> None:
    expected = json.loads((data / "sample_expect.json").read_text())
    record = zeros_of(inspect, data / "sample.safetensors")
    tensors = expected["tensors"].values()
    assert record["guide_count"] == expected["guide_count_lines_ending_0.0"]
    assert record["elements"] == {
        "total": sum(tensor["n"] for tensor in tensors),
        "zero": sum(tensor["zeros"] for tensor in tensors),
        "subnormal": sum(tensor["subnormal"] for tensor in tensors),
        "nan": sum(tensor["nan"] for tensor in tensors),
        "inf": sum(tensor["inf"] for tensor in tensors),
    }
    dead = {name for name, module in expected["modules"].items() if module.get("delta_is_zero")}
    found = record["dead"]
    assert set(found["expected"]) == set(text("lora_te", 11))
    # The golden file's list has no LyCORIS modules.
    loha = "lora_unet_up_blocks_1_attentions_0_proj_out"
    assert {*found["expected"], *found["unexpected"]} == dead | {loha}
    ranks = {
        name: module["dead_ranks"] for name, module in expected["modules"].items() if module.get("dead_ranks")
    }
    assert found["ranks"] == ranks
    assert record["verdict"] == "problem"
    assert (record["family"], record["tensors"]) == ("sd1", 64)


def test_the_object_has_the_fields_of_the_specification(data: Path, inspect: Any) -> None:
    record = zeros_of(inspect, data / "sample.safetensors")
    fields = "path file family algo dtypes modules tensors guide_count dead elements verdict nonfinite"
    assert set(record) == set(fields.split())
    assert {"expected", "unexpected", "rule"} < set(record["dead"])
    assert set(record["dtypes"]) == {"F32", "BF16", "F16"}


def test_positions_of_what_is_not_finite(data: Path, inspect: Any) -> None:
    record = zeros_of(inspect, data / "sample.safetensors")
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    places = {
        (place["tensor"].removeprefix(block), *place["index"], place["value"])
        for place in record["nonfinite"]
    }
    assert places == {
        ("attn2_to_v.lora_up.weight", 5, 2, "NaN"),
        ("attn2_to_k.lora_up.weight", 5, 2, "infinity"),
        ("attn2_to_k.lora_up.weight", 6, 0, "infinity"),
    }
    assert "attn2_to_v.lora_up.weight[5, 2]" in inspect("zeros", data / "sample.safetensors").out.decode()


def test_the_report_explains(data: Path, inspect: Any) -> None:
    report = " ".join(inspect("zeros", data / "sample.safetensors").out.decode().split())
    assert "10 of 40 tensors hold an exact zero" in report
    assert "lora_up of 6 modules of text layer 11 (expected)" in report
    assert "clip skip 2 (ss_clip_skip is 2)" in report
    assert "fp16 rounds magnitudes up to 2^-25" in report
    assert "unexpected: lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2" in report
    assert "problem: 2 modules unexpectedly dead" in report


# -------------------------------------------------------------------------------- what is dead, and should be


@pytest.mark.parametrize(("skip", "layers"), [(2, [11]), (3, [10, 11])])
def test_clip_skip_leaves_six_modules_a_layer(write: Any, inspect: Any, skip: int, layers: list[int]) -> None:
    dead = text("lora_te", *layers)
    record = zeros_of(inspect, write("a.safetensors", SD1, dead, {"ss_clip_skip": str(skip)}))
    assert record["guide_count"] == 6 * (skip - 1)
    assert (record["dead"]["expected"], record["dead"]["unexpected"]) == (dead, [])
    assert f"ss_clip_skip is {skip}" in record["dead"]["rule"]


def test_dead_layer_without_clip_skip_is_a_problem(write: Any, inspect: Any) -> None:
    dead = text("lora_te", 11)
    record = zeros_of(inspect, write("a.safetensors", SD1, dead, {"ss_clip_skip": "None"}))
    assert (record["dead"]["expected"], record["dead"]["unexpected"]) == ([], dead)


def test_clip_skip_is_inferred_and_said_so(write: Any, inspect: Any) -> None:
    dead = text("lora_te", 10, 11)
    record = zeros_of(inspect, write("a.safetensors", SD1, dead))
    assert record["dead"]["expected"] == dead
    assert record["dead"]["rule"].startswith("clip skip 3 (inferred from the zeros")
    # Five of six modules are no skipped layer, and neither is one in the middle.
    record = zeros_of(inspect, write("b.safetensors", SD1, [*dead[1:6], *text("lora_te", 4)]))
    assert len(record["dead"]["unexpected"]) == 11


def test_sdxl_never_trains_the_last_layer_of_its_first_text_encoder(write: Any, inspect: Any) -> None:
    dead = text("lora_te1", 11)
    record = zeros_of(inspect, write("a.safetensors", SDXL, dead, {"ss_clip_skip": "2"}))
    assert (record["family"], record["guide_count"]) == ("sdxl", 6)
    assert (record["dead"]["expected"], record["dead"]["unexpected"]) == (dead, [])
    record = zeros_of(inspect, write("b.safetensors", SDXL, text("lora_te2", 31)))
    assert len(record["dead"]["unexpected"]) == 6


@pytest.mark.parametrize(
    ("modules", "skip"), [([*text("lora_te", 0, 1, 2), UNET], "2"), ([*text("lora_te1", 0), SDXL[-1]], "2")]
)
def test_layers_are_not_judged_where_their_number_is_not_known(
    modules: list[str], skip: str, write: Any, inspect: Any
) -> None:
    """The dead layers at the end were taken out, and the width is no published one."""
    record = zeros_of(inspect, write("a.safetensors", modules, [], {"ss_clip_skip": skip}))
    assert record["dead"]["rule"].startswith("how many layers the text encoder has is not known")
    assert record["verdict"] == "clean"
    # The last ones are there, and dead: that tells the number.
    if dead := [name for name in modules if "_layers_2_" in name]:
        record = zeros_of(inspect, write("b.safetensors", modules, dead, {"ss_clip_skip": skip}))
        assert record["dead"]["expected"] == dead
        assert "before layer 2, which gets no gradient" in record["dead"]["rule"]


@pytest.mark.parametrize(
    ("metadata", "why"), [({"ss_text_encoder_lr": "0.0"}, "ss_text_encoder_lr is 0.0"), ({}, "inferred")]
)
def test_untrained_text_encoder_is_expected(
    write: Any, inspect: Any, metadata: dict[str, str], why: str
) -> None:
    record = zeros_of(inspect, write("a.safetensors", SD1, SD1[:-1], metadata))
    assert (record["guide_count"], len(record["dead"]["expected"])) == (72, 72)
    assert why in record["dead"]["rule"]


def test_network_that_does_nothing_is_a_problem(write: Any, inspect: Any) -> None:
    record = zeros_of(inspect, write("a.safetensors", SD1, SD1, {"ss_clip_skip": "2"}))
    assert (len(record["dead"]["expected"]), len(record["dead"]["unexpected"])) == (6, 67)
    record = zeros_of(inspect, write("b.safetensors", SD1, SD1))
    assert len(record["dead"]["unexpected"]) == 73


def test_dead_module_by_alpha(write: Any, inspect: Any) -> None:
    changes = {f"{UNET}.alpha": np.asarray(0, dtype=np.float32)}
    record = zeros_of(inspect, write("a.safetensors", [UNET], [], changes=changes))
    assert (record["dead"]["unexpected"], record["guide_count"]) == ([UNET], 0)


def test_resized_dead_module_counts_twice(write: Any, inspect: Any) -> None:
    """A resized dead module has a zero up and a one-hot down, so the guide counts twelve."""
    changes = {f"{name}.lora_down.weight": np.eye(4, 24, dtype=np.float32) for name in text("lora_te", 11)}
    record = zeros_of(
        inspect, write("a.safetensors", SD1, text("lora_te", 11), {"ss_clip_skip": "2"}, changes=changes)
    )
    assert record["guide_count"] == 12
    assert (record["verdict"], len(record["dead"]["expected"])) == ("clean", 6)


# -------------------------------------------------------------------------------- single zeros


def test_flushed_values_matter_only_when_strict(write: Any, inspect: Any) -> None:
    down = np.full((4, 24), 0.5, dtype=np.float32)
    down[1, 3] = 1e-8  # below half of fp16's smallest
    down[2, 3] = 1e-6
    path = write("a.safetensors", [UNET], [], dtype="F16", changes={f"{UNET}.lora_down.weight": down})
    record = zeros_of(inspect, path)
    assert (record["guide_count"], record["verdict"]) == (1, "clean")
    assert (record["elements"]["zero"], record["elements"]["subnormal"]) == (1, 1)
    assert zeros_of(inspect, path, "--strict")["verdict"] == "problem"
    assert "more than 0.1 %" in inspect("zeros", path, "--strict").lines[-1]


def test_tensor_with_nan_is_no_line_of_the_guide(write: Any, inspect: Any) -> None:
    """The guide's tool prints nan for it, not 0.0."""
    up = np.ones((16, 4), dtype=np.float32)
    up[0, 0], up[1, 1] = 0, np.nan
    record = zeros_of(inspect, write("a.safetensors", [UNET], [], changes={f"{UNET}.lora_up.weight": up}))
    assert (record["guide_count"], record["elements"]["zero"], record["elements"]["nan"]) == (0, 1, 1)


# -------------------------------------------------------------------------------- inputs and outputs


def test_several_files_are_json_lines(write: Any, inspect: Any, tmp_path: Path) -> None:
    write("a.safetensors", SD1, [])
    write("b.safetensors", SD1, [UNET])
    done = inspect("zeros", tmp_path, "--json")
    records = [json.loads(line) for line in done.lines]
    assert [Path(record["file"]).name for record in records] == ["a.safetensors", "b.safetensors"]
    assert [record["verdict"] for record in records] == ["clean", "problem"]
    assert done.code == 1


@pytest.mark.parametrize("command", ["zeros", "keys", "norms", "ranks", "hash", "compat", "check"])
def test_folders_in_a_folder_are_looked_into_if_asked(
    write: Any, inspect: Any, tmp_path: Path, command: str
) -> None:
    (tmp_path / "run/deep").mkdir(parents=True)
    paths = [write(f"run/{name}.safetensors", SD1[-1:], []) for name in ("deep/b", "a")]
    flat, deep = (
        inspect(command, tmp_path / "run", "--json"),
        inspect(command, tmp_path / "run", "-r", "--json"),
    )
    assert [json.loads(line)["path"] for line in flat.lines] == [str(paths[1])]
    assert sorted(json.loads(line)["path"] for line in deep.lines) == sorted(map(str, paths))
    done = inspect(command, tmp_path, "--json")
    assert done.code == 2
    assert "has no .safetensors files; -r looks into its folders" in done.err


def test_unreadable_file_does_not_stop_the_others(write: Any, inspect: Any, tmp_path: Path) -> None:
    good = write("good.safetensors", SD1, [])
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    done = inspect("zeros", bad, good)
    assert done.code == 1
    assert "good.safetensors" in done.lines[0]
    assert done.err.count("\n") == 1
    assert str(bad) in done.err
    assert inspect("zeros", bad, tmp_path / "none.safetensors").code == 2


def test_other_weights_are_counted_too(inspect: Any, data: Path) -> None:
    record = zeros_of(inspect, data / "malformed" / "ok_empty_tensor.safetensors")
    assert (record["modules"], record["guide_count"], record["dead"]["unexpected"]) == (0, 0, [])


def test_network_through_a_pipe(data: Path, inspect: Any) -> None:
    sample = data / "sample.safetensors"
    piped = json.loads(inspect("zeros", "-", "--json", stdin=sample.read_bytes()).out)
    assert piped == zeros_of(inspect, sample) | {"path": "-", "file": "-"}


@pytest.mark.slow
def test_the_pipe_of_the_guide(write: Any, shell: Any, tmp_path: Path) -> None:
    write("my net.safetensors", SD1, [])
    write("other.safetensors", SD1, [UNET])
    done = shell("ls *.safetensors | lora-inspect zeros | lora-resize --new-rank 2 -o small/")
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "my net.safetensors",
        "other.safetensors",
    ]
    assert b"1 module unexpectedly dead" in done.stderr
    done = shell("lora-resize 'my net.safetensors' --new-rank 2 -o - | lora-inspect zeros -")
    assert (done.returncode, done.stdout.split(b"\n")[0][:2]) == (0, b"-:")


def test_paths_go_on_as_they_came(write: Any, inspect: Any) -> None:
    path = write("my net.safetensors", SD1, [])
    record = json.dumps({"path": str(path), "note": 1})
    done = inspect("zeros", stdin=f"{path}\n{record}\n".encode())
    assert done.lines == [str(path), record]
    assert done.err.count("verdict") == 2
    done = inspect("zeros", "-q", stdin=f"{path}\0".encode())
    assert (done.lines, done.err) == ([str(path)], "")
    assert json.loads(inspect("zeros", "--json", stdin=f"{path}\n".encode()).out)["file"] == str(path)


def test_nothing_to_look_into(inspect: Any, tmp_path: Path) -> None:
    assert inspect("zeros", stdin=b"").code == 2
    done = inspect("zeros", tmp_path)
    assert (done.code, done.err) == (2, f"lora-inspect zeros: error: {tmp_path}: has no .safetensors files\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_one_line(data: Path, shell: Any) -> None:
    done = shell(f"lora-inspect zeros '{data}/sample.safetensors' > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_work_needs_no_torch(data: Path, shell: Any) -> None:
    code = (
        "import sys; from lorapipe_inspect.cli import lora_inspect\n"
        "try: lora_inspect.main(['check', sys.argv[1]])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = shell(f"'{sys.executable}' -c \"{code}\" '{data}/sample.safetensors'")
    assert done.stdout.splitlines()[-1] == b"False"
