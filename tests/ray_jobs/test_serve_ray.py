"""The server on a real local Ray: predictions as predict.py makes them, batches, kills, a page, the end."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ray_jobs import predict
from tests.dfdet.serving.bundles import Made, crop, make_once, picture
from tests.dfdet.serving.chromium import Browser
from tests.ray_jobs.serving import Server

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_once(tmp_path_factory)


@pytest.fixture(scope="module")
def server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    found = Server(made, log, "--replicas", 2, "--max_batch", 8, "--batch_wait_ms", 50, "--max_queue", 200)
    try:
        yield found
    finally:
        found.end()


def scores_of(answer: httpx.Response) -> list[float]:
    return [file["score"] for file in answer.json()["files"]]


async def score(client: httpx.AsyncClient, seed: int) -> httpx.Response:
    return await client.post("/v1/predict?crops=true", content=crop(seed))


@pytest.fixture(scope="module")
def alone(server: Server) -> dict[int, float]:
    """Score of each crop, asked for one after the other."""

    async def ask() -> dict[int, float]:
        async with server.client() as client:
            return {seed: scores_of(await score(client, seed))[0] for seed in range(24)}

    return asyncio.run(ask())


def test_scores_and_verdicts_are_those_of_predict(server: Server, made: Made, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(picture(1))
    (tmp_path / "none.png").write_bytes(picture(1, face=False))
    paths = [*sorted(made.clips.glob("*.mp4")), tmp_path / "face.png", tmp_path / "none.png"]
    given = ["--checkpoint", made.checkpoint, "--weights", made.weights, "--frames", 6, "--workers", 0]
    assert predict.main([str(word) for word in [*paths, *given, "--out", tmp_path / "out"]]) == 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    parts = [("file", (path.name, path.read_bytes())) for path in paths]
    answer = httpx.post(f"{server.url}/v1/predict?frames=6", files=parts, timeout=100).json()
    for said, line in zip(answer["files"], lines, strict=True):
        expected = json.loads(line)
        for name in ("status", "verdict", "kind", "reason"):
            assert said[name] == expected[name], name
        assert len(said["frames"]) == len(expected["frames"])
        for mine, theirs in zip(said["frames"], expected["frames"], strict=True):
            assert mine["box"] == theirs["box"] and mine["time_s"] == theirs["time_s"]
            assert mine["score"] == pytest.approx(theirs["score"], abs=2e-4)
        assert said["score"] == pytest.approx(expected["score"], abs=2e-4)
    assert answer["threshold"] == expected["threshold"]
    assert answer["threshold_origin"] == expected["threshold_origin"]


def test_batches_mix_requests_and_swap_no_answers(server: Server, alone: dict[int, float]) -> None:
    before = server.metric("dfdet_batch_crops_count"), server.metric("dfdet_batch_crops_sum")

    async def ask() -> list[tuple[int, httpx.Response]]:
        seeds = [seed for _ in range(4) for seed in alone]
        async with server.client() as client:
            answers = await asyncio.gather(*(score(client, seed) for seed in seeds))
        return list(zip(seeds, answers, strict=True))

    for seed, answer in asyncio.run(ask()):
        assert scores_of(answer) == [pytest.approx(alone[seed], abs=1e-6)]
    batches = server.metric("dfdet_batch_crops_count") - before[0]
    crops = server.metric("dfdet_batch_crops_sum") - before[1]
    assert crops == 96
    assert batches < 96  # each request has one crop: fewer batches than that hold those of several


@pytest.mark.parametrize("kind", ["faces", "model"])
def test_a_replica_killed_under_load_gives_no_wrong_answer(
    server: Server, alone: dict[int, float], kind: str
) -> None:
    async def ask() -> list[tuple[int, httpx.Response]]:
        found = []
        async with server.client() as client:

            async def stream(start: int) -> None:
                for step in range(20):
                    seed = (start + 5 * step) % len(alone)
                    found.append((seed, await score(client, seed)))

            streams = [asyncio.create_task(stream(start)) for start in range(6)]
            while len(found) < 20:
                await asyncio.sleep(0.01)
            server.replicas(kind)[0].kill()
            await asyncio.gather(*streams)
        return found

    found = asyncio.run(ask())
    assert len(found) == 120
    wrong = [seed for seed, answer in found if answer.status_code == 200
             and scores_of(answer) != [pytest.approx(alone[seed], abs=1e-6)]]  # fmt: skip
    assert wrong == []
    assert {answer.status_code for _, answer in found} <= {200, 500, 503}
    failed = sum(answer.status_code != 200 for _, answer in found)
    assert failed <= 6  # what was under way at the kill, if it was not made again
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200


def test_the_page_shows_faces_scores_and_verdict(server: Server, made: Made, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(picture(1))
    (tmp_path / "text.png").write_bytes(b"no image")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=server.url)
        browser.until("document.readyState === 'complete'")
        browser.choose("#file", tmp_path / "face.png")
        browser.until("document.querySelector('#picture canvas') && document.querySelector('.crops img')")
        answer = httpx.post(f"{server.url}/v1/predict", content=picture(1), timeout=60).json()
        (file,) = answer["files"]
        expected = f"Called {file['verdict']}, score {file['score']:.4f}"
        assert browser.run("document.getElementById('said').textContent") == expected
        mark = float(browser.run("document.getElementById('mark').style.left").removesuffix("%"))
        assert mark == pytest.approx(100 * answer["threshold"], abs=0.01)
        browser.choose("#file", made.clips / "0.mp4")
        browser.until("document.querySelectorAll('.crops img').length === 24")
        assert browser.complaints() == []  # none of the content policy
        browser.choose("#file", tmp_path / "text.png")
        browser.until("document.querySelector('#state.error')")
        told = browser.run("document.getElementById('state').textContent")
        assert told.startswith("The file is of no type that is known here")
        assert browser.hosts() == {httpx.URL(server.url).netloc.decode()}


def test_no_file_of_a_client_is_left(server: Server) -> None:
    links = [
        str(each.readlink())
        for process in server.replicas("faces")
        for each in Path(f"/proc/{process.pid}/fd").iterdir()
    ]
    assert len(links) > 20
    assert [link for link in links if link.startswith(tempfile.gettempdir()) and "(deleted)" in link] == []


def test_a_signal_ends_it_when_all_under_way_is_answered(server: Server, made: Made) -> None:
    data = (made.clips / "1.mp4").read_bytes()

    async def ask() -> list[httpx.Response]:
        async with server.client() as client:
            inside = [asyncio.create_task(client.post("/v1/predict", content=data)) for _ in range(8)]
            while server.metric("dfdet_requests_under_way") < 8:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*inside)

    assert [answer.status_code for answer in asyncio.run(ask())] == [200] * 8
    assert server.process.wait(60) == 143
    assert "stopping when the requests under way are answered" in server.told()
    assert "Traceback" not in server.told()
