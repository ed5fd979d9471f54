"""constraints.txt is complete and consistent with setup.cfg."""

import configparser
import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.places import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "darwin-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
ENVIRONMENTS = {
    f"{python}-{name}": {"python_version": python, "python_full_version": f"{python}.1", "os_name": "posix", **platform}
    for python in PYTHONS
    for name, platform in PLATFORMS.items()
}


def _lines(text):
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def _setup():
    setup = configparser.ConfigParser(comment_prefixes="#", interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return setup


def _requirements():
    """Every requirement of setup.cfg, of the package itself and of each extra."""
    setup = _setup()
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [requirement for text in texts for requirement in _lines(text) if requirement.name != "kabuki_rlds"]


def _applies(requirement, environment, extras=("",)):
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras)


def _pins(environment):
    """The pinned version of each name that constraints.txt gives for an environment."""
    pins = {}
    for requirement in _lines((ROOT / "constraints.txt").read_text()):
        if _applies(requirement, environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            pins[name] = specifier.version
    return pins


def _unpinned(requirements, pins):
    """The requirements that no pin satisfies, each with the version that is pinned instead."""
    unpinned = {}
    for requirement in requirements:
        version = pins.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unpinned[str(requirement)] = version
    return unpinned


def test_all_supported_pythons_are_covered():
    classifiers = _setup()["metadata"]["classifiers"].splitlines()
    assert [line.rpartition(" ")[2] for line in classifiers if "Python :: 3." in line] == list(PYTHONS)


def test_extra_all_contains_every_extra_for_users():
    setup = _setup()
    (everything,) = _lines(setup["options.extras_require"]["all"])
    assert everything.extras == set(setup["options.extras_require"]) - {"all", "test", "lint", "docs"}
    assert everything.specifier.contains(importlib.metadata.version("kabuki_rlds"), prereleases=True)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_requirements_of_setup_cfg_are_pinned(environment):
    wanted = [requirement for requirement in _requirements() if _applies(requirement, environment)]
    assert wanted
    assert not _unpinned(wanted, _pins(environment)), "run `make lock`"


def test_requirements_of_pinned_packages_are_pinned():
    """Follows the metadata of the packages that are installed in the pinned version."""
    pins = _pins({})
    todo = [requirement for requirement in _requirements() if _applies(requirement, {})]
    followed = set()
    while todo:
        requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        try:
            package = importlib.metadata.distribution(key[0])
        except importlib.metadata.PackageNotFoundError:
            continue
        if key in followed or package.version != pins.get(key[0]):
            continue
        followed.add(key)
        needed = [Requirement(line) for line in package.requires or ()]
        needed = [each for each in needed if _applies(each, {}, ("", *requirement.extras))]
        assert not _unpinned(needed, pins), f"{package.name} {package.version} requires more: run `make lock`"
        todo += needed
    if not followed:
        pytest.skip("no package is installed in its pinned version")


def test_constraints_name_no_package_index():
    assert "://" not in (ROOT / "constraints.txt").read_text()
