#!/usr/bin/env bash
# The guest: one initramfs with systemd, the program as it is shipped, and the world around it.
# usage: guest.sh PROGRAM FRAMES_DIR   (CROSS as for prepare.sh); run in the project's root
# ORDEAL: the program with the feature `ordeal`; DEB: the package. Without them the proofs that
# need them are left out.
set -euo pipefail
ARCH=${ARCH:-arm64}
case $ARCH in arm64) TOOLS=aarch64-linux-gnu- ;; amd64) TOOLS= ;; esac
CROSS=${CROSS:?}; PROGRAM=${1:?}; FRAMES=${2:?}; HERE=$PWD
G=$CROSS/guest/$ARCH K=$CROSS/kern/$ARCH; R=$G/root KV=$(cat "$K/kver")
rm -rf "$R"
mkdir -p "$R"/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$R/$dir"; done
for deb in "$G"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar x -C "$R" --keep-directory-symlink \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
        --exclude='./usr/share/locale/*' --exclude='./usr/share/i18n/*' \
        --exclude='./usr/share/perl/*' --exclude='./usr/lib/udev/hwdb.d/*'
done

# What the packages' scripts would have done.
cp "$R/usr/share/base-passwd/passwd.master" "$R/etc/passwd"
cp "$R/usr/share/base-passwd/group.master" "$R/etc/group"
: > "$R/etc/shadow"; : > "$R/etc/fstab"; : > "$R/etc/machine-id"; echo door > "$R/etc/hostname"
n=900
for group in kvm render sgx netdev systemd-journal; do
    grep -q "^$group:" "$R/etc/group" || echo "$group:x:$((n++)):" >> "$R/etc/group"
done
ln -sf bash "$R/usr/bin/sh"; ln -sf gawk "$R/usr/bin/awk"; ln -sf usr/lib/systemd/systemd "$R/init"
U=$R/etc/systemd/system
for unit in systemd-hwdb-update ldconfig systemd-firstboot systemd-journal-catalog-update \
    systemd-update-done systemd-pcrphase systemd-pcrphase-sysinit getty@tty1 systemd-timesyncd \
    systemd-rfkill e2scrub_reap systemd-logind systemd-user-sessions systemd-networkd \
    serial-getty@ttyS0 serial-getty@ttyAMA0 console-getty; do
    ln -sf /dev/null "$U/$unit.service"
done
mkdir -p "$U"/{multi-user,sysinit}.target.wants
ln -sf /usr/lib/systemd/system/multi-user.target "$U/default.target"

# Kernel modules with what they depend on.
MD=$R/usr/lib/modules/$KV
mkdir -p "$MD"
cp "$K/root/lib/modules/$KV"/modules.{builtin,builtin.modinfo,order} "$MD/"
for module in vivid gpio-sim v4l2loopback configfs virtio_blk virtio_pci virtio_mmio ext4 \
    virtio_console; do
    modprobe -d "$K/root" -S "$KV" --show-depends "$module" | awk '/^insmod/{print $2}'
done | sort -u | while read -r file; do
    relative=${file#*lib/modules/$KV/}
    install -Dm644 "$K/root/lib/modules/$KV/$relative" "$MD/$relative"
done
depmod -b "$R" "$KV"

# The program, exactly as a package would install it.
install -Dm755 "$PROGRAM" "$R/usr/bin/pawlatch"
"${TOOLS}strip" "$R/usr/bin/pawlatch"
install -Dm644 -t "$R/usr/lib/systemd/system" systemd/pawlatch.service systemd/pawlatch-lock.service
install -Dm644 systemd/pawlatch.sysusers.conf "$R/usr/lib/sysusers.d/pawlatch.conf"
install -Dm644 systemd/pawlatch.tmpfiles.conf "$R/usr/lib/tmpfiles.d/pawlatch.conf"
install -Dm644 systemd/60-pawlatch.rules "$R/usr/lib/udev/rules.d/60-pawlatch.rules"
install -Dm644 xtask/emulate/pawlatch.toml "$R/etc/pawlatch/pawlatch.toml"
mkdir -p "$R/usr/share/pawlatch"
cp -r models "$R/usr/share/pawlatch/models"
ln -sf /usr/lib/systemd/system/pawlatch-lock.service "$U/sysinit.target.wants/"

# The package, one that is newer, and what dpkg must know to install them.
if [ -n "${DEB:-}" ]; then
    install -Dm644 "$DEB" "$R/usr/share/door/pawlatch.deb"
    cp xtask/emulate/pawlatch.toml "$R/usr/share/door/door.toml"
    N=$(mktemp -d)
    dpkg-deb -R "$DEB" "$N/tree"
    sed -i 's/^Version: .*/&+newer/' "$N/tree/DEBIAN/control"
    dpkg-deb -Znone --root-owner-group -b "$N/tree" "$R/usr/share/door/newer.deb" > /dev/null
    rm -r "$N"
    mkdir -p "$R"/var/lib/dpkg/{info,updates}
    for deb in "$G"/debs/*.deb; do
        dpkg-deb -f "$deb" | sed 's/^Package: .*/&\nStatus: install ok installed/; /^Conffiles:/d'
        echo
    done > "$R/var/lib/dpkg/status"
    : > "$R/var/lib/dpkg/available"
fi

# The world around it.
"${TOOLS}gcc" -O2 -static -o "$R/usr/bin/sim" xtask/emulate/sim.c
[ -z "${ORDEAL:-}" ] || { install -Dm755 "$ORDEAL" "$R/usr/lib/door/pawlatch-ordeal"; "${TOOLS}strip" "$R/usr/lib/door/pawlatch-ordeal"; }
mkdir -p "$R/usr/share/frames"
cp "$FRAMES"/*.yuyv "$R/usr/share/frames/"
install -Dm755 xtask/emulate/board.sh "$R/usr/lib/door/board.sh"
install -Dm755 xtask/emulate/proof.sh "$R/usr/lib/door/proof.sh"
cat > "$U/board.service" <<'UNIT'
[Unit]
Description=The emulated board: lines, bolt, logic analyser, disk
DefaultDependencies=no
After=systemd-udevd.service systemd-tmpfiles-setup-dev.service
Before=pawlatch-lock.service sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/bash /usr/lib/door/board.sh
KillMode=none
UNIT
cat > "$U/proof.service" <<'UNIT'
[Unit]
Description=The proofs
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /usr/lib/door/proof.sh
TimeoutStartSec=infinity
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
UNIT
ln -sf ../board.service "$U/sysinit.target.wants/board.service"
ln -sf ../proof.service "$U/multi-user.target.wants/proof.service"
# An emulated processor on a busy machine is slower than any board the door is made for.
mkdir -p "$U/pawlatch.service.d"
printf '[Service]\nWatchdogSec=20s\nTimeoutStartSec=300s\n' > "$U/pawlatch.service.d/slow.conf"

cp "$K/root/boot/vmlinuz-$KV" "$G/vmlinuz"
[ $ARCH != arm64 ] || cp "$(find "$K/root" -name bcm2837-rpi-3-b.dtb | head -1)" "$G/"
(cd "$R" && find . -print0 | LC_ALL=C sort -z |
    cpio --null -o -H newc --owner 0:0 --quiet) > "$G/initrd.cpio"
[ -f "$G/disk.img" ] || { truncate -s 64M "$G/disk.img"; mke2fs -q -t ext4 "$G/disk.img"; }
ls -la "$G/vmlinuz" "$G/initrd.cpio"
cd "$HERE"
