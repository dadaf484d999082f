"""Roles of different versions refuse each other, and a missing one is named."""

import os
from dataclasses import replace

import pytest

from tfx_pipeline.cluster.announcement import (
    Announcement,
    refuse_other_chief,
    this_version,
    wait_for_roles,
)
from tfx_pipeline.cluster.exit_codes import EXIT_MISSING_ROLE, EXIT_OTHER_VERSION
from tfx_pipeline.errors import ClusterError

ADDRESSES = {"chief": ["a:1"], "ps": ["a:2"], "worker": ["b:1", "b:2"]}


@pytest.fixture
def announced(tmp_path):
    roles = {"ps:0": "a:2", "worker:0": "b:1", "worker:1": "b:2"}
    said = {role: Announcement.mine(role, address) for role, address in roles.items()}
    for each in said.values():
        each.write(tmp_path)
    return said


@pytest.fixture
def chief():
    return Announcement.mine("chief:0", "a:1")


def test_the_chief_goes_on_when_all_are_of_its_version(announced, chief, tmp_path):
    wait_for_roles(chief, ADDRESSES, tmp_path, seconds=0)
    assert Announcement.read(tmp_path, "ps:0") == announced["ps:0"]


def test_another_version_is_refused_by_the_chief_and_by_the_role(announced, chief, tmp_path):
    other = replace(announced["worker:1"], version="laser-ranking 9 (abc)")
    other.write(tmp_path)
    with pytest.raises(ClusterError, match=r"worker:1 .* runs laser-ranking 9 \(abc\)") as raised:
        wait_for_roles(chief, ADDRESSES, tmp_path, seconds=0)
    assert raised.value.exit_code == EXIT_OTHER_VERSION
    with pytest.raises(ClusterError, match=r"chief:0 .* runs laser-ranking"):
        refuse_other_chief(other, tmp_path)
    refuse_other_chief(announced["ps:0"], tmp_path)


def test_a_role_without_the_ops_that_the_chief_uses_is_refused(announced, chief, tmp_path):
    for role in ("ps:0", "worker:0"):
        replace(announced[role], ops="abc").write(tmp_path)
    wait_for_roles(chief, ADDRESSES, tmp_path, seconds=0)  # it uses none
    packing = replace(chief, ops="abc")
    with pytest.raises(
        ClusterError, match=r"worker:1 .* give `laser-pipeline build-ops`"
    ) as raised:
        wait_for_roles(packing, ADDRESSES, tmp_path, seconds=0)
    assert raised.value.exit_code == EXIT_OTHER_VERSION
    packing.write(tmp_path)
    with pytest.raises(ClusterError, match=r"worker:1 .* has not loaded the ops"):
        refuse_other_chief(announced["worker:1"], tmp_path)
    refuse_other_chief(replace(announced["worker:1"], ops="abc"), tmp_path)
    chief.write(tmp_path)
    refuse_other_chief(replace(announced["worker:1"], ops="abc"), tmp_path)


def test_a_missing_role_is_named(announced, chief, tmp_path):
    (tmp_path / "worker-1.json").unlink()
    (tmp_path / "ps-0.json").write_text("{")
    with pytest.raises(ClusterError, match=r"ps:0 \(a:2\), worker:1 \(b:2\)") as raised:
        wait_for_roles(chief, ADDRESSES, tmp_path, seconds=0)
    assert raised.value.exit_code == EXIT_MISSING_ROLE
    with pytest.raises(ClusterError, match=r"worker:0 \(elsewhere:1\)"):
        wait_for_roles(chief, {"worker": ["elsewhere:1"]}, tmp_path, seconds=0)


def test_what_an_earlier_run_left_does_not_count(announced, chief, tmp_path):
    old = replace(chief, version="old")
    hour_ago = old.write(tmp_path).stat().st_mtime - 3600
    os.utime(tmp_path / "chief-0.json", (hour_ago, hour_ago))
    refuse_other_chief(announced["ps:0"], tmp_path)
    os.utime(tmp_path / "ps-0.json", (hour_ago, hour_ago))
    with pytest.raises(ClusterError, match="ps:0"):
        wait_for_roles(chief, ADDRESSES, tmp_path, seconds=0)


def test_the_version_names_the_package_and_its_code():
    assert this_version() == this_version()
    assert this_version().startswith("laser-ranking ")
