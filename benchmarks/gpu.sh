#!/bin/sh
# All that a GPU can say, in at most eight minutes: `sh benchmarks/gpu.sh`, with DEVICE=cpu TINY=1 to try it.
# gpu.py needs no more than PyTorch with its usual company; latency.py and policy.py need LeRobot, too.
# What fails, or is not done in its time, makes the exit code 1 and keeps nothing else from being measured.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda}
END=$(($(date +%s) + ${LIMIT:-465}))
PRESET=official
[ -z "$TINY" ] || PRESET=smallest
export HF_HUB_OFFLINE=1
status=0

# A command within an n-th of the time that is left.
within() {
  seconds=$((END - $(date +%s)))
  [ "$seconds" -ge "$1" ] || seconds=$1
  seconds=$((seconds / $1))
  shift
  timeout -k 5 "$seconds" "$@" && return
  echo "$2: exit code $?, of which 124 and 137 say that it was not done in $seconds s."
  status=1
}

within 2 "$PYTHON" benchmarks/gpu.py --device="$DEVICE" ${TINY:+--tiny --eager --rounds=1}
FIND="from importlib.util import find_spec as f; exit(not (f('lerobot') and f('lerobot_policy_multismolvla')))"
if "$PYTHON" -c "$FIND"; then
  share=2
  for dtype in float32 bfloat16; do
    within $share "$PYTHON" benchmarks/latency.py --preset="$PRESET" --device="$DEVICE" --dtype="$dtype" \
      --derived="[1, 2, 4, 8]" --check=true --threads=0 --rounds=3 \
      --output="outputs/benchmarks/latency-$DEVICE-$dtype.json"
    share=1
  done
else
  echo "LeRobot and this package are not installed: no whole looks."
fi
exit $status
