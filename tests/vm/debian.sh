#!/usr/bin/env bash
# debian.sh RELEASE TARGET...: the make targets as a stranger types them, in a new Debian 12 or 13: first as root, then as an
# ordinary user who may not install system packages and is told what to ask for. Needs root and debootstrap.
#
# The tree of a release is made once, in $ISOLIB_DEBIAN_TREES, and copied for every run, so that each finds nothing installed.
# It runs on this host's kernel, in its own mount and pid namespaces. It is pivoted into, not chrooted: the kernel
# refuses user namespaces to a chrooted process.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
release=$1
shift
case $release in
    12) suite=bookworm ;;
    13) suite=trixie ;;
    *) echo "debian.sh: no such release: $release" >&2 && exit 2 ;;
esac

base=${ISOLIB_DEBIAN_TREES:-/var/tmp/isolib-debian}/$release
if ! [ -e "$base/etc/debian_version" ]; then
    rm -rf "$base.new"
    mkdir -p "$base.new"
    debootstrap --variant=minbase "$suite" "$base.new" "${ISOLIB_DEBIAN_MIRROR:-http://deb.debian.org/debian}"
    mv "$base.new" "$base"
fi

tree=$(mktemp -d "$base.run-XXXXXX")
trap 'rm -rf --one-file-system "$tree"' EXIT
chmod 755 "$tree"
cp -a "$base/." "$tree"
mkdir "$tree/isolib"
tar -C "$checkout" --exclude='./.venv*' --exclude=./build -cf - . | tar -C "$tree/isolib" --no-same-owner -xf -

# How this host reaches the registries is how the tree does.
cp -L /etc/resolv.conf "$tree/etc/resolv.conf"
cp /etc/apt/apt.conf.d/99* "$tree/etc/apt/apt.conf.d/" 2>/dev/null || true
cp /etc/pip.conf "$tree/etc/pip.conf" 2>/dev/null || true
mkdir -p "$tree/usr/local/share/ca-certificates" # taken in when the tree gets its ca-certificates
cp /usr/local/share/ca-certificates/*.crt "$tree/usr/local/share/ca-certificates/" 2>/dev/null || true
keep=()
for name in $(compgen -e); do
    case $name in PIP_* | SSL_CERT_* | *_CA_BUNDLE | *_proxy | *_PROXY) keep+=("$name=${!name}") ;; esac
done

cat >"$tree/stranger" <<'STRANGER'
#!/bin/sh
# stranger TARGET...: what a new user does
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends git make

useradd --create-home --shell /bin/sh guest
cp -a /isolib /home/guest/isolib
chown -R guest: /home/guest/isolib
as_guest() {
    (cd /home/guest/isolib && setpriv --reuid guest --regid guest --init-groups env HOME=/home/guest LOGNAME=guest USER=guest "$@")
}

if as_guest make demo 2>/tmp/refusal; then
    echo "stranger: an ordinary user needed no system package" >&2
    exit 1
fi
cat /tmp/refusal
advice=$(sed -n 's/^ *sudo \(apt-get install .*\)/\1/p' /tmp/refusal)
echo "stranger: root is asked for: $advice"
[ -n "$advice" ]

cd /isolib
for target; do
    echo "==== Debian $(cat /etc/debian_version), root: make $target"
    make "$target"
done

# The ordinary user gets what he was told to ask for, which must suffice.
$advice
for target; do
    echo "==== Debian $(cat /etc/debian_version), an ordinary user: make $target"
    as_guest make "$target"
done
STRANGER

unshare --mount --pid --fork --kill-child --propagation private sh -euc '
    tree=$1
    shift
    mount --bind "$tree" "$tree"
    cd "$tree"
    mount -t proc proc proc
    mount --rbind /sys sys
    mount --rbind /dev dev
    mount -t tmpfs -o mode=755 tmpfs run
    pivot_root . mnt
    exec chroot . sh -euc "umount -l /mnt; exec \"\$@\"" sh "$@"
' sh "$tree" env -i "${keep[@]}" HOME=/root LANG=C.UTF-8 LOGNAME=root SHELL=/bin/sh USER=root \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh /stranger "$@" </dev/null
