"""The page's script, shortened, does what the modules do."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from service.page.assembly import MODULES, script_of
from service.page.shortening import joined, lean, renamed, short_names, shortened
from service.page.tokens import tokens_of

TRICKY = """
// Names that are variables here and properties there.
const value = 3, other = [1, 2, 3,];
const level = { value, other: other.length, "level": 1 };
const pair = ({ value, other = 7 }) => value * other;
const deep = ({ level: { value: inner } }) => inner;
async function number(value) { return await value; }
function total(level) {
  const value = level.value;
  const doubled = 2 * value;
  const words = `${value} and ${[level].map(({ value }) => `value ${value}`)}`;
  // The line ends the statement.
  let text = words
  text += /[/"] ?value/.test(words) ? " yes" : " no"
  const last = doubled
  text += `${last}` ; const after = 1;
  if (doubled > 3) return { words: text, doubled, after, };
  else return null
}
const at = 5 - -value + +value;
console.log(JSON.stringify([level, pair({ value }), pair(level), deep({ level: { value } }), total(level), at]));
number(value).then((level) => console.log(level?.value ?? "none", level / value / 1));
"""


def printed(script: str) -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    command = [node, "--input-type=module", "--eval", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_shortened_script_does_the_same() -> None:
    short = shortened(TRICKY)
    assert len(short) < 0.8 * len(TRICKY)
    assert printed(short) == printed(TRICKY)


def test_functions_of_the_page_give_the_same_when_shortened() -> None:
    script = script_of(("geometry", "heat", "words"))
    names = short_names(list(tokens_of(script)))
    piece = {"similarity": 1.0, "usual": 0.4, "contribution": 0.6, "box": [1, 2, 3, 4], "source": None, "prototype": 7}
    level = {
        "label": "Granny-Smith",
        "evidence": [piece],
        "against": [],
        "prior": 0.2,
        "logit": 1.3,
        "probability": 0.8,
    }
    calls = [
        ("extent", [{"levels": [level], "known_through_level": None}]),
        ("waterfall", [level]),
        ("heatColour", [0.4]),
        ("numberPlaces", [[{"x": 1, "y": 2, "width": 3, "height": 4}] * 3, 10, {"width": 50, "height": 60}]),
        ("pythonArgument", ["depth", "3,Fruit/Apple:2"]),
        ("cropSquare", [[1, 2, 30, 40], {"width": 50, "height": 60}]),
    ]

    def said(code: str, mapping: dict[str, str]) -> str:
        asked = ",".join(f"{mapping.get(name, name)}(...{json.dumps(values)})" for name, values in calls)
        return printed(f"{code};console.log(JSON.stringify([{asked}]))")

    assert set(names) > {name for name, _ in calls}
    assert said(shortened(script), names) == said(script, {})


def test_no_short_name_is_one_of_the_script() -> None:
    tokens = list(tokens_of(script_of(MODULES)))
    names = short_names(tokens)
    assert len(set(names.values())) == len(names) > 100
    assert not set(names.values()) & {token.text for token in tokens}
    assert not set(names.values()) & {"do", "if", "in", "of"}


@pytest.mark.parametrize(
    ("script", "short"),
    [
        ("const name = 1; f({ name });", "const a=1;f({name:a});"),
        ("const name = 1; f({ name: name });", "const a=1;f({name:a});"),
        ("const name = 1; f(b ? name : name.name);", "const a=1;f(b?a:a.name);"),
        ("const name = 1; const { name: own, rest } = x?.name;", "const a=1,{name:own,rest}=x?.name;"),
        ("const name = 1; f((b, name) => { name; });", "const a=1;f((b,a)=>{a;});"),
        ("const name = 1; f(`name ${name}`, 'name');", "const a=1;f(`name ${a}`,'name');"),
    ],
)
def test_variables_are_renamed_and_properties_are_not(script: str, short: str) -> None:
    assert shortened(script) == short


@pytest.mark.parametrize(
    ("script", "short"),
    [
        ("const a = 1;\nconst b = 2;", "const a=1,b=2;"),
        ("const a = () => { c; };\nconst b = 2;", "const a=()=>{c;},b=2;"),
        ("for (const a of b) c; const d = 1;", "for(const a of b)c;const d=1;"),
        ("const a = 1\nb(); const c = 2;", "const a=1\nb();const c=2;"),
        ("let a = 1; const b = 2;", "let a=1;const b=2;"),
        ("f([1, , ], [2, ], { a, }, b, )", "f([1,,],[2],{a},b)"),
        ("if (a) { b; }\nc + +d - -e", "if(a){b;}\nc+ +d- -e"),
    ],
)
def test_statements_are_joined_only_where_both_are_constants(script: str, short: str) -> None:
    assert joined(list(lean(list(tokens_of(script))))) == short


def test_names_of_properties_stay() -> None:
    tokens = list(tokens_of("({ long, long: 1, b: long }).long; f({ long = 1 } = {})"))
    assert joined(list(renamed(tokens, {"long": "x"}))) == "({long:x,long:1,b:x}).long;f({long:x=1}={})"
