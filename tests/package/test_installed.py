"""That the package which is installed decodes with its own engine: what fails a wheel.

It needs no other file of the tests. DIVE_INSTALLED=1 says that a wheel is tested, so that what is
imported must not be a checkout.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch

import dive
from dive.decode import native
from dive.decode.session import DecodeSession

# what each path's kernels are compiled for, in the words of /proc/cpuinfo
NEEDED = {
    "scalar": set(),
    "avx2": {"avx", "avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
}
BACKBONE = Path(dive.__file__).parent / "demo" / "backbone"


def usable(flags: set[str]) -> list[str]:
    """The paths, plainest first, up to the first whose instructions are not all there."""
    names = []
    for name, needed in NEEDED.items():
        if not needed <= flags:
            break
        names.append(name)
    return names


@pytest.fixture(scope="module")
def module():
    return pytest.importorskip("dive._C", reason="dive._C is not built; pip install -e . builds it")


@pytest.mark.skipif(os.environ.get("DIVE_INSTALLED") != "1", reason="no wheel is tested")
def test_the_wheel_is_what_is_imported_and_has_its_module():
    assert "site-packages" in Path(dive.__file__).parts, dive.__file__
    info = native.build_info()
    assert info is not None, "dive._C cannot be imported"
    assert info["version"] == dive.__version__ and info["build_type"] == "Release"


def test_the_paths_are_those_that_the_processor_has(module):
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    info = module.build_info()
    assert info["isa_usable"] == usable(flags)
    assert info["isa"] == info["isa_usable"][-1]


@pytest.mark.parametrize("steered", [False, True])
def test_the_engine_decodes_what_transformers_decodes(module, steered):
    backbone = dive.load_backbone(BACKBONE)
    batch = {"input_ids": torch.tensor([[1, 20, 21, 22], [1, 30, 31, 33]])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    adapter = None
    if steered:
        torch.manual_seed(0)
        adapter = dive.SteeringAdapter(dive.SteeringConfig(rank=4), backbone)
        with torch.no_grad():
            for layer in adapter.layers.values():
                layer.up.normal_(std=0.1)
                layer.static.normal_(std=0.1)
                layer.scale.fill_(0.05)
    options = {"max_new_tokens": 24, "do_sample": False}
    if adapter is None:
        want = backbone.model.generate(**batch, **options)
    else:
        with dive.steer(backbone, adapter):
            want = backbone.model.generate(**batch, **options)
    session = DecodeSession(backbone, adapter)
    assert session.engine_choice(**options).engine == "dive._C", session.engine_choice(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dive.FallbackWarning)
        got = session.generate(**batch, **options)
    assert session.ran is not None and session.ran.engine == "dive._C", session.ran
    assert torch.equal(got, want)
