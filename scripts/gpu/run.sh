#!/bin/sh
# Checks and measures selscan on this machine's GPU. Everything it needs lies beside it; nothing is installed or downloaded.
set -u

usage() {
  cat <<'END'
usage: run.sh [--quick] [--out DIR] [--device NAME] [--peer DIR] [ops|golden|models|sanitizer|bench|all]...

  ops        every op on the device against its f64 reference
  golden     cases made by the public reference implementations
  models     sessions, training and files; the demo says what it says on the cpu, training loses what it loses there
  sanitizer  replay files, each run plainly and then under memcheck, racecheck and synccheck of compute-sanitizer
  bench      times against the limits of the machine, appended to DIR/cuda.jsonl
  all        the five of them (default): at most 10 minutes, 3 with --quick

  --quick    less of everything
  --out      folder of logs, summary.txt and records (default: results, beside this script)
  --device   cuda (default), cuda:N, or emulated with SELSCAN_ADDON and SELSCAN_REPLAY of a developer's build;
             SELSCAN_BUNDLE_DEVICE means the same
  --peer     folder with state-spaces/mamba's compiled selective_scan_cuda, timed beside ours by python3 with torch
  --help     this text

COMPUTE_SANITIZER names that tool where it is not on the path. Exits 0 when everything asked for passed or could not be
run for want of a tool, 1 when something failed or there is no device, 2 for wrong arguments.
END
}

here=$(cd "$(dirname "$0")" && pwd)
device=${SELSCAN_BUNDLE_DEVICE:-cuda} out=$here/results quick='' peer='' parts='' failed=0
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick ;;
    --out | --device | --peer)
      [ $# -ge 2 ] || { echo "run.sh: $1: a value is expected after it" >&2; exit 2; }
      case $1 in --out) out=$2 ;; --device) device=$2 ;; --peer) peer=$2 ;; esac
      shift ;;
    --help) usage; exit 0 ;;
    ops | golden | models | sanitizer | bench) parts="$parts $1" ;;
    all) parts="$parts ops golden models sanitizer bench" ;;
    *) echo "run.sh: unknown word $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
[ -n "$parts" ] || parts="ops golden models sanitizer bench"

mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
[ -z "$peer" ] || peer=$(cd "$peer" && pwd) || exit 2
cd "$here" || exit 2
summary=$out/summary.txt
export DEVICE="$device" SELSCAN_REPLAY="${SELSCAN_REPLAY:-$here/selscan-replay}" COLUMNS=200
export CI=1 NO_COLOR=1

say() { printf '%s\n' "$1" | tee -a "$summary"; }

program() { ./node --import=./scripts/gpu/hook.js "$@"; }

# part NAME SECONDS COMMAND...: runs it within its time, keeps its log, and says how it ended in the summary. A command's
# last line is what there is to say; it exits with 3 for "not run".
part() {
  name=$1 limit=$2
  shift 2
  began=$(date +%s)
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  took=$(($(date +%s) - began))
  detail=$(grep -v '^ *$' "$out/$name.log" | tail -n 1 | sed 's/^ *//' | cut -c 1-300)
  case $status in
    0) verdict=passed ;;
    3) verdict='not run' ;;
    124 | 137) verdict=failed failed=1 detail="stopped after $limit s, see $name.log; $detail" ;;
    *) verdict=failed failed=1 detail="exit code $status, see $name.log; $detail" ;;
  esac
  say "$(printf '%-10s %-8s %4d s  %s' "$name" "$verdict" "$took" "$detail")"
  [ "$verdict" != failed ] || tail -n 40 "$out/$name.log" | sed 's/^/    /'
}

ava() { echo "./node --import=./scripts/gpu/hook.js node_modules/ava/entrypoints/cli.mjs"; }
# Seconds of each part: their sum is below 10 minutes, and 3 with --quick. The emulator, which is for trying this script,
# has ten times as long.
case $device in emulated) patience=10 ;; *) patience=1 ;; esac
seconds() { if [ -n "$quick" ]; then echo $(($2 * patience)); else echo $(($1 * patience)); fi; }

: >"$summary"
if ! ./node --version >/dev/null 2>"$out/about.log"; then
  say "this machine cannot run the Node of the bundle: $(tail -n 1 "$out/about.log"); Linux x64 with glibc 2.34 or newer is needed"
  exit 1
fi
# GPU, driver, date and commit; of a machine without a device, what is missing.
if ! program scripts/gpu/about.ts >"$out/about.log" 2>&1; then
  say "$(tail -n 1 "$out/about.log")"
  for name in $parts; do say "$(printf '%-10s not run: there is no device %s' "$name" "$device")"; done
  exit 1
fi
say "$(cat "$out/about.log")"

for name in $parts; do
  case $name in
    ops) part ops "$(seconds 140 45)" $(ava) 'test/ops.test.ts' 'test/ops/*.test.ts' test/contract.test.ts ;;
    golden)
      folders=test/golden/data
      [ ! -d golden ] || folders="$folders golden"
      part golden "$(seconds 50 15)" ./node --import=./scripts/gpu/hook.js test/golden/run.ts $folders --device "$device" ;;
    models)
      part sessions "$(seconds 60 20)" $(ava) test/on-device.test.ts 'test/generate/*.test.ts' test/train/train.test.ts
      part models "$(seconds 60 20)" ./node --import=./scripts/gpu/hook.js scripts/gpu/models.ts $quick ;;
    sanitizer)
      part sanitizer "$(seconds 105 30)" ./node --import=./scripts/gpu/hook.js scripts/gpu/replays.ts $quick --seconds "$(seconds 95 25)" ;;
    bench)
      part bench "$(seconds 150 35)" ./node --import=./scripts/gpu/hook.js bench/gpu.ts $quick --out "$out" --seconds "$(seconds 135 25)"
      [ -z "$peer" ] || part peer "$(seconds 20 15)" python3 scripts/gpu/peer.py "$peer" --out "$out/cuda.jsonl" ;;
  esac
done
if [ "$failed" = 0 ]; then say "everything that was run passed"; else say "something failed"; fi
exit "$failed"
