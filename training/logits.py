"""How far a compiled graph's logits are from the merged weights' on the same tokens.

Runs both in this process, outside any server; knows a bundle's folder, and no tolerance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.contracts import Record
from core.errors import InputError
from core.manifests import read_manifest
from training.base import load_model
from training.batches import encode_records, load_tokenizer
from training.bundle import OPENVINO_FOLDER, WEIGHTS_FOLDER
from training.graph import MODEL_FILE
from training.loop import limited_threads, threads_for

ANSWER_TOKENS_MAX = 16
"""Positions of one answer that are compared: each costs one run of the graph."""


def logit_differences(bundle: Path, records: Sequence[Record]) -> list[float]:
    """Return each record's largest |compiled - reference| over its answer's first positions.

    Both read the record's prompt and response, so that one early difference does not change what
    follows. Rows that training would cut to the context length are cut alike. Raises InputError
    when the graph wants inputs that a plain decoder has not.
    """
    import numpy
    import torch

    if not records:
        return []
    model = load_model(bundle / WEIGHTS_FOLDER).eval()
    tokenizer = load_tokenizer(bundle / WEIGHTS_FOLDER)
    threads = threads_for(model)
    compiled = _Compiled(bundle, threads)
    found = []
    with limited_threads(threads), torch.inference_mode():
        for example in encode_records(records, tokenizer, read_manifest(bundle).context_length):
            answers = min(len(example.ids) - example.prompt_length, ANSWER_TOKENS_MAX)
            ids = torch.tensor([example.ids[: example.prompt_length + answers - 1]])
            reference = model(ids, logits_to_keep=answers).logits[0].numpy()
            difference = compiled(ids.numpy(), answers) - reference
            found.append(float(numpy.abs(difference).max()))
    return found


class _Compiled:
    """The bundle's graph as OpenVINO runs it, with the precisions that the manifest names."""

    def __init__(self, bundle: Path, threads: int) -> None:
        import openvino

        settings = read_manifest(bundle).settings
        properties = {
            "INFERENCE_PRECISION_HINT": str(settings["inference_precision"]),
            "KV_CACHE_PRECISION": str(settings["kv_cache_precision"]),
            "INFERENCE_NUM_THREADS": threads,
        }
        graph = bundle / OPENVINO_FOLDER / MODEL_FILE
        model = openvino.Core().compile_model(graph, "CPU", properties)
        self._names = {item.get_any_name() for item in model.inputs}
        self._request = model.create_infer_request()

    def __call__(self, ids: Any, answers: int) -> Any:
        """Return the logits of the last `answers` positions of [1, tokens], as [answers, words].

        The prompt is read at once and the answer token by token, out of the cache, as in serving.
        """
        import numpy

        self._request.reset_state()
        count = ids.shape[1]
        ends = range(count - answers + 1, count + 1)
        starts = [0, *ends[:-1]]
        rows = [self._run(ids, start, end) for start, end in zip(starts, ends, strict=True)]
        return numpy.stack(rows)

    def _run(self, ids: Any, start: int, end: int) -> Any:
        import numpy

        known = {
            "input_ids": ids[:, start:end],
            "attention_mask": numpy.ones((1, end), dtype=numpy.int64),
            "position_ids": numpy.arange(start, end, dtype=numpy.int64)[None],
            "beam_idx": numpy.zeros(1, dtype=numpy.int32),
        }
        if strange := self._names - known.keys():
            raise InputError(
                f"the compiled graph wants {', '.join(sorted(strange))}, so its logits cannot be "
                "compared; set gates.parity.logit_prompts to 0"
            )
        self._request.infer({name: known[name] for name in self._names})
        return self._request.get_output_tensor(0).data[0, -1].copy()
