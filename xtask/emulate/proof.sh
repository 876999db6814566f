# The proofs, in the guest. Every line "PASS" or "FAIL" is one; the rest is told for the record.
# Which run, the kernel's command line says: door.proofs=SECTION,... where a section is bad, 1, 6, 2,
# panic, 3, unplug (the second half of 3), 5, package or, last, reboot, which waits to be killed; or
# again (after that) or pi alone.
set -u
RUN=$(sed -n 's/.*door\.proofs=\([a-z0-9,]*\).*/\1/p' /proc/cmdline)
passed=0 failed=0
ms() { local t; read -r t _ < /proc/uptime; t=${t/./}; echo $((10#$t * 10)); }
say() { echo "[$(($(ms) / 1000)) s] $*"; }
check() { # NAME WANTED GOT [DETAIL]
    if [ "$2" = "$3" ]; then passed=$((passed + 1)); say "PASS $1${4:+ ($4)}"
    else failed=$((failed + 1)); say "FAIL $1: $3 instead of $2${4:+ ($4)}"; fi
}
latch() { cat /run/lines/sim_gpio17/value; }
wait_for() { # SECONDS COMMAND...: whether it came true
    local until=$(($(ms) + $1 * 1000)); shift
    while [ "$(ms)" -lt $until ]; do "$@" && return 0; sleep 0.1; done
    return 1
}
came() { "$@" && echo yes || echo no; }
is() { [ "$(latch)" = "$1" ]; }
said() { journalctl -u pawlatch --no-pager -o cat --since "@$MARK" 2> /dev/null | grep -q -- "$1"; }
mark() { sleep 1.1; MARK=$(date +%s); }
last() { journalctl -u pawlatch --no-pager -o cat --since "@$MARK" | tail -"${1:-6}" | cut -c1-180; }
scene() { ln -sfn "/usr/share/frames/$1.yuyv" /run/scene.new; mv -T /run/scene.new /run/scene; }
feeder() { # [RATE]: start the camera's pictures
    setsid sim feed /dev/video0 640 480 "${1:-5}" /run/scene < /dev/null > /run/feeder.log 2>&1 &
    FEEDER=$!
    sleep 1
}
press() { echo pull-down > /run/lines/sim_gpio27/pull; sleep "$1"; echo pull-up > /run/lines/sim_gpio27/pull; }
unlocked() { press 0.3; check "$1: unlocked" yes "$(came wait_for 10 is 1)"; }
beam() { echo "pull-$1" > /run/lines/sim_gpio23/pull; }
ended() { ! grep -qs '^State:.[^ZX]' "/proc/$1/status"; }
in_service() { said "in service" || said "the fault is gone"; }
# Here the door is ended more often than the ladder of starts allows: it is told to forget that.
start() { mark; setpriv --reuid=pawlatch --regid=pawlatch --init-groups pawlatch --config /etc/pawlatch/pawlatch.toml update retry > /dev/null 2>&1; systemctl reset-failed pawlatch; systemctl start pawlatch; check "$1: the door is in service" yes "$(came wait_for 300 said 'in service')"; }
# The light: what red, green and blue did in the last seconds, as the logic analyser saw it.
lit() { awk -v now="$(ms)" -v name="$1" '$2 == name && $1 > now - 6000 && $3 == 1 { n++ } END { print n + 0 }' /run/lines.log; }

if [ "$RUN" = pi ]; then
    # A Raspberry Pi's own registers: rppal, which is asked first.
    say "== 7: $(tr -d '\0' < /proc/device-tree/model)"
    systemctl stop pawlatch-lock
    printf '[latch]\nkind = "solenoid"\nline = "GPIO17"\nfeedback = false\nmax_energised_ms = 600000\n[door]\nrelock_within_ms = 800\n' > /run/pi.toml
    pin() { sim pin 17; }
    sees() { [ "$(pin)" = "$1" ]; }
    pawlatch check --config /run/pi.toml 2>&1 | grep -E 'latch|lines' | sed 's/^/    /'
    check "check finds the pin on a Pi" yes "$(came grep -q 'latch.line: GPIO17 of a Raspberry Pi' <<< "$(pawlatch check --config /run/pi.toml 2>&1)")"
    pawlatch latch test --config /run/pi.toml --rounds 1 --open-ms 6000 > /run/test.txt 2>&1 &
    check "unlocked: the pin is high" yes "$(came wait_for 60 sees 1)"
    check "locked: the pin is low" yes "$(came wait_for 60 sees 0)"
    wait; sed 's/^/    /' /run/test.txt
    pawlatch latch test --config /run/pi.toml --rounds 1 --open-ms 20000 > /dev/null 2>&1 & victim=$!
    wait_for 60 sees 1; kill -KILL $victim; sleep 1
    check "killed while unlocked: a register keeps its level" 1 "$(pin)"
    pawlatch lock --config /run/pi.toml
    check "pawlatch lock, as ExecStopPost does: low, and stays" 0 "$(sleep 1; pin)"
    say "== done: $passed passed, $failed failed"; sync; systemctl poweroff --force --force; exit
fi

say "kernel $(uname -r) $(uname -m), $(systemctl --version | head -1), $(nproc) processors"
modprobe v4l2loopback devices=1 video_nr=0 exclusive_caps=1 card_label=doorcam
v4l2-ctl -d0 -c keep_format=1 > /dev/null 2>&1
scene empty
feeder
udevadm settle
ls -l /dev/video0 /dev/gpiochip* | sed 's/^/    /'

say "== 4: before the daemon"
wait_for 30 systemctl -q is-active pawlatch-lock
lock_at=$(systemctl show -P ActiveEnterTimestampMonotonic pawlatch-lock)
check "pawlatch-lock.service has locked" "success active" "$(systemctl show -P Result pawlatch-lock) $(systemctl show -P ActiveState pawlatch-lock)" "at $((lock_at / 1000)) ms"
journalctl -u pawlatch-lock --no-pager -o cat | tail -3 | sed 's/^/    /'
check "the latch's line is inactive" 0 "$(latch)"

if [ "$RUN" = again ]; then
    pawlatch --config /etc/pawlatch/pawlatch.toml events list --all > /run/events.txt 2>&1
    check "the journal of the killed machine opens" 0 $?
    check "and holds that it was unlocked" yes "$(came grep -q 'unlocked' /run/events.txt)" "$(wc -l < /run/events.txt) lines"
    tail -5 /run/events.txt | sed 's/^/    /'
    start "after the kill"
    check "the latch's line was never active" 0 "$(awk '$2 == "latch" && $3 == 1' /run/lines.log | wc -l)"
    say "== done: $passed passed, $failed failed"; sync; systemctl poweroff --force --force; exit
fi

bad_input() {
say "== bad input"
refuses() { # WHAT PATTERN VARIABLE=VALUE...: `check` must say so
    local what=$1 pattern=$2; shift 2
    told=$(env "$@" timeout 300 pawlatch check --config /etc/pawlatch/pawlatch.toml 2>&1 > /dev/null | tr '\n' ' ')
    check "check refuses $what" yes "$(came grep -q -- "$pattern" <<< "$told")" "${told:0:240}"
}
also() { check "and $1" yes "$(came grep -q -- "$2" <<< "$told")"; }
refuses "a line that no chip has" "no chip has a line of that name" \
    PAWLATCH__LATCH__LINE=GPIO99 PAWLATCH__CAMERA__SOURCE=v4l2:/dev/video7
also "a camera that is not there" "is not there"
refuses "a number beyond the chip" "has the lines 0 to [0-9]" \
    PAWLATCH__LATCH__LINE=gpiochip0:77 "PAWLATCH__CAMERA__SOURCE=v4l2:/dev/video0?format=nv12"
also "a format the camera does not have" "no format nv12"
refuses "two things on one line" "another line" PAWLATCH__PANEL__BEAM_LINE=GPIO17
refuses "a rate the camera does not have" "no rate 60" \
    "PAWLATCH__CAMERA__SOURCE=v4l2:/dev/video0?rate=60"
kill $FEEDER; feeder 1
refuses "a camera of one frame a second" "frames a second and the door needs" PAWLATCH__DOOR__FRESH_FOR_MS=1000
kill $FEEDER; feeder
told=$(setpriv --reuid=65534 --regid=65534 --clear-groups pawlatch check --config /etc/pawlatch/pawlatch.toml 2>&1 > /dev/null | tr '\n' ' ')
check "without permission it says so" yes "$(came grep -qiE 'may not be opened|cannot read' <<< "$told")" "${told:0:160}"
pawlatch camera test v4l2:/dev/video0 --seconds 3 > /run/camera-test.txt; check "camera test measures the camera" 0 $?
sed 's/^/    /' /run/camera-test.txt
pawlatch latch test --config /etc/pawlatch/pawlatch.toml --rounds 2 --open-ms 300 > /run/latch-test.txt; check "latch test sees the bolt follow" 0 $?
sed 's/^/    /' /run/latch-test.txt
}

pictures() {
say "== 1: pictures"
mkdir -p /run/systemd/system/pawlatch.service.d
printf '[Service]\nEnvironment=PAWLATCH__GATE__PATROL_MS=1000 PAWLATCH__DOOR__FRESH_FOR_MS=240000 PAWLATCH__DOOR__CAMERA_LOST_AFTER_MS=250000\n' \
    > /run/systemd/system/pawlatch.service.d/looking.conf
systemctl daemon-reload; systemctl stop pawlatch; start "first start"
check "a line held by the door is refused to others" yes "$(came grep -q 'held by' <<< "$(pawlatch latch test --config /etc/pawlatch/pawlatch.toml 2>&1)")"
for who in cat person_dog empty; do
    before=$(awk '$2 == "latch" && $3 == 1' /run/lines.log | wc -l)
    mark; scene $who
    # A look takes as long as it takes; what must not happen is given time for several.
    if [ $who = cat ]; then wait_for 600 said 'kept shut: cat'; else sleep "${LOOK:-150}"; fi
    after=$(awk '$2 == "latch" && $3 == 1' /run/lines.log | wc -l)
    check "$who: the line stays inactive" "$before" "$after"
    [ $who = cat ] && check "cat: refused, and the light is red" yes "$(came said 'kept shut: cat')" "red came on $(lit red) times in 6 s"
    last 3 | sed 's/^/    /'
done
scene empty; sleep 8
mark; t0=$(ms); scene dog
check "dog: the line goes active" yes "$(came wait_for 900 is 1)" "after $(($(ms) - t0)) ms, emulated"
check "dog: the log says for whom" yes "$(came wait_for 5 said 'unlocked for the dog')"
sleep 1; check "dog: the light is green" 1 "$(cat /run/lines/sim_gpio6/value)"
beam down; sleep 1; scene empty; sleep 1; beam up
check "passage beam: relocks when the passage is clear" yes "$(came wait_for 20 is 0)"
check "and says so" yes "$(came wait_for 10 said 'the passage is clear again')"
last 6 | sed 's/^/    /'
pawlatch --config /etc/pawlatch/pawlatch.toml events list --all --limit 500 > /run/events.txt
for words in "kept shut: cat" "unlocked for the dog" "locking: the passage is clear again"; do
    check "the door's journal says as much: $words" yes "$(came grep -q "$words" /run/events.txt)"
done
scene dog; mark
check "dog again" yes "$(came wait_for 900 is 1)"
check "nobody comes: inactive again" yes "$(came wait_for 60 is 0)"
scene empty; systemctl stop pawlatch
rm /run/systemd/system/pawlatch.service.d/looking.conf; systemctl daemon-reload
}

bolt_and_button() {
say "== 6: bolt and button"
systemctl -q is-active pawlatch || start "before the button"
press 0.3; check "tap: opens once" yes "$(came wait_for 10 is 1)"
check "tap: and locks again" yes "$(came wait_for 60 is 0)"; sleep 4
mark; press 2; check "hold: held locked" yes "$(came wait_for 10 said 'held locked')"
mark; press 2; check "hold again: back to the rules" yes "$(came wait_for 10 said 'back to the rules')"
mark; press 6; check "long: held open" yes "$(came wait_for 10 said 'held open')"
check "long: the line is active" yes "$(came wait_for 5 is 1)"
touch /run/jam
mark; press 0.3
check "bolt that stays out: locked again and again" yes "$(came wait_for 40 said 'did not lock (attempt 2)')"
check "bolt that stays out: fault" yes "$(came wait_for 20 said 'did not lock twice')"
sleep 1; check "bolt that stays out: the light says fault" yes "$(came [ "$(lit red)" -ge 2 ])" "red came on $(lit red) times in 6 s"
last 8 | sed 's/^/    /'
rm /run/jam; sleep 3; mark; press 2
check "freed and acknowledged: the fault is gone" yes "$(came wait_for 30 said 'the fault is gone')"
mark; press 2; check "and back to the rules" yes "$(came wait_for 10 said 'back to the rules')"
}

process_ends() {
say "== 2: the process ends"
systemctl stop pawlatch; start "before the kill"
unlocked "before the kill"; pid=$(systemctl show -P MainPID pawlatch); mark; t0=$(ms)
kill -KILL "$pid"; wait_for 10 ended "$pid"; t1=$(ms)
check "SIGKILL while unlocked: inactive" yes "$(came wait_for 2 is 0)" "$(($(ms) - t1)) ms after the process's end, $(($(ms) - t0)) ms after the signal"
check "SIGKILL: ExecStopPost has locked" yes "$(came wait_for 10 said '^locked$')"
check "SIGKILL: started again" yes "$(came wait_for 300 said 'in service')"
unlocked "before it is stopped"; pid=$(systemctl show -P MainPID pawlatch); mark; t0=$(ms)
kill -STOP "$pid"
check "SIGSTOP while unlocked: inactive when the watchdog has ended it" yes "$(came wait_for 60 is 0)" "after $(($(ms) - t0)) ms, watchdog 20 s"
check "SIGSTOP: started again" yes "$(came wait_for 300 said 'in service')"
mkdir -p /run/systemd/system/pawlatch.service.d
printf '[Service]\nEnvironment=PAWLATCH__DOOR__LEASE_MS=1\n' > /run/systemd/system/pawlatch.service.d/bad.conf
systemctl daemon-reload; mark; systemctl restart pawlatch; sleep 8
check "a start that fails: inactive, and locked by the unit" "0 yes" "$(latch) $(came said '^locked$')"
last 4 | sed 's/^/    /'
rm /run/systemd/system/pawlatch.service.d/bad.conf; systemctl daemon-reload; systemctl stop pawlatch
}

# With a program of the same source whose threads panic when asked to (feature `ordeal`).
panics() {
say "== 2: a panic in each thread"
if ! [ -x /usr/lib/door/pawlatch-ordeal ]; then say "    not in this guest"; return; fi
mkdir -p /run/systemd/system/pawlatch.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/lib/door/pawlatch-ordeal boot --config /etc/pawlatch/pawlatch.toml\n' > /run/systemd/system/pawlatch.service.d/ordeal.conf
systemctl daemon-reload; systemctl stop pawlatch; start "before the panics"
for thread in control perception capture latch panel journal; do
    unlocked "before a panic in $thread"; pid=$(systemctl show -P MainPID pawlatch); mark; touch "/run/pawlatch/panic-$thread"
    check "a panic in the $thread thread ends the process" yes "$(came wait_for 60 ended "$pid")"
    t0=$(ms)
    check "panic in $thread: inactive" yes "$(came wait_for 2 is 0)" "$(($(ms) - t0)) ms after the process's end"
    check "panic in $thread: started again" yes "$(came wait_for 300 said 'in service')"
    sleep 1
done
mark; touch /run/pawlatch/panic-camera
check "a panic in the camera's own thread is a camera that fails" yes "$(came wait_for 60 said 'the program that reads it panicked')"
check "and comes back" yes "$(came wait_for 60 said 'the camera is back')"
systemctl stop pawlatch; rm /run/systemd/system/pawlatch.service.d/ordeal.conf; systemctl daemon-reload
}

camera_goes() {
say "== 3: the camera goes"
start "before the camera goes"
mark; kill -STOP $FEEDER
check "feeder stalled, reads block: fault" yes "$(came wait_for 120 said 'no picture from the camera')"
check "stalled: locked" 0 "$(latch)"
check "stalled: the light says fault" yes "$(came [ "$(sleep 6; lit red)" -ge 2 ])"
last 4 | sed 's/^/    /'
mark; kill -CONT $FEEDER
check "feeder again: recovers by itself" yes "$(came wait_for 180 said 'the fault is gone')"
mark; touch /run/scene.same
check "the same frame for ever: fault" yes "$(came wait_for 90 said 'cannot be used')"
mark; rm /run/scene.same
check "new frames: recovers by itself" yes "$(came wait_for 90 said 'the fault is gone')"
systemctl stop pawlatch
}

camera_leaves() {
say "== 3: the camera is unplugged"
mkdir -p /run/systemd/system/pawlatch.service.d
modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0; sleep 2; udevadm settle
VIVID=$(for v in /dev/video*; do v4l2-ctl -d "$v" --info 2> /dev/null | grep -q vivid && echo "$v"; done | head -1)
# Its pictures move, so that all are looked at, which here takes longer than a camera may be silent.
printf '[Service]\nEnvironment=PAWLATCH__CAMERA__SOURCE=v4l2:%s PAWLATCH__DOOR__CAMERA_LOST_AFTER_MS=90000\n' "$VIVID" > /run/systemd/system/pawlatch.service.d/vivid.conf
systemctl daemon-reload
pawlatch camera test "v4l2:$VIVID" --seconds 3 | sed 's/^/    /'
start "with vivid at $VIVID"
sleep 20; check "test pattern: the line stays inactive" 0 "$(latch)"
last 4 | sed 's/^/    /'
mark; v4l2-ctl -d "$VIVID" -c disconnect=1 2> /dev/null || v4l2-ctl -d "$VIVID" --set-ctrl=0x00f0f006=1
check "unplugged (vivid's disconnect): the camera is missed" yes "$(came wait_for 60 said 'no pictures')"
# vivid is there again as soon as nobody holds it open.
check "plugged in again: the camera is back" yes "$(came wait_for 60 said 'the camera is back')"
last 4 | sed 's/^/    /'
mark; echo vivid.0 > /sys/bus/platform/drivers/vivid/unbind
check "unbound from its driver: fault" yes "$(came wait_for 240 said 'no picture from the camera')"
check "unbound: locked" 0 "$(latch)"
last 6 | sed 's/^/    /'
mark; echo vivid.0 > /sys/bus/platform/drivers/vivid/bind
check "bound again: recovers by itself" yes "$(came wait_for 120 said 'the fault is gone')"
last 4 | sed 's/^/    /'
systemctl stop pawlatch; rm /run/systemd/system/pawlatch.service.d/vivid.conf; systemctl daemon-reload
}

disk_and_clock() {
say "== 5: disk and clock"
start "before the clock jumps"
now=$(date +%s); date -s "@$((now - 31536000))" > /dev/null; sleep 4
check "a year back: runs on" active "$(systemctl is-active pawlatch)"
date -s "@$((now + 31536000))" > /dev/null; sleep 4
check "a year forward: runs on" active "$(systemctl is-active pawlatch)"
date -s "@$now" > /dev/null; sleep 2
mark; scene empty
if mountpoint -q /var/lib/pawlatch; then
    dd if=/dev/zero of=/var/lib/pawlatch/fill bs=1M > /dev/null 2>&1; sync
    press 0.3
    check "disk full: fault, or decides on what fits" yes "$(came wait_for 40 said 'nothing can be recorded\|unlocked by the owner')"
    check "disk full: still running" active "$(systemctl is-active pawlatch)"
    last 4 | sed 's/^/    /'
    rm /var/lib/pawlatch/fill; wait_for 60 is 0; sleep 3
    mark; mount -o remount,ro /var/lib/pawlatch 2> /dev/null || say "    cannot be made read-only while written to"
    press 0.3; sleep 8
    check "read-only: still running" active "$(systemctl is-active pawlatch)"
    last 4 | sed 's/^/    /'
    mount -o remount,rw /var/lib/pawlatch; wait_for 60 is 0
fi
pawlatch doctor --config /etc/pawlatch/pawlatch.toml 2>&1 | sed 's/^/    /'
systemd-analyze security --no-pager pawlatch.service 2> /dev/null | tail -1 | sed 's/^/    /'
systemctl stop pawlatch
}

package() {
say "== the package"
# The hand-made installation goes; what follows is dpkg's.
systemctl stop pawlatch pawlatch-lock
umount /var/lib/pawlatch # purging removes the directory itself
rm -rf /usr/bin/pawlatch /usr/share/pawlatch /etc/pawlatch /usr/lib/systemd/system/pawlatch*.service \
    /etc/systemd/system/sysinit.target.wants/pawlatch-lock.service /usr/lib/sysusers.d/pawlatch.conf \
    /usr/lib/tmpfiles.d/pawlatch.conf /usr/lib/udev/rules.d/60-pawlatch.rules
systemctl daemon-reload
state() { dpkg-query -W -f '${db:Status-Status} ${Version}' pawlatch 2> /dev/null || echo absent; }
installs() { dpkg --force-confdef --force-confold -i "$1" > /run/dpkg.txt 2>&1 < /dev/null; }
cd /usr/share/door; old=$(dpkg-deb -f pawlatch.deb Version) new=$(dpkg-deb -f newer.deb Version)
check "install" "yes" "$(came installs pawlatch.deb)"
check "installed" "installed $old" "$(state)"
check "both units are enabled" "enabled enabled" "$(systemctl is-enabled pawlatch pawlatch-lock | tr '\n' ' ' | sed 's/ $//')"
check "its user is in the groups of lines and cameras" yes "$(came [ "$(id -nG pawlatch | grep -cw gpio)$(id -nG pawlatch | grep -cw video)" = 11 ])" "$(id -nG pawlatch)"
check "the configuration may be read by the service alone" "640 root pawlatch" "$(stat -c '%a %U %G' /etc/pawlatch/pawlatch.toml)"
pawlatch model list --models-dir /var/lib/pawlatch/models 2>&1 | sed 's/^/    /'
check "without a camera it says what to do" yes "$(came grep -q 'camera.source' <<< "$(pawlatch check --config /etc/pawlatch/pawlatch.toml 2>&1)")"
sed 's#^dir = "/usr/share/pawlatch/models"#dir = "/var/lib/pawlatch/models"#' /usr/share/door/door.toml > /etc/pawlatch/pawlatch.toml
before=$(sha256sum < /etc/pawlatch/pawlatch.toml)
start "the package's door"
check "the latch is locked" 0 "$(latch)"
pid=$(systemctl show -P MainPID pawlatch); mark
check "upgrade" "yes" "$(came installs newer.deb)"
check "upgraded" "installed $new" "$(state)"
check "upgrade: started again" yes "$(came wait_for 300 said 'in service')"
check "upgrade: another process" no "$(came [ "$pid" = "$(systemctl show -P MainPID pawlatch)" ])"
check "upgrade: the owner's configuration is kept" "$before" "$(sha256sum < /etc/pawlatch/pawlatch.toml)"
mark; check "downgrade" "yes" "$(came installs pawlatch.deb)"
check "downgraded" "installed $old" "$(state)"
check "downgrade: started again" yes "$(came wait_for 300 said 'in service')"
check "remove" yes "$(came bash -c 'dpkg -r pawlatch > /run/dpkg.txt 2>&1')"
check "removed: configuration stays" "config-files $old" "$(state)"
check "removed: no program, no service, locked" "no inactive 0" "$(came [ -e /usr/bin/pawlatch ]) $(systemctl is-active pawlatch) $(latch)"
check "removed: events stay" yes "$(came [ -s /var/lib/pawlatch/journal/journal.db ])"
check "install after a removal" "yes" "$(came installs pawlatch.deb)"
check "its configuration is the owner's again" "$before" "$(sha256sum < /etc/pawlatch/pawlatch.toml)"
check "and it is enabled again" enabled "$(systemctl is-enabled pawlatch)"
check "purge asks nothing" yes "$(came bash -c 'dpkg -P pawlatch > /run/dpkg.txt 2>&1 < /dev/null')"
check "purged: nothing of the door is left" "absent no no" "$(state) $(came [ -e /etc/pawlatch ]) $(came [ -n "$(ls -A /var/lib/pawlatch 2> /dev/null)" ])"
}

to_be_killed() {
say "== 4: the machine is killed"
start "to be killed with the machine"
unlocked "before the machine is killed"
say "ready to be killed"; sleep 600
}

for section in ${RUN//,/ }; do
    case $section in
    bad) bad_input ;;
    1) pictures ;;
    2) process_ends ;;
    3) camera_goes; camera_leaves ;;
    unplug) camera_leaves ;;
    5) disk_and_clock ;;
    6) bolt_and_button ;;
    panic) panics ;;
    package) package ;;
    reboot) say "== $passed passed, $failed failed"; sync; to_be_killed ;;
    *) say "FAIL there is no section $section" ;;
    esac
done
say "== done: $passed passed, $failed failed"
sync
systemctl poweroff --force --force
