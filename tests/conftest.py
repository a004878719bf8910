"""Shared by the tests: a policy small enough to build in a moment, in place of the warm start."""

import threading

import pytest
import torch
from judge_server import KEY, Server

import scoring
import tasks
from harness.warm_start import WarmStart, build_model, build_tokenizer, train_warm_start
from maths import verifier
from policy import Policy, save_policy

torch.set_num_threads(1)  # models this small are faster so, and leave the other core to whoever else needs it


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """The notebooks of lessons/ are extras."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("extra")


@pytest.fixture(scope="session")
def tiny():
    """The built-in model at a fifth of its width, trained for a few steps: it ends its responses now and then."""
    settings = WarmStart(steps=40, batch=16, lr=3e-3, width=32, layers=2, heads=2, mlp=64)
    policy = train_warm_start(settings)
    policy.model.eval()
    return policy


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    """The same as a model folder, for command lines."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_policy(tiny, folder)
    return folder


@pytest.fixture(scope="session")
def untrained():
    """A policy of random weights, for what does not depend on them."""
    settings = WarmStart(width=32, layers=1, heads=2, mlp=32)
    tokenizer = build_tokenizer()
    model = build_model(settings, tokenizer)
    return Policy(model.eval(), tokenizer)


@pytest.fixture
def model_folder(untrained, tmp_path):
    save_policy(untrained, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run_folder(untrained, tmp_path):
    save_policy(untrained, tmp_path / "run" / "checkpoint" / "model")
    (tmp_path / "run" / "config.json").write_text('{"method": "dagrpo", "seed": 0}')
    return tmp_path / "run"


@pytest.fixture
def problems():
    """One problem of each of the first three levels."""
    return tasks.arithmetic("train", per_level=1)[:3]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def double_precision():
    """For closed forms: torch's default dtype is fp64 in the whole module."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def even_is_right(monkeypatch):
    """The tiny policy is never right, and without signal nothing is tested: call responses of even length right."""
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """What is exact on a CPU is not under a GPU's autocast: only test_gpu.py sees one."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that a test starts


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_worker(monkeypatch):
    """The test fails if math-verify is asked."""

    def asked(*question):
        raise AssertionError(f"{question} was handed to math-verify")

    monkeypatch.setattr(verifier, "equal", asked)
    monkeypatch.setattr(verifier, "parses", asked)
