#!/usr/bin/env bash
# What the emulation needs and does not change: Debian's kernel for ARCH (arm64 or amd64) with
# gpio-sim and v4l2loopback built for it, and the packages of the guest. Everything is below $CROSS;
# packages are only unpacked, the machine's own package state is not touched.
#
# Needs (Debian): gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm kmod cpio make bc
# flex bison e2fsprogs xz-utils
set -euo pipefail
CROSS=${CROSS:?a directory to work in}
ARCH=${ARCH:-arm64} SUITE=bookworm
case $ARCH in
arm64) KARCH=arm64 TOOLS=aarch64-linux-gnu- ;;
amd64) KARCH=x86 TOOLS= ;;
esac
MIRROR=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -1)

apt_for() { # ARCH: a private view of the suite; prints its configuration file
    local out=$CROSS/apt/$SUITE-$1
    if [ ! -f "$out/apt.conf" ]; then
        mkdir -p "$out"/{lists/partial,cache/archives/partial,etc}
        : > "$out/status"
        echo "deb [arch=$1 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
            "$MIRROR $SUITE main" > "$out/etc/sources.list"
        cat > "$out/apt.conf" <<C
Dir::State "$out"; Dir::State::lists "$out/lists"; Dir::State::status "$out/status";
Dir::Cache "$out/cache"; Dir::Etc::sourcelist "$out/etc/sources.list";
Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::preferences "/dev/null"; APT::Architecture "$1"; APT::Architectures { "$1"; };
APT::Sandbox::User "root";
C
    fi
    compgen -G "$out/lists/*Packages*" > /dev/null || apt-get -qq -c "$out/apt.conf" update
    echo "$out/apt.conf"
}

G=$(apt_for $ARCH) H=$(apt_for amd64) W=$CROSS/kern/$ARCH
mkdir -p "$W"/{debs,root,src}

if [ ! -f "$W/kver" ]; then
    cd "$W/debs"
    IMG=$(apt-cache -c "$G" depends linux-image-$ARCH |
        sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    KV=${IMG#linux-image-}
    COMMON=linux-headers-${KV%-$ARCH}-common
    apt-get -q -c "$G" download "$IMG" "linux-headers-$KV" "$COMMON" linux-source-6.1 v4l2loopback-dkms
    apt-get -q -c "$H" download linux-kbuild-6.1
    for deb in linux-image-* linux-headers-* linux-kbuild-* v4l2loopback-*; do
        dpkg -x "$deb" "$W/root"
    done
    dpkg-deb --fsys-tarfile linux-source-6.1*.deb |
        tar xO --wildcards './usr/src/linux-source-6.1.tar.xz' |
        tar xJ -C "$W/src" --strip-components=1 --occurrence=1 \
            linux-source-6.1/drivers/gpio/{gpio-sim.c,gpiolib.h} \
            linux-source-6.1/kernel/irq/irq_sim.c || true # tar stops reading when it has them
    ls "$W/src/drivers/gpio/gpio-sim.c" "$W/src/kernel/irq/irq_sim.c" > /dev/null
    # The header packages name each other by absolute path.
    KD=$W/root/usr/src/linux-headers-$KV
    sed -i "s#/usr/src/#$W/root/usr/src/#g; s#/usr/lib/linux-kbuild#$W/root/usr/lib/linux-kbuild#g" \
        "$KD/Makefile" "$KD/.kernelvariables" 2> /dev/null || true

    M=$W/gpio-sim
    mkdir -p "$M"
    cp "$W/src/drivers/gpio/gpio-sim.c" "$M/gpio-sim-main.c"
    cp "$W/src/drivers/gpio/gpiolib.h" "$W/src/kernel/irq/irq_sim.c" "$M/"
    # Modules may not call irq_to_desc(); what they may call does the same.
    sed -i 's/handle_simple_irq(irq_to_desc(\([^)]*\)))/generic_handle_irq(\1)/' "$M/irq_sim.c"
    printf 'gpio-sim-y := gpio-sim-main.o irq_sim.o\nobj-m := gpio-sim.o\n' > "$M/Kbuild"
    L=$W/v4l2loopback
    mkdir -p "$L"
    cp "$W"/root/usr/src/v4l2loopback-*/*.[ch] "$L/"
    echo 'obj-m := v4l2loopback.o' > "$L/Kbuild"
    for module in "$M" "$L"; do
        make -C "$KD" M="$module" ARCH=$KARCH CROSS_COMPILE="$TOOLS" CC="${TOOLS}gcc" modules
    done
    mkdir -p "$W/root/lib/modules/$KV/updates"
    cp "$M/gpio-sim.ko" "$L/v4l2loopback.ko" "$W/root/lib/modules/$KV/updates/"
    "${TOOLS}strip" --strip-debug "$W/root/lib/modules/$KV/updates/"*.ko
    depmod -b "$W/root" "$KV"
    echo "$KV" > "$W/kver"
fi

D=$CROSS/guest/$ARCH/debs
if [ ! -d "$D" ]; then
    mkdir -p "$D/partial"
    apt-get -q -c "$G" -y --no-install-recommends --download-only -o Dir::Cache::archives="$D" \
        install systemd-sysv systemd udev kmod bash coreutils util-linux mount libc-bin \
        base-files base-passwd login grep sed gawk procps findutils diffutils init-system-helpers \
        v4l-utils libstdc++6
fi
