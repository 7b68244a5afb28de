# Makes a machine within this one and becomes its systemd: boot.sh STAGE boot|try FOLDER CGROUP.
#
# FOLDER holds `files`, what this machine has besides the host's files, `programs`, links to the programs that it has at
# the same paths, and `box`, an empty folder to build in. The stages call each other: `outer` in the namespaces of whoever boots,
# `middle` in new ones, `inner` in a cgroup namespace whose root is CGROUP. With `try` it only tries whether all of it is
# permitted. Nothing of the host is written to; whoever made CGROUP may have enabled controllers for it.
set -eu
stage=$1 what=$2 folder=$3 cgroup=$4 script=$0

case $stage in
outer)
  exec unshare --mount --pid --net --uts --ipc --fork --kill-child --propagation private \
    /bin/sh "$script" middle "$what" "$folder" "$cgroup"
  ;;
middle)
  echo 0 >"$cgroup/cgroup.procs"
  exec unshare --cgroup /bin/sh "$script" inner "$what" "$folder" "$cgroup"
  ;;
esac

# Relative paths: a comma in FOLDER would be read as part of the options.
cd "$folder"
mount -t tmpfs -o mode=755 tmpfs box
mkdir box/upper box/work box/root
cp -R files/. box/upper
mount -t overlay -o lowerdir=/,upperdir=box/upper,workdir=box/work overlay box/root
cd box/root
# Mounted, not copied: unstripped programs would fill the memory. Read-only, so that nobody writes to the host's.
(cd "$folder/programs" && find . -type l) | while read -r at; do
  rm -f "$at"
  mkdir -p "${at%/*}"
  touch "$at"
  mount --bind "$folder/programs/$at" "$at"
  mount -o remount,bind,ro "$at"
done
mkdir -p proc sys dev run tmp etc/systemd/system host
mount -t proc proc proc
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run

# Devices of its own: systemd links /dev/log to its journal.
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm

# A read-only /sys keeps the device manager from starting.
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -o remount,bind,ro sys

# What the host has enabled is not for here, neither are its logins, and its packages may start what they bring.
rm -f usr/sbin/policy-rc.d
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires etc/systemd/user/*.wants
for unit in getty.target systemd-logind.service systemd-networkd.service systemd-resolved.service remote-fs.target; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done

pivot_root . host
[ "$what" = boot ] || exit 0
umount -l /host
for systemd in /usr/lib/systemd/systemd /lib/systemd/systemd; do
  [ ! -x "$systemd" ] || exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test "$systemd" --system \
    --unit=basic.target --show-status=0
done
