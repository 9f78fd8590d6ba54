"""Running a tagger with onnxruntime: where it runs, what goes in, what comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.models.onnxfile import check_network
from lorapipe_tagger.models.adapters import Adapter
from lorapipe_tagger.scoring.picture import Pixels

Scores = NDArray[np.float32]

CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "dml": ("DmlExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
    "cpu": (CPU,),
}
DEVICES = ("auto", *PROVIDERS)
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "rocm": "onnxruntime-rocm",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "coreml": "onnxruntime",
}
# What "auto" tries, fastest first; OpenVINO only on request, since its fp16 has been seen to give nonsense.
_AUTOMATIC = ("cuda", "rocm", "dml", "coreml")
MOST_SIDE = 2048  # pixels of a network's input; taggers have 224 to 1024
MOST_BATCH_PIXELS = 300_000_000  # of a network of fixed batch: 3.6 GB as it gets them
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, kw_only=True)
class Input:
    """A network's input: its name, number type, pictures in NHWC or NCHW, side in pixels, and batch if fixed."""

    name: str
    dtype: Any
    channels_last: bool
    size: int
    batch: int | None


class Network:
    """A tagger that is ready to run; :meth:`scores` for probabilities. Without ``optimised`` its graph is run as it
    stands in the file.
    """

    def __init__(
        self, path: Path, adapter: Adapter, device: str, labels: int, *, optimised: bool = True
    ) -> None:
        self.path = path
        self.adapter = adapter
        self.device, self._session = open_session(path, device, optimised=optimised)
        self.input = _read_input(self._session, adapter, path)
        if adapter.planes and self.input.channels_last:
            raise InputError(
                f"{path}: its list of tags is one of {adapter.name}, but it wants pictures as WD's networks do; the "
                "two are not of one model, download both again"
            )
        self._output = _choose_output(self._session, adapter, path, labels)
        self._labels = labels

    def scores(self, pictures: Sequence[Pixels]) -> Scores:
        """Probabilities (N, labels), float32, of pictures (S, S, 3), uint8, prepared for the adapter.

        A network of fixed batch gets as many at a time as it wants, the last ones filled up. Raises InputError
        where it fails or gives no probabilities.
        """
        step = self.input.batch or max(1, len(pictures))
        parts = [self._run(pictures[at : at + step], step) for at in range(0, len(pictures), step)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, pictures: Sequence[Pixels], step: int) -> Scores:
        batch = self._batch(pictures, step)
        try:
            (output,) = self._session.run([self._output], {self.input.name: batch})
        except Exception as error:  # onnxruntime's own classes, one for each of its status codes
            raise InputError(f"{self.path}: the network fails on {self.device}: {_short(error)}") from error
        scores: Scores = np.asarray(output, dtype=np.float32)[: len(pictures)]
        if scores.shape != (len(pictures), self._labels):
            raise InputError(mismatch(self.path, scores.shape[-1] if scores.ndim else 0, self._labels))
        if self.adapter.logits:
            scores = np.asarray(1 / (1 + np.exp(-np.clip(scores, -80, 80))), dtype=np.float32)
        lowest, highest = float(scores.min()), float(scores.max())
        if not (lowest >= -1e-3 and highest <= 1 + 1e-3):  # NaN too
            raise InputError(
                f"{self.path}: gives {lowest:.3g} to {highest:.3g} on {self.device}, which are no probabilities; "
                f"try --device cpu, or it is no tagger of the kind '{self.adapter.name}'"
            )
        return scores

    def _batch(self, pictures: Sequence[Pixels], step: int) -> NDArray[Any]:
        """(N, S, S, 3) or (N, 3, S, S)."""
        size, adapter = self.input.size, self.adapter
        batch = np.zeros((step, size, size, 3), dtype=np.float32)
        for row, picture in enumerate(pictures):
            batch[row] = picture
        if not adapter.plain:
            order = slice(None, None, -1 if adapter.channels == "BGR" else 1)
            batch -= np.asarray(adapter.mean[order], dtype=np.float32)
            batch /= np.asarray(adapter.std[order], dtype=np.float32)
        if not self.input.channels_last:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return batch if self.input.dtype is np.float32 else batch.astype(self.input.dtype)


def open_session(path: Path, device: str, *, optimised: bool = True) -> tuple[str, Any]:
    """The device that a network runs on, and its session.

    Raises ConfigError for a device that onnxruntime has not or does not get to work, InputError for a broken file.
    """
    import onnxruntime

    check_network(path)
    available = onnxruntime.get_available_providers()
    if device == "auto":
        wanted = next((name for name in _AUTOMATIC if _provider(name, available)), "cpu")
    else:
        wanted = device
    provider = _provider(wanted, available)
    if provider is None:
        raise ConfigError(
            f"--device {device}: the onnxruntime installed here has no {PROVIDERS[wanted][0]} (it has "
            f"{', '.join(available)}); pip uninstall onnxruntime, then pip install {_PACKAGES[wanted]}"
        )
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        session = onnxruntime.InferenceSession(str(path), _session_options(optimised), providers=providers)
    except Exception as error:
        raise InputError(f"{path}: cannot be loaded: {_short(error)}") from error
    if provider not in session.get_providers():
        advice = f"its libraries are missing or too old; see the requirements of {_PACKAGES[wanted]}"
        if device != "auto":
            raise ConfigError(f"--device {device}: onnxruntime fell back to the CPU: {advice}")
        say(f"lora-tag: warning: {wanted} is there but onnxruntime fell back to the CPU: {advice}")
        wanted = "cpu"
    return wanted, session


def _provider(device: str, available: Sequence[str]) -> str | None:
    return next((name for name in PROVIDERS[device] if name in available), None)


def _session_options(optimised: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what goes wrong is told by us, in one line
    # Waiting threads would burn the time that the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _read_input(session: Any, adapter: Adapter, path: Path) -> Input:
    inputs = session.get_inputs()
    shape: list[Any] = list(inputs[0].shape) if len(inputs) == 1 else []
    channels_last = len(shape) == 4 and shape[3] == 3
    if len(shape) != 4 or not (channels_last or shape[1] == 3):
        raise InputError(f"{path}: is no tagger: one input of pictures is needed, it has {_shapes(inputs)}")
    if inputs[0].type not in _FLOATS:
        raise InputError(f"{path}: wants pictures as {inputs[0].type}; only float and float16 are known here")
    height, width = shape[1:3] if channels_last else shape[2:4]
    if isinstance(height, int) and isinstance(width, int) and height != width:
        raise InputError(f"{path}: wants pictures of {width} x {height}; only squares are known here")
    size = next((side for side in (height, width) if isinstance(side, int) and side > 0), adapter.size)
    if size > MOST_SIDE:
        raise InputError(
            f"{path}: wants pictures of {size:,} x {size:,}, more than {MOST_SIDE:,}; is no tagger"
        )
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    if batch is not None and batch * size * size > MOST_BATCH_PIXELS:
        raise InputError(
            f"{path}: wants {batch:,} pictures of {size:,} x {size:,} at once, more than "
            f"{MOST_BATCH_PIXELS / 1e6:,.0f} million pixels"
        )
    return Input(
        name=inputs[0].name,
        dtype=_FLOATS[inputs[0].type],
        channels_last=channels_last,
        size=size,
        batch=batch,
    )


def _choose_output(session: Any, adapter: Adapter, path: Path, labels: int) -> str:
    outputs = session.get_outputs()
    for name in adapter.outputs:
        if any(output.name == name for output in outputs):
            return name
    fitting = [output.name for output in outputs if len(output.shape) == 2 and output.shape[1] == labels]
    # An output of unknown width is checked when it comes.
    fitting = fitting or [
        output.name
        for output in outputs
        if len(output.shape) in (0, 2) and not (output.shape and isinstance(output.shape[1], int))
    ]
    if not fitting:
        widths = [output.shape[-1] for output in outputs if output.shape]
        raise InputError(mismatch(path, widths[0] if widths else 0, labels))
    return str(fitting[-1 if adapter.last_output else 0])


def mismatch(path: Path, outputs: object, labels: int) -> str:
    """What to tell of a network whose outputs are not as many as its tags."""
    return (
        f"{path}: has {outputs} outputs but its list of tags has {labels} rows; the two are not of one model, "
        f"download both again"
    )


def _shapes(inputs: Sequence[Any]) -> str:
    return ", ".join(f"{one.name} {list(one.shape)}" for one in inputs) or "none"


_NEWER = re.compile(
    r"(IR version): (\d+), max supported IR version: (\d+)|([Oo]pset) (\d+) is .*? till opset (\d+)"
)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    if newer := _NEWER.search(text):
        what, needed, known = newer.group(1, 2, 3) if newer[1] else newer.group(4, 5, 6)
        return (
            f"made for {what} {needed}, this onnxruntime knows up to {known}: pip install --upgrade onnxruntime "
            "(or the package for your device), or take an older file of the model"
        )
    with suppress(ValueError):
        text = text[text.index(" : ", text.index("ONNXRuntimeError")) :].strip(" :")
        text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    return text if len(text) <= 200 else f"{text[:200]}..."
