"""Draws the gates of one history over its segments: ``docs/layers/gates.svg``."""

from pathlib import Path

import numpy as np
from keras import ops

from laser_keras import SegmentedTargetAttention

LENGTH, WIDTH, SEGMENT = 60, 16, 10
OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "layers" / "gates.svg"


def gates() -> np.ndarray:
    """Gates [L] of one head whose query and key projections are the identity."""
    rng = np.random.default_rng(4)
    target = rng.normal(size=WIDTH)
    target *= 4 / np.linalg.norm(target)
    history = rng.normal(size=(LENGTH, WIDTH)) * 0.7
    for start, stop in ((3, 8), (34, 43)):  # two bursts of events like the target
        history[start:stop] += target * rng.uniform(0.4, 0.9, (stop - start, 1))
    layer = SegmentedTargetAttention(
        1, WIDTH, SEGMENT, ffn_expansion=0, norm="none", gamma=2.0, gate_bias=-3.0
    )
    layer.build((1, 1, WIDTH), (1, LENGTH, WIDTH))
    layer.query_kernel.assign(np.eye(WIDTH))
    layer.key_kernel.assign(np.eye(WIDTH))
    _, opened = layer(target[None, None], history[None], return_gates=True)
    return ops.convert_to_numpy(opened)[0, 0, 0]


def svg(values: np.ndarray) -> str:
    """Bars of the gates, newest event on the left, segments told apart by their ground."""
    bar, height, left = 10, 120, 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + bar * LENGTH + 10} 175" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for segment in range(LENGTH // SEGMENT):
        x = left + segment * SEGMENT * bar
        ground = "#eef2f7" if segment % 2 else "#f8fafc"
        parts.append(
            f'<rect x="{x}" y="15" width="{SEGMENT * bar}" height="{height}" fill="{ground}"/>'
            f'<text x="{x + SEGMENT * bar / 2}" y="150" text-anchor="middle">s{segment + 1}</text>'
        )
    for j, value in enumerate(values):
        size = round(float(value) * height, 1)
        parts.append(
            f'<rect x="{left + j * bar + 1}" y="{15 + height - size}" width="{bar - 2}" '
            f'height="{size}" fill="#2563a8"/>'
        )
    parts.append(f'<text x="4" y="20">gate 1</text><text x="28" y="{15 + height}">0</text>')
    parts.append(f'<text x="{left}" y="168">newest event</text>')
    parts.append(f'<text x="{left + bar * LENGTH}" y="168" text-anchor="end">oldest</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(svg(gates()))
    print(f"wrote {OUTPUT.name}")
