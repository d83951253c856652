"""Run every row beside its limits and peers, interleaved, several rounds; print ratios; write ``results.json``.

python -m benchmarks [--rounds 3] [--scale 1.0] [--only keyed-1k,...]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent

BYTEWAX = ("bytewax", "bytewax2")
RECOVERING = ("bytewax-recovery", "bytewax2-recovery")

# row -> (size, the peers' name of it, who else runs, (what to beat, floor, aim))
ROWS: dict[str, tuple[int, str, tuple[str, ...], tuple[str, float, float]]] = {
    "keyed-1k": (1_000_000, "keyed-1k", (*BYTEWAX, *RECOVERING, "plain"), ("recovery", 2.0, 3.0)),
    "keyed-1m": (2_000_000, "keyed-1m", (*BYTEWAX, *RECOVERING, "plain"), ("recovery", 4.0, 8.0)),
    "chain-functions": (1_000_000, "chain", (*BYTEWAX, "plain"), ("memory", 0.7, 1.0)),
    "chain-nodes": (1_000_000, "chain", (*BYTEWAX, "plain"), ("memory", 0.3, 0.5)),
    "wordcount": (50, "wordcount", (*BYTEWAX, *RECOVERING, "plain"), ("memory", 2.0, 2.5)),
}


def measure(module: str, name: str, size: int, base: Path) -> float:
    """Events a second of one run in a process of its own."""
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, name, str(size), str(directory)],
            cwd=ROOT.parent,
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return float(found["events"] / found["seconds"])
    except subprocess.CalledProcessError as e:
        raise SystemExit(f"{name} failed:\n{e.stderr[-3000:]}") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="grape-bench-", dir=ROOT.parent))
    results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "rounds": options.rounds}
    try:
        for row, (size, name, peers, target) in ROWS.items():
            if not options.only or row in options.only.split(","):
                results[row] = run_row(row, int(size * options.scale), name, peers, target, options.rounds, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    (ROOT / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def run_row(
    row: str, size: int, name: str, peers: tuple[str, ...], target: tuple[str, float, float], rounds: int, base: Path
) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        figures.setdefault("grape", []).append(measure("benchmarks.rows", row, size, base))
        for peer in peers:
            figures.setdefault(peer, []).append(measure("benchmarks.peers", f"{peer}:{name}", size, base))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    kind, floor, aim = target
    rivals = {n: m for n, m in medians.items() if n.startswith("bytewax") and ("recovery" in n) == (kind == "recovery")}
    best = max(rivals, key=lambda n: rivals[n])
    ratio = medians["grape"] / rivals[best]
    print(f"\n{row}: size {size:,}")
    for who, median in medians.items():
        print(f"  {who:18s} {median:12,.0f} /s   grape = {medians['grape'] / median:6.2f} x")
    verdict = "aim reached" if ratio >= aim else "floor reached" if ratio >= floor else "BELOW THE FLOOR"
    print(f"  -> {ratio:.2f} x {best} (floor {floor}, aim {aim}): {verdict}", flush=True)
    return {
        "size": size,
        "median": medians,
        "all": figures,
        "against": best,
        "ratio": ratio,
        "floor": floor,
        "aim": aim,
    }


if __name__ == "__main__":
    main()
