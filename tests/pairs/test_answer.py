"""`pairs answer`: a model's own answers, the right ones kept; resumed, in two processes, through a server."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from puma_trl.data.files import find_sources
from puma_trl.data.forms import find_forms
from puma_trl.data.render import render_answer, render_prompt
from puma_trl.errors import DataError, EvaluationError, PumaError
from puma_trl.evaluation.answers import is_prose
from puma_trl.evaluation.gap_answers import options_of, same_answer
from puma_trl.evaluation.local_model import Prompt, load_for_generation
from puma_trl.evaluation.settings import ReplySettings
from puma_trl.mini import build_model, build_processor
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.answer.choice import Judged, Yield, agrees, choose, judge_replies, without_thoughts
from puma_trl.pairs.answer.problems import GOLD, Problem, digest, read_problems
from puma_trl.pairs.answer.replies import Asking, write_chat
from puma_trl.pairs.answer.sampling import PickToken, Sampler

from ..conftest import TINY
from ..evaluation.helpers import read_rows, write_rows


ROOT = Path(__file__).parents[2]
COUNT = 6


def pair(index, **changes):
    """A problem with the answer 3 + index, of which every second one is of another kind."""
    row = {
        "image_url": None,
        "instruction": f"Angles {index} and 3?",
        "output": f"The angle is {3 + index}",
        "image_url_2": f"pictures/{index}.png",
        "instruction_2": "The angle?",
        "output_2": f"The angle is {3 + index}",
        "kind": ("triangle_angles", "bar_total")[index % 2],
        "level": 1,
    }
    return row | changes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs with their pictures."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for index in range(COUNT):
        Image.new("RGB", (28 + 28 * (index % 2), 28), (40 * index, 90, 0)).save(folder / "pictures" / f"{index}.png")
    return write_rows(folder / "pairs.jsonl", [pair(index) for index in range(COUNT)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that has learned these answers by half, so that some of its replies are right."""
    torch.set_num_threads(1)
    processor = build_processor("qwen2_vl")
    model = build_model("qwen2_vl", processor, seed=3, **TINY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [pair(index) for index in range(COUNT)]
    prompts = [render_prompt(processor, row["instruction"], 0) for row in rows]
    texts = [prompt + render_answer(processor, row["output"]) for prompt, row in zip(prompts, rows, strict=True)]
    batch = processor.tokenizer(
        texts, padding=True, add_special_tokens=False, padding_side="right", return_tensors="pt"
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    for _ in range(45):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def options(model, data, output, *more):
    files = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return ["answer", *files, "--max_new_tokens", "12", "--batch_size", "4", "--keep", "all", *more]


@pytest.fixture
def asked(monkeypatch):
    """The seeds of all replies that are asked for; `asked.limit` batches later the run is stopped."""
    sample, seeds = Sampler.sample, Seeds()

    def count(self, prompts, given):
        if seeds.limit == 0:
            raise KeyboardInterrupt
        seeds.limit -= 1
        seeds.extend(given)
        return sample(self, prompts, given)

    monkeypatch.setattr(Sampler, "sample", count)
    return seeds


class Seeds(list):
    limit = -1


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """The answers of a run that nothing stopped, and what it printed."""
    output = tmp_path_factory.mktemp("whole") / "own.jsonl"
    main(options(model, data, output, "--round", "2"))
    return output


def replies(output):
    return {row["id"]: row for row in read_rows(output.with_name(f".{output.stem}.progress.jsonl"))}


def test_every_kept_row_is_judged_again(whole, data):
    kept, golds = read_rows(whole), {row["instruction"]: row for row in read_rows(data)}
    assert 0 < len(kept) < 4 * COUNT
    for row in kept:
        source = golds[row["instruction"]]
        assert row["output"] == row["output_2"] and row[GOLD] == source["output_2"]
        assert same_answer(row["output"], source["output_2"], options_of(source))
        assert {name: row[name] for name in ("instruction_2", "kind", "level")}.items() <= source.items()
        assert (whole.parent / row["image_url_2"]).samefile(data.parent / source["image_url_2"])
        assert row["image_url"] is None and row["round"] == 2 and 1 <= row["sample"] <= 4
    # and no right one was left out, but for those that say the same again
    right = {
        (row["row_id"], row["response"])
        for row in replies(whole).values()
        if not (row["is_cut"] or "\ufffd" in row["response"])
        and same_answer(row["response"], pair(int(row["row_id"].split(":")[1]) - 1)["output"])
    }
    assert len(right) == len(kept) and {text for _, text in right} == {row["output"] for row in kept}


def test_training_reads_the_answers_and_not_the_gold_ones(whole, capsys):
    (source,) = find_forms(find_sources([str(whole)], None, None, "train"))
    assert {GOLD, "round", "sample"} <= set(source.form.unread) and not source.form.suspects
    problems, _ = read_problems([str(whole)], whole.parent)
    assert [problem.gold for problem in problems] == [row["output"] for row in read_rows(whole)]
    main(["check", str(whole)])
    assert re.search(rf"not read.*{GOLD}", " ".join(capsys.readouterr().out.split()))
    # a folder of answers is read without the files beside them
    assert [source.path for source in find_sources([str(whole.parent)], None, None, "train")] == [str(whole)]


def test_the_yield_counts_every_reply(whole):
    page, rows = whole.with_suffix(".md").read_text(), read_rows(whole)
    kinds = {line.split(" | ")[0]: line for line in page.splitlines()}
    for kind in ("bar_total", "triangle_angles"):
        kept = [row for row in rows if row["kind"] == kind]
        solved = len({row["instruction"] for row in kept})
        expected = rf"\| {kind} \| 3 \| {solved} \({solved / 3:.1%}\) \| 12 \| \d+ \(\d+.\d%\) \| {len(kept)} \|"
        assert re.fullmatch(expected, kinds[f"| {kind}"])
    left = sum(int(count) for count in re.findall(r": (\d+)[;.]", page.splitlines()[-1]))
    assert left + len(rows) == 4 * COUNT == len(replies(whole))
    assert sum(int(line.split(" | ")[1]) for name, line in kinds.items() if "up to" in name) == 4 * COUNT


def test_stopped_run_is_resumed_with_equal_bytes(model, data, whole, tmp_path, asked):
    output = tmp_path / whole.parent.name / "own.jsonl"  # as deep, and so with the same paths to pictures
    asked.limit = 2
    with pytest.raises(KeyboardInterrupt):
        main(options(model, data, output, "--round", "2"))
    assert not output.exists() and len(replies(output)) == 8
    with open(output.with_name(".own.progress.jsonl"), "a") as file:
        file.write('{"id": 23, "resp')  # a torn last line
    asked.limit = -1
    main(options(model, data, output, "--round", "2"))
    assert len(asked) == len(set(asked)) == 4 * COUNT
    assert without_paths(output) == without_paths(whole)
    assert output.with_suffix(".md").read_bytes() == whole.with_suffix(".md").read_bytes()
    # another choice among the same replies asks nothing more
    before = output.read_bytes()
    main([*options(model, data, output, "--round", "2"), "--keep", "shortest"])
    assert len(asked) == 4 * COUNT and len(read_rows(output)) < len(before.splitlines())
    main(options(model, data, output, "--round", "2"))
    assert output.read_bytes() == before


def without_paths(output):
    """Returns the bytes of the rows without the way to the pictures, which is another for each folder."""
    return re.sub(rb"[./\w-]*/pictures/", b"pictures/", output.read_bytes())


def test_two_ranks_give_the_same_set(model, data, whole, tmp_path, monkeypatch):
    """Each answers its share; what they leave is as of one, also where one of them was stopped and the other not."""
    from puma_trl.pairs.answer import replies as module

    share = module._ask_share

    def ask_as_two(asking, rank, num_ranks):
        for rank in (1, 0):
            share(asking, rank, 2)
        assert len(list(tmp_path.glob(".own.progress.rank*.jsonl"))) == 2

    monkeypatch.setattr(module, "_ask_share", ask_as_two)
    main(options(model, data, tmp_path / "own.jsonl", "--round", "2"))
    assert without_paths(tmp_path / "own.jsonl") == without_paths(whole)
    assert not list(tmp_path.glob(".own.progress.rank*"))


@pytest.mark.distributed
def test_two_processes_give_the_same_set(model, data, whole, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "puma_trl.pairs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launch, *options(model, data, tmp_path / "own.jsonl", "--round", "2")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert without_paths(tmp_path / "own.jsonl") == without_paths(whole)


def test_other_settings_do_not_mix(model, data, tmp_path, asked):
    asked.limit = 1
    with pytest.raises(KeyboardInterrupt):
        main(options(model, data, tmp_path / "own.jsonl"))
    for more, name in ((["--seed", "1"], "seed 0 -> 1"), (["--side", "vision_rich"], "'text_rich' -> 'vision_rich'")):
        with pytest.raises(EvaluationError, match=rf"own.progress.jsonl has replies .*{name}"):
            main(options(model, data, tmp_path / "own.jsonl", *more))
    other = write_rows(tmp_path / "pairs.jsonl", [pair(index, image_url_2=None) for index in range(COUNT - 1)])
    with pytest.raises(EvaluationError, match="data '"):
        main(options(model, other, tmp_path / "own.jsonl"))
    (tmp_path / ".own.progress.settings.json").unlink()
    with pytest.raises(EvaluationError, match="own.progress.settings.json, which says how they were made"):
        main(options(model, data, tmp_path / "own.jsonl"))


def test_other_pictures_are_other_data(data, tmp_path):
    """They may have the same names, and bytes in the data the same length."""
    copy = write_rows(tmp_path / "pairs.jsonl", read_rows(data))
    shutil.copytree(data.parent / "pictures", tmp_path / "pictures")

    def digests():
        problems, _ = read_problems([str(copy)], tmp_path)
        stored = [replace(each, row=each.row | {"image_url_2": as_bytes(each)}) for each in problems]
        return digest(problems, "vision_rich"), digest(stored, "vision_rich"), digest(problems, "text_rich")

    def as_bytes(problem):
        return [{"bytes": Path(image["path"]).read_bytes(), "path": None} for image in problem.row["image_url_2"]]

    before = digests()
    assert before == digests() and before[0] == digest(read_problems([str(data)], tmp_path)[0], "vision_rich")
    Image.new("RGB", (28, 28), (1, 90, 0)).save(tmp_path / "pictures" / "0.png")
    assert [old == new for old, new in zip(before, digests(), strict=True)] == [False, False, True]


@pytest.mark.parametrize("changes", [{"id": "0"}, {"response": None}, {"is_cut": 1}])
def test_rows_that_are_no_replies_are_refused(changes, tmp_path):
    row = {"id": 0, "row_id": "a", "sample": 1, "response": "", "is_cut": True}
    progress = write_rows(tmp_path / ".own.progress.jsonl", [row | changes])
    with pytest.raises(EvaluationError, match="own.progress.jsonl, line 1: a reply has id, row_id"):
        Asking([], "text_rich", 1, ReplySettings("m"), progress).read()


def test_a_seed_gives_the_same_reply_in_any_batch(model, data):
    sampler = Sampler(*load_for_generation(str(model)), max_new_tokens=8, temperature=1.5)
    problems, _ = read_problems([str(data)], data.parent, model=str(model))
    prompts = [problem.prompt("text_rich") for problem in problems]
    seeds = [f"0 {problem.row_id} 1" for problem in problems]
    together = sampler.sample(prompts, seeds)
    assert together == [sampler.sample([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together != sampler.sample(prompts, [f"{seed} other" for seed in seeds])
    (again,) = sampler.sample(prompts[:1], seeds[:1])
    assert (again.num_tokens, again.is_cut) == (together[0].num_tokens, together[0].is_cut)


class Numbers:
    """Gives the middles of equal stretches of 0 to 1, one for each sequence."""

    def __init__(self, place, count):
        self.number = (place + 0.5) / count

    def random(self):
        return self.number


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 1e-6), (1e-39, 1.0)])
def test_tokens_are_drawn_by_their_probabilities(temperature, top_p):
    scores = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0])
    expected = torch.softmax((scores - scores.max()) / temperature, dim=-1)
    order = expected.argsort(descending=True)
    inside = expected[order].cumsum(-1) - expected[order] < top_p
    expected = torch.zeros(5).scatter(0, order, expected[order] * inside)
    count = 4000
    pick = PickToken([Numbers(place, count) for place in range(count)], temperature, top_p)
    picked = pick(None, scores.expand(count, -1))
    assert (picked.isfinite().sum(-1) == 1).all()
    torch.testing.assert_close(picked.isfinite().float().mean(0), expected / expected.sum(), rtol=0, atol=1e-3)
    last = PickToken([Numbers(count, count)], temperature, top_p)(
        None, scores[None]
    )  # a number above 1, as by rounding
    assert last.isfinite()[0].nonzero().item() == order[inside][-1]


SAID = {  # reply → what is kept of it
    "The angle is 3": "The angle is 3",
    "<think>Is it 4? No, 3.</think>\n\nThe angle is 3": "The angle is 3",
    "is it 4? no</think>The angle is 3": "The angle is 3",
    "The angle is 3 <think>or 4": None,
    "<think>The angle is 3</think>": None,
    "<think>3</think>The angle is 4": None,
    "The angle is 3 <|vision_start|>": None,
    "<|im_start|>assistant\nThe angle is 3": None,
    "The angle is 3</s>": None,
    "<image>\nThe angle is 3": None,
    "The angle is 3\u2028\0": None,
    "The angle is 3 \ufffd": None,
    "The angle is 4": None,
    "": None,
}


def server_that_says(api, texts, finish="stop"):
    """A server that says the texts in turns, each with the reason for its end."""

    def answer(body, number):
        said = {"index": 0, "message": {"role": "assistant", "content": texts[(number - 1) % len(texts)]}}
        choices = [said | {"finish_reason": finish}]
        content = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        return 200, "RAW" + json.dumps(content)

    return api(answer)


def server_options(server, data, output, *more):
    backend = ["--backend", "openai", "--base_url", server.url, "--concurrency", "1", "--keep", "all"]
    return ["answer", "--model", "m", "--data", str(data), "--output", str(output), *backend, *more]


def test_through_a_server_only_what_can_be_learned_is_kept(api, data, tmp_path, monkeypatch):
    one = write_rows(tmp_path / "one.jsonl", [pair(0, image_url_2=str(data.parent / "pictures" / "0.png"))])
    server = server_that_says(api, list(SAID))
    more = ["--n", str(len(SAID)), "--top_p", "0.9", "--max_new_tokens", "7"]
    main(server_options(server, one, tmp_path / "own.jsonl", *more))
    assert [row["output"] for row in read_rows(tmp_path / "own.jsonl")] == ["The angle is 3"]
    said = {row["response"]: row["sample"] for row in replies(tmp_path / "own.jsonl").values()}
    assert said == {text.strip(): number for number, text in enumerate(SAID, 1)}
    bodies = server.bodies
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in bodies} == {(1.0, 0.9, 7)}
    assert len({body["seed"] for body in bodies}) == len(bodies) == len(SAID)
    # each of them alone, so that none hides behind another
    for text, kept in SAID.items():
        folder = tmp_path / str(list(SAID).index(text))
        alone = server_options(server_that_says(api, [text]), one, folder / "own.jsonl", "--n", "1")
        if kept is None:
            with pytest.raises(DataError, match="None of 1 replies can be kept"):
                main(alone)
            assert not (folder / "own.jsonl").exists()
        else:
            main(alone)
            assert [row["output"] for row in read_rows(folder / "own.jsonl")] == [kept]
    # the other ranks of a launch ask nothing
    monkeypatch.setenv("RANK", "1")
    main(server_options(server, one, tmp_path / "rank" / "own.jsonl"))
    assert not (tmp_path / "rank").exists() and len(bodies) == len(SAID)


@pytest.mark.parametrize("finish", ["length", "content_filter", None])
def test_cut_replies_are_never_kept(finish, api, data, tmp_path):
    server = server_that_says(api, ["The angle is 3"], finish)
    with pytest.raises(DataError, match="None of 24 replies can be kept.*cut off: 24"):
        main(server_options(server, data, tmp_path / "own.jsonl"))


def test_requests_that_fail_are_asked_again(api, data, tmp_path):
    good = server_that_says(api, ["The angle is 3"]).answer
    state = {"broken": True}
    moody = api(lambda body, number: (400, "no") if state["broken"] and number % 3 == 0 else good(body, number))
    with pytest.raises(EvaluationError, match="of 24 requests got no answer"):
        main(server_options(moody, data, tmp_path / "own.jsonl"))
    asked = len(moody.bodies)
    state["broken"] = False
    main(server_options(moody, data, tmp_path / "own.jsonl"))
    assert len(moody.bodies) == asked + asked // 3
    assert [row["instruction"] for row in read_rows(tmp_path / "own.jsonl")] == ["Angles 0 and 3?"]


def test_control_tokens_of_the_model_are_seen(model, processor, monkeypatch):
    """A local reply has all its tokens, also those that are left out where answers are read."""
    sampler = Sampler(*load_for_generation(str(model)), max_new_tokens=8)
    end, picture = processor.tokenizer.eos_token_id, processor.image_token_id
    said = processor.tokenizer("The angle is 3", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*said, picture, end, end], [*said, end, end, end], [*said, 5, 5, 5]])
    monkeypatch.setattr(Sampler, "complete", lambda *_, **__: (tokens, [len(said) + 2, len(said) + 1, 8], [0, 0, 1]))
    first, second, third = sampler.sample([*map(Prompt, "abc")], ["1", "2", "3"])
    assert first == "The angle is 3<|image_pad|>" and second == "The angle is 3" and third.is_cut


def test_pairs_of_any_form_are_written_as_published(data, tmp_path):
    picture = data.parent / "pictures" / "1.png"
    rows = [
        {"q": "1 <image> 2 <image>?", "a": "B", "pics": [str(picture), "pictures/0.png"], "q2": "Which?", "p2": None},
        {"q": "1?", "a": 3, "pics": None, "q2": "Look: <image>", "p2": f"file://{picture}"},
    ]
    columns = {"instruction": "q", "output": "a", "image_url": "pics", "instruction_2": "q2", "output_2": "a"}
    columns |= {"image_url_2": "p2"}
    file = write_rows(tmp_path / "rows.jsonl", rows)
    problems, _ = read_problems([str(file)], tmp_path / "out", columns=columns, image_root=str(data.parent))
    first, second = (problem.write("own", tmp_path / "out") for problem in problems)
    assert [first["output"], first["output_2"], first[GOLD], second[GOLD]] == ["own", "own", "B", "3"]
    assert first["instruction"] == "1 <image> 2 <image>?" and len(first["image_url"]) == 2
    assert (tmp_path / "out" / second["image_url_2"]).resolve() == picture.resolve()
    # bytes, and turns before the question
    content = picture.read_bytes()
    problem = problems[1]
    row = problem.row | {"image_url_2": [{"bytes": content, "path": None}]}
    row |= {f"history{suffix}": [{"role": "system", "content": "Be brief."}] for suffix in ("", "_2")}
    written = type(problem)(row, {}).write("own", tmp_path)
    assert written["image_url_2"].startswith("data:image/png;base64,")
    again, _ = read_problems([str(write_rows(tmp_path / "again.jsonl", [written]))], tmp_path)
    assert again[0].row["image_url_2"][0]["bytes"] == content
    assert again[0].row["history"] == again[0].row["history_2"] == [{"role": "system", "content": "Be brief."}]


def test_what_the_data_says_of_a_problem_is_written_again(data, tmp_path):
    """So that `gap` has its groups on answers too, and both levels of a rung stay known."""
    said = {"kind": "bar_total", "level": 2, "modality": "vision_only", "text_rich_modality": "text_lite"}
    file = write_rows(tmp_path / "rows.jsonl", [pair(0, **said), pair(1)])
    (first, second), _ = read_problems([str(file)], tmp_path, image_root=str(data.parent))
    assert said.items() <= first.write("own", tmp_path).items()
    assert not {"modality", "text_rich_modality"} & set(second.write("own", tmp_path))


def test_a_chat_has_pictures_at_their_places(data):
    rows = [pair(0, image_url=["pictures/0.png", "pictures/1.png"], instruction="Is <image> as <image>?")]
    rows += [pair(0, system="Be brief.", system_2="Be brief.", history=[["a", "b"]], history_2=[["a", "b"]])]
    file = write_rows(data.parent / "chats.jsonl", rows)
    problems, _ = read_problems([str(file)], data.parent)
    file.unlink()
    (turn,) = write_chat(problems[0].prompt("text_rich"))
    texts = [part.get("text", "picture") for part in turn["content"]]
    assert texts == ["Is ", "picture", " as ", "picture", "?"]
    urls = [part["image_url"]["url"] for part in turn["content"] if part["type"] == "image_url"]
    assert urls[0] != urls[1] and all(url.startswith("data:image/png;base64,") for url in urls)
    chat = write_chat(problems[1].prompt("vision_rich"))
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in chat[1]["content"]] == ["image_url", "text"] and chat[3]["content"][0]["text"]


@pytest.mark.parametrize(
    ("answer", "gold", "listed", "exact", "math_verify"),
    [
        ("So it is 104°.", "It is 104 degrees.", (), True, True),
        ("So it is 105°.", "It is 104 degrees.", (), False, False),
        (r"The answer is $\frac{2x+2}{2}$", "The answer is x+1", (), False, True),
        ("The answer is (B).", "B", ("10", "20"), True, True),
        ("It is 20.", "B", ("10", "20"), True, True),
        ("It is 10.", "B", ("10", "20"), False, False),
        ("They are parallel.", "They are parallel.", (), True, True),
        ("The answer is not 104.", "It is 104.", (), False, False),
        ("4 or 5", "Answer: B", ("4", "5"), False, False),
        ("There are 4.", "It is a rhombus because all 4 sides are equal.", (), False, False),
        ("Yes, because 5 > 3.", "Yes", (), True, True),
        ("No, 5 < 8.", "Yes", (), False, False),
    ],
)
def test_judges(answer, gold, listed, exact, math_verify):
    assert agrees(answer, gold, listed, "exact") is exact
    assert agrees(answer, gold, listed, "math_verify") is math_verify


def test_which_right_answers_are_kept():
    judged = [Judged(1, "long enough", "right"), Judged(2, "no", "another answer"), Judged(3, "short", "right")]
    judged += [Judged(4, "brief", "right")]
    assert [each.sample for each in choose(judged, "shortest", "s")] == [3]
    assert [each.sample for each in choose(judged, "all", "s")] == [1, 3, 4]
    chosen = {choose(judged, "random", str(seed))[0].sample for seed in range(20)}
    assert chosen == {1, 3, 4} and choose(judged, "random", "5") == choose(judged, "random", "5")
    assert all(choose(judged[1:2], keep, "s") == [] for keep in ("shortest", "random", "all"))


def test_gold_answers_in_prose_are_counted():
    golds = ["Answer: 4", "All 4 sides are equal.", "Yes", "They are parallel lines.", "B"]
    assert [is_prose(gold) for gold in golds] == [False, True, False, True, False]
    assert (
        "2 gold answers are prose" in Yield(["a:1", "a:2"]).reasons and "(a:1, a:2)" in Yield(["a:1", "a:2"]).reasons
    )
    assert "prose" not in Yield().reasons


def test_a_kind_may_have_the_name_of_the_total():
    judged, counts = [Judged(1, "3", "right"), Judged(2, "4", "another answer")], Yield()
    counts.add(Problem({}, {"kind": "all"}), judged, judged[:1])
    counts.add(Problem({}, {}), judged, [])
    lines = counts.describe().splitlines()[2:5]
    assert lines[0] == "| no kind | 1 | 0 (0.0%) | 2 | 1 (50.0%) | 0 |"
    assert lines[1] == "| all | 1 | 1 (100.0%) | 2 | 1 (50.0%) | 1 |"
    assert lines[2] == "| all | 2 | 1 (50.0%) | 4 | 2 (50.0%) | 1 |" and counts.kept == 1


def test_a_template_may_open_a_thought(data, processor, tmp_path):
    """Its reply begins inside of one; gold answers have none, and the kept ones neither."""
    build_model("qwen2_vl", processor, **TINY).config.save_pretrained(tmp_path)
    thinker = copy.copy(processor)
    thinker.chat_template += "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    thinker.save_pretrained(tmp_path)
    problems, reader = read_problems([str(data)], tmp_path, model=str(tmp_path))
    said = [{"sample": 1, "response": "is it 4? no</think>\n\nThe angle is 3", "is_cut": False}]
    (judged,) = judge_replies(problems[0], said, "exact", tmp_path, reader)
    assert (judged.answer, judged.verdict) == ("The angle is 3", "right")
    said[0]["response"] += "<|im_end|>"
    assert judge_replies(problems[0], said, "exact", tmp_path, reader)[0].verdict == "control tokens"


def test_thoughts_of_all_kinds():
    assert without_thoughts("<thinking>a</thinking>b") == without_thoughts("a◁/think▷b") == "b"
    assert without_thoughts("b <think>") is None and without_thoughts("b") == "b"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [pair(0), pair(1, output=None, output_2=None)],
            r"1 of 2 rows.*pairs.jsonl:2: no answer: `output`",
        ),
        ([pair(0), pair(1, output="", output_2=" ")], r"pairs.jsonl:2: no answer: `output` is empty"),
        ([pair(0), {"instruction": "1?", "output": "1"}], r"pairs.jsonl:2: missing value: .*no vision-rich side"),
        ([pair(0, picture="a.png")], "`picture`"),
    ],
)
def test_rows_that_cannot_be_answered(rows, message, data, tmp_path):
    pictures = {"image_url_2": str(data.parent / "pictures" / "0.png")}
    rows = [row | pictures if "image_url_2" in row else row for row in rows]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    nobody = ["--backend", "openai", "--base_url", "http://127.0.0.1:1/v1"]
    with pytest.raises(DataError, match=message):
        main(["answer", "--model", "m", "--data", str(file), "--output", str(tmp_path / "own.jsonl"), *nobody])
    assert not (tmp_path / "own.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "0"], "--temperature 0"),
        (["--temperature", "-1"], "`temperature` is -1"),
        (["--temperature", "nan"], "`temperature` is nan"),
        (["--temperature", "inf"], "`temperature` is inf"),
        (["--top_p", "0"], "`top_p` 0"),
        (["--batch_size", "0"], "`batch_size` is 0"),
        (["--n", "0"], "--n"),
        (["--output", "own.json"], "own.json"),
    ],
)
def test_options_are_checked_first(more, message):
    with pytest.raises(PumaError, match=message):
        main(["answer", "--model", "no model", "--data", "no data", "--output", "own.jsonl", *more])


def test_the_data_is_not_written_over(data):
    with pytest.raises(DataError, match="would be written over"):
        main(["answer", "--model", "no model", "--data", str(data), "--output", str(data)])


@pytest.mark.parametrize("name", ["own.jsonl", "own.md"])
def test_files_of_others_are_not_written_over(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match=f"{name} is there, but not the replies"):
        main(["answer", "--model", "no model", "--data", "no data", "--output", str(tmp_path / "own.jsonl")])
