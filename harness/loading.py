"""Checks what is read from a model folder: it may be damaged, malicious, or no model for this program.

Code that comes with a model runs only with --trust-remote-code. Transformers would ask on the terminal instead, where
`yes |` may be waiting to answer. Whatever else is wrong ends the program with one line.
"""

from __future__ import annotations

import os
import signal
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from harness.console import one_line

hf_logging.set_verbosity(hf_logging.CRITICAL)  # its reports on weights have many lines, ours have one
MOST_LAYERS = 1000  # all layers are built before weights are read: a billion of them would never end
TEMPLATE_SECONDS = 5  # of CPU time: a chat template is a program, and may never end
PROBE = "1+1="
HUB_SECONDS = 5  # to connect to it


def no_hub() -> bool:
    """Is the hub out of reach? Its libraries would try for a minute, so then they are made to use their cache alone.

    If a proxy is set, we cannot know, and leave it to them.
    """
    hub = urlsplit(constants.ENDPOINT)
    if not constants.HF_HUB_OFFLINE and not getproxies():
        try:
            socket.create_connection((hub.hostname, hub.port or 443), timeout=HUB_SECONDS).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Goes around all that reads the model `name`: any error becomes one line, as no two damaged folders fail alike."""
    there = os.path.exists(name)  # noqa: PTH110  Path.exists raises if a folder may not be entered
    where = (
        ""
        if there
        else " (no such folder here, and the hub cannot be reached: give the folder of a downloaded model)"
        if no_hub()
        else " (no such folder here)"
    )
    with one_line(f"{name} cannot be loaded{where}", Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")  # peft would go on with random ones
        yield


def load_model(name: str, dtype: torch.dtype, trust: bool) -> PreTrainedModel:
    """The causal LM of this folder or hub id. Raises ValueError if a weight is missing or has another shape."""
    if not name:
        raise ValueError("its adapter_config.json does not name the base model")
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust).get_text_config()
    if getattr(config, "num_hidden_layers", 0) > MOST_LAYERS:
        raise ValueError(f"its config.json asks for over {MOST_LAYERS} layers")
    load = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(name, dtype=dtype, trust_remote_code=trust, output_loading_info=True)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):  # its text points to a report that is not shown
            raise
        raise ValueError("its tensors do not have the shapes that its config.json says") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} of its tensors are missing; the first is {missing[0]}")
    return model


def load_tokenizer(name: str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of this folder or hub id. Its chat template, if it has one, is tried out."""

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"its chat template takes over {TEMPLATE_SECONDS} s")

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    if tokenizer.chat_template:
        timed = hasattr(signal, "setitimer")  # not on Windows: there a template that never ends is not noticed
        if timed:
            signal.signal(signal.SIGVTALRM, late)
            signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_SECONDS)
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": PROBE}], add_generation_prompt=True)
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return tokenizer
