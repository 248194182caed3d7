"""The exported file computes what torch computes, with nothing of torch around it."""

import shutil
import sys
from pathlib import Path

import launching
import numpy as np
import onnxruntime
import pytest
import torch

from sinlstm_dist import export
from sinlstm_dist.model import Predictor


def predictions(content: bytes | str, windows: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"windows": windows.numpy()})[0]


@pytest.mark.parametrize("sizes", [{}, {"num_layers": 3, "hidden_size": 17, "input_size": 2}])
def test_agrees_with_torch_for_any_batch_and_window(sizes):
    torch.manual_seed(1)
    model = Predictor(**sizes)
    content = export.to_onnx(model)
    for batch in (1, 7, 1000):
        for window in (1, 10, 50, 200):
            windows = torch.randn(batch, window, model.rnn.input_size)
            with torch.no_grad():
                expected = model(windows).numpy()
            np.testing.assert_allclose(predictions(content, windows), expected, atol=1e-5, rtol=0)


def test_the_command_writes_a_file_that_runs_without_torch(trained_run, tmp_path, capfd):
    output = tmp_path / "sine.onnx"
    assert export.main([str(trained_run), "--output", str(output)]) == 0
    told, warned = capfd.readouterr()
    assert "batches of 1, 7, 1000 and windows of 10, 50, 200" in told
    assert warned == ""
    program = (
        "import sys; sys.modules['torch'] = None\n"  # importing it would fail
        "import numpy as np, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(output)!r})\n"
        "windows = np.linspace(-1, 1, 3 * 12, dtype=np.float32).reshape(3, 12, 1)\n"
        "print(*session.run(None, {'windows': windows})[0].ravel())"
    )
    ended = launching.run([sys.executable, "-c", program], cwd=tmp_path)
    windows = torch.linspace(-1, 1, 36).reshape(3, 12, 1)
    with torch.no_grad():
        expected = Predictor.from_pretrained(trained_run)(windows).flatten()
    found = [float(number) for number in ended.stdout.split()]
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=ended.stderr)


def test_a_wrong_graph_is_noticed_and_not_written(trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "_reordered", export._array)  # gates in torch's order
    output = tmp_path / "wrong.onnx"
    assert export.main([str(trained_run), "--output", str(output)]) == 1
    assert "ONNX Runtime differs from torch by" in capsys.readouterr().err
    assert not output.exists()


def unfinished(run: Path) -> str:
    (run / "model.safetensors").unlink()
    return "has not finished: continue it with python -m sinlstm_dist.train --config"


def corrupted(run: Path) -> str:
    (run / "model.safetensors").write_bytes(b"nothing")
    return "model.safetensors: holds no weights of a Predictor"


def missing(run: Path) -> str:
    shutil.rmtree(run)
    return "is not a folder"


@pytest.mark.parametrize("harm", [unfinished, corrupted, missing])
def test_bad_folders_are_named_once(harm, trained_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    message = harm(copy)
    assert export.main([str(copy), "--output", str(tmp_path / "a.onnx")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def test_the_missing_extra_and_folder_are_named(trained_run, tmp_path, capsys, monkeypatch):
    assert export.main([str(trained_run), "--output", str(tmp_path / "none" / "a.onnx")]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export.main([str(trained_run), "--output", str(tmp_path / "a.onnx")]) == 2
    assert "pip install 'sinlstm-dist[export]'" in capsys.readouterr().err


def test_a_checkpoint_is_exported_too(trained_run, tmp_path):
    newest = max((trained_run / "checkpoints").iterdir())
    assert export.main([str(newest), "--output", str(tmp_path / "a.onnx")]) == 0
