"""The predictor spells conversations exactly as training did, without transformers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.contracts import Message
from core.errors import InputError, IntegrityError
from serving.engines.tokens import BundleTokenizer
from training.batches import encode_prompt, load_tokenizer

ROOT = Path(__file__).resolve().parents[3]
CONVERSATIONS = [
    (Message("user", "hi"),),
    (Message("user", ""),),
    (Message("system", "be\nbrief "), Message("user", " 你好 "), Message("assistant", "x")),
    (Message("user", "a<|end|><|assistant|>b"),),
    (Message("system", "<|user|>"), Message("user", "c"), Message("user", "<|pad|>")),
    (Message("user", "é\u0301 👩‍👩‍👧‍👦 \u202e\u0000\r\n"),),
]


@pytest.fixture(scope="module")
def weights(bundle: Path) -> Path:
    return bundle / "weights"


def test_conversations_are_spelt_as_in_training(weights: Path) -> None:
    trained, served = load_tokenizer(weights), BundleTokenizer(weights)
    for turns in CONVERSATIONS:
        assert served.encode(turns) == tuple(encode_prompt(turns, trained))


def test_text_prompts_hold_no_special_token(weights: Path) -> None:
    served = BundleTokenizer(weights)
    assert len(served.encode("<|end|>")) == len("<|end|>")
    assert served.decode([served.encode("1<|end|>世"), (1, 4), ()]) == ["1<|end|>世", "", ""]


def test_templates_speak_transformers_dialect(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / "chat_template.jinja").write_text(
        "{%- for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "  {%- if loop.index > 2 %}{{ raise_exception('two turns at most') }}{% endif %}\n"
        "{{ m.content | trim | tojson }}{{ eos_token }}\n{%- endfor %}"
    )
    trained, served = load_tokenizer(folder), BundleTokenizer(folder)
    for turns in CONVERSATIONS[:2]:
        assert served.encode(turns) == tuple(encode_prompt(turns, trained))
    with pytest.raises(InputError, match="two turns at most"):
        served.encode((Message("user", "a"),) * 3)


def test_a_template_cannot_reach_out_of_its_sandbox(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        BundleTokenizer(folder).encode(CONVERSATIONS[0])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", [None, "{"])
def test_a_broken_tokenizer_is_named(
    weights: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text("{% if" if name.endswith("jinja") else content)
    with pytest.raises(IntegrityError, match=r"build the bundle again"):
        BundleTokenizer(folder)


def test_it_loads_without_transformers(weights: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.engines.tokens import BundleTokenizer;"
        f"BundleTokenizer(Path({str(weights)!r})).encode('x');"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
