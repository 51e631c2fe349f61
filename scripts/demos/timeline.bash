# shellcheck shell=bash
# What the demos share: workers whose output goes into one timeline, polling with a deadline, and failing in words.
# A demo sources this, so that it also runs on its own: scripts/demos/ack
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034 # for the demos
node=$repository/scripts/rabbitmq-node
TASKQ=${TASKQ:-$repository/target/release/taskq}

# Every demo has a broker of its own, which ends with it: a node, or what it has named as `brokers` before.
brokers=$repository/scripts/${brokers:-rabbitmq-node}
[[ -n ${TASKQ_NODE_DIR-} ]] || exec "$brokers" with -- "$0" "$@"

[[ -x $TASKQ ]] || {
    echo "$TASKQ is not there: make release" >&2
    exit 1
}
# What the person who runs the demo has set for work of their own.
unset TASKQ_QUEUE RUST_LOG
export LC_ALL=C

# As a worker and the broker need a few milliseconds for most of what is waited for, this only ends what hangs.
readonly deadline=60

scratch=$(mktemp -d "${TMPDIR:-/tmp}/taskq-demo.XXXXXX")
log=$scratch/timeline
: >"$log"
declare -A workers=()

cleanup() {
    local status=$?
    trap '' INT TERM HUP
    # Gone with the node in a moment. Above 128 the demo was interrupted.
    if ((status > 0 && status < 128)); then
        printf '\nThe end of the log of the broker:\n'
        # The console has lines that the file gets only seconds later. The node may be gone: the rest is removed all the same.
        tail -n 8 "$TASKQ_NODE_DIR"{,/[1-9]*}/log/{console,rabbitmq}.log 2>/dev/null | cut -c 1-200 || ls -la "$TASKQ_NODE_DIR" || true
    fi >&2
    # The shell would report each of them.
    { kill -KILL "${workers[@]}" && wait "${workers[@]}"; } 2>/dev/null || true
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

milliseconds() { echo $((${EPOCHREALTIME/./} / 1000)); }
started=$(milliseconds)

title() { printf '\n%s\n\n' "$*"; }

# say WHO WHAT: a line of the timeline, kept for `count` too.
say() {
    local elapsed=$(($(milliseconds) - started))
    printf '%s\t%s\n' "$1" "$2" >>"$log"
    printf '%4d.%d s  %-9s %s\n' $((elapsed / 1000)) $((elapsed % 1000 / 100)) "$1" "$2"
}

stamp() {
    local line
    while IFS= read -r line; do say "$1" "$line"; done
}

fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

passed() { printf '\nOK: %s\n' "$*"; }

# eventually WHAT COMMAND...: polls until COMMAND is true; WHAT is the property that does not hold if it never is.
eventually() {
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "$what (waited $deadline s)"
        sleep 0.05
    done
}

# count WHO TEXT: how many of WHO's lines contain TEXT; `*` is everybody.
count() { awk -F '\t' -v who="$1" -v text="$2" '(who == "*" || $1 == who) && index($2, text) { n++ } END { print n + 0 }' "$log"; }
counted() { (($(count "$1" "$2") == $3)); }

# taskq's own flags after the name of who sends; lines to send, if any, on stdin.
send() { "$TASKQ" send "$@" 2>&1 >/dev/null | stamp sender; }

# work NAME [FLAG]...: a worker in the background.
work() {
    local name=$1
    shift
    "$TASKQ" work "$@" 2> >(stamp "$name") &
    workers[$name]=$!
}

# finish NAME: asks the worker to stop, or lets it end on its own if it is about to; it must exit with 0.
finish() {
    local status=0
    kill -TERM "${workers[$1]}" 2>/dev/null || true
    await "$1" || status=$?
    ((status == 0)) || fail "$1 exited with $status"
}

# await NAME: the exit status of a worker that ends on its own.
await() {
    local pid=${workers[$1]} status=0
    eventually "$1 ends" ended "$pid"
    wait "$pid" 2>/dev/null || status=$?
    unset "workers[$1]"
    return "$status"
}
# A child that has ended is a zombie until the shell waits for it.
ended() { [[ ! -e /proc/$1 || $(</proc/"$1"/stat) == *') Z '* ]]; }

# crash NAME: no chance to say goodbye to the broker.
crash() {
    # Waits at once, or the shell would report how it ended.
    { kill -KILL "${workers[$1]}" && wait "${workers[$1]}"; } 2>/dev/null || true
    unset "workers[$1]"
    say "$1" "killed (kill -9)"
}

# is QUEUE READY UNACKNOWLEDGED CONSUMERS, with - for any
is() {
    "$brokers" queues "$TASKQ_NODE_DIR" | awk -v queue="$1" -v ready="$2" -v unacknowledged="$3" -v consumers="$4" '
        function fits(want, got) { return want == "-" || want == got }
        $1 == queue && fits(ready, $2) && fits(unacknowledged, $3) && fits(consumers, $4) { found = 1 }
        END { exit !found }'
}

broker_says() { "$brokers" queues "$TASKQ_NODE_DIR" | stamp broker; }
