"""Text of configuration files becomes plain values, quickly, whatever stands in it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
import yaml

from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.errors import ConfigError
from recbole_cafe.files.literals import ConfigLoader, load_yaml

NINES = "\n".join(
    ["a: &a [1,1,1,1,1,1,1,1,1]"]
    + [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)  # fmt: skip  nine lines that stand for 9**9 values

MERGES = "b0: &b0 {x: 1}\n" + "\n".join(f"b{i + 1}: &b{i + 1} {{<<: [*b{i}, *b{i}, *b{i}]}}" for i in range(20))


class PurePythonLoader(yaml.SafeLoader):
    """What PyYAML is without libyaml, with our numbers."""

    yaml_implicit_resolvers = ConfigLoader.yaml_implicit_resolvers


def test_an_alias_bomb_is_refused_at_once() -> None:
    Path("bomb.yaml").write_text(NINES)
    start = perf_counter()
    with pytest.raises(ConfigError, match=r"bomb\.yaml is not YAML: more than 100,000 values when every alias is "):
        read_yaml("bomb.yaml")
    assert perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "nested deeper than 50 levels"),
        ("a: &a [1, *a]", r"\*a stands inside what it names"),
        (MERGES, "more than 100,000 values"),
        ("a: 2001-02-31", "a value is not of the kind it is written as"),
        ("a: !!bool maybe", "a value is not of the kind it is written as"),
        ("a: !!timestamp x", "a value is not of the kind it is written as"),
        ("a: " + "1" * 10_000, "a value is not of the kind it is written as"),
        ("a: *b", "found undefined alias"),
        ("a: !!python/object/apply:os.system ['touch x']", "could not determine a constructor"),
    ],
)
def test_yaml_that_cannot_be_right(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
    assert not Path("x").exists()


def test_an_alias_of_usual_size_is_read() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a\nc: {<<: &d {x: 1}, y: *a}") == {"a": [1, 2], "b": [1, 2],
                                                                       "c": {"x": 1, "y": [1, 2]}}  # fmt: skip


def test_what_is_read_is_the_caller_s_own() -> None:
    first = load_yaml("a: {b: [1]}")
    first["a"]["b"].append(2)
    assert load_yaml("a: {b: [1]}") == {"a": {"b": [1]}}


def test_a_file_that_changed_is_read_anew() -> None:
    for value in (1, 2):  # of one size and, mostly, within one tick of the file system's clock
        Path("one.yaml").write_text(f"a: {value}\n")
        assert read_yaml("one.yaml") == {"a": value}


def test_libyaml_and_pure_python_read_the_same() -> None:
    texts = [path.read_text(encoding="utf-8") for path in props_dir().rglob("*.yaml")]
    for text in [*texts, "a: 1e-3\nb: 1.e5\nc: .inf\nd: 0x1F\ne: 1_000\nf: yes\ng: 12e03\nh: -.5\ni: 1e\n"]:
        assert repr(load_yaml(text)) == repr(yaml.load(text, Loader=PurePythonLoader))  # noqa: S506 - a SafeLoader


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "m: {x: 1, x: 1}"])
def test_a_key_that_occurs_twice_is_refused(text: str) -> None:
    """The last one would win without a word."""
    with pytest.raises(yaml.YAMLError, match=r"the key '[ax]' occurs twice"):
        load_yaml(text)
    merged = load_yaml("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}")
    assert merged == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2, "y": 3}}
