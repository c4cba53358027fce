"""Many pictures through one engine: the same answers, in order, no more under way than asked for, and no end that hangs."""

import gc
import os
import threading
from itertools import count

import numpy as np
import pytest

from runtime.engines.openvino_engine import cache_entry, cpu_settings, import_openvino
from runtime.engines.seam import OPENED_BY, open_engine
from runtime.engines.stream import in_order
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle
from segcore.bundle.golden import load_golden
from segcore.errors import InputError
from segcore.phantom import phantom_case


class Odd(Exception):
    pass


def record():
    """`in_order` over integers that notes what it does, with the list of notes."""
    notes = []

    def run(jobs, in_flight, fails=()):
        def finish(n):
            notes.append(("finish", n))
            if n in fails:
                raise Odd(n)
            return n * 10

        return in_order(
            jobs,
            lambda n: (notes.append(("begin", n)), n)[1],
            finish,
            in_flight=in_flight,
            drop=lambda n: notes.append(("drop", n)),
        )

    return run, notes


def test_in_order_pulls_no_more_than_it_may():
    run, notes = record()
    pulled = count()
    results = run((next(pulled) for _ in range(6)), 2)
    assert notes == []
    assert next(results) == 0
    assert notes == [("begin", 0), ("begin", 1), ("finish", 0)]
    assert next(results) == 10
    assert notes[3:] == [("begin", 2), ("finish", 1)]
    assert list(results) == [20, 30, 40, 50]
    assert not any(what == "drop" for what, _ in notes)


def test_a_failing_source_fails_in_its_turn():
    def jobs():
        yield from range(3)
        raise Odd("source")

    run, _ = record()
    results = run(jobs(), 8)
    assert [next(results) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(Odd, match="source"):
        next(results)
    assert list(results) == []


def test_a_failing_job_drops_the_others():
    run, notes = record()
    results = run(range(9), 3, fails={1})
    assert next(results) == 0
    with pytest.raises(Odd):
        next(results)
    assert [note for note in notes if note[0] == "drop"] == [("drop", 2), ("drop", 3)]


def test_closing_early_drops_what_is_under_way():
    run, notes = record()
    results = run(count(), 3)
    next(results)
    results.close()
    assert notes[-2:] == [("drop", 1), ("drop", 2)]


@pytest.fixture(scope="module")
def pictures(exported):
    return load_golden(exported("onnx", "fp32"))[0]


def opened(exported, engine, **settings):
    path = open_bundle(exported("onnx", "fp32")).model_path
    return open_engine(engine, path, **{"precision": "fp32", "threads": 2, **settings})


@pytest.mark.parametrize("engine", OPENED_BY["onnx"])
@pytest.mark.parametrize(("streams", "in_flight"), [(1, 1), (1, 3), (2, 3)])
def test_a_stream_computes_what_run_computes(exported, pictures, engine, streams, in_flight):
    model = opened(exported, engine, streams=streams)
    expected = model.run(pictures)
    assert np.abs(np.diff(expected, axis=0)).max() > 0.1  # a wrong order would show
    pulled = 0

    def batches():
        nonlocal pulled
        for picture in pictures:
            pulled += 1
            yield picture[None].copy()

    for n, logits in enumerate(model.stream(batches(), in_flight=in_flight)):
        assert pulled <= n + in_flight
        np.testing.assert_allclose(logits, expected[n : n + 1], atol=1e-4)
    assert n == len(pictures) - 1
    kept = list(model.stream((p[None] for p in pictures), in_flight=in_flight))
    model.run(pictures[::-1])  # the engine's own memory is used again: earlier answers must not change
    np.testing.assert_allclose(np.concatenate(kept), expected, atol=1e-4)
    model.close()


@pytest.mark.parametrize("engine", OPENED_BY["onnx"])
def test_a_stream_that_fails_or_is_left_can_be_followed_by_another(exported, pictures, engine):
    model = opened(exported, engine, streams=2)
    expected = model.run(pictures[:2])
    before = threading.active_count()

    def cut_off():
        yield pictures[:1]
        yield pictures[1:2]
        raise Odd

    stream = model.stream(cut_off(), in_flight=4)
    np.testing.assert_allclose(np.concatenate([next(stream), next(stream)]), expected, atol=1e-4)
    with pytest.raises(Odd):
        next(stream)
    bad = model.stream([pictures[:1], np.zeros((1, 5, 5, 1), np.uint8)], in_flight=2)
    next(bad)
    with pytest.raises(Exception, match=r"."):  # each engine has its own
        next(bad)
    left = model.stream((pictures[:1] for _ in count()), in_flight=3)
    next(left)
    left.close()
    assert threading.active_count() <= before
    np.testing.assert_allclose(next(model.stream([pictures[1:2]], in_flight=1)), expected[1:], atol=1e-4)
    model.close()


@pytest.fixture(scope="module")
def images():
    """Pictures of different sizes and contents."""
    return [phantom_case("cxr", i, size_px=128)[0][: 100 + i] for i in range(9)]


@pytest.mark.parametrize(("streams", "in_flight"), [(1, None), (2, None), (2, 1)])
def test_map_predicts_what_predict_predicts(exported, images, streams, in_flight):
    with Predictor.open(exported("onnx", "fp32"), threads=2, streams=streams) as predictor:
        expected = [predictor.predict(image) for image in images]
        with predictor.map(iter(images), in_flight=in_flight) as found:
            for image, one, other in zip(images, found, expected, strict=True):
                assert one.mask.shape == image.shape
                np.testing.assert_array_equal(one.mask, other.mask)
                np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
                assert min(one.timings.pre_ms, one.timings.engine_ms, one.timings.post_ms) > 0
        assert found.images == len(images)
        assert found.images_per_s == pytest.approx(len(images) / found.seconds)


def test_map_pulls_as_it_is_asked(exported, images):
    pulled = 0

    def endless():
        nonlocal pulled
        for n in count():
            pulled += 1
            yield images[n % len(images)]

    before = threading.active_count()
    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        found = predictor.map(endless(), in_flight=2)
        assert pulled == 0
        for n in range(1, 12):
            next(found)
            assert pulled <= n + 3 * 2 + 1  # three stages of two, and the one that begins a group
        assert found.images == 11
        found.close()
        assert list(found) == []
        next(predictor.map(endless()))  # left without being closed
        gc.collect()
        assert threading.active_count() == before


def test_a_bad_picture_raises_in_its_turn(exported, images):
    bad = images[0].astype(np.uint16)
    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        found = predictor.map([images[0], images[1], bad, images[2]])
        first = [next(found), next(found)]
        np.testing.assert_array_equal(first[1].mask, predictor.predict(images[1]).mask)
        with pytest.raises(InputError, match=r"^image 3: must be uint8 as the model was trained on"):
            next(found)
        assert list(found) == []
        found = predictor.map([np.zeros(3, np.uint8)], names=["scan 7"])
        with pytest.raises(InputError, match=r"^scan 7: must be H×W or H×W×3, got shape 3$"):
            next(found)


def test_try_map_goes_on(exported, images):
    bad = images[0].astype(np.uint16)
    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        found = list(predictor.try_map([bad, images[0], bad, bad, images[1], bad]))
        kinds = [isinstance(one, InputError) for one in found]
        assert kinds == [True, False, True, True, False, True]
        assert str(found[3]).startswith("image 4: ")
        np.testing.assert_array_equal(found[4].mask, predictor.predict(images[1]).mask)


def test_an_error_of_the_source_comes_after_the_pictures_before_it(exported, images):
    def source():
        yield from images[:3]
        raise InputError("camera: gone")

    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        found = predictor.map(source(), in_flight=5)
        assert len([next(found) for _ in range(3)]) == 3
        with pytest.raises(InputError, match=r"^camera: gone$"):
            next(found)
        with pytest.raises(ValueError, match=r"^names must be as many as the images, got 1$"):
            list(predictor.map(images, names=["a"]))


class BrokenSession:
    """onnxruntime's session, out of order."""

    def __init__(self, error):
        self.error = error

    def run(self, *_):
        raise self.error


def test_an_engine_that_fails_is_one_line_that_names_the_picture(exported, images):
    with Predictor.open(exported("onnx", "fp32"), engine="onnxruntime", threads=1) as predictor:
        (variant, *_) = predictor.files
        predictor._files.engine(variant)._session = BrokenSession(RuntimeError("out of memory\nat node 3"))
        expected = (
            f"scan 7: model {exported('onnx', 'fp32') / 'model.onnx'}: must run in onnxruntime "
            f"{predictor.engine_version}, does not (out of memory); export it again"
        )
        with pytest.raises(InputError) as caught:
            predictor.predict(images[0], name="scan 7")
        assert str(caught.value) == expected
        with pytest.raises(InputError) as caught:
            list(predictor.map(images, names=(f"scan {n}" for n in range(7, 100))))
        assert str(caught.value) == expected
        predictor._files.engine(variant)._session = BrokenSession(TypeError("ours"))
        with pytest.raises(TypeError, match="ours"):
            predictor.predict(images[0])
        with pytest.raises(TypeError, match="ours"):
            list(predictor.map(images))


def test_what_the_source_of_pictures_raises_is_not_the_engines(exported, images):
    def source():
        yield images[0]
        raise RuntimeError("camera")

    with Predictor.open(exported("onnx", "fp32"), threads=1) as predictor:
        found = predictor.map(source())
        next(found)
        with pytest.raises(RuntimeError, match="camera"):
            next(found)


def test_more_streams_than_threads_are_refused(exported):
    with pytest.raises(InputError) as error:
        Predictor.open(exported("onnx", "fp32"), threads=2, streams=3)
    assert str(error.value) == "--streams: must be 1 to 2, the number of threads, got 3"


def test_one_stream_is_compiled_for_latency(exported):
    for streams in (1, 2):
        model = opened(exported, "openvino", streams=streams)
        assert model._compiled.get_property("NUM_STREAMS") == streams
        model.close()
    assert cpu_settings(4)["PERFORMANCE_HINT"] == "LATENCY"
    assert "NUM_STREAMS" not in cpu_settings(4)
    assert cpu_settings(4, 2)["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert cpu_settings(4, 2)["NUM_STREAMS"] == 2


def blobs(cache):
    return {p.relative_to(cache): p.stat().st_mtime_ns for p in cache.rglob("*.blob")}


def test_a_second_open_uses_the_cache(exported, tmp_path, images):
    cache = tmp_path / "cache"
    bundle = exported("onnx", "fp32")
    with Predictor.open(bundle, engine="openvino", threads=1, cache=cache) as predictor:
        expected = predictor.predict(images[0]).probabilities
    first = blobs(cache)
    assert len(first) == 1
    for path in first:
        os.utime(cache / path, ns=(1, 1))
    with Predictor.open(bundle, engine="openvino", threads=1, cache=cache) as predictor:
        np.testing.assert_array_equal(predictor.predict(images[0]).probabilities, expected)
    assert blobs(cache) == dict.fromkeys(first, 1)  # there, and not written again
    # OpenVINO alone would take the blob for one thread.
    Predictor.open(bundle, threads=2, cache=cache).close()
    assert len(blobs(cache)) == 2


def test_another_precision_or_version_gets_another_entry(exported, tmp_path, monkeypatch):
    openvino = import_openvino()
    for precision, version, folders in (("fp32", None, 1), ("fp16", None, 2), ("fp16", "2027.0.0-1", 3)):
        if version:
            monkeypatch.setattr(openvino, "__version__", version)
        opened(exported, "openvino", precision=precision, cache=tmp_path).close()
        assert len(list(tmp_path.glob("openvino/*"))) == len(blobs(tmp_path)) == folders


def spoil_blob(path, how, other):
    """Changes what is kept of a compiled model."""
    content = bytearray(path.read_bytes())
    if how == "a flipped bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut off":
        path.write_bytes(content[:1000])
    elif how == "OpenVINO's own, without a code":
        path.write_bytes(content[32:])
    else:
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "how", ["a flipped bit", "cut off", "OpenVINO's own, without a code", "that of another model"]
)
def test_a_compiled_model_that_is_not_ours_is_compiled_again(exported, tmp_path, images, how):
    bundle = exported("onnx", "fp32")
    with Predictor.open(bundle, engine="openvino", threads=2, cache=tmp_path) as predictor:
        expected = predictor.predict(images[0]).probabilities
    (path,) = tmp_path.rglob("*.blob")
    mine = path.read_bytes()
    opened(exported, "openvino", precision="fp16", threads=1, cache=tmp_path).close()
    (other,) = set(tmp_path.rglob("*.blob")) - {path}
    spoil_blob(path, how, other)
    assert path.read_bytes() != mine
    with Predictor.open(bundle, engine="openvino", threads=2, cache=tmp_path) as predictor:
        np.testing.assert_array_equal(predictor.predict(images[0]).probabilities, expected)
    assert len(path.read_bytes()) == len(mine)  # written anew; not to the byte, there are times in it
    assert path.stat().st_size > 1000


def test_openvino_alone_takes_a_flipped_bit_without_a_word(exported, tmp_path):
    """What the code in front of a compiled model is for. Where this fails, OpenVINO has begun to look itself."""
    opened(exported, "openvino", threads=1, cache=tmp_path).close()
    (path,) = tmp_path.rglob("*.blob")
    content = bytearray(path.read_bytes()[32:])
    content[len(content) * 3 // 4] ^= 1
    import_openvino().Core().import_model(bytes(content), "CPU", cpu_settings(1))


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_a_cache_that_others_can_write_to_is_not_used_and_that_is_said_once(exported, tmp_path, capsys):
    cache = tmp_path / "shared"
    cache.mkdir()
    cache.chmod(0o770)
    for _ in range(2):
        opened(exported, "openvino", threads=1, cache=cache).close()
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().err.splitlines() == [
        f"cache {cache}: must be this user's alone, others may write to it (mode 770); nothing in it is used and "
        "nothing is kept: use a folder of your own, with chmod 700"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"engine": "openvino 2027.0"},
        {"device": "another CPU"},
        {"settings": {"THREADS": 2}},
        {"model_path": "other.xml"},
        {"weights": b"other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_cache_tells_apart(tmp_path, change):
    for name, content in (("model.xml", b"graph"), ("model.bin", b"weights"), ("other.xml", b"grapH")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "other.bin").write_bytes(b"weights")
    same = {
        "model_path": tmp_path / "model.xml",
        "precision": "fp32",
        "engine": "openvino 2026.4.1",
        "device": "CPU",
        "settings": {"THREADS": 1},
    }
    first = cache_entry(tmp_path / "cache", **same)
    assert first.is_dir()
    assert cache_entry(tmp_path / "cache", **same) == first
    if "weights" in change:
        (tmp_path / "model.bin").write_bytes(change["weights"])
        change = {}
    elif "model_path" in change:
        change = {"model_path": tmp_path / change["model_path"]}
    other = cache_entry(tmp_path / "cache", **same | change)
    assert other != first
    assert other.parent == first.parent


def test_a_cache_that_is_a_file_is_refused(exported, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError) as error:
        Predictor.open(exported("onnx", "fp32"), engine="openvino", cache=tmp_path / "cache")
    assert str(error.value) == f"--cache {tmp_path / 'cache'}: must be a folder, is a file; name another"
