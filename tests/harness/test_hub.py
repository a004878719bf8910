"""Without a way to the hub, its libraries are told so at once instead of trying for a minute."""

import socket

import pytest
from huggingface_hub import constants

from harness import loading
from harness.loading import no_hub


@pytest.fixture
def asked(monkeypatch):
    """Notes who is connected to, and is refused."""
    calls = []

    def refuse(address, timeout):
        calls.append(address)
        raise OSError("no way")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "getproxies", dict)
    return calls


def test_a_hub_that_cannot_be_reached_is_not_asked_again(asked, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443/x")
    assert no_hub() and constants.HF_HUB_OFFLINE
    assert no_hub() and asked == [("hub.example", 8443)]


def test_behind_a_proxy_the_libraries_know_better(asked, monkeypatch):
    monkeypatch.setattr(loading, "getproxies", lambda: {"https": "http://proxy"})
    assert not no_hub() and not asked


def test_a_hub_that_answers_is_used(asked, monkeypatch):
    class Connection:
        def close(self):
            asked.append("closed")

    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: Connection())
    assert not no_hub() and asked == ["closed"]


def test_a_missing_model_is_one_line_that_says_there_is_no_way(asked, capsys):
    with pytest.raises(SystemExit), loading.loading("owner/name"):
        raise OSError("not there")
    error = capsys.readouterr().err
    assert "no such folder here, and the hub cannot be reached" in error and error.count("\n") == 1


def test_a_model_that_is_there_asks_nobody(asked, tmp_path, capsys):
    with pytest.raises(SystemExit), loading.loading(str(tmp_path)):
        raise ValueError("damaged")
    assert not asked and "damaged" in capsys.readouterr().err
