"""The same job as a user would write it: pandas, datasets.map, a tokenizer of tokenizers, regex.

Left out, to its advantage: near duplicates, most types of personal data, exactly-once commits.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
PHONE = re.compile(r"(?:\+\d{1,3}[ .-]?)?(?:\d[ .-]?){9,13}\d")
FIELDS = ("text", "answer", "topic", "id")


def usual_pass(path: Path, tokenizer: Path, target: Path) -> dict[str, int]:
    """Read, check, scrub, deduplicate and count tokens; write Parquet; return the counts."""
    import pandas as pd
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer

    disable_progress_bars()
    rows = list(_good_rows(path))
    frame = pd.DataFrame(rows)
    frame["created_at"] = pd.to_datetime(frame["created_at"], errors="coerce", utc=True)
    frame = frame[frame["created_at"] < pd.Timestamp.now(tz="UTC")]
    frame = frame[(frame["answer"].str.len() > 0) & (frame["text"].str.len() < 20_000)]
    frame = frame.drop_duplicates(["text", "answer"])
    model = Tokenizer.from_file(str(tokenizer))

    def scrubbed(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = {name: [_scrub(text) for text in batch[name]] for name in ("text", "answer")}
        pairs = zip(texts["text"], texts["answer"], strict=True)
        joined = [f"{text}\n{answer}" for text, answer in pairs]
        counts = [len(ids) for ids in model.encode_batch(joined, add_special_tokens=False)]
        return {**texts, "tokens": counts}

    data = Dataset.from_pandas(frame, preserve_index=False).map(scrubbed, batched=True)
    data.to_parquet(str(target))
    return {"rows": len(rows), "kept": data.num_rows, "tokens": sum(data["tokens"])}


def _good_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if all(isinstance(row.get(name), str) for name in FIELDS):
                yield row


def _scrub(text: str) -> str:
    return PHONE.sub("[PHONE]", EMAIL.sub("[EMAIL]", text))
