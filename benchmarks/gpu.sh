#!/bin/sh
# All that a GPU can say, in at most eight minutes: `sh benchmarks/gpu.sh`, with DEVICE=cpu TINY=1 to try it.
# gpu.py needs no more than PyTorch with its usual company; latency.py and policy.py need LeRobot, too.
set -e
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda}
PRESET=official
[ -z "$TINY" ] || PRESET=smallest
export HF_HUB_OFFLINE=1
"$PYTHON" benchmarks/gpu.py --device="$DEVICE" ${TINY:+--tiny --eager --rounds=1}
if "$PYTHON" -c "import lerobot_policy_multismolvla" 2>/dev/null; then
  for dtype in float32 bfloat16; do
    "$PYTHON" benchmarks/latency.py --preset="$PRESET" --device="$DEVICE" --dtype="$dtype" --derived="[1, 2, 4, 8]" \
      --check=true --threads=0 --rounds=3 --output="outputs/benchmarks/latency-$DEVICE-$dtype.json"
  done
else
  echo "LeRobot and this package are not installed: no whole looks."
fi
