"""Bundles whose chat templates know tools and thinking, in the forms of the family. The model writes at random."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

from support.checkpoints import tiny_checkpoint
from support.text_bundles import write_text_bundle

_FOLDER = tempfile.TemporaryDirectory(prefix="sala-test-tool-bundles-")

_HERMES = """\
{%- if tools %}<|im_start|>system
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one of
{%- for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"""


@functools.cache
def hermes_bundle() -> Path:
    """Written once per session; shared between tests, so never written to."""
    folder = Path(_FOLDER.name)
    checkpoint = shutil.copytree(tiny_checkpoint(), folder / "hermes")
    config = checkpoint / "tokenizer_config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**fields, "chat_template": _HERMES}), encoding="utf-8")
    return write_text_bundle(checkpoint, folder / "hermes.sala")
