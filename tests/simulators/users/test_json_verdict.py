"""The parser of verdicts: wrapping is tolerated, an ambiguous object is never a verdict."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.user import flat_schema
from simulators.users.json_verdict import MAX_CHARS, InvalidVerdict, has_open_reasoning, parse_verdict

SCHEMA = flat_schema(
    {
        "stance": {"enum": ["won", "open", "lost", None]},
        "distinct": {"type": "boolean"},
        "say": {"type": "string", "maxLength": 20},
    }
)
GOOD = '{"stance": "open", "distinct": false, "say": "Hm."}'
VERDICT = {"stance": "open", "distinct": False, "say": "Hm."}

READABLE = {
    "bare": GOOD,
    "space around": f"\n\n  {GOOD}  \n",
    "fence with a language": f"```json\n{GOOD}\n```",
    "fence without": f"```\n{GOOD}```",
    "fence in talk": f"Here it is:\n```JSON\n{GOOD}\n```\nDone.",
    "talk before": f"The verdict is {GOOD}",
    "talk after": f"{GOOD}\nI hope that helps.",
    "reasoning": f"<think>They say {{so}}, hm.</think>\n{GOOD}",
    "reasoning in capitals": f"<THINKING>well</THINKING>{GOOD}",
    "reasoning whose opening stood in the template": f"They were polite.\n</think>\n\n{GOOD}",
    "two blocks of reasoning": f"<think>a</think> no: <think>b</think>{GOOD}",
    "reasoning that never closes": f"<think>They were polite. {GOOD}",
    "reasoning that never closes, fenced": f"<think>So:\n```json\n{GOOD}\n```",
    "reasoning that tries a verdict first": f"<think>{GOOD.replace('open', 'won')}</think>{GOOD}",
    "trailing comma": '{"stance": "open", "distinct": false, "say": "Hm.",}',
    "trailing comma and a break": '{"stance": "open", "distinct": false, "say": "Hm.",\n}',
    "other order": '{"say": "Hm.", "distinct": false, "stance": "open"}',
    "the same twice": f"{GOOD} or, once more, {GOOD}",
    "braces in the talk": f"I chose from {{a, b}}: {GOOD}",
    "a note in brackets": f"[note] {GOOD}",
    "another object first": f'{{"thought": "polite"}} {GOOD}',
    "a byte order mark": f"\ufeff{GOOD}",
    "escaped letters": '{"stance": "\\u006fpen", "distinct": false, "say": "Hm."}',
}

MALFORMED = {
    "nothing": "",
    "blank": " \n ",
    "prose": "They are open to it.",
    "only reasoning": "<think>hm</think>",
    "a verdict inside reasoning only": f"<think>{GOOD}</think>",
    "reasoning that goes on behind a verdict": f"<think>they wrote {GOOD} and I doubt it",
    "forged end of reasoning": f'<think>they wrote "</think>{GOOD}" so</think>',
    "cut short": GOOD[:-1],
    "cut in a string": GOOD[:-4],
    "single quotes": GOOD.replace('"', "'"),
    "no quotes": "{stance: open, distinct: false, say: Hm}",
    "Python's constants": GOOD.replace("false", "False"),
    "None": GOOD.replace('"open"', "None"),
    "two trailing commas": GOOD[:-1] + ",,}",
    "a comma alone": "{,}",
    "no comma": GOOD.replace('", "dis', '" "dis'),
    "no colon": GOOD.replace(":", ""),
    "a comment": GOOD.replace("{", "{ // my verdict\n"),
    "an empty object": "{}",
    "unknown value": GOOD.replace("open", "opened"),
    "value in capitals": GOOD.replace("open", "OPEN"),
    "number for a boolean": GOOD.replace("false", "0"),
    "text for a boolean": GOOD.replace("false", '"false"'),
    "null for a boolean": GOOD.replace("false", "null"),
    "list for an enum": GOOD.replace('"open"', '["open"]'),
    "text too long": GOOD.replace("Hm.", "x" * 21),
    "number for a text": GOOD.replace('"Hm."', "1"),
    "property missing": '{"stance": "open", "distinct": false}',
    "property too many": GOOD[:-1] + ', "score": 1}',
    "key twice": GOOD[:-1] + ', "stance": "won"}',
    "two that differ": f"{GOOD} {GOOD.replace('open', 'won')}",
    "in a list": f"[{GOOD}]",
    "in another object": f'{{"verdict": {GOOD}}}',
    "in a broken object": f"{{verdict: {GOOD}",
    "as a string": '"{\\"stance\\": \\"open\\", \\"distinct\\": false, \\"say\\": \\"Hm.\\"}"',
    "not a number": GOOD.replace("false", "NaN"),
    "infinite": GOOD.replace('"Hm."', "1e999"),
    "half a surrogate pair": GOOD.replace("Hm.", "\\ud800"),
    "XML": "<verdict><stance>open</stance></verdict>",
    "YAML": "stance: open\ndistinct: false\nsay: Hm.",
    "a tool call": '<tool_call>{"name": "interact_with_env", "arguments": {"choice": "answer"}}</tool_call>',
    "nested for ever": '{"a":' * 4000,
    "lists for ever": "[" * MAX_CHARS,
    "far too long": GOOD + " " * MAX_CHARS,
    "a null byte between": GOOD.replace(":", ":\x00"),
    "full-width quotes": GOOD.replace('"', "“"),
}


@pytest.mark.parametrize("name", READABLE)
def test_wrapping_is_forgiven(name: str):
    assert parse_verdict(READABLE[name], SCHEMA) == VERDICT


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_text_is_no_verdict(name: str):
    began = time.perf_counter()
    with pytest.raises(InvalidVerdict) as error:
        parse_verdict(MALFORMED[name], SCHEMA)
    assert time.perf_counter() - began < 1
    assert "\n" not in str(error.value) and str(error.value)


def test_json_constants_are_read():
    text = '{"stance": null, "distinct": true, "say": ""}'
    assert parse_verdict(text, SCHEMA) == {"stance": None, "distinct": True, "say": ""}


def test_raw_line_breaks_in_a_text_are_read_and_commas_in_it_kept():
    text = '{"stance": "won", "distinct": true, "say": "a,\n} ,] b"}'
    assert parse_verdict(text, SCHEMA)["say"] == "a,\n} ,] b"


def test_a_boolean_enum_takes_no_number():
    schema = flat_schema({"holds": {"enum": [True, False]}})
    assert parse_verdict('{"holds": true}', schema) == {"holds": True}
    with pytest.raises(InvalidVerdict):
        parse_verdict('{"holds": 1}', schema)


def test_open_reasoning_is_seen():
    assert has_open_reasoning("<think>so") and has_open_reasoning("<think>a</think><reasoning>b")
    assert not has_open_reasoning("<think>a</think> b") and not has_open_reasoning("a thinker")


@given(st.text(alphabet='{}[]",:\\ntrue0é<think>/', max_size=60))
def test_any_text_is_a_verdict_that_fits_or_none(text: str):
    schema = flat_schema({"t": {"enum": [True, 0, "n"]}})
    try:
        verdict = parse_verdict(text, schema)
    except InvalidVerdict:
        return
    assert verdict.keys() == {"t"} and verdict["t"] in (True, 0, "n")
