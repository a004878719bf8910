"""What is read from a model folder is checked here: it may be damaged, crafted, or no model for this program.

Code that comes with a model is not run unless --trust-remote-code asks for it: transformers would ask on the terminal,
where `yes |` may be waiting. Whatever else is wrong ends the program with one line.
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

hf_logging.set_verbosity(hf_logging.CRITICAL)  # its reports on weights have many lines; ours say it in one
MOST_LAYERS = 1000  # layers are built before their weights are looked for: a billion of them are a hang
TEMPLATE_SECONDS = 5  # of computing: a chat template is a program, and may not end
PROBE = "1+1="
HUB_SECONDS = 5  # for a connection to it


def no_hub() -> bool:
    """Is there no way to the hub? Its libraries would try for a minute; so they are made to look at what is cached.

    Where a proxy is set we do not know better than they do.
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
    """Around all that reads the model `name`. One line for whatever comes out: no two damaged folders fail alike."""
    there = os.path.exists(name)  # noqa: PTH110  Path's raises where a folder may not be entered
    where = "" if there else " (no such folder here, and no way to the hub)" if no_hub() else " (no such folder here)"
    with one_line(f"{name} cannot be loaded{where}", Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")  # peft would go on with random ones
        yield


def load_model(name: str, dtype: torch.dtype, trust: bool) -> PreTrainedModel:
    """The causal LM of this folder or hub id, every weight of it from there."""
    if not name:
        raise ValueError("its adapter_config.json does not say of which model")
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust).get_text_config()
    if getattr(config, "num_hidden_layers", 0) > MOST_LAYERS:
        raise ValueError(f"its config.json asks for over {MOST_LAYERS} layers")
    load = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(name, dtype=dtype, trust_remote_code=trust, output_loading_info=True)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):  # these words point to a report that is not shown
            raise
        raise ValueError("its tensors have other shapes than its config.json says") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} of its tensors are missing, {missing[0]} is the first")
    return model


def load_tokenizer(name: str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of this folder or hub id, with a chat template that works, or none."""

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
