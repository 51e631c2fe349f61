#!/bin/sh
# The handler of the chaos run. It does what the body asks for and appends one line about it to the ledger, with a
# single write: outcome, task, the first words of the body, attempt, redelivered, worker, pid, start and end.
# Nothing here starts a process but the sleeps, so that thousands of runs are cheap.
read -r start _ </proc/uptime
read -r name errand fed rest

note() {
    read -r end _ </proc/uptime
    echo "$1 $TASKQ_ID $name $errand $fed $TASKQ_ATTEMPT $TASKQ_REDELIVERED $CHAOS_WORKER $$ $start $end" >>"$CHAOS_RUNS"
}

# The worker was killed before it had written the whole body, which ends with a full stop.
case $rest in
*.) ;;
*)
    name=-/0 errand=- fed=0.00
    note truncated
    exit 1
    ;;
esac

case $errand in
slow*) sleep "${errand#slow}" ;;
once)
    [ "$TASKQ_ATTEMPT" -gt 1 ] || { note failed && exit 75; }
    ;;
twice)
    [ "$TASKQ_ATTEMPT" -gt 2 ] || { note failed && exit 1; }
    ;;
hopeless) note failed && exit 3 ;;
data) note refused && exit 65 ;;
hang) note hung && exec sleep 20 ;;
esac
note 'done'
