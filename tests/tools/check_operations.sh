#!/usr/bin/env bash
# The alert rules of docs/operations fire in the scenes of tests/operations as these say, and each panel of the
# dashboard has something to show. Takes promtool, which Debian has in its package "prometheus".
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

promtool check rules docs/operations/alerts.yaml
promtool test rules tests/operations/*.yaml
python3 tests/tools/dashboard_scene.py >"$work/dashboard.yaml"
promtool test rules "$work/dashboard.yaml"
