"""The model card of an exported model: what it is, and how it is asked."""

from __future__ import annotations

from transformers import PreTrainedModel

from distforge import __version__
from distforge.rendering import Renderer
from distforge.rendering.thinking_tokens import THINKING_TOKENS

CARD_FILE = "README.md"

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [distforge]
---
# A model of distforge

A causal language model ({kind}, {millions:.1f}M parameters), written by distforge {version}.
`summary.json` and `report.html` of the run that made it say what it was trained on and how it was
measured.

## How to ask it

    distforge ask PATH/TO/THIS/DIRECTORY

From Python, with nothing but transformers, greedily and by these very tokens:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH/TO/THIS/DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("PATH/TO/THIS/DIRECTORY")
{asking}
written = model.generate(**inputs, max_new_tokens=200, do_sample=False)
print(tokenizer.decode(written[0, inputs["input_ids"].shape[1]:]))
```
"""
_PLAIN = """\
inputs = tokenizer("Question: YOUR QUESTION\\n", return_tensors="pt")"""
_CHAT = """\
messages = [{"role": "user", "content": "YOUR QUESTION"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
_THOUGHTS = """
It has the thinking tokens {tokens}:
its thought is between `<think>` and `</think>`, its answer comes after `Answer:`.
"""


def model_card(model: PreTrainedModel, renderer: Renderer) -> str:
    """The card, in Markdown with the hub's front matter; the same wherever the model lies."""
    lm = getattr(model, "lm", model)
    text = _HEAD.format(
        kind=lm.config.model_type,
        millions=sum(parameter.numel() for parameter in lm.parameters()) / 1e6,
        version=__version__,
        asking=_CHAT if renderer.has_template else _PLAIN,
    )
    known = [token for token in THINKING_TOKENS if token in renderer.tokenizer.get_vocab()]
    if len(known) == len(THINKING_TOKENS):
        text += _THOUGHTS.format(tokens=" ".join(f"`{token}`" for token in known))
    return text
