#!/bin/busybox sh
# The first process of a guest. Makes a root file system of the host's, read-only under a tmpfs, and hands over to
# command.sh, or to systemd, which starts that. Runs on busybox alone, in the initial ramdisk.
/bin/busybox --install -s /bin
export PATH=/bin
. /settings # ENGINE, MODULES, EXCHANGE, SYSTEMD, ACCOUNT, ACCOUNT_ID

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod "$module"; done

# share TAG DIRECTORY PLACE OPTIONS: mounts a directory of the host
share() {
    case $ENGINE in
        uml) mount -t hostfs -o "${4%%,*},$2" hostfs "$3" ;;
        qemu) mount -t 9p -o "$4,trans=virtio,version=9p2000.L,msize=512000" "$1" "$3" ;;
    esac
}

share host / /host ro,cache=loose
mount -t tmpfs -o size=80% tmpfs /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new || poweroff -f

release=$(uname -r)
mkdir -p "/new/lib/modules/$release"
mount --bind "/host$MODULES" "/new/lib/modules/$release"
for directory in dev proc sys; do mount --move /$directory /new/$directory; done
mkdir -p /new/dev/pts /new/dev/shm
ln -s /proc/self/fd /new/dev/fd
ln -s fd/0 /new/dev/stdin
ln -s fd/1 /new/dev/stdout
ln -s fd/2 /new/dev/stderr
mount -t devpts -o mode=620,ptmxmode=666,gid=5 devpts /new/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm

# What the overlay that is the root cannot: hold the upper directory of another, and map ids for a mount.
mount --bind /new /plain
mount -t tmpfs -o mode=1777 tmpfs /new/tmp
mount -t tmpfs -o mode=1777 tmpfs /new/var/tmp
mount -t tmpfs -o mode=1777 tmpfs /new/srv
[ "$SYSTEMD" ] || mount -t tmpfs -o mode=755 tmpfs /new/run
while read -r directory; do
    case $directory in
        /run/* | /srv/* | /tmp/* | /var/tmp/*)
            mkdir -p "/new$directory"
            mount --bind "/plain$directory" "/new$directory"
            ;;
    esac
    # An ordinary user must get there too.
    while directory=${directory%/*} && [ "$directory" ]; do chmod a+x "/new$directory"; done
done </kept
umount /plain

mkdir /new/vm
share exchange "$EXCHANGE" /new/vm rw,cache=none
cp /settings /new/etc/isolib-vm

echo "$ACCOUNT:*:$ACCOUNT_ID:$ACCOUNT_ID::/home/$ACCOUNT:/bin/sh" >>/new/etc/passwd
echo "$ACCOUNT:*:$ACCOUNT_ID:" >>/new/etc/group
echo "$ACCOUNT:1000000:65536" >>/new/etc/subuid
echo "$ACCOUNT:1000000:65536" >>/new/etc/subgid
mkdir -p "/new/home/$ACCOUNT"
chown "$ACCOUNT_ID:$ACCOUNT_ID" "/new/home/$ACCOUNT"

[ ! -e /new/proc/sys/kernel/modprobe ] || echo /sbin/modprobe >/new/proc/sys/kernel/modprobe
# Others are loaded when they are needed; /dev/loop-control is made by udev, or by the module.
[ -e /new/dev/loop-control ] || chroot /new /sbin/modprobe -q loop || :
echo vm >/new/proc/sys/kernel/hostname
ip link set lo up

if ! [ "$SYSTEMD" ]; then
    mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /new/sys/fs/cgroup
    exec switch_root /new /bin/sh /vm/command.sh
fi

# systemd as after a plain installation: of what the host has configured, only packages' own files count.
units=/new/etc/systemd/system
rm -rf $units/*.wants $units/*.requires
: >/new/etc/fstab
: >/new/etc/machine-id
for unit in apparmor.service ldconfig.service networking.service systemd-binfmt.service systemd-hwdb-update.service \
    systemd-journal-flush.service systemd-modules-load.service systemd-pcrphase.service systemd-random-seed.service \
    systemd-sysusers.service systemd-timesyncd.service systemd-tmpfiles-clean.timer systemd-udev-trigger.service \
    systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service systemd-update-utmp.service tmp.mount; do
    ln -sf /dev/null $units/$unit
done
cat >$units/vm.target <<UNIT
[Unit]
Requires=basic.target vm.service
After=basic.target
UNIT
cat >$units/vm.service <<UNIT
[Unit]
Requires=dbus.socket systemd-logind.service user@$ACCOUNT_ID.service
After=basic.target dbus.socket systemd-logind.service user@$ACCOUNT_ID.service
[Service]
Type=exec
Delegate=yes
ExecStart=/bin/sh /vm/command.sh
UNIT
exec switch_root /new /lib/systemd/systemd --unit=vm.target --log-level=warning --show-status=no
