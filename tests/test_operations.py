"""What operators are given, the dashboard, the alert rules and the page about them, speaks of families,
labels, words and settings that there are. `tests/tools/check_operations.sh` tries the expressions themselves.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import headrace as hr
import pytest
import yaml

from families import AMBIENT, ROOT, families, problems, uses

OPERATIONS = ROOT / "docs" / "operations"
KNOWN = families()
PAGE = (OPERATIONS / "README.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((OPERATIONS / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((OPERATIONS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
SCENES: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "tests" / "operations").glob("*.yaml")
}
SOURCES = "".join(path.read_text() for path in (ROOT / "rust" / "core" / "src").rglob("*.rs"))


def in_full(expression: str) -> str:
    """An expression with what it takes of recorded ones written out."""
    for name, recorded in RECORDED.items():
        expression = expression.replace(name, f"({recorded})")
    assert "headrace:" not in expression, f"nothing records a part of {expression}"
    return expression


def anchors() -> set[str]:
    """Where links within the page can lead."""
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


EXPRESSIONS = [
    *[pytest.param(rule["expr"], id=rule.get("alert") or rule["record"]) for rule in RULES],
    *[pytest.param(target["expr"], id=f"{title}, {target['refId']}") for title, target in TARGETS],
    *[pytest.param(code, id=code) for code in re.findall(r"```promql\n(.*?)\n```", PAGE, re.DOTALL)],
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_use_families_and_labels_as_they_are_declared(expression):
    assert problems(in_full(expression), KNOWN) == []


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_words_that_expressions_look_for_are_counted_under(expression):
    for use in uses(in_full(expression), KNOWN):
        for label, value in use.matchers:
            for word in () if value.startswith("$") else value.split("|"):
                assert f'"{word}"' in SOURCES, f"no {label} is {word}"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("headrace_worker_requests_total", "under no function"),
        ("sum(headrace_worker_requests_total[5m])", "under sum"),
        ("rate(headrace_worker_ready_workers[5m])", "a gauge, under rate"),
        ("rate(headrace_batch_size[5m])", "headrace_batch_size is a histogram"),
        ("rate(headrace_batch_queued_items_sum[5m])", "is a gauge"),
        ('headrace_router_instances{endpoint="e"}', "headrace_router_instances has no label endpoint"),
        ("sum by (batcher) (headrace_cuda_streams)", "headrace_cuda_streams has no label batcher"),
        ("sum by (le) (rate(headrace_batch_size_count[5m]))", "headrace_batch_size has no label le"),
        ("headrace_cuda_streams / on (side) headrace_cuda_streams_limit", "nothing has the label side"),
    ],
)
def test_a_wrong_use_is_found(expression, problem):
    assert any(problem in found for found in problems(expression, KNOWN)), problems(expression, KNOWN)


def test_a_family_that_is_not_declared_is_found():
    with pytest.raises(AssertionError, match="there is no headrace_worker_request_total"):
        uses("rate(headrace_worker_request_total[5m])", KNOWN)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_why_and_leads_to_its_section(name):
    alert = ALERTS[name]
    assert name.startswith("Headrace")
    assert set(alert["labels"]) == {"severity"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page == "README.md"
    assert anchor in anchors()
    heading = next(part for part in PAGE.split("\n#") if slug_of(part) == anchor)
    assert name in heading, f"the section {anchor} does not speak of {name}"


def slug_of(part: str) -> str:
    """The anchor of a part of the page that begins with its heading."""
    return re.sub(r"[^\w\- ]", "", part.partition("\n")[0].lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_names_labels_that_it_has(name):
    expression = ALERTS[name]["expr"]
    named = set(re.findall(r"\$labels\.(\w+)", str(ALERTS[name]["annotations"])))
    grouped = re.match(
        r"[\s(]*\w+ by \(([^)]*)\)", in_full(expression).replace("histogram_quantile(0.99, ", "")
    )
    selected = set[str]().union(*(use.family.labels for use in uses(in_full(expression), KNOWN)), AMBIENT)
    assert named <= (set(re.findall(r"\w+", grouped[1])) - {"le"} if grouped else selected)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_scene_in_which_it_fires(name):
    checks = [
        check for file in SCENES.values() for test in file["tests"] for check in test["promql_expr_test"]
    ]
    fired = [sample["labels"] for check in checks for sample in check["exp_samples"]]
    assert any(f'alertname="{name}"' in labels for labels in fired)


def test_what_does_nothing_has_every_series_that_alerts_look_at():
    [idle, _] = SCENES["quiet"]["tests"]
    given = {series["series"].partition("{")[0] for series in idle["input_series"]}
    looked_at = {use.family.name + use.suffix for rule in RULES for use in uses(in_full(rule["expr"]), KNOWN)}
    assert looked_at <= given


def test_every_family_has_a_panel():
    shown = {use.family.name for _, target in TARGETS for use in uses(target["expr"], KNOWN)}
    assert shown == KNOWN.keys()


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_a_legend_names_labels_that_there_are(title, target):
    used = uses(target["expr"], KNOWN)
    labels = set[str]().union(*(use.labels for use in used), AMBIENT)
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, title


def test_the_dashboard_can_be_imported_anywhere():
    assert not {"id", "uid"} & DASHBOARD.keys()
    assert DASHBOARD["schemaVersion"] >= 39
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}", "-- Grafana --"}
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance", "endpoint", "batcher", "filters"}
    for variable in DASHBOARD["templating"]["list"]:
        query = variable.get("definition", "")
        for use in uses(query, KNOWN):
            assert {label for label, _ in use.matchers} <= use.labels
            assert query.endswith((", job)", ", instance)")) or variable["name"] in use.family.labels
    used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for _, target in TARGETS)))
    # Grafana adds filters to every expression by itself.
    assert used - {"__rate_interval"} == variables - {"datasource", "filters"}


def test_panels_lie_side_by_side():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert all(panel["description"] for panel in PANELS)


def test_the_page_speaks_of_panels_alerts_and_families_that_there_are():
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert set(re.findall(r"\*\*([^*]+)\*\*", PAGE)) <= titles
    assert set(re.findall(r"\bHeadrace[A-Z]\w+", PAGE)) == ALERTS.keys()
    for code in re.findall(r"headrace_\w+", PAGE):
        assert code in KNOWN or code.rpartition("_")[0] in KNOWN, code
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert links
    assert set(links) <= anchors()


def test_the_page_speaks_of_settings_that_there_are():
    functions = [hr.serve, hr.run, hr.Router, hr.Router.generate, hr.Batcher]
    settings = {name for function in functions for name in inspect.signature(function).parameters}
    named = set(re.findall(r"`(\w+)=`", PAGE))
    assert len(named) > 15
    assert named <= settings


def test_the_page_lists_every_family_as_it_is_declared():
    rows = [
        f"| `{family.name}` | {family.kind} | "
        f"{', '.join(f'`{label}`' for label in family.labels)} | {family.help} |".replace("|  |", "| |")
        for family in KNOWN.values()
    ]
    listed = [line for line in PAGE.splitlines() if line.startswith("| `headrace_")]
    assert listed == rows, "the table has to read\n" + "\n".join(rows)
