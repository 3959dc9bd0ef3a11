"""Docstrings in the style of transformers: `auto_docstring`, and entries with types and defaults."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

from simplify import Source, edited

CHECKPOINT = "mnaylor/mega-base-wikitext"
WIDTH = 119
DIMENSIONS = {
    "B": "batch_size",
    "L": "sequence_length",
    "V": "config.vocab_size",
    "choices": "num_choices",
    "num_labels": "config.num_labels",
}
KNOWN = {
    "attention_mask",
    "cache",
    "end_positions",
    "input_ids",
    "inputs_embeds",
    "kwargs",
    "logits_to_keep",
    "start_positions",
    "token_type_ids",
    "use_cache",
}
"""Arguments that `auto_docstring` describes itself."""
RENAMED = '    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")\n'
"""As transformers has it on all models that take a cache."""
EXAMPLE = '''
    Example:

    ```python
    >>> from transformers import MegaConfig, MegaModel

    >>> # Initializing a Mega configuration
    >>> configuration = MegaConfig()

    >>> # Initializing a model (with random weights) from the configuration
    >>> model = MegaModel(configuration)

    >>> # Accessing the model configuration
    >>> configuration = model.config
    ```
    """'''


def of_configuration(text: str) -> str:
    """A configuration with its fields described as transformers does."""
    source = Source(text)
    node = source.tree.body[0]
    assert isinstance(node, ast.ClassDef)
    types = {
        each.target.id: (source.text(each.annotation), source.text(each.value))
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None
    }
    described = []
    for name, words in _entries(ast.get_docstring(node) or ""):
        annotation, default = types[name]
        ending = "" if default == "None" else f", defaults to `{default}`"
        described.append(_entry(name, f"`{_plain(annotation)}`, *optional*{ending}", words, 4))
    docstring = 'r"""\n' + "\n".join(described) + "\n" + EXAMPLE
    first = source.starts[node.lineno - 1]
    decorator = source.starts[min(each.lineno for each in node.decorator_list) - 1] if node.decorator_list else first
    return edited(
        text,
        [
            (*source.span(node.body[0]), docstring),
            (decorator, decorator, f'@auto_docstring(checkpoint="{CHECKPOINT}")\n'),
        ],
    )


def of_model(text: str) -> str:
    """A model with what `auto_docstring` does not know: its first sentence, and arguments of its own."""
    source = Source(text)
    node = source.tree.body[0]
    assert isinstance(node, ast.ClassDef)
    whole = ast.get_docstring(node) or ""
    intro = textwrap.indent(whole.partition("\n\n")[0], "    ")
    start = source.starts[node.lineno - 1]
    if node.name.endswith("PreTrainedModel"):
        edits = [(start, start, "@auto_docstring\n")]
    else:
        edits = [(start, start, f'@auto_docstring(\n    custom_intro="""\n{intro}\n    """\n)\n')]
    edits.append((*source.lines_of(node.body[0]), ""))
    arguments = dict(_entries(whole))
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            edits += _described(source, method, {name: arguments[name] for name in arguments if name != "config"})
        if isinstance(method, ast.FunctionDef) and method.name == "forward":
            docstring = ast.get_docstring(method)
            if docstring is None:
                continue
            place = source.starts[method.lineno - 1]
            renamed = RENAMED if "cache" in [each.arg for each in method.args.args] else ""
            edits.append((place, place, f"    @auto_docstring\n{renamed}"))
            own = {name: words for name, words in _entries(docstring) if name not in KNOWN}
            edits.append((*source.lines_of(method.body[0]), _docstring(method, source, own)))
    return edited(text, edits)


def _described(source: Source, method: ast.FunctionDef, words: dict[str, str]) -> list[tuple[int, int, str]]:
    place = source.starts[method.body[0].lineno - 1]
    return [(place, place, _docstring(method, source, words))] if words else []


def _docstring(method: ast.FunctionDef, source: Source, words: dict[str, str]) -> str:
    """The docstring of a method: its arguments."""
    if not words:
        return ""
    types = {each.arg: source.text(each.annotation) for each in method.args.args if each.annotation is not None}
    defaults = dict(zip([each.arg for each in method.args.args][::-1], method.args.defaults[::-1]))
    entries = []
    for name, text in words.items():
        shape, text = _shape(text)
        default = source.text(defaults[name]) if name in defaults else None
        kind = "torch.LongTensor" if name == "labels" else _plain(types[name])
        ending = "" if default is None else ", *optional*"
        ending += f", defaults to `{default}`" if default not in (None, "None") else ""
        entries.append(_entry(name, f"`{kind}`{shape}{ending}", text, 8))
    return '        r"""\n' + "\n".join(entries) + '\n        """\n'


def _shape(text: str) -> tuple[str, str]:
    """A description that begins with a shape, taken apart."""
    found = re.match(r"\(([\w, ]+)\),? (?:of )?", text)
    if found is None:
        return "", text
    dimensions = [DIMENSIONS.get(each, each) for each in re.findall(r"\w+", found[1])]
    shape = ", ".join(dimensions) + ("," if len(dimensions) == 1 else "")
    return f" of shape `({shape})`", text[found.end() :]


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The arguments that a docstring in Google's style describes, each alone, and what it says."""
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", docstring, flags=re.MULTILINE | re.DOTALL)
    if section is None:
        return
    for entry in re.split(r"\n(?= {4}\S)", section[1]):
        found = re.match(r" {4}(\w+): (.*)", entry, flags=re.DOTALL)
        if found is not None:
            yield found[1], " ".join(found[2].split())


def _entry(name: str, kind: str, words: str, indent: int) -> str:
    words = words[:1].upper() + words[1:]
    before = " " * (indent + 4)
    text = textwrap.fill(words, WIDTH, initial_indent=before, subsequent_indent=before, break_long_words=False)
    return f"{' ' * indent}{name} ({kind}):\n{text}"


def _plain(annotation: str) -> str:
    return annotation.replace(" | None", "").replace("float | int", "float")
