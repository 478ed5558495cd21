"""What is learned and what forgotten: every method and Omega on world/continual-1..4, from the quickstart's SFT model.

    python benchmarks/continual.py --model runs/quickstart/sft --out benchmarks/continual.jsonl
    python benchmarks/continual.py --out benchmarks/continual.jsonl --table --figures docs/figures
    python benchmarks/continual.py --model runs/quickstart/sft --text FOLDER --out benchmarks/continual_text.jsonl

One JSON line per run (a variant and a seed), written as it is done: an interrupted benchmark resumes where it was, and
``--minutes`` ends it after the run in progress. Every run is the stage itself, called in this process.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CONFIG = HERE / "configs" / "continual" / "world.yaml"
TEXT_CONFIG = HERE / "configs" / "continual" / "text.yaml"
# Okabe and Ito's colours, and a marker each: told apart without colour too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
CLOSE = 0.88  # least plasticity in the frontier's second panel
LORA = {"omega": [], "omega_weight": [], "anchor_dataset_name": None}
FULL = {"method": "full", "learning_rate": 1e-3}


def omega(term: str, *weights: float, **more: object) -> dict[str, dict]:
    """Variants of one term by its lambda."""
    return {f"{term} {weight:g}": LORA | {"omega": [term], "omega_weight": [weight], **more} for weight in weights}


VARIANTS: dict[str, dict] = {
    "naive": LORA | FULL,
    "lora": LORA,
    "replay + distillation": {},  # as the recipe has it
    **omega("replay", 1, 2, 4),
    **omega("distillation", 1, 4),
    **omega("l2", 0.01, 0.03, 0.1),
    **omega("ewc", 0.01, 0.03, 0.1),
    "stacked": LORA | {"adapters": "stacked"},
    "routed": LORA | {"adapters": "routed"},
    **omega("orthogonal", 0.3, 1, adapters="stacked"),
    "bias": LORA | {"method": "bias", "learning_rate": 5e-2},
    "layernorm": LORA | {"method": "layernorm", "learning_rate": 5e-2},
    "bottleneck": LORA | {"method": "bottleneck", "learning_rate": 1e-2, "bottleneck_size": 64},
    "osf": LORA | {"method": "osf", "learning_rate": 2e-3},
}
# On three corpora of real text; at the recipe's 1e-3 the LoRA of the embedded model hardly learns.
TEXT: dict[str, dict] = {
    "naive": {"omega": [], "omega_weight": [], **FULL},
    "lora": {"omega": [], "omega_weight": [], "learning_rate": 5e-3},
    "replay 1": {"learning_rate": 5e-3},
}
TEXT_ROWS = {"dataset_train_split": "train[:300]", "eval_rows": 100, "num_train_epochs": 6}  # 200 to learn
TEXT_CORPORA = ("agnews", "sst2", "wic")


def main() -> None:
    """Run what is missing, or show what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/sft")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument(
        "--text", type=Path, help="folder of agnews_train.jsonl, sst2_train.jsonl, wic_train.jsonl: learn these"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true", help="print the table instead of running")
    parser.add_argument("--figures", type=Path, help="folder for the figures, with --table")
    options = parser.parse_args()
    if options.table:
        rows = read(options.out)
        print(text_table(rows) if options.text else table(rows))
        if options.figures:
            draw(rows, options.figures)
        return
    begun, variants = time.monotonic(), TEXT if options.text else VARIANTS
    for seed in options.seeds:
        for name in options.variants or variants:
            if any((row["variant"], row["seed"]) == (name, seed) for row in read(options.out)):
                continue
            if time.monotonic() - begun > 60 * options.minutes:
                return
            given = variants[name] | {"seed": seed, "model_name_or_path": options.model}
            row = {"variant": name, "seed": seed} | (run_text(given, options.text) if options.text else run(given))
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
            print(name, seed, shown, flush=True)


def read(path: Path) -> list[dict]:
    """The runs done so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextlib.contextmanager
def finished(config: Path, options: dict) -> Iterator[tuple[dict, Path, dict, dict]]:
    """The stage run by a recipe and options: all it was given, its folder while it is there, its record, its time."""
    import yaml

    from pipeline.continual import main as stage

    with tempfile.TemporaryDirectory() as work:
        file, folder = Path(work) / "config.yaml", Path(work) / "run"
        given = yaml.safe_load(config.read_text()) | options | {"output_dir": str(folder), "disable_tqdm": True}
        file.write_text(yaml.safe_dump(given))
        wall, cpu = time.monotonic(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            stage(["--config", str(file)])
        spent = {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
        yield given, folder, json.loads((folder / "run.json").read_text()), spent


def run(options: dict) -> dict:
    """One run on the world's corpora, and what its last model says of changed facts."""
    from pipeline.evaluation.tasks.forgetting import forward, prompt_ids, score
    from pipeline.model.loading import load_model, load_tokenizer
    from pipeline.model.routing import load_routed, routed
    from pipeline.worlds.table import load_world

    with finished(CONFIG, options) as (given, folder, record, spent):
        tokenizer, through = load_tokenizer(str(folder)), None
        if given["adapters"] == "routed":
            final, router = load_routed(folder, attn_implementation="eager")
            through = routed(router, forward, prompt_ids)
        else:
            final = load_model(str(folder), attn_implementation="eager")
    changed = [row for k in range(1, 5) for row in load_world(f"continual-{k}", "test") if row["kind"] == "changed"]
    stale = [row | {"completion": [{"role": "assistant", "content": row["before"]}]} for row in changed]
    lasting = [row for row in load_world("continual-0", "test") if row["kind"] == "fact"]
    figures = {
        key: score(final, tokenizer, plain(part), through=through)["accuracy"]
        for key, part in (("changed_new", changed), ("changed_stale", stale), ("old_facts", lasting))
    }
    return {**summary(record), **figures, **spent, **matrices(record)}


def run_text(options: dict, corpora: Path) -> dict:
    """One run on three corpora of real text."""
    paths = [str(corpora / f"{name}_train.jsonl") for name in TEXT_CORPORA]
    more = {"corpora": paths, "dataset_map": "sentence=prompt,label=completion"} | TEXT_ROWS
    with finished(TEXT_CONFIG, options | more) as (_, _, record, spent):
        return {**summary(record), **spent, **matrices(record)}


def summary(record: dict) -> dict[str, float]:
    """What R comes to, by accuracy and by loss."""
    names = ("average", "plasticity", "forgetting", "backward_transfer", "forward_transfer")
    return {key: record["metrics"][key] for name in names for key in (name, f"{name}_loss")}


def matrices(record: dict) -> dict[str, list]:
    """R, the overlap of gradients and the drift, rounded."""
    cells, metrics = record["tables"]["forgetting"]["scores"], record["metrics"]
    learned = range(1, cells[-1]["after"] + 1)
    found = {
        name: [[round(cell[name], 4) for cell in cells if cell["after"] == i] for i in (0, *learned)]
        for name in ("accuracy", "loss")
    }
    overlaps = [metrics.get(f"after_{i}/gradient_overlap") for i in learned]
    return found | {
        "gradient_overlap": [None if overlap is None else round(overlap, 5) for overlap in overlaps],
        "drift": [round(metrics[f"after_{i}/drift"], 5) for i in learned],
    }


def plain(rows: list[dict]) -> list[dict]:
    """The two columns that are scored."""
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def by_variant(rows: list[dict]) -> dict[str, list[dict]]:
    """The runs of every variant there is, in the table's order."""
    return {name: found for name in VARIANTS if (found := [row for row in rows if row["variant"] == name])}


def beside(rows: list[dict], name: str, runs: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of a run and the run of variant ``name`` with the same seed."""
    other = {row["seed"]: row for row in rows if row["variant"] == name}
    return [(run, other[run["seed"]]) for run in runs if run["seed"] in other]


def learned_lost(row: dict) -> float:
    """Forgetting of what was learned in the run alone: corpora 1 to 3, without what was known before."""
    table = row["accuracy"]
    return statistics.fmean(max(after[j] for after in table[j:4]) - table[4][j] for j in (1, 2, 3))


def rank_correlation(xs: list[float], ys: list[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties at their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]

    return statistics.correlation(ranks(xs), ranks(ys))


def overlaps(rows: list[dict]) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """By variant: gradient overlap while corpus k is learned, and what that costs on what came before it.

    The cost is the accuracy lost and the rise of the loss in nats per token, each a mean over the
    earlier corpora; column 0 is what was known before the first.
    """
    points: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for row in rows:
        found, lost, risen = points.setdefault(row["variant"], ([], [], []))
        for k, overlap in enumerate(row["gradient_overlap"], 1):
            if overlap is not None:
                found.append(overlap)
                lost.append(statistics.fmean(row["accuracy"][k - 1][j] - row["accuracy"][k][j] for j in range(k)))
                risen.append(statistics.fmean(row["loss"][k][j] - row["loss"][k - 1][j] for j in range(k)))
    return points


def correlations(rows: list[dict]) -> list[str]:
    """Spearman's rank correlations of overlap and drift with forgetting, by accuracy and by loss; a line each."""
    points = overlaps(rows)
    overlap, lost, risen = ([value for part in points.values() for value in part[i]] for i in range(3))
    if len(overlap) < 3:
        return []
    means = [[statistics.fmean(part[i]) for part in points.values() if part[0]] for i in range(3)]
    drift = [row["drift"][-1] for row in rows]
    measured = {
        f"overlap of gradients, accuracy lost by the corpus; {len(overlap)} corpora of all runs": (overlap, lost),
        "the same, rise of the loss by the corpus": (overlap, risen),
        f"overlap, accuracy lost; means of {len(means[0])} variants": (means[0], means[1]),
        "the same, rise of the loss": (means[0], means[2]),
        f"drift of hidden states at the end, forgetting; {len(drift)} runs": (
            drift,
            [row["forgetting"] for row in rows],
        ),
        "the same, forgetting by loss": (drift, [row["forgetting_loss"] for row in rows]),
    }
    lines = [f"- {what}: {rank_correlation(xs, ys):+.2f}" for what, (xs, ys) in measured.items()]
    return ["", "Spearman's rank correlation:", *lines]


def table(rows: list[dict]) -> str:
    """The figures by variant as Markdown, mean and standard deviation over seeds; below, the rank correlations."""
    lines = ["| variant | seeds | new | of naive's | forgetting | minus LoRA's | of corpora 1-3 | kept of naive's | "
             "old facts | changed: new | changed: stale | CPU s |", "|---" * 12 + "|"]  # fmt: skip
    for name, runs in by_variant(rows).items():
        naive, lora = beside(rows, "naive", runs), beside(rows, "lora", runs)
        cells = [
            spread([run["plasticity"] for run in runs]),
            spread([run["plasticity"] / other["plasticity"] for run, other in naive]),
            spread([run["forgetting"] for run in runs]),
            spread([run["forgetting"] - other["forgetting"] for run, other in lora]),
            spread([learned_lost(run) for run in runs], 2),
            spread([1 - run["forgetting"] / other["forgetting"] for run, other in naive], 2),
            *(spread([run[key] for run in runs], 2) for key in ("old_facts", "changed_new", "changed_stale")),
            f"{statistics.fmean(run['cpu_seconds'] for run in runs):.0f}",
        ]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    lines += correlations(rows)
    return "\n".join(lines)


def text_table(rows: list[dict]) -> str:
    """R of losses with the accuracies in brackets after every corpus, and what both come to; means over seeds."""
    lines = [f"| method | seeds | after | {' | '.join(TEXT_CORPORA)} |", "|---" * (3 + len(TEXT_CORPORA)) + "|"]
    found = {name: part for name in TEXT if (part := [row for row in rows if row["variant"] == name])}
    for name, part in found.items():
        for i, after in enumerate(("start", *TEXT_CORPORA)):
            if i == 0 and name != next(iter(found)):
                continue  # every method starts alike
            cells = [
                "{:.2f} ({:.2f})".format(
                    *(statistics.fmean(row[key][i][j] for row in part) for key in ("loss", "accuracy"))
                )
                for j in range(len(TEXT_CORPORA))
            ]
            lines.append(f"| {name if i else 'all'} | {len(part)} | {after} | {' | '.join(cells)} |")
    kinds = ("plasticity", "forgetting", "backward_transfer", "forward_transfer")
    lines += ["", f"| method | {' | '.join(kinds)} | CPU s |", "|---" * (2 + len(kinds)) + "|"]
    for name, part in found.items():
        cells = ["; ".join(spread([row[key] for row in part], 2) for key in (f"{kind}_loss", kind)) for kind in kinds]
        cost = statistics.fmean(row["cpu_seconds"] for row in part)
        lines.append(f"| {name} | {' | '.join(cells)} | {cost:.0f} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and, of several values, standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw(rows: list[dict], folder: Path) -> None:
    """The frontier of plasticity against forgetting, and heat maps of R."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    runs = by_variant(rows)
    at = {name: [[row[key] for row in part] for key in ("forgetting", "plasticity")] for name, part in runs.items()}
    figure, (wide, close) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(2, 3))
    families: dict[str, list[str]] = {}
    for name in at:
        families.setdefault(name.split(" ")[0] if "+" not in name else name, []).append(name)
    for number, (family, names) in enumerate(families.items()):
        (xs, ys), (dx, dy) = (
            [[measure(values) for values in axis] for axis in zip(*(at[n] for n in names))]
            for measure in (statistics.fmean, deviation)
        )
        style = {"color": COLOURS[number % len(COLOURS)], "markersize": 6, "markeredgecolor": "black", "linewidth": 1,
                 "marker": "osDv^P*Xp<>dh"[number % 13], "markeredgewidth": 0.4}  # fmt: skip
        line = "-" if len(names) > 1 else "none"
        wide.plot(xs, ys, linestyle=line, label=family, **style)
        close.errorbar(xs, ys, dy, dx, linestyle=line, elinewidth=0.6, **style)
        for name, x, y in zip(names, xs, ys, strict=True):
            if " " in name and "+" not in name and y > CLOSE:
                place = {"ewc": (-26, 4), "distillation": (5, -11)}.get(family, (5, 4))  # away from neighbours
                close.annotate(name.rpartition(" ")[2], (x, y), fontsize=8, xytext=place, textcoords="offset points")
    for axes in (wide, close):
        axes.set_xlabel("forgetting: accuracy lost on what came before")
        if "naive" in at:
            axes.axhline(0.95 * statistics.fmean(at["naive"][1]), color="grey", linestyle=":", linewidth=1)
    wide.set(ylabel="plasticity: accuracy on the new corpus", title="all")
    close.set(title="what learns; numbers are lambda, bars standard deviations", ylim=(CLOSE, 1.015))
    figure.legend(
        *wide.get_legend_handles_labels(), fontsize=8, loc="outside right upper", title="dotted: 95% of naive"
    )
    figure.savefig(folder / "continual_frontier.png", dpi=120)
    pyplot.close(figure)

    least = min(at, key=lambda name: statistics.fmean(at[name][0]))
    picked = [name for name in dict.fromkeys(("naive", "lora", "replay + distillation", least)) if name in at]
    figure, many = pyplot.subplots(
        1, len(picked), figsize=(3.4 * len(picked), 3.2), layout="constrained", squeeze=False
    )
    names = ["known", "1", "2", "3", "4"]
    for axes, variant in zip(many[0], picked, strict=True):
        tables = [row["accuracy"] for row in runs[variant]]
        mean = [[statistics.fmean(t[i][j] for t in tables) for j in range(5)] for i in range(5)]
        axes.imshow(mean, vmin=0, vmax=1, cmap="Blues")
        for i in range(5):
            for j in range(5):
                axes.text(
                    j, i, f"{mean[i][j]:.2f}", ha="center", va="center", color="white" if mean[i][j] > 0.6 else "black"
                )
        axes.set(title=variant, xlabel="evaluated on", xticks=range(5), yticks=range(5))
        axes.set_xticklabels(names)
        axes.set_yticklabels(["start", *names[1:]])
    many[0][0].set_ylabel("after corpus")
    figure.savefig(folder / "continual_matrix.png", dpi=120)
    pyplot.close(figure)


def deviation(values: list[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
