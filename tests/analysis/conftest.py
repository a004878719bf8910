"""Shared by the tests of the viewer's page: a browser, and a page of random groups."""

import random

import pytest
from helpers_browser import Browser
from helpers_viewer import random_record, write_run

from analysis import viewer


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def random_run(tmp_path_factory):
    rng = random.Random(1)
    records = [random_record(rng, step=g // 8 + 1, group=g % 8) for g in range(80)]
    run = write_run(tmp_path_factory.mktemp("random") / "run", records)
    viewer.main([str(run)])
    return run / "viewer.html", records
