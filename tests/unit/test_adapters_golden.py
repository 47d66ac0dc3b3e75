"""Our layers against numbers recorded from the authors' own layers."""

from __future__ import annotations

from types import ModuleType

import pytest
from benchmarking import load_benchmark

CASES = [
    "moelora_k2",
    "moelora_soft",
    "smolora_E4_r16_64x96",
    "smolora_E4_r16_64x96_decode",
    "smolora_E4_r16_64x96_sharedinst",
    "smolora_E8_r8_48x48",
    "strlora_k0_s1_D8_distill",
    "strlora_k2_s0",
    "strlora_k2_s1_D0_distill",
    "strlora_k2_s1_D8",
    "strlora_k2_s1_D8_distill",
    "strlora_soft",
]


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    return load_benchmark("golden")


@pytest.mark.parametrize("case", CASES)
def test_layer_computes_what_the_authors_layer_computes(golden, shared_dir, case):
    outcome = golden.check(shared_dir / "golden" / f"{case}.safetensors")
    assert outcome.ok, str(outcome)


def test_command_fails_on_an_empty_folder_and_on_an_unreadable_case(golden, tmp_path, capsys):
    assert golden.main([str(tmp_path)]) == 1
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    assert golden.main([str(tmp_path)]) == 1
    assert "MISS broken" in capsys.readouterr().out


def test_command_fails_when_a_number_differs(golden, shared_dir, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(shared_dir / "golden" / "smolora_E8_r8_48x48.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["grad.fc_vu"] = tensors["grad.fc_vu"] * 1.001
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    (outcome,) = golden.check_folder(tmp_path)
    assert not outcome.ok
    assert outcome.where == "grad.fc_vu"
