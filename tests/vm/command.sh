# Runs the command of a guest as whom and where it is to run, and tells the host how it ended. Started by root.
. /etc/isolib-vm # ACCOUNT, AS_USER, SYSTEMD

groups=/sys/fs/cgroup

# enable GROUP: gives the groups below it all controllers that it has
enable() {
    for controller in $(cat "$1/cgroup.controllers"); do echo "+$controller" >"$1/cgroup.subtree_control"; done
}

# delegate GROUP: hands it to the account, as the kernel says how (cgroup(7))
delegate() {
    chown "$ACCOUNT:" "$1"
    while read -r name; do
        [ ! -e "$1/$name" ] || chown "$ACCOUNT:" "$1/$name"
    done </sys/kernel/cgroup/delegate
}

: >/vm/started
(
    set -e
    case $SYSTEMD,$AS_USER in
        ,) ;;
        ,1) # The leaf is there because a group that gives controllers to those below it must have no process.
            mkdir $groups/delegated
            enable $groups
            enable $groups/delegated
            mkdir $groups/delegated/leaf
            delegate $groups/delegated
            delegate $groups/delegated/leaf
            echo 0 >$groups/delegated/leaf/cgroup.procs
            ;;
        1,) # What a service should do that was given its group; systemd can do it itself since 254 (DelegateSubgroup=).
            service=$groups$(sed -n 's/^0:://p' /proc/self/cgroup)
            mkdir "$service/leaf"
            echo $$ >"$service/leaf/cgroup.procs"
            echo 0 >"$service/leaf/cgroup.procs"
            ;;
        1,1) exec runuser -l "$ACCOUNT" -c 'sh /vm/command' ;; # in a session's scope, as after a login
    esac
    who=root
    [ -z "$AS_USER" ] || who=$ACCOUNT
    exec setsid -w setpriv --reuid $who --regid $who --init-groups sh /vm/command
) </dev/null >/vm/output 2>&1
echo $? >/vm/status.new
mv /vm/status.new /vm/status
exec busybox poweroff -f
