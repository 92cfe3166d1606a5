"""The adapters of one engine, in the form that vLLM loads."""

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

from dive.adapter.adapter import SteeringAdapter
from dive.errors import DiveError
from dive.vllm.exported import Exported, export, server_arguments
from dive.vllm.installed import called
from dive.vllm.plugin import register
from dive.vllm.settings import ServerSteering

_GROUP = "vllm.general_plugins"


class AdapterFolders:
    """The folders of adapters for vLLM, in a temporary folder of their own until `close`.

    An adapter is known by its weights: one that is given several times, or read again, has one
    folder and one name, by which vLLM's prefix cache tells adapters apart.

    Attributes:
        arguments: those of `vllm.LLM` by which its model has room for these adapters.

    Raises:
        DiveError: the adapters cannot be served together, or vLLM's processes would not have
            dive's plugin.
    """

    def __init__(self, adapters: Iterable[SteeringAdapter], backbone: str) -> None:
        self._backbone = backbone
        self._temporary = TemporaryDirectory(prefix="dive-vllm-")
        self._requests: dict[str, Any] = {}
        self._exported: dict[str, Exported] = {}
        self._known: WeakKeyDictionary[SteeringAdapter, str] = WeakKeyDictionary()
        try:
            check_plugin()
            different = list(dict.fromkeys(adapters))
            self._first = different[0]
            for one in different:
                self._export(one)
            self.arguments = server_arguments([*self._exported.values()])
        except BaseException:
            self.close()
            raise

    def request(self, adapter: SteeringAdapter) -> Any:
        """vLLM's LoRARequest of an adapter, which may be new.

        Raises:
            DiveError: the engine has no room for its rank, or other settings.
        """
        if adapter not in self._known:
            check_together([self._first, adapter])
            most = self.arguments["max_lora_rank"]
            if adapter.config.rank > most:
                raise DiveError(
                    f"the adapter's rank is {adapter.config.rank}, and this engine was opened for "
                    f"ranks up to {most}: want it among the Engine's adapters"
                )
            self._export(adapter)
        return self._requests[self._known[adapter]]

    def forget_changed(self, adapters: Iterable[SteeringAdapter]) -> None:
        """Has those of these adapters exported again whose numbers have changed since: one that is
        trained further is another adapter to vLLM."""
        for one in dict.fromkeys(adapters):
            if one in self._known and self._known[one] != one.weights_sha256():
                del self._known[one]

    @property
    def requests(self) -> list[Any]:
        """The LoRARequests of all adapters."""
        return list(self._requests.values())

    def _export(self, adapter: SteeringAdapter) -> None:
        sha256 = adapter.weights_sha256()
        if sha256 not in self._exported:  # vLLM may read the folder at any time
            folder = Path(self._temporary.name) / sha256
            self._exported[sha256] = export(adapter, folder, backbone=self._backbone)
            number = len(self._requests) + 1
            kind = called("vllm.lora.request", "LoRARequest")
            self._requests[sha256] = kind(sha256, number, str(folder))
        self._known[adapter] = sha256

    def close(self) -> None:
        """Removes the folders."""
        self._temporary.cleanup()


def check_together(adapters: Sequence[SteeringAdapter]) -> None:
    """Raise DiveError for adapters whose settings differ, as an engine has one value for all, and
    for those that vLLM would not steer as dive does."""
    wanted = [ServerSteering.of_adapter(one.config) for one in adapters]
    for index, other in enumerate(wanted):
        found = wanted[0].difference(vars(other))
        if found is not None:
            raise DiveError(
                f"adapter {index} wants {found.replace('here', 'in adapter 0')}: one engine of "
                "vLLM has one value for all of its adapters, want calls of their own"
            )


def check_plugin() -> None:
    """Registers dive's models in vLLM's registry.

    Raises:
        DiveError: processes that vLLM starts would not have them.
    """
    register()
    own_process = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "dive" not in allowed.split(","):
        raise DiveError(
            f"VLLM_PLUGINS is {allowed!r}, and an adapter needs dive's plugin in every process of "
            "vLLM: want dive among them"
        )
    names = [one.name for one in entry_points(group=_GROUP)]
    if own_process and "dive" not in names:
        raise DiveError(
            "dive's plugin is not among the installed ones, so that vLLM's processes could not "
            "steer: want dive-mrg installed by pip (a checkout alone has no entry point)"
        )
