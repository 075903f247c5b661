"""How the vllm engine is configured and refused, without vLLM itself."""

import json
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Start
from predictor_process import until

from core.errors import ConfigurationError, IntegrityError
from core.manifests import read_manifest
from serving.engines.vllm import checked_adapter, checked_base, end_ids
from serving.engines.vllm_config import VllmConfig, server_environment
from serving.predictor_config import read_config

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = "SERIN_PREDICTOR_VLLM"


def test_every_setting_reaches_the_command_line() -> None:
    config = VllmConfig(
        base="/base",
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        gpu_memory_utilization=0.7,
        kv_cache_dtype="fp8",
        quantization="fp8",
        dtype="bfloat16",
        prefix_caching=False,
        max_loras=5,
        max_lora_rank=64,
        enforce_eager=True,
    )
    options = config.arguments(Path("/base"), "name", 512, 16, 1024)
    wanted = """--model=/base --served-model-name=name --tensor-parallel-size=2
        --pipeline-parallel-size=3 --gpu-memory-utilization=0.7 --kv-cache-dtype=fp8
        --quantization=fp8 --dtype=bfloat16 --no-enable-prefix-caching --enable-lora
        --max-loras=5 --max-lora-rank=64 --enforce-eager --max-model-len=512 --max-num-seqs=16
        --max-num-batched-tokens=1024"""
    assert set(wanted.split()) <= set(options)


def test_merged_weights_are_served_without_adapters() -> None:
    options = VllmConfig().arguments(Path("/bundle/weights"), "name")
    assert "--enable-prefix-caching" in options
    assert not [option for option in options if "lora" in option or "max-" in option]


def test_the_server_stays_offline_and_on_this_machine() -> None:
    found = server_environment({"PATH": "/bin"}, cache_gigabytes=1.5, threads=3)
    assert found["HF_HUB_OFFLINE"] == found["VLLM_NO_USAGE_STATS"] == "1"
    assert found["VLLM_HOST_IP"] == "127.0.0.1"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert found["OMP_NUM_THREADS"] == "3"


def test_one_variable_holds_all_settings_and_wrong_ones_are_named() -> None:
    found = read_config(None, {VARIABLE: '{"tensor_parallel_size": 4}'})
    assert found.vllm == VllmConfig(tensor_parallel_size=4)
    for wrong, named in (
        ('{"tensor_paralel_size": 4}', "tensor_paralel_size"),
        ('{"kv_cache_dtype": "fp3"}', "kv_cache_dtype"),
        ("{", "vllm"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            read_config(None, {VARIABLE: wrong})


def test_the_settings_under_deploy_are_valid() -> None:
    runtime = yaml.safe_load((ROOT / "deploy/gpu/serving-runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    (variable,) = (item for item in container["env"] if item["name"] == VARIABLE)
    (token,) = (item for item in container["env"] if item["name"] == "SERIN_PREDICTOR_TOKEN")
    assert token["valueFrom"]["secretKeyRef"]["name"] == "serin-predictor"
    image = (ROOT / "deploy/gpu/Dockerfile").read_text()
    line = next(line for line in image.splitlines() if VARIABLE in line)
    for text in (variable["value"], line.partition("=")[2].strip().strip("'")):
        assert read_config(None, {VARIABLE: text}).vllm.python == "/opt/vllm/bin/python"


def test_a_bundle_without_its_adapter_or_of_another_base_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(bundle)
    with pytest.raises(IntegrityError, match="is not the adapter"):
        checked_adapter(bundle / "weights", manifest)
    with pytest.raises(ConfigurationError, match="is not the base"):
        checked_base(tmp_path, manifest)
    with pytest.raises(IntegrityError, match="names no end token"):
        end_ids(tmp_path)
    assert end_ids(bundle / "weights") == [1]


@pytest.mark.parametrize(
    ("python", "code", "said"),
    [("/bin/false", 4, "vLLM ended with code 1"), ("/nowhere/python", 2, "cannot be run")],
)
def test_a_server_that_cannot_start_is_told(
    start: Start, python: str, code: int, said: str
) -> None:
    settings = json.dumps({"python": python})
    predictor = start("--engine", "vllm", **{VARIABLE: settings})
    assert predictor.process.wait(30) == code
    assert said in predictor.log
    assert "Traceback" not in predictor.log


def test_a_predictor_told_to_stop_while_loading_ends_its_server(
    start: Start, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    predictor = start("--engine", "vllm", **{VARIABLE: json.dumps({"python": str(slow)})})
    process = psutil.Process(predictor.process.pid)
    until(lambda: bool(process.children()), 30)
    family = process.children(recursive=True)
    predictor.terminate()
    assert predictor.process.wait(20) == 0
    assert psutil.wait_procs(family, 5)[1] == []
