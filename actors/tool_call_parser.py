"""Where tool calls stand in what a policy wrote (Qwen3's form), found in time in proportion to the text,
whatever it holds.
"""

from collections.abc import Iterator

BEGIN, END = "<tool_call>", "</tool_call>"


def call_texts(text: str) -> Iterator[str]:
    """The `{...}` of each call, in order: from a brace right behind `<tool_call>` to the first one right
    before a `</tool_call>`, white space aside. What stands inside is not looked at.

    Example: `list(call_texts('<tool_call> {"name": "a"} </tool_call>'))` is `['{"name": "a"}']`.
    """
    at = 0
    while (begin := text.find(BEGIN, at)) >= 0:
        at = begin + len(BEGIN)
        first = _skip_space(text, at)
        if not text.startswith("{", first):
            continue
        end = last = first
        while (end := text.find(END, end)) >= 0:
            last = _before_space(text, end)
            if last - 1 > first and text[last - 1] == "}":
                break
            end += len(END)
        if end < 0:
            return  # no later call ends either
        yield text[first:last]
        at = end + len(END)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _before_space(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end
