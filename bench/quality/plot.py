# SPDX-License-Identifier: Apache-2.0
"""plot: error and captured mass against budget, and next tokens against bytes, from quality.json.

    plot.py FOLDER          reads FOLDER/quality.json, writes FOLDER/*.png"""

import json
import os
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

# In the order of the legend: methods of a line, its name, colour and dashes. What has one budget of its
# own is a point.
LINES = (
    (("oracle",), "exact top-k tokens", "black", "--"),
    (("oracle_heads",), "exact top-k tokens, each head its own", "black", ":"),
    (("quest",), "Quest, pages of 16", "tab:olive", "-"),
    (("pages",), "pages of 16, mean key", "tab:gray", "-"),
    (("clusterkv",), "ClusterKV", "tab:red", "-"),
    (("retroinfer_published", "retroinfer"), "RetroInfer, 23.2 % estimated", "tab:orange", "-"),
    (("centroid_8", "centroid_5", "centroid_4", "centroid_2"), "CentroidKV, 1/8 to 1/2", "tab:purple", "-"),
    (("clusters",), "CLUSTERS", "tab:cyan", "-"),
    (("clusters_rescored",), "CLUSTERS, rescored", "tab:cyan", "--"),
    (("mixed1",), "MIXED, first order", "tab:green", "-"),
    (("mixed1_rescored",), "MIXED, first order, rescored", "tab:green", "--"),
    (("mixed2",), "MIXED, second order", "tab:blue", "-"),
    (("mixed2_rescored",), "MIXED, second order, rescored", "tab:blue", "--"),
)


def lines(entries, text, column):
    """(label, colour, dashes, budgets, values) of each line on an input."""
    for methods, label, colour, dashes in LINES:
        points = sorted((entry["percent"], entry[column]) for entry in entries
                        if entry["input"] == text and entry["method"] in methods and not entry["variant"]
                        and column in entry)
        if points:
            yield label, colour, dashes, [p[0] for p in points], [p[1] for p in points]


def draw(entries, column, title, log, path):
    texts = [text for text in dict.fromkeys(entry["input"] for entry in entries)
             if any(entry["input"] == text and column in entry for entry in entries)]
    if not texts:
        return
    figure, places = plt.subplots(1, len(texts), figsize=(2 + 5 * len(texts), 5.5), sharey=True, squeeze=False)
    for place, text in zip(places[0], texts):
        for label, colour, dashes, budgets, values in lines(entries, text, column):
            place.plot(budgets, values, dashes, color=colour, label=label, marker="o", markersize=4)
        place.set_title(text)
        place.set_xscale("log")
        place.set_xticks([2, 5, 10, 20, 50])
        place.set_xticklabels(["2", "5", "10", "20", "50"])
        place.xaxis.set_minor_formatter(NullFormatter())
        place.set_xlabel("rows that are exact or merged, % of the context")
        place.grid(alpha=0.3)
        if log:
            place.set_yscale("log")
            place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            place.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            place.yaxis.set_minor_formatter(NullFormatter())
    places[0][0].set_ylabel(title)
    places[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "quality.json"), encoding="utf-8") as file:
        entries = json.load(file)
    for column, title, log in (("error", "relative error of the output, mean", True),
                               ("error_p95", "relative error of the output, 95th percentile", True),
                               ("mass", "part of full attention on exact tokens", False),
                               ("kl", "KL divergence from full attention, nats", True)):
        draw([entry for entry in entries if entry["method"] != "full"], column, title, log,
             os.path.join(folder, column + ".png"))


if __name__ == "__main__":
    main()
