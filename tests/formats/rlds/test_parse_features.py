"""Features JSON in every form: TFDS's own classes are parsed as TFDS parses them, and no other class is imported."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

import kabuki_rlds
from kabuki_rlds.cli.main import main
from kabuki_rlds.commands.export import export
from kabuki_rlds.data import limits
from kabuki_rlds.formats.open import open_source
from kabuki_rlds.formats.rlds import parse_features
from kabuki_rlds.recording.logger import Logger
from tests import datasets, handmade
from tests.commands.test_build import BUILDER, config, run_tfds

MODULE = "strangers_module"
CORE = "tensorflow_datasets.core.features"
DICT = f"{CORE}.features_dict.FeaturesDict"
SEQUENCE = f"{CORE}.sequence_feature.Sequence"
DATASET = f"{CORE}.dataset_feature.Dataset"
TENSOR = f"{CORE}.tensor_feature.Tensor"

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that can be imported, which it never is."""
    (tmp_path / "modules" / f"{MODULE}_package").mkdir(parents=True)
    for name in (f"{MODULE}.py", f"{MODULE}_package/__init__.py", f"{MODULE}_package/inner.py"):
        (tmp_path / "modules" / name).write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=":")
    yield
    assert not [name for name in sys.modules if name.startswith(MODULE)]


# --- JSON forms: each builds JSON from a class and its content (name to feature, one feature, or None for a leaf) ---


def _plain(inner: Any) -> Json:
    if inner is None:
        return {"shape": [2], "dtype": "int32"}
    return {"feature": inner[0], "length": None} if isinstance(inner, list) else inner


def _message(inner: Any) -> tuple[str, Json]:
    """The content as the JSON of a proto, and the name of the proto."""
    if inner is None:
        return "TensorFeature", {"shape": {"dimensions": ["2"]}, "dtype": "int32"}
    if isinstance(inner, list):
        return "Sequence", {"feature": inner[0], "length": "-1"}
    return "FeaturesDict", {"features": inner}


_FIELDS = {"TensorFeature": "tensor", "Sequence": "sequence", "FeaturesDict": "featuresDict"}


def proto(cls: str, inner: Any) -> Json:
    name, content = _message(inner)
    return {"pythonClassName": cls, _FIELDS[name]: content}


def snake_case(cls: str, inner: Any) -> Json:
    name, content = _message(inner)
    return {"python_class_name": cls, _FIELDS[name].replace("sD", "s_d"): content}


def json_text(cls: str, inner: Any) -> Json:
    return {"pythonClassName": cls, "jsonFeature": {"json": json.dumps(_plain(inner))}}


def json_text_in_snake_case(cls: str, inner: Any) -> Json:
    return {"python_class_name": cls, "json_feature": {"json": json.dumps(_plain(inner))}}


def legacy(cls: str, inner: Any) -> Json:
    return {"type": cls, "content": _plain(inner)}


def legacy_proto(cls: str, inner: Any) -> Json:
    name, content = _message(inner)
    return {"type": cls, "content": content, "proto_cls": f"tensorflow_datasets.{name}"}


def legacy_proto_text(cls: str, inner: Any) -> Json:
    made = legacy_proto(cls, inner)
    return {**made, "content": json.dumps(made["content"])}


#: Within a proto there are protos alone; within plain JSON, whatever there is.
PROTOS = (proto, snake_case, json_text, json_text_in_snake_case)
FORMS = (*PROTOS, legacy, legacy_proto, legacy_proto_text)
HOLDS_ALL = (json_text, json_text_in_snake_case, legacy)
Form = Callable[[str, Any], Json]


def parse(value: Any) -> tfds.features.FeaturesDict:
    return parse_features.parse(json.dumps(value), "d/features.json", "What to do")


def trees(leaf: st.SearchStrategy[Json], forms: tuple[Form, ...] = FORMS, depth: int = 3) -> st.SearchStrategy[Json]:
    """Features JSON in which forms that TFDS reads are nested in each other."""

    @st.composite
    def tree(draw: Any) -> Json:
        form = draw(st.sampled_from(forms))
        within = trees(leaf, FORMS if form in HOLDS_ALL else PROTOS, depth - 1) if depth else leaf
        kind = draw(st.sampled_from(["dict", "list", "leaf"] if depth else ["leaf"]))
        if kind == "dict":
            # Names that are keys elsewhere.
            names = draw(st.lists(st.sampled_from(["a", "b/c", "type", "content", "pythonClassName"]), unique=True))
            return form(DICT, {name: draw(within) for name in names})
        if kind == "list":
            return form(draw(st.sampled_from([SEQUENCE, DATASET])), [draw(within)])
        return form(TENSOR, None)

    return tree()


@given(inner=trees(st.deferred(lambda: st.sampled_from([form(TENSOR, None) for form in PROTOS]))), data=st.data())
def test_features_equal_those_parsed_by_tfds(inner, data):
    outer = data.draw(st.sampled_from(HOLDS_ALL))(DICT, {"x": inner})
    text = json.dumps(outer)
    try:
        expected = tfds.features.FeatureConnector.from_json(json.loads(text))
    except Exception:
        # A Dataset of a Dataset, for example.
        with pytest.raises(kabuki_rlds.KabukiError):
            parse(outer)
        return
    assert parse(outer).to_json() == expected.to_json()
    # What it writes itself.
    assert parse(expected.to_json()).to_json() == expected.to_json()


@pytest.mark.parametrize("outer", FORMS)
@pytest.mark.parametrize("inner", FORMS)
@pytest.mark.parametrize("leaf", FORMS)
def test_unknown_class_is_not_imported_at_any_nesting(outer, inner, leaf):
    stranger = f"{MODULE}.X"
    for containers in ((DICT, SEQUENCE), (DICT, DATASET), (DICT, DICT), (DICT, stranger)):
        held = leaf(stranger if stranger not in containers else TENSOR, None)
        value = outer(containers[0], {"x": inner(containers[1], {"y": held} if containers[1] == DICT else [held])})
        with pytest.raises(kabuki_rlds.KabukiError) as error:
            parse(value)
        message = str(error.value)
        assert "\n" not in message and message.startswith("d/features.json: ") and message.endswith(". What to do")
        is_valid = all(b in PROTOS or a in HOLDS_ALL for a, b in ((outer, inner), (inner, leaf)))
        if is_valid:
            path = "x/y" if containers[1] == DICT else "x"
            assert f"feature '{path}' has the class '{stranger}', which is not one of TFDS's own" in message


@pytest.mark.parametrize(
    "name",
    [
        *(f"{MODULE}.X", f"{MODULE}", f"{MODULE}_package.inner.X", "os.path.X", "X", ".X", "X.", "", None, 3, ["a"]),
        # Modules within TFDS, where a test or a plug-in may register classes.
        *(f"{CORE}.{MODULE}.X", f"{CORE}.test_feature.X", f"{CORE}.feature.FeatureConnector", f"{CORE}.Tensor"),
        *(f"{CORE}.top_level_feature.TopLevelFeature", f"{CORE}.optional_feature.Optional"),
        # Spellings.
        *(f" {TENSOR}", f"{TENSOR} ", TENSOR.upper(), f"{TENSOR}\0", TENSOR.replace("e", "\u0435"), f"./{TENSOR}"),
    ],
)
def test_class_name_must_match_exactly(name):
    for form in FORMS:
        with pytest.raises(kabuki_rlds.KabukiError, match=r"^d/features.json: .*What to do$") as error:
            parse(legacy(DICT, {"x": form(name, None)}))
        assert "\n" not in str(error.value)


def test_class_registered_by_a_program_is_not_accepted():
    class Registered(tfds.features.Tensor):
        pass

    name = f"{Registered.__module__}.{Registered.__name__}"
    assert isinstance(tfds.features.FeatureConnector.from_json(proto(name, None)), Registered)
    with pytest.raises(kabuki_rlds.KabukiError, match="is not one of TFDS's own feature classes"):
        parse(legacy(DICT, {"x": proto(name, None)}))


@pytest.mark.parametrize("recipe", [*datasets.READ_BY_TFDS, *datasets.NOT_READ_BY_TFDS])
def test_each_feature_class_is_parsed_like_tfds_does(recipe):
    features = getattr(datasets, recipe)().features
    parsed = parse(features.to_json())
    assert parsed.to_json() == features.to_json()
    of_proto = parse(json.loads(_features_json(features)))
    assert of_proto.to_json() == features.to_json()


def _features_json(features: tfds.features.FeaturesDict) -> str:
    from google.protobuf import json_format

    return json_format.MessageToJson(features.to_proto())


LEGACY_LEAVES: dict[str, tuple[str, Json]] = {
    "image": ("image_feature.Image", {"shape": [None, None, 3], "dtype": "uint8", "encoding_format": "png"}),
    "label": ("class_label_feature.ClassLabel", {"num_classes": 3}),
    "named label": ("class_label_feature.ClassLabel", {"names": ["a", "b"]}),
    "labeled image": ("labeled_image.LabeledImage", {"labels": ["a", "b"], "shape": [4, 4, 1], "dtype": "uint8"}),
    "counted image": ("labeled_image.LabeledImage", {"labels": 7, "shape": [4, 4, 1], "dtype": "uint8"}),
    "text": ("text_feature.Text", {}),
    "box": ("bounding_boxes.BBoxFeature", {}),
    "translation": ("translation_feature.Translation", {"languages": ["en", "de"]}),
    "tensor": ("tensor_feature.Tensor", {"shape": [None, 3], "dtype": "uint8", "encoding": "zlib"}),
    "texts": ("tensor_feature.Tensor", {"shape": [3], "dtype": "string"}),
    "older tensor": ("feature.Tensor", {"shape": [3], "dtype": "float32"}),
    "bfloat16": ("tensor_feature.Tensor", {"shape": [], "dtype": "bfloat16"}),
    "video": (
        "video_feature.Video",
        {"shape": [None, 4, 4, 3], "encoding_format": "png", "ffmpeg_extra_args": []},
    ),
    "audio": (
        "audio_feature.Audio",
        {"file_format": None, "shape": [None], "dtype": "int64", "sample_rate": None},
    ),
}


@pytest.mark.parametrize("case", LEGACY_LEAVES)
def test_features_of_early_tfds_versions_are_parsed(case):
    name, content = LEGACY_LEAVES[case]
    value = {"type": f"{CORE}.{name}", "content": content}
    expected = tfds.features.FeatureConnector.from_json(json.loads(json.dumps(value)))
    parsed = parse(legacy(DICT, {"x": value}))["x"]
    assert type(parsed) is type(expected)
    assert (parsed.to_json(), getattr(parsed, "names", None)) == (expected.to_json(), getattr(expected, "names", None))


def test_feature_documentation_is_kept():
    value = {**proto(TENSOR, None), "description": "the state", "valueRange": "0 to 1"}
    doc = parse(json_text(DICT, {"x": value}))["x"].doc
    assert (doc.desc, doc.value_range) == ("the state", "0 to 1")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[" * 100_000, "is not JSON"),
        ("{", "is not JSON"),
        ("3", "is a number, expected a JSON object"),
        ("null", "is null, expected a JSON object"),
        (legacy(DICT, {"x": 3}), "feature 'x' is a number, expected a JSON object"),
        (legacy(DICT, {"x": ["type"]}), "feature 'x' is a list, expected a JSON object"),
        (legacy(DICT, {"x": "type"}), "feature 'x' is a text, expected a JSON object"),
        (proto(TENSOR, None), "is a Tensor, expected a FeaturesDict"),
        ({"type": DICT}, "has content that is not valid for a FeaturesDict"),
        ({"type": SEQUENCE, "content": {}}, "has content that is not valid for a Sequence"),
        ({"type": TENSOR, "content": "{}", "proto_cls": "os.path"}, "has content of type 'os.path'"),
        ({"pythonClassName": DICT}, "has content that is not valid for a FeaturesDict"),
        ({"pythonClassName": DICT, "sequence": {}}, "has content that is not valid for a FeaturesDict"),
        ({"pythonClassName": DICT, "jsonFeature": {"json": "{"}}, "is not JSON"),
        (legacy(SEQUENCE, [proto(TENSOR, None)]) | {"x": 1}, "is a Sequence, expected a FeaturesDict"),
        (legacy(DICT, {"x": {"type": SEQUENCE, "content": {"feature": proto(TENSOR, None), "length": -7}}}), "length"),
        (legacy(DICT, {"x": legacy(TENSOR, {"shape": [2], "dtype": "f4,f4"})}), "has the dtype 'f4,f4'"),
        *(
            (
                legacy(DICT, {"x": legacy(TENSOR, {"shape": [2], "dtype": "int32"} | wrong)}),
                "feature 'x' cannot be created",
            )
            for wrong in (
                *({"dtype": "nothing"}, {"dtype": ["int32"]}, {"encoding": "nothing"}, {"minimum": "a"}),
                *({"optional": "yes"}, {"shape": 3}, {"shape": "23"}, {"shape": [1.5]}, {"shape": ["3"]}),
                *({"shape": [[3]]}, {"shape": {"a": 1}}, {"shape": [float("nan")]}),
            )
        ),
    ],
)
def test_invalid_features_json_is_rejected_in_one_line(value, says):
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        parse_features.parse(value if isinstance(value, str) else json.dumps(value), "d/features.json", "What to do")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["names_file", "labels"])
def test_class_names_are_not_read_from_other_files(key, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("what another file of this machine holds")
    cls = "class_label_feature.ClassLabel" if key == "names_file" else "labeled_image.LabeledImage"
    for form in (legacy, json_text):
        value = form(DICT, {"x": form(f"{CORE}.{cls}", {key: str(secret)})})
        with pytest.raises(
            kabuki_rlds.KabukiError, match=f"feature 'x' reads its class names from the file '{secret}'"
        ):
            parse(value)


# --- limits ---


def label(count: Any, form: Form = legacy) -> Json:
    name = f"{CORE}.class_label_feature.ClassLabel"
    if form is proto:
        return {"pythonClassName": name, "classLabel": {"numClasses": str(count)}}
    return {"type": name, "content": {"num_classes": count}}


def image_label(count: int, form: Form = legacy) -> Json:
    name = f"{CORE}.labeled_image.LabeledImage"
    if form is proto:
        shape = {"dimensions": ["4", "4", "1"]}
        return {"pythonClassName": name, "image": {"shape": shape, "dtype": "uint8", "label": {"numClasses": count}}}
    return {"type": name, "content": {"labels": count, "shape": [4, 4, 1], "dtype": "uint8"}}


@pytest.mark.parametrize("form", [legacy, proto])
@pytest.mark.parametrize("made", [label, image_label])
@pytest.mark.parametrize("count", [1_000_001, 10_000_000, 3_000_000_000, 1 << 62])
def test_more_classes_than_the_limit_are_rejected(count, made, form):
    with pytest.raises(kabuki_rlds.KabukiError, match=f"feature 'x' has {count:,} classes, expected 0 to 1,000,000"):
        parse(legacy(DICT, {"x": made(count, form)}))


@pytest.mark.parametrize("count", [-1, 1.5, "3", True, [3]])
def test_number_of_classes_must_be_a_valid_integer(count):
    with pytest.raises(kabuki_rlds.KabukiError, match="feature 'x'"):
        parse(legacy(DICT, {"x": label(count)}))


def test_more_features_than_the_limit_are_rejected(monkeypatch):
    monkeypatch.setattr(limits, "MAX_FEATURES", 10)
    parse(legacy(DICT, {str(i): legacy(TENSOR, None) for i in range(9)}))
    with pytest.raises(kabuki_rlds.KabukiError, match="feature '9' exceeds the limit of 10 features"):
        parse(legacy(DICT, {str(i): legacy(TENSOR, None) for i in range(10)}))


@pytest.mark.parametrize("depth", [25, 30, 31, 65, 500, 20_000])
def test_features_nested_deeper_than_the_limit_are_rejected(depth):
    tensor, opening = json.dumps(legacy(TENSOR, None)), f'{{"type": "{SEQUENCE}", "content": {{"length": 2, "feature": '
    text = f'{{"type": "{DICT}", "content": {{"x": {opening * depth}{tensor}{"}}" * depth}}}}}'
    with pytest.raises(kabuki_rlds.KabukiError, match=r"exceeds the nesting limit of 24 features|is not JSON"):
        parse_features.parse(text, "d/features.json", "What to do")


def test_json_longer_than_the_limit_is_rejected():
    with pytest.raises(kabuki_rlds.KabukiError, match="has 16,777,217 characters, more than the limit of 16,777,216"):
        parse_features.parse(" " * (1 + (16 << 20)), "d/features.json", "What to do")


# --- every command and function that reads features ---


def strangers_in(features: Json) -> dict[str, str]:
    """Features JSON of the dataset `plain` in which another class is a feature of the steps, in several forms."""
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    stranger = f"{MODULE}.X"
    text = json_text(DATASET, [legacy(DICT, {**steps, "reward": legacy_proto_text(stranger, None)})])
    old = legacy(DATASET, [json_text(DICT, {**steps, "reward": {"type": stranger, "content": {}}})])
    as_proto = proto(DATASET, [proto(DICT, {**steps, "reward": json_text(stranger, None)})])
    return {
        "proto": json.dumps(proto(DICT, {"steps": as_proto})),
        "text": json.dumps(json_text(DICT, {"steps": text})),
        "legacy": json.dumps(legacy(DICT, {"steps": old})),
    }


FORM_NAMES = ("proto", "text", "legacy")


@pytest.fixture
def features(dataset) -> Json:
    found: Json = json.loads((dataset("plain") / "features.json").read_text())
    return found


#: Of an RLDS dataset, and of the Kabuki file that it was converted to.
OF_DATASETS: dict[str, Callable[[Path, Path, Path], object]] = {
    "source": lambda folder, file, out: open_source(folder),
    "convert": lambda folder, file, out: kabuki_rlds.convert(folder, out / "out.hdf5"),
    "convert, skipping": lambda folder, file, out: kabuki_rlds.convert(folder, out / "o.hdf5", skip_bad_episodes=True),
    "open": lambda folder, file, out: kabuki_rlds.open(folder),
    "build": lambda folder, file, out: kabuki_rlds.build(folder, out / "built", name="x"),
    "export": lambda folder, file, out: export(folder, out / "out.hdf5", "robomimic"),
    "compare": lambda folder, file, out: kabuki_rlds.compare(file, folder),
    "record": lambda folder, file, out: Logger(folder),
}

OF_FILES: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda file, out: list(kabuki_rlds.load(file)),
    "load some fields": lambda file, out: list(kabuki_rlds.load(file, fields="observation")),
    "load_steps": lambda file, out: list(kabuki_rlds.load_steps(file, 4)),
    "load_steps as NumPy": lambda file, out: list(kabuki_rlds.load_steps(file, 4, as_numpy=True)),
    "load_transitions": lambda file, out: list(kabuki_rlds.load_transitions(file, 4)),
    "load_windows": lambda file, out: list(kabuki_rlds.load_windows(file, 4, length=2)),
    "convert": lambda file, out: kabuki_rlds.convert(file, out / "out.hdf5"),
    "build": lambda file, out: kabuki_rlds.build(file, out / "built", name="x"),
    "open": lambda file, out: kabuki_rlds.open(file)[0],
    "validate": lambda file, out: kabuki_rlds.validate(file),
    "inspect": lambda file, out: kabuki_rlds.inspect(file),
    "compare": lambda file, out: kabuki_rlds.compare(file, file),
    "export": lambda file, out: export(file, out / "out.hdf5", "robomimic"),
    "record": lambda file, out: Logger(file),
    "tfds build": lambda file, out: run_tfds("--config", config(str(file), "x"), "--data_dir", out / "data"),
}
#: Those that need the features.
MUST_REJECT = {"load", "load some fields", "build", "tfds build"}


@pytest.mark.parametrize("form", [*FORM_NAMES, "dataset_info"])
@pytest.mark.parametrize("reader", OF_DATASETS)
def test_no_function_imports_a_class_named_by_a_dataset(reader, form, features, dataset, converted, tmp_path):
    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    named = "features.json"
    if form == "dataset_info":
        # TFDS takes these first.
        named = "dataset_info.json"
        info = json.loads((folder / named).read_text())
        (folder / named).write_text(json.dumps(info | {"features": json.loads(strangers_in(features)["text"])}))
    else:
        (folder / named).write_text(strangers_in(features)[form])
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        OF_DATASETS[reader](folder, converted("plain"), tmp_path)
    assert str(error.value) == (
        f"{folder / named}: feature 'steps/reward' has the class '{MODULE}.X', which is not one of TFDS's own feature "
        "classes, and is not imported. Write the dataset again with features of `tfds.features`, or leave out the field"
    )


@pytest.mark.parametrize("command", ["convert", "validate", "build", "export"])
def test_no_command_imports_a_class_named_by_a_dataset(command, features, dataset, converted, tmp_path, capsys):
    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    (folder / "features.json").write_text(strangers_in(features)["text"])
    arguments = {
        "convert": [folder, tmp_path / "out.hdf5"],
        "validate": [converted("plain"), "--against", folder],
        "build": [folder, "--out", tmp_path / "built"],
        "export": [folder, tmp_path / "out.hdf5", "--to", "d4rl"],
    }[command]
    assert main([command, *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kabuki-rlds: error: {folder / 'features.json'}: feature 'steps/reward' has the class")


@pytest.mark.parametrize("form", FORM_NAMES)
@pytest.mark.parametrize("reader", OF_FILES)
def test_no_function_imports_a_class_named_by_a_file(reader, form, features, converted, tmp_path):
    file = tmp_path / "x.hdf5"
    shutil.copy(converted("plain"), file)
    with h5py.File(file, "r+") as f:
        f.attrs["features"] = strangers_in(features)[form]
    if reader in MUST_REJECT:
        rejected = f"{file}: attribute 'features': feature 'steps/reward' has the class '{MODULE}.X'"
        with pytest.raises(kabuki_rlds.KabukiError, match=re.escape(rejected)):
            OF_FILES[reader](file, tmp_path)
    else:
        # robomimic takes no episode without an action.
        with contextlib.suppress(kabuki_rlds.KabukiError):
            OF_FILES[reader](file, tmp_path)
    # What the message says to do.
    with h5py.File(file, "r+") as f:
        del f.attrs["features"]
    assert list(kabuki_rlds.load(file))


def test_tfds_build_imports_no_class_named_by_a_file(features, converted, tmp_path):
    pytest.importorskip("mlcroissant", reason="the tfds command needs the extra `build`")
    file = tmp_path / "x.hdf5"
    shutil.copy(converted("plain"), file)
    with h5py.File(file, "r+") as f:
        f.attrs["features"] = strangers_in(features)["text"]
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build", str(BUILDER)]
    options = ["--config", config(str(file), "x"), "--data_dir", str(tmp_path / "data")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode
    assert f"has the class '{MODULE}.X', which is not one of TFDS's own" in done.stderr
    assert "AssertionError" not in done.stderr


def test_dataset_info_equals_that_of_tfds(dataset, old_dataset):
    from kabuki_rlds.formats.rlds import dataset_dir

    for folder in (dataset("every_kind"), dataset("with_config"), dataset("in_order"), old_dataset):
        ours, right = dataset_dir.open_info(folder), tfds.builder_from_directory(folder).info
        assert ours.features.to_json() == right.features.to_json()
        for name in ("name", "full_name", "version", "description", "citation", "homepage", "file_format", "data_dir"):
            assert str(getattr(ours, name)) == str(getattr(right, name)), name
        assert {name: split.shard_lengths for name, split in ours.splits.items()} == {
            name: split.shard_lengths for name, split in right.splits.items()
        }


# --- numbers of classes ---


def with_label(folder: Path, num_classes: Any, named: bool = False) -> Path:
    """A dataset of 139 steps whose `label` has so many classes, by its features.json."""
    steps = [{"observation": 0.0, "action": 0, "reward": 0.0, "label": i} for i in range(3)]
    for i, step in enumerate(steps):
        step |= {"discount": 1.0, "is_first": i == 0, "is_last": i == 2, "is_terminal": False}
    of_steps = {name: np.bool_ if name.startswith("is_") else np.float32 for name in steps[0]}
    classes = tfds.features.ClassLabel(names=["a", "b", "c"]) if named else tfds.features.ClassLabel(num_classes=3)
    features = tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(of_steps | {"action": np.int64, "label": classes})}
    )
    made = datasets.write(datasets.Recipe("counted", features, {"train": [{"steps": steps}]}), folder)
    text = (made / "features.json").read_text()
    (made / "features.json").write_text(text.replace('"numClasses": "3"', f'"numClasses": "{num_classes}"'))
    return made


@pytest.mark.parametrize("num_classes", [10_000_000, 3_000_000_000])
def test_too_many_classes_are_rejected_without_allocating_memory(num_classes, tmp_path):
    folder = with_label(tmp_path, num_classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kabuki_rlds.KabukiError) as error:
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")
    assert f"feature 'steps/label' has {num_classes:,} classes, expected 0 to 1,000,000" in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_label_without_names_stays_without_names(tmp_path):
    folder = with_label(tmp_path, 1_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = kabuki_rlds.convert(folder, tmp_path / "out.hdf5").path
    assert kabuki_rlds.compare(file, folder) == []
    built = kabuki_rlds.build(file, tmp_path / "built", name="counted").path
    # Names would take 60 MB in each of them.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10
    with h5py.File(file) as f:
        assert "class_names" not in f["label"].attrs
        assert f["label"].attrs["kind"] == "label"
        assert list(f["label"]) == [0, 1, 2]
    features = tfds.builder_from_directory(built).info.features
    assert features["steps"]["label"].num_classes == 1_000_000
    assert not list(built.glob("*.labels.txt"))


def test_numbered_class_names_equal_no_class_names(tmp_path):
    """As files of earlier versions have them for a label without names."""
    folder = with_label(tmp_path, 3)
    file = kabuki_rlds.convert(folder, tmp_path / "out.hdf5").path
    with h5py.File(file, "r+") as f:
        f["label"].attrs["class_names"] = ["0", "1", "2"]
    assert kabuki_rlds.compare(file, folder) == []
    assert kabuki_rlds.convert([file, folder], tmp_path / "both.hdf5").num_episodes == 2
    with h5py.File(file, "r+") as f:
        f["label"].attrs["class_names"] = ["0", "1", "2", "3"]
    (difference,) = kabuki_rlds.compare(file, folder)
    assert "label int64 of 4 classes, the source has label int64 of 3 classes" in str(difference)


def test_class_names_are_kept(tmp_path):
    folder = with_label(tmp_path, 3, named=True)
    file = kabuki_rlds.convert(folder, tmp_path / "out.hdf5").path
    with h5py.File(file) as f:
        assert list(f["label"].attrs["class_names"]) == ["a", "b", "c"]
    built = kabuki_rlds.build(file, tmp_path / "built", name="counted").path
    assert tfds.builder_from_directory(built).info.features["steps"]["label"].names == ["a", "b", "c"]


def test_different_numbers_of_classes_are_rejected(tmp_path):
    folders = [with_label(tmp_path / "a", 3), with_label(tmp_path / "b", 4)]
    with pytest.raises(
        kabuki_rlds.KabukiError, match=r"'label' is label int64 of 3 classes in .*, but label int64 of 4"
    ):
        kabuki_rlds.convert(folders, tmp_path / "out.hdf5")


def test_labels_file_with_more_names_than_the_limit_is_rejected(tmp_path):
    folder = with_label(tmp_path, 3)
    (folder / "steps-label.labels.txt").write_text("a\n" * 1_000_001)
    with pytest.raises(kabuki_rlds.KabukiError, match=r"steps-label.labels.txt: names 1,000,001 classes, more than"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


@pytest.mark.parametrize("where", ["attribute", "companion"])
def test_more_class_names_in_hdf5_than_the_limit_are_rejected(where, tmp_path):
    file = tmp_path / "f.hdf5"
    with h5py.File(file, "w", libver="latest") as f:
        for name, column in handmade.fields().items():
            f[name] = column
        f["action"].attrs["kind"] = "label"
        names = np.full(1_000_001, b"a", "S1")
        if where == "attribute":
            f["action"].attrs["class_names"] = names
        else:
            f["action"].attrs["companion"] = "/companion/action"
            f["companion/action/class_names"] = names
    with pytest.raises(kabuki_rlds.KabukiError, match=r"(1000001,|1,000,001).* expected .*at most 1,000,000"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")


@pytest.mark.parametrize("splits", [[{"name": "train", "shardLengths": ["1"] * 100_000}], [{"name": "a"}] * 100_001])
def test_more_shards_than_the_limit_are_rejected(splits, dataset, tmp_path):
    folder = tmp_path / "plain" / "1.0.0"
    shutil.copytree(dataset("plain"), folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": splits}))
    with pytest.raises(kabuki_rlds.KabukiError, match=r"dataset_info.json: lists 100,001 splits and shards, more than"):
        kabuki_rlds.convert(folder, tmp_path / "out.hdf5")


@pytest.mark.parametrize("shape", [[-1, 1 << 40], [-1, -1, 1 << 29], [1 << 62, -1]])
def test_shape_attribute_larger_than_the_limit_is_rejected(shape, tmp_path):
    rows = np.empty(8, object)
    rows[:] = [np.zeros(0, np.float32)] * 8
    stored = handmade.Stored(rows, {"dtype": h5py.vlen_dtype("f4")}, {"shape": shape, "dtype": "float32"})
    file = handmade.write(tmp_path / "f.hdf5", handmade.fields() | {"more": stored})
    with pytest.raises(kabuki_rlds.KabukiError, match=r"dataset '/more': a row of .* expected 0 to 268,435,456"):
        kabuki_rlds.convert(file, tmp_path / "out.hdf5")
