"""Answers sampled through vLLM, for which a stub stands: what it is sent and when, and what is made of its answers."""

from types import SimpleNamespace

import pytest
import torch
from trl.generation import vllm_client, vllm_generation

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.tokens import ControlTokens
from puma_trl.errors import ConfigError, ModelError
from puma_trl.train.trainer import PumaKLTrainer
from puma_trl.train.vllm_sampling import MAX_BIASED, NEVER, make_bias
from puma_trl.vllm_config import OF_SAMPLING_PARAMS, OF_VLLM

from ..models.family_models import build_family
from .vllm_stub import OF_SAMPLING, answer_to, make_llm, sampling_params, serve


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    """vLLM seems installed; the list that it gives gets each weight that is sent to a server, with its name."""
    for module in ("puma_trl.vllm_config", "trl.generation.vllm_generation", "trl.generation.vllm_client"):
        monkeypatch.setattr(f"{module}.is_vllm_available", lambda *args: True)
    sent = []

    class Engine:
        @staticmethod
        def trainer_send_weights(iterator, trainer_args):
            sent.append({name: value.detach().clone() for name, value in iterator})

    monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", Engine, raising=False)
    monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace, raising=False)
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: None)
    return sent


@pytest.fixture
def learned(monkeypatch):
    """The rows' answers in each micro-batch that is trained on."""
    found = []
    compute_loss = PumaKLTrainer.compute_loss

    def watched(self, model, inputs, **kwargs):
        found.append([row[row != -100].tolist() for row in inputs["labels"]])
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(PumaKLTrainer, "compute_loss", watched)
    return found


@pytest.fixture
def end(processor):
    return processor.tokenizer.eos_token_id


@pytest.fixture
def server(end):
    with serve(lambda ids: answer_to(ids, end)) as server:
        yield server


def options(server, **others):
    values = {"on_policy_share": 1.0, "max_completion_length": 6, "use_vllm": True, "vllm_mode": "server"}
    return values | {"vllm_server_base_url": f"http://127.0.0.1:{server.server_port}"} | others


PICTURES = {"vision_rich_images": lambda index: index % 3}


def test_settings_of_vllm_reach_it(train, tiny_model, pairs, server, monkeypatch):
    """Each under the name that it has there; as many sequences at once as a process samples in a step."""
    found = {}
    monkeypatch.setattr("puma_trl.train.vllm_sampling.VLLMGeneration", lambda **kwargs: found.update(kwargs))
    values = {
        "vllm_model_impl": "transformers", "vllm_enable_sleep_mode": True, "vllm_server_host": "host",
        "vllm_server_port": 1, "vllm_server_timeout": 2.0, "vllm_group_port": 3, "vllm_gpu_memory_utilization": 0.4,
        "vllm_max_model_length": 500, "vllm_tensor_parallel_size": 2, "vllm_server_base_url": "http://host:1",
    }  # fmt: skip
    trainer = train(tiny_model(), pairs(2), run=False, **options(server, **values), gradient_accumulation_steps=3)
    assert {name: found[name.removeprefix("vllm_")] for name in values} == values
    assert found["mode"] == "server" and found["max_num_seqs"] == 4 * 2 * 3 and found["model"] is trainer.model
    assert values.keys() | {"use_vllm", "vllm_mode"} == {*OF_VLLM}


def test_what_may_be_said_of_sampling_is_known_to_vllm():
    assert OF_SAMPLING.issuperset(OF_SAMPLING_PARAMS)


def test_what_a_server_is_sent_and_learned(train, tiny_model, pairs, processor, server, learned, end, vllm):
    sizes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 2}
    kwargs = {"frequency_penalty": 0.5, "bad_words": ["so"]}
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1}
    rows = pairs(4, **PICTURES)
    start = dict(tiny_model().named_parameters())
    trainer = train(tiny_model(), rows, **options(server, generation_kwargs=kwargs, **sampling, **sizes))
    paths = [path for path, _ in server.asked]
    sync = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    sync += ["/reset_encoder_cache"]  # without which a picture is read by the vision tower of an earlier step
    # per step the weights, once, then the pictures of three rows, then four answers
    step = sync + ["/v1/chat/completions/render"] * 2 + ["/inference/v1/generate"] * 4
    assert paths == step * 2
    # the weights are those before each step, under the names and shapes that are told
    assert len(vllm) == 2
    for name, value in start.items():
        assert torch.equal(vllm[0][name], value)
    assert any(not torch.equal(vllm[0][name], vllm[1][name]) for name in start)
    told = next(asked["update_info"] for path, asked in server.asked if path == "/update_weights")
    assert told["names"] == list(start) and told["shapes"] == [list(value.shape) for value in start.values()]
    # the prompts are those of training, with the places of the pictures in them
    collator = DataCollatorForPumaPairs(processor, on_policy=True)
    expected = {tuple(ids) for row in rows for ids in collator([row])["prompts"].rows()}
    asked = [asked for path, asked in server.asked if path == "/inference/v1/generate"]
    assert {tuple(each["token_ids"]) for each in asked} == expected
    image_token_id = processor.image_token_id
    for each in asked:
        places = each["features"]["mm_placeholders"]["image"] if each["features"] else []
        covered = [place["offset"] + index for place in places for index in range(place["length"])]
        assert covered == [place for place, token in enumerate(each["token_ids"]) if token == image_token_id]
    (params,) = {str(each["sampling_params"]): each["sampling_params"] for each in asked}.values()
    assert params["max_tokens"] == 6 and params["frequency_penalty"] == 0.5 and params["n"] == 1
    assert {name: params[name] for name in sampling} == sampling
    assert params["stop_token_ids"] == trainer._on_policy.ends and end in params["stop_token_ids"]
    suppressed = trainer._on_policy.vllm.suppressed
    assert params["bad_words"] == ["so"] and processor.image_token_id in suppressed
    assert params["logit_bias"] == {str(number): NEVER for number in suppressed}
    # what comes back is what is learned
    answers = {tuple(answer_to(ids, end)) for ids in expected}
    assert {tuple(answer) for micro_batch in learned for answer in micro_batch} == answers and len(answers) > 2
    assert [len(micro_batch) for micro_batch in learned] == [2] * 4


def test_a_server_gets_text_alone_where_there_is_no_picture(train, tiny_model, pairs, server, learned, end):
    train(tiny_model(), pairs(4, vision_rich_images=lambda index: 0), **options(server, max_steps=1))
    (asked,) = [asked for path, asked in server.asked if path == "/v1/completions"]
    assert len(asked["prompt"]) == 4 and asked["stop_token_ids"] and asked["logit_bias"]
    assert "/v1/chat/completions/render" not in [path for path, _ in server.asked]
    assert learned == [[answer_to(ids, end) for ids in asked["prompt"]]]


@pytest.fixture
def colocate(monkeypatch, processor, end):
    """Lets vLLM run in this process, in name; returns what it is asked."""
    asked = []
    llm = make_llm(lambda ids: answer_to(ids, end), processor.image_token_id, asked)
    monkeypatch.setattr(vllm_generation, "LLM", llm, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", sampling_params, raising=False)
    monkeypatch.setattr("puma_trl.config.check_vllm", lambda args: None)  # which refuses a CPU
    return asked


COLOCATE = {"on_policy_share": 1.0, "max_completion_length": 6, "use_vllm": True}


@pytest.mark.parametrize("padding_free", [False, True])
def test_what_a_colocated_vllm_is_asked_and_learned(
    train, tiny_model, pairs, processor, colocate, learned, end, padding_free
):
    model = tiny_model()
    model.set_attn_implementation("varlen" if padding_free else "sdpa")
    rows = pairs(4, **PICTURES)
    values = COLOCATE | {"max_steps": 2, "max_pixels": 2 * 28 * 28, "padding_free": padding_free, "min_p": 0.1}
    train(model, rows, **values, vllm_max_model_length=512)
    (_, init), *asked = colocate
    assert init["max_model_len"] == 512 and init["gpu_memory_utilization"] == 0.3 and init["max_num_seqs"] == 4
    num_weights = len(dict(model.named_parameters()))
    assert [what for what, _ in asked] == (["weights"] * num_weights + ["reset", "reset_encoder", "generate"]) * 2
    prompts, params = asked[num_weights + 2][1]
    assert params["min_p"] == 0.1 and params["max_tokens"] == 6
    assert params["logit_bias"][processor.image_token_id] == NEVER
    # one token for each picture, of the size in which training reads it
    images = [prompt.get("multi_modal_data", {}).get("image", []) for prompt in prompts]
    images = [each if isinstance(each, list) else [each] for each in images]
    assert sorted(map(len, images)) == sorted(len(row["image_url_2"]) for row in rows)
    for prompt, row_images in zip(prompts, images, strict=True):
        assert prompt["prompt_token_ids"].count(processor.image_token_id) == len(row_images)
        assert all(image.width * image.height <= 2 * 28 * 28 for image in row_images)
    # in training one is as many tokens as its size takes; what comes back is what is learned, row by row
    collator = DataCollatorForPumaPairs(processor, on_policy=True, keep_images=True)
    read = [collator([row])["prompts"] for row in rows]  # `max_pixels` is set in the processor
    answers = {tuple(each.unexpanded[0]): answer_to(each.rows()[0], end) for each in read}
    expected = [answers[tuple(prompt["prompt_token_ids"])] for prompt in prompts]
    assert learned[0] == ([sum(expected, [])] if padding_free else expected)


def test_a_prompt_that_vllm_reads_otherwise(train, tiny_model, pairs, colocate, monkeypatch):
    """As where pictures are of other sizes to it: the answer would be to another prompt."""
    monkeypatch.setattr("tests.train.vllm_stub.PATCH", 14)
    with pytest.raises(ModelError, match=r"^Row pairs.jsonl:\d: vLLM reads its prompt as \d+ tokens, training as \d+"):
        train(tiny_model(), pairs(4), **COLOCATE)


@pytest.mark.parametrize("token", ["<|image_pad|>", "beyond"])
def test_tokens_that_no_answer_has_are_not_learned(train, tiny_model, pairs, processor, server, learned, token, end):
    number = processor.image_token_id if token in processor.tokenizer.get_vocab() else 10**6
    server.answer = lambda ids: [20, number, end]
    with pytest.raises(ModelError, match=rf"^Row pairs.jsonl:\d: vLLM sampled the token {number} .*`min_p`"):
        train(tiny_model(), pairs(4), **options(server))
    assert learned == []


def test_no_token_at_all(train, tiny_model, pairs, server):
    server.answer = lambda ids: []
    with pytest.raises(ModelError, match=r"^Row pairs.jsonl:\d: vLLM sampled no token"):
        train(tiny_model(), pairs(4), **options(server))


def test_a_server_that_is_not_there(train, tiny_model, pairs, server):
    server.server_close()
    with pytest.raises(ConfigError, match="^vLLM cannot be used: The vLLM server can't be reached at [^\n]*$"):
        train(tiny_model(), pairs(4), **options(server, vllm_server_timeout=0.0))


def test_tokens_that_are_not_sampled(processor):
    """Tokens of pictures first, then special ones and those that no word has; no more than vLLM takes."""
    tokenizer = processor.tokenizer
    size = len(tokenizer)
    ids = ControlTokens(processor).ids | {20} | set(range(size, size + 2 * MAX_BIASED))
    bias = make_bias(processor, ids)
    assert len(bias) == MAX_BIASED and {*bias.values()} == {NEVER}
    assert processor.image_token_id in [*bias][:5] and ControlTokens(processor).ids <= bias.keys()
    assert make_bias(processor, {20, size}) == {20: NEVER, size: NEVER}


def test_bounds_of_pixels_that_vllm_does_not_know(pairs, server, tmp_path):
    processor, model = build_family("llava_next")
    values = options(server, max_pixels=400_000, bf16=False, use_cpu=True, report_to="none")
    with pytest.raises(ModelError, match="^`max_pixels: 400000` does not go with `use_vllm: true`"):
        PumaKLTrainer(model, PumaKLConfig(str(tmp_path), **values), train_dataset=pairs(2), processing_class=processor)


def test_a_collator_without_pictures_is_refused(tiny_model, pairs, processor, server, tmp_path):
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **options(server))
    with pytest.raises(ConfigError, match="`data_collator` keeps no pictures for vLLM"):
        PumaKLTrainer(
            tiny_model(),
            args,
            data_collator=DataCollatorForPumaPairs(processor, on_policy=True),
            train_dataset=pairs(2),
            processing_class=processor,
        )


def test_settings_that_are_changed_later_are_told(train, tiny_model, pairs, server, accelerate_state, caplog):
    trainer = train(tiny_model(), pairs(4), run=False, **options(server), max_steps=2)
    trainer.args.temperature = 0.5
    trainer.model.generation_config.top_k = 7
    trainer.train()
    assert caplog.text.count("Without effect: `temperature: 1.0 → 0.5`. vLLM keeps to the settings") == 1
    assert caplog.text.count("Without effect in training: `top_k: null → 7` of `model.generation_config`") == 1
