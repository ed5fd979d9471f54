"""Parses features JSON to TFDS features, without importing classes that the JSON names.

TFDS's own parser imports the module of any class that `features.json` names, and also parses JSON texts within the
JSON. A dataset must not choose which code runs, so TFDS's parser is not used. This parser accepts all forms in which
TFDS 4.4 to 4.9.10 writes features, in any nesting. It takes classes only from the list `_NAMES`:

* a proto as JSON: `{"pythonClassName": …, "featuresDict": {"features": {…}}}`;
* a proto with a JSON text: `{"pythonClassName": …, "jsonFeature": {"json": "{…}"}}`;
* the legacy form: `{"type": …, "content": {…}, "proto_cls": …}`, where `content` is a dict, or a proto as JSON, or a
  proto as JSON text.

(Source: `feature.py` of tensorflow_datasets.)
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kabuki_rlds.data import limits
from kabuki_rlds.errors import KabukiError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: The classes of `tfds.features` that a dataset may use.
_NAMES = (
    *("Audio", "BBoxFeature", "ClassLabel", "Dataset", "FeaturesDict", "Image", "LabeledImage", "Scalar", "Sequence"),
    *("Tensor", "Text", "Translation", "TranslationVariableLanguages", "Video"),
)

_DTYPE = re.compile(r"\w{1,32}")
#: Characters of an invalid dtype that an error shows.
_MAX_SHOWN = 32


def parse(text: str, where: str, remedy: str) -> tfds.features.FeaturesDict:
    """Parses the features of a dataset.

    Args:
      text: the JSON.
      where: the file or the attribute that contains the JSON, for errors.
      remedy: a sentence that says what to do if the features are rejected, for errors.

    Raises:
      KabukiError: the text is not features JSON, names a class that is not in the list, or exceeds a limit.
    """
    import tensorflow_datasets as tfds

    parser = _FeatureParser(where, remedy)
    if len(text) > limits.MAX_JSON_BYTES:
        raise parser.error("", f"has {len(text):,} characters, more than the limit of {limits.MAX_JSON_BYTES:,}")
    features = parser.parse_json(_loads(parser, text, ""), "", 0)
    if not isinstance(features, tfds.features.FeaturesDict):
        raise parser.error("", f"is a {type(features).__name__}, expected a FeaturesDict")
    return features


def from_proto(proto: Any) -> tfds.features.FeaturesDict:
    """Returns the features of a `feature_pb2.FeaturesDict`. Only for protos of features that `parse` returned."""
    import tensorflow_datasets as tfds

    parser = _FeatureParser("features", "")
    return tfds.features.FeaturesDict(parser.named(proto.features, parser.parse_proto, "", 0))


@functools.cache
def _classes() -> Mapping[str, type[Any]]:
    """Returns full name to class, for the classes in `_NAMES`. TFDS lists former names of a class in ALIASES."""
    import tensorflow_datasets as tfds

    found = {}
    for name in _NAMES:
        cls = getattr(tfds.features, name)
        for full_name in (f"{cls.__module__}.{cls.__name__}", *vars(cls).get("ALIASES", ())):
            found[full_name] = cls
    return found


@functools.cache
def _proto_classes() -> Mapping[str, type[Any]]:
    """Returns full name to class, for the protos that may be the content of a feature."""
    from tensorflow_datasets.core.proto import feature_pb2

    contents = feature_pb2.Feature.DESCRIPTOR.oneofs_by_name["content"].fields
    return {field.message_type.full_name: getattr(feature_pb2, field.message_type.name) for field in contents}


def _loads(parser: _FeatureParser, text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise parser.error(path, f"is not JSON ({e})") from e


class _FeatureParser:
    """Parses the features of one dataset.

    Args:
      where: the file or the attribute, for errors.
      remedy: what to do, for errors.
    """

    def __init__(self, where: str, remedy: str):
        self._where = where
        self._remedy = remedy
        self._count = 0

    def error(self, path: str, problem: str) -> KabukiError:
        what = f"feature {path!r} " if path else ""
        return KabukiError(f"{self._where}: {what}{problem}. {self._remedy}".rstrip())

    def parse_json(self, value: Any, path: str, depth: int) -> Any:
        """Returns a feature from the JSON of a proto, or from the legacy form."""
        from google.protobuf import json_format
        from tensorflow_datasets.core.proto import feature_pb2

        if not isinstance(value, dict):
            raise self.error(path, f"is {_kind(value)}, expected a JSON object")
        if "type" not in value:
            return self.parse_proto(self._message(json_format.ParseDict, value, feature_pb2.Feature, path), path, depth)
        cls = self._class(value["type"], path)
        content = value.get("content")
        if value.get("proto_cls"):
            proto_cls = _proto_classes().get(str(value["proto_cls"]))
            if proto_cls is None:
                raise self.error(path, f"has content of type {value['proto_cls']!r}, which TFDS does not have")
            read = json_format.Parse if isinstance(content, str) else json_format.ParseDict
            content = self._message(read, content, proto_cls, path)
        return self._feature(cls, content, path, depth)

    def parse_proto(self, proto: Any, path: str, depth: int) -> Any:
        """Returns a feature from a `feature_pb2.Feature`."""
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.proto import feature_pb2

        cls = self._class(proto.python_class_name, path)
        kind = proto.WhichOneof("content")
        content = getattr(proto, kind) if kind else None
        if isinstance(content, feature_pb2.JsonFeature):
            content = _loads(self, content.json, path)
        feature = self._feature(cls, content, path, depth)
        # Set afterwards, as TFDS does, because some constructors have no argument for it.
        feature._set_doc(tfds.features.Documentation.from_proto(proto))
        return feature

    def named(self, features: Mapping[str, Any], parse: Any, path: str, depth: int) -> dict[str, Any]:
        """Returns a dict of name to parsed feature, sorted by name because the order of a proto's map varies."""
        return {name: parse(features[name], f"{path}/{name}" if path else name, depth) for name in sorted(features)}

    def _class(self, name: Any, path: str) -> type[Any]:
        if name in (None, ""):
            raise self.error(path, "names no class")
        cls = _classes().get(name) if isinstance(name, str) else None
        if cls is None:
            raise self.error(
                path, f"has the class {name!r}, which is not one of TFDS's own feature classes, and is not imported"
            )
        return cls

    def _message(self, read: Any, value: Any, cls: type[Any], path: str) -> Any:
        try:
            return read(value, cls())
        except Exception as e:
            if "too deep" in str(e):
                raise self._too_deep(path) from e
            raise self.error(path, f"cannot be parsed as {cls.__name__} ({e})") from e

    def _too_deep(self, path: str) -> KabukiError:
        return self.error(path, f"exceeds the nesting limit of {limits.MAX_DEPTH} features")

    def _feature(self, cls: type[Any], content: Any, path: str, depth: int) -> Any:
        """Returns a feature of the class `cls`. Parses inner features, and lets TFDS parse other content."""
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.proto import feature_pb2

        self._count += 1
        if self._count > limits.MAX_FEATURES:
            raise self.error(path, f"exceeds the limit of {limits.MAX_FEATURES:,} features")
        if depth > limits.MAX_DEPTH:
            raise self._too_deep(path)
        try:
            if cls is tfds.features.FeaturesDict:
                if isinstance(content, feature_pb2.FeaturesDict):
                    return cls(self.named(content.features, self.parse_proto, path, depth + 1))
                if isinstance(content, dict):
                    return cls(self.named(content, self.parse_json, path, depth + 1))
            elif cls in (tfds.features.Sequence, tfds.features.Dataset):
                if isinstance(content, feature_pb2.Sequence):
                    inner = self.parse_proto(content.feature, path, depth + 1)
                    return cls(inner, length=self._length(content.length, path))
                if isinstance(content, dict) and "feature" in content:
                    inner = self.parse_json(content["feature"], path, depth + 1)
                    return cls(inner, length=self._length(content.get("length"), path))
            else:
                feature = cls.from_json_content(self._checked(content, path))
                self._check_classes(feature, path)
                # This call detects invalid shapes and limits, which TFDS otherwise checks only when it uses them.
                feature.to_proto()
                return feature
        except KabukiError:
            raise
        except Exception as e:
            raise self.error(path, f"cannot be created: {type(e).__name__}: {e}") from e
        raise self.error(path, f"has content that is not valid for a {cls.__name__}")

    def _length(self, length: Any, path: str) -> int | None:
        if length in (None, -1):
            return None
        if type(length) is not int or length < 0:
            raise self.error(path, f"has the length {length!r}, expected an integer >= 0")
        return length

    def _checked(self, content: Any, path: str) -> Any:
        """Returns the content in the form that TFDS's `from_json_content` expects.

        Raises:
          KabukiError: the dtype is not a plain name, or the class names are to be read from a file.
        """
        from tensorflow_datasets.core.features import feature

        is_dict = isinstance(content, dict)
        dtype = content.get("dtype") if is_dict else getattr(content, "dtype", None)
        if isinstance(dtype, str) and dtype and not _DTYPE.fullmatch(dtype):
            raise self.error(path, f"has the dtype {dtype[:_MAX_SHOWN]!r}, expected a name such as 'float32'")
        if not is_dict:
            return content
        for key in ("names_file", "labels", "names"):
            names = content.get(key)
            if isinstance(names, str):
                raise self.error(path, f"reads its class names from the file {names!r}, which is not allowed")
            if isinstance(names, list) and not all(isinstance(name, str) for name in names):
                raise self.error(path, "has a class name that is not a string")
        return {**content, "dtype": feature.dtype_from_str(dtype)} if isinstance(dtype, str) else content

    def _check_classes(self, feature: Any, path: str) -> None:
        # TFDS accepts any number of classes.
        count = getattr(feature, "num_classes", None)
        if count is not None and (type(count) is not int or not 0 <= count <= limits.MAX_CLASSES):
            raise self.error(path, f"has {_count(count)} classes, expected 0 to {limits.MAX_CLASSES:,}")


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int else repr(value)


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {type(None): "null", list: "a list", str: "a text"}
    return kinds.get(type(value), "a number")
