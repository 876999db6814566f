#!/bin/sh
# In the machine whose power is cut: presses the button, which writes events, and tells the console
# how many another process finds in the journal: those must outlive the cut.
exec >/dev/console 2>&1
config=/etc/pawlatch/pawlatch.toml
up() { cut -d' ' -f1 /proc/uptime; }
have() { pawlatch events list --all --json --limit 100000 --config $config 2>/dev/null | wc -l; }
press() { # SECONDS; the file is replaced whole, since the door may be reading it
    echo 0 >/run/buttons/new && mv /run/buttons/new /run/buttons/27
    sleep "$1"
    echo 1 >/run/buttons/new && mv /run/buttons/new /run/buttons/27
}
echo "cuts: up $(up) s"
echo "cuts: lock $(systemctl show -P Result -P ActiveState pawlatch-lock | tr '\n' ' ')"
echo "cuts: root $(findmnt -no OPTIONS / | cut -c1-2), data $(findmnt -no OPTIONS /data | cut -c1-2)"
echo "cuts: password $([ -s /boot/firmware/password.txt ] && echo written || echo none)"
echo "cuts: have $(have)"
n=0
until [ "$(systemctl is-active pawlatch)" = active ]; do
    n=$((n + 1))
    [ $n -lt 300 ] || { echo "cuts: the door does not start"; journalctl -u pawlatch -n 20 --no-pager; }
    sleep 1
done
echo "cuts: armed $(up) s"
# Ten starts that no healthy minute follows are a reason to keep it locked: here they are the cuts'.
setpriv --reuid=pawlatch --regid=pawlatch --init-groups pawlatch update retry --config $config
[ -e /data/doctor ] || { pawlatch doctor --config $config; touch /data/doctor; }
while :; do
    press 2
    sleep 1
    echo "cuts: acknowledged $(have)"
done
