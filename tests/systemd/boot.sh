#!/bin/bash
# Boot systemd over a throw-away copy of this machine's files. Runs in a mount namespace of its own (unshare --mount);
# everything it makes is in a tmpfs there and goes with it.
# Usage: boot.sh FOLDER CHECKOUT VENV PYTHON_PREFIX
set -euo pipefail
folder=$1 checkout=$2 venv=$3 prefix=$4

mount -t tmpfs -o mode=755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
root=$folder/root

# As docs/operations.md installs it, but for the environment: this checkout's, which needs its interpreter.
install -D -m 644 "$checkout/systemd/gpuserve.sysusers.conf" "$root/usr/lib/sysusers.d/gpuserve.conf"
install -D -m 644 -t "$root/etc/systemd/system" "$checkout/systemd/gpuserved.service" "$checkout/systemd/gpuserved.socket"
mkdir -p "$root/opt"
ln -sfn "$venv" "$root/opt/gpuserve"
# The service's user must be able to walk to both; on the copy only.
for path in "$checkout" "$venv" "$prefix"; do
    while [ "$path" != / ]; do
        [ ! -d "$root$path" ] || chmod o+rx "$root$path"
        path=$(dirname "$path")
    done
done
# The watchdog's half minute, shortened so that a test can wait for it; so is the first step of the retry.
mkdir -p "$root/etc/systemd/system/gpuserved.service.d"
printf '[Service]\nWatchdogSec=6\n' >"$root/etc/systemd/system/gpuserved.service.d/test.conf"
# Another machine than this one, and not on its first boot, which would enable every unit. Nothing to wait for on its network.
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
ln -sfn /dev/null "$root/etc/systemd/system/systemd-networkd-wait-online.service"

# nspawn needs cgroup 2, and a place in it that is not the root.
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
find /sys/fs/cgroup/gpuserve-test-* -depth -type d -exec rmdir {} + 2>/dev/null || true  # of earlier boots
mkdir -p "/sys/fs/cgroup/gpuserve-test-$$"
echo $$ >"/sys/fs/cgroup/gpuserve-test-$$/cgroup.procs"

exec systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --console=pipe --link-journal=no \
    --bind-ro="$checkout" --bind-ro="$venv" --bind-ro="$prefix" --directory="$root"
