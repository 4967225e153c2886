"""Generation, extraction and judging through an OpenAI-compatible server that answers well, slowly, badly or not."""

import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from puma_trl.errors import EvaluationError
from puma_trl.evaluation import server as server_module
from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.server import Server
from puma_trl.evaluation.settings import ServerSettings

from ..chat_server import SECRET
from .helpers import make_items, read_rows, verse_item, vista_item, write_data, write_rows


def connect(*args, **options):
    return Server(ServerSettings(*args, **options), max_tokens=64)


def ask_hello(server):
    return server.ask([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(api, status):
    busy = api(lambda body, number: (status, "busy") if number < 3 else (200, "fine"))
    assert ask_hello(connect("m", busy.url, max_retries=3)) == "fine"
    assert len(busy.bodies) == 3


def test_slow_try_is_given_up_and_repeated(api):
    def answer(body, number):
        if number == 1:
            time.sleep(1.0)
        return 200, "fine"

    slow = api(answer)
    assert ask_hello(connect("m", slow.url, timeout=0.3)) == "fine"
    assert len(slow.bodies) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (400, "too long"),
        (200, "RAW<html>"),
        (200, 'RAW{"choices": []}'),
        (200, 'RAW{"choices": null}'),
        (200, 'RAW{"choices": [{"message": {"content": 5}}]}'),
        (200, 'RAW{"choices": "\udcff"}'),  # not UTF-8
    ],
)
def test_failure_is_counted_and_said(api, answer, capsys):
    broken = api(lambda body, number: answer)
    server = connect("m", broken.url, max_retries=1)
    answers = list(server.map([("first", 1), ("second", 2)], lambda request: ask_hello(server), "asking"))
    assert sorted(answers) == [("first", None), ("second", None)]
    assert "second: no answer" in capsys.readouterr().err


def test_concurrency_is_bounded(api):
    def answer(body, number):
        time.sleep(0.05)
        return 200, str(number)

    counted = api(answer)
    server = connect("m", counted.url, concurrency=3)
    answers = dict(server.map(((key, key) for key in range(12)), lambda request: ask_hello(server), "asking"))
    assert len(answers) == 12
    assert 1 < counted.most_under_way <= 3


def test_dead_server_stops_the_run(api):
    dead = api(lambda body, number: (400, "no"))
    server = connect("m", dead.url, concurrency=2)
    with pytest.raises(EvaluationError, match="failed one after another"):
        list(server.map([(key, key) for key in range(200)], lambda request: ask_hello(server), "asking"))
    assert len(dead.bodies) < 40


@pytest.mark.parametrize("option", [{"concurrency": 0}, {"timeout": 0.0}, {"max_retries": -1}])
def test_options_out_of_range(option):
    with pytest.raises(EvaluationError, match=next(iter(option))):
        connect("m", "http://127.0.0.1:1/v1", **option)


def test_no_key_and_no_address(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(EvaluationError, match="OPENAI_API_KEY"):
        connect("m")


def run_options(data, output, url, *more):
    files = ["--data", str(data), "--output_dir", str(output)]
    return ["run", "--benchmark", "mathverse", "--backend", "openai", "--model", "m", "--base_url", url, *files, *more]


def test_run_through_a_server(api, tmp_path, capsys):
    data = write_data(tmp_path / "data", "mathverse")
    good = api(lambda body, number: (200, "Answer: B" if "Find angle" in json.dumps(body) else "no question"))
    assert main(run_options(data, tmp_path / "out", good.url, "--max_new_tokens", "7")) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    items = make_items("mathverse")
    assert metrics["correct"] == sum(i["answer"] == "B" and i["problem_version"] != "Text Only" for i in items)
    assert metrics["prompt"] == "official" and metrics["settings"]["backend"] == "openai"
    with_picture = [body["messages"][0]["content"][0]["type"] == "image_url" for body in good.bodies]
    assert sum(with_picture) == sum(bool(item["image"]) for item in items)
    assert all(body["temperature"] == 0 and body["max_tokens"] == 7 for body in good.bodies)
    # the second run asks nothing, and the key is nowhere
    assert main(run_options(data, tmp_path / "out", good.url, "--max_new_tokens", "7")) == 0
    assert len(good.bodies) == len(items)
    assert all(SECRET not in path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())


def test_only_the_first_rank_asks_a_server(api, tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", "mathverse")
    quiet = api(lambda body, number: (200, "B"))
    monkeypatch.setenv("RANK", "1")
    assert main(run_options(data, tmp_path / "out", quiet.url)) == 0
    assert not quiet.bodies and not (tmp_path / "out").exists()


def test_failed_items_stop_the_run_but_are_asked_again(api, tmp_path, capsys):
    data = write_data(tmp_path / "data", "mathverse")
    state = {"broken": True}
    moody = api(lambda body, number: (400, "no") if state["broken"] and "angle 3" in json.dumps(body) else (200, "B"))
    assert main(run_options(data, tmp_path / "out", moody.url)) == 1
    assert "1 of 11 items got no answer" in capsys.readouterr().err
    asked = len(moody.bodies)
    state["broken"] = False
    assert main(run_options(data, tmp_path / "out", moody.url)) == 0
    assert len(moody.bodies) == asked + 1
    state["broken"] = True
    assert main(run_options(data, tmp_path / "partial", moody.url, "--allow_partial")) == 0
    metrics = json.loads((tmp_path / "partial" / "metrics.json").read_text())
    assert (metrics["answered"], metrics["items"], metrics["partial"]) == (10, 11, True)
    assert "**Partial run**" in (tmp_path / "partial" / "report.md").read_text()


@pytest.mark.parametrize(("rule", "asked"), [("official", 1), ("math_puma", 0), ("final", 0)])
def test_rules_without_a_language_model_ask_none(api, tmp_path, rule, asked):
    llm = api(lambda body, number: (200, "B"))
    data = tmp_path / "items.json"
    data.write_text(json.dumps([verse_item(1)]))
    rows = write_rows(tmp_path / "r.jsonl", [{"id": "1", "response": "It must be the second one, I think."}])
    files = ["--data", str(data), "--responses", str(rows), "--output", str(tmp_path / "e.jsonl")]
    options = ["--benchmark", "mathverse", "--extraction", rule, "--llm", "judge", "--llm_base_url", llm.url]
    assert main(["extract", *files, *options]) == 0
    assert len(llm.bodies) == asked


def test_llm_extraction_follows_the_official_order(api, tmp_path):
    items = [vista_item(index) for index in range(1, 5)]
    data = write_data(tmp_path, "mathvista", items)
    replies = ["20 cm", "", "the second one", "hard to say"]
    rows = [{"id": str(index + 1), "response": reply} for index, reply in enumerate(replies)]
    responses = write_rows(tmp_path / "responses.jsonl", rows)
    llm = api(lambda body, number: (200, "B") if "second one" in json.dumps(body["messages"][-1]) else (400, "no"))
    options = ["--benchmark", "mathvista", "--data", str(data), "--responses", str(responses)]
    options += ["--llm", "judge", "--llm_base_url", llm.url, "--output", str(tmp_path / "E.jsonl")]
    assert main(["extract", *options]) == 3  # one of two failed
    assert [row["extraction"] for row in read_rows(tmp_path / "E.jsonl")] == ["20 cm", "", "B", ""]
    settings = json.loads((tmp_path / "E.settings.json").read_text())
    assert settings["extraction"] == "official" and settings["extraction_llm"] == "judge"
    assert settings["extractions"] == {"given": 0, "rule": 2, "llm": 2, "asked": 2, "failed": 1}
    asked = len(llm.bodies)
    assert asked == 2
    assert "(B) 20 cm" in llm.bodies[0]["messages"][-1]["content"]  # options are shown
    # a second run asks only what failed
    assert main(["extract", *options]) == 3
    assert len(llm.bodies) == asked + 1


@pytest.fixture
def judged(tmp_path):
    """Returns a function that scores MathVerse extractions with a language model as judge."""
    free = {"question_type": "free-form", "answer": "0.5 m"}
    items = [verse_item(1), verse_item(2, "Vision Only", **free), verse_item(3, **free), verse_item(4, **free)]
    data = write_data(tmp_path, "mathverse", items)
    extractions = ["B", "50 cm", "60 cm", ""]
    rows = [{"id": str(index + 1), "extraction": one} for index, one in enumerate(extractions)]
    responses = write_rows(tmp_path / "responses.jsonl", rows)

    def run(api, *more, code=0):
        options = ["--benchmark", "mathverse", "--data", str(data), "--responses", str(responses), "--judge", "openai"]
        options += ["--llm", "judge", "--llm_base_url", api.url, "--output", str(tmp_path / "m.json")]
        assert main(["score", *options, *more]) == code
        metrics = json.loads((tmp_path / "m.json").read_text())
        return metrics, [row["correct"] for row in read_rows(tmp_path / "scored.jsonl")]

    return run


def test_judge_is_asked_where_no_exact_match_decides(api, judged):
    judge = api(lambda body, number: (200, "Judgement: 1" if "50 cm" in body["messages"][-1]["content"] else "0"))
    metrics, correct = judged(judge)
    assert correct == [True, True, False, False]
    assert metrics["judge"] == "openai"
    assert metrics["judge_settings"] == {"judge": "openai", "model": "judge", "judged": 2, "failed": 0}
    # the full question, although that of Vision Only is empty
    assert any("Find angle 2. A: 10 B: 20" in body["messages"][-1]["content"] for body in judge.bodies)
    assert judged(judge)[1] == correct and len(judge.bodies) == 2  # nothing is asked twice


def test_judgements_of_one_split_are_not_those_of_the_other(api, tmp_path):
    """Both MathVerse splits number their rows from 1, and may be scored into one folder."""
    judge = api(lambda body, number: (200, "1" if "answer: 50 cm" in body["messages"][-1]["content"] else "0"))
    free = {"question_type": "free-form"}
    correct = []
    for name, gold in (("testmini", "0.5 m"), ("text_only", "50 cm ")):
        data = write_data(tmp_path / name, "mathverse", [verse_item(1, answer=gold, **free)])
        responses = write_rows(tmp_path / f"{name}.jsonl", [{"id": "1", "extraction": "50 cm"}])
        options = ["--benchmark", "mathverse", "--data", str(data), "--responses", str(responses), "--judge", "openai"]
        options += ["--llm", "judge", "--llm_base_url", judge.url, "--output", str(tmp_path / f"{name}.json")]
        assert main(["score", *options]) == 0
        correct += [row["correct"] for row in read_rows(tmp_path / "scored.jsonl")]
    assert correct == [True, True] and len(judge.bodies) == 2


def test_wemath_extraction_asks_no_language_model(api, tmp_path):
    llm = api(lambda body, number: (200, "A"))
    data = write_data(tmp_path, "wemath")
    responses = write_rows(tmp_path / "responses.jsonl", [{"id": 1, "response": "Answer: B"}])
    options = ["--benchmark", "wemath", "--data", str(data), "--responses", str(responses)]
    assert (
        main(["extract", *options, "--llm", "m", "--llm_base_url", llm.url, "--output", str(tmp_path / "E.jsonl")])
        == 0
    )
    assert read_rows(tmp_path / "E.jsonl") == [{"id": 1, "response": "Answer: B", "extraction": "B"}]
    assert json.loads((tmp_path / "E.settings.json").read_text())["extraction_llm"] is None and not llm.bodies


@pytest.mark.parametrize("nonsense", ["10", "yes", "-1", "", "1/2", "0.5", "<think>It is 1, because"])
def test_judge_that_answers_nonsense_is_asked_again_at_higher_temperatures(api, judged, nonsense, capsys):
    judge = api(lambda body, number: (200, nonsense))
    metrics, correct = judged(judge, code=3)
    assert correct == [True, False, False, False]
    assert metrics["judge_settings"]["failed"] == 2
    assert sorted(body["temperature"] for body in judge.bodies) == [0, 0, 0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]
    error = capsys.readouterr().err
    assert "2 of 2 judgements by judge failed (100.0%)" in error and "--max_failures 0.02" in error


@pytest.mark.parametrize(("allowed", "code"), [("0.4", 3), ("0.5", 0)])
def test_some_failures_may_be_allowed(api, judged, allowed, code, capsys):
    judge = api(lambda body, number: (200, "hm" if "50 cm" in body["messages"][-1]["content"] else "0"))
    judged(judge, "--max_failures", allowed, code=code)
    assert "1 of 2 judgements by judge failed" in capsys.readouterr().err


def test_judge_that_fails_for_good_counts_as_wrong(api, judged):
    metrics, correct = judged(api(lambda body, number: (400, "no")), code=3)
    assert correct == [True, False, False, False]
    assert metrics["judge_settings"]["failed"] == 2


def test_a_reasoning_model_judges(api, judged):
    thought = "<think>Half a metre, hmm, is it 0 or 1?</think>\n\n"

    def answer(body, number):
        same = "50 cm" in body["messages"][-1]["content"]
        return 200, thought + ("Judgement: 1\nBoth say half a metre." if same else "**0**")

    judge = api(answer)
    metrics, correct = judged(judge, "--judge_max_tokens", "777")
    assert correct == [True, True, False, False] and metrics["judge_settings"]["failed"] == 0
    assert {body["max_tokens"] for body in judge.bodies} == {777}


def test_judge_is_asked_in_a_form_where_the_server_has_it(api, judged):
    judge = api(lambda body, number: (200, '{"judgement": 1}'))
    _, correct = judged(judge)
    assert correct == [True, True, True, False]
    assert all(body["response_format"]["type"] == "json_schema" for body in judge.bodies)


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (422, 1), (500, 2)])
def test_judge_is_asked_without_a_form_where_the_server_refuses_it(api, judged, status, tries):
    judge = api(lambda body, number: (status, "no such option") if "response_format" in body else (200, "1"))
    _, correct = judged(judge, "--concurrency", "1", "--max_retries", "1")
    assert correct == [True, True, True, False]
    assert ["response_format" in body for body in judge.bodies] == [True] * tries + [False, False]


def test_a_reasoning_model_extracts(api, tmp_path, capsys):
    data = write_data(tmp_path, "mathverse", [verse_item(1), verse_item(2)])
    rows = [{"id": "1", "response": "the first"}, {"id": "2", "response": "the second"}]
    responses = write_rows(tmp_path / "responses.jsonl", rows)
    cut = "<think>It says the second, which"
    llm = api(lambda body, number: (200, "<think>A?</think>A" if "the first" in str(body["messages"][-1]) else cut))
    options = ["--benchmark", "mathverse", "--data", str(data), "--responses", str(responses), "--llm", "thinker"]
    options += ["--llm_base_url", llm.url, "--output", str(tmp_path / "E.jsonl")]
    assert main(["extract", *options]) == 3
    assert [row["extraction"] for row in read_rows(tmp_path / "E.jsonl")] == ["A", ""]
    assert "1 of 2 extractions by thinker failed (50.0%)" in capsys.readouterr().err
    assert all(body["max_tokens"] == 2048 for body in llm.bodies)


def test_a_row_of_failures_is_forgotten_after_an_answer(api, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_FAILURES_IN_A_ROW", 3)
    flaky = api(lambda body, number: (200, "fine") if number % 3 == 0 else (400, "no"))
    server = connect("m", flaky.url, concurrency=1)
    answers = list(server.map([(key, key) for key in range(12)], lambda request: ask_hello(server), "asking"))
    assert sum(answer == "fine" for _, answer in answers) == 4


@pytest.fixture
def raw_api(monkeypatch):
    """Returns a function that starts a server which answers each request with bytes, sent one after another."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    running = []

    class Raw(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append(dict(self.headers))
            try:
                for part in self.server.answer(dict(self.headers)):
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                pass  # the client has given up waiting

        def log_message(self, *args):
            pass

    def start(answer):
        api = ThreadingHTTPServer(("127.0.0.1", 0), Raw)
        api.daemon_threads, api.answer, api.requests = True, answer, []
        threading.Thread(target=api.serve_forever, args=(0.02,), daemon=True).start()
        running.append(api)
        return api, connect("m", f"http://127.0.0.1:{api.server_address[1]}/v1", timeout=1.0, max_retries=0)

    yield start
    for api in running:
        api.shutdown()
        api.server_close()


HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"


def refusal(message):
    return [HEAD.replace(b"200", b"400") + b"\r\n", json.dumps({"error": {"message": message}}).encode()]


def drip(text):
    """Yields a byte every 0.2 s, so that no single one keeps the client waiting long."""
    for index in range(len(text)):
        time.sleep(0.2)
        yield text[index : index + 1]


@pytest.mark.parametrize("where", ["nowhere", "headers", "body"])
def test_a_try_ends_as_a_whole(raw_api, where, capsys):
    """One byte after another, each in time, would keep a timeout per read from ever running out."""

    def answer(headers):
        if where == "nowhere":
            time.sleep(3)
        elif where == "headers":
            yield from drip(HEAD)
        else:
            yield HEAD + b"\r\n"
            yield from drip(b" " * 100)

    api, server = raw_api(answer)
    start = time.monotonic()
    assert list(server.map([("key", 1)], lambda request: ask_hello(server), "asking")) == [("key", None)]
    assert time.monotonic() - start < 2.5
    assert "key: no answer" in capsys.readouterr().err and len(api.requests) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda headers: [HEAD + b"\r\n", *[b" " * (1 << 20)] * 20], "more than 16,777,216 bytes"),
        (lambda headers: [HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b" " * 1000)], "compressed"),
        (lambda headers: [HEAD + b'\r\n{"choices": ' + b"[" * 100_000], "no chat completion"),
        (lambda headers: [HEAD + b'\r\n{"created": ' + b"9" * 5_000 + b"}"], "no chat completion"),
        (lambda headers: refusal(f"Who is {headers}?"), "'authorization': '<hidden>'"),
        (lambda headers: refusal("\x1b[2J" + "x" * 10_000), r"\\x1b\[2Jx+…\)$"),
    ],
    ids=["endless", "compressed", "deep", "digits", "echo", "escapes"],
)
def test_what_a_server_may_send(raw_api, answer, words, capsys):
    """Each is one failed request, told in one line; other requests go on."""
    _, server = raw_api(answer)
    answers = list(server.map([("first", 1), ("second", 2)], lambda request: ask_hello(server), "asking"))
    assert sorted(answers) == [("first", None), ("second", None)]
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith(("first", "second"))]
    assert len(lines) == 2 and all(re.search(words, line) and len(line) < 700 for line in lines), printed
    assert SECRET not in printed and "\x1b" not in printed
