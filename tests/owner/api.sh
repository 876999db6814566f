#!/usr/bin/env bash
# Lets schemathesis at the API: `api.sh http://127.0.0.1:PORT TOKEN_FILE PYTHON_BIN_DIR`.
set -euo pipefail
base=$1 token=$(cat "$2") bin=$3
# The page refuses more than 30 requests a second of one address, which is tested elsewhere.
"$bin/schemathesis" run "$base/api/openapi.json" --url "$base" \
    --header "Authorization: Bearer $token" \
    --rate-limit 25/s --max-examples 25 --seed 7 --workers 1 --no-color \
    --exclude-checks unsupported_method
