"""What is learned and what forgotten: every method and Omega on world/continual-1..4, from the quickstart's SFT model.

    python benchmarks/continual.py --model runs/quickstart/sft --out benchmarks/continual.jsonl
    python benchmarks/continual.py --out benchmarks/continual.jsonl --table --figures docs/figures

One JSON line a run (a variant and a seed), written as it is done: an interrupted benchmark goes on where it was, and
``--minutes`` ends it after the run in progress. Every run is the stage itself, called in this process.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CONFIG = HERE / "configs" / "continual" / "world.yaml"
LORA = {"omega": [], "omega_weight": [], "anchor_dataset_name": None}
FULL = {"method": "full", "learning_rate": 1e-3}


def omega(term: str, *weights: float, **more: object) -> dict[str, dict]:
    """Variants of one term by its lambda."""
    return {f"{term} {weight:g}": LORA | {"omega": [term], "omega_weight": [weight], **more} for weight in weights}


VARIANTS: dict[str, dict] = {
    "naive": LORA | FULL,
    "lora": LORA,
    "replay + function": {},  # as the recipe has it
    **omega("replay", 1, 2, 4),
    **omega("function", 1, 4),
    **omega("l2", 0.01, 0.03, 0.1),
    **omega("ewc", 0.01, 0.03, 0.1),
    "stacked": LORA | {"adapters": "stacked"},
    "routed": LORA | {"adapters": "routed"},
    **omega("orthogonal", 0.1, 1, adapters="stacked"),
    "bias": LORA | {"method": "bias", "learning_rate": 1e-2},
    "layernorm": LORA | {"method": "layernorm", "learning_rate": 1e-2},
    "bottleneck": LORA | {"method": "bottleneck", "learning_rate": 3e-3},
    "osf": LORA | {"method": "osf", "learning_rate": 5e-4},
}


def main() -> None:
    """Run what is missing, or show what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/sft")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true", help="print the table instead of running")
    parser.add_argument("--figures", type=Path, help="folder for the figures, with --table")
    options = parser.parse_args()
    if options.table:
        rows = read(options.out)
        print(table(rows))
        if options.figures:
            draw(rows, options.figures)
        return
    begun = time.monotonic()
    for seed in options.seeds:
        for name in options.variants:
            if any((row["variant"], row["seed"]) == (name, seed) for row in read(options.out)):
                continue
            if time.monotonic() - begun > 60 * options.minutes:
                return
            row = run(name, VARIANTS[name], seed, options.model)
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
            print(name, seed, shown, flush=True)


def read(path: Path) -> list[dict]:
    """The runs done so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(name: str, options: dict, seed: int, model: str) -> dict:
    """One run of the stage, and what its last model says of changed facts."""
    import yaml

    from pipeline.continual import main as stage
    from pipeline.data.world import load_world
    from pipeline.evaluation.forgetting import forward, prompt_ids, score
    from pipeline.model.loading import load_model, load_tokenizer
    from pipeline.model.routing import load_routed, routed

    with tempfile.TemporaryDirectory() as work:
        config, folder = Path(work) / "config.yaml", Path(work) / "run"
        given = yaml.safe_load(CONFIG.read_text()) | options
        given |= {"model_name_or_path": model, "output_dir": str(folder), "seed": seed, "disable_tqdm": True}
        config.write_text(yaml.safe_dump(given))
        wall, cpu = time.monotonic(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            stage(["--config", str(config)])
        spent = {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
        record = json.loads((folder / "run.json").read_text())
        rows = record["forgetting"]["rows"]
        tokenizer, through = load_tokenizer(str(folder)), None
        if given["adapters"] == "routed":
            final, router = load_routed(folder, attn_implementation="eager")
            through = routed(router, forward, prompt_ids)
        else:
            final = load_model(str(folder), attn_implementation="eager")
        changed = [
            row for k in range(1, 5) for row in load_world(f"continual-{k}", "test") if row["kind"] == "changed"
        ]
        stale = [row | {"completion": [{"role": "assistant", "content": row["before"]}]} for row in changed]
        lasting = [row for row in load_world("continual-0", "test") if row["kind"] == "fact"]
        figures = {
            key: score(final, tokenizer, plain(part), through=through)["accuracy"]
            for key, part in (("changed_new", changed), ("changed_stale", stale), ("old_facts", lasting))
        }
        shutil.rmtree(folder)
    metrics = record["metrics"]
    names = ("average", "plasticity", "forgetting", "backward_transfer", "forward_transfer")
    names += tuple(f"{name}_loss" for name in names)
    return {
        "variant": name,
        "seed": seed,
        **{key: metrics[key] for key in names},
        **figures,
        **spent,
        "accuracy": [[round(cell["accuracy"], 4) for cell in row["scores"]] for row in rows],
        "loss": [[round(cell["loss"], 4) for cell in row["scores"]] for row in rows],
        "gradient_overlap": [round(row.get("gradient_overlap", float("nan")), 5) for row in rows[1:]],
        "drift": [round(row["drift"], 5) for row in rows[1:]],
    }


def plain(rows: list[dict]) -> list[dict]:
    """The two columns that are scored."""
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def means(rows: list[dict], key: str) -> dict[str, float]:
    """Mean of a figure over seeds, by variant, in the order of the table."""
    return {
        name: statistics.fmean(found)
        for name in VARIANTS
        if (found := [row[key] for row in rows if row["variant"] == name])
    }


def kept_share(rows: list[dict]) -> dict[str, float]:
    """Of the old accuracy that naive forgets, the share that a variant does not, over the seeds that both have."""
    shares = {}
    for name in VARIANTS:
        pairs = [
            (a["forgetting"], b["forgetting"])
            for a in rows
            for b in rows
            if (a["variant"], b["variant"], a["seed"]) == ("naive", name, b["seed"])
        ]
        if pairs:
            shares[name] = 1 - sum(b for _, b in pairs) / sum(a for a, _ in pairs)
    return shares


def rank_correlation(xs: list[float], ys: list[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties at their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]

    return statistics.correlation(ranks(xs), ranks(ys))


def overlaps(rows: list[dict]) -> dict[str, tuple[list[float], list[float]]]:
    """Gradient overlap while corpus k is learned, and the accuracy on what came before that was lost by it."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        xs, ys = points.setdefault(row["variant"], ([], []))
        for k, overlap in enumerate(row["gradient_overlap"], 1):
            lost = [row["accuracy"][k - 1][j] - row["accuracy"][k][j] for j in range(k)]  # column 0: known before
            if overlap == overlap:
                xs.append(overlap)
                ys.append(statistics.fmean(lost))
    return points


def table(rows: list[dict]) -> str:
    """The figures by variant as Markdown, means over seeds, and the rank correlations below."""
    keys = ("plasticity", "forgetting", "average", "old_facts", "changed_new", "changed_stale", "cpu_seconds")
    columns = {key: means(rows, key) for key in keys}
    shares, naive = kept_share(rows), columns["plasticity"].get("naive", float("nan"))
    lines = ["| variant | seeds | new | of naive's | forgetting | kept of naive's loss | average | old facts | "
             "changed: new | changed: stale | CPU s |", "|---" * 11 + "|"]  # fmt: skip
    for name in columns["plasticity"]:
        seeds = sum(row["variant"] == name for row in rows)
        v = {key: columns[key][name] for key in keys}
        lines.append(
            f"| {name} | {seeds} | {v['plasticity']:.3f} | {v['plasticity'] / naive:.3f} | {v['forgetting']:.3f} | "
            f"{shares.get(name, float('nan')):.2f} | {v['average']:.3f} | {v['old_facts']:.3f} | "
            f"{v['changed_new']:.3f} | {v['changed_stale']:.3f} | {v['cpu_seconds']:.0f} |"
        )
    points = overlaps(rows)
    xs = [x for part in points.values() for x in part[0]]
    ys = [y for part in points.values() for y in part[1]]
    if len(xs) > 2:
        by_variant = [(statistics.fmean(x), statistics.fmean(y)) for x, y in points.values() if x]
        lines += [
            "",
            f"Spearman's rank correlation of gradient overlap and accuracy lost: {rank_correlation(xs, ys):.2f} over "
            f"{len(xs)} corpora of all variants and seeds",
        ]
        if len(by_variant) > 2:
            lines[-1] += (
                f"; {rank_correlation(*map(list, zip(*by_variant))):.2f} over {len(by_variant)} variants' means"
            )
    return "\n".join(lines)


def draw(rows: list[dict], folder: Path) -> None:
    """The frontier of plasticity against forgetting, two heat maps of R, and overlap against what was lost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    new, lost = means(rows, "plasticity"), means(rows, "forgetting")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    families: dict[str, list[str]] = {}
    for name in new:
        families.setdefault(name.split(" ")[0] if "+" not in name else name, []).append(name)
    for number, (family, names) in enumerate(families.items()):
        style = "-" if len(names) > 1 else ""
        axes.plot(
            [lost[n] for n in names], [new[n] for n in names], style + "os^vD*Px"[number % 8], label=family,
            color=f"C{number % 10}",
        )  # fmt: skip
        if len(names) > 1:
            for n in names:
                axes.annotate(
                    n.rpartition(" ")[2], (lost[n], new[n]), fontsize=7, xytext=(4, 3), textcoords="offset points"
                )
    if "naive" in new:
        axes.axhline(0.95 * new["naive"], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="forgetting (accuracy lost on earlier corpora)", ylabel="plasticity (accuracy on the new corpus)")
    axes.legend(fontsize=8, ncols=2, loc="center")
    figure.savefig(folder / "continual_frontier.png", dpi=120)
    pyplot.close(figure)

    least = min(lost, key=lost.get)
    picked = list(dict.fromkeys([*[name for name in ("naive", "lora") if name in lost], least]))
    figure, many = pyplot.subplots(
        1, len(picked), figsize=(3.4 * len(picked), 3.2), layout="constrained", squeeze=False
    )
    names = ["known", "1", "2", "3", "4"]
    for axes, variant in zip(many[0], picked, strict=True):
        tables = [row["accuracy"] for row in rows if row["variant"] == variant]
        mean = [[statistics.fmean(t[i][j] for t in tables) for j in range(5)] for i in range(5)]
        axes.imshow(mean, vmin=0, vmax=1, cmap="Blues")
        for i in range(5):
            for j in range(5):
                axes.text(
                    j, i, f"{mean[i][j]:.2f}", ha="center", va="center", color="white" if mean[i][j] > 0.6 else "black"
                )
        axes.set(title=variant, xlabel="judged on", xticks=range(5), yticks=range(5))
        axes.set_xticklabels(names)
        axes.set_yticklabels(["start", *names[1:]])
    many[0][0].set_ylabel("after corpus")
    figure.savefig(folder / "continual_matrix.png", dpi=120)
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for number, (name, (xs, ys)) in enumerate(overlaps(rows).items()):
        axes.plot(xs, ys, "os^vD*Px"[number % 8], label=name, markersize=4, color=f"C{number % 10}")
    axes.set(
        xlabel="share of the new gradient in the span of the old ones",
        ylabel="accuracy lost by the corpus",
        xscale="log",
    )
    axes.legend(fontsize=6, ncols=3)
    figure.savefig(folder / "continual_overlap.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
