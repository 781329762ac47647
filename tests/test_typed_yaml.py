"""Files and overrides as models: strict types, literal text, and every error at once."""

from typing import Literal

import pytest
from pydantic import Field

from llmshearing.errors import UserError
from llmshearing.quantities import ByteSize, Count, Fraction, PointInRun, Quantity, Steps, WallTime
from llmshearing.typed_yaml import PathText, Section, build, json_schema, load, merge
from llmshearing.yaml_files import read_yaml


class Inner(Section):
    share: Fraction = 0.5
    where: dict[str, str] = Field(default_factory=dict)
    kind: Literal["near", "far"] = "near"


class Part(Section):
    """A part."""

    directory: PathText = Field(examples=["here"])
    """Where it is."""
    duration: Steps = Field(examples=["10ba"])
    note: str | None = None
    warmup: PointInRun | None = None
    limit: WallTime = "30m"
    betas: list[Fraction] = Field(default_factory=list, min_length=2, max_length=2)


class Whole(Section):
    part: Part = Field(default_factory=dict, validate_default=True)
    inner: Inner | None = None
    domains: dict[str, Inner] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    names: list[str] = Field(default_factory=list)
    size: Quantity | None = None
    buffer: ByteSize = "64MiB"
    count: Count = 1
    on: bool = True

    def rules(self):
        return ["count: found 13, expected another"] if self.count == 13 else []


GIVEN = {"part": {"directory": "d", "duration": "3ba"}}
WRONG = {
    "part.directry=x": "part.directry: unknown key in part; did you mean part.directory?",
    "prt.x=1": "prt: unknown key in the recipe; did you mean part?",
    "qqq=1": "qqq: unknown key in the recipe; known: part, inner, domains",
    "part.duration=300": "part.duration: found '300', expected steps with a unit",
    "part.duration=0ba": "part.duration: found '0ba', expected steps with a unit",
    "part.duration=9999999999ba": "part.duration: found '9999999999ba', expected steps",
    "part.duration=٣ba": "part.duration: found '٣ba', expected steps",
    "part.warmup=1.5dur": "part.warmup: found '1.5dur', expected a time such as 0.1dur",
    "part.warmup=nandur": "part.warmup: found 'nandur', expected a time",
    "part.limit=0s": "part.limit: found '0s', expected a time with a unit",
    "part.betas=[1]": "part.betas: found [1], expected at least 2 entries",
    "part.betas=[0.1, 7]": "part.betas.1: found 7, expected at most 1",
    "part=4": "part: found 4, expected a section",
    "inner.share=.nan": "inner.share: found nan, expected a finite number",
    "inner.kind=middle": "inner.kind: found 'middle', expected 'near' or 'far'",
    "domains.c4.en.share=2": "domains.c4.en.share: found 2, expected at most 1",
    "domains.c4.en.shre=2": "domains.c4.en.shre: unknown key in domains.c4.en; did you mean",
    "domains.c4.en=2": "domains.c4.en: ",
    "weights.c4.en=much": "weights.c4.en: found 'much', expected a number",
    "weights=[1]": "weights: found [1], expected a mapping",
    "size=many": "size: found 'many', expected a number such as 1.3B",
    "size=1e300": "size: found '1e300', expected a number such as 1.3B",
    "buffer=-1": "buffer: found '-1', expected a size such as 64MiB",
    "count=1.5": "count: found 1.5, expected a whole number",
    "count=010": "count: found '010', expected a whole number",
    "count=true": "count: found True, expected a whole number",
    "count=2147483648": "count: found 2147483648, expected less than 2147483648",
    "count=": "count: found None, expected a whole number",
    "on=1": "on: found 1, expected true or false",
    "on=no": "on: found 'no', expected true or false",
    "count": "count: expected key=value",
    "names=[": "names=[: not valid YAML",
    "part.directory=???": "part.directory: not given; expected a value",
    "part.note=???": "part.note: not given; expected a value",
}


def errors_of(*overrides):
    given, errors = merge(Whole, {"part": dict(GIVEN["part"])}, overrides)
    made, found = build(Whole, given)
    return made, list(dict.fromkeys(errors + found))


@pytest.mark.parametrize("override", WRONG)
def test_each_wrong_value_has_one_message(override):
    made, errors = errors_of(override)
    assert made is not None
    assert len(errors) == 1
    assert errors[0].startswith(WRONG[override])


def test_all_errors_are_reported_at_once_and_the_rest_is_read():
    made, errors = errors_of("part.duration=3", "inner.shre=1", "count=5", "weights={a: b, c: 1}")
    assert [error.partition(":")[0] for error in errors] == [
        "part.duration", "inner.shre", "weights.a"
    ]  # fmt: skip
    assert (made.count, made.part.duration, made.weights) == (5, "10ba", {})
    assert made.part.directory == "d"


def test_a_missing_section_names_its_missing_keys():
    made, errors = build(Whole, {})
    assert errors == [f"part.{name}: not given; expected a value"
                      for name in ("directory", "duration")]  # fmt: skip
    assert made.part.directory == "here"


def test_a_section_without_lines_has_its_defaults(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("part: {directory: d, duration: 3ba}\ndomains:\n  no:\n  c4.en: {share: 1}\n")
    whole = load(Whole, file)
    assert whole.domains == {"no": Inner(), "c4.en": Inner(share=1)}
    assert load(Whole, file, ["domains={}"]).domains == {}
    assert load(Whole, file, ["domains.no.share=0.25"]).domains["no"].share == 0.25


def test_rules_between_fields_are_checked_last(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("part: {directory: d, duration: 3ba}\ncount: 13\n")
    with pytest.raises(UserError, match="has 1 error:\n  - count: found 13, expected another"):
        load(Whole, file)


def test_overriding_a_key_removes_the_one_it_excludes(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("part: {directory: d, duration: 3ba, note: n}\n")
    pairs = [("part.warmup", "part.note")]
    assert load(Whole, file, exclusive=pairs).part.note == "n"
    assert load(Whole, file, ["part.warmup=1ba"], exclusive=pairs).part.note is None


@pytest.mark.parametrize("reference", ["${part.nothing}", "${", "a${b", "${a:b}"])
def test_a_reference_to_nothing_is_refused(reference):
    with pytest.raises(UserError, match=r"part\.directory: "):
        errors_of(f"part.directory={reference}")


def test_a_reference_to_another_key_is_its_value():
    made, errors = errors_of("part.directory=runs/${part.duration}", "part.note=\\${x}")
    assert (made.part.directory, made.part.note, errors) == ("runs/3ba", "${x}", [])


def test_quantities_may_be_numbers_where_no_unit_is_needed(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("part: {directory: d, duration: 3ba}\nsize: 1_000_000\nbuffer: 1.5e3\n")
    whole = load(Whole, file)
    assert (whole.size, whole.buffer) == ("1000000", "1500.0")


def test_lists_and_mappings_of_text_keep_it():
    made, errors = errors_of("names=[no, 2023, 0012, ~]", "inner.where={lang: no, 1: ~, n: 07}")
    assert (made.names, errors) == (["no", "2023", "0012", "~"], [])
    assert made.inner.where == {"lang": "no", "1": "~", "n": "07"}
    made, errors = errors_of("domains.c4.en.where.meta.dump=2023", "domains.c4.en.share=1")
    assert (made.domains["c4.en"].where, errors) == ({"meta.dump": "2023"}, [])


def test_descriptions_are_in_the_schema():
    keys = json_schema(Whole)["$defs"]["Part"]["properties"]
    assert keys["directory"]["description"] == "Where it is."
    assert keys["duration"]["pattern"] == r"^([0-9]{1,9}ba|\?\?\?)$"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1}\na: {b: 2}\n", "the key a twice"),
        ("a: {b: 1, b: 2}\n", "the key b twice"),
        ("? [a, b]\n: 1\n", "a key that is no text"),
        ("a: [\n", "not valid YAML"),
        ("- a\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "f.yaml")
    (tmp_path / "g.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "g.yaml")


def test_a_value_that_contains_itself_is_refused(tmp_path):
    file = tmp_path / "whole.yaml"
    file.write_text("part: &p {directory: d, note: *p}\n")
    with pytest.raises(UserError, match="recurs"):
        load(Whole, file)
