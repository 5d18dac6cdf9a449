"""Writes a scene for `promtool test rules` in which every family has values, and every panel of the dashboard
must show some. It finds what parsing cannot: sides that do not match, labels that are taken for others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from families import ROOT, Family, families

# Two processes, one of them under a parent. The labels that families declare are all "x".
PROCESSES = ({"instance": "a"}, {"instance": "b", "worker_process": "0"})
VARIABLES = {"$job": ".*", "$instance": ".*", "$endpoint": ".*", "$batcher": ".*", "$__rate_interval": "5m"}


def series(family: Family) -> list[dict[str, str]]:
    """A family's series, all of which move."""
    suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
    made: list[dict[str, str]] = []
    for process in PROCESSES:
        for suffix in suffixes:
            for bound in ("0.5", "+Inf") if suffix == "_bucket" else (None,):
                labels = {"job": "j", **process, **dict.fromkeys(family.labels, "x")}
                if bound is not None:
                    labels["le"] = bound
                pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
                made.append({"series": f"{family.name}{suffix}{{{pairs}}}", "values": "1+6x20"})
    return made


def checks(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """That each query of each panel has a value, and one that is a number."""
    made: list[dict[str, Any]] = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            shown = {"labels": "{}", "value": 1}
            query = f"count(({query}) > -1e9) > bool 0"
            made.append({"expr": query, "eval_time": "20m", "exp_samples": [shown]})
    return made


def main() -> None:
    """Print the scene; JSON is YAML."""
    up = [{"series": f'up{{job="j",instance="{name}"}}', "values": "1x20"} for name in "ab"]
    given = [line for family in families().values() for line in series(family)]
    dashboard = json.loads((ROOT / "docs" / "operations" / "dashboard.json").read_text())
    scene = {"interval": "1m", "input_series": up + given, "promql_expr_test": checks(dashboard)}
    print(json.dumps({"evaluation_interval": "1m", "tests": [scene]}, indent=1))


if __name__ == "__main__":
    main()
