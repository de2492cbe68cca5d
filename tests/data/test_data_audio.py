"""Wav files and log-mel spectrograms."""

import numpy as np
import pytest
import torch
from data_files import write_wav

from archipel.core.errors import DataError, UsageError
from archipel.data import load
from archipel.data.audio import log_mel, mel_filters, read_wav


def tone(hz: float, seconds: float = 0.5, rate: int = 8000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write_fsdd(folder, digits=3, speakers=("ann", "bob"), takes=9):
    for d in range(digits):
        for s in speakers:
            for i in range(takes):
                write_wav(folder / f"{d}_{s}_{i}.wav", tone(300 * (d + 1), 0.2 + 0.01 * i))
    return folder


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_all_pcm_widths_and_channels_are_read(tmp_path, width, channels):
    samples = tone(440, 0.05)
    both = np.repeat(samples, channels)
    got, rate = read_wav(write_wav(tmp_path / "a.wav", both, width=width, channels=channels))
    assert rate == 8000
    np.testing.assert_allclose(got, samples, atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_a_tone_lights_up_its_own_mel_band():
    mel = 2595 * np.log10(1 + np.array([20, 4000]) / 700)
    centres = 700 * (10 ** (np.linspace(*mel, 42)[1:-1] / 2595) - 1)
    for band in (12, 25, 36):
        spectrum = log_mel(tone(centres[band], 1.0)[None].astype(np.float32), 8000)
        assert spectrum.shape == (1, 40, 49)
        assert set(spectrum[0].argmax(0)) == {band}


def test_one_frame_equals_the_formula_written_out():
    clip = np.random.default_rng(0).normal(size=(1, 8000)).astype(np.float32)
    t = 7
    frame = clip[0, 160 * t : 160 * t + 320] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(320) / 320))
    k, n = np.arange(257)[:, None], np.arange(320)
    power = np.abs((frame * np.exp(-2j * np.pi * k * n / 512)).sum(1)) ** 2
    expected = np.log(mel_filters(40, 512, 8000) @ power + 1e-6)
    np.testing.assert_allclose(log_mel(clip, 8000)[0, :, t], expected, rtol=1e-4, atol=1e-4)


def test_file_names_give_classes_and_the_published_test_split(tmp_path):
    data = load(write_fsdd(tmp_path))
    assert data.input_shape == (1, 40, 49)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (19, 5, 30)
    assert data.info["class_names"] == ["0", "1", "2"]
    assert load(tmp_path, layout="signal", mels=20, seconds=0.5).input_shape == (20, 24)


def test_class_folders_are_split_by_the_seed(tmp_path):
    for name, hz in (("low", 200), ("high", 2000)):
        for i in range(5):
            write_wav(tmp_path / name / f"{i}.wav", tone(hz))
    data = load(tmp_path)
    assert data.info["class_names"] == ["high", "low"]
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (6, 2, 2)


def test_rates_are_made_equal_only_when_asked(tmp_path):
    for name, hz in (("low", 200), ("high", 2000)):
        for i in range(4):
            rate = 16000 if i == 2 else 8000
            write_wav(tmp_path / name / f"{i}.wav", tone(hz, 1.0, rate), rate=rate)
    with pytest.raises(DataError, match=r"high/2\.wav: sampled at 16000 Hz, but .*high/0\.wav at 8000 Hz.*rate=8000"):
        load(tmp_path)
    data = load(tmp_path, rate=8000, normalise=False)
    everything = torch.cat([data.train.x, data.val.x, data.sealed_test.x])
    labels = torch.cat([data.train.y, data.val.y, data.sealed_test.y])
    peaks = everything[:, 0].mean(-1).argmax(1)
    assert len(set(peaks[labels == 0].tolist())) == 1  # the resampled tone has kept its pitch
    assert len(set(peaks[labels == 1].tolist())) == 1


def corrupt(path, content):
    path.write_bytes(content(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda b: b[:-100],
            r"truncated: the header announces 1600 samples \(3200 bytes\), but only 3100 bytes",
        ),
        (lambda b: b[:30], "not a readable PCM wav file"),
        (lambda b: b"", "not a readable PCM wav file"),
        (lambda b: b"OggS" + b[4:], "not a readable PCM wav file"),
        (lambda b: b[:20] + b"\x03\x00" + b[22:], "not a readable PCM wav file .*unknown format: 3"),
        (lambda b: b[:24] + b"\x07\x00\x00\x00" + b[28:], "samples at 7 Hz; that is no recording"),
    ],
)
def test_a_malformed_wav_file_is_named(tmp_path, content, message):
    path = corrupt(write_fsdd(tmp_path, takes=6) / "0_ann_0.wav", content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_name_without_a_class_is_named(tmp_path):
    write_wav(write_fsdd(tmp_path, takes=6) / "hello.wav", tone(100))
    with pytest.raises(DataError, match=r"hello\.wav: is not named \{digit\}_\{speaker\}_\{index\}\.wav"):
        load(tmp_path)


@pytest.mark.parametrize("options", [{"mels": 0}, {"seconds": 0}, {"rate": 3}, {"layout": "tape"}])
def test_wrong_options_are_explained(tmp_path, options):
    with pytest.raises(UsageError, match="must be"):
        load(write_fsdd(tmp_path, takes=6), **options)
