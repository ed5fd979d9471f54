"""Reads the specs of dm_env environments and the spaces of Gymnasium environments.

Both are converted to hints and to metadata. Hints map the path of a field to its
expected dtype and shape; `FieldLearner` uses them. The metadata is JSON that the
dataset stores, in the form in which EnvLogger encodes specs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kabuki_rlds.data.rules import ACTION, DISCOUNT, OBSERVATION, REWARD
from kabuki_rlds.data.schema import BYTES, Field

#: The key of the specs in the metadata of a dataset, as in EnvLogger.
ENVIRONMENT_SPECS = "environment_specs"


def of_dm_env(environment: Any) -> tuple[dict[str, Field], dict[str, Any]]:
    """(hints, metadata) of a dm_env environment."""
    specs = {
        OBSERVATION: environment.observation_spec(),
        ACTION: environment.action_spec(),
        REWARD: environment.reward_spec(),
        DISCOUNT: environment.discount_spec(),
    }
    encoded = {f"{name}_spec": _encoded_spec(spec) for name, spec in specs.items()}
    hints = dict(found for name, spec in specs.items() for found in _spec_fields(spec, name))
    return hints, {ENVIRONMENT_SPECS: encoded}


def of_gymnasium(
    environment: Any, observation_space: Any, action_space: Any
) -> tuple[dict[str, Field], dict[str, Any]]:
    """(hints, metadata) of a Gymnasium environment with these observation and action spaces."""
    spaces = {OBSERVATION: observation_space, ACTION: action_space}
    metadata: dict[str, Any] = {
        ENVIRONMENT_SPECS: {f"{name}_spec": _encoded_space(space) for name, space in spaces.items()}
    }
    if environment.spec is not None:
        metadata["environment"] = environment.spec.id
        # If the arguments of the environment cannot be encoded as JSON, store only its name.
        with contextlib.suppress(TypeError, ValueError):
            metadata["gymnasium_spec"] = json.loads(environment.spec.to_json())
    hints = dict(found for name, space in spaces.items() for found in _space_fields(space, name))
    # float64 holds every reward: an environment may return a float32 first and a Python float later.
    return hints | {REWARD: Field(np.dtype(np.float64))}, metadata


def _spec_fields(spec: Any, path: str) -> Iterator[tuple[str, Field]]:
    if isinstance(spec, Mapping):
        for name, inner in spec.items():
            yield from _spec_fields(inner, f"{path}/{name}")
    elif isinstance(spec, (list, tuple)):
        for i, inner in enumerate(spec):
            yield from _spec_fields(inner, f"{path}/{i}")
    elif np.dtype(spec.dtype).kind in "biuf":
        yield path, Field(np.dtype(spec.dtype), tuple(spec.shape))


def _encoded_spec(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {name: _encoded_spec(inner) for name, inner in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [_encoded_spec(inner) for inner in spec]
    encoded = {"shape": list(spec.shape), "dtype": str(np.dtype(spec.dtype)), "name": spec.name}
    for bound in ("minimum", "maximum", "num_values"):
        if hasattr(spec, bound):
            encoded[bound] = _bound(getattr(spec, bound))
    return encoded


def _space_fields(space: Any, path: str) -> Iterator[tuple[str, Field]]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from _space_fields(inner, f"{path}/{name}")
    elif isinstance(space, spaces.Tuple):
        for i, inner in enumerate(space.spaces):
            yield from _space_fields(inner, f"{path}/{i}")
    elif isinstance(space, spaces.Text):
        yield path, Field(BYTES, (), "text")
    elif isinstance(space, spaces.Sequence):
        for inner_path, field in _space_fields(space.feature_space, path):
            if inner_path == path:
                yield path, Field(field.dtype, (None, *field.shape), field.kind)
    elif space.dtype is not None and space.shape is not None:
        yield path, Field(np.dtype(space.dtype), tuple(space.shape))


def _encoded_space(space: Any) -> Any:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {name: _encoded_space(inner) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_encoded_space(inner) for inner in space.spaces]
    if space.dtype is None or space.shape is None:
        return {"space": str(space)}
    encoded: dict[str, Any] = {"shape": list(space.shape), "dtype": str(np.dtype(space.dtype)), "name": ""}
    if isinstance(space, spaces.Box):
        encoded |= {"minimum": _bound(space.low), "maximum": _bound(space.high)}
    elif isinstance(space, spaces.Discrete):
        start, count = int(space.start), int(space.n)
        encoded |= {"minimum": start, "maximum": start + count - 1, "num_values": count}
    elif isinstance(space, spaces.MultiDiscrete):
        encoded |= {"minimum": _bound(space.start), "maximum": _bound(space.start + space.nvec - 1)}
    return encoded


def _bound(bound: Any) -> Any:
    """A bound as JSON: one number if all are equal, because the bounds of an image are as large as the image."""
    values = np.asarray(bound)
    return values.reshape(-1)[0].item() if values.size and (values == values.flat[0]).all() else values.tolist()
