#!/bin/sh
# The handler of the chaos run. It does what the body asks for and appends one line about it to the history, with a
# single write: outcome, task, the first words of the body, attempt, redelivered, worker, pid, start and end.
# Nothing here starts a process but the sleeps, so that thousands of runs are cheap.
#
# With CHAOS_ORPHANS=no a run comes to nothing whose worker was killed meanwhile: else every task would be done however
# often it is taken away. With CHAOS_RECYCLES=N it is a persistent command that ends itself, with 0, after N tasks.

note() {
    read -r end _ </proc/uptime
    echo "$1 $TASKQ_ID $name $action $submitted $TASKQ_ATTEMPT $TASKQ_REDELIVERED $CHAOS_WORKER $$ $start $end" >>"$CHAOS_RUNS"
}

leave_if_orphaned() {
    [ "${CHAOS_ORPHANS-}" != no ] || read -r _ _ _ parent _ </proc/$$/stat
    [ "${parent-$PPID}" = "$PPID" ] || exit 1
}

work() {
    case $action in
    slow*) sleep "${action#slow}" && leave_if_orphaned ;;
    once)
        [ "$TASKQ_ATTEMPT" -gt 1 ] || { note failed && return 75; }
        ;;
    twice)
        [ "$TASKQ_ATTEMPT" -gt 2 ] || { note failed && return 1; }
        ;;
    hopeless) note failed && return 3 ;;
    data) note refused && return 65 ;;
    hang) note hung && sleep 20 && return 1 ;;
    esac
    note 'done'
}

if [ -z "${CHAOS_RECYCLES-}" ]; then
    read -r start _ </proc/uptime
    read -r name action submitted rest
    # The worker was killed before it had written the whole body, which ends with a full stop.
    case $rest in
    *.) ;;
    *)
        name=-/0 action=- submitted=0.00
        note truncated
        exit 1
        ;;
    esac
    work
    exit
fi

set -f
served=0
# A line that ends with its worker is none.
while [ "$served" -lt "$CHAOS_RECYCLES" ] && read -r line; do
    read -r start _ </proc/uptime
    TASKQ_ID=${line#*'"id":"'} TASKQ_ATTEMPT=${line#*'"attempt":'} TASKQ_REDELIVERED=0
    TASKQ_ID=${TASKQ_ID%%'"'*} TASKQ_ATTEMPT=${TASKQ_ATTEMPT%%,*}
    case $line in
    *'"redelivered":true'*) TASKQ_REDELIVERED=1 ;;
    esac
    # shellcheck disable=SC2086 # The words of the body, which comes last. The shortest prefix, which is quickly found.
    set -- ${line#*'"body":"'}
    name=$1 action=$2 submitted=$3
    work
    code=$?
    case $code in
    0) echo OK ;;
    65) echo DEAD refused ;;
    *) echo "RETRY exit status $code" ;;
    esac
    served=$((served + 1))
done
# An interpreter takes a moment to end, and the next task may be given to it meanwhile.
sleep 0.05
