#!/bin/sh
# Writes a card image to a card, and reads it back.
#
#   deploy/flash.sh IMAGE DEVICE
#
# IMAGE is a .img, or one compressed as .img.xz, .img.zst or .img.gz. DEVICE is a whole card, such
# as /dev/sdb or /dev/mmcblk0; a regular file works too, for trying out. Everything on it is lost.
# Refused are disks that are mounted, swapped on, part of a running system, or too small; then the
# size must be typed back, since a slip of one letter is a lost disk.
set -eu

die() { printf 'flash: %s\n' "$*" >&2; exit 1; }

[ $# -eq 2 ] || die "usage: $0 IMAGE DEVICE"
image=$1 device=$2
[ -f "$image" ] || die "$image is not a file"

case $image in
    *.xz) unpack() { xz -dc -- "$image"; } ;;
    *.zst) unpack() { zstd -dcq -- "$image"; } ;;
    *.gz) unpack() { gzip -dc -- "$image"; } ;;
    *.img) unpack() { cat -- "$image"; } ;;
    *) die "$image is no .img, .img.xz, .img.zst or .img.gz" ;;
esac

if [ -f "$(dirname -- "$image")/SHA256SUMS" ]; then
    (cd "$(dirname -- "$image")" && grep -- " [ *]*$(basename -- "$image")\$" SHA256SUMS | sha256sum -c --quiet) ||
        die "$image is not the one in SHA256SUMS; fetch it again"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
# Its size and hash, unpacked, in one pass.
mkfifo "$work/pipe"
wc -c <"$work/pipe" >"$work/bytes" &
unpack 2>"$work/error" | tee "$work/pipe" | sha256sum >"$work/sha256"
wait
bytes=$(tr -d ' ' <"$work/bytes")
wanted=$(cut -d' ' -f1 "$work/sha256")
[ ! -s "$work/error" ] || die "$image cannot be unpacked: $(cat "$work/error")"
[ "$bytes" -gt 0 ] || die "$image holds nothing"

# Follows links, so that /dev/disk/by-id/... is judged by what it stands for.
real=$(readlink -f -- "$device") || die "$device is not there"
if [ -b "$real" ]; then
    name=$(basename -- "$real")
    [ -e "/sys/class/block/$name" ] || die "$real is not known to the kernel"
    [ ! -e "/sys/class/block/$name/partition" ] ||
        die "$real is one partition; name the whole disk"
    # The disk, its partitions, and whatever is built on them.
    for part in $(lsblk -nrpo NAME -- "$real" 2>/dev/null || printf '%s\n' "$real"); do
        while read -r source place _; do
            [ "$(readlink -f -- "$source" 2>/dev/null)" != "$part" ] ||
                die "$part is mounted on $place; unmount it if it is the card"
        done </proc/self/mounts
        while read -r source _; do
            [ "$source" != "$part" ] || die "$part is swapped on"
        done </proc/swaps
    done
    for place in / /boot /boot/firmware /usr /home /var; do
        [ -d "$place" ] || continue
        source=$(findmnt -nro SOURCE --target "$place" 2>/dev/null | sed 's/\[.*//') || continue
        [ -b "$source" ] || continue
        for below in $(lsblk -nrspo NAME -- "$source" 2>/dev/null); do
            [ "$below" != "$real" ] || die "$real holds $place of this running system"
        done
    done
    size=$(($(cat "/sys/class/block/$name/size") * 512))
    removable=$(cat "/sys/class/block/$name/removable" 2>/dev/null || echo 0)
    what="$(cat "/sys/class/block/$name/device/model" 2>/dev/null || echo card) "
    [ "$removable" = 1 ] || what="${what}(not marked removable) "
elif [ -f "$real" ]; then
    size=$(stat -c %s -- "$real")
    what="file "
    if command -v losetup >/dev/null && [ -n "$(losetup -nO NAME -j "$real" 2>/dev/null)" ]; then
        die "$real is in use by a loop device"
    fi
else
    die "$device is neither a disk nor a file"
fi
[ "$size" -ge "$bytes" ] || die "$real has $size bytes, the image needs $bytes"

megabytes=$((size / 1000000))
printf '%s%s: %s MB. All of it will be lost.\n' "$what" "$real" "$megabytes"
printf 'Type its size in MB to go on: '
read -r typed || typed=
[ "$typed" = "$megabytes" ] || die "that is not its size; nothing was written"

unpack | dd of="$real" bs=4M conv=fsync,notrunc iflag=fullblock status=none ||
    die "writing failed; the card is not usable"
# What is read must come from the card, not from memory.
if [ -b "$real" ]; then
    blockdev --flushbufs "$real" 2>/dev/null || true
fi
dd if="$real" iflag=nocache count=0 status=none 2>/dev/null || true
got=$(head -c "$bytes" -- "$real" | sha256sum | cut -d' ' -f1)
[ "$got" = "$wanted" ] || die "what was read back differs: the card is bad or the writer is"
printf 'Written and read back: %s bytes are as in %s.\n' "$bytes" "$image"
