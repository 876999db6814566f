# The emulated board, before anything of the door runs: eight named lines of a gpio-sim chip, a
# bolt that follows the latch, a logic analyser, a disk that outlives the machine.
set -u
mountpoint -q /sys/kernel/config || { modprobe configfs; mount -t configfs none /sys/kernel/config; }
modprobe gpio-sim
C=/sys/kernel/config/gpio-sim/door
if ! [ -d $C ]; then
    mkdir -p $C/bank0
    echo 32 > $C/bank0/num_lines
    for n in 5 6 13 17 22 23 27; do
        mkdir $C/bank0/line$n
        echo GPIO$n > $C/bank0/line$n/name
    done
    echo 1 > $C/live
fi
S=/sys/devices/platform/$(cat $C/dev_name)/$(cat $C/bank0/chip_name)
ln -sfn "$S" /run/lines
# The resistors of docs/wiring.md: latch down, inputs up; the bolt is home, the beam is whole.
echo pull-down > /run/lines/sim_gpio17/pull
echo pull-down > /run/lines/sim_gpio22/pull
for n in 23 27; do echo pull-up > /run/lines/sim_gpio$n/pull; done
setsid sim watch /run/lines.log latch=/run/lines/sim_gpio17/value red=/run/lines/sim_gpio5/value \
    green=/run/lines/sim_gpio6/value blue=/run/lines/sim_gpio13/value < /dev/null > /dev/null 2>&1 &
setsid sim bolt /run/lines/sim_gpio17 /run/lines/sim_gpio22 /run/jam < /dev/null > /dev/null 2>&1 &
modprobe virtio_blk; modprobe ext4
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; sleep 0.5; done
mkdir -p /var/lib/pawlatch
[ -b /dev/vda ] && mount -t ext4 /dev/vda /var/lib/pawlatch
udevadm trigger --subsystem-match=gpio; udevadm settle --timeout=20
exit 0
