#!/bin/sh
# Installs Pawlatch on a Pi, a Jetson or another Debian machine that is already there.
#
#   deploy/install.sh [--dry-run] pawlatch_VERSION_ARCH.deb
#   deploy/install.sh --uninstall [--purge] [--dry-run]
#
# Says what it finds, and does nothing that it has not said. Run again, it changes nothing that is
# as it should be. With --dry-run it only looks. Uninstalling keeps configuration and events;
# --purge removes them too.
set -eu

say() { printf '%s\n' "$*"; }
warn() { printf 'note: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

# Where the system is; another one only for tests.
root=${PAWLATCH_ROOT:-}
dry=false uninstall=false purge=false deb=
for argument; do
    case $argument in
        --dry-run) dry=true ;;
        --uninstall) uninstall=true ;;
        --purge) purge=true ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '$d'; exit 0 ;;
        -*) die "unknown option $argument" ;;
        *) [ -z "$deb" ] || die "one package, please"; deb=$argument ;;
    esac
done

run() {
    if $dry; then say "would run: $*"; else "$@"; fi
}

installed() {
    dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${db:Status-Status} ${Version}' pawlatch 2>/dev/null ||
        say none
}

if ! $dry && [ "$(id -u)" != 0 ]; then
    die "installing needs root: sudo $0 $*"
fi
command -v dpkg >/dev/null || die "this is not a Debian system; unpack the .tar.gz by hand (docs/deploy.md)"

if $uninstall; then
    [ -z "$deb" ] || die "--uninstall takes no package"
    case $(installed) in
        none* | not-installed*) say "Pawlatch is not installed."; exit 0 ;;
        config-files*) $purge || { say "Pawlatch is removed already; --purge removes its files."; exit 0; } ;;
    esac
    if $purge; then
        say "Removing Pawlatch with its configuration, events and pictures."
        run apt-get purge -y pawlatch
    else
        say "Removing Pawlatch. Configuration and events stay; --purge would remove them."
        run apt-get remove -y pawlatch
    fi
    exit 0
fi

[ -n "$deb" ] || die "which package? usage: $0 [--dry-run] pawlatch_VERSION_ARCH.deb"
[ -f "$deb" ] || die "$deb is not a file"
[ "$(dpkg-deb -f "$deb" Package 2>/dev/null)" = pawlatch ] || die "$deb is not a package of Pawlatch, or damaged"
version=$(dpkg-deb -f "$deb" Version)

sums=$(dirname -- "$deb")/SHA256SUMS
if [ -f "$sums" ]; then
    (cd "$(dirname -- "$deb")" && grep -- " [ *]*$(basename -- "$deb")\$" SHA256SUMS | sha256sum -c --quiet) ||
        die "$deb is not the one in SHA256SUMS; fetch it again"
    say "Package: $(basename -- "$deb"), as in SHA256SUMS."
fi

# The board.
model=
if [ -r "$root/proc/device-tree/model" ]; then
    model=$(tr -d '\0' <"$root/proc/device-tree/model")
fi
case $model in
    "Raspberry Pi 5"* | "Raspberry Pi 4"* | "Raspberry Pi Compute Module 4"* | "Raspberry Pi Compute Module 5"* | "Raspberry Pi 3"* | "Raspberry Pi Zero 2"*)
        say "Board: $model." ;;
    "Raspberry Pi"*) die "$model is too slow for the networks; a Pi 3, 4, 5 or Zero 2 W is needed" ;;
    *Jetson* | *Orin* | *NVIDIA*) say "Board: $model (camera through GStreamer: docs/deploy.md)." ;;
    "") say "Board: unknown; that is fine if it has lines and a camera." ;;
    *) say "Board: $model; not tried, it should work if it has lines and a camera." ;;
esac

# The system.
here=$(dpkg --admindir="$root/var/lib/dpkg" --print-architecture)
theirs=$(dpkg-deb -f "$deb" Architecture)
if [ "$here" != "$theirs" ]; then
    die "the package is for $theirs, this system is $here: fetch the one for $here"
fi
name=unknown
if [ -r "$root/etc/os-release" ]; then
    name=$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$root/etc/os-release")
fi
say "System: $name, $here."
libc=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Version}' libc6 2>/dev/null || true)
if [ -n "$libc" ]; then
    dpkg --compare-versions "$libc" ge 2.34 ||
        die "the C library is $libc, 2.34 is needed: Raspberry Pi OS of 2023 (bookworm), Debian 12, Ubuntu 22.04 or newer"
fi
[ -d "$root/run/systemd/system" ] || warn "systemd does not run here; the door is not started by itself"

# Room for the package, and for events.
free_mb=$(df -Pm "$root/var" | awk 'NR == 2 { print $4 }')
[ "$free_mb" -ge 200 ] || die "$root/var has $free_mb MB free; 200 MB are needed"
[ "$free_mb" -ge 3000 ] || warn "$root/var has $free_mb MB free; set journal.budget_mb below that"
memory_mb=$(awk '/^MemTotal:/ { print int($2 / 1024) }' "$root/proc/meminfo" 2>/dev/null || echo 0)
[ "$memory_mb" -ge 400 ] || warn "$memory_mb MB of memory are little for the networks"

# What the door looks through, and what it moves.
cameras=
for node in "$root"/dev/video[0-9]*; do
    [ -e "$node" ] && cameras="$cameras ${node#"$root"}"
done
if [ -n "$cameras" ]; then
    say "Cameras:$cameras."
elif command -v rpicam-vid >/dev/null || command -v libcamera-vid >/dev/null; then
    say "Camera: through rpicam-vid."
else
    warn "no camera is found; connect one before the door is started"
fi
lines=
for node in "$root"/dev/gpiochip[0-9]*; do
    [ -e "$node" ] && lines="$lines ${node#"$root"}"
done
if [ -n "$lines" ]; then
    say "Lines:$lines."
else
    warn "no GPIO chip is found; the latch needs one"
fi

case $(installed) in
    "installed $version") say "Pawlatch $version is installed already."; exit 0 ;;
    installed*) say "Installed is $(installed | cut -d' ' -f2); it becomes $version. The configuration stays." ;;
    *) say "Installing Pawlatch $version." ;;
esac
# By path, or apt would take it for a name.
path=$(readlink -f -- "$deb")
run apt-get install -y --allow-downgrades "$path"
if ! $dry; then
    say "Now set camera and latch in /etc/pawlatch/pawlatch.toml, then:"
    say "  pawlatch check --config /etc/pawlatch/pawlatch.toml"
    say "  systemctl start pawlatch"
fi
