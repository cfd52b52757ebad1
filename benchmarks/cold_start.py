"""Cold start: a new process from nothing to its first answer, a program at a time, in turn.

The process runs this file by its path and prints {"import", "load", "first call"}, seconds; what it takes in all is
measured from outside. The checkpoint is a folder that transformers saved; the files are in the page cache.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LONGEST_S = 900.0


def start(
    program: str, folder: str, cls: str, dtype: str, device: str, batch: int, side: int
) -> dict[str, float]:
    """In the new process."""
    begin = time.perf_counter()
    import torch
    import transformers

    if program.startswith("vit-fast"):
        import vit_fast
    imported = time.perf_counter()
    kind = getattr(torch, dtype)
    if program == "vit-fast ViT":
        model = vit_fast.ViT.from_pretrained(folder, dtype=kind, device=device)
    else:
        home = vit_fast if program == "vit-fast" else transformers
        attention = "eager" if program.endswith("eager") else "sdpa"
        model = getattr(home, cls).from_pretrained(folder, dtype=kind, attn_implementation=attention)  # fmt: skip
        model = model.to(device).eval()
        if program == "torch.compile":
            model = torch.compile(model)
    loaded = time.perf_counter()
    pixels = torch.randn(batch, 3, side, side, dtype=kind, device=device)
    with torch.inference_mode():
        answer = model(pixels)
        answer = answer if program == "vit-fast ViT" else answer[0]
        float(answer.sum())  # waits for the device
    called = time.perf_counter()
    return {"import": imported - begin, "load": loaded - imported, "first call": called - loaded}


def once(program: str, **of: str | int) -> tuple[float, dict[str, float]]:
    """(milliseconds of the whole process, its parts). RuntimeError with its last words where it fails or hangs.

    The new process imports the vit_fast of this one, installed or not.
    """
    import vit_fast

    home = str(Path(vit_fast.__file__).parents[1])
    path = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH")) if p)
    given = [str(of[name]) for name in ("folder", "cls", "dtype", "device", "batch", "side")]
    words = [sys.executable, __file__, program, *given]
    begin = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {LONGEST_S:g} s") from None
    ms = (time.perf_counter() - begin) * 1e3
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"exit status {done.returncode}: {lines[-1]}")
    return ms, json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    program, folder, cls, dtype, device, batch, side = sys.argv[1:]
    print(json.dumps(start(program, folder, cls, dtype, device, int(batch), int(side))))
