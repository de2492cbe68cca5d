"""Spoken words: PCM wav files -> log-mel spectrograms, batched in NumPy.

    frames of 40 ms every 20 ms, Hann window, power spectrum |FFT|^2
    mel(f) = 2595 log10(1 + f / 700); triangular filters, equally spaced in mel from 20 Hz to half the sampling rate
    x = log(mel energy + 1e-6)

The front end is the usual one of small keyword spotters (Zhang, Suda, Lai, Chandra. Hello Edge: Keyword Spotting on
Microcontrollers. 2017. https://arxiv.org/abs/1711.07128), with 40 filters: one second gives 40 x 49 values.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
import wave
import zlib
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipel.core.errors import DataError, UsageError
from archipel.data.raw import Raw, class_ids, ids_among, scaled

# {digit}_{speaker}_{index}.wav, the naming of the Free Spoken Digit Dataset; its recordings 0-4 are the test split
FSDD_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
FSDD_TEST_INDICES = range(5)
# Digest of its 3,000 recordings: SHA-256 of the lines "<sha256>  <name>", sorted by name.
FSDD_DIGEST = "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples in [-1, 1] (channels averaged) and the sampling rate in Hz of a PCM wav file.

    Raises:
        DataError: not a PCM wav file, truncated, or empty.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            content = file.readframes(frames)
    except (wave.Error, EOFError, OSError, struct.error, RuntimeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{path}: not a readable PCM wav file ({error or 'it ends too early'}).") from error
    if len(content) != frames * channels * width:
        raise DataError(
            f"{path}: truncated: the header announces {frames} samples ({frames * channels * width} bytes), but only "
            f"{len(content)} bytes follow."
        )
    if frames == 0 or not 1000 <= rate <= 1_000_000:
        raise DataError(f"{path}: holds {frames} samples at {rate} Hz; that is no recording of sound.")
    if width == 1:
        samples = np.frombuffer(content, np.uint8).astype(np.float32) / 128 - 1  # 8-bit wav is unsigned
    elif width == 3:
        quads = np.zeros((frames * channels, 4), np.uint8)
        quads[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        samples = quads.view("<i4")[:, 0].astype(np.float32) / 2**31
    elif width in (2, 4):
        samples = np.frombuffer(content, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    else:
        raise DataError(f"{path}: samples of {8 * width} bits are not read, only 8, 16, 24 and 32.")
    return samples.reshape(frames, channels).mean(1), rate


def mel_filters(mels: int, fft: int, rate: int, low_hz: float = 20.0) -> np.ndarray:
    """Triangular filters [mels, fft // 2 + 1], peak 1.

    Raises:
        UsageError: more filters than the resolution of the spectrum can tell apart.
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (low_hz, rate / 2))
    edges_hz = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    f = np.fft.rfftfreq(fft, 1 / rate)
    left, peak, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    filters = np.clip(np.minimum((f - left) / (peak - left), (right - f) / (right - peak)), 0, None)
    if not filters.any(1).all():
        raise UsageError(f"{mels} mel filters are more than a spectrum of {fft // 2 + 1} values can tell apart.")
    return filters.astype(np.float32)


def log_mel(clips: np.ndarray, rate: int, mels: int = 40, window_s: float = 0.04, hop_s: float = 0.02) -> np.ndarray:
    """Log-mel energies [N, mels, frames] of clips [N, samples], float32."""
    window, hop = round(window_s * rate), round(hop_s * rate)
    fft = 1 << (window - 1).bit_length()
    filters = mel_filters(mels, fft, rate)
    taper = np.hanning(window + 1)[:-1].astype(np.float32)  # periodic
    out = np.empty((len(clips), mels, 1 + (clips.shape[1] - window) // hop), np.float32)
    for i in range(0, len(clips), 256):  # bounds the memory of the spectra
        frames = np.lib.stride_tricks.sliding_window_view(clips[i : i + 256], window, axis=1)[:, ::hop]
        spectrum = np.fft.rfft(frames * taper, fft)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        out[i : i + 256] = np.log(power @ filters.T + 1e-6).transpose(0, 2, 1)
    return out


def read_audio_folder(
    folder: Path,
    mels: int = 40,
    seconds: float = 1.0,
    rate: int | None = None,
    layout: str = "image",
    normalise: bool = True,
) -> Raw:
    """Log-mel spectrograms of the wav files in a folder.

    Args:
        folder: files named ``{digit}_{speaker}_{index}.wav`` (index 0-4 is then the test split), or one subfolder a
            class.
        mels: number of filters.
        seconds: clips are cut, or padded with silence, to this length.
        rate: resample all to this many Hz; without it they must have one rate.
        layout: ``"image"`` gives [N, 1, mels, frames], ``"signal"`` [N, mels, frames].
        normalise: bring each channel to mean 0 and deviation 1 of the training clips.

    Raises:
        DataError: no wav files, an unreadable one (names it), or different rates.
        UsageError: options out of range.
    """
    if layout not in ("image", "signal"):
        raise UsageError(f"layout must be 'image' or 'signal', not {layout!r}.")
    if not 1 <= mels <= 512 or not 0.05 <= seconds <= 60 or (rate is not None and not 1000 <= rate <= 200_000):
        raise UsageError(
            f"mels must be 1 to 512, seconds 0.05 to 60 and rate 1000 to 200000 Hz, not {mels}, {seconds} and {rate}."
        )
    paths, labels, test = _labelled(folder)
    clips, rate = _clips(paths, seconds, rate)
    features = torch.from_numpy(log_mel(clips, rate, mels))
    x = features[:, None] if layout == "image" else features
    pool = np.flatnonzero(~test)
    y, names = class_ids(labels[pool], str(folder))
    parts: dict[str, Any] = {"pool": (x[torch.from_numpy(pool)], y)}
    if test.any():
        held_out = np.flatnonzero(test)
        parts["test"] = (x[torch.from_numpy(held_out)], ids_among(labels[held_out], names, str(folder)))
    info = {"class_names": names, "rate_hz": rate, "seconds": seconds, "mels": mels}
    return Raw(parts, "classification", len(names), str(folder), fit=scaled(1.0, normalise), files=paths, info=info)


def _labelled(folder: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Wav files, their labels, and which of them the file names assign to the test split."""
    here = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".wav" and not p.name.startswith("."))
    if here:
        names = [FSDD_NAME.fullmatch(p.name) for p in here]
        wrong = next((p for p, m in zip(here, names, strict=True) if m is None), None)
        if wrong is not None:
            raise DataError(
                f"{wrong}: is not named {{digit}}_{{speaker}}_{{index}}.wav, so its class is unknown. Rename it, or "
                f"sort the files into one subfolder a class."
            )
        matches = [m for m in names if m is not None]
        labels = np.array([m[1] for m in matches])
        return here, labels, np.array([int(m[3]) in FSDD_TEST_INDICES for m in matches])
    paths = sorted(
        p for d in folder.iterdir() if d.is_dir() for p in d.rglob("*") if p.suffix.lower() == ".wav" and p.is_file()
    )
    if not paths:
        raise DataError(f"{folder}: holds no wav files, neither itself nor in class subfolders.")
    return paths, np.array([p.relative_to(folder).parts[0] for p in paths]), np.zeros(len(paths), bool)


def has_wavs(folder: Path) -> bool:
    """Whether there is a wav file in the folder or in a subfolder of it."""
    return any(
        p.suffix.lower() == ".wav" for d in (folder, *(q for q in folder.iterdir() if q.is_dir())) for p in d.iterdir()
    )


def _clips(paths: Sequence[Path], seconds: float, rate: int | None) -> tuple[np.ndarray, int]:
    """Clips [N, seconds * rate], cut or padded, and their common rate."""
    common = rate
    clips: np.ndarray | None = None
    for i, path in enumerate(paths):
        samples, own = read_wav(path)
        common = common or own
        if own != common:
            if rate is None:
                raise DataError(
                    f"{path}: sampled at {own} Hz, but {paths[0]} at {common} Hz. Resample all with rate={common}."
                )
            from scipy.signal import resample_poly

            step = gcd(own, common)
            samples = resample_poly(samples, common // step, own // step)
        if clips is None:
            clips = np.zeros((len(paths), round(seconds * common)), np.float32)
        n = min(len(samples), clips.shape[1])
        clips[i, :n] = samples[:n]
    assert clips is not None  # paths is never empty
    assert common is not None
    return clips, common


def unpack_fsdd(archive: Path, target: Path) -> None:
    """Write the recordings in a release archive of the Free Spoken Digit Dataset into the folder ``target``.

    GitHub packs its archives afresh from time to time, so what is verified is the content.

    Raises:
        DataError: other recordings than those of version 1.0.10.
    """
    target.mkdir()
    lines = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                file = tar.extractfile(member) if member.isfile() and FSDD_NAME.fullmatch(name) else None
                if file is not None:
                    content = file.read()
                    (target / name).write_bytes(content)
                    lines.append((name, hashlib.sha256(content).hexdigest()))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: not a readable tar archive ({error}).") from error
    digest = hashlib.sha256("".join(f"{d}  {n}\n" for n, d in sorted(lines)).encode()).hexdigest()
    if digest != FSDD_DIGEST:
        raise DataError(
            f"{archive}: its {len(lines)} recordings have the digest {digest}, not {FSDD_DIGEST} of version 1.0.10."
        )
