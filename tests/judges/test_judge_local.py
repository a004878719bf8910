"""The judge that is a local model: its grade is read from the probabilities of the next token."""

from math import isnan, nan
from types import SimpleNamespace

import pytest
import torch
from judge_server import (
    PROBLEM,
    pairs,
    same,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judges.__main__ import main
from judges.local import grade_tokens, local_judge
from judges.prompt import AS_LETTER, Counters, prompt
from policy import Policy, save_policy
from scoring import EXAMPLE, EXAMPLE_PROBLEM


def characters(letters=True, template=None):
    """A tokenizer over printable characters, with or without capital letters."""
    known = [chr(c) for c in range(32, 127) if letters or not chr(c).isupper()] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=template
    )


@pytest.fixture(scope="module", params=["relative", "absolute"])
def grader(request):
    """A model of random weights, so large that it has opinions, with relative or with absolute positions."""
    tokenizer = characters()
    torch.manual_seed(0)
    if request.param == "relative":
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.4, **shape)
        return Policy(LlamaForCausalLM(config).eval(), tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=2048, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4
    )
    return Policy(GPT2LMHeadModel(config).eval(), tokenizer)


def letter_prompt(response):
    return prompt(PROBLEM, response, AS_LETTER.format(best="A", worst="J"))


RESPONSES = ["#59", "37+48=85;85-26=59;#59", "", "37+48=75;" * 20]


def test_the_local_judge_is_one_literal_loop(grader):
    wanted = []
    for response in RESPONSES:
        text = letter_prompt(response) + "Grade:"
        with torch.no_grad():
            logits = grader.model(torch.tensor([grader.tokenizer.encode(text, add_special_tokens=False)])).logits[0, -1]
        odds = [float(logits[grader.tokenizer.convert_tokens_to_ids(letter)].exp()) for letter in "ABCDEFGHIJ"]
        wanted.append(sum(p * number for p, number in zip(odds, range(10, 0, -1), strict=True)) / sum(odds))
    scores = local_judge(grader, Counters())(pairs(*RESPONSES))
    assert scores == pytest.approx(wanted, abs=1e-4)
    assert max(wanted) - min(wanted) > 0.1  # or the test could not tell one row from another


def test_batches_and_order_change_nothing(grader):
    together = local_judge(grader, Counters())(pairs(*RESPONSES))
    alone = local_judge(grader, Counters(), micro_batch_tokens=1)(pairs(*RESPONSES))
    backwards = local_judge(grader, Counters())(pairs(*RESPONSES[::-1]))
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(backwards[::-1], abs=1e-4)


def test_a_twin_costs_nothing_and_figures_are_counted(grader):
    counters = Counters()
    scores = local_judge(grader, counters)(pairs("#59", "#58", "#59"))
    tokens = len(letter_prompt("#59") + "Grade:" + letter_prompt("#58") + "Grade:")
    assert scores[0] == scores[2] != scores[1]
    assert (counters.calls, counters.cache_hits, counters.failures, counters.tokens) == (2, 1, 0, tokens)
    assert counters.seconds > 0
    assert local_judge(grader, counters)([]) == []


def test_a_prompt_beyond_the_context_is_no_score(grader):
    counters = Counters()
    fits = 2048 - len(letter_prompt("") + "Grade:")
    scores = local_judge(grader, counters)(pairs("#59", "x" * (fits + 1), "x" * fits))
    assert [isnan(score) for score in scores] == [False, True, False]
    assert (counters.calls, counters.failures) == (2, 1)


class Opinion:
    """In place of a model: the same logits after every prompt, -20 where nothing is said."""

    config, device = SimpleNamespace(get_text_config=SimpleNamespace), torch.device("cpu")

    def __init__(self, tokenizer, **logits):
        self.logits = torch.full((len(tokenizer),), -20.0)
        for token, logit in logits.items():
            self.logits[tokenizer.convert_tokens_to_ids(token)] = logit

    def __call__(self, input_ids, **_):
        self.seen = input_ids
        return SimpleNamespace(logits=self.logits.expand(len(input_ids), 1, -1))


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        ({"A": 50.0}, 10),
        ({"J": 50.0}, 1),
        ({"B": 50.0}, 9),
        (dict.fromkeys("ABCDEFGHIJ", 0.0), 5.5),
        ({"A": 0.0, "J": 0.0}, 5.5),
        ({"A": 0.0, "D": torch.tensor(3.0).log().item()}, (10 + 3 * 7) / 4),
        ({"B": 0.0, "x": 30.0}, 9),  # what is no grade is not asked for
    ],
)
def test_grades_are_mapped_to_1_to_10(logits, score):
    tokenizer = characters()
    (got,) = local_judge(Policy(Opinion(tokenizer, **logits), tokenizer), Counters())(pairs("#59"))
    assert got == pytest.approx(score, abs=1e-5)
    assert 1 <= got <= 10


def test_grades_that_are_fewer_span_the_same_range():
    tokenizer = characters()
    for best, score in (("3", 10), ("2", 5.5), ("1", 1)):
        policy = Policy(Opinion(tokenizer, **{best: 50.0}), tokenizer)
        assert local_judge(policy, Counters(), grades="321")(pairs("#59")) == pytest.approx([score])


@pytest.mark.parametrize("response", ["<eos>A", "<<eos>eos>", "#59<eos><unk><pad>"])
def test_a_response_cannot_write_special_tokens(response):
    tokenizer = characters()
    policy = Policy(Opinion(tokenizer), tokenizer)
    assert tokenizer.eos_token_id in tokenizer.encode("<eos>A")  # as it would be
    local_judge(policy, Counters())(pairs(response))
    assert not set(policy.model.seen.flatten().tolist()) & set(tokenizer.all_special_ids)


def words(*vocabulary):
    """A byte-pair tokenizer that knows printable characters and, merged from two of them, `vocabulary`."""
    known = {token: i for i, token in enumerate([chr(c) for c in range(32, 127)] + ["\n", *vocabulary])}
    tokenizer = Tokenizer(models.BPE(known, [(pair[0], pair[1]) for pair in vocabulary]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="~")


def test_a_grade_is_read_with_and_without_a_space():
    tokenizer = words(" A", " B")
    a, spaced, b = (tokenizer.convert_tokens_to_ids(token) for token in ("A", " A", "B"))
    assert [set(ids) for ids in grade_tokens(Policy(None, tokenizer), "AB")] == [{a, spaced}, {b, spaced + 1}]
    even = {"A": 0.0, " A": 0.0, "B": torch.tensor(2.0).log().item()}  # A's two forms weigh as much as B
    policy = Policy(Opinion(tokenizer, **even), tokenizer)
    assert local_judge(policy, Counters(), grades="AB")(pairs("#59")) == pytest.approx([5.5])


def test_a_form_that_melts_into_the_prompt_is_left_out():
    """ ":A" is one token here: "A" by itself is never the token after "Grade:"."""
    tokenizer = words(" A", " B", ":A", ":B")
    forms = grade_tokens(Policy(None, tokenizer), "AB")
    assert forms == [[tokenizer.convert_tokens_to_ids(" A")], [tokenizer.convert_tokens_to_ids(" B")]]
    with pytest.raises(SystemExit):
        grade_tokens(Policy(None, words(":A", ":B")), "AB")


def test_with_a_chat_template_the_reply_begins_with_the_lead():
    template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}reply{{ ':' }}{% endif %}"
    )
    tokenizer = characters(template=template)
    policy = Policy(Opinion(tokenizer), tokenizer)
    local_judge(policy, Counters())(pairs("#59"))
    (row,) = policy.model.seen.tolist()
    assert tokenizer.decode(row) == f"[{letter_prompt('#59')}]reply:Grade:"


@pytest.mark.parametrize("grades", ["ABCDEFGHIJ", "12A", "11"])
def test_grades_that_the_tokenizer_cannot_tell_apart_are_one_line(tiny, capsys, grades):
    with pytest.raises(SystemExit) as end:
        local_judge(tiny, Counters(), grades=grades)
    assert end.value.code == 2
    assert "use another model" in capsys.readouterr().err


def test_the_built_in_model_grades_by_digits(tiny, monkeypatch):
    """Its context of 512 characters is less than the task's text, so the task is a short one here."""
    assert same(local_judge(tiny, Counters(), grades="9876543210")(pairs("#59")), [nan])
    monkeypatch.setattr("judges.prompt.TASK", "")
    (score,) = local_judge(tiny, Counters(), grades="9876543210")(pairs("#59"))
    assert 1 <= score <= 10


def test_the_command_asks_a_local_model_for_eight_scores(grader, tmp_path, capsys):
    save_policy(grader, tmp_path / "model")
    main(["--model", str(tmp_path / "model")])
    *_, first, last, figures = capsys.readouterr().out.splitlines()
    wanted = local_judge(grader, Counters())([(EXAMPLE_PROBLEM, EXAMPLE[-1])])[0]
    assert last.endswith(EXAMPLE[-1]) and f" {wanted:.2f}  " in last and first.endswith(EXAMPLE[-2])
    assert "judge_calls 7" in figures
