"""Every config value has a description, and limits that its default meets."""

import pytest

from kseg.config import Config
from kseg.config.checks import limited_values
from kseg.config.fields import describe_fields
from kseg.config.limits import Above, AtLeast, Below, Between, Length, NotEmpty

FIELDS = {field.key: field for field in describe_fields(Config())}


def test_every_value_is_described_once():
    assert list(FIELDS) == [key for key, _, _ in limited_values(Config())]
    for field in FIELDS.values():
        assert field.description.endswith(".") and field.description[0] in '"' + "ABCDEFGHIJKLMNOPQRSTUVWXYZ", field
    descriptions = [field.description for field in FIELDS.values()]
    assert len(set(descriptions)) == len(descriptions)


def test_a_description_holds_type_default_limits_and_comment():
    assert FIELDS["train.keep_checkpoints"] == (
        "train.keep_checkpoints",
        "int",
        3,
        "above 0",
        "Number of newest checkpoints to keep.",
    )
    assert FIELDS["augment.crop"][1:4] == ("list of int", (512, 512), "2 values, above 0")
    assert FIELDS["model.output_stride"][1:4] == ("8 | 16", 8, "")
    # A comment of two lines.
    assert FIELDS["init.backbone"].description.startswith("Backbone weights")
    assert FIELDS["init.backbone"].description.endswith("empty: random weights.")


@pytest.mark.parametrize(
    "limit, accepted, refused, text",
    [
        (Above(0), [1e-9, 5], [0, -1], "above 0"),
        (AtLeast(0), [0, 5], [-1e-9], "at least 0"),
        (Below(1), [0.9, -5], [1, 2], "below 1"),
        (Between(0, 1), [0, 0.5, 1], [-0.1, 1.1], "between 0 and 1"),
        (Length(2), [2], [0, 1, 3], "2 values"),
        (Length(2, optional=True), [0, 2], [1, 3], "no or 2 values"),
        (NotEmpty(), [1, 9], [0], "at least one value"),
    ],
)
def test_limits(limit, accepted, refused, text):
    assert all(map(limit.accepts, accepted)) and not any(map(limit.accepts, refused)) and str(limit) == text
