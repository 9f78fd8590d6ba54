"""The options of ``lora-merge --networks`` for tests that call it without a command line."""

from __future__ import annotations

from typing import Any

from lorapipe_engine.command.options import fields_of
from lorapipe_merge.networks.merge import Wishes
from lorapipe_merge.settings import NetworksSettings, OutputSettings, SharedSettings


def wishes(output: str, **options: Any) -> Wishes:
    """The options of ``lora-merge --networks`` by their names, in fp32 unless another is given."""

    def part(cls: type[Any], **extra: Any) -> Any:
        return cls(
            **extra,
            **{field.name: options.pop(field.name) for field in fields_of(cls) if field.name in options},
        )

    found = Wishes(
        part(NetworksSettings),
        part(
            OutputSettings,
            output=output,
            **({} if "save_precision" in options else {"save_precision": "fp32"}),
        ),
        part(SharedSettings),
        verify=options.pop("verify", False),
    )
    assert not options
    return found
