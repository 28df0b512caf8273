#!/bin/bash
# A real systemd to test against: boots one in a systemd-nspawn container, on a
# host that needs no systemd of its own. `tests/rig/mod.rs` drives it; by hand:
#
#   rig.sh boot m --bind-ro=/bin/true:/usr/bin/aspen-node
#   rig.sh exec m bash
#   rig.sh clean m
#
# or several that reach each other, and are reached from the shell that boots them:
#
#   unshare --net bash
#   rig.sh bridge
#   rig.sh boot a --address=10.0.0.1
#   rig.sh boot b --address=10.0.0.2
#   curl http://10.0.0.1:8080/health
#
# A machine is one sparse disk image: ext4, in a loop device. It holds what the
# machine changes of the shared root (an overlay) and, without an overlay in
# between, /var/lib/aspen. So a power cut loses exactly what was not synced.
#
# A machine's mounts live in a mount namespace of its own and its processes in
# a cgroup of its own. Killing that cgroup therefore undoes everything but
# files, whoever died before; and two machines cannot mix up their processes.
#
# Its network is a loopback interface and, with an address, a cable to the bridge
# in the network namespace of whoever boots it. That namespace has no name and is
# gone with the last process in it, and the bridge and the cables with it. What
# does have a name for all the host (cgroups, nspawn's machines) has it by the
# directory of the machine, so that those of other target directories differ.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
base=$target/systemd-root
rig=$target/systemd-rig

die() { echo "rig: $*" >&2; exit 1; }

# Waits until a command succeeds. Nothing is measured: the bound only turns a
# hang into a failure.
await() {
  local n
  for ((n = 0; n < 1200; n++)); do "$@" && return; sleep 0.05; done
  return 1
}

# need: says on one line why this host cannot run machines, if it cannot.
need() {
  local c why=()
  [ "$(id -u)" = 0 ] || why+=("not root")
  for c in debootstrap systemd-nspawn nsenter unshare ip findmnt flock losetup mkfs.ext4 pgrep perl; do
    command -v $c >/dev/null || why+=("no $c")
  done
  [ -e /dev/loop-control ] || why+=("no loop devices")
  [ -n "$(cgroups)" ] || why+=("no cgroup2 hierarchy")
  [ ${#why[@]} = 0 ] || { (IFS=,; echo "${why[*]}"); return 1; }
}

# root: makes the root that all machines share, once. It has the suite of the
# host, because it runs programs that were built here. `made` comes last and
# names what it was made from, so that half a root, or another one, is not used.
root() {
  local suite=bookworm packages=systemd,systemd-sysv,dbus,curl,sqlite3,procps,logrotate,needrestart,rpm made new
  # shellcheck disable=SC1091
  [ "$(. /etc/os-release; echo "$ID")" != debian ] || suite=$(. /etc/os-release; echo "$VERSION_CODENAME")
  made="$suite $packages"
  mkdir -p "$target"
  exec 9>"$base.lock"
  flock 9
  [ "$(cat "$base/made" 2>/dev/null)" != "$made" ] || return 0
  new=$base.new
  rm -rf "$base" "$new"
  debootstrap --variant=minbase --include=$packages "$suite" "$new" >"$base.log" 2>&1 ||
    die "debootstrap failed; see $base.log"
  # Makes each machine choose its own identity when it boots.
  : >"$new/etc/machine-id"
  echo "$made" >"$new/made"
  mv "$new" "$base"
}

# What tells the machine from all others of this host.
unique() { printf %s "$rig/$1" | cksum | cut -d' ' -f1; }

# The machine's cgroups: cgroup2 first, then, on a hybrid host, systemd's own v1
# hierarchy, by which nspawn would otherwise take two machines for one.
cgroups() {
  findmnt -rno TARGET -t cgroup2 | head -n 1
  findmnt -rno TARGET,OPTIONS -t cgroup | awk '$2 ~ /name=systemd/ {print $1}' | head -n 1
}
cgroup_dirs() { cgroups | sed "s|\$|/aspen-rig-$(unique "$1")|"; }
cgroup2() { cgroup_dirs "$1" | head -n 1; }

# Dead is: nobody in the cgroup, and the disk unmounted, so that it can be mounted again.
alive() { grep -qs 'populated 1' "$(cgroup2 "$1")/cgroup.events"; }
dead()  { ! alive "$1" && [ -z "$(losetup -j "$rig/$1/disk.img")" ]; }

# bridge: makes the network that machines with an address are connected to. It lives in the
# caller's network namespace, which must be one of its own: the host's is not to be changed.
bridge() {
  # A new one holds nothing but lo.
  [ "$(ip -o link | wc -l)" = 1 ] || die "this network namespace is in use; run: unshare --net"
  ip link set lo up
  ip link add machines type bridge
  ip address add 10.0.0.254/24 dev machines
  ip link set machines up
}

# boot NAME [--address=10.0.0.N] [NSPAWN-ARGUMENT...]: returns when systemd has finished booting.
boot() {
  local name=$1 d=$rig/$1 address=; shift
  case ${1:-} in --address=*) address=${1#*=}; shift ;; esac
  root
  mkdir -p "$d/disk" "$d/root"
  dead "$name" || die "$name is still running"
  if [ ! -f "$d/disk.img" ]; then
    truncate -s 2G "$d/disk.new"
    mkfs.ext4 -qF "$d/disk.new"
    mv "$d/disk.new" "$d/disk.img"
  fi
  cgroup_dirs "$name" | xargs mkdir -p
  rm -f "$d/leader"
  unshare --mount --propagation private --net "$BASH" "${BASH_SOURCE[0]}" inside "$name" $$ "$address" "$@" \
    </dev/null >"$d/console.log" 2>&1 9>&- &
  echo $! >"$d/nspawn"
  await booted "$name" || { cat "$d/console.log" >&2; die "$name did not boot"; }
  # A unit that failed makes this fail; whether that matters is for the test to say.
  run "$name" systemctl is-system-running --wait >/dev/null || true
}
booted() {
  local leader
  leader=$(pgrep -P "$(cat "$rig/$1/nspawn")") || return 1
  [ -S "/proc/$leader/root/run/systemd/private" ] || return 1
  echo "$leader" >"$rig/$1/leader"
}

# inside NAME PID ADDRESS ...: the part of boot that runs in the machine's own namespaces; PID is boot.
inside() {
  local name=$1 d=$rig/$1 boot=$2 address=$3 c; shift 3
  for c in $(cgroup_dirs "$name"); do echo $$ >"$c/cgroup.procs"; done
  # The machine itself may not: nspawn leaves a network that it has not made to its maker.
  ip link set lo up
  [ -z "$address" ] || plug "$name" "$boot" "$address"
  mount -o loop "$d/disk.img" "$d/disk"
  mkdir -p "$d"/disk/{upper,work,aspen}
  mount -t overlay overlay -o "lowerdir=$base,upperdir=$d/disk/upper,workdir=$d/disk/work" "$d/root"
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn -q -b -D "$d/root" \
    -M "aspen-$(unique "$name")" \
    --register=no --keep-unit --network-namespace-path=/proc/self/ns/net --console=read-only \
    --link-journal=no --resolv-conf=off --timezone=off \
    --bind="$d/disk/aspen:/var/lib/aspen" "$@"
}

# plug NAME PID ADDRESS: a cable from this network namespace to the bridge in that of process PID.
plug() {
  local there=(nsenter -t "$2" -n --)
  # Its machine may have died just now: the kernel takes a while to forget it.
  "${there[@]}" ip link delete "$1" 2>/dev/null || true
  # An address of the link that a reboot does not change: nobody has to find out.
  # shellcheck disable=SC2086
  ip link add host0 address "$(printf '02:00:%02x:%02x:%02x:%02x' ${3//./ })" type veth peer name "$1" netns "$2"
  "${there[@]}" ip link set "$1" master machines up
  ip address add "$3/24" dev host0
  ip link set host0 up
}

# exec NAME COMMAND...: runs it in the machine, with nothing of our environment.
run() {
  local leader
  leader=$(cat "$rig/$1/leader") || die "$1 is not running"
  shift
  nsenter -t "$leader" -m -u -i -n -p -r -w -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 TERM=dumb SYSTEMD_PAGER=cat "$@"
}

# off NAME: an orderly shutdown, as for a reboot.
off() {
  run "$1" systemctl poweroff
  await dead "$1" || die "$1 does not power off"
}

# cut NAME: a power cut. The shutdown ioctl (EXT4_IOC_SHUTDOWN, NOLOGFLUSH) makes the disk
# stop taking writes at one instant, under running programs, without a last flush.
power_cut() {
  nsenter -t "$(cat "$rig/$1/nspawn")" -m perl -e \
    'my $how = pack("L", 2); open(DISK, "<", $ARGV[0]) && ioctl(DISK, 0x8004587D, $how) or die "cut: $!\n"' "$rig/$1/disk"
  stop "$1"
}

stop() {
  ! alive "$1" || echo 1 >"$(cgroup2 "$1")/cgroup.kill"
  await dead "$1" || die "$1 does not die"
}

# clean [NAME...]: removes these machines, or all, whatever state they are in.
clean() {
  local name c
  [ $# -gt 0 ] || set -- $(ls "$rig" 2>/dev/null)
  for name in "$@"; do
    [ -d "$rig/$name" ] || continue
    stop "$name"
    for c in $(cgroup_dirs "$name"); do [ ! -d "$c" ] || find "$c" -depth -type d -exec rmdir {} +; done
    rm -rf --one-file-system "${rig:?}/$name"
  done
}

verb=${1:-}
case $verb in
  need | root | bridge | boot | inside | off | clean) shift; "$verb" "$@" ;;
  exec) shift; run "$@" ;;
  cut) shift; power_cut "$@" ;;
  *) die "usage: rig.sh need | root | bridge | boot NAME [--address=IP] [ARG...] | exec NAME COMMAND... | off NAME | cut NAME | clean [NAME...]" ;;
esac
