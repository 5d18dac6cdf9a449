#!/usr/bin/env bash
# The alert rules of docs/operations are rules, and fire in the scenes of tests/operations as these say. Takes
# promtool, which Debian has in its package "prometheus".
set -euo pipefail
cd "$(dirname "$0")/../.."

promtool check rules docs/operations/alerts.yaml
promtool test rules tests/operations/*.yaml
