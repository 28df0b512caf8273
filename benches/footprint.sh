#!/bin/bash
# What a node costs that does nothing, beside Debian's etcd-server: the size of the package, packed and
# installed, memory when idle, and the time from exec until it serves. Needs no root:
#
#   packaging/build deb && benches/footprint.sh
#
# Both are unpacked and started by hand, alone, each with an empty directory of its own. "Serves" is
# /readyz of ours and /health of etcd: either wants a leader. Medians of starts on data that is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target/bench-data/footprint
starts=11
idle=10 # seconds

die() { echo "footprint: $*" >&2; exit 1; }
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true' EXIT

# serves PORT PATH: one request, by the shell itself, so that asking costs little.
serves() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&3
  IFS= read -r line <&3 || line=
  exec 3>&-
  [[ $line == *" 200 "* ]]
} 2>/dev/null

# start PORT PATH COMMAND...: returns when it serves; the milliseconds are in $took.
start() {
  local port=$1 path=$2 begin; shift 2
  begin=${EPOCHREALTIME/./}
  "$@" >"$work/output" 2>&1 &
  pid=$!
  until serves "$port" "$path"; do kill -0 "$pid" 2>/dev/null || die "$1 ended: $(tail -n 3 "$work/output")"; done
  took=$(((${EPOCHREALTIME/./} - begin) / 100))
}
stop() { kill "$pid"; wait "$pid" || true; pid=; }

median() { sort -n | sed -n "$((starts / 2 + 1))p"; }
tenths() { echo "$(($1 / 10)).$(($1 % 10))"; }
mib() { tenths $(($1 * 10 / 1024)); } # of KiB

# measure NAME PACKAGE PORT PATH PROGRAM...: a row of the table. The directory is the command's last word.
measure() {
  local name=$1 package=$2 port=$3 path=$4 n times pss private; shift 4
  rm -rf "$work/data"
  mkdir -p "$work/data"
  start "$port" "$path" "$@"
  sleep $idle
  pss=$(sed -n 's/^Pss: *\([0-9]*\) kB/\1/p' "/proc/$pid/smaps_rollup")
  stop
  times=$(for ((n = 0; n < starts; n++)); do start "$port" "$path" "$@"; stop; echo "$took"; done)
  printf '| %s | %s MiB | %s MiB | %s MiB | %s ms |\n' "$name" \
    "$(mib $(($(stat -c %s "$package") / 1024)))" "$(mib "$(dpkg-deb -f "$package" Installed-Size)")" \
    "$(mib "$pss")" "$(tenths "$(median <<<"$times")")"
}

ours=$(ls "$target"/packages/aspen_*.deb 2>/dev/null) || die "no package: packaging/build deb"
rm -rf "$work"
mkdir -p "$work"
(cd "$work" && apt-get -qq download etcd-server) || die "no etcd-server to be had: apt-get update"
theirs=$(ls "$work"/etcd-server_*.deb)
dpkg-deb -x "$ours" "$work/aspen"
dpkg-deb -x "$theirs" "$work/etcd"

printf '| | package | installed | idle memory (PSS) | start |\n|---|---|---|---|---|\n'
# A port of its own, so that a node of the host is not in the way.
measure aspen "$ours" 18080 /readyz env -i ASPEN_CONFIG=/dev/null "$work/aspen/usr/bin/aspen-node" \
  --http-addr 127.0.0.1:18080 --data-dir "$work/data"
measure "etcd-server $(dpkg-deb -f "$theirs" Version)" "$theirs" 18081 /health env -i "$work/etcd/usr/bin/etcd" \
  --listen-client-urls http://127.0.0.1:18081 --advertise-client-urls http://127.0.0.1:18081 \
  --listen-peer-urls http://127.0.0.1:18082 --initial-advertise-peer-urls http://127.0.0.1:18082 \
  --initial-cluster default=http://127.0.0.1:18082 --data-dir "$work/data"
