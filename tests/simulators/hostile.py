"""Hostile texts for tests of readers: long, repetitive, deeply nested, or with unusual characters."""

UNITS = (
    *(
        '"',
        '\\"',
        "\\",
        "'",
        "`",
        "#",
        "# ",
        "#\n",
        ".",
        ". ",
        "? ",
        "!",
        ",",
        ", ",
        ";",
        ":",
        ": ",
        "=",
        "-",
        "_",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "<",
        ">",
        "{}",
        "[]",
        '{"a":',
        "[{",
        '{"name": "',
        "[[",
        "<think",
        "<think>",
    ),
    *(
        "</",
        "</think>",
        "<tool_call>",
        "<tool_call>{",
        "<tool_call>{}",
        "</tool_call>",
        "}</tool_call>",
        "} ",
    ),
    *(
        " ",
        "\n",
        "\t",
        "\r\n",
        "\x00",
        "\x0b",
        "\u2028",
        "\u202e",
        "\u200b",
        "\u00a0",
        "é",
        "ﬁ",
        "\U0001f600",
    ),
    *(
        "a",
        "a ",
        "A1 ",
        "1",
        "1 ",
        "-1 ",
        "1.",
        "1,",
        "1e9 ",
        "9" * 300 + " ",
        "#W1",
        "H10",
        "a-",
        "a@",
        "a.a",
    ),
    *(
        "the ",
        "a an the ",
        "why ",
        "is it ",
        "red ",
        "big red ",
        "not ",
        "key=",
        "key=[",
        "a=1 ",
        "x:y; ",
        "ab, ",
    ),
    *(
        "please ",
        "confirm ",
        "anything else ",
        "i am an ai ",
        "how can i help you ",
        "goodbye ",
        "stop",
        "test",
    ),
    *("[action] ", "[answer] ", "P1,", "F1,", "C", "{gold}", "%s", "{0}", "\\u0041", "&lt;", "$(id)", "';--"),
)
"""What the texts repeat."""
ENDS = ("", "!", "}", '"')
"""What may come behind the repetition, so that a match that was nearly there fails."""
BEGINNINGS = ("", '{"', "[", "a", "get_user_details ", "[action] ", "<tool_call>{", "<think>")


def hostile_texts(num_chars: int) -> list[str]:  # [2 * len(UNITS) + 5]
    """Each of at most so many characters, and nearly so many."""
    texts = []
    for number, unit in enumerate(UNITS):
        for begin in ("", BEGINNINGS[number % len(BEGINNINGS)]):
            end = ENDS[number % len(ENDS)]
            body = unit * max(1, (num_chars - len(begin) - len(end)) // len(unit))
            texts.append((begin + body + end)[:num_chars])
    deep = num_chars // 2
    mixed = [
        "[" * deep + "]" * deep,
        '{"a":' * (num_chars // 6) + "1" + "}" * (num_chars // 6),
        "a" + " " * (num_chars - 2) + "b",
        "a" * (num_chars // 2) + " " * (num_chars // 2),
        '{"name": "interact_with_env", "arguments": ' + "[" * deep,
    ]
    return [*texts, *(text[:num_chars] for text in mixed)]
