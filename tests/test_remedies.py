"""A remedy that a message suggests works, and loses no data."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

import kabuki_rlds
from kabuki_rlds import KabukiError, build, convert
from tests import handmade

_ROWS = sum(handmade.LENGTHS)


def quoted(error: pytest.ExceptionInfo[KabukiError]) -> list[str]:
    """What a message has in backticks."""
    return str(error.value).split("`")[1::2]


# --- required fields under another name ---


@pytest.mark.parametrize(
    ("missing", "name"),
    [("observation", "obs"), ("observation", "states"), ("action", "actions"), ("reward", "rewards")],
)
@pytest.mark.parametrize("inner", ["", "/arm"])
def test_a_field_under_another_name_is_to_be_renamed_and_not_filled(tmp_path, missing, name, inner):
    fields = handmade.fields()
    fields[name + inner] = fields.pop(missing)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(KabukiError, match=f"no '{missing}'; if it is '{name}', a recipe can rename it") as e:
        convert(source, tmp_path / "out.hdf5")
    assert "--fill" not in str(e.value)
    (recipe,) = quoted(e)
    (tmp_path / "r.yaml").write_text(recipe)
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    with h5py.File(source) as theirs, h5py.File(tmp_path / "out.hdf5") as ours:
        np.testing.assert_array_equal(ours[missing + inner][:], theirs[name + inner][:])
        assert name not in ours


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_flags_under_another_name_are_to_be_renamed(tmp_path, dtype):
    fields = handmade.fields()
    del fields["discount"]
    fields["done"] = fields.pop("is_terminal").astype(dtype)
    source = handmade.write(tmp_path / "in.hdf5", fields)
    with pytest.raises(KabukiError, match="no 'is_terminal'; if it is 'done', a recipe can rename it") as e:
        build(source, tmp_path / "rlds", name="x", fill={"reward": 0})
    (tmp_path / "r.yaml").write_text(quoted(e)[0])
    convert(source, tmp_path / "out.hdf5", recipe=tmp_path / "r.yaml")
    assert kabuki_rlds.inspect(tmp_path / "out.hdf5").terminal == sum(handmade.TERMINAL)


def test_a_field_that_is_not_there_at_all_is_filled(tmp_path):
    fields = handmade.fields()
    for name in ("observation", "action", "reward", "is_terminal", "discount"):
        del fields[name]
    source = handmade.write(tmp_path / "in.hdf5", fields)
    fill: dict[str, float] = {}
    while len(fill) < 4:
        with pytest.raises(KabukiError, match="--fill") as e:
            convert(source, tmp_path / "out.hdf5", fill=fill)
        name, _, value = str(e.value).partition("--fill ")[2].split()[0].partition("=")
        fill[name] = float(value)
    assert convert(source, tmp_path / "out.hdf5", fill=fill).steps == _ROWS
