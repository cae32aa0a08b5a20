"""The HTTP side over the real detector and graph: answers, limits, tokens, errors, and what never leaks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.dfdet.serving.bundles import Made, crop, picture
from tests.dfdet.serving.local import Local, get, post

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def local(made: Made) -> Local:
    return Local(made, max_bytes=300_000, max_pixels=100_000, max_seconds=2, timeout_s=20)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error in the agreed form."""
    found = answer.json()
    assert (answer.status_code, found["error"]["code"]) == (status, code)
    assert answer.headers["x-request-id"] == found["request_id"]
    message: str = found["error"]["message"]
    assert message and "\n" not in message
    return message


def test_an_image_gets_a_score_a_box_and_where_the_verdict_comes_from(local: Local) -> None:
    answer = post(local, picture(1)).json()
    (file,) = answer["files"]
    assert (file["status"], file["kind"], len(file["faces"])) == ("ok", "image", 1)
    assert np.allclose(file["frames"][0]["box"], [128, 88, 192, 152], atol=1)
    assert file["verdict"] == ("fake" if file["score"] >= answer["threshold"] else "real")
    assert "validation set 'v'" in answer["threshold_origin"]
    assert answer["model"]["fingerprint"] == local.service.model.fingerprint
    assert file["frames"][0]["thumbnail"] is None


def test_a_video_gives_the_frames_asked_for(local: Local, made: Made) -> None:
    data = (made.clips / "0.mp4").read_bytes()
    (file,) = post(local, data, "?frames=3&thumbnails=true").json()["files"]
    assert (file["kind"], file["frames_read"]) == ("video", 3)
    assert [each["frame"] for each in file["frames"]] == [0, 11, 23]
    assert all(each["thumbnail"].startswith("data:image/jpeg;base64,/9j/") for each in file["frames"])


def test_ready_crops_need_no_face(local: Local) -> None:
    (file,) = post(local, crop(1), "?crops=true").json()["files"]
    assert (file["status"], file["frames"][0]["box"]) == ("ok", None)


def test_several_files_are_answered_each(local: Local) -> None:
    async def ask() -> httpx.Response:
        parts = [
            ("file", ("a", picture(1))), ("file", ("b", b"none")), ("x", ("c", picture(2, face=False)))
        ]  # fmt: skip
        async with local.client() as client:
            return await client.post("/v1/predict", files=parts, data={"remark": "text"})

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert [each["status"] for each in answer.json()["files"]] == ["ok", "damaged", "no face"]
    assert answer.json()["files"][1]["error"]["code"] == "unknown_type"


def test_a_file_alone_is_scored_as_among_others(local: Local) -> None:
    async def ask() -> httpx.Response:
        parts = [("file", (str(seed), crop(seed))) for seed in range(4)]
        async with local.client() as client:
            return await client.post("/v1/predict?crops=true", files=parts)

    together = [each["score"] for each in asyncio.run(ask()).json()["files"]]
    alone = [post(local, crop(seed), "?crops=true").json()["files"][0]["score"] for seed in range(4)]
    assert np.allclose(together, alone, rtol=0, atol=1e-6)
    assert len({round(score, 5) for score in alone}) == 4


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"hello", 415, "unknown_type"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), 400, "undecodable"),
        (picture(1)[:2000], 400, "undecodable"),
        (b"\0\0\0\x20ftypisom" + bytes(100), 400, "undecodable"),
        (picture(1, size=64)[:16] + b"\0\0\xff\xff\0\0\xff\xff" + picture(1)[24:], 413, "too_many_pixels"),
        (bytes(300_001), 413, "too_large"),
    ],
)
def test_bad_files_are_refused_by_their_content(local: Local, data: bytes, status: int, code: str) -> None:
    refused(post(local, data), status, code)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?frames=0", "frames: Input should be greater than or equal to 1"),
        ("?frames=many", "frames: Input should be a valid integer"),
        ("?faces=some", "faces: Input should be 'one' or 'all'"),
        ("?crops=perhaps", "crops: Input should be a valid boolean"),
        ("?frame=3", "query parameters: 1 unknown; there are crops, frames, faces, thumbnails"),
    ],
)
def test_bad_parameters_are_told(local: Local, query: str, told: str) -> None:
    assert told in refused(post(local, picture(1), query), 422, "bad_parameter")


def test_a_content_type_that_is_no_file_is_refused(local: Local) -> None:
    refused(post(local, picture(1), headers={"content-type": "text/html"}), 415, "unknown_type")
    refused(post(local, b"--x", headers={"content-type": "multipart/form-data"}), 400, "bad_multipart")
    refused(
        post(local, b"--x--\r\n", headers={"content-type": "multipart/form-data; boundary=x"}), 400, "empty"
    )


def test_a_long_video_is_refused_before_it_is_decoded(made: Made) -> None:
    local = Local(made, max_seconds=0.5)
    message = refused(post(local, (made.clips / "0.mp4").read_bytes()), 413, "too_long")
    assert message == "the video is longer than 0.5 s"


def test_a_video_of_large_frames_is_refused(made: Made) -> None:
    local = Local(made, max_pixels=10_000)
    message = refused(post(local, (made.clips / "0.mp4").read_bytes()), 413, "too_many_pixels")
    assert message.startswith("frames of 320x240 px")


def test_a_body_is_cut_off_at_the_limit_whatever_its_length_says(local: Local) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000_000:
            sent += 10_000
            yield bytes(10_000)

    async def ask() -> httpx.Response:
        async with local.client() as client:
            return await client.post("/v1/predict", content=endless())

    refused(asyncio.run(ask()), 413, "too_large")
    assert sent < 1_000_000  # the limit, and as much again while the client is told


def test_a_slow_upload_is_refused(made: Made) -> None:
    local = Local(made, timeout_s=0.2)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    async def ask() -> httpx.Response:
        async with local.client() as client:
            return await client.post("/v1/predict", content=slow())

    refused(asyncio.run(ask()), 408, "slow_upload")


def test_an_answer_that_takes_too_long_is_given_up(made: Made) -> None:
    local = Local(made, timeout_s=0.1)
    local.hold = asyncio.Event()
    refused(post(local, picture(1)), 504, "timeout")


def test_who_leaves_frees_the_place(made: Made) -> None:
    local = Local(made)
    local.hold = asyncio.Event()
    sent: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": picture(1)}, {"type": "http.disconnect"}])

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": []}

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.01)
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        await local.app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 400
    assert local.gate.under_way == 0
    assert "dfdet_requests_under_way 0.0" in get(local, "/metrics").text


def test_more_requests_than_the_queue_holds_are_told_to_come_again(made: Made) -> None:
    local = Local(made, max_queue=2)
    local.hold = asyncio.Event()

    async def ask() -> list[httpx.Response]:
        async with local.client() as client:
            inside = [asyncio.create_task(client.post("/v1/predict", content=picture(1))) for _ in range(2)]
            while local.gate.under_way < 2:
                await asyncio.sleep(0.01)
            third = await client.post("/v1/predict", content=picture(1))
            assert (await client.get("/healthz")).status_code == 200
            assert local.hold is not None
            local.hold.set()
            return [third, *await asyncio.gather(*inside)]

    third, *others = asyncio.run(ask())
    refused(third, 503, "busy")
    assert third.headers["retry-after"] == "1"
    assert [each.status_code for each in others] == [200, 200]


def test_draining_answers_who_is_inside_and_lets_nobody_in(made: Made) -> None:
    local = Local(made)
    local.hold = asyncio.Event()

    async def ask() -> tuple[httpx.Response, ...]:
        async with local.client() as client:
            inside = asyncio.create_task(client.post("/v1/predict", content=picture(1)))
            while not local.gate.under_way:
                await asyncio.sleep(0.01)
            drained = asyncio.create_task(local.gate.drain())
            await asyncio.sleep(0)
            late, ready = await client.post("/v1/predict", content=picture(1)), await client.get("/readyz")
            assert not drained.done()
            assert local.hold is not None
            local.hold.set()
            await drained
            return await inside, late, ready

    inside, late, ready = asyncio.run(ask())
    assert inside.status_code == 200
    assert "shutting down" in refused(late, 503, "busy")
    refused(ready, 503, "not_ready")


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_without_the_token_nothing_is_answered(made: Made, given: str) -> None:
    local = Local(made, TOKEN)
    answer = post(local, picture(1), headers={"authorization": given})
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert get(local, "/metrics").status_code == 401
    assert get(local, "/healthz").status_code == 200


def test_with_the_token_all_is_answered(made: Made) -> None:
    local, headers = Local(made, TOKEN), {"authorization": f"bearer {TOKEN}"}
    assert post(local, picture(1), headers=headers).status_code == 200
    assert get(local, "/metrics", headers).status_code == 200


def test_memory_for_uploads_is_bounded_over_all_requests(made: Made) -> None:
    local = Local(made, max_bytes=1 << 16)
    local.hold = asyncio.Event()

    async def ask() -> list[httpx.Response]:
        async with local.client() as client:
            data = b"\x89PNG\r\n\x1a\n" + bytes(60_000)
            tasks = [asyncio.create_task(client.post("/v1/predict", content=data)) for _ in range(6)]
            while not any(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            assert local.hold is not None
            local.hold.set()
            return await asyncio.gather(*tasks)

    codes = sorted(each.status_code for each in asyncio.run(ask()))
    assert codes == [400, 400, 400, 400, 503, 503]  # four times 64 KiB hold four of them


def test_metrics_count_requests_files_faces_and_batches(made: Made) -> None:
    local = Local(made)
    for data in (picture(1), picture(1, face=False), b"none"):
        post(local, data)
    lines = get(local, "/metrics").text.splitlines()
    for line in (
        'dfdet_requests_total{status="200"} 2.0',
        'dfdet_requests_total{status="415"} 1.0',
        'dfdet_files_total{said="damaged"} 1.0',
        'dfdet_files_total{said="no face"} 1.0',
        "dfdet_faces_total 1.0",
        "dfdet_batch_crops_count 1.0",
        "dfdet_request_seconds_count 3.0",
        "dfdet_requests_under_way 0.0",
    ):
        assert line in lines


def test_state_is_told(local: Local) -> None:
    assert get(local, "/healthz").json() == {"status": "alive"}
    assert get(local, "/readyz").json() == {"status": "ready"}
    refused(get(local, "/nowhere"), 404, "not_found")
    refused(get(local, "/v1/predict"), 405, "bad_method")
    refused(get(local, "/docs"), 404, "not_found")  # it would load scripts of other hosts


def test_the_api_describes_its_answers(local: Local) -> None:
    operation = get(local, "/openapi.json").json()["paths"]["/v1/predict"]["post"]
    assert {each["name"] for each in operation["parameters"]} == {"crops", "frames", "faces", "thumbnails"}
    assert {"200", "400", "401", "413", "415", "422", "503", "504"} <= set(operation["responses"])
    assert "multipart/form-data" in operation["requestBody"]["content"]


def test_the_page_loads_nothing_of_others(local: Local) -> None:
    answer = get(local, "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    addresses = re.findall(r"(?:src|href)=[\"']?([^\"' >]+)", answer.text)
    assert set(addresses) == {"data:,", "openapi.json"}
    assert "@" + "STYLE@" not in answer.text
    facts = re.search(r'id="facts">(.*?)</script>', answer.text)
    assert facts and json.loads(facts[1])["threshold"] == local.service.rule.threshold


def test_every_answer_has_the_security_headers_and_an_id_of_ours(local: Local) -> None:
    for path in ("/", "/healthz", "/nowhere", "/openapi.json"):
        answer = get(local, path, {"x-request-id": "theirs"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_names_and_bytes_of_users_are_in_no_answer_and_no_log(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    mark = "Frau-Holle-7391"

    async def ask() -> list[httpx.Response]:
        bad = picture(1)[:60] + mark.encode() + picture(1)[80:]
        async with local.client(headers={"user-agent": mark}) as client:
            return [
                await client.post("/v1/predict", files=[("file", (f"{mark}.png", data))])
                for data in (bad, mark.encode(), picture(1))
            ] + [await client.post(f"/v1/predict?{mark}={mark}", content=bad), await client.get(f"/{mark}")]

    for answer in asyncio.run(ask()):
        assert mark not in answer.text
        assert mark not in str(answer.headers)
    assert mark not in caplog.text


def test_a_failure_of_the_server_is_told_without_its_text(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    local = Local(made)
    local.graph = None  # type: ignore[assignment]  # as if the model were gone
    answer = post(local, picture(1))
    refused(answer, 500, "internal")
    assert answer.headers["x-request-id"] in caplog.text
    assert "TypeError" in caplog.text and "NoneType" not in caplog.text
    assert get(local, "/readyz").status_code == 503


def mutations(made: Made, count: int) -> list[tuple[bytes, dict[str, str]]]:
    """Broken requests: files with bytes changed, cut, doubled; multipart bodies too."""
    rng = np.random.default_rng(7)
    sources = [picture(1, form=form) for form in ("PNG", "JPEG", "WEBP")]
    sources += [(made.clips / "0.mp4").read_bytes(), crop(2)]
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    found = []
    for number in range(count):
        data = bytearray(sources[number % len(sources)])
        for place in rng.integers(0, len(data), int(rng.integers(1, 30))):
            data[int(place) if number % 2 else int(place) % 200] = int(rng.integers(256))
        if number % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        headers = {}
        if number % 4 == 0:
            data = bytearray(part + data + b"\r\n--x--\r\n")[int(rng.integers(0, 3)) :]
            headers = {"content-type": "multipart/form-data; boundary=x"}
        found.append((bytes(data), headers))
    return found


def test_broken_requests_get_answers_and_nothing_breaks(local: Local, made: Made) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))

    async def ask() -> list[httpx.Response]:
        async with local.client() as client:
            given: list[tuple[bytes, dict[str, Any]]] = mutations(made, 300)
            return [
                await client.post("/v1/predict?frames=2", content=data, headers=head) for data, head in given
            ]

    codes = [each.status_code for each in asyncio.run(ask())]
    assert set(codes) <= {200, 400, 413, 415}
    assert codes.count(400) > 50
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_before + 8  # threads of the loop, not files
    assert post(local, picture(1)).status_code == 200
